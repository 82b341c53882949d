"""A timeout for a lack of progress, whatever the time that the whole transfer takes."""

from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, SerialDisposable, SingleAssignmentDisposable

from shared.errors import Stalled

from ..events import Progress, Retrying, Started
from ..rx.loops import time_scheduler
from ..rx.observables import like

__all__ = ["stall_timeout"]

T = TypeVar("T")

# By how much of the allowed time the timer may be late before the loop is known to have stood still.
_LATE: Final = 0.5


def stall_timeout(
    seconds: float, *, scheduler: abc.SchedulerBase | None = None
) -> Callable[[Observable[T]], Observable[T]]:
    """Emits the source's items, and fails with `Stalled` when there was no progress for `seconds`.

    The time runs from the subscription. It starts again with

    - a `Progress` with more bytes `transferred` than the attempt had before; another `Progress` doesn't count;
    - `Started`: the server has answered, and the count of bytes may be lower than before;
    - `Retrying`, which also adds the delay that it announces;
    - any other item. So a consumer that holds a source's chunks for too long causes the error, too;
    - the end of a time in which the event loop stood still, since progress may wait to be read then.

    ::

        source          -S--P1--P2---------------------
                        [     stall_timeout(1 s)      ]
        result          -S--P1--P2-----------X
                                <-   1 s   ->

    Example:
        >>> await reactivex.never().pipe(stall_timeout(0.01))
        Traceback (most recent call last):
        shared.errors.Stalled: no progress for 0.01 s

    Args:
        seconds: The longest time without progress.
        scheduler: Times it; by default the subscription's, else the running loop's.

    Returns:
        An operator whose observable completes with the source.

    Raises:
        ValueError: `seconds` isn't positive.

    Raises (through `on_error`):
        Stalled: The time is over; the source has been disposed of.
        Exception: The source's error.
        WrongLoop: There is neither a scheduler nor a running event loop.
    """
    if not seconds > 0:
        raise ValueError(f"the time allowed must be more than 0 seconds, not {seconds}")

    def _stall_timeout(source: Observable[T]) -> Observable[T]:
        def subscribe(observer: abc.ObserverBase[T], scheduler_: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            timers = time_scheduler(scheduler, scheduler_)
            upstream = SingleAssignmentDisposable()
            timer = SerialDisposable()
            furthest = 0
            due_at = timers.now

            def allow(time: float) -> None:
                nonlocal due_at
                due_at = timers.now + timedelta(seconds=time)
                timer.disposable = timers.schedule_relative(time, on_stall)

            def on_stall(_: abc.SchedulerBase, __: object = None) -> None:
                if (timers.now - due_at).total_seconds() > seconds * _LATE:
                    allow(seconds)  # this process stood still, and progress may wait to be read
                    return
                upstream.dispose()
                observer.on_error(Stalled(f"no progress for {seconds:g} s"))

            def on_next(item: T) -> None:
                nonlocal furthest
                match item:
                    case Progress(transferred=reached) if reached <= furthest:
                        pass
                    case Progress(transferred=reached) | Started(resumed_from=reached):
                        furthest = reached
                        allow(seconds)
                    case Retrying(delay=delay):
                        allow(seconds + delay)
                    case _:
                        allow(seconds)
                observer.on_next(item)

            allow(seconds)
            upstream.disposable = source.subscribe(
                on_next, observer.on_error, observer.on_completed, scheduler=scheduler_
            )
            return CompositeDisposable(upstream, timer)

        return like(source, subscribe)

    return _stall_timeout
