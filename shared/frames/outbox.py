"""The send queue of a connection: frames, payloads a fragment at a time, and files; the same for both ends.

After each fragment, and after a few items of a file, the other entries have their turn. A payload can be withdrawn
while it waits. Control frames, which a peer can provoke and needn't read, are counted: a connection takes nothing more
from a peer for which too many of them are waiting (see `control_bytes`).
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from rsocket.frame import CancelFrame, Frame, FrameFragmentMixin, KeepAliveFrame

from ..aio import wake
from .outgoing import OutgoingFrame
from .room import SendRoom

__all__ = ["Entry", "FileTurn", "Outbox", "SkippedFrame", "TurnTaker"]

# What a control frame counts beside its data.
_FRAME_COST_BYTES: Final = 512
# How many streams' files may share a turn at the socket.
_MAX_SHARING: Final = 64


class TurnTaker(ABC):
    """What sends a file's bytes by itself when it has a turn at the socket."""

    @property
    @abstractmethod
    def executor(self) -> Executor | None:
        """Whose threads send it; None for the event loop's default executor."""

    @abstractmethod
    def stop(self) -> None:
        """Sends no more of it."""


Entry = Frame | FrameFragmentMixin | TurnTaker


class SkippedFrame(CancelFrame):
    """Stands for a frame that was withdrawn, and is never written."""


@dataclass(frozen=True, slots=True)
class FileTurn:
    """A turn at the socket for `jobs`, which have the same executor, while `waiting()` others wait for theirs."""

    jobs: Sequence[TurnTaker]
    waiting: Callable[[], int]


class Outbox:
    """See above. The connection puts entries in, and its one sender takes them out.

    Args:
        provoked: Kinds of control frames that the peer can provoke; keepalives that ask for an answer don't count.
        on_room: Called when such a frame was sent.
        room: Where these frames count, too; None to do without.

    Attributes:
        control_bytes: What such frames that wait, or are being sent, count together.
    """

    def __init__(
        self,
        provoked: frozenset[type[Frame]],
        on_room: Callable[[], None] | None = None,
        room: SendRoom | None = None,
    ) -> None:
        self.control_bytes = 0
        self._room = room
        self._provoked: frozenset[type[object]] = frozenset(provoked)
        self._on_room = on_room
        self._is_closed = False
        self._entries: deque[Entry] = deque()
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._entries

    def put(self, entry: Entry) -> None:
        """Queues an entry; drops it once the outbox is closed."""
        if self._is_closed:
            if isinstance(entry, TurnTaker):
                entry.stop()
            return
        if type(entry) in self._provoked:
            self._count(_cost(entry))
        self._entries.append(entry)
        wake(self._waiter)

    def put_first(self, frame: Frame | FrameFragmentMixin) -> None:
        """Queues a frame before all others."""
        self._entries.appendleft(frame)
        wake(self._waiter)

    async def take(self) -> Frame | FileTurn:
        """Waits for an entry, and takes out what is to be sent of it now; `on_sent` is to follow."""
        while True:
            while not self._entries:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            entry = self._entries.popleft()
            # Compared by type first: `isinstance` of an abstract class costs ten times as much.
            if type(entry) is OutgoingFrame or isinstance(entry, FrameFragmentMixin):
                fragment = entry.get_next_fragment()
                if fragment is None:
                    continue
                if fragment.flags_follows:
                    self._entries.append(entry)
                return fragment
            return self._file_turn(entry) if isinstance(entry, TurnTaker) else entry

    def on_sent(self, frame: Frame) -> None:
        """A frame that was taken out is in the socket, or was skipped."""
        if type(frame) in self._provoked:
            self._count(-_cost(frame))
            if self._on_room is not None:
                self._on_room()
        if frame.sent_future is not None and not frame.sent_future.done():
            frame.sent_future.set_result(None)

    def close(self) -> None:
        """The connection has ended: drops what waits."""
        self._is_closed = True
        entries, self._entries = self._entries, deque()
        self._on_room = None  # which refers to the connection: a reference cycle
        if self._room is not None:
            self._room.add(-self.control_bytes)
            self._room = None
        for entry in entries:
            if isinstance(entry, TurnTaker):
                entry.stop()

    def _count(self, nbytes: int) -> None:
        self.control_bytes += nbytes
        if self._room is not None:
            self._room.add(nbytes)

    def _file_turn(self, job: TurnTaker) -> FileTurn:
        """The job's turn, shared with the files that are next: one thread handoff is enough for all of them."""
        jobs = [job]
        while self._entries and len(jobs) < _MAX_SHARING:
            other = self._entries[0]
            if not isinstance(other, TurnTaker) or other.executor is not job.executor:
                break
            self._entries.popleft()
            jobs.append(other)
        return FileTurn(jobs, lambda: len(self._entries))


def _cost(frame: object) -> int:
    if type(frame) is KeepAliveFrame and frame.flags_respond:
        return 0
    return _FRAME_COST_BYTES + len(getattr(frame, "data", b"") or b"")
