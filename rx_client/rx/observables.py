"""Observables that belong to an event loop, and what every operator of ours needs to stay there.

RxPY's time-based operators run on a thread of their own when the subscription names no scheduler, so that
`transfer.pipe(ops.timeout(5)).subscribe(...)` would call its observer, and dispose the transfer, from a foreign thread.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from reactivex import Observable, abc
from reactivex.disposable import Disposable
from reactivex.scheduler.eventloop import AsyncIOScheduler

from ..chunks import hold
from .demand import Hold

__all__ = [
    "LoopObservable",
    "TransferObservable",
    "call_on",
    "deliver",
    "disposable_on",
    "emit_on",
    "like",
    "on_loop",
    "report_raised",
    "subscribe_on",
    "time_scheduler",
]

T = TypeVar("T", covariant=True)
U = TypeVar("U")
Arguments = TypeVarTuple("Arguments")


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


class TransferObservable(LoopObservable[T]):
    """An observable whose items are the `TransferEvent`s of one transfer.

    The class is how an operator knows before the first event that it may emit events of its own; see `retry_backoff`.

    Args:
        subscribe: As for `reactivex.Observable`.
        name: The file's.
    """

    def __init__(self, subscribe: abc.Subscription[T], name: str) -> None:
        super().__init__(subscribe)
        self.name: Final = name


def like(source: Observable[Any], subscribe: abc.Subscription[T]) -> LoopObservable[T]:
    """An observable for an operator that passes on what `source` emits: of a transfer where `source` is one."""
    if isinstance(source, TransferObservable):
        return TransferObservable(subscribe, source.name)
    return LoopObservable(subscribe)


def on_loop(source: Observable[T]) -> LoopObservable[T]:
    """`source`, with the running loop's scheduler as its subscriptions' default."""
    return LoopObservable(lambda observer, scheduler=None: source.subscribe(observer, scheduler=scheduler))


def time_scheduler(
    of_operator: abc.SchedulerBase | None, of_subscription: abc.SchedulerBase | None
) -> abc.SchedulerBase:
    """The scheduler for an operator's timers: its own, else the subscription's, else the running loop's.

    Raises:
        RuntimeError: There is none of them. A thread, as RxPY's operators start then, would call observers that belong
            to a loop.
    """
    scheduler = of_operator or of_subscription or _running_scheduler()
    if scheduler is None:
        raise RuntimeError("this needs time: subscribe inside a running event loop, or name a scheduler")
    return scheduler


def deliver(observer: abc.ObserverBase[T], item: T) -> None:
    """Emits `item` from a timer, a task or an `on_error`, where no source is left that could hear the observer raise.

    An observer that raises gets its own error, as it does from a request, instead of silence ever after.
    """
    try:
        observer.on_next(item)
    except Exception as error:
        observer.on_error(error)


def report_raised(notify: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
    """Notifies an observer of an end or a state; what it raises is reported to the event loop alone."""
    try:
        notify(*arguments)
    except Exception as error:
        context = {"message": "an observer raised", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)


def call_on(loop: asyncio.AbstractEventLoop, function: Callable[[*Arguments], object], *arguments: *Arguments) -> None:
    """Calls `function` in the thread of `loop`: at once if this is that thread, else soon; never after its end."""
    if _is_running(loop):
        function(*arguments)
    elif not loop.is_closed():
        loop.call_soon_threadsafe(function, *arguments)


def emit_on(loop: asyncio.AbstractEventLoop, on_next: Callable[[U], None]) -> Callable[[U], None]:
    """`on_next`, called in the thread of `loop` for an item that may be emitted in any; keeps its credit until then."""

    def emit(item: U) -> None:
        if _is_running(loop):
            on_next(item)
        elif not loop.is_closed():
            loop.call_soon_threadsafe(emit_held, item, hold(item))

    def emit_held(item: U, held: Hold) -> None:
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
) -> abc.DisposableBase:
    """Subscribes to a source that may emit in any thread; what it calls is called in the thread of `loop`."""
    return source.subscribe(
        emit_on(loop, on_next),
        partial(call_on, loop, on_error),
        partial(call_on, loop, on_completed),
        scheduler=AsyncIOScheduler(loop),
    )


def disposable_on(loop: asyncio.AbstractEventLoop, dispose: Callable[[], None]) -> Disposable:
    """A disposable for what belongs to `loop`, that can be disposed of from any thread; see `call_on`."""
    return Disposable(partial(call_on, loop, dispose))


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _running_scheduler() -> abc.SchedulerBase | None:
    try:
        return AsyncIOScheduler(asyncio.get_running_loop())
    except RuntimeError:
        return None
