"""The file lane: moves files' bytes between one connection's socket and files, in threads, beside the frame path.

One thread at a time sends and one receives. Each handoff to it moves many items, as long as there is credit for them
and nothing else waits. While a disk holds a thread up between two frames, that thread loses the socket, and the
connection's other streams go on without it. The connection waits for a disk in two cases only:

- The system moves the bytes by itself (without a digest), and the disk holds the thread up in the middle of an item:
  half of it is in the socket, and no other thread can continue it.
- The disk holds up every thread of the job's executor, and another job of that executor is next. Its wait for a thread
  can't be distinguished from a busy moment, in which leaving the socket to others would never let it move anything.

Only on POSIX systems; elsewhere a transport has no lane, and every item takes the frame path.
"""

import os
import select
from collections.abc import Callable, Sequence
from typing import Final

from rsocket.frame import PayloadFrame

from ..frames.outbox import TurnTaker
from .crew import Crew
from .lane_receiver import LaneReceiver
from .lane_sender import LaneSender
from .port import LanePort
from .receiving import ReceiveJob
from .sockets import LaneSocket

__all__ = ["MOVES_FILES", "FileLane"]

MOVES_FILES: Final = hasattr(os, "writev") and hasattr(os, "preadv") and hasattr(select, "poll")
"""Whether this system has what a lane needs."""


class FileLane:
    """See above.

    Args:
        connection: A descriptor of its own for the connection's socket, which the lane closes.
        port: The transport.
    """

    def __init__(self, connection: LaneSocket, port: LanePort) -> None:
        self._crew = Crew(connection)
        self._receiver = LaneReceiver(self._crew, port)
        self._sender = LaneSender(self._crew, port)

    def receive(self, stream_id: int, job: ReceiveJob) -> None:
        """From now on the data of every item of this stream goes to `job`, in a thread.

        A frame that says more than its data (metadata, or that the stream is complete) is passed on to the frame path
        in its order, with `TAKEN` as its data. Items that come in several frames take the frame path as a whole.
        """
        self._receiver.jobs[stream_id] = job

    def end_receiving(self, stream_id: int) -> None:
        """Ends that; what comes next takes the frame path. Nothing if it has ended. See also `ReceiveJob.stop`."""
        self._receiver.end(stream_id)

    async def receive_some(self) -> PayloadFrame | None:
        """Receives items in a thread until something else, or nothing, comes; the event loop reads nothing meanwhile.

        Returns:
            A frame for the frame path, its data taken; None if there is none.

        Raises:
            FrameError: An item's frame contradicts itself; the connection can't go on.
        """
        return await self._receiver.receive_some()

    def wants_next(self) -> bool:
        """Whether what comes next is for the lane."""
        return self._receiver.wants_next()

    @property
    def is_in_item(self) -> bool:
        """Whether an item's rest is to come, whose bytes don't come into the process."""
        return self._receiver.is_in_item

    @property
    def is_holding(self) -> bool:
        """Whether received items wait in memory to be written."""
        return self._receiver.is_holding

    async def send(self, jobs: Sequence[TurnTaker], waiting: Callable[[], int]) -> None:
        """A turn at the socket for `jobs`, which have the same executor; over when another one should have its turn.

        Args:
            jobs: Whose items are sent, in turns.
            waiting: How many others wait in the outbox; for them it stops early.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        await self._sender.send(jobs, waiting)

    @property
    def handed_bytes(self) -> int:
        """Bytes of the frames that threads have sent, or begun to send."""
        return self._sender.handed_bytes

    @property
    def waiting_bytes(self) -> int:
        """What of the frame that is being sent isn't in the socket."""
        return self._sender.waiting_bytes

    @property
    def is_receiving(self) -> bool:
        """Whether a thread has the receiving side of the socket."""
        return self._receiver.is_active

    @property
    def is_sending(self) -> bool:
        """Whether a thread has the sending side of the socket."""
        return self._sender.is_active

    @property
    def is_active(self) -> bool:
        """Whether a thread has either side of the socket."""
        return self.is_receiving or self.is_sending

    def interrupt(self) -> None:
        """The connection is failing: threads leave the socket as soon as they are between two frames."""
        self._receiver.interrupt()
        self._sender.interrupt()

    def close(self) -> None:
        """The connection has ended."""
        self._receiver.close()
        self._sender.close()
        self._crew.close()
