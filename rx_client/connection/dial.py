"""How a client gets a transport: over TCP, or TLS on it."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from shared.frames.reassembly import Reassembler
from shared.transport.base import Transport
from shared.transport.tcp import TcpTransport

from .options import parse_uri

__all__ = ["Dial", "dial_tcp"]

Dial = Callable[[Callable[[Transport], Reassembler], Callable[[Exception | None], None]], Awaitable[object]]
"""Makes one connection, and returns when it is made. The first argument is called with the transport then, the second
when the connection has ended; see `TcpTransport`. Raises OSError if there is none."""


def dial_tcp(uri: str, tls: ssl.SSLContext | None) -> Dial:
    """Connects to `tcp://HOST[:PORT]`, or with TLS to `tcps://HOST[:PORT]`; ValueError for any other `uri`."""
    host, port = parse_uri(uri)
    is_tls = uri.lower().startswith("tcps:")
    if tls is not None and not is_tls:
        raise ValueError(f"{uri!r} is not encrypted; write tcps:// to use TLS")
    context = tls if tls is not None or not is_tls else ssl.create_default_context()

    async def dial(
        on_connected: Callable[[Transport], Reassembler], on_lost: Callable[[Exception | None], None]
    ) -> object:
        loop = asyncio.get_running_loop()
        return await loop.create_connection(lambda: TcpTransport(on_connected, on_lost), host, port, ssl=context)

    return dial
