"""The FastAPI example over HTTP, with a real uvicorn: its answers, its back-pressure, and peers that leave."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import uvicorn

from rx_client.examples import fastapi_app
from rx_client.testing import FakeFileClient
from server import FileServer, MemoryStore
from shared import ServerFull, StorageFull
from tests.support import PATIENCE, eventually
from tests.transfers.helpers import WatchedStore, content, serving

LARGE = bytes(64 * 1024 * 1024)
MOST = 24 * 1024 * 1024
"""Far more than a window and what the kernel holds for three sockets, and far less than the file."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Peer:
    """An HTTP peer that reads and writes when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def begin(self, method: str, name: str, length: int | None = None) -> None:
        sized = "" if length is None else f"content-length: {length}\r\n"
        self.writer.write(f"{method} /files/{name} HTTP/1.1\r\nhost: test\r\n{sized}\r\n".encode())

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        return int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:-1])

    async def ask(self, method: str, name: str, body: bytes | None = None) -> Answer:
        self.begin(method, name, None if body is None else len(body))
        self.writer.write(body or b"")
        status, headers = await self.head()
        return Answer(status, headers, await self.reader.readexactly(int(headers.get("content-length", 0))))


@asynccontextmanager
async def http(uri: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[int, None]:
    """Runs the application with the file server at `uri`; its HTTP port."""
    monkeypatch.setenv("RXFILES_URI", uri)
    server = uvicorn.Server(uvicorn.Config(fastapi_app.app, port=0, log_config=None))
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started or serving.done())
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@asynccontextmanager
async def connected(port: int) -> AsyncGenerator[Peer, None]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore(MemoryStore({"large": LARGE}))


@pytest.fixture
async def server(store: WatchedStore) -> AsyncGenerator[FileServer, None]:
    async with serving(store) as server:
        yield server


@pytest.fixture
async def peer(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Peer, None]:
    async with http(server.uri, monkeypatch) as port, connected(port) as peer:
        yield peer


async def test_files_go_up_and_down(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    data = content(1_000_000)
    up = await peer.ask("PUT", "a/b.bin", data)
    assert up.status == 201
    info = json.loads(up.body)
    assert (info["name"], info["size"]) == ("a/b.bin", len(data))
    down = await peer.ask("GET", "a/b.bin")
    assert (down.status, down.headers["etag"], down.body) == (200, f'"{info["etag"]}"', data)
    assert (await peer.ask("DELETE", "a/b.bin")).status == 204
    missing = await peer.ask("GET", "a/b.bin")
    assert (missing.status, json.loads(missing.body)) == (404, {"detail": "no file named 'a/b.bin'"})
    assert (await peer.ask("GET", "%00")).status == 400
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_peer_that_does_not_read_holds_the_file_server_back(
    peer: Peer, server: FileServer, store: WatchedStore
) -> None:
    peer.begin("GET", "large")
    assert (await peer.head())[0] == 200
    await eventually(lambda: store.produced)
    before = -1
    while before != store.produced:  # until it has come to a standstill
        before = store.produced
        await asyncio.sleep(0.2)
    assert before < MOST
    assert server.work.active == 1
    peer.writer.close()
    await eventually(lambda: server.work.active == 0)
    assert store.readers == 0
    assert store.produced < MOST


async def test_a_slow_store_holds_the_uploading_peer_back(
    peer: Peer, server: FileServer, store: WatchedStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.before_append.close()
    peer.begin("PUT", "up", len(LARGE))
    sent = 0

    async def send() -> None:
        nonlocal sent
        for at in range(0, len(LARGE), 65536):
            peer.writer.write(LARGE[at : at + 65536])
            await peer.writer.drain()
            sent += 65536

    sending = asyncio.create_task(send())
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.2)
    assert 0 < sent < MOST
    store.before_append.open()
    await sending
    assert (await peer.head())[0] == 201
    assert (await store.stat("up")).size == len(LARGE)
    await peer.reader.read(1000)

    store.before_append.close()
    peer.begin("PUT", "left", len(LARGE))
    peer.writer.write(LARGE[:1_000_000])
    await eventually(lambda: store.before_append.waiting)
    peer.writer.close()
    await eventually(lambda: server.work.active == 0)
    store.before_append.open()
    assert await store.names() == ["large", "up"]
    await eventually(lambda: not store.inner._parts)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_its_own_tests_need_no_file_server(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an application with dependencies is tested."""
    fake = FakeFileClient({"a": content(1_000_000)})
    monkeypatch.setitem(fastapi_app.app.dependency_overrides, fastapi_app.file_client, lambda: fake)
    async with http(server.uri, monkeypatch) as port:
        async with connected(port) as peer:
            fake.refuse(StorageFull("no room"))
            assert (await peer.ask("PUT", "b", b"content")).status == 507
            fake.refuse(ServerFull("not now"))
            assert (await peer.ask("GET", "a")).status == 503
            fake.lose_after(300_000)
            peer.begin("GET", "a")
            assert (await peer.head())[0] == 200
            with pytest.raises(asyncio.IncompleteReadError) as cut:
                await peer.reader.readexactly(1_000_000)
            assert len(cut.value.partial) <= 300_000, "the peer can see that the answer isn't whole"
        fake.stall(300_000)
        async with connected(port) as peer:
            peer.begin("GET", "a")
            await fake.stalled()
        await eventually(lambda: not fake.active)
