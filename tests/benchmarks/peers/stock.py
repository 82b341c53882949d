"""rsocket-py as it comes: its own transport, a stream or channel of 256 KiB items, a window of 16; small requests."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from rsocket.helpers import create_future, single_transport_provider
from rsocket.payload import Payload
from rsocket.request_handler import BaseRequestHandler
from rsocket.rsocket_client import RSocketClient
from rsocket.rsocket_server import RSocketServer
from rsocket.transports.tcp import TransportTCP

from shared.logs import quiet_rsocket

from . import CHUNK_BYTES, Client, Pace

WINDOW: Final = 16
FRAGMENT_BYTES: Final = 1_000_000


class Stock:
    """Server and client.

    Args:
        read_buffer: `TransportTCP`'s, in bytes.
    """

    def __init__(self, *, read_buffer: int) -> None:
        self._read_buffer = read_buffer
        quiet_rsocket()

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        files: dict[str, bytes] = {}
        sessions: list[RSocketServer] = []

        def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            transport = TransportTCP(reader, writer, self._read_buffer)
            sessions.append(
                RSocketServer(
                    transport, handler_factory=lambda: _Handler(folder, files), fragment_size_bytes=FRAGMENT_BYTES
                )
            )

        listener = await asyncio.start_server(session, "127.0.0.1", 0)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        transport = TransportTCP(reader, writer, self._read_buffer)
        async with RSocketClient(single_transport_provider(transport), fragment_size_bytes=FRAGMENT_BYTES) as rsocket:
            yield _Client(rsocket)


class _Handler(BaseRequestHandler):
    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        self._folder = folder
        self._files = files

    async def request_response(self, payload: Payload) -> Awaitable[Payload]:
        name = bytes(payload.metadata or b"").decode()
        if payload.data:
            self._files[name] = payload.data
            return create_future(Payload(b"stored"))
        return create_future(Payload(self._files[name]))

    async def request_stream(self, payload: Payload) -> Publisher:
        return _Reader(self._folder / bytes(payload.data or b"").decode())

    async def request_channel(self, payload: Payload) -> tuple[Publisher, Subscriber]:
        writer = _Writer(self._folder / bytes(payload.data or b"").decode(), Pace(None), is_server=True)
        return _Receipt(writer), writer


class _Reader(Publisher, Subscription):
    """Publishes a file, a chunk for each credit."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._left = path.stat().st_size

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        subscriber.on_subscribe(self)

    def request(self, n: int) -> None:
        for _ in range(n):
            if not self._left:
                return
            data = self._file.read(CHUNK_BYTES)
            self._left -= len(data)
            self._subscriber.on_next(Payload(data), self._left == 0)

    def cancel(self) -> None:
        self._file.close()


class _Writer(Subscriber):
    """Writes the items that arrive; requests half a window when half a window was written."""

    def __init__(self, path: Path, pace: Pace, *, is_server: bool = False) -> None:
        self._file = path.open("wb", buffering=0)
        self._pace = pace
        self._is_server = is_server
        self._written = 0
        self._items: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.done = asyncio.ensure_future(self._write())

    def on_subscribe(self, subscription: Subscription) -> None:
        self._subscription = subscription
        if self._is_server:
            subscription.request(WINDOW)

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        self._items.put_nowait(value.data)
        if is_complete:
            self.on_complete()

    def on_complete(self) -> None:
        self._items.put_nowait(None)

    def on_error(self, exception: Exception) -> None:
        self.done.cancel()

    async def _write(self) -> None:
        with self._file:
            while (data := await self._items.get()) is not None:
                self._file.write(data)
                await self._pace.throttle(len(data))
                self._written += 1
                if self._written % (WINDOW // 2) == 0:
                    self._subscription.request(WINDOW // 2)


class _Receipt(Publisher, Subscription):
    """The server's half of an upload: one item, when the whole file is written."""

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def subscribe(self, subscriber: Subscriber) -> None:
        subscriber.on_subscribe(self)
        self._writer.done.add_done_callback(lambda _: subscriber.on_next(Payload(b"stored"), True))

    def request(self, n: int) -> None:
        """Ignored: `on_next` sends its one item in any case."""

    def cancel(self) -> None:
        self._writer.done.cancel()


class _Stored(Subscriber):
    """The client's half of an upload's receipt."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_subscribe(self, subscription: Subscription) -> None:
        """Nothing to do: `initial_request_n` has requested the receipt."""

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def on_complete(self) -> None:
        """Nothing to do: the receipt was the end."""

    def on_error(self, exception: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exception)


class _Client(Client):
    def __init__(self, rsocket: RSocketClient) -> None:
        self._rsocket = rsocket

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        writer = _Writer(target, Pace(rate))
        self._rsocket.request_stream(Payload(name.encode())).initial_request_n(WINDOW).subscribe(writer)
        await writer.done

    async def upload(self, source: Path, name: str) -> None:
        stored = _Stored()
        self._rsocket.request_channel(Payload(name.encode()), _Reader(source)).initial_request_n(2).subscribe(stored)
        await stored.done

    async def get(self, name: str) -> bytes:
        return (await self._rsocket.request_response(Payload(b"", name.encode()))).data

    async def put(self, name: str, content: bytes) -> None:
        await self._rsocket.request_response(Payload(content, name.encode()))
