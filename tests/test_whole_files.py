"""The tutorial's routes with a directory store: files of any size are transferred without being held in memory."""

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from reactivex import operators as ops

from rx_client import FileClient
from server import ChatData, DirectoryStore, FileServer, Limits, Users, serve
from shared import NotFound, TooLarge
from tests.support import (
    CANCEL,
    ERROR,
    FOLLOWS,
    NEXT,
    PAYLOAD,
    REQUEST_RESPONSE,
    eventually,
    frame,
    name_item,
    payload,
    raw_peer,
    request,
    route_item,
    server_stream_ids,
)

MIB = 1024 * 1024
LARGE = os.urandom(MIB) * 20


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def server(folder: Path) -> AsyncGenerator[FileServer, None]:
    # Far less than the files' size: a file held in memory would be refused.
    limits = Limits(max_request_bytes=3 * MIB, max_connection_bytes=3 * MIB, max_file_bytes=30 * MIB)
    data = ChatData(DirectoryStore(folder, max_file_bytes=limits.max_file_bytes))
    async with serve(data=data, limits=limits) as server:
        yield server
        await eventually(lambda: not server.work.active)
        await eventually(lambda: not server_stream_ids(server))
        await eventually(lambda: not _parts(folder))


def _parts(folder: Path) -> list[str]:
    return os.listdir(folder / ".rxfiles" / "parts")


def _fragment(data: bytes, *, follows: bool) -> bytes:
    flag, body = payload(None, data)
    return frame(1, PAYLOAD, flag | NEXT | (FOLLOWS if follows else 0), body)


@pytest.mark.parametrize("size", [0, 1, 999_980, 1_000_000, 2 * MIB, len(LARGE)])
async def test_whole_files_go_both_ways(server: FileServer, folder: Path, size: int) -> None:
    content = LARGE[:size]
    async with FileClient.connect(server.uri) as files:
        await files.upload("a.bin", content)
        assert (folder / "a.bin").read_bytes() == content
        assert await files.download("a.bin") == content
        assert (await files.stat("a.bin")).size == size


async def test_concurrent_uploads_and_downloads(server: FileServer) -> None:
    async with FileClient.connect(server.uri) as files:
        uploads = [asyncio.ensure_future(_value(files.upload(f"{n}", LARGE[n:]))) for n in range(4)]
        await asyncio.gather(*uploads)
        downloads = [asyncio.ensure_future(_value(files.download(f"{n}"))) for n in range(4)]
        assert await asyncio.gather(*downloads) == [LARGE[n:] for n in range(4)]
        assert await files.list_files().pipe(ops.to_list()) == ["0", "1", "2", "3"]


async def _value(observable: object) -> object:
    return await observable  # type: ignore[misc]


async def test_fragments_of_any_size_are_joined_on_the_disk(server: FileServer, folder: Path) -> None:
    metadata = route_item("file.upload") + name_item(b"pieces")
    async with raw_peer(server.uri) as peer:
        await peer.send(request(1, REQUEST_RESPONSE, metadata[:20], flags=FOLLOWS))
        flag, body = payload(metadata[20:], b"0")
        await peer.send(frame(1, PAYLOAD, flag | NEXT | FOLLOWS, body))
        for number in range(1, 3000):
            peer.writer.write(_fragment(b"%d," % number, follows=True))
        await peer.send(_fragment(b"", follows=True), _fragment(b"end", follows=False))
        answer = await peer.receive()
        assert answer is not None
        assert answer.metadata == name_item(b"pieces")
    assert (folder / "pieces").read_bytes() == b"0" + b"".join(b"%d," % number for number in range(1, 3000)) + b"end"


async def test_a_cancelled_upload_leaves_nothing(server: FileServer, folder: Path) -> None:
    async with raw_peer(server.uri) as peer:
        metadata = route_item("file.upload") + name_item(b"a")
        await peer.send(request(1, REQUEST_RESPONSE, metadata, LARGE[:MIB], flags=FOLLOWS))
        await peer.send(*[_fragment(LARGE[:MIB], follows=True)] * 4)
        await eventually(lambda: _parts(folder))
        await peer.send(frame(1, CANCEL), _fragment(b"late", follows=False))
        await eventually(lambda: not _parts(folder))
        assert not (folder / "a").exists()


async def test_an_upload_whose_connection_dies_leaves_nothing(server: FileServer, folder: Path) -> None:
    async with raw_peer(server.uri) as peer:
        metadata = route_item("file.upload") + name_item(b"a")
        await peer.send(request(1, REQUEST_RESPONSE, metadata, LARGE[:MIB], flags=FOLLOWS))
        await peer.send(*[_fragment(LARGE[:MIB], follows=True)] * 4)
        await eventually(lambda: _parts(folder))
    await eventually(lambda: not _parts(folder))
    assert not (folder / "a").exists()


async def test_a_disposed_download_stops_and_closes_its_file(server: FileServer) -> None:
    async with FileClient.connect(server.uri) as files:
        await files.upload("a", LARGE)
        for _ in range(10):
            subscription = files.download("a").subscribe()
            await eventually(lambda: server.work.active)
            subscription.dispose()
            await eventually(lambda: not server.work.active)
        assert server.work.cancelled
        store = server.data.store
        assert isinstance(store, DirectoryStore)
        await eventually(lambda: not store._readers)


async def test_a_cancel_at_any_moment_closes_the_file(server: FileServer) -> None:
    """The CANCEL may also come when the file is open and the task that sends it hasn't started."""
    store = server.data.store
    assert isinstance(store, DirectoryStore)
    await store.put("a", LARGE[:MIB])
    asked = route_item("file.download") + name_item(b"a")
    async with raw_peer(server.uri) as peer:

        async def take() -> None:
            while await peer.reader.read(MIB):
                pass

        taking = asyncio.create_task(take())
        for number in range(500):
            await peer.send(request(2 * number + 1, REQUEST_RESPONSE, asked))
            for _ in range(number % 50):
                await asyncio.sleep(0)
            await peer.send(frame(2 * number + 1, CANCEL))
        await eventually(lambda: server.work.started == 500 and not server.work.active)
        await eventually(lambda: not store._readers)
    await taking


async def test_a_file_over_the_limit_is_refused_and_the_connection_stays_open(server: FileServer, folder: Path) -> None:
    async with FileClient.connect(server.uri) as files:
        with pytest.raises(TooLarge):
            await files.upload("a", LARGE + LARGE)
        await files.upload("b", b"small")
        with pytest.raises(NotFound):
            await files.download("a")


async def test_other_requests_than_uploads_are_limited(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        for route in ("file.download", "nope"):
            stream_id = 1 if route == "nope" else 3
            metadata = route_item(route) + name_item(b"a")
            await peer.send(request(stream_id, REQUEST_RESPONSE, metadata, LARGE[:MIB], flags=FOLLOWS))
            await peer.send(frame(stream_id, PAYLOAD, NEXT | FOLLOWS, LARGE[: 4 * MIB]))
            error = await peer.receive()
            assert error is not None
            assert (error.stream_id, error.kind) == (stream_id, ERROR)
            assert error.error[1].startswith("too_large: ")


async def test_an_upload_without_the_right_writes_nothing_to_the_disk(folder: Path) -> None:
    from argon2 import PasswordHasher

    users = Users(f"reader:{PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash('x')}:r@")
    limits = Limits(max_request_bytes=3 * MIB)
    async with (
        serve(data=ChatData(DirectoryStore(folder)), users=users, limits=limits) as server,
        FileClient.connect(server.uri, auth=("reader", "x")) as files,
    ):
        with pytest.raises(TooLarge):
            await files.upload("a", LARGE)
        assert not _parts(folder)
