"""The connection behind a `FileClient`: made once, watched, and made again when an operation needs it."""

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final, Self

from reactivex import Observable, abc
from reactivex.subject import BehaviorSubject
from rsocket.error_codes import ErrorCode
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.engine import CONNECTION_CLOSE
from shared.errors import ClientClosed, ConnectionFailed, TlsFailed, TransferError, from_error_frame
from shared.frames.reassembly import Reassembler
from shared.logs import quiet_rsocket
from shared.presence import TimeoutWhileRunning
from shared.protocol.metadata import build_bearer, build_metadata, build_simple
from shared.transport.base import Transport

from ..rx.loops import note_thread
from ..rx.observables import LoopObservable, report_raised
from .backoff import Backoff
from .connector import FailureDelay
from .dial import Dial, dial_tcp, to_failure
from .options import Auth, ConnectOptions, is_encrypted
from .session import ClientHandler, ClientSession
from .states import Connected, Connecting, ConnectionState, Disconnected

__all__ = ["Connection"]


class Connection:
    """A `Connector` that makes its connection itself, again after each loss; see `FileClient.connect`.

    Args:
        uri: One, or several to be tried in turn.
        dial: Makes a transport, if not over TCP or TLS as `uri` says.
    """

    def __init__(
        self,
        uri: str | Sequence[str],
        options: ConnectOptions,
        auth: Auth | None = None,
        tls: ssl.SSLContext | None = None,
        dial: Dial | None = None,
    ) -> None:
        uris = [uri] if isinstance(uri, str) else list(uri)
        if not uris:
            raise ValueError("there is no URI to connect to")
        self.uris: Final = tuple(uris)
        # The one to try first, and those to try then; what fails goes to the end.
        self._servers = deque((each, dial or dial_tcp(each, tls)) for each in uris)
        credentials = build_bearer(auth) if isinstance(auth, str) else None if auth is None else build_simple(*auth)
        self._setup = None if credentials is None else Payload(b"", build_metadata([credentials]))
        self._options = options
        self.loop: Final = asyncio.get_running_loop()
        note_thread(self.loop)
        self._backoff = Backoff(options.reconnect_base, min(options.reconnect_cap, options.reconnect_timeout / 2))
        self._failure_delay = FailureDelay()
        self._session: ClientSession | None = None
        self._retired: set[ClientSession] = set()
        self._attempt: asyncio.Task[RSocketBase] | None = None
        self.is_closed = False
        self.progress_timeout: Final = options.progress_timeout
        self._ending: set[asyncio.Task[None]] = set()
        self._states: BehaviorSubject[ConnectionState] = BehaviorSubject(Connecting())

    def states(self) -> Observable[ConnectionState]:
        """Emits the state as it is, then each change; completes when the client is closed."""

        def subscribe(
            observer: abc.ObserverBase[ConnectionState], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            return self._states.subscribe(
                partial(report_raised, observer.on_next),
                observer.on_error,
                partial(report_raised, observer.on_completed),
                scheduler=scheduler,
            )

        return LoopObservable(subscribe, self.loop, is_source=True)

    def current(self) -> RSocketBase | None:
        return self._session

    async def open(self) -> None:
        """Makes the first connection, in one attempt; fails as `FileClient.connect`."""
        try:
            await self._open(self._options.connect_timeout)
        except TransferError as error:
            self._states.on_next(Disconnected(error))
            raise

    async def connect(self) -> RSocketBase:
        if self.is_closed:
            await self._failure_delay.wait()
            raise ClientClosed("the client is closed")
        if self._session is not None:
            return self._session
        if self._attempt is None:
            self._attempt = asyncio.get_running_loop().create_task(self._connect_again())
            self._attempt.add_done_callback(self._on_attempted)
        attempt = self._attempt
        try:
            # Shielded: all callers share the attempt, and one of them being cancelled must not end it.
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled():  # by `close`, before it had begun
                raise ClientClosed("the client was closed") from None
            raise

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends everything under way with ClientClosed."""
        self.is_closed = True
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        if self._session is not None:
            self._end(self._session, ErrorCode.CONNECTION_ERROR, "the client was closed")
        for session in list(self._retired):
            self._end(session, ErrorCode.CONNECTION_ERROR, "the client was closed")
        while self._ending:
            await asyncio.wait(self._ending)
        self._states.on_completed()

    def _on_attempted(self, attempt: asyncio.Task[RSocketBase]) -> None:
        self._attempt = None
        if not attempt.cancelled():
            attempt.exception()  # marks it as retrieved, should all callers have been cancelled

    async def _connect_again(self) -> RSocketBase:
        loop, options, backoff = asyncio.get_running_loop(), self._options, self._backoff
        left = options.reconnect_timeout
        self._states.on_next(Connecting())
        try:
            while True:
                delay = backoff.wait(loop.time())
                await asyncio.sleep(delay)
                # Each step counts what it may take, so that a process that stands still doesn't run out of time.
                left -= delay
                began, seconds = loop.time(), min(options.connect_timeout, left)
                try:
                    return await self._open(seconds)
                except TransferError as error:
                    now = loop.time()
                    left -= min(now - began, seconds)
                    if not error.retryable or backoff.wait(now) >= left:
                        self._states.on_next(Disconnected(error))
                        raise
        except asyncio.CancelledError:
            raise ClientClosed("the client was closed") from None  # only `close` cancels this task

    async def _open(self, seconds: float) -> RSocketBase:
        """Makes one attempt with each URI, until one succeeds; raises ConnectionFailed if none does in time."""
        quiet_rsocket()
        loop, failures = asyncio.get_running_loop(), list[TransferError]()
        self._backoff.begin(loop.time())
        for left in range(len(self._servers), 0, -1):
            began, share = loop.time(), seconds / left
            try:
                return await self._open_one(*self._servers[0], share)
            except TransferError as error:
                failures.append(error)
                self._servers.rotate(-1)
            seconds -= min(loop.time() - began, share)
        raise _summary(failures)

    async def _open_one(self, uri: str, dial: Dial, seconds: float) -> RSocketBase:
        handler = ClientHandler()
        sessions: list[ClientSession] = []

        def on_connected(transport: Transport) -> Reassembler:
            sessions.append(ClientSession(transport, handler, self._options, self._setup))
            return sessions[0].reassembler

        def on_lost(error: Exception | None) -> None:
            handler.on_lost(error, sessions[0].transport.failure if sessions else None)

        try:
            async with TimeoutWhileRunning(seconds):
                await dial(on_connected, on_lost)
                session = sessions[0]
                handler.on_end = lambda code, text: self._end(session, code, text)
                handler.on_closing = lambda text: self._retire(session, text)
                await session.open()
            if handler.ended is not None:
                raise _refusal(uri, handler)
        except TimeoutError:
            reason = f"not answered within {seconds:.2g} s"
            if sessions:
                reason += " as an RSocket server does; check that it is one, and whether it is encrypted (tcps://)"
            elif is_encrypted(uri):
                reason += "; check the address, and whether the server is encrypted (tcp:// if not)"
            raise ConnectionFailed(f"no connection to {uri}: {reason}") from None
        except TransferError:
            raise
        except (OSError, UnicodeError) as error:
            raise to_failure(uri, error, is_connected=False) from error
        else:
            self._session = session
            self._states.on_next(Connected())
            return session
        finally:
            for each in sessions:
                if each is not self._session:
                    self._end(each, ErrorCode.CONNECTION_ERROR, "the attempt to connect was given up")

    def _end(self, session: ClientSession, code: ErrorCode, text: str) -> None:
        """Gives up a connection: what is under way fails at once, the rest is cleaned up soon."""
        self._leave(session, code, text)
        self._retired.discard(session)
        session.stop_all_streams(code, text.encode())
        # In a task of its own: the caller may be one of the tasks that `close` cancels and waits for.
        ending = asyncio.get_running_loop().create_task(session.close())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    def _retire(self, session: ClientSession, text: str) -> None:
        """The server closes a connection: what is under way goes on, the next request gets another connection."""
        self._leave(session, CONNECTION_CLOSE, text)
        self._retired.add(session)

    def _leave(self, session: ClientSession, code: ErrorCode, text: str) -> None:
        """Uses the connection for no more requests."""
        if self._session is session:
            self._session = None
            if session.is_silent:
                self._servers.rotate(-1)  # another attempt with a server that doesn't answer would take its time
            self._backoff.lost(asyncio.get_running_loop().time())
            if not self.is_closed:
                self._states.on_next(Disconnected(from_error_frame(code, text.encode())))


def _refusal(uri: str, handler: ClientHandler) -> TransferError:
    """Why an attempt failed: the server's own reason where it is one of ours, such as `unauthenticated`."""
    assert handler.ended is not None, "it has failed"
    if handler.is_lost:
        return to_failure(uri, handler.lost_by, is_connected=True)
    code, text = handler.ended
    error = from_error_frame(code, text.encode())
    if isinstance(error, TlsFailed):
        return TlsFailed(f"no connection to {uri}: {error.message}")
    is_ours = not isinstance(error, ConnectionFailed)
    return error if is_ours else ConnectionFailed(f"no connection to {uri}: {error.message}")


def _summary(failures: list[TransferError]) -> TransferError:
    """What the attempts with all URIs failed with: retryable if one of them is."""
    if len(failures) == 1:
        return failures[0]
    kind = type(next((error for error in failures if error.retryable), failures[0]))
    return kind("; ".join(dict.fromkeys(error.message for error in failures)))
