"""`FileItems` and `Diversion` without a server or a client: over socket pairs, and between two transports."""

import asyncio
import errno
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shared.files.lane
import shared.transport.decoder
from shared.files.lane import Diversion, FileItems, Pipe, finished
from shared.protocol.digest import Digest
from shared.transport.tcp import FrameTransport
from tests.support import NEXT, PAYLOAD, eventually, frame
from tests.transport.pairs import pair, payload


class _Emptied(list[object]):
    """Has something when it is asked, and nothing when that is to be taken: another thread was faster."""

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("module", [shared.files.lane, shared.transport.decoder])
def test_another_thread_takes_the_last_spare_buffer(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_spares", _Emptied())
    assert len(module._borrow(100_000)) >= 100_000  # type: ignore[attr-defined]


@pytest.fixture
def ends() -> Generator[tuple[socket.socket, socket.socket], None, None]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.settimeout(5)
    with left, right:
        yield left, right


@pytest.fixture
def source(tmp_path: Path) -> Generator[int, None, None]:
    """A file of 100,000 bytes."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(100_000))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def _all(right: socket.socket, nbytes: int) -> bytes:
    received = b""
    while len(received) < nbytes and (piece := right.recv(nbytes - len(received))):
        received += piece
    return received


def _granted(stream_id: int, source: int, offset: int, count: int, item_bytes: int, **options: Any) -> FileItems:
    """Items of a file that may all be sent."""
    items = FileItems(stream_id, source, offset, count, item_bytes, queue=lambda _: None, **options)
    items.grant(count)
    return items


def _nobody() -> int:
    return 0


@pytest.mark.parametrize("has_digest", [False, True])
@pytest.mark.parametrize("count", [1, 3])
async def test_items_of_a_file(
    ends: tuple[socket.socket, socket.socket], source: int, count: int, has_digest: bool
) -> None:
    digest = Digest() if has_digest else None
    items = _granted(7, source, 1000, count, 30_000, digest=digest)
    assert items.begin()
    assert (items.handed_bytes, items.waiting_bytes) == (0, 0)
    sending = asyncio.create_task(asyncio.to_thread(_send_all, items, ends[0]))
    received = await asyncio.to_thread(_all, ends[1], count * 30_009)
    await sending
    sent = os.pread(source, count * 30_000, 1000)
    assert received == b"".join(frame(7, PAYLOAD, NEXT, sent[at : at + 30_000]) for at in range(0, len(sent), 30_000))
    assert (items.sent, items.sent_bytes) == (count, count * 30_000)
    assert (items.handed_bytes, items.waiting_bytes) == (count * 30_009, 0)
    assert items.is_between_frames
    items.end()
    assert items.is_sent
    if digest is not None:
        whole = Digest()
        whole.update(sent)
        assert digest.text() == whole.text()


def _send_all(items: FileItems, connection: socket.socket) -> None:
    while not items.send_some(connection, _nobody):
        pass


@pytest.mark.parametrize("has_digest", [False, True])
async def test_a_file_that_ends_or_changes_before_the_next_item(
    ends: tuple[socket.socket, socket.socket], source: int, has_digest: bool
) -> None:
    digest = Digest() if has_digest else None
    items = _granted(1, source, 90_000, 2, 8_000, digest=digest)
    assert items.begin()
    assert items.send_some(ends[0], _nobody)
    assert (items.sent, items.failure, items.is_between_frames) == (1, None, True)
    items.end()
    answers = iter([True, False])
    items = _granted(1, source, 0, 4, 8_000, digest=digest, is_same=lambda: next(answers))
    assert items.begin()
    assert items.send_some(ends[0], _nobody)
    assert (items.sent, items.failure, items.is_between_frames) == (1, None, True)
    items.end()


async def test_a_file_that_is_cut_short_behind_a_header_tears_the_frame(
    ends: tuple[socket.socket, socket.socket], source: int
) -> None:
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    items = _granted(1, source, 0, 1, 100_000)
    assert items.begin()
    assert not items.send_some(ends[0], _nobody)
    os.ftruncate(source, 50)
    await asyncio.to_thread(ends[1].recv, 100_000)

    def send_on() -> None:
        while not items.send_some(ends[0], _nobody):
            ends[1].recv(100_000)

    with pytest.raises(OSError, match="cut short"):
        send_on()
    assert not items.is_between_frames
    items.end()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), RuntimeError("closed")])
async def test_items_that_cannot_be_read(
    ends: tuple[socket.socket, socket.socket], source: int, error: Exception
) -> None:
    """Whatever the reason: the connection's other streams go on."""

    def fail() -> bool:
        raise error

    for digest in (None, Digest()):
        items = _granted(1, source, 0, 1, 100, digest=digest, is_same=fail)
        assert items.begin()
        assert items.send_some(ends[0], _nobody)
        assert items.failure is error
        assert not items.sent
        items.end()


async def test_withdrawn_items(ends: tuple[socket.socket, socket.socket], source: int) -> None:
    waiting = _granted(1, source, 0, 3, 1000)
    waiting.withdraw()
    assert waiting.is_sent
    assert not waiting.begin()
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    under_way = _granted(1, source, 0, 3, 30_000, digest=Digest())
    assert under_way.begin()
    assert not under_way.send_some(ends[0], _nobody)
    under_way.withdraw()
    assert not under_way.is_sent
    sending = asyncio.create_task(asyncio.to_thread(_send_all, under_way, ends[0]))
    assert len(await asyncio.to_thread(_all, ends[1], 30_009)) == 30_009  # the one that was on its way
    await sending
    assert under_way.sent == 1
    under_way.end()


async def test_items_are_sent_as_they_are_granted_and_let_others_have_their_turn(
    ends: tuple[socket.socket, socket.socket], source: int
) -> None:
    queue: list[FileItems] = []
    items = FileItems(1, source, 0, 20, 1000, queue=queue.append, digest=Digest())

    def turn(waiting: int) -> int:
        """A turn of rsocket's sender; how many items were sent."""
        before = items.sent
        its_turn = items.get_next_fragment()
        assert its_turn.flags_follows
        assert items.begin()
        assert items.send_some(ends[0], lambda: waiting)
        items.end()
        return items.sent - before

    items.grant(5)
    items.grant(7)
    assert queue == [items], "it is in the queue once"
    assert [turn(1), turn(2), turn(4), turn(1000)] == [2, 1, 1, 1]
    assert turn(0) == 7
    assert not items.get_next_fragment().flags_follows, "nothing is granted: it leaves the queue"
    assert not items.begin()
    assert items.is_idle
    assert not items.is_sent
    items.grant(8)
    assert queue == [items, items]
    assert not items.ungranted
    assert turn(0) == 8
    assert items.is_sent
    assert not items.get_next_fragment().flags_follows


async def test_items_of_several_streams_share_a_turn(ends: tuple[socket.socket, socket.socket], source: int) -> None:
    def queued(stream_id: int, count: int, granted: int) -> FileItems:
        items = FileItems(stream_id, source, 0, count, 1000, queue=queue.append, digest=Digest())
        items.grant(granted)
        return items

    def turn(first: FileItems, *others: FileItems, waiting: int = 0) -> list[int]:
        """A turn that all of them share; whose items were sent, in order."""
        its_turn = first.get_next_fragment()
        for other in others:
            other.get_next_fragment()
            assert its_turn.share(other)
        assert not its_turn.share(first), "it has that turn already"
        its_turn.waiting = lambda: waiting
        before = sum(items.sent for items in (first, *others))
        assert its_turn.begin()
        assert its_turn.send_some(ends[0])
        assert its_turn.is_between_frames
        its_turn.end()
        count = sum(items.sent for items in (first, *others)) - before
        received = _all(ends[1], count * 1009)
        return [int.from_bytes(received[at + 3 : at + 7], "big") for at in range(0, len(received), 1009)]

    queue: list[FileItems] = []
    a, b, c = queued(1, 10, 3), queued(3, 10, 2), queued(5, 2, 1)
    assert turn(a, b, c, waiting=1) == [1, 3]
    assert turn(b, a, c) == [3, 1, 5, 1], "it goes on while something is granted"
    for items, granted in ((a, 7), (b, 8), (c, 1)):
        items.grant(granted)
    assert turn(a, b, c) == [1, 3, 5], "whoever waits for the end of one hears of it"
    assert (a.is_sent, b.is_sent, c.is_sent) == (False, False, True)
    b.withdraw()
    assert b.is_sent
    assert turn(a, b) == [1] * 6
    other = FileItems(7, source, 0, 1, 1000, queue=queue.append, executor=ThreadPoolExecutor(1))
    assert not a.get_next_fragment().share(other), "each has the threads of its own store"


async def test_a_cancelled_wait_for_a_thread_leaves_no_circle() -> None:
    """Its exception would lead to its frame, and so to whatever waits there, a connection for one."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Held:
        """What is in a frame that waits."""

    async def wait() -> None:
        held = Held()
        held_now.add(held)
        await finished(ended)

    held_now = weakref.WeakSet[Held]()
    gc.disable()
    try:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        ended.set_result(None)
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        del waiting
        await asyncio.sleep(0)
        assert not held_now
    finally:
        gc.enable()


class _Written:
    """What a diversion wrote, each taking so many seconds, and told."""

    def __init__(self, fail_at: int | None = None, seconds: float = 0) -> None:
        self.data = b""
        self.told = (0, 0)
        self.failures: list[Exception] = []
        self._fail_at = fail_at
        self._seconds = seconds
        self.diversion = Diversion(self.write, self.on_written, self.failures.append)

    def write(self, data: memoryview) -> None:
        if self._fail_at is not None and len(self.data) >= self._fail_at:
            self._fail_at = None
            raise OSError(errno.ENOSPC, "full")
        time.sleep(self._seconds)
        self.data += data

    def on_written(self, items: int, nbytes: int) -> None:
        self.told = (self.told[0] + items, self.told[1] + nbytes)


async def test_a_diversion_takes_what_was_granted() -> None:
    written = _Written()
    diversion = written.diversion
    assert not diversion.may_take(1)
    diversion.grant(2, 100)
    assert diversion.may_take(100)
    assert not diversion.may_take(101)
    assert not diversion.may_take(0)
    await asyncio.to_thread(diversion.take, memoryview(b"x" * 60))
    assert not diversion.may_take(41)
    assert diversion.may_take(40)
    await asyncio.to_thread(diversion.take, memoryview(b"y" * 30), is_whole=False)
    assert diversion.may_take(10)
    await asyncio.to_thread(diversion.take, memoryview(b"z" * 10))
    assert not diversion.may_take(1)
    await eventually(lambda: written.told == (2, 100))
    diversion.grant(1, 1)
    assert diversion.may_take(1)
    diversion.close()
    assert not diversion.may_take(1)
    assert written.data == b"x" * 60 + b"y" * 30 + b"z" * 10


async def test_a_diversion_writes_nothing_behind_what_it_could_not() -> None:
    written = _Written(fail_at=5)
    written.diversion.grant(10, 100)
    for data in (b"first", b"lost", b"next"):
        await asyncio.to_thread(written.diversion.take, memoryview(data))
    await eventually(lambda: written.failures)
    assert written.diversion.has_failed
    assert not written.diversion.may_take(1)
    assert (written.data, written.told) == (b"first", (1, 5))
    written.diversion.tell()
    assert len(written.failures) == 1


async def test_a_slow_disk_does_not_keep_the_loop_waiting_for_half_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer could be sent credit, and the consumer progress, for each of its items."""
    monkeypatch.setattr(shared.files.lane, "_TELL_SECONDS", 0.005)
    written = _Written(seconds=0.01)
    written.diversion.grant(64, 1_000_000)
    for count in range(1, 4):
        await asyncio.to_thread(written.diversion.take, memoryview(b"x" * 10))
        await eventually(lambda count=count: written.told == (count, 10 * count))


async def test_a_fast_disk_tells_the_loop_at_half_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.files.lane, "_TELL_SECONDS", 1e9)
    written = _Written()

    async def take(count: int) -> int:
        """How many the loop hears of."""

        def all_of_them() -> None:
            for _ in range(count):
                written.diversion.take(memoryview(b"x"))

        before, _ = written.told
        await asyncio.to_thread(all_of_them)
        await asyncio.sleep(0)  # what the thread has told by now is told to the loop in this turn
        return written.told[0] - before

    written.diversion.grant(16, 1_000_000)
    assert [await take(7), await take(1)] == [0, 8]
    written.diversion.grant(48 + 8, 0)
    assert [await take(31), await take(1)] == [0, 32], "of the wider window"


@pytest.mark.parametrize("has_digest", [False, True])
async def test_threads_give_way_after_each_item(
    ends: tuple[socket.socket, socket.socket], source: int, has_digest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gave_way: list[int] = []
    monkeypatch.setattr(shared.files.lane, "_sched_yield", lambda: gave_way.append(threading.get_ident()))
    items = _granted(1, source, 0, 10, 1000, digest=Digest() if has_digest else None)
    assert items.begin()
    await asyncio.to_thread(_send_all, items, ends[0])
    items.end()
    assert len(gave_way) >= items.sent == 10
    gave_way.clear()
    written = _Written()
    written.diversion.grant(10, 1_000_000)
    for _ in range(10):
        await asyncio.to_thread(written.diversion.take, memoryview(b"x"), is_whole=False)
        await asyncio.to_thread(written.diversion.take, memoryview(b"y"))
    assert len(gave_way) >= 10
    await eventually(lambda: written.told == (10, 20))
    assert threading.get_ident() not in gave_way, "the loop's own thread has nothing to wait for"


async def test_a_pipe_moves_what_there_is(ends: tuple[socket.socket, socket.socket], source: int) -> None:
    pipe = Pipe()
    try:
        with pytest.raises(BlockingIOError):
            pipe.fill(ends[0], 10)
        ends[1].send(b"0123456789")
        assert pipe.fill(ends[0], 4) == 4
        assert os.read(pipe.end, 100) == b"0123"
        assert ends[0].recv(100) == b"456789"
        ends[1].close()
        assert pipe.fill(ends[0], 10) == 0
    finally:
        pipe.close()


async def test_items_that_wait_when_the_connection_has_ended() -> None:
    """They come the way of all frames then, which is the only one that there is."""
    async with pair() as (server, client):
        written = _Written()
        written.diversion.grant(100, 1_000_000)
        assert server.moves_files
        server.divert(1, written.diversion)
        await client.send_frame(payload(b"x" * 1000))
        await client.on_send_queue_empty()
        await client.close()
        await eventually(lambda: server.is_lost)
        assert [bytes(got.data or b"") async for got in server] == [b"x" * 1000]  # type: ignore[attr-defined]
        await server.stop_diverting(1)
        assert not written.data


async def test_an_item_that_drips_does_not_keep_a_thread() -> None:
    """The rest of it counts as any other frame that arrives."""
    async with pair() as (server, client):
        written = _Written()
        written.diversion.grant(100, 1_000_000)
        assert server.moves_files
        server.divert(1, written.diversion)
        receiving = asyncio.create_task(anext(server))
        item = frame(1, PAYLOAD, NEXT, bytes(200_000))
        assert client._socket is not None
        own = socket.socket(fileno=os.dup(client._socket.fileno()))
        own.send(item[:70_000])
        is_over = threading.Event()

        def drip() -> None:
            sent = 70_000
            while not is_over.wait(0.001):
                sent += own.send(item[sent : sent + 1])
            own.setblocking(True)
            own.sendall(item[sent:])

        dripping = asyncio.create_task(asyncio.to_thread(drip))
        await eventually(lambda: server._receiving is not None)
        try:
            await eventually(lambda: server._receiving is None)
        finally:
            is_over.set()
            await dripping
            own.close()
        assert len((await receiving).data or b"") == 200_000
        assert not written.data
        await server.stop_diverting(1)


async def _until_lost(transport: FrameTransport) -> None:
    async for _ in transport:
        pass


async def test_nothing_is_taken_in_while_it_is_held() -> None:
    async with pair() as (server, client):
        until: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        server.hold(until)
        await client.send_frame(payload(b"x" * 1000))
        await client.on_send_queue_empty()
        receiving = asyncio.create_task(anext(server))
        await eventually(lambda: server._receiver.is_ready)
        await asyncio.sleep(0)
        assert not receiving.done()
        until.set_result(None)
        assert (await receiving).data == b"x" * 1000
        server.hold(asyncio.get_running_loop().create_future())
        ending = asyncio.create_task(_until_lost(server))
        server.abort()
        await ending


@pytest.mark.parametrize("cut", ["close", "abort", "fail"])
async def test_a_connection_ends_while_a_thread_receives(cut: str) -> None:
    async with pair() as (server, client):
        written = _Written()
        written.diversion.grant(1000, 1_000_000_000)
        server.divert(1, written.diversion)
        receiving = asyncio.create_task(_until_lost(server))

        async def send() -> None:
            while not client.is_lost:
                await client.send_frame(payload(b"x" * 100_000))

        sending = asyncio.create_task(send())
        await eventually(lambda: len(written.data) > 300_000)
        if cut == "close":
            await server.close()
        elif cut == "abort":
            server.abort()
        else:
            server.fail(0x101, "enough")  # type: ignore[arg-type]
        await eventually(receiving.done)
        await receiving
        await server.stop_diverting(1)
        assert len(written.data) == written.told[1]
        client.abort()
        await asyncio.wait([sending])
        sending.exception()
