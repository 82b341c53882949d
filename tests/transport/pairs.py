"""Two `TcpTransport`s on the ends of one connection, over every kind of socket that they are used with."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from rsocket.frame import CancelFrame, Frame, PayloadFrame, RequestNFrame, RequestResponseFrame

from shared.frames.budget import ReassemblyBudget, ReassemblyLimits
from shared.frames.reassembly import Reassembler
from shared.transport.base import Transport
from shared.transport.tcp import TcpTransport
from shared.transport.tls import Tls, TlsTransport
from tests.support import RawPeer

# A key for these tests alone, and its certificate for localhost, valid for a hundred years.
_CERTIFICATE = Path(__file__).parent / "localhost.pem"


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(_CERTIFICATE)
    return server, ssl.create_default_context(cafile=str(_CERTIFICATE))


Judge = Callable[[TcpTransport], Reassembler]
"""What is called when a transport is connected."""


def judged(limits: ReassemblyLimits | None = None, budget: ReassemblyBudget | None = None) -> Judge:
    """A connection that decides and answers nothing."""
    return lambda _: Reassembler(limits, budget)


@asynccontextmanager
async def pair(
    *, tls: bool = False, server_side: Judge | None = None, client_side: Judge | None = None
) -> AsyncGenerator[tuple[TcpTransport, TcpTransport], None]:
    """A connection's two ends, the accepting one first."""
    loop = asyncio.get_running_loop()
    connected: asyncio.Future[None] = loop.create_future()
    servers: list[TcpTransport] = []

    def make_server() -> TcpTransport:
        servers.append(_transport(on_connected, None if server_context is None else Tls(server_context)))
        return servers[0]

    def on_connected(transport: TcpTransport) -> Reassembler:
        connected.set_result(None)
        return (server_side or judged())(transport)

    server_context, client_context = tls_contexts() if tls else (None, None)
    listener = await loop.create_server(make_server, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    layer = None if client_context is None else Tls(client_context, "localhost")
    _, client = await loop.create_connection(lambda: _transport(client_side or judged(), layer), "127.0.0.1", port)
    await client.opened()
    await connected
    try:
        yield servers[0], client
    finally:
        listener.close()
        await asyncio.gather(client.close(), servers[0].close())
        await listener.wait_closed()


def _transport(on_connected: Judge, tls: Tls | None) -> TcpTransport:
    return TcpTransport(on_connected) if tls is None else TlsTransport(on_connected, None, tls)


@asynccontextmanager
async def raw_pair(side: Judge | None = None) -> AsyncGenerator[tuple[TcpTransport, RawPeer], None]:
    """A transport that was accepted, and a peer that writes what it likes."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[TcpTransport] = loop.create_future()

    def on_connected(transport: TcpTransport) -> Reassembler:
        accepted.set_result(transport)
        return (side or judged())(transport)

    listener = await loop.create_server(lambda: TcpTransport(on_connected), "127.0.0.1", 0)
    peer = await RawPeer.connect(f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    transport = await accepted
    try:
        yield transport, peer
    finally:
        listener.close()
        await peer.close()
        await transport.close()
        await listener.wait_closed()


async def frames_of(transport: Transport) -> AsyncGenerator[Frame, None]:
    """The frames that arrive until the connection's end."""
    while (got := await transport.next_frame()) is not None:
        assert isinstance(got, Frame), "nothing is split here"
        yield got


async def take(transport: Transport, count: int) -> list[Frame]:
    """The next `count` frames."""
    frames: list[Frame] = []
    async with asyncio.timeout(20):
        while len(frames) < count:
            got = await transport.next_frame()
            assert isinstance(got, Frame), "nothing is split here, and the connection goes on"
            frames.append(got)
    return frames


def payload(data: bytes, stream_id: int = 1, metadata: bytes = b"", *, follows: bool = False) -> PayloadFrame:
    frame = PayloadFrame()
    frame.stream_id, frame.data, frame.metadata = stream_id, data, metadata
    frame.flags_next, frame.flags_follows = True, follows
    return frame


def request(data: bytes, stream_id: int = 1, metadata: bytes = b"", *, follows: bool = False) -> RequestResponseFrame:
    frame = RequestResponseFrame()
    frame.stream_id, frame.data, frame.metadata, frame.flags_follows = stream_id, data, metadata, follows
    return frame


def request_n(n: int, stream_id: int = 1) -> RequestNFrame:
    frame = RequestNFrame()
    frame.stream_id, frame.request_n = stream_id, n
    return frame


def cancel(stream_id: int = 1) -> CancelFrame:
    frame = CancelFrame()
    frame.stream_id = stream_id
    return frame


def seen(frame: Frame) -> tuple[object, ...]:
    """What counts of a frame, to be compared."""
    return (
        type(frame),
        frame.stream_id,
        bytes(frame.metadata or b""),
        bytes(frame.data or b""),
        getattr(frame, "request_n", None),
    )
