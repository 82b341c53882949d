"""What a request needs of a connection, and the connection that an application has made itself."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import reactivex
from reactivex import Observable
from rsocket.rsocket_base import RSocketBase

from shared.aio import running_loop
from shared.engine import is_usable
from shared.errors import ConnectionLost

from ..rx.loops import note_thread
from ..rx.observables import on_loop
from .backoff import Backoff
from .options import ConnectOptions
from .states import Connected, ConnectionState, Disconnected

__all__ = ["Connector", "FailureDelay", "GivenConnection"]

# Between failures that need no peer: ten a second cost little, and ten operations in sequence fail within a second.
_FAILURE_BASE_SECONDS: Final = 0.01
_FAILURE_CAP_SECONDS: Final = 0.1


class Connector(Protocol):
    """Gives requests their connection."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the connection belongs to; None for that of each subscription."""
        ...

    @property
    def uris(self) -> Sequence[str]:
        """Where the connection leads; none if that isn't known."""
        ...

    @property
    def progress_timeout(self) -> float:
        """Seconds after which an operation for which nothing moves has failed."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether the application has closed the client."""
        ...

    def states(self) -> Observable[ConnectionState]:
        """Emits the connection's state, and its changes."""
        ...

    def current(self) -> RSocketBase | None:
        """The connection, unless there is none or it is known to be dead."""
        ...

    async def connect(self) -> RSocketBase:
        """The connection, made if need be.

        Raises:
            ConnectionFailed: It could not be made in time.
            ClientClosed: The client was closed.
        """
        ...

    async def close(self) -> None:
        """Ends everything under way with ClientClosed, unless the connection is the caller's."""
        ...


class FailureDelay:
    """Spaces failures that take no time, which a bare `retry` would otherwise repeat without end in one iteration.

    The first one is immediate.
    """

    def __init__(self) -> None:
        self._backoff = Backoff(_FAILURE_BASE_SECONDS, _FAILURE_CAP_SECONDS)

    async def wait(self) -> None:
        """Returns when the next failure may be reported."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._backoff.wait(loop.time()))
        self._backoff.begin(loop.time())


class GivenConnection:
    """A connection that belongs to the caller, and that only the caller can make again."""

    def __init__(self, rsocket: RSocketBase) -> None:
        self._rsocket = rsocket
        self.loop: Final = running_loop()
        if self.loop is not None:
            note_thread(self.loop)
        self.uris: Final = ()
        self._failure_delay = FailureDelay()
        self.progress_timeout: Final = ConnectOptions().progress_timeout
        self.is_closed: Final = False

    def states(self) -> Observable[ConnectionState]:
        lost = Disconnected(ConnectionLost("the connection is closed, or its peer is silent"))
        states = reactivex.defer(lambda _: reactivex.of(Connected() if self.current() is not None else lost))
        return on_loop(states, self.loop)

    def current(self) -> RSocketBase | None:
        return self._rsocket if is_usable(self._rsocket) else None

    async def connect(self) -> RSocketBase:
        if (rsocket := self.current()) is not None:
            return rsocket
        await self._failure_delay.wait()
        raise ConnectionLost("the connection is closed, or its peer silent, and is not this client's to make again")

    async def close(self) -> None:
        return
