"""The transfers' tests once more, over a transport that isn't TCP: what they need of one is its interface alone.

Those that look at bytes on the wire, or break a TCP connection, stay with TCP.
"""

import asyncio
import inspect
import logging
import os
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from reactivex import Observable
from reactivex import operators as ops

from rx_client import Chunk, Completed, FileClient, Started
from rx_client.transfers.content import FileContent
from server import ChatData, FileServer, serve
from shared import ConnectionLost, IntegrityError
from tests.support import eventually
from tests.transfers import test_download, test_edges, test_upload
from tests.transfers.helpers import DIALS, WatchedStore, connected, content, make_store, serving
from tests.transport.memory import MemoryTransport, dial_memory


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    """One of them is enough here: the store isn't the transport's."""
    return make_store("directory", tmp_path)


@contextmanager
def in_memory(server: FileServer) -> Generator[None, None, None]:
    """Lets clients reach the server through memory."""
    uri = server.uri
    DIALS[uri] = dial_memory(server)
    try:
        yield
    finally:
        del DIALS[uri]


@pytest.fixture
async def server(store: WatchedStore) -> AsyncGenerator[FileServer, None]:
    async with serving(store) as server:
        with in_memory(server):
            yield server


@pytest.fixture
async def files(server: FileServer) -> AsyncGenerator[FileClient, None]:
    async with connected(server.uri) as files:
        assert {type(transport) for transport in server._connections} == {MemoryTransport}
        yield files


async def test_a_source_that_is_slow_to_close_does_not_fail_an_upload_that_is_complete(
    store: WatchedStore, files: FileClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may have published the file before the client's is closed."""
    path, close = tmp_path / "source", FileContent.close

    def slow_close(opened: FileContent) -> None:
        time.sleep(0.2)
        close(opened)

    monkeypatch.setattr(FileContent, "close", slow_close)
    path.write_bytes(b"content")
    assert isinstance(await files.upload_from("name", path), Completed)
    assert await store.content("name") == b"content"


async def test_a_file_that_grows_while_it_is_uploaded_is_sent_as_it_was(
    store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    """As the file lane does it."""
    path, data = tmp_path / "source", content(100_000)
    path.write_bytes(data)
    upload = files.upload_from("name", path, chunk_size=1000, window=1)
    grown = ops.do_action(lambda event: path.write_bytes(data + b"more") if isinstance(event, Started) else None)
    completed = await upload.pipe(grown)
    assert isinstance(completed, Completed)
    assert completed.info.size == len(data)
    assert await store.content("name") == data


async def test_a_file_that_becomes_shorter_while_it_is_uploaded_publishes_nothing(
    store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    path = tmp_path / "source"
    path.write_bytes(content(100_000))
    upload = files.upload_from("name", path, chunk_size=1000, window=1)
    cut = ops.do_action(lambda event: os.truncate(path, 10_000) if isinstance(event, Started) else None)
    with pytest.raises(IntegrityError, match="became shorter"):
        await upload.pipe(cut)
    assert await store.names() == []


async def test_a_closed_server_has_closed_connections_that_another_listener_accepted(store: WatchedStore) -> None:
    async with serve(data=ChatData(store)) as server:
        with in_memory(server):
            async with connected(server.uri) as files:
                assert await files.list_files().pipe(ops.to_list()) == []
                (transport,) = server._connections
                await server.close()
                assert transport.is_lost
                assert server.connections == 0


async def test_whole_files_come_in_fragments(store: WatchedStore, files: FileClient) -> None:
    whole = content(5_000_000)
    assert (await files.upload("name", whole)).size == len(whole)
    assert await store.content("name") == whole
    assert await files.download("name") == whole


async def test_a_lost_connection_is_made_again(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    await files.upload("name", b"content")
    store.before_read.close()
    downloading = asyncio.ensure_future(_last(files.download_chunks("name")))
    await eventually(lambda: store.before_read.waiting)
    (transport,) = server._connections
    transport.abort()
    with pytest.raises(ConnectionLost):
        await downloading
    store.before_read.open()
    assert await files.download("name") == b"content"
    assert transport not in server._connections


async def _last(chunks: Observable[Chunk]) -> Chunk:
    return await chunks


@pytest.mark.parametrize("message", [b"", b"short", b"\x00\x00\x00\x01\xf4\x00", bytes(6)])
async def test_a_message_that_is_no_frame_ends_the_connection(
    server: FileServer, files: FileClient, message: bytes
) -> None:
    await files.upload("name", b"content")
    (transport,) = server._connections
    assert isinstance(transport, MemoryTransport)
    transport._arrive(message)
    await eventually(lambda: transport.is_lost)
    assert (transport.failure or "").startswith("invalid_frame: ")
    assert await files.download("name") == b"content", "over another connection"


@pytest.mark.parametrize("broken", ["_take_in", "_hand_over"])
@pytest.mark.parametrize("side", ["server", "client"])
async def test_a_connection_that_fails_to_receive_or_send_ends(
    server: FileServer, store: WatchedStore, files: FileClient, side: str, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It isn't left open and deaf, or mute."""

    class Fault(Exception):
        pass

    def fail(*_: object) -> None:
        raise Fault

    await files.upload("name", b"content")
    (at_server,) = server._connections
    assert isinstance(at_server, MemoryTransport)
    at_client = at_server._other
    assert at_client is not None
    store.before_read.close()
    downloading = asyncio.ensure_future(_last(files.download_chunks("name")))
    await eventually(lambda: store.before_read.waiting)
    setattr(at_server if side == "server" else at_client, broken, fail)
    with pytest.raises(ConnectionLost):
        await asyncio.gather(downloading, files.stat("name"))  # something arrives and is sent, at either end
    with pytest.raises(ConnectionLost):
        await downloading
    await eventually(lambda: at_server.is_lost and at_client.is_lost)
    assert at_server not in server._connections
    store.before_read.open()
    assert await files.download("name") == b"content", "over another connection"
    (logged,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged.name == "shared.engine"
    assert logged.exc_info is not None
    assert logged.exc_info[0] is Fault


def _collect(module: ModuleType) -> None:
    kind = module.__name__.rpartition("_")[2]
    for name, test in vars(module).items():
        if name.startswith("test_") and inspect.isfunction(test) and "files" in inspect.signature(test).parameters:
            globals()[f"test_{kind}_{name.removeprefix('test_')}"] = test


for _module in (test_upload, test_download, test_edges):
    _collect(_module)
