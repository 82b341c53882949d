"""Two transports over real sockets: plain, through asyncio's buffer alone, TLS, and each of them on uvloop."""

import asyncio
import os
import socket
import sys
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketTransportError
from rsocket.frame import ErrorFrame, Frame

import shared.transport.decoder
import shared.transport.writer
from shared.transport.tcp import TcpTransport
from tests.support import (
    CONNECTION_ERROR,
    ERROR,
    HAS_UVLOOP,
    NEXT,
    PAYLOAD,
    eventually,
    frame,
    on_uvloop,
)
from tests.transport.pairs import frames_of, judged, pair, payload, raw_pair, request_n, seen, take

Scenario = Callable[[bool], Coroutine[Any, Any, None]]


@pytest.fixture(params=["plain", "portable", "tls", "uvloop", "uvloop-portable", "uvloop-tls"])
def run(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Scenario], Coroutine[Any, Any, None]]:
    """Runs a scenario, with TLS or without, on one kind of loop and socket."""
    kind: str = request.param
    if "uvloop" in kind and not HAS_UVLOOP:
        pytest.skip("uvloop isn't installed")
    if "portable" in kind:
        monkeypatch.setattr(shared.transport.writer, "_HAS_WRITEV", False)

    async def run_one(scenario: Scenario) -> None:
        if "uvloop" in kind:
            await asyncio.to_thread(on_uvloop, scenario("tls" in kind))
        else:
            await scenario("tls" in kind)

    return run_one


Run = Callable[[Scenario], Coroutine[Any, Any, None]]


async def test_every_frame_arrives_as_it_was_sent(run: Run) -> None:
    sizes = [0, 1, 100, 16_383, 16_384, 65_520, 65_527, 65_536, 262_144, 1_000_000, 3, 5_000_000, 0, 70_000]

    async def scenario(tls: bool) -> None:
        frames: list[Frame] = []
        for index, size in enumerate(sizes * 2):
            frames.append(payload(os.urandom(size), 2 * index + 1, os.urandom(index * 100)))
            frames.append(request_n(index + 1, 2 * index + 1))
        expected = [seen(sent) for sent in frames]
        async with pair(tls=tls) as ends:
            for sender, receiver in (ends, ends[::-1]):
                receiving = asyncio.create_task(take(receiver, len(frames)))
                for sent in frames:
                    await sender.send(sent)
                await sender.flush()
                assert [seen(got) for got in await receiving] == expected

    await run(scenario)


async def test_a_peer_that_does_not_read_stops_the_sender(run: Run) -> None:
    chunk = bytes(256 * 1024)

    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            sent = 0

            async def send() -> None:
                nonlocal sent
                while True:
                    await client.send(payload(chunk))
                    sent += 1

            sending = asyncio.create_task(send())
            await eventually(lambda: client.flow.blocked_since is not None)
            stopped_at = taken = -1
            while (stopped_at, taken) != (sent, client.flow.taken_bytes):
                stopped_at, taken = sent, client.flow.taken_bytes
                await asyncio.sleep(0.5)  # an acknowledgement may be delayed
            since = client.flow.blocked_since
            await asyncio.sleep(0.02)
            assert client.flow.blocked_since == since
            assert client._transport is not None
            waiting = client._transport.get_write_buffer_size()
            assert waiting <= len(chunk) + (8 * 1024 if tls else 1024)
            assert server._decoder.is_full, "nothing is read before it is awaited"
            assert len(server._decoder._view) == 64 * 1024
            await take(server, stopped_at + 1)
            await eventually(lambda: sent > stopped_at)
            sending.cancel()
            await asyncio.wait([sending])

    await run(scenario)


async def test_what_the_peer_has_taken_is_known(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):

            async def send() -> None:
                for _ in range(3):
                    await client.send(payload(bytes(5_000_000)))

            sending = asyncio.create_task(send())
            await eventually(lambda: client.flow.blocked_since is not None)
            assert client.flow.waiting_bytes > 0
            flow = client.flow
            assert flow.taken_bytes == flow.handed_bytes - flow.waiting_bytes < flow.handed_bytes
            await take(server, 3)
            await sending
            assert client.flow.handed_bytes > 15_000_000
            await eventually(lambda: client.flow.taken_bytes == client.flow.handed_bytes)
            assert client.flow.waiting_bytes == 0

    await run(scenario)


async def test_what_has_arrived_of_a_frame_is_known_before_its_end(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            receiving = asyncio.create_task(take(server, 1))
            assert client._transport is not None
            whole = frame(3, PAYLOAD, NEXT, bytes(500_000))
            for end in (1000, 60_000, 400_000):
                client._writer.write_gathered(whole[server.arrived_of(3) : end])
                await eventually(lambda end=end: server.arrived_of(3) == end)
                assert server.arrived_of(1) == 0
            client._writer.write_gathered(whole[400_000:])
            await receiving
            assert server.arrived_of(3) == 0

    await run(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the socket's own queue can't be asked")
async def test_a_peer_that_takes_less_at_a_time_than_asyncio_shows_is_seen_to_take_it() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)  # the steps of a network, not of loopback
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        host, port = listener.getsockname()
        _, client = await loop.create_connection(lambda: TcpTransport(judged()), host, port)
        peer, _ = await loop.sock_accept(listener)
    with peer:
        sending = asyncio.create_task(client.send(payload(bytes(2_000_000))))
        await eventually(lambda: client.flow.blocked_since is not None)
        unseen_by_asyncio = 0
        for _ in range(16):
            taken, blocked_since = client.flow.taken_bytes, client.flow.blocked_since
            assert client._transport is not None
            waiting = client._transport.get_write_buffer_size()
            while client.flow.taken_bytes == taken:
                await loop.sock_recv(peer, 1024)
                await asyncio.sleep(0)
            assert client.flow.blocked_since != blocked_since
            unseen_by_asyncio += client._transport.get_write_buffer_size() == waiting
        assert unseen_by_asyncio
    await client.close()
    with pytest.raises(RSocketTransportError):
        await sending


async def test_closing_with_a_peer_that_never_reads_is_bounded(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (_, client):
            sending = asyncio.create_task(_send_for_ever(client, bytes(256 * 1024)))
            await eventually(lambda: client.flow.blocked_since is not None)
            async with asyncio.timeout(5):
                await client.close()
            with pytest.raises(RSocketTransportError):
                await sending
            assert client.is_lost
            assert client.flow.blocked_since is None
            with pytest.raises(RSocketTransportError):
                await client.send(payload(b"late"))
            await client.close()

    await run(scenario)


async def test_what_was_sent_before_the_end_is_received(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            # Reads meanwhile: uvloop's TLS drops what arrives before the end while reading is paused.
            frames: list[Frame] = []
            receiving = asyncio.create_task(_all(server, frames))
            await client.send(payload(bytes(100_000)))
            await client.send(payload(b"gathered"))
            await client.close()
            await receiving
            assert [len(frame.data or b"") for frame in frames] == [100_000, 8]
            assert await server.next_frame() is None

    await run(scenario)


async def test_a_failure_reaches_the_peer_and_ends_both_ends(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            server.fail(ErrorCode.CONNECTION_ERROR, "invalid_frame: none")
            server.fail(ErrorCode.CONNECTION_ERROR, "a second reason")
            assert server.failure == "invalid_frame: none"
            assert [frame async for frame in frames_of(server)] == []
            got = [frame async for frame in frames_of(client)]
            assert [type(frame) for frame in got] == [ErrorFrame]
            assert got[0].data == b"invalid_frame: none"
            await eventually(lambda: server.is_lost and client.is_lost)

    await run(scenario)


async def test_a_failure_comes_behind_what_still_waits_to_be_sent(run: Run) -> None:
    chunk = bytes(1_000_000)

    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            sending = asyncio.create_task(_send_for_ever(client, chunk))
            await eventually(lambda: client.flow.blocked_since is not None)
            await asyncio.sleep(0.05)
            client.fail(ErrorCode.CONNECTION_ERROR, "invalid_frame: none")
            frames: list[Frame] = []
            await _all(server, frames)
            assert frames[-1].data == b"invalid_frame: none"
            assert {bytes(got.data or b"") for got in frames[:-1]} == {chunk}
            with pytest.raises(RSocketTransportError):
                await sending

    await run(scenario)


async def _send_for_ever(transport: TcpTransport, chunk: bytes) -> None:
    while True:
        await transport.send(payload(chunk))


async def _all(transport: TcpTransport, frames: list[Frame]) -> None:
    async for got in frames_of(transport):
        frames.append(got)  # noqa: PERF401 - the list is looked at meanwhile


@pytest.mark.parametrize(
    "garbage",
    [bytes(3_000_000), b"GET / HTTP/1.1\r\n\r\n" * 1000, frame(1, 0x3D) * 100_000, b"\xff" * 5_000_000],
    ids=["zeros", "http", "unknown", "ff"],
)
async def test_garbage_is_answered_once_and_then_the_connection_ends(
    garbage: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = 0
    taken = shared.transport.decoder.FrameDecoder.take

    def counted(decoder: shared.transport.decoder.FrameDecoder) -> object:
        nonlocal steps
        steps += 1
        return taken(decoder)

    monkeypatch.setattr(shared.transport.decoder.FrameDecoder, "take", counted)
    caplog.set_level("INFO", "shared.transport.tcp")
    async with raw_pair() as (transport, peer):
        frames: list[Frame] = []
        receiving = asyncio.create_task(_all(transport, frames))
        await peer.send(garbage)
        got = await peer.receive()
        assert got is not None
        assert got.kind == ERROR
        assert got.error[0] == CONNECTION_ERROR
        assert got.error[1].startswith("invalid_frame: ")
        assert await peer.receive() is None
        await receiving
        assert frames == []
    assert steps <= 2, "nothing behind the first bad frame is looked at"
    assert len(caplog.records) == 1


async def test_garbage_behind_the_end_of_the_connection_ends_it_all_the_same() -> None:
    async with raw_pair() as (transport, peer):
        await peer.send(frame(1, PAYLOAD, NEXT, b"good") + bytes(1000))
        await peer.close()
        await eventually(lambda: transport.is_lost)
        async with asyncio.timeout(5):
            assert [frame.data async for frame in frames_of(transport)] == [b"good"]


async def test_a_peer_that_neither_reads_nor_closes_after_a_failure_is_cut() -> None:
    async with raw_pair() as (transport, peer):
        transport.fail(ErrorCode.CONNECTION_ERROR, "invalid_frame: none")
        await peer.send(b"x" * 100_000)
        await eventually(lambda: transport.is_lost)


async def test_a_burst_of_small_frames_leaves_the_loop_to_others() -> None:
    async with raw_pair() as (transport, peer):
        await peer.send(request_n_wire() * 4000)
        await eventually(lambda: transport._decoder.is_full or transport._decoder.is_ready)
        taken_in_turn, most = 0, 0
        loop = asyncio.get_running_loop()
        is_over = False

        def turn() -> None:
            nonlocal taken_in_turn, most
            most, taken_in_turn = max(most, taken_in_turn), 0
            if not is_over:
                loop.call_soon(turn)

        turn()
        for _ in range(4000):
            await transport.next_frame()
            taken_in_turn += 1
        is_over = True
        assert 1 < most <= 16


def request_n_wire() -> bytes:
    return frame(1, 0x08, 0, (1).to_bytes(4, "big"))


async def test_a_sender_that_never_waits_leaves_the_loop_to_others() -> None:
    async with pair() as (server, client):
        receiving = asyncio.create_task(take(server, 1000))
        in_turn = most = 0
        loop = asyncio.get_running_loop()
        is_over = False

        def turn() -> None:
            nonlocal in_turn, most
            most, in_turn = max(most, in_turn), 0
            if not is_over:
                loop.call_soon(turn)

        turn()
        for _ in range(1000):
            await client.send(payload(b"small"))
            in_turn += 1
        await client.flush()
        await receiving
        is_over = True
        assert 1 < most <= 16


async def test_connection_loss_is_reported_once_with_its_reason() -> None:
    loop = asyncio.get_running_loop()
    reasons: list[Exception | None] = []
    accepted: asyncio.Future[asyncio.StreamWriter] = loop.create_future()
    listener = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()[:2]
    _, transport = await loop.create_connection(lambda: TcpTransport(judged(), reasons.append), host, port)
    (await accepted).transport.abort()
    assert [got async for got in frames_of(transport)] == []
    await eventually(lambda: reasons)
    with pytest.raises(RSocketTransportError):
        await transport.send(payload(b"x"))
    assert len(reasons) == 1
    listener.close()
    await listener.wait_closed()


# Checks without a clock: a change that copies or calls once more is seen on any machine.


async def test_large_frames_take_one_system_call_and_no_copy_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "writev"):
        pytest.skip("no os.writev")
    calls: list[int] = []
    writev = os.writev

    def counted(fd: int, parts: list[bytes]) -> int:
        calls.append(len(parts))
        return writev(fd, parts)

    monkeypatch.setattr(os, "writev", counted)
    chunk = bytes(256 * 1024)
    async with pair() as (server, client):
        receiving = asyncio.create_task(take(server, 64))
        for _ in range(64):
            await client.send(payload(chunk))
        await receiving
        assert calls == [2] * 64, "the prefix and the data, as they are"
        calls.clear()
        receiving = asyncio.create_task(take(server, 640))
        for _ in range(640):
            await client.send(payload(b"x" * 20))
        await client.flush()
        await receiving
        assert len(calls) <= 640 / 16 + 1, "small frames share a system call"


async def test_a_large_frame_is_received_with_few_reads_and_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    received = shared.transport.decoder.FrameDecoder.received

    def counted(decoder: shared.transport.decoder.FrameDecoder, nbytes: int) -> None:
        nonlocal reads
        reads += 1
        received(decoder, nbytes)

    chunk = bytes(256 * 1024)

    async def transfer(server: TcpTransport, client: TcpTransport, count: int) -> None:
        async def receive() -> None:
            for _ in range(count):
                await server.next_frame()

        receiving = asyncio.create_task(receive())
        for _ in range(count):
            await client.send(payload(chunk))
        await receiving

    async with pair() as (server, client):
        await transfer(server, client, 16)
        monkeypatch.setattr(shared.transport.decoder.FrameDecoder, "received", counted)
        tracemalloc.start()
        try:
            await transfer(server, client, 128)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The sender's rest in asyncio's buffer, the payload, and (once) the buffer that it comes from.
        assert peak < 4.5 * len(chunk), f"{peak} bytes at the most"
        assert reads <= 128 * 8, "a read brings what there is, up to a whole frame and the next header"
