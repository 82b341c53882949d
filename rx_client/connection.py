"""Opens the socket and the RSocket connection behind a `FileClient`."""

import asyncio
import os
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from rsocket.error_codes import ErrorCode
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.helpers import single_transport_provider
from rsocket.payload import Payload
from rsocket.request_handler import BaseRequestHandler
from rsocket.rsocket_client import RSocketClient

from shared.errors import ConnectionFailed
from shared.logs import quiet_rsocket
from shared.transport import FrameTransport
from shared.wire import DEFAULT_PORT, FRAGMENT_SIZE_BYTES

__all__ = ["open_connection", "parse_uri"]

# A dead peer is noticed within 10 s: rsocket looks once a lifetime whether the last sign of life is older than that.
_KEEPALIVE_PERIOD: Final = timedelta(seconds=1)
_MAX_LIFETIME: Final = timedelta(seconds=5)
_CONNECT_SECONDS: Final = 10.0


class _ClientHandler(BaseRequestHandler):
    """What the server may do to a client: nothing, but tell it that the connection is over."""

    _closing: asyncio.Task[None] | None = None

    async def on_error(self, error_code: ErrorCode, payload: Payload) -> None:
        """An ERROR on stream 0, after which the server closes: the requests under way end with the connection."""

    async def on_keepalive_timeout(self, time_since_last_keepalive: timedelta, rsocket: RSocketClient) -> None:
        rsocket.stop_all_streams(
            ErrorCode.CONNECTION_ERROR,
            f"the server was silent for {time_since_last_keepalive.total_seconds():.0f} s".encode(),
        )
        # In a task of its own: this one is among those that `close` cancels and waits for.
        self._closing = asyncio.get_running_loop().create_task(rsocket.close())


def parse_uri(uri: str) -> tuple[str, int]:
    """The host and port of `tcp://HOST[:PORT]`.

    Raises:
        ValueError: It is something else.
    """
    parts = urlsplit(uri)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{uri!r} has no valid port: {error}") from None
    if parts.scheme != "tcp" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError(f"{uri!r} is not of the form tcp://HOST[:PORT]")
    return parts.hostname, DEFAULT_PORT if port is None else port


async def open_connection(uri: str) -> RSocketClient:
    """An RSocket connection to the server at `uri`, which is `tcp://HOST[:PORT]`.

    Raises:
        ValueError: `uri` is something else.
        ConnectionFailed: It is refused, unresolvable, or not answered within 10 seconds.
    """
    host, port = parse_uri(uri)
    quiet_rsocket()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, transport = await loop.create_connection(FrameTransport, host, port)
    except TimeoutError:
        raise ConnectionFailed(f"no connection to {uri}: not answered within {_CONNECT_SECONDS:.0f} s") from None
    except (OSError, UnicodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else str(error)
        raise ConnectionFailed(f"no connection to {uri}: {reason}") from error
    rsocket = RSocketClient(
        single_transport_provider(transport),
        handler_factory=_ClientHandler,
        data_encoding=WellKnownMimeTypes.APPLICATION_OCTET_STREAM,
        metadata_encoding=WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA,
        keep_alive_period=_KEEPALIVE_PERIOD,
        max_lifetime_period=_MAX_LIFETIME,
        fragment_size_bytes=FRAGMENT_SIZE_BYTES,
    )
    await rsocket.connect()
    return rsocket
