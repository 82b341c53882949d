"""Two transports over real sockets: plain, through asyncio's buffer alone, TLS, and each of them on uvloop."""

import asyncio
import os
import socket
import sys
import tracemalloc
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketTransportError
from rsocket.frame import CancelFrame, ErrorFrame, Frame, PayloadFrame, RequestResponseFrame

import shared.transport.tcp
from shared.frames.reassembly import ReassemblyBudget, ReassemblyLimits
from shared.transport.tcp import FrameTransport, SkippedFrame
from tests.support import (
    CONNECTION_ERROR,
    ERROR,
    FOLLOWS,
    HAS_UVLOOP,
    NEXT,
    PAYLOAD,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    RawPeer,
    eventually,
    frame,
    on_uvloop,
    request,
)
from tests.transport.pairs import pair, payload, request_n, seen
from tests.transport.pairs import request as request_frame

Scenario = Callable[[bool], Coroutine[Any, Any, None]]


@pytest.fixture(params=["plain", "portable", "tls", "uvloop", "uvloop-portable", "uvloop-tls"])
def run(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Scenario], Coroutine[Any, Any, None]]:
    """Runs a scenario, which is told whether to use TLS, on one kind of loop and socket."""
    kind: str = request.param
    if "uvloop" in kind and not HAS_UVLOOP:
        pytest.skip("uvloop isn't installed")
    if "portable" in kind:
        monkeypatch.setattr(shared.transport.tcp, "_HAS_WRITEV", False)

    async def run_one(scenario: Scenario) -> None:
        if "uvloop" in kind:
            await asyncio.to_thread(on_uvloop, scenario("tls" in kind))
        else:
            await scenario("tls" in kind)

    return run_one


Run = Callable[[Scenario], Coroutine[Any, Any, None]]


async def _take(transport: FrameTransport, count: int) -> list[Frame]:
    async with asyncio.timeout(20):
        return [await anext(transport) for _ in range(count)]


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
                receiving = asyncio.create_task(_take(receiver, len(frames)))
                for sent in frames:
                    await sender.send_frame(sent)
                await sender.on_send_queue_empty()
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
                    await client.send_frame(payload(chunk))
                    sent += 1

            sending = asyncio.create_task(send())
            await eventually(lambda: client.write_blocked_since is not None)
            stopped_at = -1
            while stopped_at != sent:
                stopped_at = sent
                await asyncio.sleep(0.1)
            since = client.write_blocked_since
            await asyncio.sleep(0.02)
            assert client.write_blocked_since == since
            assert client._transport is not None
            waiting = client._transport.get_write_buffer_size()
            # With TLS asyncio encrypts up to 512 KiB ahead.
            assert waiting <= len(chunk) + (1024 * 1024 if tls else 1024)
            assert server._receiver.is_full, "nothing is read that nobody awaits"
            assert len(server._receiver._view) == 64 * 1024
            await _take(server, stopped_at + 1)
            await eventually(lambda: sent > stopped_at)
            sending.cancel()
            await asyncio.wait([sending])

    await run(scenario)


async def test_what_the_peer_has_taken_is_known(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):

            async def send() -> None:
                for _ in range(3):
                    await client.send_frame(payload(bytes(5_000_000)))

            sending = asyncio.create_task(send())
            await eventually(lambda: client.write_blocked_since is not None)
            assert client.waiting_bytes > 0
            assert client.taken_bytes == client.handed_bytes - client.waiting_bytes < client.handed_bytes
            await _take(server, 3)
            await sending
            assert client.handed_bytes > 15_000_000
            await eventually(lambda: client.taken_bytes == client.handed_bytes)
            assert client.waiting_bytes == 0

    await run(scenario)


async def test_what_has_arrived_of_a_frame_is_known_before_its_end(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            receiving = asyncio.create_task(_take(server, 1))
            assert client._transport is not None
            whole = frame(3, PAYLOAD, NEXT, bytes(500_000))
            for end in (1000, 60_000, 400_000):
                client._transport.write(whole[server.received_of(3) : end])
                await eventually(lambda end=end: server.received_of(3) == end)
                assert server.received_of(1) == 0
            client._transport.write(whole[400_000:])
            await receiving
            assert server.received_of(3) == 0

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
        _, client = await loop.create_connection(FrameTransport, host, port)
        peer, _ = await loop.sock_accept(listener)
    with peer:
        sending = asyncio.create_task(client.send_frame(payload(bytes(2_000_000))))
        await eventually(lambda: client.write_blocked_since is not None)
        unseen_by_asyncio = 0
        for _ in range(16):
            taken, blocked_since = client.taken_bytes, client.write_blocked_since
            assert client._transport is not None
            waiting = client._transport.get_write_buffer_size()
            while client.taken_bytes == taken:
                await loop.sock_recv(peer, 1024)
                await asyncio.sleep(0)
            assert client.write_blocked_since != blocked_since
            unseen_by_asyncio += client._transport.get_write_buffer_size() == waiting
        assert unseen_by_asyncio
    await client.close()
    with pytest.raises(RSocketTransportError):
        await sending


async def test_closing_with_a_peer_that_never_reads_is_bounded(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (_, client):
            sending = asyncio.create_task(_send_for_ever(client, bytes(256 * 1024)))
            await eventually(lambda: client.write_blocked_since is not None)
            async with asyncio.timeout(5):
                await client.close()
            with pytest.raises(RSocketTransportError):
                await sending
            assert client.is_lost
            assert client.write_blocked_since is None
            with pytest.raises(RSocketTransportError):
                await client.send_frame(payload(b"late"))
            await client.close()

    await run(scenario)


async def test_what_was_sent_before_the_end_is_received(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            # Reads meanwhile: uvloop's TLS drops what arrives before the end while reading is paused.
            frames: list[Frame] = []
            receiving = asyncio.create_task(_all(server, frames))
            await client.send_frame(payload(bytes(100_000)))
            await client.send_frame(payload(b"gathered"))
            await client.close()
            await receiving
            assert [len(frame.data or b"") for frame in frames] == [100_000, 8]
            assert await server.next_frame_generator() is None

    await run(scenario)


async def test_a_failure_reaches_the_peer_and_ends_both_ends(run: Run) -> None:
    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            server.fail(ErrorCode.CONNECTION_ERROR, "invalid_frame: none")
            server.fail(ErrorCode.CONNECTION_ERROR, "a second reason")
            assert server.failure == "invalid_frame: none"
            assert [frame async for frame in server] == []
            got = [frame async for frame in client]
            assert [type(frame) for frame in got] == [ErrorFrame]
            assert got[0].data == b"invalid_frame: none"
            await eventually(lambda: server.is_lost and client.is_lost)

    await run(scenario)


async def test_a_failure_comes_behind_what_still_waits_to_be_sent(run: Run) -> None:
    chunk = bytes(1_000_000)

    async def scenario(tls: bool) -> None:
        async with pair(tls=tls) as (server, client):
            sending = asyncio.create_task(_send_for_ever(client, chunk))
            await eventually(lambda: client.write_blocked_since is not None)
            await asyncio.sleep(0.05)
            client.fail(ErrorCode.CONNECTION_ERROR, "invalid_frame: none")
            frames: list[Frame] = []
            await _all(server, frames)
            assert frames[-1].data == b"invalid_frame: none"
            assert {bytes(got.data or b"") for got in frames[:-1]} == {chunk}
            with pytest.raises(RSocketTransportError):
                await sending

    await run(scenario)


async def _send_for_ever(transport: FrameTransport, chunk: bytes) -> None:
    while True:
        await transport.send_frame(payload(chunk))


@asynccontextmanager
async def raw_pair(
    *, limits: ReassemblyLimits | None = None, budget: ReassemblyBudget | None = None
) -> AsyncGenerator[tuple[FrameTransport, RawPeer], None]:
    """A transport, and a peer that writes what it likes."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[FrameTransport] = loop.create_future()
    listener = await loop.create_server(
        lambda: FrameTransport(accepted.set_result, limits=limits, budget=budget), "127.0.0.1", 0
    )
    peer = await RawPeer.connect(f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    transport = await accepted
    try:
        yield transport, peer
    finally:
        listener.close()
        await peer.close()
        await transport.close()
        await listener.wait_closed()


async def _all(transport: FrameTransport, frames: list[Frame]) -> None:
    async for got in transport:
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
    take = shared.transport.tcp.FrameReceiver.take

    def counted(receiver: shared.transport.tcp.FrameReceiver) -> object:
        nonlocal steps
        steps += 1
        return take(receiver)

    monkeypatch.setattr(shared.transport.tcp.FrameReceiver, "take", counted)
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
            assert [frame.data async for frame in transport] == [b"good"]


async def test_a_peer_that_neither_reads_nor_closes_after_a_failure_is_cut() -> None:
    async with raw_pair() as (transport, peer):
        transport.fail(ErrorCode.CONNECTION_ERROR, "invalid_frame: none")
        await peer.send(b"x" * 100_000)
        await eventually(lambda: transport.is_lost)


async def test_a_payload_over_the_limit_is_refused_and_the_connection_lives(caplog: pytest.LogCaptureFixture) -> None:
    budget = ReassemblyBudget()
    async with raw_pair(limits=ReassemblyLimits(max_payload_bytes=100_000), budget=budget) as (transport, peer):
        frames: list[Frame] = []
        receiving = asyncio.create_task(_all(transport, frames))
        for stream_id in (1, 3):
            await peer.send(request(stream_id, REQUEST_RESPONSE, None, bytes(60_000), flags=FOLLOWS))
            await peer.send(*[frame(stream_id, PAYLOAD, NEXT | FOLLOWS, bytes(60_000))] * 20)
        await peer.send(request(5, REQUEST_RESPONSE, None, bytes(16_000_000)))
        await peer.send(request(7, REQUEST_FNF, None, bytes(200_000)))
        await peer.send(request(9, REQUEST_RESPONSE, b"route", bytes(90_000)))
        for stream_id in (1, 3, 5):
            refused = await peer.receive()
            assert refused is not None
            assert (refused.stream_id, refused.kind, refused.error[0]) == (stream_id, ERROR, 0x201)
            assert refused.error[1].startswith("too_large: ")
        await eventually(lambda: frames)
        assert [got.stream_id for got in frames] == [9]
        assert budget.used_bytes == transport.held_bytes == 0
        await peer.close()
        await receiving
    assert len(caplog.records) == 1, "a flood must not fill the log"


async def test_the_budget_of_all_connections_is_shared_and_given_back() -> None:
    budget = ReassemblyBudget(100_000, clock=lambda: 0.0)  # nobody is slow
    async with raw_pair(budget=budget) as (first, first_peer), raw_pair(budget=budget) as (second, second_peer):
        receiving = [asyncio.create_task(_all(transport, [])) for transport in (first, second)]
        await first_peer.send(request(1, REQUEST_RESPONSE, None, bytes(90_000), flags=FOLLOWS))
        await eventually(lambda: budget.used_bytes > 90_000)
        await second_peer.send(request(1, REQUEST_RESPONSE, None, bytes(90_000), flags=FOLLOWS))
        refused = await second_peer.receive()
        assert refused is not None
        assert refused.error[0] == 0x202
        assert refused.error[1].startswith("server_full: ")
        await first_peer.close()
        await eventually(lambda: budget.used_bytes == 0)
        await second_peer.send(request(3, REQUEST_RESPONSE, None, bytes(90_000), flags=FOLLOWS))
        await eventually(lambda: budget.used_bytes > 90_000)
        await second_peer.close()
        await asyncio.gather(*receiving)
    assert budget.used_bytes == 0


async def test_a_refused_item_of_a_known_stream_ends_it_on_both_sides() -> None:
    async with pair(limits=ReassemblyLimits(max_payload_bytes=1000)) as (server, client):
        receiving = asyncio.create_task(_take(server, 1))
        await client.send_frame(payload(bytes(2000), 5))
        await client.on_send_queue_empty()
        (local,) = await receiving
        assert isinstance(local, ErrorFrame)
        assert (local.stream_id, local.error_code) == (5, ErrorCode.APPLICATION_ERROR)
        remote = await _take(client, 2)
        assert [type(got) for got in remote] == [CancelFrame, ErrorFrame]
        assert [got.stream_id for got in remote] == [5, 5]


async def test_a_large_split_payload_is_joined_while_the_loop_goes_on() -> None:
    part = os.urandom(1_000_000)
    async with pair() as (server, client):
        receiving = asyncio.create_task(_take(server, 1))
        await client.send_frame(request_frame(part, 1, b"route", follows=True))
        for index in range(19):
            await client.send_frame(payload(part, 1, follows=index < 18))
        await client.on_send_queue_empty()
        (got,) = await receiving
        assert isinstance(got, RequestResponseFrame)
        assert type(got.data) is bytes
        assert (got.metadata, got.data == part * 20) == (b"route", True)
        assert server.held_bytes == 0


async def test_a_burst_of_small_frames_leaves_the_loop_to_others() -> None:
    async with raw_pair() as (transport, peer):
        await peer.send(request_n_wire() * 4000)
        await eventually(lambda: transport._receiver.is_full or transport._receiver.is_ready)
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
            await anext(transport)
            taken_in_turn += 1
        is_over = True
        assert 1 < most <= 16


def request_n_wire() -> bytes:
    return frame(1, 0x08, 0, (1).to_bytes(4, "big"))


async def test_a_sender_that_never_waits_leaves_the_loop_to_others() -> None:
    async with pair() as (server, client):
        receiving = asyncio.create_task(_take(server, 1000))
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
            await client.send_frame(payload(b"small"))
            in_turn += 1
        await client.on_send_queue_empty()
        await receiving
        is_over = True
        assert 1 < most <= 16


async def test_a_skipped_frame_is_not_sent() -> None:
    async with pair() as (server, client):
        await client.send_frame(SkippedFrame())
        await client.send_frame(payload(b"next"))
        await client.on_send_queue_empty()
        assert [type(got) for got in await _take(server, 1)] == [PayloadFrame]


async def test_connection_loss_is_told_once_with_its_reason() -> None:
    loop = asyncio.get_running_loop()
    reasons: list[Exception | None] = []
    accepted: asyncio.Future[asyncio.StreamWriter] = loop.create_future()
    listener = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()[:2]
    _, transport = await loop.create_connection(lambda: FrameTransport(on_lost=reasons.append), host, port)
    (await accepted).transport.abort()
    assert [got async for got in transport] == []
    await eventually(lambda: reasons)
    with pytest.raises(RSocketTransportError):
        await transport.send_frame(payload(b"x"))
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
        receiving = asyncio.create_task(_take(server, 64))
        for _ in range(64):
            await client.send_frame(payload(chunk))
        await receiving
        assert calls == [2] * 64, "the prefix and the data, as they are"
        calls.clear()
        receiving = asyncio.create_task(_take(server, 640))
        for _ in range(640):
            await client.send_frame(payload(b"x" * 20))
        await client.on_send_queue_empty()
        await receiving
        assert len(calls) <= 640 / 16 + 1, "small frames share a system call"


async def test_a_large_frame_is_received_with_few_reads_and_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    received = shared.transport.tcp.FrameReceiver.received

    def counted(receiver: shared.transport.tcp.FrameReceiver, nbytes: int) -> None:
        nonlocal reads
        reads += 1
        received(receiver, nbytes)

    chunk = bytes(256 * 1024)

    async def transfer(server: FrameTransport, client: FrameTransport, count: int) -> None:
        async def receive() -> None:
            for _ in range(count):
                await anext(server)

        receiving = asyncio.create_task(receive())
        for _ in range(count):
            await client.send_frame(payload(chunk))
        await receiving

    async with pair() as (server, client):
        await transfer(server, client, 16)
        monkeypatch.setattr(shared.transport.tcp.FrameReceiver, "received", counted)
        tracemalloc.start()
        try:
            await transfer(server, client, 128)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The sender's rest in asyncio's buffer, the payload, and (once) the buffer that it comes from.
        assert peak < 4.5 * len(chunk), f"{peak} bytes at the most"
        assert reads <= 128 * 8, "a read brings what there is, up to a whole frame and the next header"
