"""Two `FrameTransport`s on the ends of one connection, over every kind of socket that they are used with."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from rsocket.frame import CancelFrame, Frame, PayloadFrame, RequestNFrame, RequestResponseFrame

from shared.frames.reassembly import ReassemblyBudget, ReassemblyLimits
from shared.transport.tcp import FrameTransport

# A key for these tests alone, and its certificate for localhost, valid for a hundred years.
_CERTIFICATE = Path(__file__).parent / "localhost.pem"


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(_CERTIFICATE)
    return server, ssl.create_default_context(cafile=str(_CERTIFICATE))


@asynccontextmanager
async def pair(
    *, tls: bool = False, limits: ReassemblyLimits | None = None, budget: ReassemblyBudget | None = None
) -> AsyncGenerator[tuple[FrameTransport, FrameTransport], None]:
    """A connection's two ends, the accepting one, which has the limits, first."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[FrameTransport] = loop.create_future()
    server_context, client_context = tls_contexts() if tls else (None, None)
    listener = await loop.create_server(
        lambda: FrameTransport(accepted.set_result, limits=limits, budget=budget), "127.0.0.1", 0, ssl=server_context
    )
    port = listener.sockets[0].getsockname()[1]
    names: dict[str, Any] = {"ssl": client_context, "server_hostname": "localhost"} if tls else {}
    _, client = await loop.create_connection(FrameTransport, "127.0.0.1", port, **names)
    server = await accepted
    try:
        yield server, client
    finally:
        listener.close()
        await asyncio.gather(client.close(), server.close())
        await listener.wait_closed()


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
