"""`ReceiveJob`, whose items a test hands in as the frame path and the file lane do."""

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import shared.files.receiving
import shared.files.threads
from shared.errors import IntegrityError, ProtocolError
from shared.files.receiving import ReceiveJob
from shared.files.threads import SocketTurn
from shared.protocol.flow import Demand
from tests.files.support import Target, Wakes, ZeroCopyTarget, promptly
from tests.support import eventually


def _accept_all(_: int) -> None: ...


class _Transfer(Wakes):
    """A transfer that replenishes nothing by itself."""

    def __init__(
        self, target: Target, window: int = 1000, *, accept: Callable[[int], None] = _accept_all, is_open: bool = True
    ) -> None:
        super().__init__()
        self.target = target
        self.demand = Demand(window)
        self.reported = (0, 0)
        self.job = ReceiveJob(self.demand, self.on_progress, self.on_held)
        self._accept = accept
        if is_open:
            self.open()

    def open(self) -> None:
        self.job.open(self.target.append, self.target, self._accept)

    def on_progress(self) -> None:
        super().on_progress()
        self.reported = (self.job.items, self.job.nbytes)

    async def in_thread(self, *items: bytes) -> None:
        """Hands in items as a thread of the file lane does."""

        def take() -> None:
            for item in items:
                assert self.job.take_here(memoryview(item), SocketTurn())

        await asyncio.to_thread(take)


async def test_items_of_the_frame_path_are_stored_in_batches() -> None:
    transfer = _Transfer(Target())
    batches: list[list[bytes]] = []
    may_store = asyncio.Event()

    async def append(chunks: Sequence[bytes]) -> None:
        batches.append(list(chunks))
        await may_store.wait()

    transfer.job.open(append, None, _accept_all)
    transfer.job.take(b"first")
    await eventually(lambda: batches)
    for data in (b"second", b"", b"third"):
        transfer.job.take(data)
    await asyncio.sleep(0)
    assert batches == [[b"first"]], "one batch at a time is stored"
    assert not transfer.job.is_idle
    assert transfer.held == transfer.job.held_bytes == 16
    may_store.set()
    await eventually(lambda: transfer.job.is_idle)
    assert batches == [[b"first"], [b"second", b"third"]]
    assert transfer.reported == (4, 16)
    assert (transfer.held, transfer.demand.arrived) == (0, 4)
    await transfer.job.stop()


async def test_what_arrives_before_the_job_is_open_waits() -> None:
    transfer = _Transfer(Target(), is_open=False)
    transfer.job.take(b"first ")
    await transfer.in_thread(b"second ")
    transfer.job.take(b"third ")
    await asyncio.sleep(0.02)
    assert (transfer.job.items, transfer.job.held_bytes) == (0, 19)
    assert not transfer.job.is_idle
    transfer.open()
    await eventually(lambda: transfer.job.is_idle)
    assert transfer.target.data == b"first second third "
    assert (transfer.job.items, transfer.held) == (3, 0)
    await transfer.job.stop()


async def test_items_that_were_not_requested() -> None:
    transfer = _Transfer(Target(), window=2)
    transfer.job.take(b"1")
    await transfer.in_thread(b"2")
    with pytest.raises(ProtocolError):
        transfer.job.take(b"3")
    await transfer.in_thread(b"3")
    await eventually(lambda: transfer.job.failure is not None)
    assert isinstance(transfer.job.failure, ProtocolError)
    await eventually(lambda: transfer.job.is_idle)
    assert transfer.target.data in (b"1", b"12")
    await transfer.job.stop()


async def test_items_that_are_too_many_bytes_are_not_written() -> None:
    left = 10

    def accept(nbytes: int) -> None:
        nonlocal left
        left -= nbytes
        if left < 0:
            raise IntegrityError("too much")

    for is_in_thread in (True, False):
        left = 10
        transfer = _Transfer(Target(), accept=accept)
        for data in (b"123456", b"789", b"0 and more", b"x"):
            if is_in_thread:
                await transfer.in_thread(data)
            else:
                transfer.job.take(data)
                await eventually(lambda transfer=transfer: transfer.job.is_idle)
        await eventually(lambda transfer=transfer: transfer.job.failure is not None)
        assert isinstance(transfer.job.failure, IntegrityError)
        assert transfer.target.data == b"123456789"
        await transfer.job.stop()


async def test_a_lanes_item_is_written_where_it_arrives() -> None:
    transfer = _Transfer(Target())
    await transfer.in_thread(b"x" * 60)
    assert threading.get_ident() not in transfer.target.threads
    assert (transfer.job.items, transfer.job.nbytes, transfer.job.held_bytes) == (1, 60, 0)
    # In pieces, of which the last completes the item.
    turn = SocketTurn()
    assert await asyncio.to_thread(transfer.job.take_here, memoryview(b"y" * 30), turn, is_last=False)
    assert (transfer.job.items, transfer.job.nbytes) == (1, 90)
    assert await asyncio.to_thread(transfer.job.take_here, memoryview(b"z" * 10), turn, is_first=False)
    assert (transfer.job.items, transfer.job.nbytes) == (2, 100)
    assert transfer.target.data == b"x" * 60 + b"y" * 30 + b"z" * 10
    assert transfer.demand.arrived == 2
    transfer.job.report_soon()
    await eventually(lambda: transfer.reported == (2, 100))
    assert transfer.most_held == 0, "nothing is copied"
    await transfer.job.stop()


async def test_a_lanes_item_waits_behind_earlier_ones() -> None:
    target = Target()
    transfer = _Transfer(target)
    target.gate.close()
    transfer.job.take(b"first ")
    await eventually(lambda: target.gate.waiting)
    await promptly(transfer.in_thread(b"second "))
    transfer.job.take(b"third ")
    await promptly(transfer.in_thread(b"fourth "))
    assert transfer.job.held_bytes == 26
    target.gate.open()
    await eventually(lambda: transfer.job.is_idle)
    assert target.data == b"first second third fourth "
    assert transfer.job.items == 4
    assert (transfer.held, transfer.most_held) == (0, 26)
    await transfer.job.stop()


async def test_an_item_whose_frame_says_more_is_written_in_its_order() -> None:
    transfer = _Transfer(Target())

    def take() -> None:
        transfer.job.take_here(memoryview(b"first "), SocketTurn())
        transfer.job.take_later(b"second ")
        transfer.job.take_here(memoryview(b"third "), SocketTurn())

    await asyncio.to_thread(take)
    await eventually(lambda: transfer.job.is_idle)
    assert transfer.target.data == b"first second third "
    assert transfer.demand.arrived == 3
    await transfer.job.stop()


@pytest.mark.parametrize("kinds", ["tttt", "ffff", "tfff", "ftft", "ffft"])
async def test_nothing_is_written_behind_a_hole(kinds: str) -> None:
    transfer = _Transfer(Target(fail_at=5))
    for kind, data in zip(kinds, (b"first", b"lost", b"next", b"more"), strict=True):
        if kind == "t":
            await transfer.in_thread(data)
        else:
            transfer.job.take(data)
        await eventually(lambda: transfer.job.is_idle)
    assert transfer.job.failure is not None
    assert (transfer.target.data, transfer.job.items, transfer.job.nbytes) == (b"first", 1, 5)
    await eventually(lambda: transfer.reported == (1, 5))
    count = transfer.count
    transfer.job.report_soon()
    await asyncio.sleep(0.01)
    assert transfer.count == count, "there is nothing more to report"
    assert transfer.held == transfer.job.held_bytes == 0
    await transfer.job.stop()


async def test_a_slow_disk_does_not_keep_the_loop_waiting_for_half_a_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer could be sent credit, and the consumer progress, for each of its items."""
    monkeypatch.setattr(shared.files.receiving, "_REPORT_SECONDS", 0.005)
    transfer = _Transfer(Target(seconds=0.01))
    for count in range(1, 4):
        await transfer.in_thread(b"x" * 10)
        await eventually(lambda count=count: transfer.reported == (count, 10 * count))
    await transfer.job.stop()


async def test_a_fast_disk_reports_to_the_loop_at_half_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared.files.receiving._REPORT_SECONDS == 0.02
    monkeypatch.setattr(shared.files.receiving, "_REPORT_SECONDS", 1e9)
    transfer = _Transfer(Target(), window=16)

    async def take(count: int) -> int:
        """How many the loop hears of."""
        before, _ = transfer.reported
        await transfer.in_thread(*[b"x"] * count)
        await asyncio.sleep(0)  # what the thread has reported by now is heard of in this iteration
        return transfer.reported[0] - before

    assert [await take(7), await take(1)] == [0, 8]
    assert [await take(2), await take(5)] == [0, 0]
    transfer.job.report_soon()
    await eventually(lambda: transfer.reported == (15, 15))
    await transfer.job.stop()


async def test_threads_yield_the_cpu_after_each_item(monkeypatch: pytest.MonkeyPatch) -> None:
    yielded: list[int] = []
    monkeypatch.setattr(shared.files.threads, "_sched_yield", lambda: yielded.append(threading.get_ident()))
    transfer = _Transfer(Target())
    for _ in range(10):
        turn = SocketTurn()
        await asyncio.to_thread(transfer.job.take_here, memoryview(b"x"), turn, is_last=False)
        await asyncio.to_thread(transfer.job.take_here, memoryview(b"y"), turn, is_first=False)
    assert len(yielded) >= 10
    await transfer.in_thread(*[b"z"] * 10)
    assert len(yielded) >= 20
    assert threading.get_ident() not in yielded, "the event loop's own thread has nothing to wait for"
    await transfer.job.stop()


async def test_bytes_of_a_pipe() -> None:
    transfer = _Transfer(ZeroCopyTarget())
    job = transfer.job
    end, begin = os.pipe()
    try:
        os.write(begin, b"abc")
        assert job.splices
        turn = SocketTurn()
        await asyncio.to_thread(job.take_here, memoryview(b"first "), turn, is_last=False)
        await asyncio.to_thread(lambda: job.take_from(end, 2, turn, is_last=False))
        assert (job.items, job.nbytes) == (0, 8)
        await asyncio.to_thread(lambda: job.take_from(end, 1, turn, is_last=True))
        assert (job.items, job.nbytes) == (1, 9)
        assert transfer.target.data == b"first abc"
        await job.stop()
        assert not job.splices
        os.write(begin, b"late")
        await asyncio.to_thread(lambda: job.take_from(end, 4, turn, is_last=True))
        assert transfer.target.data == b"first abc"
    finally:
        os.close(end)
        os.close(begin)


async def test_no_bytes_are_spliced_while_something_waits_or_a_digest_must_see_them() -> None:
    assert not _Transfer(Target()).job.splices
    transfer = _Transfer(ZeroCopyTarget(), is_open=False)
    assert not transfer.job.splices
    transfer.target.gate.close()
    transfer.job.take(b"first")
    transfer.open()
    assert not transfer.job.splices
    transfer.target.gate.open()
    await eventually(lambda: transfer.job.is_idle)
    assert transfer.job.splices
    await transfer.job.stop()


@pytest.mark.parametrize("is_in_thread", [True, False])
async def test_stopping_waits_for_the_write_that_is_under_way(is_in_thread: bool) -> None:
    target = Target()
    transfer = _Transfer(target)
    target.gate.close()
    if is_in_thread:
        writing: asyncio.Task[Any] = asyncio.create_task(transfer.in_thread(b"first"))
    else:
        transfer.job.take(b"first")
        writing = asyncio.create_task(asyncio.sleep(0))
    await eventually(lambda: target.gate.waiting)
    transfer.job.take(b"dropped")
    stopping = asyncio.create_task(transfer.job.stop())
    await asyncio.sleep(0.03)
    assert not stopping.done()
    assert (transfer.held, transfer.job.held_bytes) == (0, 0)
    stopping.cancel()
    await asyncio.sleep(0.03)
    assert not stopping.done(), "not even a cancellation lets the file be closed"
    target.gate.open()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    await writing
    assert target.data == b"first"
    count = transfer.count
    await transfer.in_thread(b"late")
    transfer.job.take(b"late, too")
    transfer.job.report_soon()
    await asyncio.sleep(0.01)
    assert transfer.count == count, "nothing is reported any more"
    assert target.data == b"first"
    assert transfer.held == 0
    await transfer.job.stop()


async def test_a_thread_whose_disk_is_held_up_loses_the_socket() -> None:
    target = Target()
    transfer = _Transfer(target)
    target.gate.close()
    turn = SocketTurn()
    assert not turn.revoke_if_held_up(), "it isn't at the disk"
    writing = asyncio.create_task(asyncio.to_thread(transfer.job.take_here, memoryview(b"first "), turn))
    await eventually(lambda: target.gate.waiting)
    await eventually(turn.revoke_if_held_up, seconds=0.5)
    await promptly(transfer.in_thread(b"second "))
    target.gate.open()
    assert not await writing
    await eventually(lambda: transfer.job.is_idle)
    assert target.data == b"first second "
    await transfer.job.stop()


async def test_what_a_thread_has_written_that_lost_the_socket_is_reported() -> None:
    """Also if the disk answers right after the report at the end of the turn, and nothing else comes."""
    transfer = _Transfer(Target())
    transfer.target.gate.close()
    turn = SocketTurn()
    writing = asyncio.create_task(asyncio.to_thread(transfer.job.take_here, memoryview(b"last"), turn))
    await eventually(turn.revoke_if_held_up)
    transfer.job.report()
    transfer.target.gate.open()
    assert not await writing
    await eventually(lambda: transfer.reported == (1, 4), seconds=1)
    await transfer.job.stop()


async def test_a_store_that_fails_otherwise() -> None:
    transfer = _Transfer(Target())

    async def append(_: Sequence[bytes]) -> None:
        raise OSError(errno.EIO, "broken")

    transfer.job.open(append, None, _accept_all)
    transfer.job.take(b"first")
    await eventually(lambda: transfer.job.failure is not None)
    assert transfer.held == 0
    assert transfer.job.items == 0
    await transfer.job.stop()
