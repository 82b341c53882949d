"""Calls into the thread of another event loop, and a scheduler of a loop that any thread may use."""

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar, TypeVarTuple
from weakref import WeakKeyDictionary

import reactivex.run
from reactivex import Observable, abc, typing
from reactivex.disposable import Disposable, SingleAssignmentDisposable
from reactivex.scheduler.eventloop import AsyncIOScheduler, AsyncIOThreadSafeScheduler

from shared.aio import running_loop
from shared.errors import WrongLoop

from ..chunks import hold
from .demand import Hold

__all__ = [
    "RUN_BLOCKS",
    "LoopScheduler",
    "call_on",
    "check_is_running",
    "check_not_blocked",
    "disposable_on",
    "emit_on",
    "hand_over",
    "is_run",
    "note_thread",
    "required_loop",
    "subscribe_on",
    "thread_safe",
    "time_scheduler",
]

T = TypeVar("T")
State = TypeVar("State")
Arguments = TypeVarTuple("Arguments")

RUN_BLOCKS: Final = "run() would block the event loop that does the work: await the observable, or call run() elsewhere"

# What `reactivex.run` subscribes with.
_RUN_SCHEDULER: Final[object] = getattr(reactivex.run, "_default_scheduler", None)


# In which thread each client's loop ran when the client was made.
_threads: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, int]] = WeakKeyDictionary()

# How long a loop has to say in which thread it runs now.
_ANSWER_SECONDS: Final = 0.1


class LoopScheduler(AsyncIOScheduler):
    """Schedules actions in one event loop, from any thread."""

    @classmethod
    def of(cls, scheduler: AsyncIOScheduler) -> "LoopScheduler":
        """One for the loop of another scheduler."""
        return cls(scheduler._loop)

    def schedule(self, action: typing.ScheduledAction[State], state: State | None = None) -> abc.DisposableBase:
        return self._schedule(partial(super().schedule, action, state))

    def schedule_relative(
        self, duetime: typing.RelativeTime, action: typing.ScheduledAction[State], state: State | None = None
    ) -> abc.DisposableBase:
        return self._schedule(partial(super().schedule_relative, duetime, action, state))

    def _schedule(self, schedule: Callable[[], abc.DisposableBase]) -> abc.DisposableBase:
        loop = self._loop
        if running_loop() is loop:
            return schedule()
        scheduled = SingleAssignmentDisposable()

        def schedule_here() -> None:
            if not scheduled.is_disposed:
                scheduled.disposable = schedule()

        hand_over(loop, schedule_here)
        return scheduled


def thread_safe(scheduler: abc.SchedulerBase) -> abc.SchedulerBase:
    """`scheduler`, or one for the same asyncio loop if it may only be used in the thread of that."""
    is_safe = isinstance(scheduler, LoopScheduler | AsyncIOThreadSafeScheduler)
    return LoopScheduler.of(scheduler) if isinstance(scheduler, AsyncIOScheduler) and not is_safe else scheduler


def required_loop() -> asyncio.AbstractEventLoop:
    """The event loop that runs in this thread.

    Raises:
        WrongLoop: There is none.
    """
    loop = running_loop()
    if loop is None:
        raise WrongLoop("no event loop runs in this thread: put ops.subscribe_on(files.scheduler) at the pipe's end")
    return loop


def check_is_running(loop: asyncio.AbstractEventLoop) -> None:
    """Raises WrongLoop unless `loop`, which runs elsewhere, can be handed work."""
    if loop.is_closed():
        raise WrongLoop("this client's event loop is closed: make a client in the loop that uses it")
    if not loop.is_running():
        what = "use the client in that loop, or keep that loop running in a thread of its own"
        text = "then files.scheduler, and ops.subscribe_on, lead there from anywhere"
        raise WrongLoop(f"this client's event loop isn't running: {what}; {text}")


def hand_over(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Calls `function` in the thread of `loop`, soon; raises WrongLoop if it doesn't run."""
    check_is_running(loop)
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # it was closed just now
        check_is_running(loop)
        raise


def is_run(scheduler: abc.SchedulerBase | None) -> bool:
    """Whether `reactivex.run` subscribes with this scheduler, so that a thread is blocked until the end."""
    return scheduler is not None and scheduler is _RUN_SCHEDULER


def check_not_blocked(loop: asyncio.AbstractEventLoop) -> None:
    """Raises WrongLoop if `loop` is in `reactivex.run`, where it waits for what can't end before it goes on."""
    frame = sys._current_frames().get(_thread_of(loop))  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code is reactivex.run.run.__code__:
            raise WrongLoop(RUN_BLOCKS)
        frame = frame.f_back


def note_thread(loop: asyncio.AbstractEventLoop) -> None:
    """Notes that `loop`, which a client belongs to, runs in this thread: see `check_not_blocked`."""
    _threads[loop] = threading.get_ident()


def _thread_of(loop: asyncio.AbstractEventLoop) -> int:
    """The identifier of the thread where `loop` runs; 0 if it doesn't run."""
    if running_loop() is loop:
        return threading.get_ident()
    if isinstance(loop, asyncio.BaseEventLoop) or not loop.is_running():
        return getattr(loop, "_thread_id", None) or 0
    # Another one, such as uvloop's, has to be asked. If it is blocked, it is where it was.
    asked: Future[int] = Future()
    with suppress(TimeoutError, RuntimeError):  # it may be closed just now
        loop.call_soon_threadsafe(lambda: asked.set_result(threading.get_ident()))
        return asked.result(_ANSWER_SECONDS)
    return _threads.get(loop, 0)


def time_scheduler(
    of_operator: abc.SchedulerBase | None, of_subscription: abc.SchedulerBase | None
) -> abc.SchedulerBase:
    """The scheduler for an operator's timers: its own, else the subscription's, else the running loop's.

    Raises:
        WrongLoop: There is none of them. A thread, as RxPY's operators start then, would call observers that belong to
            a loop.
    """
    return of_operator or of_subscription or LoopScheduler(required_loop())


def call_on(loop: asyncio.AbstractEventLoop, function: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
    """Calls `function` in the thread of `loop`: at once if this is that thread, else soon; never after its end."""
    if running_loop() is loop:
        function(*arguments)
    elif not loop.is_closed():
        loop.call_soon_threadsafe(function, *arguments)


def emit_on(loop: asyncio.AbstractEventLoop, on_next: Callable[[T], None]) -> Callable[[T], None]:
    """`on_next`, called in the thread of `loop` for an item that may be emitted in any; keeps its credit until then."""

    def emit(item: T) -> None:
        if running_loop() is loop:
            on_next(item)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(emit_held, item, hold(item))

    def emit_held(item: T, held: Hold) -> None:
        try:
            held.emit(on_next, item)
        finally:
            held.release()

    return emit


def subscribe_on(
    loop: asyncio.AbstractEventLoop,
    source: Observable[T],
    on_next: Callable[[T], None],
    on_error: Callable[[Exception], None],
    on_completed: Callable[[], None],
    scheduler: abc.SchedulerBase | None = None,
) -> abc.DisposableBase:
    """Subscribes to a source that may emit in any thread; what it calls is called in the thread of `loop`."""
    return source.subscribe(
        emit_on(loop, on_next),
        partial(call_on, loop, on_error),
        partial(call_on, loop, on_completed),
        scheduler=scheduler or LoopScheduler(loop),
    )


def disposable_on(loop: asyncio.AbstractEventLoop, dispose: Callable[[], None]) -> Disposable:
    """A disposable for what belongs to `loop`, that can be disposed of from any thread; see `call_on`."""
    return Disposable(partial(call_on, loop, dispose))
