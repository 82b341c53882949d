"""Observables that belong to an event loop: safe defaults for operators that need time.

RxPY's time-based operators run on a thread of their own when the subscription names no scheduler, so that
`transfer.pipe(ops.timeout(5)).subscribe(...)` would call its observer, and dispose the transfer, from a foreign thread.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, cast

from reactivex import Observable, abc
from reactivex.scheduler.eventloop import AsyncIOScheduler

__all__ = ["LoopObservable", "on_loop"]

T = TypeVar("T", covariant=True)


class LoopObservable(Observable[T]):
    """An observable whose subscriptions, and those of what is piped from it, default to the running loop's scheduler.

    Args:
        subscribe: As for `reactivex.Observable`.
    """

    def subscribe(
        self,
        on_next: abc.ObserverBase[T] | abc.OnNext[T] | None = None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
        *,
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        return super().subscribe(on_next, on_error, on_completed, scheduler=scheduler or _running_scheduler())

    # RxPY's own implementation takes any number of callables behind its overloads, as this does; every fluent method
    # goes through it.
    def pipe(self, *operators: Callable[[Any], Any]) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        result: Any = super().pipe(*operators)
        # Exactly `Observable`: a subclass (connectable, grouped) has an interface that a wrapper would hide.
        return on_loop(cast("Observable[Any]", result)) if type(result) is Observable else result


def on_loop(source: Observable[T]) -> LoopObservable[T]:
    """`source`, with the running loop's scheduler as its subscriptions' default."""
    return LoopObservable(lambda observer, scheduler=None: source.subscribe(observer, scheduler=scheduler))


def _running_scheduler() -> abc.SchedulerBase | None:
    try:
        return AsyncIOScheduler(asyncio.get_running_loop())
    except RuntimeError:
        return None
