"""The file lane between two transports, and what a disk that holds its threads up does to the connection."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rsocket.frame import Frame, PayloadFrame

from shared.files.lane import FileLane
from shared.files.part import PartFile
from shared.files.pipes import SPLICES, Pipe
from shared.files.receiving import TAKEN, ReceiveJob
from shared.files.sending import FileRange
from shared.frames.outbox import FileTurn, Outbox, SkippedFrame
from shared.protocol.digest import Digest
from shared.protocol.flow import Demand
from shared.transport.base import Transport
from shared.transport.tcp import TcpTransport
from tests.files.support import Gate, Target, Wakes, ZeroCopyTarget, promptly, send_job
from tests.support import ERROR, METADATA, NEXT, PAYLOAD, eventually, frame
from tests.transport.pairs import frames_of, pair, payload, raw_pair, request_n

ITEM_BYTES = 100_000
Targets = pytest.mark.parametrize("make_target", [Target, ZeroCopyTarget])


def _accept_all(_: int) -> None: ...


class _Transfer(Wakes):
    """A job of one stream, whose credit is replenished."""

    def __init__(self, lane: FileLane, stream_id: int, target: Target, window: int = 1000) -> None:
        super().__init__()
        self.target = target
        self.demand = Demand(window)
        self.requested = window
        self.job = ReceiveJob(self.demand, self.on_progress, self.on_held)
        self.job.open(target.append, target, _accept_all)
        self._consumed = 0
        self._lane = lane
        self._stream_id = stream_id
        lane.receive(stream_id, self.job)

    def on_progress(self) -> None:
        super().on_progress()
        items, self._consumed = self.job.items - self._consumed, self.job.items
        self.requested += self.demand.on_consumed(items)

    async def stop(self) -> None:
        self._lane.end_receiving(self._stream_id)
        await self.job.stop()


class _Receiver:
    """Takes the frames that a transport has, as a connection does.

    Attributes:
        frames: Those that take the frame path.
        ended: Whether there are no more.
    """

    def __init__(self, transport: Transport) -> None:
        self.frames: list[Frame] = []
        self.task = asyncio.create_task(self._run(transport))

    @property
    def ended(self) -> bool:
        return self.task.done()

    async def _run(self, transport: Transport) -> None:
        async for got in frames_of(transport):
            if not isinstance(got, SkippedFrame):
                self.frames.append(got)


def lane_of(transport: TcpTransport) -> FileLane:
    lane = transport.lane
    assert lane is not None
    return lane


async def test_a_pipe_moves_what_there_is() -> None:
    left, right = socket.socketpair()
    left.setblocking(False)
    pipe = Pipe()
    with left, right:
        with pytest.raises(BlockingIOError):
            pipe.fill(left, 10)
        right.send(b"0123456789")
        assert pipe.fill(left, 4) == 4
        assert os.read(pipe.end, 100) == b"0123"
        assert left.recv(100) == b"456789"
        right.close()
        assert pipe.fill(left, 10) == 0
    pipe.close()


@Targets
async def test_items_of_several_streams_go_to_their_jobs(make_target: type[Target]) -> None:
    async with pair() as (server, client):
        lane = lane_of(server)
        transfers = {stream_id: _Transfer(lane, stream_id, make_target()) for stream_id in (1, 3, 5)}
        receiver = _Receiver(server)
        expected = dict.fromkeys(transfers, b"")
        for number in range(60):
            stream_id = (1, 3, 5)[number % 3]
            data = os.urandom(1 + number * 3000)
            expected[stream_id] += data
            await client.send(payload(data, stream_id))
            if number % 10 == 0:
                await client.send(request_n(number, 7))
        await client.flush()
        for stream_id, transfer in transfers.items():
            await eventually(lambda transfer=transfer: transfer.job.items == 20)
            assert transfer.target.data == expected[stream_id]
            await transfer.stop()
        await eventually(lambda: len(receiver.frames) == 6)
        assert [got.request_n for got in receiver.frames] == list(range(0, 60, 10))  # type: ignore[attr-defined]
        server.abort()
        await eventually(lambda: receiver.ended)


@Targets
async def test_an_item_that_says_more_takes_the_frame_path_without_its_data(make_target: type[Target]) -> None:
    async with pair() as (server, client):
        transfer = _Transfer(lane_of(server), 1, make_target())
        receiver = _Receiver(server)
        last = payload(b"y" * 1000, 1, b"metadata")
        last.flags_complete = True
        for item in (payload(b"x" * 70_000), last):
            await client.send(item)
        await client.flush()
        await eventually(lambda: receiver.frames and transfer.job.is_idle)
        (got,) = receiver.frames
        assert isinstance(got, PayloadFrame)
        assert got.data is TAKEN
        assert (got.metadata, got.flags_complete) == (b"metadata", True)
        assert transfer.target.data == b"x" * 70_000 + b"y" * 1000
        await transfer.stop()
        await client.send(payload(b"z"))
        await client.flush()
        await eventually(lambda: len(receiver.frames) == 2)
        assert receiver.frames[1].data == b"z", "the job has ended"
        server.abort()


@Targets
async def test_an_item_that_contradicts_itself_ends_the_connection(make_target: type[Target]) -> None:
    async with raw_pair() as (server, peer):
        transfer = _Transfer(lane_of(server), 1, make_target())
        receiver = _Receiver(server)
        await peer.send(frame(1, PAYLOAD, NEXT, b"x" * 1000))
        await eventually(lambda: transfer.job.items == 1)
        await peer.send(frame(1, PAYLOAD, NEXT | METADATA, (2000).to_bytes(3, "big") + b"less"))
        got = await peer.receive()
        assert got is not None
        assert got.kind == ERROR
        assert got.error[1].startswith("invalid_frame: ")
        await peer.close()
        await promptly(receiver.task)
        await transfer.stop()
        assert transfer.target.data == b"x" * 1000


@Targets
async def test_items_that_wait_when_the_connection_has_ended(make_target: type[Target]) -> None:
    """They take the frame path then, which is the only one that there is."""
    async with pair() as (server, client):
        transfer = _Transfer(lane_of(server), 1, make_target())
        await client.send(payload(b"x" * 1000))
        await client.flush()
        await client.close()
        await eventually(lambda: server.is_lost)
        assert [bytes(got.data or b"") async for got in frames_of(server)] == [b"x" * 1000]
        await transfer.stop()
        assert not transfer.target.data


async def test_an_item_that_drips_does_not_keep_a_thread() -> None:
    """The rest of it counts as any other frame that arrives."""
    async with pair() as (server, client):
        lane = lane_of(server)
        transfer = _Transfer(lane, 1, Target())
        receiving = asyncio.create_task(server.next_frame())
        async with _dripping(client, frame(1, PAYLOAD, NEXT, bytes(200_000))):
            await eventually(lambda: lane.is_receiving)
            await eventually(lambda: not lane.is_receiving)
            assert server.arrived_of(1) > 70_000
        got = await receiving
        assert isinstance(got, Frame)
        assert len(got.data or b"") == 200_000
        assert not transfer.target.data
        await transfer.stop()


@pytest.mark.skipif(not SPLICES, reason="zero-copy is Linux's")
async def test_an_item_that_drips_into_a_pipe_does_not_keep_a_thread() -> None:
    """What has come of it is in the file already, and the thread goes while nothing comes."""
    async with pair() as (server, client):
        lane = lane_of(server)
        transfer = _Transfer(lane, 1, ZeroCopyTarget())
        receiver = _Receiver(server)
        async with _dripping(client, frame(1, PAYLOAD, NEXT, bytes(200_000)), seconds=0.05):
            await eventually(lambda: transfer.job.nbytes >= 70_000 - 9)
            assert lane.is_in_item
            await eventually(lambda: lane._crew.count == 0)
            assert transfer.job.items == 0
        await eventually(lambda: transfer.job.items == 1)
        assert transfer.job.nbytes == len(transfer.target.data) == 200_000
        await transfer.stop()
        server.abort()
        await eventually(lambda: receiver.ended)


@asynccontextmanager
async def _dripping(client: TcpTransport, wire: bytes, seconds: float = 0.001) -> AsyncGenerator[None, None]:
    """Sends a byte now and then, and all the rest at the end."""
    writer = client._writer
    assert writer.fd is not None
    own = socket.socket(fileno=os.dup(writer.fd))
    own.send(wire[:70_000])
    is_over = threading.Event()

    def drip() -> None:
        sent = 70_000
        while not is_over.wait(seconds):
            sent += own.send(wire[sent : sent + 1])
        own.setblocking(True)
        own.sendall(wire[sent:])

    dripping = asyncio.create_task(asyncio.to_thread(drip))
    try:
        yield
    finally:
        is_over.set()
        await dripping
        own.setblocking(False)
        own.close()


@Targets
@pytest.mark.parametrize("cut", ["close", "abort", "fail"])
async def test_a_connection_ends_while_a_thread_receives(cut: str, make_target: type[Target]) -> None:
    async with pair() as (server, client):
        transfer = _Transfer(lane_of(server), 1, make_target(), window=1_000_000)
        receiver = _Receiver(server)

        async def send() -> None:
            while not client.is_lost:
                await client.send(payload(b"x" * 100_000))

        sending = asyncio.create_task(send())
        await eventually(lambda: len(transfer.target.data) > 300_000)
        if cut == "close":
            await server.close()
        elif cut == "abort":
            server.abort()
        else:
            server.fail(0x101, "enough")  # type: ignore[arg-type]
        await eventually(lambda: receiver.ended)
        await transfer.stop()
        assert len(transfer.target.data) == transfer.job.nbytes
        client.abort()
        await asyncio.wait([sending])
        sending.exception()


@Targets
async def test_a_job_that_ends_in_the_middle_of_an_item(make_target: type[Target]) -> None:
    """The rest of the item is dropped, and what follows takes the frame path."""
    async with pair() as (server, client):
        lane = lane_of(server)
        transfer = _Transfer(lane, 1, make_target())
        receiver = _Receiver(server)
        item = frame(1, PAYLOAD, NEXT, bytes(200_000))
        async with _dripping(client, item, seconds=0.02):
            await eventually(lambda: transfer.job.nbytes or server.arrived_of(1))
            await transfer.stop()
        await client.send(request_n(7, 3))
        await client.flush()
        await eventually(lambda: receiver.frames and receiver.frames[-1].stream_id == 3)
        assert len(transfer.target.data) <= 200_000
        server.abort()
        await eventually(lambda: receiver.ended)


# A disk that holds a thread up: receiving


async def test_other_streams_are_received_while_a_disk_is_held_up() -> None:
    window = 8
    async with pair() as (server, client):
        lane = lane_of(server)
        slow = _Transfer(lane, 1, Target(), window=window)
        fast = _Transfer(lane, 3, Target())
        receiver = _Receiver(server)
        items = [os.urandom(ITEM_BYTES + number) for number in range(window)]
        await client.send(payload(items[0]))
        await client.flush()
        await eventually(lambda: slow.job.items == 1)
        slow.target.gate.close()
        try:
            await client.send(payload(items[1]))
            await client.send(request_n(1, 5))
            await client.flush()
            await eventually(lambda: receiver.frames, seconds=1.0)
            for data in items[2:]:
                await client.send(payload(data))
                await client.send(payload(b"fast " * 20_000, 3))
            await client.send(request_n(2, 5))
            await client.flush()
            await eventually(lambda: fast.job.items == window - 2)
            await eventually(lambda: len(receiver.frames) == 2)
            assert slow.job.items == 1
            assert slow.job.held_bytes == sum(map(len, items[2:])), "no more than was requested"
            assert slow.held == slow.job.held_bytes
            assert slow.demand.outstanding == slow.requested - window
            assert (slow.job.failure, fast.job.failure) == (None, None)
        finally:
            slow.target.gate.open()
        await eventually(lambda: slow.job.items == window)
        assert slow.target.data == b"".join(items)
        assert fast.target.data == b"fast " * 20_000 * (window - 2)
        assert (slow.held, slow.job.held_bytes) == (0, 0)
        await eventually(lambda: lane._crew.count == 0)
        for data in (b"again ", b"and again"):
            await client.send(payload(data))
        await client.flush()
        await eventually(lambda: slow.job.items == window + 2)
        assert slow.target.data.endswith(b"again and again")
        for transfer in (slow, fast):
            await transfer.stop()
        server.abort()
        await eventually(lambda: receiver.ended)


@pytest.mark.skipif(not SPLICES, reason="zero-copy is Linux's")
async def test_a_connection_may_wait_for_a_disk_in_the_middle_of_a_zero_copy_item() -> None:
    """Half of it is in the socket, where no other thread can continue it. Everything is right afterwards."""
    async with pair() as (server, client):
        slow, fast = (_Transfer(lane_of(server), stream_id, ZeroCopyTarget()) for stream_id in (1, 3))
        receiver = _Receiver(server)
        items = [os.urandom(ITEM_BYTES + number) for number in range(10)]
        slow.target.gate.close()
        try:
            sending = asyncio.create_task(_send_all(client, items))
            await eventually(lambda: slow.target.gate.waiting)
            await asyncio.sleep(0.2)
        finally:
            slow.target.gate.open()
        await sending
        await eventually(lambda: slow.job.items == fast.job.items == 10)
        assert slow.target.data == fast.target.data == b"".join(items)
        await eventually(lambda: len(receiver.frames) == 10)
        for transfer in (slow, fast):
            await transfer.stop()
        server.abort()
        await eventually(lambda: receiver.ended)


async def _send_all(client: TcpTransport, items: Sequence[bytes]) -> None:
    """Sends each on two streams, and a frame of another one behind."""
    for data in items:
        for stream_id in (1, 3):
            await client.send(payload(data, stream_id))
        await client.send(request_n(1, 5))
    await client.flush()


async def test_a_peer_that_sends_more_than_was_requested_while_a_disk_is_held_up() -> None:
    async with pair() as (server, client):
        transfer = _Transfer(lane_of(server), 1, Target(), window=4)
        receiver = _Receiver(server)
        transfer.target.gate.close()
        try:
            for _ in range(10):
                await client.send(payload(bytes(ITEM_BYTES)))
            await client.flush()
            await eventually(lambda: transfer.job.failure is not None)
            assert transfer.most_held <= 4 * ITEM_BYTES
            assert transfer.job.held_bytes == 0
        finally:
            transfer.target.gate.open()
        await transfer.stop()
        server.abort()
        await eventually(lambda: receiver.ended)


async def test_stopping_waits_for_a_thread_that_is_held_up() -> None:
    async with pair() as (server, client):
        lane = lane_of(server)
        transfer = _Transfer(lane, 1, Target())
        receiver = _Receiver(server)
        transfer.target.gate.close()
        try:
            for _ in range(3):
                await client.send(payload(bytes(ITEM_BYTES)))
            await client.flush()
            await eventually(lambda: transfer.job.held_bytes)
            stopping = asyncio.create_task(transfer.stop())
            await asyncio.sleep(0.05)
            assert not stopping.done(), "the file can't be closed"
            await client.send(payload(b"late"))
            await client.flush()
            await eventually(lambda: receiver.frames)
        finally:
            transfer.target.gate.open()
        await stopping
        assert len(transfer.target.data) == ITEM_BYTES
        await asyncio.sleep(0.02)
        assert len(transfer.target.data) == ITEM_BYTES
        server.abort()
        await eventually(lambda: receiver.ended)


@Targets
@pytest.mark.parametrize("cut", ["close", "abort", "fail", "peer", "cancel"])
async def test_a_connection_that_ends_while_a_thread_is_held_up_frees_everything(
    cut: str, make_target: type[Target]
) -> None:
    """Its socket, pipe, buffer and thread: the fixture of all tests looks for them."""
    async with pair() as (server, client):
        lane = lane_of(server)
        transfer = _Transfer(lane, 1, make_target())
        receiver = _Receiver(server)
        await client.send(payload(b"first " * 20_000))
        await client.flush()
        await eventually(lambda: transfer.job.items == 1)
        transfer.target.gate.close()
        try:
            await client.send(payload(b"second" * 20_000))
            await client.flush()
            await eventually(lambda: transfer.target.gate.waiting)
            if cut == "close":
                await promptly(server.close(), 3)
            elif cut == "abort":
                server.abort()
            elif cut == "fail":
                server.fail(0x101, "enough")  # type: ignore[arg-type]
            elif cut == "peer":
                client.abort()
            else:
                receiver.task.cancel()
                server.abort()
            if make_target is Target:  # else the thread may be in the middle of an item
                await eventually(lambda: receiver.ended, seconds=3)
            stopping = asyncio.create_task(transfer.stop())
            await asyncio.sleep(0.02)
            assert not stopping.done()
        finally:
            transfer.target.gate.open()
        await stopping
        await eventually(lambda: server.is_lost and receiver.ended)
        await eventually(lambda: lane._crew.count == 0)
        assert lane._crew.is_closed
        assert lane._receiver._pipe is None
        data = b"first " * 20_000 + b"second" * 20_000
        written = len(transfer.target.data)
        assert transfer.target.data == data[:written]
        assert written == 240_000 or make_target is ZeroCopyTarget, "what was under way is written"


@pytest.mark.skipif(not SPLICES, reason="zero-copy is Linux's")
async def test_a_pipe_is_not_left_open_when_a_thread_that_does_not_use_it_is_held_up() -> None:
    async with pair() as (server, client):
        lane = lane_of(server)
        spliced, verified = _Transfer(lane, 1, ZeroCopyTarget()), _Transfer(lane, 3, Target())
        receiver = _Receiver(server)
        await client.send(payload(bytes(ITEM_BYTES)))
        await client.flush()
        await eventually(lambda: spliced.job.items == 1)
        verified.target.gate.close()
        try:
            await client.send(payload(bytes(ITEM_BYTES), 3))
            await client.flush()
            await eventually(lambda: verified.target.gate.waiting)
            await client.send(payload(bytes(ITEM_BYTES)))
            await client.flush()
            await eventually(lambda: spliced.job.items == 2)
        finally:
            verified.target.gate.open()
        for transfer in (spliced, verified):
            await transfer.stop()
        server.abort()
        await eventually(lambda: receiver.ended)


# A disk that holds a thread up: sending, with the outbox in front of the lane as in a connection


@asynccontextmanager
async def _sender(transport: TcpTransport) -> AsyncGenerator[Outbox, None]:
    """A connection's sender."""
    outbox, lane = Outbox(frozenset()), lane_of(transport)

    async def run() -> None:
        while True:
            entry = await outbox.take()
            if isinstance(entry, FileTurn):
                await lane.send(entry.jobs, entry.waiting)
            else:
                if type(entry) is not SkippedFrame:
                    await transport.send(entry)
                outbox.on_sent(entry)
            if outbox.is_empty:
                await transport.flush()

    sender = asyncio.create_task(run())
    try:
        yield outbox
    finally:
        sender.cancel()
        await asyncio.wait([sender])
        outbox.close()
        if not sender.cancelled():
            sender.exception()


def _gated(file: int, gate: Gate, nbytes: int) -> FileRange:
    def is_same() -> bool:
        gate.pass_through()
        return True

    return FileRange(file, 0, nbytes, is_same=is_same)


@pytest.mark.parametrize("has_digest", [False, True])
async def test_other_streams_are_sent_while_a_disk_is_held_up(tmp_path: Path, has_digest: bool) -> None:
    content = os.urandom(10 * ITEM_BYTES + 5)
    path, gate = tmp_path / "source", Gate()
    path.write_bytes(content)
    with path.open("rb") as file:
        async with pair() as (server, client), _sender(server) as outbox:
            receiver = _Receiver(client)
            digest = Digest() if has_digest else None
            options: dict[str, Any] = {"last": lambda: b"end", "queue": outbox.put}
            slow = send_job(
                1, _gated(file.fileno(), gate, len(content)), ITEM_BYTES, granted=4, digest=digest, **options
            )
            fast = send_job(3, FileRange(file.fileno(), 0, len(content)), ITEM_BYTES, **options)
            gate.close()
            try:
                slow.resume()
                fast.resume()
                outbox.put(request_n(1, 5))
                await eventually(lambda: any(got.stream_id == 5 for got in receiver.frames), seconds=1.0)
                await promptly(fast.finished, 3)
                outbox.put(request_n(2, 5))
                await eventually(lambda: sum(got.stream_id == 5 for got in receiver.frames) == 2, seconds=1.0)
                assert not any(got.stream_id == 1 for got in receiver.frames)
                assert gate.waiting == 1
            finally:
                gate.open()
            await eventually(lambda: sum(got.stream_id == 1 for got in receiver.frames) == 4)
            assert slow.nbytes == 4 * ITEM_BYTES
            slow._credit.grant(100)
            slow.resume()
            await slow.finished
            await eventually(lambda: sum(got.stream_id == 1 for got in receiver.frames) == 11)
            for stream_id in (1, 3):
                items = [got for got in receiver.frames if got.stream_id == stream_id]
                assert b"".join(bytes(got.data or b"") for got in items) == content
                assert items[-1].metadata == b"end"
            if digest is not None:
                whole = Digest()
                whole.update(content)
                assert digest.text() == whole.text()
            server.abort()
            await eventually(lambda: receiver.ended)


@pytest.mark.parametrize("cut", ["abort", "peer", "fail", "sender"])
async def test_a_connection_that_ends_while_a_sending_thread_is_held_up(tmp_path: Path, cut: str) -> None:
    path, gate = tmp_path / "source", Gate()
    path.write_bytes(bytes(10 * ITEM_BYTES))
    with path.open("rb") as file:
        async with pair() as (server, client):
            lane = lane_of(server)
            receiver = _Receiver(client)
            own = _Receiver(server)
            async with _sender(server) as outbox:
                job = send_job(
                    1, _gated(file.fileno(), gate, 10 * ITEM_BYTES), ITEM_BYTES, digest=Digest(), queue=outbox.put
                )
                gate.close()
                job.resume()
                await eventually(lambda: gate.waiting)
                if cut == "abort":
                    server.abort()
                elif cut == "peer":
                    client.abort()
                elif cut == "fail":
                    server.fail(0x101, "enough")  # type: ignore[arg-type]
            try:
                if cut == "sender":
                    server.abort()
                await eventually(lambda: server.is_lost and own.ended and receiver.ended, seconds=3)
                job.stop()
                await asyncio.sleep(0.05)
                assert not job.finished.done(), "its thread reads the file yet"
            finally:
                gate.open()
            await promptly(job.finished)
            await eventually(lambda: lane._crew.count == 0)
            assert lane._crew.is_closed


async def test_a_part_file_is_written_by_the_lane(tmp_path: Path) -> None:
    """The real target, with and without a digest."""
    content = os.urandom(5 * ITEM_BYTES)
    with ThreadPoolExecutor(1) as executor:
        for algorithm in (None, "xxh3-128"):
            part = PartFile(algorithm, full="full", name="name", executor=executor)
            await asyncio.to_thread(part.open, str(tmp_path / f"part {algorithm}"), os.O_CREAT)

            async def append(chunks: Any, part: PartFile = part) -> None:
                await asyncio.get_running_loop().run_in_executor(executor, part.write_all, chunks)

            async with pair() as (server, client):
                done = asyncio.Event()
                job = ReceiveJob(Demand(100), done.set)
                job.open(append, part, _accept_all)
                lane = lane_of(server)
                lane.receive(1, job)
                receiver = _Receiver(server)
                for at in range(0, len(content), ITEM_BYTES):
                    await client.send(payload(content[at : at + ITEM_BYTES]))
                await client.flush()
                await eventually(lambda job=job: job.items == 5)
                await job.stop()
                server.abort()
                await eventually(lambda receiver=receiver: receiver.ended)
            assert (tmp_path / f"part {algorithm}").read_bytes() == content
            assert part.digest.length == len(content)
            part.close()
