"""The items of one incoming stream on their way to where they are kept: written in order, one writer at a time.

A `ReceiveJob` takes items from two engines. From the frame path come whole frames, in the event loop; they wait in the
job and are stored in batches. The file lane has an item in one of its threads, and writes it there and then, without a
thread handoff or a copy, unless an earlier one still has to be written: then it waits in the job as well. So a slow
disk holds up its own stream, and what waits is bounded by that stream's demand.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Any, Final

from ..aio import wait_uncancelled, wake
from ..protocol.flow import Demand
from .part import FileTarget
from .pipes import SPLICES
from .threads import SocketTurn, yield_cpu

__all__ = ["TAKEN", "Append", "ReceiveJob"]

# How long the loop waits to be notified that credit may be replenished, at the most, where the disk is slow.
_REPORT_SECONDS: Final = 0.02


class _Taken(bytes):
    """Stands in a frame for data that the file lane has taken out of it."""


TAKEN: Final = _Taken()
"""The data of an item that the file lane has passed on to its stream's job, and whose frame says more than bytes."""


Append = Callable[[Sequence[bytes]], Coroutine[Any, Any, object]]
"""Stores items behind those that are there."""


class ReceiveJob:
    """See above. Opened once by the transfer, which then reads `items`, `nbytes` and `failure` when it is notified.

    Args:
        demand: The transfer's ledger.
        on_progress: Called in the event loop when more was written or the job has failed.
        on_held: Called in the event loop with the change of `held_bytes`.

    Attributes:
        items: Items that were written.
        nbytes: Bytes that were written, those of an item whose rest is still to come included.
        failure: Why the job has failed: nothing more is written, there would be a hole. None if it hasn't.
        held_bytes: What waits in memory to be written.
        may_splice: Whether its items' bytes needn't come into the process, unless something else waits to be written.
    """

    def __init__(
        self,
        demand: Demand,
        on_progress: Callable[[], None],
        on_held: Callable[[int], None] | None = None,
    ) -> None:
        self.items = self.nbytes = 0
        self.failure: Exception | None = None
        self.held_bytes = 0
        self.may_splice = False
        self._demand = demand
        self._on_progress: Callable[[], None] | None = on_progress
        self._on_held = on_held
        self._reported_held = 0
        self._loop = asyncio.get_running_loop()
        self._append: Append | None = None
        self._file: FileTarget | None = None
        self._accept: Callable[[int], object] = _accept_all
        # Guards what follows: the event loop and a thread of the file lane look at it and change it.
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()
        self._is_writing = False
        self._is_stopped = False
        self._is_report_due = False
        self._reported_items = self._reported_bytes = 0
        self._reported_at = 0.0
        self._storing: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything that arrived is written, or never will be."""
        return not self._is_writing and not self._waiting

    @property
    def executor(self) -> Executor | None:
        """Whose threads the file lane is to use for it."""
        return None if self._file is None else self._file.executor

    @property
    def splices(self) -> bool:
        """Whether the next item's bytes needn't come into the process."""
        return self.may_splice and self.is_idle and self.failure is None

    def open(self, append: Append, file: FileTarget | None, accept: Callable[[int], object]) -> None:
        """Says where the items go; what has arrived is stored first.

        Args:
            append: Stores items.
            file: The file that they go to, if that is so.
            accept: Called with each item's size before the item is written; what it raises fails the job.
        """
        self.may_splice = SPLICES and file is not None and file.write_from is not None
        with self._lock:
            self._append, self._file, self._accept = append, file, accept
        self._store_waiting()

    def take(self, data: bytes) -> None:
        """Takes an item from the frame path, in the event loop.

        Raises:
            ProtocolError: It wasn't requested.
        """
        self._demand.on_arrived()
        if self._put(data):
            self._store_waiting()

    def forget(self) -> None:
        """Drops what waits, and what leads back to the transfer, in reference cycles; nothing is notified any more."""
        self._stop()
        self._on_progress = self._on_held = self._append = self._file = None
        self.may_splice = False
        self._accept = _accept_all

    async def stop(self) -> None:
        """Writes nothing more; nothing is being written when this returns. A cancellation waits for that, too."""
        self._stop()
        with self._lock:
            if self._is_writing:
                self._idle = self._loop.create_future()
        if self._storing is not None:
            self._storing.cancel()
        try:
            if self._idle is not None:
                await wait_uncancelled(self._idle)
        finally:
            self.forget()

    # For the file lane's thread

    def take_later(self, data: bytes) -> None:
        """Takes an item that is to be written when the event loop has heard of it."""
        if self._arrive() and self._put(data):
            self._loop.call_soon_threadsafe(self._store_waiting)

    def take_here(self, data: memoryview, turn: SocketTurn, *, is_first: bool = True, is_last: bool = True) -> bool:
        """Takes an item, or a piece of one, and writes it; whether the thread still has the socket. Blocks.

        Args:
            data: The bytes; only good until this returns.
            turn: The thread's right to use the socket; it can be lost with a whole item, not between two pieces.
            is_first: Whether it is the item's first piece.
            is_last: Whether it is the item's last piece.
        """
        if is_first and not self._arrive():
            return True
        file = self._begin_here()
        if file is None:
            if is_first and is_last and self._put(bytes(data)):
                self._loop.call_soon_threadsafe(self._store_waiting)
            return True
        return self._write_here(lambda: file.write(data), len(data), turn, is_last)

    def take_from(self, pipe: int, nbytes: int, turn: SocketTurn, *, is_last: bool) -> bool:
        """As `take_here`, for the next `nbytes` of an item, which a pipe has."""
        file = self._begin_here()
        if file is None:
            return True  # the job was stopped, or has failed
        write_from = file.write_from
        assert write_from is not None, "ask `splices` first"
        return self._write_here(lambda: write_from(pipe, nbytes), nbytes, turn, is_last)

    def report_soon(self) -> None:
        """Notifies the event loop of what was written; for a thread that is going to wait."""
        if self.nbytes > self._reported_bytes and not self._is_report_due:
            self._is_report_due = True
            self._loop.call_soon_threadsafe(self.report)

    @property
    def is_over(self) -> bool:
        """Whether what arrives now is dropped."""
        return self._is_stopped or self.failure is not None

    def _arrive(self) -> bool:
        try:
            self._demand.on_arrived()
        except Exception as error:
            self._fail(error)
            return False
        return True

    def _begin_here(self) -> FileTarget | None:
        """Where the thread may write now; None if something else has to be written first, or nothing may be."""
        with self._lock:
            if self._file is None or self._waiting or self._is_writing or self.is_over:
                return None
            self._is_writing = True
            return self._file

    def _write_here(self, write: Callable[[], None], nbytes: int, turn: SocketTurn, is_last: bool) -> bool:
        if is_last:
            turn.enter_disk()
        try:
            self._accept(nbytes)
            write()
        except Exception as error:  # whatever a disk raises
            self._fail(error)
            self._end_writing(0, 0)
        else:
            self._end_writing(int(is_last), nbytes)
            if self._is_due():
                self.report_soon()
        has_socket = turn.leave_disk()
        if not has_socket:
            self.report_soon()  # the lane's report at the end of the turn came before the write was done
        if is_last:
            yield_cpu()
        return has_socket

    def _is_due(self) -> bool:
        unreported = self.items - self._reported_items
        is_late = time.monotonic() - self._reported_at > _REPORT_SECONDS
        return unreported >= self._demand.batch or is_late

    # For both

    def _put(self, data: bytes) -> bool:
        """Lets an item wait; False if the job is over."""
        with self._lock:
            if self.is_over:
                return False
            self._waiting.append(data)
            self.held_bytes += len(data)
        return True

    def _end_writing(self, items: int, nbytes: int) -> None:
        with self._lock:
            self.items += items
            self.nbytes += nbytes
            self._is_writing = False
            is_more, is_awaited = bool(self._waiting), self._idle is not None
        if is_awaited:
            self._loop.call_soon_threadsafe(wake, self._idle)
        elif is_more:
            self._loop.call_soon_threadsafe(self._store_waiting)

    def _end(self, failure: Exception | None) -> None:
        """Writes nothing more, since the job has failed or (None) is stopped, and drops what waits."""
        with self._lock:
            if failure is None:
                self._is_stopped = True
            elif self.failure is None:
                self.failure = failure
            self._waiting.clear()
            self.held_bytes = 0

    def _fail(self, error: Exception) -> None:
        self._end(error)
        self._loop.call_soon_threadsafe(self.report)

    # In the event loop

    def report(self) -> None:
        """Reports what happened since the last time."""
        self._is_report_due = False  # first: what the thread adds from now on is reported once more
        self._reported_items, self._reported_bytes, self._reported_at = self.items, self.nbytes, time.monotonic()
        self._report_held()
        if self._on_progress is not None:
            self._on_progress()

    def report_new(self) -> None:
        """The same, if anything happened: most of a connection's many transfers got nothing in a thread's turn."""
        new = self.items - self._reported_items or self.nbytes - self._reported_bytes
        if new or self.held_bytes != self._reported_held:
            self.report()

    def _stop(self) -> None:
        self._end(None)
        self._report_held()

    def _report_held(self) -> None:
        held = self.held_bytes  # once: a thread may change it meanwhile
        change, self._reported_held = held - self._reported_held, held
        if change and self._on_held is not None:
            self._on_held(change)

    def _store_waiting(self) -> None:
        """Stores what waits, unless a thread is writing: then that continues here when it is done."""
        self._report_held()
        with self._lock:
            if self._append is None or self._is_writing or not self._waiting or self.is_over:
                return
            self._is_writing = True
            batch, append = list(self._waiting), self._append
            self._waiting.clear()
        storing = self._storing = self._loop.create_task(self._store(append, batch))
        # A callback, since a task that is cancelled before it starts runs none of its own code.
        storing.add_done_callback(lambda task: self._on_stored(task, batch))

    async def _store(self, append: Append, batch: Sequence[bytes]) -> None:
        for data in batch:
            self._accept(len(data))
        await append([data for data in batch if data])

    def _on_stored(self, task: "asyncio.Task[None]", batch: Sequence[bytes]) -> None:
        self._storing = None
        nbytes = sum(map(len, batch))
        with self._lock:
            self.held_bytes = max(self.held_bytes - nbytes, 0)
        error = None if task.cancelled() else task.exception()
        is_stored = not task.cancelled() and error is None
        if isinstance(error, Exception):
            self._fail(error)  # whatever a store raises
        self._end_writing(len(batch) if is_stored else 0, nbytes if is_stored else 0)
        self.report()


def _accept_all(_: int) -> None:
    """Nothing is written before the job is open, or after it was stopped."""
