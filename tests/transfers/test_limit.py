"""A limit on bytes a second: its arithmetic in virtual time, and transfers of all kinds that share one."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import reactivex
from reactivex import Observable
from reactivex import operators as ops
from reactivex.testing import TestScheduler

from rx_client import Chunk, ConnectOptions, FileClient, Progress, RateLimit, rate_limit
from rx_client.operators import for_each_async, map_async
from rx_client.testing import FakeFileClient
from rx_client.transfers.limit import Share, after_payment
from server import ChatData, DirectoryStore, serve
from shared.errors import DeadlineExceeded
from tests.support import eventually

from .helpers import Recorder


class Transfer:
    """What is granted to one share, and when."""

    def __init__(self, limit: RateLimit, scheduler: TestScheduler, item_bytes: int = 100) -> None:
        self.share = Share(limit, item_bytes, scheduler)
        self.granted: list[float] = []
        self.share.on_granted = lambda: self.granted.append(round(scheduler.clock, 6))


@pytest.fixture
def scheduler() -> TestScheduler:
    return TestScheduler()


@pytest.fixture
def limit(scheduler: TestScheduler) -> RateLimit:
    return rate_limit(100, scheduler=scheduler)


async def test_items_come_at_the_rate_and_the_first_at_once(limit: RateLimit, scheduler: TestScheduler) -> None:
    transfer = Transfer(limit, scheduler)
    transfer.share.want(3)
    scheduler.advance_to(10)
    assert transfer.granted == [0, 1, 2]
    transfer.share.close(300)


async def test_shares_take_turns(limit: RateLimit, scheduler: TestScheduler) -> None:
    a, b, c = (Transfer(limit, scheduler, item_bytes) for item_bytes in (100, 100, 50))
    for each in (a, b, c):
        each.share.want(100)
    scheduler.advance_to(9)
    assert (a.granted, b.granted, c.granted) == ([0, 1, 3.5, 6, 8.5], [2, 4.5, 7], [3, 5.5, 8])
    for each in (a, b, c):
        each.share.close(1000)


async def test_an_idle_limit_saves_up_an_eighth_of_a_second_only(limit: RateLimit, scheduler: TestScheduler) -> None:
    scheduler.advance_to(1000)
    transfer = Transfer(limit, scheduler, 10)
    transfer.share.want(5)
    scheduler.advance_to(2000)
    assert transfer.granted == [1000, 1000, 1000.075, 1000.175, 1000.275]
    transfer.share.close(50)


async def test_what_was_paid_for_and_not_moved_is_given_back(limit: RateLimit, scheduler: TestScheduler) -> None:
    small, other = Transfer(limit, scheduler), Transfer(limit, scheduler)
    small.share.want(1)
    other.share.want(2)
    small.share.close(20)
    scheduler.advance_to(5)
    assert other.granted == [0.2, 1.2]
    other.share.close(200)


async def test_items_of_other_sizes_are_charged_as_they_are(limit: RateLimit, scheduler: TestScheduler) -> None:
    transfer = Transfer(limit, scheduler)
    transfer.share.want(4)
    transfer.share.settle(1, 300)
    scheduler.advance_to(3)
    assert transfer.granted == [0, 3]
    transfer.share.settle(2, 310)
    scheduler.advance_to(10)
    assert transfer.granted == [0, 3, 3.1, 4.1]
    transfer.share.close(510)


async def test_another_rate_counts_at_once(limit: RateLimit, scheduler: TestScheduler) -> None:
    transfer = Transfer(limit, scheduler)
    transfer.share.want(100)
    scheduler.advance_to(0.5)
    limit.bytes_per_second = 500
    scheduler.advance_to(0.9)
    assert transfer.granted == [0, 0.6, 0.8]
    limit.bytes_per_second = 10
    scheduler.advance_to(15)
    assert transfer.granted == [0, 0.6, 0.8, 5.9]
    limit.bytes_per_second = None
    assert len(transfer.granted) == 100
    limit.bytes_per_second = 100
    transfer.share.want(2)
    scheduler.advance_to(20)
    assert transfer.granted[100:] == [15, 16]
    transfer.share.close(10_200)


async def test_one_that_waits_and_leaves_keeps_no_other_waiting(limit: RateLimit, scheduler: TestScheduler) -> None:
    first, second, third = (Transfer(limit, scheduler) for _ in range(3))
    for each in (first, second, third):
        each.share.want(1)
    second.share.close()
    first.share.close(100)
    scheduler.advance_to(5)
    assert (first.granted, second.granted, third.granted) == ([0], [], [1])
    third.share.close(100)


async def test_no_limit_grants_any_number_without_a_deep_stack(scheduler: TestScheduler) -> None:
    transfer = Transfer(rate_limit(None, scheduler=scheduler), scheduler)
    transfer.share.want(50_000)
    assert len(transfer.granted) == 50_000
    transfer.share.close()


async def test_shares_of_other_event_loops_are_granted_in_their_threads() -> None:
    limit = rate_limit(1_000_000)
    threads: set[tuple[str, int]] = set()

    async def take(name: str) -> None:
        share, done, left = limit.share(), asyncio.Event(), 20

        def on_granted() -> None:
            nonlocal left
            left -= 1
            threads.add((name, threading.get_ident()))
            if not left:
                done.set()

        share.on_granted = on_granted
        share.want(left)
        await done.wait()
        share.close(20)

    await asyncio.gather(take("here"), asyncio.to_thread(lambda: asyncio.run(take("there"))))
    assert len(threads) == 2
    assert ("here", threading.get_ident()) in threads


async def test_disposing_what_waits_for_its_first_item(limit: RateLimit, scheduler: TestScheduler) -> None:
    made: list[Share] = []

    def make(share: Share) -> Observable[int]:
        made.append(share)
        return reactivex.never()

    subscriptions = [after_payment(limit, make, None).subscribe() for _ in range(3)]
    assert len(made) == 1
    for subscription in reversed(subscriptions):
        subscription.dispose()
    scheduler.advance_to(100)
    assert len(made) == 1


async def test_what_raises_keeps_no_other_waiting(limit: RateLimit, scheduler: TestScheduler) -> None:
    def on_granted() -> None:
        raise ZeroDivisionError

    first = Transfer(limit, scheduler)
    first.share.on_granted = on_granted
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    try:
        first.share.want(1)
    finally:
        loop.set_exception_handler(before)
    assert [type(context["exception"]) for context in reported] == [ZeroDivisionError]
    transfer = Transfer(limit, scheduler)
    transfer.share.want(1)
    scheduler.advance_to(5)
    assert transfer.granted
    transfer.share.close(100)


async def test_infinity_is_no_limit(scheduler: TestScheduler) -> None:
    limit = rate_limit(float("inf"), scheduler=scheduler)
    transfer = Transfer(limit, scheduler)
    transfer.share.want(10)
    assert transfer.granted == [0] * 10
    assert limit.bytes_per_second is None
    transfer.share.close(1000)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_rates_out_of_range(rate: float) -> None:
    with pytest.raises(ValueError, match="more than 0"):
        rate_limit(rate)
    limit = rate_limit(7)
    with pytest.raises(ValueError, match="more than 0"):
        limit.bytes_per_second = rate
    assert limit.bytes_per_second == 7


# Transfers


class Counted(RateLimit):
    """A limit that notes what transfers pay; fast enough not to hold a test up."""

    def __init__(self) -> None:
        super().__init__(100_000_000)
        self.shares: list[Share] = []
        self.spent = 0

    def share(self, most: int = 1 << 18) -> Share:
        self.shares.append(Share(self, min(10_000, most)))
        return self.shares[-1]

    def enqueue(self, share: Share) -> None:
        self.spent += share.item_bytes
        super().enqueue(share)

    def give_back(self, nbytes: int) -> None:
        self.spent -= nbytes
        super().give_back(nbytes)

    def leave(self, share: Share) -> None:
        self.spent -= share.item_bytes
        super().leave(share)


CONTENT = bytes(range(256)) * 1000


@pytest.fixture(params=["memory", "folder"])
async def files(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[FileClient, None]:
    data = ChatData() if request.param == "memory" else ChatData(DirectoryStore(tmp_path / "store"))
    async with serve(data=data) as server, FileClient.connect(server.uri) as client:
        yield client


class Writer:
    """An AsyncWriter."""

    def __init__(self) -> None:
        self.content = b""

    async def write(self, data: bytes) -> None:
        assert len(data) <= 10_000
        self.content += data


@pytest.mark.parametrize("kind", ["path", "bytes", "iterable"])
async def test_an_upload_pays_for_what_it_sends(files: FileClient, tmp_path: Path, kind: str) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    sources: dict[str, Any] = {"path": tmp_path / "source", "bytes": CONTENT, "iterable": iter([CONTENT])}
    limit = Counted()
    await files.upload_from("a", sources[kind], limit=limit)
    assert await files.download("a") == CONTENT
    assert limit.spent == len(CONTENT)


@pytest.mark.parametrize("kind", ["path", "writer", "chunks", "retained chunks"])
async def test_a_download_pays_for_what_it_gets(files: FileClient, tmp_path: Path, kind: str) -> None:
    await files.upload("a", CONTENT)
    limit, writer = Counted(), Writer()
    if kind == "path":
        await files.download_to("a", tmp_path / "here", limit=limit)
        got = (tmp_path / "here").read_bytes()
    elif kind == "writer":
        await files.download_to("a", writer, limit=limit)
        got = writer.content
    elif kind == "chunks":
        chunks = await files.download_chunks("a", limit=limit).pipe(ops.to_list())
        got = b"".join(chunk.data for chunk in chunks)
    else:
        downloaded = files.download_chunks("a", window=3, limit=limit)
        await downloaded.pipe(for_each_async(lambda chunk: writer.write(chunk.data)))
        got = writer.content
    assert got == CONTENT
    assert limit.spent == len(CONTENT)


async def test_many_small_files_cost_what_they_have(files: FileClient) -> None:
    limit = Counted()

    def there_and_back(number: int) -> Observable[Chunk]:
        up = files.upload_from(f"{number}", b"%d" % number, limit=limit)
        return up.pipe(ops.last(), ops.flat_map(lambda _: files.download_chunks(f"{number}", limit=limit)))

    await reactivex.range(100).pipe(ops.map(there_and_back), ops.merge(max_concurrent=5))
    assert limit.spent == 2 * sum(len(str(number)) for number in range(100))


@pytest.mark.parametrize("verb", ["up", "down", "chunks"])
async def test_a_disposed_transfer_gives_back_what_it_has_not_moved(
    files: FileClient, tmp_path: Path, verb: str
) -> None:
    await files.upload("a", CONTENT)
    limit = Counted()
    transfers: dict[str, Callable[[], Observable[Any]]] = {
        "up": lambda: files.upload_from("b", iter([CONTENT]), limit=limit),
        "down": lambda: files.download_to("a", tmp_path / "b", limit=limit),
        "chunks": lambda: files.download_chunks("a", limit=limit),
    }
    await transfers[verb]().pipe(ops.take(2))
    await files.settle()
    await eventually(lambda: 0 <= limit.spent < len(CONTENT))


async def test_a_slow_limit_is_not_the_servers_fault(tmp_path: Path) -> None:
    """What waits for the limit isn't stalled; and a deadline counts that time, too."""
    options = ConnectOptions(progress_timeout=1.0)
    async with serve() as server, FileClient.connect(server.uri, options=options) as files:
        content = bytes(5000)
        await files.upload("a", content)
        limits = [rate_limit(2500) for _ in range(3)]  # the second item comes 1.6 s after the first
        await reactivex.merge(
            files.upload_from("b", iter([content]), limit=limits[0]),
            files.download_to("a", tmp_path / "a", limit=limits[1]),
            files.download_chunks("a", limit=limits[2]).pipe(map_async(lambda _: asyncio.sleep(0))),
        )
        assert (tmp_path / "a").read_bytes() == content
        limit = rate_limit(1)
        await files.download_chunks("a", length=1, limit=limit)
        with pytest.raises(DeadlineExceeded):
            await files.download_to("a", tmp_path / "b", limit=limit, deadline=0.5)


async def test_a_limit_that_is_lifted_lets_waiting_transfers_go(files: FileClient, tmp_path: Path) -> None:
    await files.upload("a", CONTENT)
    limit = rate_limit(1)
    heard = [Recorder() for _ in range(3)]
    files.upload_from("b", CONTENT, limit=limit).subscribe(heard[0])
    files.download_to("a", tmp_path / "b", limit=limit).subscribe(heard[1])
    files.download_chunks("a", limit=limit).subscribe(heard[2])
    await asyncio.sleep(0.2)
    assert not any(isinstance(item, Progress) and item.transferred == len(CONTENT) for item in heard[0].items)
    limit.bytes_per_second = None
    for each in heard:
        await each.ended()
        assert each.is_completed


def test_a_number_as_a_limit_is_a_type_error_at_the_call() -> None:
    files: Any = FakeFileClient()
    for call in (
        lambda: files.upload_from("a", b"", limit=1000),
        lambda: files.download_to("a", "a", limit=1000),
        lambda: files.download_chunks("a", limit=1000),
        lambda: files.upload_tree(".", limit=1000),
        lambda: files.download_tree("", ".", limit=1000),
    ):
        with pytest.raises(TypeError, match=r"rate_limit\(1000\)"):
            call()
