"""A deadline for a whole subscription."""

from collections.abc import Callable
from typing import TypeVar

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, SingleAssignmentDisposable

from shared.errors import DeadlineExceeded

from .loops import time_scheduler
from .observables import like

__all__ = ["within"]

T = TypeVar("T")


def within(seconds: float | None, name: str | None = None) -> Callable[[Observable[T]], Observable[T]]:
    """Passes a source on, and fails it with DeadlineExceeded, about the file `name`, after `seconds`; None is never.

    Raises:
        ValueError: `seconds` isn't more than 0.
    """
    if seconds is None:
        return lambda source: source
    if not seconds > 0:
        raise ValueError(f"deadline must be more than 0 seconds, not {seconds!r}")

    def _within(source: Observable[T]) -> Observable[T]:
        def subscribe(observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            upstream = SingleAssignmentDisposable()

            def on_late(_: abc.SchedulerBase, __: object = None) -> None:
                upstream.dispose()
                observer.on_error(DeadlineExceeded(f"not done within {seconds:g} s", name=name))

            timer = time_scheduler(None, scheduler).schedule_relative(seconds, on_late)
            upstream.disposable = source.subscribe(observer, scheduler=scheduler)
            return CompositeDisposable(timer, upstream)

        return like(source, subscribe)

    return _within
