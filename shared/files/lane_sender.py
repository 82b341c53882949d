"""The sending side of a file lane: one thread at a time reads files' items, and puts them into the socket."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from rsocket.exceptions import RSocketTransportError

from ..frames.outbox import TurnTaker
from .crew import Crew
from .port import LanePort
from .sending import SendJob, Sent
from .sockets import LaneSocket
from .threads import SocketTurn

__all__ = ["LaneSender"]

# Items that may be sent in a turn while something else waits; while two others wait, one.
_TURN_ITEMS: Final = 2


class LaneSender:
    """See `FileLane`.

    Args:
        crew: Has the threads and the socket.
        port: The transport.
    """

    def __init__(self, crew: Crew, port: LanePort) -> None:
        self._crew = crew
        self._port: LanePort | None = port
        self._sending: _SendTurn | None = None
        self._handed_bytes = 0

    @property
    def is_active(self) -> bool:
        """Whether a thread has the sending side of the socket."""
        return self._sending is not None

    @property
    def handed_bytes(self) -> int:
        """Bytes of the frames that threads have sent, or begun to send."""
        return self._handed_bytes + (0 if self._sending is None else self._sending.frame_bytes)

    @property
    def waiting_bytes(self) -> int:
        """What of the frame that is being sent isn't in the socket."""
        return 0 if self._sending is None else self._sending.current.waiting_bytes + self._crew.connection.unsent_bytes

    def interrupt(self) -> None:
        """No more is sent than the frame that is half in the socket."""
        if self._sending is not None:
            self._sending.stop()

    def close(self) -> None:
        """The connection has ended."""
        self._port = None  # which leads back here, in a reference cycle

    async def send(self, jobs: Sequence[TurnTaker], waiting: Callable[[], int]) -> None:
        """See `FileLane.send`."""
        ready = [job for job in jobs if isinstance(job, SendJob) and job.begin_turn()]
        port = self._port
        if not ready:
            return
        if port is None:
            for job in ready:
                job.stop()
                job.end_turn()
            raise RSocketTransportError("the connection has ended")
        sending, turn = _SendTurn(ready, waiting), SocketTurn()
        try:
            await port.drained()
            self._sending = sending
            self._handed_bytes -= sending.frame_bytes
            await self._send(sending, port, turn)
        except OSError as error:
            port.on_lane_failed(error)
            raise RSocketTransportError(f"the connection has ended: {error}") from error
        finally:
            if self._sending is not None:
                self._handed_bytes += sending.frame_bytes
                self._sending = None
            if sending.current.is_torn:
                port.on_lane_failed(OSError("a frame was left half sent"))
                sending.current.abandon()
            for job in ready:
                if not turn.is_revoked or job is not sending.current:
                    job.end_turn()  # else that waits for its thread
            port.on_lane_idle()

    async def _send(self, sending: "_SendTurn", port: LanePort, turn: SocketTurn) -> None:
        """Sends until the turn is over, or a disk has held the thread up, which has lost the socket then."""
        crew = self._crew
        while True:
            thread = crew.run(sending.executor, sending.send_some, crew.connection, port.prefix, turn)
            try:
                await crew.watch(thread, turn, self.interrupt)
            finally:
                if turn.is_revoked:
                    # It is back from the disk then, and its item waits for its next turn.
                    thread.add_done_callback(lambda _, held_up=sending.current: held_up.end_turn())
            if turn.is_revoked or thread.result():
                return
            await crew.until_writable()


class _SendTurn:
    """Jobs that share a turn at the socket: each sends an item and is followed by the next."""

    def __init__(self, jobs: Sequence[SendJob], waiting: Callable[[], int]) -> None:
        self._jobs = jobs
        self._waiting = waiting
        self._at: int = 0
        self._sent: int = 0

    @property
    def executor(self) -> Executor | None:
        """Whose threads send it; the same for all."""
        return self._jobs[0].executor

    @property
    def current(self) -> SendJob:
        """The job whose item is sent, or is going to be."""
        return self._jobs[self._at]

    @property
    def frame_bytes(self) -> int:
        """Bytes of all the frames that these jobs have begun to send so far."""
        return sum(job.frame_bytes for job in self._jobs)

    def stop(self) -> None:
        """No more is sent than the frame that is half in the socket."""
        for job in self._jobs:
            job.stop()

    def send_some(self, connection: LaneSocket, prefix: Callable[[int], bytes], turn: SocketTurn) -> bool:
        """Sends until the turn is over; False if that has to wait for the socket. Blocks.

        It is over for all of them when one has no more to send, so that what waits for its end goes on.
        """
        is_shared = len(self._jobs) > 1
        while True:
            job = self.current
            begun = self._sent

            def may_go_on(sent: int, begun: int = begun) -> bool:
                self._sent = begun + sent
                return not (is_shared and sent) and self._sent * self._waiting() < _TURN_ITEMS

            outcome = job.send_some(connection, prefix, turn, may_go_on)
            if outcome is Sent.SOME:
                return False
            if outcome is Sent.NOTHING or not is_shared or job.is_ended:
                return True
            if self._sent * self._waiting() >= _TURN_ITEMS or any(each.is_stopped for each in self._jobs):
                return True
            count, after = len(self._jobs), self._at + 1
            following = (at % count for at in range(after, after + count))
            ready = next((at for at in following if self._jobs[at].is_ready), None)
            if ready is None:
                return True
            self._at = ready
