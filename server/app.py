"""The listening server: accepts connections, and ends them in good order."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from shared.aio import run_blocking
from shared.errors import TransferError
from shared.frames.budget import ReassemblyBudget
from shared.frames.reassembly import Reassembler
from shared.frames.room import SendRoom
from shared.logs import limit_repeats, quiet_rsocket
from shared.presence import RunClock
from shared.protocol.wire import DEFAULT_PORT
from shared.transport.base import Transport

from .data import ChatData
from .heap import HeapTrimmer
from .limits import Limits
from .net.connection import ServerConnection
from .net.listener import Listener
from .net.watch import WATCH_SECONDS, ConnectionWatch
from .routes.session import ChatUserSession, SessionFactory
from .routes.table import Route
from .users import Users
from .work import Work

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "FileServer", "serve"]

_log = logging.getLogger(__name__)

DEFAULT_HOST: Final = "127.0.0.1"

# How long `close` lets the operations under way finish. Closing the connections takes up to a second more.
_GRACE_SECONDS: Final = 2.0
_UPLOAD_EXPIRY_SECONDS: Final = 24 * 60 * 60.0
# How long after the start, or after a sweep, one comes: a tenth of the expiry, at most, and after a sweep at least.
_LEAST_SWEEP_SECONDS: Final = 1.0
_MOST_SWEEP_SECONDS: Final = 60 * 60.0
_MOST_RECEIVING_SECONDS: Final = 1.0
# The loggers of what a peer can cause again and again.
_LOGGERS: Final = ("shared.engine", "shared.transport.tcp", "server.app", "server.net.connection", "server.work")
_RARE_LOGGERS: Final = ("server.net.admission", "server.net.listener", "server.stores.failures")


class FileServer:
    """A file server; an async context manager that listens inside its block. Made by `serve`.

    Attributes:
        data: What it serves.
        work: Counts of its operations: started, completed, failed, cancelled, active.
    """

    def __init__(
        self,
        host: str,
        port: int,
        data: ChatData,
        *,
        upload_expiry_seconds: float,
        limits: Limits,
        users: Users | None,
        tls: ssl.SSLContext | None,
        make_session: SessionFactory,
    ) -> None:
        data.store.apply_limits(limits.max_store_bytes, limits.max_file_bytes)
        data.store.changes.max_known = limits.max_watched_files
        self.data: Final = data
        self.work: Final = Work()
        self._host, self._port = host, port
        self._upload_expiry_seconds = upload_expiry_seconds
        self._limits = limits = limits.of_spooling() if data.store.spools else limits
        self._users = users
        self._tls = tls
        self._make_session = make_session
        self._clock = RunClock(WATCH_SECONDS, time.monotonic)
        self._peers = ConnectionWatch(self._clock, limits.idle_seconds)
        self._budget = ReassemblyBudget(limits.max_reassembly_bytes, self._clock.time)
        self._room = SendRoom(limits.max_unsent_bytes)
        self._listener: Listener | None = None
        self._connections: dict[Transport, ServerConnection] = {}

    @property
    def uri(self) -> str:
        """Where it listens, as `tcp://HOST:PORT`, or `tcps://HOST:PORT` with TLS.

        Raises:
            RuntimeError: It doesn't listen.
        """
        if self._listener is None:
            raise RuntimeError("the server isn't listening; use it as `async with serve(...) as server:`")
        host, port = self._listener.address
        scheme = "tcp" if self._tls is None else "tcps"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    @property
    def connections(self) -> int:
        """Connections that are open; those still in the TLS handshake don't count."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        quiet_rsocket()
        limit_repeats(*_LOGGERS)
        limit_repeats(*_RARE_LOGGERS, per_minute=1)
        await self.data.store.start()
        listener = Listener(self._limits, self._tls, self.on_connected, self.on_lost)
        try:
            await listener.open(self._host, self._port)
        except BaseException:
            await self.data.store.close()
            raise
        self._listener = listener
        self.work.spawn(self._sweep)
        self.work.spawn(self._watch)
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
        await listener.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self.work.idle.wait()
                # An operation has ended when its last answer is queued.
                await asyncio.gather(*(connection.flush() for connection in list(self._connections.values())))
        connections = list(self._connections.values())
        await asyncio.gather(listener.close(), *(connection.transport.close() for connection in connections))
        # One of them may be storing what it has received. It has to end before the tasks are cancelled.
        await asyncio.gather(*(connection.received(_MOST_RECEIVING_SECONDS) for connection in connections))
        await self.work.settle()
        await self.data.store.changes.close()
        await self.data.store.close()

    def renew(self, users: Users | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Uses these users and this TLS for new connections, None for those it has; what is under way goes on.

        Raises:
            ValueError: The server has no users, or no TLS, that could be replaced: its peers couldn't know.
        """
        if (users is not None and self._users is None) or (tls is not None and self._tls is None):
            raise ValueError("a server that was made without users, or without TLS, gets none later")
        self._users, self._tls = users or self._users, tls or self._tls
        if self._listener is not None:
            self._listener.tls = self._tls

    async def _sweep(self) -> None:
        """Drops expired uploads, now and then."""
        # Not at the start: a client goes on with what a server that was restarted has, and how old that is depends on
        # the times of files, which were wrong if the clock was.
        seconds = min(self._upload_expiry_seconds / 10, _MOST_SWEEP_SECONDS)
        await asyncio.sleep(seconds)
        while True:
            try:
                await self.data.store.sweep(self._upload_expiry_seconds)
            except TransferError as error:
                _log.warning("unfinished uploads could not be swept: %s", error)
            except Exception:
                _log.exception("unfinished uploads could not be swept")
            await asyncio.sleep(max(_LEAST_SWEEP_SECONDS, seconds))

    async def _watch(self) -> None:
        """Closes connections that are silent, or take nothing, for too long, and returns freed memory."""
        trimmer = HeapTrimmer()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._clock.tick():
                self._peers.check()
            if trimmer.is_due():
                await run_blocking(None, trimmer.trim)

    def on_connected(self, transport: Transport, on_set_up: Callable[[], None] = lambda: None) -> Reassembler:
        """Serves a connection, also one that another listener has accepted; returns what judges its payloads.

        Outside of the server's block the connection is aborted: the store isn't open, and nothing would close it.

        Args:
            transport: The connection's; `on_lost` has to be called when it has ended.
            on_set_up: Called when its SETUP was accepted.
        """
        if self._listener is None:
            transport.abort()
            return Reassembler()
        try:
            connection = ServerConnection(
                transport,
                self.data,
                self.work,
                self._limits,
                self._budget,
                self._room,
                self._users,
                on_set_up,
                self._make_session,
                self._peers.add,
            )
        except Exception:  # of an app's session
            _log.exception("a connection could not be served")
            transport.abort()
            return Reassembler()
        self._connections[transport] = connection
        self.work.connections = len(self._connections)
        self._peers.add(connection)
        return connection.reassembler

    def on_lost(self, transport: Transport) -> None:
        """A connection has ended."""
        connection = self._connections.pop(transport, None)
        self.work.connections = len(self._connections)
        if connection is not None:  # else it was refused
            self._peers.remove(connection)
            connection.on_lost()


def serve(
    host: str = DEFAULT_HOST,
    port: int = 0,
    *,
    data: ChatData | None = None,
    upload_expiry_seconds: float = _UPLOAD_EXPIRY_SECONDS,
    limits: Limits | None = None,
    users: Users | None = None,
    tls: ssl.SSLContext | None = None,
    routes: Sequence[Route[Any]] | SessionFactory = (),
) -> FileServer:
    """A file server for apps and tests: `async with serve() as server: ... server.uri`.

    An app's own routes are served beside ours, under the same limits, counted and logged as ours are:

        async def count_lines(request: Request[None]) -> Payload:
            reader = await request.session.store.open(request.name)
            ...

        lines = Route("lines", Model.REQUEST_RESPONSE, count_lines, right=Right.READ, is_about_file=True)
        async with serve(routes=[lines]) as server: ...

    Args:
        host: The address to listen on.
        port: The TCP port; 0 picks a free one.
        data: What to serve: `ChatData(contents_by_name)`, or `ChatData(DirectoryStore(path))`; empty if None.
        upload_expiry_seconds: How long an unfinished upload is kept that no client goes on with; a day by default.
        limits: What peers may make the server hold and do; the defaults of `Limits` if None.
        users: The users that may connect, see `Users`; None to accept every peer.
        tls: How to encrypt, for example from `server_tls`; None for not at all.
        routes: The app's own routes. Or what makes each connection's session, such as a subclass of `ChatUserSession`
            whose `router_factory` adds routes in rsocket's way.

    Raises:
        TypeError: `data` is no ChatData.
        ValueError: A route has the name and the interaction model of another one, or of ours.

    Returns:
        The server, which listens from the block's start to its end. Entering the block raises OSError if the address
        can't be bound.
    """
    if data is not None and not isinstance(data, ChatData):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"data must be a ChatData, which takes a dictionary or a store, not {type(data).__name__}")
    make_session = routes if callable(routes) else partial(ChatUserSession, routes=tuple(routes))
    if not callable(routes):
        ChatUserSession(routes=routes).router_factory()  # raises now, rather than for the first connection
    return FileServer(
        host,
        port,
        data if data is not None else ChatData(),
        upload_expiry_seconds=upload_expiry_seconds,
        limits=limits if limits is not None else Limits(),
        users=users,
        tls=tls,
        make_session=make_session,
    )
