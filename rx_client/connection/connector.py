"""The connection behind a `FileClient`: made once, watched, and made again when somebody needs it.

rsocket 0.4.20's own reconnect dies after one failed attempt, or reconnects thousands of times a second, and a request
on a dead connection waits for ever. So there is one `RSocketClient` for each connection here, and none is used again.
"""

import asyncio
import math
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Protocol
from urllib.parse import urlsplit

import reactivex
from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivex import Observable, abc
from reactivex.subject import BehaviorSubject
from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.frame import ErrorFrame, Frame, FrameFragmentMixin, KeepAliveFrame
from rsocket.frame_builders import to_keepalive_frame
from rsocket.helpers import single_transport_provider
from rsocket.payload import Payload
from rsocket.request_handler import BaseRequestHandler
from rsocket.rsocket_base import RSocketBase
from rsocket.rsocket_client import RSocketClient

from shared.engine import LeanRSocket
from shared.errors import ClientClosed, ConnectionFailed, ConnectionLost, TransferError, from_error_frame
from shared.frames.reassembly import ReassemblyLimits
from shared.logs import quiet_rsocket
from shared.protocol.metadata import MetadataItem, build_bearer, build_metadata, build_simple
from shared.protocol.wire import DEFAULT_PORT, FRAGMENT_SIZE_BYTES, MAX_METADATA_BYTES
from shared.transport.tcp import FrameTransport

from ..rx.observables import LoopObservable
from .backoff import Backoff

_LOOKS_PER_TIMEOUT: Final = 20
# That so much waits to be sent says that the link is slow, or nobody takes it.
_BACKLOG_BYTES: Final = 16 * 1024

# What a server may make this side say without taking it, and what each frame counts beside its bytes.
_MAX_OWED_BYTES: Final = 1024 * 1024
_FRAME_COST_BYTES: Final = 256
_OWED_FRAMES: Final = frozenset[type[object]]([KeepAliveFrame, ErrorFrame])
# Both sides parse metadata, and read errors, in the event loop: 16 MB of either would hold it for seconds.
_LIMITS: Final = ReassemblyLimits(max_metadata_bytes=MAX_METADATA_BYTES)
# The SETUP tells the server the keepalives' times in 31 bits of milliseconds.
_MAX_KEEPALIVE_SECONDS: Final = 0x7FFFFFFF / 1000

# Between failures that need no peer: ten a second cost little, and who asks for ten things in turn is soon through.
_FAILURE_BASE_SECONDS: Final = 0.01
_FAILURE_CAP_SECONDS: Final = 0.1

_NOTHING_HERE: Final = RSocketProtocolError(ErrorCode.REJECTED, data="unknown_route: this client serves nothing")

Auth = tuple[str, str] | str
"""A user name and a password, or a bearer token."""

__all__ = [
    "Auth",
    "ConnectOptions",
    "Connected",
    "Connecting",
    "Connection",
    "ConnectionState",
    "Connector",
    "Disconnected",
    "GivenConnection",
    "parse_uri",
]


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How a client connects, and how long it waits; all in seconds.

    Attributes:
        connect_timeout: For one attempt: name resolution, TCP, TLS, and the server's answer to the SETUP.
        keepalive_period: Between two signs of life.
        keepalive_timeout: A server of which nothing arrived, and that took nothing of what waits to be sent, for this
            long is dead. A proxy on the way that takes more than the link behind it carries in this time makes a slow
            server look dead; then it must be longer.
        reconnect_timeout: For all attempts together, when an operation needs a connection and there is none.
        reconnect_base: The least delay between the beginnings of two attempts. It doubles with each attempt, whoever
            asks for it, until a connection has lived for `reconnect_cap`; after that the next attempt is immediate.
        reconnect_cap: The longest such delay; at the most half of `reconnect_timeout`, so that an operation sees an
            attempt. Each is random, from half of it to all of it.
        progress_timeout: An operation for which nothing moves for this long fails with Stalled.
    """

    connect_timeout: float = 10.0
    keepalive_period: float = 1.0
    keepalive_timeout: float = 6.0
    reconnect_timeout: float = 10.0
    reconnect_base: float = 0.1
    reconnect_cap: float = 2.0
    progress_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value: float = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {value!r}")
            if name.startswith("keepalive") and value > _MAX_KEEPALIVE_SECONDS:
                raise ValueError(f"{name} must be {_MAX_KEEPALIVE_SECONDS:.0f} seconds at the most, not {value!r}")


@dataclass(frozen=True, slots=True)
class Connecting:
    """A connection is being made."""


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is none; the next operation makes one.

    Attributes:
        cause: Why the last one ended, or could not be made.
    """

    cause: TransferError


ConnectionState = Connecting | Connected | Disconnected


class Connector(Protocol):
    """Who gives a request its connection."""

    @property
    def progress_timeout(self) -> float:
        """Seconds after which an operation for which nothing moves has failed."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether the application has closed the client."""
        ...

    def states(self) -> "Observable[ConnectionState]":
        """Emits the connection's state, and its changes."""
        ...

    def current(self) -> RSocketBase | None:
        """The connection, if there is one that works as far as anybody knows."""
        ...

    async def connect(self) -> RSocketBase:
        """The connection, made if need be.

        Raises:
            ConnectionFailed: It could not be made in time.
            ClientClosed: The client was closed.
        """
        ...


class _Failures:
    """Keeps apart failures that take no time: a bare `retry` on what can't work any more would fill the loop with them.

    The first one is immediate.
    """

    def __init__(self) -> None:
        self._backoff = Backoff(_FAILURE_BASE_SECONDS, _FAILURE_CAP_SECONDS)

    async def wait(self) -> None:
        """Returns when the next one may be told."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._backoff.wait(loop.time()))
        self._backoff.begin(loop.time())


class GivenConnection:
    """A connection that is the caller's, who alone can make another.

    Args:
        rsocket: The connection.
    """

    def __init__(self, rsocket: RSocketBase) -> None:
        self._rsocket = rsocket
        self._failures = _Failures()
        self.progress_timeout: Final = ConnectOptions().progress_timeout
        self.is_closed: Final = False

    def states(self) -> Observable[ConnectionState]:
        lost = Disconnected(ConnectionLost("the connection is closed, or its peer is silent"))
        return reactivex.defer(lambda _: reactivex.of(Connected() if self.current() is not None else lost))

    def current(self) -> RSocketBase | None:
        # In either case rsocket's sender has stopped, and a request would wait until it has stalled. The second is all
        # that rsocket does when its keepalives aren't answered.
        is_dead = self._rsocket._is_closing or not self._rsocket.is_server_alive()
        return None if is_dead else self._rsocket

    async def connect(self) -> RSocketBase:
        if (rsocket := self.current()) is not None:
            return rsocket
        await self._failures.wait()
        raise ConnectionLost("the connection is closed, or its peer silent, and is not this client's to make again")


class Connection:
    """A connection of the client's own.

    Args:
        uri: `tcp://HOST[:PORT]`, or `tcps://HOST[:PORT]` with TLS.
        options: See `ConnectOptions`.
        auth: A user name and a password, or a bearer token; None for neither.
        tls: How to encrypt; None for the system's authorities with `tcps`, and not at all with `tcp`.

    Raises:
        ValueError: `uri` is something else, or `tls` is given with `tcp`.
    """

    def __init__(self, uri: str, options: ConnectOptions, auth: Auth | None, tls: ssl.SSLContext | None) -> None:
        self._uri = uri
        self._host, self._port = parse_uri(uri)
        is_tls = uri.lower().startswith("tcps:")
        if tls is not None and not is_tls:
            raise ValueError(f"{uri!r} is not encrypted; write tcps:// to use TLS")
        self._tls = tls if tls is not None or not is_tls else ssl.create_default_context()
        self._setup = None if auth is None else Payload(b"", build_metadata([_credentials(auth)]))
        self._options = options
        self._backoff = Backoff(options.reconnect_base, min(options.reconnect_cap, options.reconnect_timeout / 2))
        self._failures = _Failures()
        self._rsocket: RSocketClient | None = None
        self._attempt: asyncio.Task[RSocketBase] | None = None
        self._is_closed = False
        self._ending: set[asyncio.Task[None]] = set()
        self._states: BehaviorSubject[ConnectionState] = BehaviorSubject(Connecting())

    @property
    def progress_timeout(self) -> float:
        return self._options.progress_timeout

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def states(self) -> Observable[ConnectionState]:
        """Emits the state as it is, then each change; completes when the client is closed."""

        def subscribe(
            observer: abc.ObserverBase[ConnectionState], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            return self._states.subscribe(
                lambda state: _told(lambda: observer.on_next(state)),
                observer.on_error,
                lambda: _told(observer.on_completed),
                scheduler=scheduler,
            )

        return LoopObservable(subscribe)

    def current(self) -> RSocketBase | None:
        return self._rsocket

    async def open(self) -> None:
        """Makes the first connection, in one attempt.

        Raises:
            ConnectionFailed: It is refused, unresolvable, or not answered by an RSocket server in time.
        """
        try:
            await self._open(self._options.connect_timeout)
        except TransferError as error:
            self._states.on_next(Disconnected(error))
            raise

    async def connect(self) -> RSocketBase:
        if self._is_closed:
            await self._failures.wait()
            raise ClientClosed("the client is closed")
        if self._rsocket is not None:
            return self._rsocket
        if self._attempt is None:
            self._attempt = asyncio.get_running_loop().create_task(self._connect_again())
            self._attempt.add_done_callback(self._on_attempted)
        attempt = self._attempt
        try:
            # Shared: one who stops waiting takes nothing from the others.
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled():  # by `close`, before it had begun
                raise ClientClosed("the client was closed") from None
            raise

    async def close(self) -> None:
        """Ends everything under way with ClientClosed."""
        self._is_closed = True
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        if self._rsocket is not None:
            self._end(self._rsocket, ErrorCode.CONNECTION_ERROR, "the client was closed")
        while self._ending:
            await asyncio.wait(self._ending)
        self._states.on_completed()

    def _on_attempted(self, attempt: "asyncio.Task[RSocketBase]") -> None:
        self._attempt = None
        if not attempt.cancelled():
            attempt.exception()  # seen, also if everybody who waited has left

    async def _connect_again(self) -> RSocketBase:
        loop, options, backoff = asyncio.get_running_loop(), self._options, self._backoff
        deadline = loop.time() + options.reconnect_timeout
        self._states.on_next(Connecting())
        try:
            while True:
                await asyncio.sleep(backoff.wait(loop.time()))
                try:
                    return await self._open(min(options.connect_timeout, deadline - loop.time()))
                except TransferError as error:
                    now = loop.time()
                    if not error.retryable or now + backoff.wait(now) >= deadline:
                        self._states.on_next(Disconnected(error))
                        raise
        except asyncio.CancelledError:
            # Only `close` cancels this; those who wait hear it as the end of the client.
            raise ClientClosed("the client was closed") from None

    async def _open(self, seconds: float) -> RSocketBase:
        """One attempt.

        Raises:
            ConnectionFailed: It failed, or took too long.
        """
        quiet_rsocket()
        loop = asyncio.get_running_loop()
        self._backoff.begin(loop.time())
        handler = _ClientHandler()
        is_made = False
        try:
            async with asyncio.timeout(seconds):
                _, transport = await loop.create_connection(
                    lambda: FrameTransport(on_lost=handler.on_lost, limits=_LIMITS),
                    self._host,
                    self._port,
                    ssl=self._tls,
                )
                is_made = True
                return await self._set_up(transport, handler)
        except TimeoutError:
            reason = f"not answered within {seconds:.2g} s"
            if is_made:
                reason += " as an RSocket server does; check that it is one, and whether it is encrypted (tcps://)"
            raise ConnectionFailed(f"no connection to {self._uri}: {reason}") from None
        except TransferError:
            raise
        except (OSError, UnicodeError) as error:
            reason = os.strerror(error.errno) if isinstance(error, ConnectionError) and error.errno else str(error)
            raise ConnectionFailed(f"no connection to {self._uri}: {reason}") from error

    async def _set_up(self, transport: FrameTransport, handler: "_ClientHandler") -> RSocketBase:
        """Sends the SETUP, and waits for what only a server that has accepted it says."""
        options = self._options
        rsocket = _Client(
            single_transport_provider(transport),
            handler_factory=lambda: handler,
            data_encoding=WellKnownMimeTypes.APPLICATION_OCTET_STREAM,
            metadata_encoding=WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA,
            keep_alive_period=timedelta(seconds=options.keepalive_period),
            max_lifetime_period=timedelta(seconds=options.keepalive_timeout),
            setup_payload=self._setup,
            fragment_size_bytes=FRAGMENT_SIZE_BYTES,
        )
        rsocket.watch(transport)
        handler.on_end = lambda code, text: self._end(rsocket, code, text)
        try:
            await rsocket.connect()
            rsocket.send_frame(to_keepalive_frame(b""))
            # RSocket answers no SETUP, but every server answers a keepalive, and ours after it has accepted the SETUP.
            # A peer that isn't an RSocket server answers with something else, hangs up, or waits.
            await handler.first_sign.wait()
            if handler.ended is not None:
                raise _connection_failure(self._uri, handler.ended)
        except BaseException:
            self._end(rsocket, ErrorCode.CONNECTION_ERROR, "the attempt to connect was given up")
            raise
        self._rsocket = rsocket
        self._states.on_next(Connected())
        return rsocket

    def _end(self, rsocket: RSocketClient, code: ErrorCode, text: str) -> None:
        """Gives up a connection: what is under way fails at once, the rest is cleaned up soon."""
        if self._rsocket is rsocket:
            self._rsocket = None
            self._backoff.lost(asyncio.get_running_loop().time())
            if not self._is_closed:
                self._states.on_next(Disconnected(from_error_frame(code, text.encode())))
        rsocket.stop_all_streams(code, text.encode())
        # In a task of its own: this may be called by one of those that `close` cancels and waits for.
        ending = asyncio.get_running_loop().create_task(rsocket.close())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


def _told(tell: Callable[[], None]) -> None:
    """Tells one observer of a state: if it raises, neither requests nor other observers have to wait for ever."""
    try:
        tell()
    except Exception as error:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "an observer of the connection's state raised", "exception": error}
        )


class _Client(RSocketClient, LeanRSocket):
    """rsocket's client, whose handler hears the first keepalive, too, and which knows a slow peer from a dead one."""

    def watch(self, transport: FrameTransport) -> None:
        """Takes the transport whose bytes are the peer's signs of life."""
        self._file_transport = transport
        self._owed_bytes = 0
        transport.set_payload_limit(self._most_of)

    def send_frame(self, frame: Frame | FrameFragmentMixin) -> None:
        """As rsocket's; ends the connection if the server makes this side answer, and doesn't take the answers."""
        # Asked by type first: `isinstance` of an abstract class costs ten times as much, and this is for each frame.
        if type(frame) in _OWED_FRAMES and isinstance(frame, Frame) and not getattr(frame, "flags_respond", False):
            nbytes = len(frame.data or b"") + _FRAME_COST_BYTES
            self._owed_bytes += nbytes
            frame.sent_future = asyncio.get_running_loop().create_future()
            frame.sent_future.add_done_callback(lambda _: self._pay(nbytes))
            if self._owed_bytes > _MAX_OWED_BYTES:
                assert isinstance(self._handler, _ClientHandler)
                self._handler.end(ErrorCode.CONNECTION_ERROR, "the server takes none of the answers it asks for")
                return
        super().send_frame(frame)

    def _pay(self, nbytes: int) -> None:
        self._owed_bytes -= nbytes

    def _most_of(self, stream_id: int) -> float:
        """How large a payload in several frames may become: nobody waits for one but the requests under way."""
        stream = self._stream_control._streams.get(stream_id)
        if stream is None:
            return 0
        most: float = getattr(stream, "max_payload_bytes", math.inf)
        return most

    async def _keepalive_timeout_task(self) -> None:
        """In place of rsocket's, which takes only keepalives for life: they wait behind megabytes on a slow link."""
        assert isinstance(self._handler, _ClientHandler)
        loop, timeout = asyncio.get_running_loop(), self._max_lifetime_period.total_seconds()
        transport = self._file_transport
        await self._handler.first_sign.wait()  # until then it is the attempt's own time that counts
        alive_at = loop.time()
        while loop.time() - alive_at <= timeout:
            # What arrives is life, and so is what the peer takes of that which waits to be sent: keepalives are behind
            # it. Not what it takes when little waits: the system of a stopped process goes on to do that.
            is_backlog, taken = transport.waiting_bytes > _BACKLOG_BYTES, transport.taken_bytes
            await asyncio.sleep(timeout / _LOOKS_PER_TIMEOUT)
            if is_backlog and transport.taken_bytes > taken:
                alive_at = loop.time()
            alive_at = max(alive_at, transport.received_at)
        self._handler.end(ErrorCode.CONNECTION_ERROR, f"the server was silent for {timeout:g} s")

    async def handle_keep_alive(self, frame: KeepAliveFrame) -> None:
        assert isinstance(self._handler, _ClientHandler)
        self._handler.first_sign.set()
        await super().handle_keep_alive(frame)


class _ClientHandler(BaseRequestHandler):
    """What the server may do to a client: nothing, but end the connection."""

    def __init__(self) -> None:
        super().__init__()
        self.on_end: Callable[[ErrorCode, str], None] | None = None
        self.ended: tuple[ErrorCode, str] | None = None
        self.first_sign = asyncio.Event()

    async def on_error(self, error_code: ErrorCode, payload: Payload) -> None:
        """An ERROR on stream 0 is the connection's end, also if the server leaves it open."""
        self.end(error_code, bytes(payload.data or b"").decode("utf-8", errors="replace"))

    async def request_response(self, payload: Payload) -> asyncio.Future[Payload]:
        raise _NOTHING_HERE

    async def request_stream(self, payload: Payload) -> Publisher:
        raise _NOTHING_HERE

    async def request_channel(self, payload: Payload) -> tuple[Publisher | None, Subscriber | None]:
        raise _NOTHING_HERE

    def on_lost(self, error: Exception | None) -> None:
        """The transport has ended."""
        self.end(ErrorCode.CONNECTION_ERROR, "the connection to the server was lost")

    def end(self, code: ErrorCode, text: str) -> None:
        """Gives up the connection; the first call counts."""
        if self.ended is None:
            self.ended = (code, text)
            self.first_sign.set()
            on_end, self.on_end = self.on_end, None  # which leads back here, in a circle
            if on_end is not None:
                on_end(code, text)


def _connection_failure(uri: str, ended: tuple[ErrorCode, str]) -> TransferError:
    """Why an attempt failed: the server's own reason where it is one of ours, such as `unauthenticated`."""
    error = from_error_frame(ended[0], ended[1].encode())
    if isinstance(error, ConnectionFailed):
        return ConnectionFailed(f"no connection to {uri}: {error.message}")
    return error


def _credentials(auth: Auth) -> MetadataItem:
    return build_bearer(auth) if isinstance(auth, str) else build_simple(*auth)


def parse_uri(uri: str) -> tuple[str, int]:
    """The host and port of `tcp://HOST[:PORT]` or `tcps://HOST[:PORT]`; the port is 6565 if it isn't given.

    Raises:
        ValueError: It is something else.
    """
    parts = urlsplit(uri)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{uri!r} has no valid port: {error}") from None
    if (
        parts.scheme not in ("tcp", "tcps")
        or not parts.hostname
        or parts.path not in ("", "/")
        or parts.query
        or parts.username
    ):
        raise ValueError(f"{uri!r} is not of the form tcp://HOST[:PORT] or tcps://HOST[:PORT]")
    return parts.hostname, DEFAULT_PORT if port is None else port
