"""The receiving side of a file lane: one thread at a time takes items out of the socket, and writes them."""

import asyncio
import select
import time
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final

from rsocket.frame import PayloadFrame

from ..aio import wake
from ..frames.codec import FrameHeader
from .crew import Crew
from .pipes import Pipe
from .port import ItemReader, LanePort
from .receiving import TAKEN, ReceiveJob
from .threads import SocketTurn, wait_for_socket

__all__ = ["LaneReceiver"]

# How long a thread may receive for one connection before others get a thread; with the rest of an item, twice that.
_RECEIVE_SECONDS: Final = 0.05
# How long a thread waits for more before it reports what it has written: bytes that are on their way come sooner.
_UNREPORTED_MS: Final = 1


class LaneReceiver:
    """See `FileLane`.

    Args:
        crew: Has the threads and the socket.
        port: The transport.

    Attributes:
        jobs: The job of each stream whose items are received here.
    """

    def __init__(self, crew: Crew, port: LanePort) -> None:
        self.jobs: dict[int, ReceiveJob] = {}
        self._crew = crew
        self._port: LanePort | None = port
        self._turn: SocketTurn | None = None
        self._is_wanted = False
        self._waiter: asyncio.Future[None] | None = None
        # Of the item whose bytes don't come into the process: its job, and how many are missing.
        self._spliced: tuple[ReceiveJob, int] | None = None
        self._pipe: Pipe | None = None

    @property
    def is_active(self) -> bool:
        """Whether a thread has the receiving side of the socket."""
        return self._turn is not None

    @property
    def is_in_item(self) -> bool:
        """Whether an item's rest is to come, whose bytes don't come into the process."""
        return self._spliced is not None

    @property
    def is_holding(self) -> bool:
        """Whether items wait in memory to be written."""
        return any(job.held_bytes for job in self.jobs.values())

    def wants_next(self) -> bool:
        """Whether what comes next is for the lane."""
        if self._spliced is not None:
            return True
        return bool(self.jobs) and self._port is not None and self._port.reader.next_item(self.jobs) is not None

    def end(self, stream_id: int) -> None:
        """What comes next of a stream takes the frame path."""
        self.jobs.pop(stream_id, None)
        if self._spliced is not None:
            wake(self._waiter)

    def interrupt(self) -> None:
        """The thread leaves the socket as soon as it is between two frames."""
        self._is_wanted = False
        wake(self._waiter)

    def close(self) -> None:
        """The connection has ended."""
        self.jobs.clear()
        self.interrupt()
        self._port = None  # which leads back here, in a reference cycle
        if not self.is_active:
            self._close_pipe()

    async def receive_some(self) -> PayloadFrame | None:
        """See `FileLane.receive_some`."""
        port, crew = self._port, self._crew
        if port is None:
            return None
        port.pause_reading()
        turn = self._turn = SocketTurn()
        self._is_wanted = True
        frame: PayloadFrame | None = None
        try:
            if self._spliced is not None and self._spliced[0].is_over:
                port.reader.skip_next(self._spliced[1])  # the job has ended in the middle of an item
                self._spliced = None
                return None
            thread = crew.run(self._executor(port), self._receive, port, turn)
            try:
                await crew.watch(thread, turn, self.interrupt)
            finally:
                if turn.is_revoked and (pipe := self._pipe) is not None:
                    self._pipe = None
                    thread.add_done_callback(lambda _: pipe.close())  # it may have bytes in it
            frame = None if turn.is_revoked else thread.result()
            if self._spliced is not None and self._is_wanted:
                self._waiter = asyncio.get_running_loop().create_future()
                await crew.until_readable(self._waiter)
        except OSError as error:
            port.on_lane_failed(error)
        finally:
            self._turn = self._waiter = None
            for job in list(self.jobs.values()):
                job.report_new()
            if self._port is None:
                self._close_pipe()
            port.on_lane_idle()
        return frame

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _executor(self, port: LanePort) -> Executor | None:
        if self._spliced is not None:
            return self._spliced[0].executor
        item = port.reader.next_item(self.jobs)
        job = None if item is None else self.jobs.get(item.stream_id)
        return None if job is None else job.executor

    def _receive(self, port: LanePort, turn: SocketTurn) -> PayloadFrame | None:
        """Blocks."""
        reader, deadline = port.reader, time.monotonic() + _RECEIVE_SECONDS
        while self._is_wanted:
            if time.monotonic() > deadline + (_RECEIVE_SECONDS if reader.is_in_item else 0):
                return None
            if self._spliced is not None:
                if not self._splice(port, turn, *self._spliced):
                    return None
                continue
            item = reader.next_item(self.jobs)
            job = None if item is None else self.jobs.get(item.stream_id)
            if item is not None and job is not None:
                if not item.is_plain:
                    frame = reader.take_frame(item)
                    if frame is not None:
                        _take_data(frame, job)
                        return frame
                elif self._crew.connection.moves_files and job.splices and self._has_pipe():
                    self._begin_splice(reader, item, job)
                    continue
                elif (taken := reader.take_data(item)) is not None:
                    data, give_back = taken
                    has_socket = job.take_here(data, turn)
                    data.release()
                    give_back()
                    # Where items wait for a disk, the event loop decides whether more may.
                    if not has_socket or job.held_bytes:
                        return None
                    continue
            elif reader.is_ready:
                return None
            if not self._read_some(port):
                return None
        return None

    def _read_some(self, port: LanePort) -> bool:
        """Receives what there is; False if nothing came for some time."""
        buffer = port.reader.get_buffer()
        missing = port.reader.header_bytes_missing
        if missing and self._crew.connection.moves_files and any(job.may_splice for job in list(self.jobs.values())):
            buffer = buffer[:missing]  # what is behind the header doesn't come into the process
        try:
            nbytes = self._crew.connection.receive(buffer)
        except (BlockingIOError, InterruptedError):
            return self._wait_for_more()
        if not nbytes:
            return False  # the event loop finds the end when it reads again
        port.on_received()
        port.reader.received(nbytes)
        return True

    def _wait_for_more(self) -> bool:
        """Waits a little for the socket; a sender whose window is small may wait for a report of what was written."""
        if wait_for_socket(self._crew.connection, select.POLLIN, _UNREPORTED_MS):
            return True
        for job in list(self.jobs.values()):
            job.report_soon()
        return wait_for_socket(self._crew.connection, select.POLLIN)

    def _has_pipe(self) -> bool:
        if self._pipe is None:
            with suppress(OSError):
                self._pipe = Pipe()
        return self._pipe is not None

    def _begin_splice(self, reader: ItemReader, item: FrameHeader, job: ReceiveJob) -> None:
        here = reader.take_begin(item)
        nbytes, left = len(here), item.payload_bytes - len(here)
        # Not revocable: the item isn't whole, or it is small.
        job.take_here(here, SocketTurn(), is_last=not left)
        here.release()
        reader.skip_begin(nbytes)
        if left:
            self._spliced = job, left

    def _splice(self, port: LanePort, turn: SocketTurn, job: ReceiveJob, left: int) -> bool:
        """Moves some of an item from the socket to its file; whether there may be more. Blocks."""
        if job.is_over:
            return False
        pipe = self._pipe
        assert pipe is not None, "no item is begun without, and where writing has failed the job is over"
        try:
            nbytes = pipe.fill(self._crew.connection, left)
        except (BlockingIOError, InterruptedError):
            return self._wait_for_more()
        if not nbytes:
            self._spliced = None
            return False  # the event loop finds the end when it reads again
        port.on_received()
        is_last = nbytes == left
        self._spliced = None if is_last else (job, left - nbytes)
        has_socket = job.take_from(pipe.end, nbytes, turn, is_last=is_last)
        if has_socket and job.failure is not None:
            self._close_pipe()  # with what couldn't be written in it
        return has_socket


def _take_data(frame: PayloadFrame, job: ReceiveJob) -> None:
    """Hands a frame's data to its job; the stream judges a frame that has none."""
    if frame.data:
        job.take_later(bytes(frame.data))
        frame.data = TAKEN
