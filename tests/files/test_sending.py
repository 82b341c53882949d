"""`SendJob` and the lane's sending side, over socket pairs: no transport, no server, no client."""

import asyncio
import errno
import math
import os
import socket
import threading

import pytest
from rsocket.exceptions import RSocketTransportError

import shared.files.threads
from shared.files.lane import FileLane
from shared.files.sending import FileChanged, FileRange, SendJob, Sent
from shared.files.sockets import LaneSocket
from shared.protocol.digest import Digest
from tests.files.support import (
    ITEM_HEAD_BYTES,
    Gate,
    Queue,
    nobody_waits,
    promptly,
    receive_all,
    send_job,
    send_turn,
    sending_lane,
)
from tests.support import COMPLETE, HAS_UVLOOP, METADATA, NEXT, PAYLOAD, eventually, frame, on_uvloop

Ends = tuple[LaneSocket, socket.socket]


def _item(stream_id: int, data: bytes, flags: int = NEXT, metadata: bytes = b"") -> bytes:
    if metadata:
        return frame(stream_id, PAYLOAD, flags | METADATA, len(metadata).to_bytes(3, "big") + metadata + data)
    return frame(stream_id, PAYLOAD, flags, data)


@pytest.mark.parametrize("has_digest", [False, True])
@pytest.mark.parametrize("count", [1, 3])
async def test_items_of_a_file(ends: Ends, source: int, count: int, has_digest: bool) -> None:
    digest = Digest() if has_digest else None
    end = 1000 + (count - 1) * 30_000 + 20_000
    job = send_job(7, FileRange(source, 1000, end), 30_000, first=b"first", last=lambda: b"last", digest=digest)
    assert job.begin_turn()
    assert (job.frame_bytes, job.waiting_bytes, job.has_last) == (0, 0, False)
    sent = os.pread(source, end - 1000, 1000)
    pieces = [sent[at : at + 30_000] for at in range(0, len(sent), 30_000)]
    expected = [_item(7, piece, NEXT, b"first" if at == 0 else b"") for at, piece in enumerate(pieces)]
    expected[-1] = _item(7, pieces[-1], NEXT | COMPLETE, b"last")  # the first one's metadata isn't needed then
    wire = b"".join(expected)
    sending = asyncio.create_task(asyncio.to_thread(send_turn, job, ends[0]))
    assert await asyncio.to_thread(receive_all, ends[1], len(wire)) == wire
    assert await sending is Sent.ALL
    assert (job.nbytes, job.frame_bytes, job.waiting_bytes) == (len(sent), len(wire), 0)
    assert not job.is_torn
    assert not job.finished.done(), "the lane has it"
    job.end_turn()
    assert job.is_all_sent
    assert job.has_last
    assert job.finished.done()
    if digest is not None:
        whole = Digest()
        whole.update(sent)
        assert digest.text() == whole.text()


async def test_credit_is_taken_when_an_item_is_sent(ends: Ends, source: int) -> None:
    seen: list[tuple[int, int]] = []
    job = send_job(
        1, FileRange(source, 0, 5000), 1000, granted=3, on_item=lambda: seen.append((credit.taken, credit.sent_bytes))
    )
    credit = job._credit
    assert job.begin_turn()
    assert await asyncio.to_thread(send_turn, job, ends[0]) is Sent.ALL
    job.end_turn()
    assert seen == [(1, 1000), (2, 2000), (3, 3000)]
    assert (credit.available, job.nbytes, job.is_all_sent) == (0, 3000, False)
    credit.window_bytes = 3500
    credit.grant(5)
    assert job.begin_turn()
    assert await asyncio.to_thread(send_turn, job, ends[0]) is Sent.ALL
    assert credit.taken == 4, "the window is looked at before each item"
    job.stop()
    job.end_turn()
    assert job.finished.done()


@pytest.mark.parametrize("has_digest", [False, True])
async def test_a_file_that_ends_or_changes_before_the_next_item(ends: Ends, source: int, has_digest: bool) -> None:
    digest = Digest() if has_digest else None
    job = send_job(1, FileRange(source, 90_000, 106_000), 8_000, digest=digest)
    assert job.begin_turn()
    assert send_turn(job, ends[0]) is Sent.ALL
    assert (job.nbytes, type(job.failure), job.is_torn) == (8_000, FileChanged, False)
    job.end_turn()
    assert job.finished.done()
    answers = iter([True, False])
    job = send_job(1, FileRange(source, 0, 32_000, is_same=lambda: next(answers)), 8_000, digest=digest)
    assert job.begin_turn()
    assert send_turn(job, ends[0]) is Sent.ALL
    assert (job.nbytes, type(job.failure), job.is_torn) == (8_000, FileChanged, False)
    job.end_turn()
    assert job.finished.done()


async def test_a_file_that_is_cut_short_behind_a_header_fails_its_stream_alone(ends: Ends, source: int) -> None:
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    job = send_job(1, FileRange(source, 0, 100_000), 90_000)
    with sending_lane(ends[0]) as (lane, port):
        sending = asyncio.create_task(lane.send([job], nobody_waits))
        await eventually(lambda: job.is_torn and lane.waiting_bytes < 90_000)
        await asyncio.sleep(0.05)
        os.ftruncate(source, 50)
        got = bytearray()
        while len(got) < 90_000 + 9:
            got += await asyncio.to_thread(ends[1].recv, 100_000)
        await sending
        assert (len(got), int.from_bytes(got[:3], "big")) == (90_000 + 9, 90_000 + 6), "the frame is whole"
        assert port.failure is None, "other streams go on"
        assert isinstance(job.failure, FileChanged)
        assert not job.has_last
        assert job.finished.done()
        assert not lane.is_sending


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), RuntimeError("closed")])
async def test_items_that_cannot_be_read(ends: Ends, source: int, error: Exception) -> None:
    """Whatever the reason: the connection's other streams go on."""

    def fail() -> bool:
        raise error

    for digest in (None, Digest()):
        job = send_job(1, FileRange(source, 0, 100, is_same=fail), 100, digest=digest)
        with sending_lane(ends[0]) as (lane, port):
            await lane.send([job], nobody_waits)
        assert job.failure is error
        assert job.finished.done()
        assert (port.failure, job.frame_bytes) == (None, 0)


async def test_a_job_that_is_stopped(ends: Ends, source: int) -> None:
    waiting = send_job(1, FileRange(source, 0, 3000), 1000)
    waiting.stop()
    assert waiting.is_ended
    assert waiting.finished.done()
    assert not waiting.begin_turn()
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    under_way = send_job(1, FileRange(source, 0, 90_000), 30_000, digest=Digest())
    with sending_lane(ends[0]) as (lane, port):
        sending = asyncio.create_task(lane.send([under_way], nobody_waits))
        await eventually(lambda: under_way.is_torn)
        under_way.stop()
        assert not under_way.finished.done()
        assert len(await asyncio.to_thread(receive_all, ends[1], 30_009)) == 30_009  # the one that was on its way
        await sending
        assert under_way.nbytes == 30_000
        assert under_way.finished.done()
        assert port.failure is None


async def test_items_are_sent_as_they_are_granted_and_let_others_have_their_turn(ends: Ends, source: int) -> None:
    queue = Queue()
    job = send_job(1, FileRange(source, 0, 20_000), 1000, granted=0, queue=queue, digest=Digest())
    job.resume()
    assert not queue
    with sending_lane(ends[0]) as (lane, _):

        async def turn(waiting: int) -> int:
            """A turn at the socket; how many items were sent."""
            before = job.nbytes
            assert queue.pop() is job
            await lane.send([job], lambda: waiting)
            return (job.nbytes - before) // 1000

        for granted in (5, 7):
            job._credit.grant(granted)
            job.resume()
        assert queue == [job], "it is in the queue once"
        assert [await turn(1), await turn(2), await turn(4), await turn(1000)] == [2, 1, 1, 1]
        assert await turn(0) == 7
        assert not queue, "nothing is granted: it has left the queue"
        assert not job.begin_turn()
        assert not job.is_ended
        job._credit.grant(8)
        job.resume()
        assert await turn(0) == 8
        assert job.is_all_sent
        assert job.finished.done()
        job.resume()
        assert not queue


async def test_items_of_several_streams_share_a_turn(ends: Ends, source: int) -> None:
    queue = Queue()

    def queued(stream_id: int, count: int, granted: int) -> SendJob:
        job = send_job(
            stream_id, FileRange(source, 0, count * 1000), 1000, granted=granted, queue=queue, digest=Digest()
        )
        job.resume()
        return job

    async def turn(lane: FileLane, *jobs: SendJob, waiting: int = 0) -> list[int]:
        """A turn that all of them share; whose items were sent, in order."""
        queue.clear()
        before = sum(job.nbytes for job in jobs)
        await lane.send(jobs, lambda: waiting)
        assert not any(job.is_torn for job in jobs)
        count = (sum(job.nbytes for job in jobs) - before) // 1000
        received = receive_all(ends[1], count * (1000 + ITEM_HEAD_BYTES))
        return [int.from_bytes(received[at + 3 : at + 7], "big") for at in range(0, len(received), 1009)]

    with sending_lane(ends[0]) as (lane, _):
        a, b, c = queued(1, 10, 3), queued(3, 10, 2), queued(5, 2, 1)
        assert await turn(lane, a, b, c, waiting=1) == [1, 3]
        assert queue == [a, b, c], "each has something to send"
        assert await turn(lane, b, a, c) == [3, 1, 5, 1], "it goes on while something is granted"
        assert not queue
        for job, granted in ((a, 7), (b, 8), (c, 1)):
            job._credit.grant(granted)
            job.resume()
        assert await turn(lane, a, b, c) == [1, 3, 5], "what waits for the end of one goes on at once"
        assert [job.finished.done() for job in (a, b, c)] == [False, False, True]
        b.stop()
        assert b.finished.done()
        assert await turn(lane, a, b) == [1] * 6
        assert a.finished.done()


async def test_a_turn_of_which_nothing_is_left(ends: Ends, source: int) -> None:
    """Whatever waited in the outbox may have been stopped meanwhile."""
    job = send_job(1, FileRange(source, 0, 3000), 1000)
    job.resume()
    job.stop()
    with sending_lane(ends[0]) as (lane, port):
        await lane.send([job], nobody_waits)
        assert port.idle == 0
    assert job.frame_bytes == 0


async def test_what_is_sent_through_a_lane_that_is_closed(ends: Ends, source: int) -> None:
    job = send_job(1, FileRange(source, 0, 3000), 1000)
    with sending_lane(ends[0]) as (lane, _):
        lane.close()
        with pytest.raises(Exception, match="the connection has ended"):
            await lane.send([job], nobody_waits)
    assert job.finished.done()


@pytest.mark.parametrize("has_uvloop", [False, True])
async def test_a_lane_that_is_closed_while_its_sender_waits_for_the_socket(
    ends: Ends, source: int, has_uvloop: bool
) -> None:
    if not has_uvloop:
        await _close_while_the_sender_waits(ends, source)
    elif HAS_UVLOOP:
        await asyncio.to_thread(on_uvloop, _close_while_the_sender_waits(ends, source))


async def _close_while_the_sender_waits(ends: Ends, source: int) -> None:
    """With half a frame in the socket, and no thread: the peer doesn't read."""
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    job = send_job(1, FileRange(source, 0, 100_000), 100_000, digest=Digest())
    with sending_lane(ends[0]) as (lane, _):
        sending = asyncio.create_task(lane.send([job], nobody_waits))
        await eventually(lambda: job.is_torn)
        await asyncio.sleep(0.05)
        lane.close()
        ends[0].close()  # as the transport does, behind the lane
        with pytest.raises(RSocketTransportError):
            await promptly(sending)
    assert job.finished.done()


@pytest.mark.parametrize("has_digest", [False, True])
async def test_threads_yield_the_cpu_after_each_item(
    ends: Ends, source: int, has_digest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    yielded: list[int] = []
    monkeypatch.setattr(shared.files.threads, "_sched_yield", lambda: yielded.append(threading.get_ident()))
    # On a busy machine each yield may take long, which is what it isn't repeated for.
    monkeypatch.setattr(shared.files.threads, "_SOON_SECONDS", math.inf)
    monkeypatch.setattr(shared.files.threads._yielding, "next_at", 0)
    job = send_job(1, FileRange(source, 0, 10_000), 1000, digest=Digest() if has_digest else None)
    assert job.begin_turn()
    await asyncio.to_thread(send_turn, job, ends[0])
    job.end_turn()
    assert len(yielded) >= job.nbytes // 1000 == 10
    assert threading.get_ident() not in yielded, "the event loop's own thread has nothing to wait for"


# A disk that holds a thread up


def _held_up(source: int, gate: Gate, nbytes: int = 5000, **options: object) -> FileRange:
    def is_same() -> bool:
        gate.pass_through()
        return True

    return FileRange(source, 0, nbytes, is_same=is_same, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("has_digest", [False, True])
async def test_a_job_whose_disk_is_held_up_leaves_the_socket_to_others(
    ends: Ends, source: int, has_digest: bool
) -> None:
    gate, queue = Gate(), Queue()
    slow = send_job(1, _held_up(source, gate), 1000, queue=queue, digest=Digest() if has_digest else None)
    fast = send_job(3, FileRange(source, 0, 5000), 1000, queue=queue)
    with sending_lane(ends[0]) as (lane, port):
        gate.close()
        try:
            await promptly(lane.send([slow, fast], nobody_waits))
            assert not lane.is_sending
            assert slow.is_queued, "it has a turn yet, as long as its thread is at the disk"
            assert queue == [fast]
            await promptly(lane.send([fast], nobody_waits))
            assert fast.finished.done()
            fast_wire = b"".join(
                _item(3, os.pread(source, 1000, at), NEXT | (COMPLETE if at == 4000 else 0))
                for at in range(0, 5000, 1000)
            )
            assert receive_all(ends[1], len(fast_wire)) == fast_wire
            assert (slow.frame_bytes, slow.waiting_bytes) == (0, 0)
        finally:
            gate.open()
        await eventually(lambda: queue[-1] is slow)
        await lane.send([slow], nobody_waits)
        assert slow.finished.done()
        wire = b"".join(
            _item(1, os.pread(source, 1000, at), NEXT | (COMPLETE if at == 4000 else 0)) for at in range(0, 5000, 1000)
        )
        assert receive_all(ends[1], len(wire)) == wire
        assert slow._credit.taken == 5
        assert port.failure is None


@pytest.mark.parametrize("ending", ["stop", "close"])
async def test_the_file_stays_open_until_a_held_up_thread_is_back(ends: Ends, source: int, ending: str) -> None:
    gate, queue = Gate(), Queue()
    job = send_job(1, _held_up(source, gate), 1000, queue=queue, digest=Digest())
    with sending_lane(ends[0]) as (lane, _):
        gate.close()
        try:
            await promptly(lane.send([job], nobody_waits))
            if ending == "close":
                lane.close()
            job.stop()
            await asyncio.sleep(0.05)
            assert not job.finished.done()
        finally:
            gate.open()
        await promptly(job.finished)
        assert not queue
        ends[1].setblocking(False)
        with pytest.raises(BlockingIOError) if ending == "stop" else _at_the_end(ends[1]):
            ends[1].recv(1)


class _at_the_end:  # noqa: N801 - as pytest.raises
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None:
        assert self._connection.recv(1) == b""


async def test_the_file_stays_open_when_the_sender_is_cancelled_while_a_thread_is_held_up(
    ends: Ends, source: int
) -> None:
    """As when a connection is closed: the thread reads into a buffer that another transfer would get."""
    gate = Gate()
    job = send_job(1, _held_up(source, gate), 1000, digest=Digest())
    with sending_lane(ends[0]) as (lane, port):
        gate.close()
        try:
            sending = asyncio.create_task(lane.send([job], nobody_waits))
            await eventually(lambda: gate.waiting)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await promptly(sending)
            assert not job.finished.done()
        finally:
            gate.open()
        await promptly(job.finished)
        assert port.failure is None
