"""Observables in threads without an event loop: waiting for one, iterating over one, being called by a scheduler."""

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from typing import Final, Generic, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import Disposable
from reactivex.scheduler.mainloop import QtScheduler, TkinterScheduler

from shared.aio import running_loop
from shared.errors import WrongLoop

from .loops import RUN_BLOCKS, check_is_running, thread_safe
from .observables import on_loop, wait_for_last
from .thread_inbox import ThreadInbox

__all__ = ["deliver_on", "iterate", "run"]

T = TypeVar("T")

ITERATE_BLOCKS: Final = "iterate() would block the event loop that does the work: `to_async_iter` is for that thread"

_LOOK_SECONDS: Final = 0.5

# At 50 looks a second values seem to come at once, and a user interface that is idle has little to do.
_POLL_SECONDS: Final = 0.02
# Values are delivered for so long at a time; then the scheduler's thread has its turn, to draw for example.
_SLICE_SECONDS: Final = 0.01


def run(loop: asyncio.AbstractEventLoop, source: Observable[T], seconds: float | None) -> T:
    """Subscribes in `loop`, blocks until the end, and returns the last item; see `BlockingFileClient.run`."""
    check_elsewhere(loop, RUN_BLOCKS)
    return wait_for_last(loop, lambda last: on_loop(source, loop).subscribe_there(loop, last), seconds)


def iterate(loop: asyncio.AbstractEventLoop, source: Observable[T]) -> Generator[T, None, None]:
    """Subscribes in `loop`, and yields the items; see `BlockingFileClient.iterate`."""
    check_elsewhere(loop, ITERATE_BLOCKS)
    changed = threading.Event()
    inbox = ThreadInbox[T](loop, changed.set)
    inbox.open(source)
    try:
        while True:
            changed.clear()
            has_ended = inbox.has_ended  # asked before what is left is taken
            if (waiting := inbox.take()) is not None:
                try:
                    yield waiting.item
                finally:
                    waiting.held.release()
            elif has_ended:
                if (error := inbox.take_error()) is not None:
                    raise error
                return
            elif not changed.wait(_LOOK_SECONDS):
                check_is_running(loop)
    finally:
        inbox.close()


def check_elsewhere(loop: asyncio.AbstractEventLoop, text: str) -> None:
    """Raises WrongLoop with this text if a wait for what `loop` does would never end: in its own thread."""
    if running_loop() is loop:
        raise WrongLoop(text)


def deliver_on(
    scheduler: abc.SchedulerBase,
    loop: asyncio.AbstractEventLoop,
    source: Observable[T],
    on_next: Callable[[T], object],
    on_error: Callable[[Exception], object],
    on_completed: Callable[[], object],
) -> abc.DisposableBase:
    """Subscribes in `loop`, and calls these functions by `scheduler`; see `BlockingFileClient.subscribe`."""
    delivery = _Delivery(scheduler, loop, on_next, on_error, on_completed)
    delivery.start(source)
    return Disposable(delivery.dispose)


class _Delivery(Generic[T]):
    """One subscription whose values a scheduler delivers, one after the other."""

    def __init__(
        self,
        scheduler: abc.SchedulerBase,
        loop: asyncio.AbstractEventLoop,
        on_next: Callable[[T], object],
        on_error: Callable[[Exception], object],
        on_completed: Callable[[], object],
    ) -> None:
        self._scheduler = thread_safe(scheduler)
        # These two can only be called in their own thread: it looks by itself.
        self._polls = isinstance(scheduler, QtScheduler | TkinterScheduler)
        self._loop = loop
        self._on_next, self._on_error, self._on_completed = on_next, on_error, on_completed
        self._inbox = ThreadInbox[T](loop, self._on_change)
        self._lock = threading.Lock()
        self._is_due = self._polls  # whether a call of `_deliver` is coming, or under way
        self._is_over = False

    def start(self, source: Observable[T]) -> None:
        """Subscribes."""
        self._inbox.open(source)
        if self._polls:
            self._schedule()

    def dispose(self) -> None:
        """Delivers nothing more."""
        self._is_over = True
        self._inbox.close()

    def _on_change(self) -> None:
        with self._lock:
            if self._is_due or self._is_over:
                return
            self._is_due = True
        self._schedule()

    def _schedule(self) -> None:
        try:
            if self._polls:
                self._scheduler.schedule_relative(_POLL_SECONDS, self._deliver)
            else:
                self._scheduler.schedule(self._deliver)
        except Exception as error:  # its thread has ended, say
            self.dispose()
            if self._polls:
                raise  # the caller has subscribed in another thread than the scheduler's
            context = {"message": "a scheduler takes nothing", "exception": error}
            self._loop.call_soon_threadsafe(self._loop.call_exception_handler, context)

    # In the scheduler's thread

    def _deliver(self, _: abc.SchedulerBase, __: object = None) -> None:
        until = time.monotonic() + _SLICE_SECONDS
        has_ended = self._inbox.has_ended  # asked before what is left is taken
        while not self._is_over and time.monotonic() < until:
            waiting = self._inbox.take()
            if waiting is None:
                if has_ended:
                    self._end()
                break
            try:
                waiting.held.emit(self._on_next, waiting.item)
            except Exception as error:
                self.dispose()
                self._on_error(error)
            finally:
                waiting.held.release()
        with self._lock:
            is_idle = self._inbox.is_empty and not self._inbox.has_ended
            self._is_due = not self._is_over and (self._polls or not is_idle)
        if self._is_due:
            self._schedule()

    def _end(self) -> None:
        self._is_over = True
        error = self._inbox.take_error()
        if error is None:
            self._on_completed()
        else:
            self._on_error(error)
