"""What peers can make a server hold, as the growth of a real process: no more than `Limits` says, whatever they do."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from pathlib import Path

import pytest
from reactivex import operators as ops

from rx_client import FileClient
from server import ChatData, DirectoryStore, Limits, serve
from shared import StorageFull
from tests.security.support import (
    MIB,
    ServerProcess,
    channel,
    download,
    needs_proc,
    reset,
    server_process,
    stat,
    upload,
)
from tests.support import (
    FOLLOWS,
    KEEPALIVE,
    NEXT,
    PAYLOAD,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RESPOND,
    RawPeer,
    frame,
    name_item,
    request,
    route_item,
    setup,
    transfer_item,
)

pytestmark = needs_proc

LARGE = 32 * MIB
MB = bytes(1_000_000)
LIMITS = Limits()
MEMORY = LIMITS.max_reassembly_bytes + LIMITS.max_unstored_bytes + LIMITS.max_unsent_bytes
FOLDER = LIMITS.max_spooling_bytes

Push = Callable[..., Awaitable[None]]
Attack = Callable[[int, Push], Awaitable[None]]


async def unknown_streams(_: int, push: Push) -> None:
    for number in range(100):
        await push(frame(2 * number + 1, PAYLOAD, NEXT | FOLLOWS, MB))


async def twenty_megabytes_of_fragments(_: int, push: Push) -> None:
    await push(upload(1, b"a", MB, flags=FOLLOWS), *[frame(1, PAYLOAD, NEXT | FOLLOWS, MB)] * 19)


async def fragments_on_many_streams(_: int, push: Push) -> None:
    for number in range(250):
        await push(upload(2 * number + 1, b"%d" % number, bytes(210_000), flags=FOLLOWS))


async def a_frame_that_never_ends(_: int, push: Push) -> None:
    await push(upload(1, b"a", bytes(15_000_000))[:-10])


async def another_frame_that_never_ends(_: int, push: Push) -> None:
    metadata = route_item("file.stat") + name_item(b"a")
    await push(request(1, REQUEST_RESPONSE, metadata, bytes(15_000_000))[:-10])


async def a_large_request_that_is_refused(_: int, push: Push) -> None:
    metadata = route_item("file.stat") + name_item(b"a")
    await push(request(1, REQUEST_RESPONSE, metadata, bytes(15_000_000)))


async def fragments_of_items(number: int, push: Push) -> None:
    ids = range(1, 21, 2)
    await push(*(channel(id_, b"%d-%d" % (number, id_), b'{"upload_id": "%d-%d"}' % (number, id_)) for id_ in ids))
    await push(*(frame(id_, PAYLOAD, NEXT | FOLLOWS, bytes(900_000)) for id_ in ids))


async def whole_files_that_are_not_read(_: int, push: Push) -> None:
    await push(download(1, b"large"), download(3, b"large"))


async def chunks_that_are_not_read(_: int, push: Push) -> None:
    metadata = route_item("file.download") + name_item(b"large") + transfer_item(item_bytes=960_000, digest="sha-256")
    await push(request(1, REQUEST_STREAM, metadata, n=0x7FFFFFFF))


async def small_files_that_are_not_read(_: int, push: Push) -> None:
    await push(*(download(id_, b"medium") for id_ in range(1, 101, 2)))


async def keepalives_that_are_not_read(_: int, push: Push) -> None:
    await push(*[frame(0, KEEPALIVE, RESPOND, bytes(16_000))] * 200)


ATTACKS: dict[Attack, tuple[int, bool]] = {
    unknown_streams: (2, True),
    twenty_megabytes_of_fragments: (20, True),
    fragments_on_many_streams: (4, True),
    a_frame_that_never_ends: (12, True),
    another_frame_that_never_ends: (20, True),
    a_large_request_that_is_refused: (12, True),
    fragments_of_items: (20, True),
    whole_files_that_are_not_read: (100, False),
    chunks_that_are_not_read: (200, False),
    small_files_that_are_not_read: (100, False),
    keepalives_that_are_not_read: (60, False),
}
"""Each with how many connections make it, and whether they read what the server sends."""


@asynccontextmanager
async def measured(server: ServerProcess) -> AsyncGenerator[Callable[[], int], None]:
    """Yields a function that says by how much the process has grown at the most."""
    status = Path(f"/proc/{server.process.pid}")
    before = server.rss
    (status / "clear_refs").write_text("5")  # resets the peak
    yield lambda: int((status / "status").read_text().split("VmHWM:")[1].split()[0]) * 1024 - before


async def drain(peer: RawPeer) -> None:
    with suppress(ConnectionError):
        while await peer.reader.read(65536):
            pass


async def attacked(server: ServerProcess, attack: Attack, *, may_be_full: bool = False) -> None:
    """Returns when the peers have sent all, or the server takes no more of it; they stay while an honest one asks."""
    count, reads = ATTACKS[attack]
    async with AsyncExitStack() as stack:

        async def one(number: int) -> None:
            peer = await RawPeer.connect(server.uri)
            stack.callback(reset, peer)
            if reads:
                reading = asyncio.ensure_future(drain(peer))
                stack.callback(reading.cancel)

            async def push(*frames: bytes) -> None:
                with suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(2):
                        await peer.send(*frames)

            await push(setup())
            await attack(number, push)

        await asyncio.gather(*map(one, range(count)))
        async with FileClient.connect(server.uri) as files:
            await files.upload("honest", b"x" * 100_000, deadline=20)
            assert await files.download("honest", deadline=20) == b"x" * 100_000
            with suppress(StorageFull) if may_be_full else nullcontext():
                await files.upload_from("chunks", bytes(2_000_000), deadline=20)


async def growth(attack: Attack, *arguments: str, may_be_full: bool = False) -> int:
    async with server_process(*arguments) as server:
        async with FileClient.connect(server.uri) as files:
            await files.upload_from("large", bytes(LARGE))
            await files.upload("medium", bytes(60_000))
            await files.download("medium")
        async with measured(server) as grown:
            await attacked(server, attack, may_be_full=may_be_full)
            return grown()


@pytest.mark.parametrize("attack", list(ATTACKS), ids=lambda attack: attack.__name__)
async def test_what_is_held_with_a_folder(attack: Attack, tmp_path: Path) -> None:
    assert await growth(attack, "--store", str(tmp_path)) < FOLDER


@pytest.mark.parametrize(
    "attack",
    [twenty_megabytes_of_fragments, another_frame_that_never_ends, chunks_that_are_not_read],
    ids=lambda attack: attack.__name__,
)
async def test_what_is_held_with_a_store_in_memory(attack: Attack) -> None:
    # Beside what is counted there are the connections, and what the allocator doesn't give back at once.
    assert await growth(attack) < MEMORY + 8 * MIB


async def test_what_arrives_for_a_store_in_memory_is_held_within_its_room() -> None:
    room = 100 * MIB
    limit = "--limit", f"max_store_bytes={room}"
    grown = await growth(twenty_megabytes_of_fragments, *limit, may_be_full=True)
    # A fragment counts there when all of it is here, so each connection has one more.
    assert grown < room - LARGE + ATTACKS[twenty_megabytes_of_fragments][0] * len(MB) + 8 * MIB


async def test_the_stated_bounds() -> None:
    assert (MEMORY, FOLDER) == (256 * MIB, 64 * MIB)
    spooling = LIMITS.of_spooling()
    assert spooling.max_reassembly_bytes + spooling.max_unstored_bytes + spooling.max_unsent_bytes == FOLDER


async def test_what_was_asked_for_is_held_no_longer_than_the_connection(tmp_path: Path) -> None:
    """What counts for a connection is given back when it ends, whatever waits for its peer."""
    async with server_process("--store", str(tmp_path)) as server:
        async with FileClient.connect(server.uri) as files:
            await files.upload_from("large", bytes(LARGE))
        for _ in range(3):
            async with AsyncExitStack() as stack:
                for _ in range(20):
                    peer = await RawPeer.connect(server.uri)
                    stack.callback(reset, peer)
                    await peer.send(setup(), download(1, b"large"), *(stat(id_, b"x") for id_ in range(3, 200, 2)))
                    await peer.send(request(201, REQUEST_STREAM, route_item("files"), n=100))
                await asyncio.sleep(0.1)
        async with FileClient.connect(server.uri) as files:
            # All the room is free again: an answer comes in fragments of the usual size.
            raw = await RawPeer.connect(server.uri)
            await raw.send(setup(), download(1, b"large"))
            first = await raw.receive()
            assert first is not None
            assert len(first.body) > 900_000
            await raw.close()


@pytest.mark.parametrize("store", ["memory", "folder"])
async def test_transfers_where_there_is_no_room_for_what_is_not_sent(store: str, tmp_path: Path) -> None:
    """Each connection has a little at a time, and gets all of it."""
    content = random.randbytes(2_000_000)
    data = ChatData() if store == "memory" else ChatData(DirectoryStore(tmp_path / "store"))
    async with serve(data=data, limits=Limits(max_unsent_bytes=1)) as server, FileClient.connect(server.uri) as files:
        await files.upload("a", content)
        await files.upload("small", content[:60_000])
        assert await files.download("a") == content
        assert await files.download("small") == content[:60_000]
        got = await files.download_chunks("a").pipe(ops.map(lambda chunk: bytes(chunk.data)), ops.to_list())
        assert b"".join(got) == content
        await files.download_to("a", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content
        small = await asyncio.gather(*(files.download("small") for _ in range(50)))
        assert set(small) == {content[:60_000]}
        assert await files.list_files().pipe(ops.count()) == 2
        assert server._room.used_bytes == 0
