"""The interface of a transport: what a connection needs of the bytes below it, and no more.

When a transport is connected, it gets its connection's `shared.frames.reassembly.Reassembler`. There is one for TCP and
TLS, in `shared.transport.tcp`. Another transport is another file, which gives each message to `Reassembler.take`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto

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
    """This side has ended the connection: what arrives is dropped, and the reason is sent to the peer."""
    LOST = auto()
    """The connection has ended."""


@dataclass(frozen=True, slots=True)
class Flow:
    """How bytes have moved until now; for watches that tell a slow peer from a dead one. Times are the event loop's.

    Attributes:
        received_at: When bytes last arrived, or the connection was made.
        handed_bytes: Bytes of all the frames that were sent so far, whether or not the peer has taken them.
        waiting_bytes: Of those, what the peer isn't known to have taken, a few bytes more or less with TLS; on Linux
            that is what its system hasn't acknowledged.
        blocked_since: Since when the peer has taken nothing of what the socket has no room for; None if it has. A peer
            that takes something between two looks isn't blocked, so look at intervals shorter than it is allowed.
    """

    received_at: float
    handed_bytes: int
    waiting_bytes: int
    blocked_since: float | None

    @property
    def taken_bytes(self) -> int:
        """How many of `handed_bytes`, from the first on, the peer has taken."""
        return self.handed_bytes - self.waiting_bytes


class Transport(ABC):
    """One connection that carries whole frames.

    Attributes:
        state: Where it is between its connection and its end.
        failure: Why this side ended the connection; None if it didn't.
        peer: The other end's address, for logs.
    """

    def __init__(self, peer: str = "unknown") -> None:
        self.state = State.CONNECTING
        self.failure: str | None = None
        self.peer = peer

    @property
    def is_open(self) -> bool:
        """Whether frames come and go."""
        return self.state is State.OPEN

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self.state is State.LOST

    @property
    def address(self) -> str:
        """The other end's address without its port."""
        return self.peer.rpartition(":")[0]

    @property
    def lane(self) -> FileLane | None:
        """Moves files' bytes in threads; None where that can't be. Once it is there, it stays until the end."""
        return None

    @property
    @abstractmethod
    def flow(self) -> Flow:
        """How bytes have moved until now."""

    @property
    def received_at(self) -> float:
        """`Flow.received_at`, without the rest of it."""
        return self.flow.received_at

    def become_quiet(self) -> bool:
        """Answers keepalives by itself until something else comes: without a task, a tenth of the time.

        Returns:
            Whether it does; if so, `PayloadRules.on_active` will be called. False if something is under way, or if
            this transport can't.
        """
        return False

    @property
    def has_unread(self) -> bool:
        """Whether this side leaves bytes unread, or may do so: then a peer that seems silent isn't known to be."""
        return False

    def arrived_of(self, stream_id: int) -> int:
        """Bytes that have arrived of a frame of this stream whose end hasn't; 0 where frames come as a whole."""
        return 0

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
        """Ends the connection, and sends the reason to the peer; drops what still arrives."""

    @abstractmethod
    def forget_rest(self) -> None:
        """Drops what was received and not yet taken, once the connection has ended."""

    @abstractmethod
    async def close(self) -> None:
        """Ends the connection; what was sent already reaches the peer first, if it takes it within a second."""

    @abstractmethod
    def abort(self) -> None:
        """Ends the connection at once, without a reason for the peer."""
