"""What a connection has used is freed when it ends, by reference counts alone: a collection may come much later."""

import asyncio
import gc
import ssl
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trustme
from argon2 import PasswordHasher
from reactivex import operators as ops
from rsocket.payload import Payload

from rx_client import FileClient
from server import ChatData, DirectoryStore, FileServer, Users, serve, server_tls
from shared.errors import NotFound
from shared.protocol.metadata import build_simple
from tests.security.support import channel, chunks, download, reset, setup_frame, stat, upload
from tests.security.test_tls import pem_files
from tests.support import (
    FOLLOWS,
    METADATA_PUSH,
    NEXT,
    PATIENCE,
    PAYLOAD,
    REQUEST_RESPONSE,
    RawPeer,
    eventually,
    frame,
    request,
    route_item,
    setup,
    transfer_item,
)


@pytest.fixture(autouse=True)
def no_collector_of_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server collects garbage now and then where `gc.freeze` was called, as in the process of the tests."""
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)


LARGE, SMALL = 3_000_000, 60_000
OURS = ("server.", "shared.", "rsocket.")
# Where the client is in this process, too: RxPY's observers are reference cycles, which keep it and its requests.
OF_CLIENTS = ("server.", "shared.transport.tcp.TcpTransport", "shared.transport.decoder.")

HALF = b"".join(upload(stream_id, b"half", b"x" * 10_000, flags=FOLLOWS) for stream_id in range(1, 41, 2))
SENT: dict[str, list[bytes]] = {
    "nothing": [],
    "a setup": [setup()],
    "no setup": [stat(1, b"large")],
    "no frames": [setup(), b"\0\0\1\0"],
    "answers": [setup(), *(stat(stream_id, b"large") for stream_id in range(1, 41, 2))],
    "errors": [setup(), *(stat(stream_id, b"missing") for stream_id in range(1, 41, 2))],
    "unknown routes": [setup(), *(request(id_, REQUEST_RESPONSE, route_item("nowhere")) for id_ in range(1, 41, 2))],
    "halves of uploads": [setup(), HALF],
    "halves, then nonsense": [setup(), HALF, frame(1, METADATA_PUSH)],
    "small files": [setup(), *(download(stream_id, b"small") for stream_id in range(1, 1001, 2))],
    "whole files": [setup(), *(download(stream_id, b"large") for stream_id in range(1, 41, 2))],
    "chunks": [setup(), *(chunks(stream_id, b"large", n=2) for stream_id in range(1, 41, 2))],
    "listings": [setup(), *(request(id_, 0x06, route_item("files"), n=1) for id_ in range(1, 41, 2))],
    "uploads in chunks": [
        setup(),
        *(channel(id_, b"c%d" % id_, b'{"upload_id": "u%d"}' % id_) for id_ in range(1, 41, 2)),
        *(frame(id_, PAYLOAD, NEXT, b"x" * 10_000) for id_ in range(1, 41, 2)),
    ],
    "uploads that are refused": [setup(), *(channel(id_, b"a", b"[]") for id_ in range(1, 41, 2))],
    "uploads of too much": [
        setup(),
        channel(1, b"c", b'{"upload_id": "u", "size": 1}'),
        *(frame(1, PAYLOAD, NEXT, transfer_item()) for _ in range(20)),
    ],
}


def objects(of: tuple[str, ...]) -> Counter[str]:
    """The number of objects of these modules' types, by type."""
    kinds = (type(each) for each in gc.get_objects())
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
    return Counter(name for name in names if name.startswith(of))


async def leaves_nothing(
    what: str, server: FileServer, action: Callable[[], Awaitable[None]], of: tuple[str, ...] = OURS
) -> None:
    """Asserts that there are no more objects after the action than before, though garbage isn't collected.

    An action that makes a reference cycle makes one each time. On a busy machine it may leave something else now and
    then: a folder remembers its unfinished uploads, and more of them may have begun than the time before. So one of
    three actions has to leave nothing.
    """
    for left in reversed(range(3)):
        gc.disable()
        try:
            before = objects(of)
            await action()
            await eventually(lambda: not server.connections and not server.work.active)
            try:
                await eventually(lambda before=before: not objects(of) - before, 5)
                return
            except AssertionError:
                if not left:
                    raise AssertionError(f"{what} left behind: {objects(of) - before}") from None
        finally:
            gc.enable()


@asynccontextmanager
async def a_server(folder: Path | None, tls: ssl.SSLContext | None = None) -> AsyncGenerator[FileServer, None]:
    data = ChatData() if folder is None else ChatData(files=DirectoryStore(folder))
    async with serve(data=data, tls=tls) as server:
        await data.store.put("large", bytes(LARGE))
        await data.store.put("small", bytes(SMALL))
        yield server


async def one(server: FileServer, sent: list[bytes]) -> None:
    peer = await RawPeer.connect(server.uri)
    await eventually(lambda: server.connections)
    await peer.send(*sent)
    await asyncio.sleep(0.05)
    reset(peer)
    await eventually(lambda: not server.connections and not server.work.active)


@pytest.mark.parametrize("store", ["memory", "folder"])
async def test_a_peer_that_vanishes_leaves_nothing(store: str, tmp_path: Path) -> None:
    async with a_server(tmp_path if store == "folder" else None) as server:
        for sent in SENT.values():
            await one(server, sent)  # makes what is made once and kept
        gc.collect()
        for what, sent in SENT.items():
            await leaves_nothing(what, server, partial(one, server, sent))


async def test_a_frame_after_the_end_of_a_connection_is_not_queued() -> None:
    """Such a frame would refer to the connection, and never be taken out of the queue."""
    async with serve() as server:
        peer = await RawPeer.connect(server.uri)
        await eventually(lambda: server.connections)
        (connection,) = server._connections.values()
        reset(peer)
        await eventually(lambda: not server.connections)
        connection.send_payload(1, Payload(b"an item"))
        assert connection.outbox.is_empty


async def use(files: FileClient, folder: Path) -> None:
    """Every kind of request of a client, some of them cancelled."""
    content = bytes(LARGE)
    await files.upload("a", content)
    await files.download("a")
    await files.upload_from("b", content)
    await files.download_chunks("b").pipe(ops.map(lambda chunk: len(chunk.data)), ops.sum())
    await files.download_chunks("b").pipe(ops.take(2), ops.last())
    await files.download_to("b", folder / "b")
    await files.upload_from("c", folder / "b")
    await files.list_files().pipe(ops.count())
    await files.stat("c")
    await files.delete("c")
    for call in (files.stat("missing"), files.download("missing"), files.download_to("missing", folder / "d")):
        with pytest.raises(NotFound):
            await call


@pytest.mark.parametrize("store", ["memory", "folder"])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_client_leaves_nothing_on_either_side(store: str, encrypted: bool, tmp_path: Path) -> None:
    ca = trustme.CA()
    tls, trusting = None, None
    if encrypted:
        tls = server_tls(*pem_files(ca.issue_cert("127.0.0.1"), tmp_path))
        trusting = ssl.create_default_context()
        ca.configure_trust(trusting)
    async with a_server(tmp_path / "store" if store == "folder" else None, tls) as server:

        async def session() -> None:
            async with FileClient.connect(server.uri, tls=trusting) as files:
                await use(files, tmp_path)

        await session()
        gc.collect()
        await leaves_nothing("a client", server, session, OF_CLIENTS)


async def test_unfinished_handshakes_leave_nothing(tmp_path: Path) -> None:
    tls = server_tls(*pem_files(trustme.CA().issue_cert("127.0.0.1"), tmp_path))
    async with a_server(None, tls) as server:

        async def begin(*sent: bytes) -> None:
            peer = await RawPeer.connect(server.uri.replace("tcps:", "tcp:"))
            await peer.send(*sent)
            await asyncio.sleep(0.05)
            reset(peer)

        begun, nonsense = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/1.1\r\n\r\n"
        await begin(begun)
        gc.collect()
        for sent in (b"", begun, nonsense):
            await leaves_nothing(f"{sent!r}", server, partial(begin, sent))


async def test_a_peer_that_disconnects_while_its_password_is_checked_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verify, may_end = PasswordHasher.verify, threading.Event()

    def slow(hasher: PasswordHasher, hashed: str, password: bytes) -> bool:
        assert may_end.wait(PATIENCE)
        return verify(hasher, hashed, password)

    monkeypatch.setattr(PasswordHasher, "verify", slow)
    users = Users(f"alice:{PasswordHasher().hash('a secret')}")
    async with serve(users=users) as server:

        async def leave(password: str) -> None:
            may_end.clear()
            users._verified.clear()  # what was right once isn't checked again
            peer = await RawPeer.connect(server.uri)
            await peer.send(setup_frame(build_simple("alice", password)))
            await eventually(lambda: users._lock._is_held)
            reset(peer)
            await eventually(lambda: not server.connections)
            may_end.set()
            await eventually(lambda: not users._lock._is_held)

        await leave("wrong")
        gc.collect()
        await leaves_nothing("an unauthenticated peer", server, partial(leave, "a secret"))


async def test_requests_of_a_lost_connection_are_not_served() -> None:
    asked = b"".join(request(id_, REQUEST_RESPONSE, route_item("nowhere")) for id_ in range(1, 1800, 2))
    async with serve() as server:
        peers = [await RawPeer.connect(server.uri) for _ in range(50)]
        for peer in peers:
            await peer.send(setup(), asked)
        for peer in peers:
            reset(peer)
        await eventually(lambda: not server.connections, 20)
        started = server.work.started
        await asyncio.sleep(0.2)
        assert server.work.started == started
