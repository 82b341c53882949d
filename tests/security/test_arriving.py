"""What has arrived of a whole file counts in a memory store's room, not only once all of it is here."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest

from rx_client import FileClient
from server import FileServer, Limits, serve
from server.stores.memory import MemoryStore
from shared.errors import StorageFull, TooLarge
from tests.security.support import receive, reset, stat, upload
from tests.support import CANCEL, ERROR, FOLLOWS, NEXT, PAYLOAD, RawPeer, eventually, frame, raw_peer, setup

ROOM = 1_000_000
HALF = bytes(450_000)


@asynccontextmanager
async def small_server() -> AsyncGenerator[tuple[FileServer, MemoryStore, RawPeer]]:
    async with serve(limits=Limits(max_store_bytes=ROOM)) as server, raw_peer(server.uri) as peer:
        store = server.data.store
        assert isinstance(store, MemoryStore)
        yield server, store, peer
        assert not store._catalog.reserved
        assert not store._catalog._replacing


def more(stream_id: int, content: bytes = HALF, *, last: bool = False) -> bytes:
    return frame(stream_id, PAYLOAD, NEXT | (0 if last else FOLLOWS), content)


async def asked(peer: RawPeer, stream_id: int) -> None:
    """Returns when all that was sent before has been handled."""
    await peer.send(stat(stream_id, b"no such file"))
    assert (await receive(peer)).error[1].startswith("not_found: ")


async def reserved(store: MemoryStore, nbytes: int) -> None:
    await eventually(lambda: nbytes <= store._catalog.reserved < nbytes + 3000)


async def test_fragments_are_refused_at_once_where_the_store_is_full() -> None:
    async with small_server() as (server, _, peer):
        await peer.send(upload(1, b"a", HALF, flags=FOLLOWS), upload(3, b"b", HALF, flags=FOLLOWS))
        await peer.send(upload(5, b"c", HALF, flags=FOLLOWS))
        answer = await receive(peer)
        assert (answer.stream_id, answer.error[1].partition(":")[0]) == (5, "storage_full")
        held = server._budget.used_bytes
        await peer.send(*[more(5)] * 10)  # dropped
        await asked(peer, 7)
        assert server._budget.used_bytes == held
        async with FileClient.connect(server.uri) as files:
            with pytest.raises(StorageFull):
                await files.upload_from("d", HALF)
            with pytest.raises(StorageFull):
                await files.upload("d", HALF)
        await peer.send(more(1, b"", last=True), more(3, b"", last=True))
        assert [(await receive(peer)).kind for _ in "ab"] == [PAYLOAD, PAYLOAD]
        assert server.data.files == {"a": HALF, "b": HALF}


@pytest.mark.parametrize("end", ["cancel", "error", "reset", "stopped", "too large", "storage full"])
async def test_what_arrives_no_more_gives_its_room_back(end: str) -> None:
    async with small_server() as (server, store, peer):
        other = await RawPeer.connect(server.uri)
        await other.send(setup(), upload(1, b"a", HALF, flags=FOLLOWS))
        await reserved(store, len(HALF))
        match end:
            case "cancel":
                await other.send(frame(1, CANCEL))
            case "error":
                await other.send(frame(1, ERROR, 0, bytes([0, 0, 2, 1]) + b"why"))
            case "reset":
                reset(other)
            case "stopped":
                for connection in server._connections.values():
                    connection.reassembler.evict()
            case "too large":
                await other.send(more(1), more(1))
                assert (await receive(other)).error[1].startswith("too_large: ")
            case _:
                await peer.send(upload(1, b"b", HALF, flags=FOLLOWS))
                await reserved(store, 2 * len(HALF))
                await other.send(more(1))
                assert (await receive(other)).error[1].startswith("storage_full: ")
                await peer.send(frame(1, CANCEL))
        await eventually(lambda: not store._catalog.reserved)
        await other.close()


async def test_what_an_overwrite_frees_is_used_once() -> None:
    async with small_server() as (server, _, peer):
        server.data.files["a"] = bytes(900_000)
        await peer.send(
            upload(1, b"a", HALF, flags=FOLLOWS), more(1, b"x" * 400_000), upload(3, b"a", HALF, flags=FOLLOWS)
        )
        answer = await receive(peer)
        assert (answer.stream_id, answer.error[1].partition(":")[0]) == (3, "storage_full")
        async with FileClient.connect(server.uri) as files:
            # What is to replace it keeps the room of a file that is gone.
            await files.delete("a")
            with pytest.raises(StorageFull):
                await files.upload("b", HALF)
            await peer.send(more(1, b"", last=True))
            assert (await receive(peer)).kind == PAYLOAD
            await peer.send(upload(5, b"a", HALF, flags=FOLLOWS))
            await asked(peer, 7)
            await peer.send(upload(9, b"a", HALF, flags=FOLLOWS))
            assert (await receive(peer)).stream_id == 9
            await peer.send(frame(5, CANCEL), upload(11, b"a", HALF, flags=FOLLOWS), more(11, b"", last=True))
            assert (await receive(peer)).kind == PAYLOAD
        assert server.data.files == {"a": HALF}


async def test_the_room_of_an_unfinished_upload_is_taken_for_what_arrives() -> None:
    async with small_server() as (_, store, peer):
        begun = await store.begin("old", "b", size=None, algorithm=None)
        await begun.append([bytes(800_000)])
        await begun.suspend()
        await peer.send(upload(1, b"a", HALF, flags=FOLLOWS), more(1, b"", last=True))
        assert (await receive(peer)).kind == PAYLOAD


async def test_racing_reservations_never_count_too_little() -> None:
    """Whatever comes: what is there and what is reserved is within the limit, and exactly what a simple model says."""
    chance = random.Random(7)
    store = MemoryStore({}, 100_000)
    catalog, open_ = store._catalog, []
    for _ in range(3000):
        name = chance.choice("abc")
        match chance.randrange(6):
            case 0:
                open_.append((name, store.reserve(name), [0]))
            case 1 | 2 if open_:
                name, reservation, nbytes = chance.choice(open_)
                more = chance.randrange(20_000)
                with suppress(StorageFull, TooLarge):
                    await reservation.grow(more)
                    nbytes[0] += more
            case 3 if open_:
                name, reservation, nbytes = open_.pop(chance.randrange(len(open_)))
                reservation.put(bytes(nbytes[0])) if nbytes[0] and chance.random() < 0.7 else reservation.release()
            case 4:
                with suppress(StorageFull):
                    await store.put(name, bytes(chance.randrange(30_000)))
            case 5 if name in store._files:
                await store.delete(name)
        assert catalog.used + catalog.reserved <= 100_000
        files = {name: 1025 + len(content) for name, content in store._files.items()}
        assert catalog.used == sum(files.values())
        total = 0
        for name in "abc":
            costs = [1025 + nbytes[0] for named, reservation, nbytes in open_ if named == name and nbytes[0]]
            least = max(files.get(name, 0), max(costs, default=0))
            total += min((max(files.get(name, 0), one) + sum(costs) - one for one in costs), default=least)
        assert catalog.used + catalog.reserved >= total
    for _, reservation, _ in open_:
        reservation.release()
    assert not catalog.reserved


async def test_a_reservation_that_is_released_while_it_waits_reserves_nothing() -> None:
    store = MemoryStore({str(number): b"" for number in range(2000)}, 10_000_000)
    reservation = store.reserve("a")
    assert reservation is not None
    growing = asyncio.ensure_future(reservation.grow(1000))
    await asyncio.sleep(0)
    assert not growing.done()  # it counts the files
    reservation.release()
    await growing
    assert not store._catalog.reserved
