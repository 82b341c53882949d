"""Observables that belong to an event loop: wherever they are subscribed to, they work, and emit, in its thread.

RxPY's time-based operators run on a thread of their own when the subscription names no scheduler, so that
`transfer.pipe(ops.timeout(5)).subscribe(...)` would call its observer, and dispose the transfer, from a foreign thread.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, TypeVar, TypeVarTuple, cast

import reactivex
from reactivex import ConnectableObservable, Observable, abc
from reactivex import operators as ops
from reactivex.disposable import Disposable
from reactivex.internal.exceptions import SequenceContainsNoElementsError
from reactivex.observer import AutoDetachObserver

from shared.aio import running_loop, wake
from shared.errors import DeadlineExceeded, WrongLoop

from .loops import (
    RUN_BLOCKS,
    LoopScheduler,
    call_on,
    check_is_running,
    check_not_blocked,
    disposable_on,
    emit_on,
    hand_over,
    is_run,
)

__all__ = [
    "LoopObservable",
    "TransferObservable",
    "deliver",
    "like",
    "loop_of",
    "on_loop",
    "report_raised",
    "wait_for_last",
]

T = TypeVar("T", covariant=True)
U = TypeVar("U")
Arguments = TypeVarTuple("Arguments")

# How often a thread, or another loop, that waits for an observable's end looks whether its loop still runs.
_LOOK_SECONDS: Final = 0.5


class LoopObservable(Observable[T]):
    """An observable that works in the thread of its event loop, whichever thread or loop subscribes to it.

    In its own loop it is subscribed to at once. From another loop, its source is handed the subscription, and what it
    emits comes back to that loop, where the operators run. From a thread without a loop all of it is handed over, and
    what is emitted is emitted in the observable's loop. The subscription's scheduler defaults to that of the loop where
    the operators run. What is piped from it is the same. What can't be handed over fails with WrongLoop.

    Args:
        subscribe: As for `reactivex.Observable`.
        loop: The loop; None for the one that runs where it is subscribed to.
        is_source: Whether `subscribe` has to run in the loop; if not, it is an operator's, and only its source has to.
    """

    def __init__(
        self,
        subscribe: abc.Subscription[T] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        is_source: bool = False,
    ) -> None:
        super().__init__(subscribe)
        self.loop = loop
        self._is_source = is_source

    def subscribe(
        self,
        on_next: abc.ObserverBase[T] | abc.OnNext[T] | None = None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
        *,
        scheduler: abc.SchedulerBase | None = None,
    ) -> abc.DisposableBase:
        loop, running = self.loop, running_loop()
        owner = loop or running
        if owner is not None and is_run(scheduler):
            try:
                check_not_blocked(owner)
            except WrongLoop as error:
                return _failing(error).subscribe(on_next, on_error, on_completed)
            running = running if running is owner else None  # another loop is blocked: nothing can come back to it
        if owner is running or (running is not None and not self._is_source):
            default = None if running is None else LoopScheduler(running)
            return super().subscribe(on_next, on_error, on_completed, scheduler=scheduler or default)
        assert owner is not None, "else it is `running`"
        return self._hand_over(owner, running, on_next, on_error, on_completed)

    def _hand_over(
        self,
        loop: asyncio.AbstractEventLoop,
        back: asyncio.AbstractEventLoop | None,
        on_next: abc.ObserverBase[T] | abc.OnNext[T] | None,
        on_error: abc.OnError | None = None,
        on_completed: abc.OnCompleted | None = None,
    ) -> abc.DisposableBase:
        """Subscribes in `loop`; the observer is called in `back`, or in `loop` if that is None."""
        if on_next is None or not hasattr(on_next, "on_next"):
            observer = AutoDetachObserver[T](cast("abc.OnNext[T] | None", on_next), on_error, on_completed)
        else:
            given = cast("abc.ObserverBase[T]", on_next)
            observer = AutoDetachObserver[T](given.on_next, given.on_error, given.on_completed)
        subscribe_here = super().subscribe

        def subscribe() -> None:
            if not observer.is_stopped:
                target = back or loop
                subscription = subscribe_here(
                    emit_on(target, observer.on_next),
                    partial(call_on, target, observer.on_error),
                    partial(call_on, target, observer.on_completed),
                    scheduler=LoopScheduler(loop),
                )
                observer.set_disposable(disposable_on(loop, subscription.dispose))

        def dispose() -> None:
            observer.is_stopped = True  # from now on nothing is emitted
            call_on(loop, observer.dispose)

        try:
            hand_over(loop, subscribe)
        except WrongLoop as error:
            observer.on_error(error)
        return Disposable(dispose)

    # RxPY's own implementation takes any number of callables behind its overloads, as this does; the fluent methods go
    # through it, but for the five below.
    def pipe(self, *operators: Callable[[Any], Any]) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        result: Any = super().pipe(*operators)
        # Exactly these: another subclass (grouped, say) has an interface that a wrapper would hide.
        if type(result) is Observable:
            return on_loop(cast("Observable[Any]", result), self.loop)
        if type(result) is ConnectableObservable:
            return _LoopConnectable(cast("ConnectableObservable[Any]", result), self.loop)
        if isinstance(result, LoopObservable) and result.loop is None and self.loop is not None:
            made = cast("LoopObservable[Any]", result)
            return like(made, _subscription(made), self.loop)
        return cast(Any, result)

    def dematerialize(self) -> Observable[Any]:
        return self.pipe(ops.dematerialize())

    def exclusive(self) -> Observable[Any]:
        return self.pipe(ops.exclusive())

    def pluck(self, key: Any) -> Observable[Any]:
        return self.pipe(ops.pluck(key))

    def ref_count(self) -> Observable[Any]:
        return self.pipe(ops.ref_count())

    def switch_latest(self) -> Observable[Any]:
        return self.pipe(ops.switch_latest())

    def __add__(self, other: Observable[Any]) -> Observable[Any]:
        return self.pipe(ops.concat(other))

    def __iadd__(self, other: Observable[Any]) -> Observable[Any]:
        return self.pipe(ops.concat(other))

    def __await__(self) -> Generator[Any, None, T]:
        running = running_loop()
        if self.loop is None or running is None or running is self.loop:
            return super().__await__()
        return self._last_in(running, self.loop).__await__()

    async def _last_in(self, running: asyncio.AbstractEventLoop, loop: asyncio.AbstractEventLoop) -> T:
        """Waits in another loop than the observable's."""
        ended: asyncio.Future[None] = running.create_future()
        last = _Last[T](lambda: call_on(running, wake, ended))
        subscription = self.subscribe(last)
        try:
            while not ended.done():
                await asyncio.wait([ended], timeout=_LOOK_SECONDS)
                if not ended.done():
                    check_is_running(loop)
            return last.result()
        finally:
            subscription.dispose()

    def run(self, scheduler: abc.SchedulerBase | None = None) -> T:
        """As RxPY's, for threads without an event loop; in the observable's own loop it raises WrongLoop."""
        running = running_loop()
        if running is not None and (self.loop is None or running is self.loop):
            raise WrongLoop(RUN_BLOCKS)
        if self.loop is None:
            return super().run(scheduler)
        loop = self.loop
        return wait_for_last(loop, lambda last: self.subscribe_there(loop, last))

    def subscribe_there(self, loop: asyncio.AbstractEventLoop, observer: abc.ObserverBase[Any]) -> abc.DisposableBase:
        """Subscribes in `loop`, which runs in another thread, and where the observer is called, too."""
        return self._hand_over(loop, None, observer)


class TransferObservable(LoopObservable[T]):
    """An observable whose items are the `TransferEvent`s of one transfer.

    The class is how an operator knows before the first event that it may emit events of its own; see `retry_backoff`.

    Args:
        subscribe: As for `reactivex.Observable`.
        loop: As for `LoopObservable`.
        is_source: As for `LoopObservable`.
        name: The file's.
    """

    def __init__(
        self,
        subscribe: abc.Subscription[T],
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        is_source: bool = False,
        name: str = "",
    ) -> None:
        super().__init__(subscribe, loop, is_source=is_source)
        self.name: Final = name


class _LoopConnectable(LoopObservable[U], ConnectableObservable[U]):
    """A connectable observable with the loop of its source."""

    def __init__(self, connectable: ConnectableObservable[U], loop: asyncio.AbstractEventLoop | None) -> None:
        Observable.__init__(self)  # pyright: ignore[reportUnknownMemberType]
        self.source, self.subject = connectable.source, connectable.subject
        self.loop, self._is_source = loop, False
        self._connectable = connectable

    def connect(self, scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase | None:
        loop = running_loop() or self.loop
        return self._connectable.connect(scheduler or (None if loop is None else LoopScheduler(loop)))

    def auto_connect(self, subscriber_count: int = 1) -> Observable[U]:
        return on_loop(super().auto_connect(subscriber_count), self.loop)


class _Last(abc.ObserverBase[U]):
    """The last item of an observable, or its error; calls `on_end` when it is known."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self._items: list[U] = []
        self._error: Exception | None = None

    def on_next(self, value: U) -> None:
        self._items = [value]

    def on_error(self, error: Exception) -> None:
        self._error = error
        self._on_end()

    def on_completed(self) -> None:
        self._on_end()

    def result(self) -> U:
        """The last item; raises the error, or SequenceContainsNoElementsError."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        if not self._items:
            raise SequenceContainsNoElementsError
        return self._items[0]


def wait_for_last(
    loop: asyncio.AbstractEventLoop,
    subscribe: Callable[[abc.ObserverBase[U]], abc.DisposableBase],
    seconds: float | None = None,
) -> U:
    """Blocks this thread until what is subscribed to in `loop` has ended; returns its last item, or raises its error.

    Raises:
        DeadlineExceeded: It takes longer than `seconds`.
        WrongLoop: `loop` doesn't run any more.
        SequenceContainsNoElementsError: There is no item.
    """
    ended = threading.Event()
    last = _Last[U](ended.set)
    until = math.inf if seconds is None else time.monotonic() + seconds
    subscription = subscribe(last)
    try:
        while not ended.wait(min(_LOOK_SECONDS, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                raise DeadlineExceeded(f"not done within {seconds:g} s")
            check_is_running(loop)
        return last.result()
    finally:
        subscription.dispose()


def like(
    source: Observable[Any], subscribe: abc.Subscription[T], loop: asyncio.AbstractEventLoop | None = None
) -> LoopObservable[T]:
    """An observable for an operator that passes on what `source` emits: of a transfer where `source` is one."""
    loop = loop or loop_of(source)
    if isinstance(source, TransferObservable):
        return TransferObservable(subscribe, loop, name=source.name)
    return LoopObservable(subscribe, loop)


def loop_of(source: Observable[Any]) -> asyncio.AbstractEventLoop | None:
    """The loop that the observable belongs to; None if that depends on where it is subscribed to."""
    return source.loop if isinstance(source, LoopObservable) else None


def on_loop(source: Observable[T], loop: asyncio.AbstractEventLoop | None) -> LoopObservable[T]:
    """`source`, as an observable of `loop`."""
    return LoopObservable(_subscription(source), loop)


def _subscription(source: Observable[T]) -> abc.Subscription[T]:
    return lambda observer, scheduler=None: source.subscribe(observer, scheduler=scheduler)


def _failing(error: Exception) -> Observable[Any]:
    return reactivex.throw(error)


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
