"""The connection of a fake client: made again after each loss, as that of `FileClient.connect`."""

from collections import deque
from typing import Final, cast
from uuid import uuid4

from reactivex import Observable
from reactivex.subject import BehaviorSubject
from rsocket.rsocket_base import RSocketBase

from shared.aio import running_loop
from shared.errors import ClientClosed, ConnectionFailed, ConnectionLost

from ..connection.connector import FailureDelay
from ..connection.states import Connected, Connecting, ConnectionState, Disconnected
from ..rx.observables import on_loop
from .peer import Peer
from .server import FakeServer

__all__ = ["FakeConnector"]


class FakeConnector:
    """A `Connector` to a `FakeServer`.

    Attributes:
        loop: The event loop where it was made; None if there was none, for that of each subscription.
        uris: See `Connector`.
        progress_timeout: See `ConnectOptions`.
        refusals: What the next attempts to connect fail with.
    """

    def __init__(self, server: FakeServer, progress_timeout: float) -> None:
        self.loop: Final = running_loop()
        self.uris: Final = (f"fake://{uuid4().hex}",)  # of a server of its own
        self.progress_timeout: Final = progress_timeout
        self.is_closed = False
        self.refusals: Final[deque[ConnectionFailed]] = deque()
        self._server = server
        self._failure_delay = FailureDelay()
        self._states: BehaviorSubject[ConnectionState] = BehaviorSubject(Connected())
        self._peer: Peer | None = self._make()

    @property
    def peer(self) -> Peer | None:
        """The server's end; None while there is no connection."""
        return self._peer

    def states(self) -> Observable[ConnectionState]:
        return on_loop(self._states, self.loop)

    def current(self) -> RSocketBase | None:
        # Requests use what a `Peer` has of it.
        return cast(RSocketBase, self._peer) if self._peer is not None else None

    async def connect(self) -> RSocketBase:
        if self.is_closed:
            await self._failure_delay.wait()
            raise ClientClosed("the client is closed")
        if (current := self.current()) is not None:
            return current
        self._states.on_next(Connecting())
        if self.refusals:
            error = self.refusals.popleft()
            self._states.on_next(Disconnected(error))
            await self._failure_delay.wait()
            raise error
        self._peer = self._make()
        self._states.on_next(Connected())
        return cast(RSocketBase, self._peer)

    async def close(self) -> None:
        """Ends everything under way with ClientClosed."""
        self.is_closed = True
        if self._peer is not None:
            self._peer.lose()
            self._peer = None
        self._states.on_completed()

    def lose(self) -> None:
        """Ends the connection, and with it everything under way with ConnectionLost."""
        if self._peer is not None:
            self._peer.lose()
            self._on_lost()

    def _make(self) -> Peer:
        return Peer(self._server, self._on_lost)

    def _on_lost(self) -> None:
        self._peer = None
        self._states.on_next(Disconnected(ConnectionLost("the connection to the server was lost")))
