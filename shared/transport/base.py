"""The interface of a transport: what a connection needs of the bytes below it, and no more.

The connection hands in what judges and joins its peer's payloads when the transport is connected; see
`shared.frames.reassembly`. One implementation, for TCP and TLS, is in `shared.transport.tcp`. Another one is another
file: it passes each message to `Reassembler.take`.
"""

from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import Protocol

from rsocket.error_codes import ErrorCode
from rsocket.frame import Frame

from ..files.lane import FileLane
from ..frames.fragments import SplitPayload

__all__ = ["Flow", "State", "Transport"]


class State(Enum):
    """Where a transport is between its connection and its end; it only moves down this list."""

    CONNECTING = auto()
    OPEN = auto()
    FAILED = auto()
    """This side has ended the connection: what arrives is dropped, and the peer is being told why."""
    LOST = auto()
    """The connection has ended."""


class Flow(Protocol):
    """How bytes move; for watches that tell a slow peer from a dead one. Times are the event loop's."""

    @property
    def received_at(self) -> float:
        """When bytes last arrived, or the connection was made."""
        ...

    @property
    def handed_bytes(self) -> int:
        """Bytes of all the frames that were sent so far, whether or not the peer has taken them."""
        ...

    @property
    def waiting_bytes(self) -> int:
        """Of those, what the peer isn't known to have taken; on Linux that is what its system hasn't acknowledged."""
        ...

    @property
    def taken_bytes(self) -> int:
        """How many of `handed_bytes`, from the first on, the peer has taken; a few bytes more or less with TLS."""
        ...

    @property
    def blocked_since(self) -> float | None:
        """Since when the peer has taken nothing of what the socket has no room for; None if it has.

        A peer that takes something between two looks at this isn't blocked, so look at intervals shorter than the
        time that it is allowed.
        """
        ...

    def arrived_of(self, stream_id: int) -> int:
        """Bytes that have arrived of a frame of this stream whose end hasn't."""
        ...


class Transport(ABC):
    """One connection that carries whole frames."""

    @property
    @abstractmethod
    def state(self) -> State:
        """Where it is between its connection and its end."""

    @property
    @abstractmethod
    def failure(self) -> str | None:
        """Why this side ended the connection; None if it didn't."""

    @property
    @abstractmethod
    def peer(self) -> str:
        """The other end's address, for logs."""

    @property
    @abstractmethod
    def flow(self) -> Flow:
        """How bytes move."""

    @property
    @abstractmethod
    def lane(self) -> FileLane | None:
        """Moves files' bytes in threads; None where that can't be. Once it is there, it stays until the end."""

    @abstractmethod
    async def next_frame(self) -> Frame | SplitPayload | None:
        """The next frame, or payload in several frames, that there is something to do for; None when there are no more.

        Nothing is received before it is asked for, but what fits the receive buffer. A `SkippedFrame` stands for items
        of the file lane that wait in memory: the connection decides whether more may.
        """

    @abstractmethod
    async def send(self, frame: Frame) -> None:
        """Sends a frame, at the latest in `flush`, and waits until the socket has taken what was sent.

        Raises:
            RSocketTransportError: The connection has ended.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Sends what was gathered; to be called when no other frame follows for now.

        Raises:
            RSocketTransportError: The connection has ended.
        """

    @abstractmethod
    def fail(self, error_code: ErrorCode, reason: str) -> None:
        """Ends the connection, and tells the peer why: nothing that arrives any more is looked at."""

    @abstractmethod
    def forget_rest(self) -> None:
        """Drops what was received and not yet taken, once the connection has ended."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the connection; what was sent already reaches the peer first, if it takes it within a second."""

    @abstractmethod
    def abort(self) -> None:
        """Ends the connection at once; the peer isn't told why."""

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self.state is State.LOST

    @property
    def is_open(self) -> bool:
        """Whether frames come and go."""
        return self.state is State.OPEN

    @property
    def address(self) -> str:
        """The other end's address without its port."""
        return self.peer.rpartition(":")[0]
