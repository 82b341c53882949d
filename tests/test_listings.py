"""Listings on the wire: a page at a time, when it is requested, and in bounded memory."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from reactivex import operators as ops

from rx_client import FileClient
from server import ChatData, MemoryStore, Page, Users, serve
from server.stores.base import PAGE_FILES
from tests.security.support import MIB, ServerProcess, needs_proc, receive, server_process, upload, user_line
from tests.support import REQUEST_STREAM, RawPeer, raw_peer, request, request_n, route_item, setup


class CountingStore(MemoryStore):
    """Counts the pages that it is asked for."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(dict.fromkeys(names, b""))
        self.asked: list[tuple[str, str]] = []

    async def list(self, prefix: str = "", after: str = "", limit: int = PAGE_FILES) -> Page:
        self.asked.append((prefix, after))
        return await super().list(prefix, after, limit)


def listing(stream_id: int, n: int) -> bytes:
    return request(stream_id, REQUEST_STREAM, route_item("files"), n=n)


async def test_a_page_is_fetched_when_it_is_requested() -> None:
    store = CountingStore([f"{number:05}" for number in range(10 * PAGE_FILES)])
    async with serve(data=ChatData(store)) as server, raw_peer(server.uri) as peer:
        await peer.send(listing(1, 1))
        await receive(peer)
        assert store.asked == [("", "")]
        await peer.send(request_n(1, PAGE_FILES - 2))
        for _ in range(PAGE_FILES - 2):
            await receive(peer)
        await peer.silence(0.05)
        assert store.asked == [("", "")]
        await peer.send(request_n(1, 2))
        assert [(await receive(peer)).data for _ in range(2)] == [b"%05d" % (PAGE_FILES - 1), b"%05d" % PAGE_FILES]
        assert store.asked == [("", ""), ("", f"{PAGE_FILES - 1:05}")]


async def test_users_list_what_they_may_read_and_the_store_nothing_else() -> None:
    names = sorted(f"{folder}/{number}" for folder in ("alice", "bob", "public", "secret") for number in range(100))
    store = CountingStore(names)
    users = Users(user_line("alice", "password", "r@public/ w@secret/ rwd@alice/ r@alice/1 r@bob/5"))
    allowed = [name for name in names if name.startswith(("alice/", "bob/5", "public/"))]
    async with (
        serve(data=ChatData(store), users=users) as server,
        FileClient.connect(server.uri, auth=("alice", "password")) as files,
    ):
        assert await files.list_files().pipe(ops.to_list()) == allowed
        assert {prefix for prefix, _ in store.asked} == {"alice/", "bob/5", "public/"}
        for prefix in ("alice/1", "b", "bob/55", "pub", "secret/", "x", "public/10"):
            expected = [name for name in allowed if name.startswith(prefix)]
            assert await files.list_files(prefix=prefix).pipe(ops.to_list()) == expected


async def test_a_listing_goes_on_while_files_change() -> None:
    async with serve() as server, FileClient.connect(server.uri) as files:
        server.data.files.update({f"{number:04}": b"" for number in range(1000)})
        found: list[str] = []

        def change(name: str) -> None:
            found.append(name)
            server.data.files.pop(f"{len(found) * 2 + 301:04}", None)
            server.data.files[f"{name}+"] = b""

        await files.list_files(request_n=3).pipe(ops.do_action(change), ops.last())
        stays = {f"{number:04}" for number in range(0, 1000, 2)}
        assert found == sorted(set(found))
        assert stays <= set(found)


@asynccontextmanager
async def _memory(tmp_path: Path) -> AsyncGenerator[ServerProcess, None]:
    async with server_process() as server, raw_peer(server.uri) as peer:
        for start in range(0, 20_000, 500):
            names = [b"file-%05d" % number for number in range(start, start + 500)]
            await peer.send(*(upload(2 * (start + at) + 1, name, b"") for at, name in enumerate(names)))
            for _ in names:
                await receive(peer)
        yield server


@asynccontextmanager
async def _folder(tmp_path: Path) -> AsyncGenerator[ServerProcess, None]:
    for number in range(20_000):
        (tmp_path / f"file-{number:05}").touch()
    async with server_process("--store", str(tmp_path)) as server:
        yield server


@needs_proc
@pytest.mark.parametrize("n", [1, 0x7FFFFFFF])
@pytest.mark.parametrize("serving", [_memory, _folder])
async def test_listings_that_are_not_read_hold_next_to_nothing(
    tmp_path: Path, serving: Callable[[Path], AbstractAsyncContextManager[ServerProcess]], n: int
) -> None:
    async with serving(tmp_path) as server:
        async with raw_peer(server.uri) as peer:
            await peer.send(listing(1, 1))
            await receive(peer)
        before = server.rss
        peers = [await RawPeer.connect(server.uri) for _ in range(20)]
        for peer in peers:
            await peer.send(setup(), *(listing(stream_id, n) for stream_id in range(1, 21, 2)))
        for peer in peers:
            for _ in range(10):
                await receive(peer)  # each has begun, or waits for the others of its connection
        assert server.rss - before < 16 * MIB
        for peer in peers:
            await peer.close()
        await asyncio.sleep(0.2)
        async with raw_peer(server.uri) as peer:
            await peer.send(listing(1, 1))
            await receive(peer)
        assert server.rss - before < 16 * MIB
