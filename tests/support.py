"""What several tests need: a peer that sends and receives raw frames without rsocket, and the open streams."""

import asyncio
import importlib
import importlib.util
import json
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

SETUP, LEASE, KEEPALIVE = 0x01, 0x02, 0x03
REQUEST_RESPONSE, REQUEST_FNF, REQUEST_STREAM, REQUEST_CHANNEL = 0x04, 0x05, 0x06, 0x07
REQUEST_N, CANCEL, PAYLOAD, ERROR, METADATA_PUSH = 0x08, 0x09, 0x0A, 0x0B, 0x0C

IGNORE, METADATA, FOLLOWS, COMPLETE, NEXT = 0x200, 0x100, 0x80, 0x40, 0x20
RESPOND = 0x80

COMPOSITE = b"message/x.rsocket.composite-metadata.v0"

APPLICATION_ERROR, REJECTED, INVALID, CONNECTION_ERROR = 0x201, 0x202, 0x204, 0x101

PATIENCE = 15.0
"""The most seconds that a test waits for what comes at once on an idle machine; the machine may be busy."""

HAS_UVLOOP = importlib.util.find_spec("uvloop") is not None


def on_uvloop(scenario: Coroutine[Any, Any, None]) -> None:
    """Runs `scenario` on a new uvloop; for threads without a running event loop."""
    importlib.import_module("uvloop").run(scenario)


@dataclass(frozen=True)
class RawFrame:
    """A frame as it was on the wire."""

    stream_id: int
    kind: int
    flags: int
    body: bytes

    @property
    def metadata(self) -> bytes:
        if not self.flags & METADATA:
            return b""
        return self.body[3 : 3 + int.from_bytes(self.body[:3], "big")]

    @property
    def data(self) -> bytes:
        return self.body[3 + len(self.metadata) :] if self.flags & METADATA else self.body

    @property
    def error(self) -> tuple[int, str]:
        return struct.unpack(">I", self.body[:4])[0], self.body[4:].decode()


def frame(stream_id: int, kind: int, flags: int = 0, body: bytes = b"") -> bytes:
    """A frame with its length prefix."""
    head = struct.pack(">IH", stream_id, kind << 10 | flags)
    return (len(head) + len(body)).to_bytes(3, "big") + head + body


def setup(metadata_mimetype: bytes = COMPOSITE, *, version: tuple[int, int] = (1, 0), body: bytes = b"") -> bytes:
    data_mimetype = b"application/octet-stream"
    mimetypes = b"".join(bytes([len(mime)]) + mime for mime in (metadata_mimetype, data_mimetype))
    return frame(0, SETUP, 0, struct.pack(">HHII", *version, 10_000, 60_000) + mimetypes + body)


def payload(metadata: bytes | None, data: bytes = b"") -> tuple[int, bytes]:
    """The flag and the body of a frame with this metadata and data."""
    if metadata is None:
        return 0, data
    return METADATA, len(metadata).to_bytes(3, "big") + metadata + data


def item(mimetype: bytes, content: bytes, *, length: int | None = None) -> bytes:
    """A composite metadata item; `length` is written in place of the content's."""
    head = bytes([0x80 | 0x7E]) if mimetype == b"route" else bytes([len(mimetype) - 1]) + mimetype
    return head + (len(content) if length is None else length).to_bytes(3, "big") + content


def route_item(route: str) -> bytes:
    return item(b"route", bytes([len(route.encode())]) + route.encode())


def name_item(name: bytes) -> bytes:
    return item(b"chat/file-name", name)


def request(
    stream_id: int, kind: int, metadata: bytes | None, data: bytes = b"", *, n: int = 1, flags: int = 0
) -> bytes:
    flag, body = payload(metadata, data)
    if kind in (REQUEST_STREAM, REQUEST_CHANNEL):
        body = struct.pack(">I", n) + body
    return frame(stream_id, kind, flag | flags, body)


def request_n(stream_id: int, n: int) -> bytes:
    return frame(stream_id, REQUEST_N, 0, struct.pack(">I", n))


class RawPeer:
    """One end of a TCP connection that sends and receives frames as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.is_alive = True

    @classmethod
    async def connect(cls, uri: str) -> Self:
        host, port = uri.removeprefix("tcp://").rsplit(":", 1)
        return cls(*await asyncio.open_connection(host, int(port)))

    async def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))
        await self.writer.drain()

    async def receive(self, seconds: float = PATIENCE) -> RawFrame | None:
        """The next frame that isn't a keepalive (those are answered); None at the end of the connection."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    length = int.from_bytes(await self.reader.readexactly(3), "big")
                    body = await self.reader.readexactly(length)
                except (asyncio.IncompleteReadError, ConnectionError):
                    return None
                stream_id, type_and_flags = struct.unpack_from(">IH", body)
                got = RawFrame(stream_id, type_and_flags >> 10, type_and_flags & 0x3FF, body[6:])
                if got.kind != KEEPALIVE:
                    return got
                if got.flags & RESPOND and self.is_alive:
                    await self.send(frame(0, KEEPALIVE, 0, got.body))

    async def silence(self, seconds: float = 0.2) -> None:
        """Asserts that nothing arrives for a while, and that the connection stays open."""
        try:
            got = await self.receive(seconds)
        except TimeoutError:
            return
        raise AssertionError(f"expected silence, got {got}")

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@asynccontextmanager
async def raw_peer(uri: str, *, set_up: bool = True) -> AsyncGenerator[RawPeer, None]:
    """A raw client of the server at `uri`, after its SETUP."""
    peer = await RawPeer.connect(uri)
    try:
        if set_up:
            await peer.send(setup())
        yield peer
    finally:
        await peer.close()


@asynccontextmanager
async def raw_server(serve_one: Callable[[RawPeer], Awaitable[None]]) -> AsyncGenerator[str, None]:
    """A server that handles each connection with `serve_one`; yields its URI."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = RawPeer(reader, writer)
        try:
            await serve_one(peer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            await peer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()[:2]
    try:
        yield f"tcp://{host}:{port}"
    finally:
        listener.close()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=2)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def stream_ids(rsocket: Any) -> list[int]:
    """The streams that an rsocket has open."""
    return list(rsocket._stream_control._streams)


def server_stream_ids(server: Any) -> list[int]:
    """The streams that all connections of one of our servers have open."""
    return [stream for connection in server._connections.values() for stream in stream_ids(connection)]


async def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Waits until `condition()` is true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError("the condition did not become true in time")
        await asyncio.sleep(0.005)


def client_stream_ids(files: Any) -> list[int]:
    """The streams that one of our clients has open."""
    rsocket = files._connector.current()
    return stream_ids(rsocket) if rsocket is not None else []


def transfer_item(**said: object) -> bytes:
    """The metadata item of our own routes."""
    return item(b"chat/file-transfer", json.dumps(said).encode())
