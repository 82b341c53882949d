"""Payloads whose rest never arrives are dropped in time, and earlier if another connection needs their memory."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rsocket.handlers.request_cahnnel_responder import RequestChannelResponder

from rx_client import FileClient
from server import ChatData, DirectoryStore, FileServer, Limits, serve
from server.routes.upload import UploadChannel
from tests.security.support import MIB, channel, download, receive, refused, stat, upload, warnings
from tests.support import (
    APPLICATION_ERROR,
    CANCEL,
    ERROR,
    FOLLOWS,
    KEEPALIVE,
    METADATA,
    NEXT,
    PAYLOAD,
    REJECTED,
    RawPeer,
    eventually,
    frame,
    raw_peer,
    server_stream_ids,
)

# Two megabytes fit, if the other connections hold little.
LIMITS = Limits(max_request_bytes=3 * MIB, max_connection_bytes=3 * MIB, max_reassembly_bytes=4 * MIB)


def more(stream_id: int, data: bytes, *, flags: int = FOLLOWS) -> bytes:
    return frame(stream_id, PAYLOAD, NEXT | flags, data)


def half(stream_id: int, size: int) -> bytes:
    return upload(stream_id, b"half", bytes(size), flags=FOLLOWS)


def large(wire: bytes, nbytes: int) -> bytes:
    """The first bytes of a frame that announces `nbytes` more."""
    return (int.from_bytes(wire[:3], "big") + nbytes).to_bytes(3, "big") + wire[3:]


@asynccontextmanager
async def peers(server: FileServer, count: int) -> AsyncGenerator[list[RawPeer], None]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(raw_peer(server.uri)) for _ in range(count)]


@asynccontextmanager
async def meanwhile(*coroutines: Any) -> AsyncGenerator[None, None]:
    """Runs the coroutines during the block."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError | ConnectionError), result


def are_slow(server: FileServer) -> bool:
    budget = server._budget
    now = budget.clock()
    return all(holder.is_slow(now) for holder in budget._holders)


async def serves_two_megabytes(server: FileServer) -> None:
    content = os.urandom(2 * MIB)
    async with FileClient.connect(server.uri) as files:
        await files.upload("honest", content, deadline=10)
        assert await files.download("honest", deadline=10) == content


async def refusals(peer: RawPeer) -> list[str]:
    """The codes of the errors that the peer has received so far."""
    codes: list[str] = []
    with suppress(TimeoutError):
        while (got := await peer.receive(0.1)) is not None:
            assert got.kind == ERROR
            codes.append(got.error[1].partition(":")[0])
    return codes


# Incomplete payloads are dropped for connections that need their memory


@pytest.mark.parametrize("count", [2, 40])
async def test_stalled_payloads_are_dropped_for_others(count: int) -> None:
    async with serve(limits=LIMITS) as server, peers(server, count) as stallers:
        for peer in stallers:
            await peer.send(half(1, (4 * MIB - 1) // count - 2048))
        await eventually(lambda: server._budget.used_bytes > 3.8 * MIB)
        await eventually(lambda: are_slow(server))
        await serves_two_megabytes(server)
        assert server._budget.used_bytes <= 2 * MIB + 100_000, "no more was dropped than was needed"
        dropped = [codes for peer in stallers if (codes := await refusals(peer))]
        assert dropped == [["server_full"]] * len(dropped)
        assert len(dropped) >= count // 2
        for peer in stallers:
            await peer.send(more(1, b"x" * 1000), stat(3, b"honest"))
            assert (await receive(peer)).stream_id == 3, "the connection stays open, and the stream is forgotten"


async def test_dripping_payloads_are_dropped_for_others() -> None:
    async def dribble(peer: RawPeer) -> None:
        while True:
            await peer.send(more(1, b"x"), frame(0, KEEPALIVE, 0, bytes(8)))
            await asyncio.sleep(0.02)

    async with serve(limits=LIMITS) as server, peers(server, 10) as dribblers:
        for peer in dribblers:
            await peer.send(half(1, 400_000))
        async with meanwhile(*map(dribble, dribblers)):
            await eventually(lambda: server._budget.used_bytes > 3.8 * MIB)
            await eventually(lambda: are_slow(server))
            await serves_two_megabytes(server)


async def test_half_a_frame_is_half_a_payload() -> None:
    limits = replace(LIMITS, max_metadata_bytes=1_000_000)  # else a keepalive of that size isn't waited for
    async with serve(limits=limits) as server, peers(server, 4) as silent:
        for peer in silent[:2]:
            await peer.send(large(half(1, 10_000), 900_000))
        await silent[2].send(large(upload(1, b"whole", b""), 900_000))
        await silent[3].send(large(frame(0, KEEPALIVE, 0, bytes(8)), 900_000))
        await eventually(lambda: server._budget.used_bytes > 3.4 * MIB)
        await eventually(lambda: are_slow(server))
        await serves_two_megabytes(server)
        await serves_two_megabytes(server)
        dropped = [codes for peer in silent[:3] if (codes := await refusals(peer))]
        assert dropped == [["server_full"]] * len(dropped)
        assert len(dropped) >= 1
        for peer in silent[:2]:
            await peer.send(bytes(900_000), more(1, b"late"), stat(3, b"honest"))
            assert (await receive(peer)).stream_id == 3, "the rest of the frame is skipped"


async def test_endless_payloads_at_full_speed_are_dropped_for_smaller_ones() -> None:
    async def flood(peer: RawPeer) -> None:
        for stream_id in range(1, 1_000_000, 2):
            await peer.send(half(stream_id, 100_000))
            for _ in range(27):
                await peer.send(more(stream_id, bytes(100_000)))
                await asyncio.sleep(0)

    async def read(peer: RawPeer) -> None:
        while await peer.receive(60):
            pass
        raise ConnectionError

    async def honest(server: FileServer) -> None:
        async with FileClient.connect(server.uri) as files:
            content = os.urandom(MIB // 2)
            await files.upload("honest", content, deadline=20)
            assert await files.download("honest", deadline=20) == content

    async with (
        serve(limits=LIMITS) as server,
        peers(server, 3) as floods,
        meanwhile(*map(flood, floods), *map(read, floods)),
    ):
        await eventually(lambda: server._budget.used_bytes > 3 * MIB)
        for _ in range(5):
            await honest(server)


# A payload that stops is refused


@pytest.mark.parametrize("is_folder", [False, True], ids=["memory", "folder"])
async def test_a_payload_that_stops_growing_is_refused_and_the_connection_stays_open(
    is_folder: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ChatData(DirectoryStore(tmp_path)) if is_folder else ChatData()
    async with serve(data=data, limits=Limits(payload_seconds=0.4)) as server, peers(server, 4) as all_peers:
        still, dribbling, silent, alive = all_peers
        await still.send(half(1, 300_000), half(3, 10), more(1, bytes(MIB)))
        await dribbling.send(half(1, 300_000))
        await silent.send(large(half(1, 10), 500_000))
        await alive.send(half(1, 10))

        async def dribble() -> None:
            while True:
                await dribbling.send(more(1, b"x"))
                await asyncio.sleep(0.02)

        async def go_on() -> None:
            while True:
                await alive.send(more(1, bytes(20_000)))
                await asyncio.sleep(0.02)

        async with meanwhile(dribble(), go_on()):
            for peer, streams in ((still, {1, 3}), (dribbling, {1}), (silent, {1})):
                got = [await receive(peer) for _ in streams]
                assert {answer.stream_id for answer in got} == streams
                assert {answer.error for answer in got} == {
                    (APPLICATION_ERROR, "stalled: the rest of the payload didn't come in time")
                }
        await alive.send(more(1, b"", flags=0))
        assert (await receive(alive)).kind == PAYLOAD
        for peer in (still, dribbling):
            await peer.send(more(1, b"late"), stat(5, b"nothing"))
            assert (await receive(peer)).error[1].startswith("not_found: ")
        await silent.send(bytes(500_000), stat(5, b"nothing"))
        assert (await receive(silent)).error[1].startswith("not_found: ")
        assert server._budget.used_bytes == 0
        if is_folder:
            await eventually(lambda: not os.listdir(tmp_path / ".rxfiles" / "parts"))
    assert len(warnings(caplog)) == 3


async def test_a_control_frame_that_never_arrives_ends_its_connection() -> None:
    limits = Limits(payload_seconds=0.3, max_metadata_bytes=1_000_000)  # else it isn't waited for
    async with serve(limits=limits) as server, raw_peer(server.uri) as peer:
        await peer.send(large(frame(0, KEEPALIVE, 0, bytes(8)), 500_000))
        assert (await refused(peer))[1].startswith("invalid_frame: ")


async def test_an_item_that_stops_ends_its_channel_on_both_sides(tmp_path: Path) -> None:
    data = ChatData(DirectoryStore(tmp_path))
    async with serve(data=data, limits=Limits(payload_seconds=0.3)) as server, raw_peer(server.uri) as peer:
        await peer.send(channel(1, b"a", b'{"upload_id": "u"}'))
        await eventually(lambda: server_stream_ids(server))
        await peer.send(more(1, bytes(100_000)))
        got = []
        while not got or got[-1].kind != ERROR:
            got.append(await receive(peer))
        assert got[-2].kind == CANCEL
        assert got[-1].error[1].startswith("stalled: ")
        await eventually(lambda: not server_stream_ids(server) and not server.work.active)
        await peer.send(more(1, b"late", flags=0), stat(3, b"nothing"))
        while (answer := await receive(peer)).stream_id != 3:
            assert answer.kind in (CANCEL, PAYLOAD)
        assert server._budget.used_bytes == 0


async def test_interleaved_payloads_are_not_stalled() -> None:
    limits = Limits(payload_seconds=0.3)
    async with serve(limits=limits) as server, raw_peer(server.uri) as peer:
        await peer.send(half(1, 50_000), half(3, 50_000))
        part = bytes(20_000)
        began = server._budget.clock()
        while server._budget.clock() - began < 1.5:
            await peer.send(more(3, part))
            await asyncio.sleep(0.02)
        await peer.send(more(1, b"end", flags=0), more(3, b"end", flags=0))
        assert {(await receive(peer)).kind for _ in range(2)} == {PAYLOAD}


async def test_refusals_to_a_peer_that_does_not_read_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(payload_seconds=0.2, blocked_seconds=1.0, max_streams=200)
    async with serve(limits=limits, data=ChatData({"large": bytes(32 * MIB)})) as server, raw_peer(server.uri) as peer:
        await peer.send(download(1, b"large"))
        (connection,) = server._connections.values()
        await eventually(lambda: connection.transport.flow.blocked_since is not None)
        await peer.send(*[half(stream_id, 10) for stream_id in range(3, 203, 2)])
        await eventually(lambda: not connection.reassembler.pending)
        # An ERROR, and in the fair order of the outbox what the file has; nothing piles up in another place.
        assert len(connection.outbox._entries) <= 110
        await eventually(lambda: not server.connections, seconds=10)
        assert server._budget.used_bytes == 0


# Their number is limited


async def test_incomplete_requests_count_as_streams(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(limits=Limits(max_streams=10)) as server, raw_peer(server.uri) as peer:
        await peer.send(*[channel(i, b"c", b'{"upload_id": "%d"}' % i) for i in (101, 103)])
        await eventually(lambda: len(server_stream_ids(server)) == 2)
        await peer.send(*[half(stream_id, 10) for stream_id in range(1, 41, 2)])
        errors = []
        while len(errors) < 12:
            if (got := await receive(peer)).kind == ERROR and got.stream_id < 100:
                errors.append(got)
        assert [got.stream_id for got in errors] == list(range(17, 41, 2))
        assert {got.error[0] for got in errors} == {REJECTED}
        assert {got.error[1].partition(":")[0] for got in errors} == {"too_many_streams"}
        await peer.send(stat(41, b"a"))
        assert (await receive(peer)).error[1].startswith("too_many_streams: "), "a whole one is refused as well"
        await peer.send(more(1, b"end", flags=0))
        assert (await receive(peer)).kind == PAYLOAD
        await peer.send(more(101, b"x"), stat(43, b"a"))
        while (answer := await receive(peer)).stream_id != 43:
            assert answer.stream_id == 101
        assert answer.error[1].startswith("not_found: "), "an item isn't one more stream"
    assert len(warnings(caplog)) == 2, "one of each kind"


async def test_nothing_is_held_of_items_of_unknown_streams() -> None:
    async with serve() as server, raw_peer(server.uri) as peer:
        await peer.send(*[more(stream_id, b"x" * 1000) for stream_id in range(1, 1001, 2)])
        await peer.send(stat(3001, b"a"))
        assert (await receive(peer)).stream_id == 3001
        (connection,) = server._connections.values()
        assert connection.reassembler.pending == connection.reassembler.held_bytes == 0


# With a directory store


@asynccontextmanager
async def folder(path: Path, **limits: Any) -> AsyncGenerator[tuple[FileServer, Callable[[], set[str]]], None]:
    """A server with a directory store, and a function for the unfinished uploads in it."""
    async with serve(data=ChatData(DirectoryStore(path)), limits=Limits(**limits)) as server:
        yield server, lambda: {part.stem for part in (path / ".rxfiles" / "parts").iterdir()}


async def test_what_waits_for_the_disk_is_written_early_where_there_is_little_room(tmp_path: Path) -> None:
    async with folder(tmp_path, max_reassembly_bytes=2 * MIB) as (server, parts), peers(server, 12) as all_peers:
        for peer in all_peers:
            await peer.send(half(1, 500_000), stat(3, b"missing"))
            assert (await receive(peer)).stream_id == 3, "the half is taken, and not refused"
        await eventually(lambda: len(parts()) >= 9)
        assert server._budget.used_bytes > MIB / 2, "what is no trouble waits for more"
        await serves_two_megabytes(server)


async def test_an_upload_that_is_dropped_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    async with (
        folder(tmp_path, max_request_bytes=MIB, max_reassembly_bytes=1_700_000) as (server, parts),
        peers(server, 2) as (loser, keeper),
    ):
        for count, peer in enumerate((keeper, loser), 1):
            await peer.send(half(1, 200_000), more(1, bytes(MIB)))
            # All of it is stored before the next one sends: there is no room for both.
            await eventually(lambda count=count: len(parts()) == count and server._budget.used_bytes < 10_000)
        await loser.send(more(1, bytes(500_000)))
        await keeper.send(more(1, bytes(300_000)))
        await eventually(lambda: server._budget.used_bytes > 800_000)
        await eventually(lambda: are_slow(server))
        await serves_two_megabytes(server)
        assert await refusals(loser) == ["server_full"]
        await eventually(lambda: len(parts()) == 1)
        await keeper.send(more(1, b"end", flags=0))
        assert (await receive(keeper)).kind == PAYLOAD
        assert (tmp_path / "half").stat().st_size == 200_000 + MIB + 300_000 + 3


@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_a_whole_request_that_is_not_served_leaves_nothing(size: int, tmp_path: Path) -> None:
    ends = {
        "cancelled at once": [half(1, size), more(1, b"end", flags=0) + frame(1, CANCEL)],
        "an even stream": [half(2, size), more(2, b"end", flags=0)],
        "malformed at its end": [half(1, size), frame(1, PAYLOAD, NEXT | METADATA, b"\0\0\x02xx")],
    }
    async with folder(tmp_path) as (server, parts):
        for name, sent in ends.items():
            async with raw_peer(server.uri) as peer:
                await peer.send(b"".join(sent), stat(5, b"nothing"))
                while (answer := await peer.receive()) is not None and answer.stream_id not in (0, 5):
                    pass
            await eventually(lambda: not server.connections)
            await eventually(lambda: not parts()), name
            assert server._budget.used_bytes == 0
        assert not (tmp_path / "half").exists()


async def test_an_unauthenticated_peer_writes_nothing_to_the_disk(tmp_path: Path) -> None:
    async with folder(tmp_path) as (server, parts), raw_peer(server.uri, set_up=False) as peer:
        await peer.send(half(1, 10_000))
        seen: set[str] = set()
        for _ in range(300):
            with suppress(ConnectionError):
                await peer.send(more(1, bytes(10_000)))
            seen.update(parts())
        await asyncio.wait_for(refused_or_closed(peer), 10)
        assert not seen
        assert not parts()


async def refused_or_closed(peer: RawPeer) -> None:
    peer.writer.write_eof()
    with suppress(ConnectionError):
        while await peer.receive():
            pass


async def test_uploads_whose_connection_ends_between_two_fragments_leave_nothing(tmp_path: Path) -> None:
    async with folder(tmp_path) as (server, parts):
        for _ in range(5):
            async with raw_peer(server.uri) as peer:
                await peer.send(*[half(1, 10) + more(1, bytes(2 * MIB)), half(3, 10) + more(3, bytes(2 * MIB))])
            await eventually(lambda: not server.connections)
            await eventually(lambda: not server.work._tasks - server_tasks(server))
            await eventually(lambda: not parts())


def server_tasks(server: FileServer) -> set[Any]:
    """The server's own tasks, which run until it is closed."""
    return {task for task in server.work._tasks if task.get_coro().__name__ in ("_sweep", "_watch")}


async def test_fragments_of_unknown_streams_are_skipped() -> None:
    limits = Limits(max_reassembly_bytes=3 * MIB)
    async with serve(limits=limits) as server, raw_peer(server.uri) as peer:
        for _ in range(10):
            await peer.send(frame(1, 0x3E, 0x200, bytes(500_000)))
        await peer.send(stat(3, b"a"))
        assert (await receive(peer)).stream_id == 3
        assert server._budget.used_bytes == 0


async def test_what_came_with_a_channels_request_is_not_kept_once_it_is_stored(tmp_path: Path) -> None:
    async with folder(tmp_path) as (server, parts), raw_peer(server.uri) as peer:
        whole = channel(1, b"a", b'{"upload_id": "u"}')
        flags = (int.from_bytes(whole[7:9], "big") | FOLLOWS).to_bytes(2, "big")
        await peer.send(whole[:7] + flags + whole[9:], more(1, bytes(MIB)), more(1, bytes(MIB), flags=0))
        await eventually(
            lambda: any(part.stat().st_size == 2 * MIB for part in (tmp_path / ".rxfiles/parts").iterdir())
        )
        (connection,) = server._connections.values()
        handler = connection.stream(1)
        assert isinstance(handler, RequestChannelResponder)
        await eventually(
            lambda: (
                isinstance(kept := handler.remote_subscriber, UploadChannel)
                and not (kept._job._waiting or kept._job.held_bytes)
            )
        )
        assert len(parts()) == 1
