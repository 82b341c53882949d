"""Fewer `Progress` events, for displays and logs."""

from collections.abc import Callable
from typing import TypeVar

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, SerialDisposable

from ..events import Progress, TotalProgress
from ..rx.loops import time_scheduler
from ..rx.observables import deliver, like

__all__ = ["progress_every"]

T = TypeVar("T")


def progress_every(
    seconds: float, *, scheduler: abc.SchedulerBase | None = None
) -> Callable[[Observable[T]], Observable[T]]:
    """Emits at most one `Progress` in `seconds`, the latest; every other item at once.

    The first `Progress` is emitted at once. A later one is held back until the period is over, or until another kind of
    item, the completion or an error comes. So the last one is never dropped, and the order is kept. A `TotalProgress`
    is held for the whole period, since the other items that come then are of single files, maybe of thousands.

    ::

        source          -S-P1-P2-P3--------P4-P5-C-|
                        [   progress_every(1 s)    ]
        result          -S-P1------P3------P4-P5-C-|
                           <- 1 s ->

    Example:
        >>> events = reactivex.of(*(Progress(done, 5) for done in range(6)))
        >>> await events.pipe(progress_every(0.5), ops.to_list())
        [Progress(transferred=0, total=5), Progress(transferred=5, total=5)]

    Args:
        seconds: The period.
        scheduler: Times the periods; by default the subscription's, else the running loop's.

    Returns:
        An operator whose observable completes with the source.

    Raises:
        ValueError: `seconds` isn't positive.

    Raises (through `on_error`):
        Exception: The source's error.
        WrongLoop: There is neither a scheduler nor a running event loop.
    """
    if not seconds > 0:
        raise ValueError(f"the period must be more than 0 seconds, not {seconds}")

    def _progress_every(source: Observable[T]) -> Observable[T]:
        def subscribe(observer: abc.ObserverBase[T], scheduler_: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            timers = time_scheduler(scheduler, scheduler_)
            period = SerialDisposable()
            is_period = False
            held: T | None = None

            def emit(progress: T) -> None:
                nonlocal held, is_period
                held = None
                is_period = True
                period.disposable = timers.schedule_relative(seconds, on_period_over)
                deliver(observer, progress)

            def on_period_over(_: abc.SchedulerBase, __: object = None) -> None:
                nonlocal is_period
                is_period = False
                flush()

            def flush() -> None:
                if held is not None:
                    emit(held)

            def on_next(item: T) -> None:
                nonlocal held
                if not isinstance(item, Progress):
                    if not isinstance(held, TotalProgress):
                        flush()
                    observer.on_next(item)
                elif is_period:
                    held = item
                else:
                    emit(item)

            def on_error(error: Exception) -> None:
                flush()
                observer.on_error(error)

            def on_completed() -> None:
                flush()
                observer.on_completed()

            return CompositeDisposable(source.subscribe(on_next, on_error, on_completed, scheduler=scheduler_), period)

        return like(source, subscribe)

    return _progress_every
