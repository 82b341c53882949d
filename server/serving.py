"""The listening server: accepts connections, and ends them in good order."""

import asyncio
import logging
from types import TracebackType
from typing import Final, Self

from shared.logs import quiet_rsocket
from shared.transport import FrameTransport
from shared.wire import DEFAULT_PORT

from .connection import ServerConnection
from .data import ChatData
from .work import Work

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "FileServer", "serve"]

_log = logging.getLogger(__name__)

DEFAULT_HOST: Final = "127.0.0.1"

# How long `close` lets the operations under way finish. Closing the connections takes up to a second more.
_GRACE_SECONDS: Final = 2.0
_UPLOAD_EXPIRY_SECONDS: Final = 24 * 60 * 60.0
_SWEEP_SECONDS: Final = 60 * 60.0


class FileServer:
    """A file server; an async context manager that listens inside its block. Made by `serve`.

    Attributes:
        data: What it serves.
        work: Counts of its operations: started, completed, failed, cancelled, active.
    """

    def __init__(self, host: str, port: int, data: ChatData, upload_expiry_seconds: float) -> None:
        self.data = data
        self._host = host
        self._port = port
        self._upload_expiry_seconds = upload_expiry_seconds
        self._listener: asyncio.Server | None = None
        self._connections: dict[FrameTransport, ServerConnection] = {}
        self.work: Work = Work()

    @property
    def uri(self) -> str:
        """Where it listens, as `tcp://HOST:PORT`.

        Raises:
            RuntimeError: It doesn't listen.
        """
        if self._listener is None or not self._listener.sockets:
            raise RuntimeError("the server isn't listening; use it as `async with serve(...) as server:`")
        host, port = self._listener.sockets[0].getsockname()[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        quiet_rsocket()
        loop = asyncio.get_running_loop()
        await self.data.store.start()
        try:
            self._listener = await loop.create_server(self._accept, self._host, self._port)
        except BaseException:
            await self.data.store.close()
            raise
        self.work.spawn(self._sweep)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace_seconds: float = _GRACE_SECONDS) -> None:
        """Stops listening, lets operations finish for `grace_seconds`, cancels the rest and closes every connection."""
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        listener.close()
        await self.work.drain(grace_seconds)
        # Before `wait_closed`, which on Python 3.12 and newer waits for the connections.
        await asyncio.gather(*(connection.close() for connection in list(self._connections.values())))
        await self.work.settle()
        await self.data.store.close()
        await listener.wait_closed()

    async def _sweep(self) -> None:
        """Drops expired uploads, now and then."""
        while True:
            try:
                await self.data.store.sweep(self._upload_expiry_seconds)
            except Exception:
                _log.exception("unfinished uploads could not be swept")
            await asyncio.sleep(min(self._upload_expiry_seconds / 10, _SWEEP_SECONDS))

    def _accept(self) -> FrameTransport:
        transport = FrameTransport(on_connected=self._connected, on_lost=lambda _: self._forget(transport))
        return transport

    def _connected(self, transport: FrameTransport) -> None:
        self._connections[transport] = ServerConnection(transport, self.data, self.work)

    def _forget(self, transport: FrameTransport) -> None:
        self._connections.pop(transport, None)


def serve(
    host: str = DEFAULT_HOST,
    port: int = 0,
    *,
    data: ChatData | None = None,
    upload_expiry_seconds: float = _UPLOAD_EXPIRY_SECONDS,
) -> FileServer:
    """A file server for apps and tests: `async with serve() as server: ... server.uri`.

    Args:
        host: The address to listen on.
        port: The TCP port; 0 picks a free one.
        data: What to serve; empty and in memory if None.
        upload_expiry_seconds: How long an unfinished upload is kept after its last byte; a day by default.

    Returns:
        The server, which listens from the block's start to its end. Entering the block raises OSError if the address
        can't be bound.
    """
    return FileServer(host, port, data if data is not None else ChatData(), upload_expiry_seconds)
