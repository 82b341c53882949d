"""From an asynchronous iterable to a pipeline, with the pipeline's demand."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Generic, TypeVar

from reactivex import Observable, abc

from ..rx.demand import Hold, ItemCredit
from ..rx.loops import disposable_on, required_loop
from ..rx.observables import LoopObservable, report_raised

__all__ = ["from_async_iter"]

T = TypeVar("T")


def from_async_iter(make: Callable[[], AsyncIterable[T]], window: int = 16) -> Observable[T]:
    """Emits the items of an asynchronous iterable, which is made for each subscription.

    The iterator is asked for an item when `on_next` has returned for the one before, so an iterator that is faster than
    a synchronous pipeline waits for it. `map_async`, `for_each_async`, `to_async_iter`, `transfer_all` and the uploads
    of an observable hold an item beyond that: of these at most `window`, and then the iterator waits, too. RxPY's
    operators in between change nothing about that, unless they emit later what they got: `delay`, `observe_on`,
    `merge(max_concurrent=...)`, `flat_map` to what emits by itself.

    ::

        source          -^a^b-----^c---^|
                        [ from_async_iter(make, 2) ]
        result          --a-b------c----|
        held            0-1-2----1-2--1-----0
                         (^: the iterator is asked for an item; held: items that the consumer holds)

    Example:
        >>> async def rows():
        ...     for number in range(1000):
        ...         yield number
        >>> async def save(row):
        ...     await asyncio.sleep(0)
        >>> await from_async_iter(rows).pipe(ops.filter(lambda row: row % 2), for_each_async(save))
        500

    Args:
        make: Returns what `async for` takes: an asynchronous generator function, say.
        window: The most items that the consumer may hold, 1 or more.

    Returns:
        Completes when the iterator ends. Then, and when it is disposed of, the iterator is closed, in the task that all
        of it runs in: cleaning up may take time and goes on after the dispose has returned.

    Raises:
        TypeError: `make` isn't callable, as an iterator isn't: it would do for one subscription only.
        ValueError: `window` is less than 1.

    Raises (through `on_error`):
        Exception: What `make` or the iterator raised; TypeError if `make` returned something else.
        WrongLoop: There is no running event loop.
    """
    if not callable(make):
        raise TypeError(f"make is a function that returns an asynchronous iterable, not {type(make).__name__}")
    if window < 1:
        raise ValueError(f"the window must be 1 or more, not {window}")

    def subscribe(observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
        iteration = _Iteration(make, window, observer)
        iteration.start()
        return disposable_on(iteration.loop, iteration.dispose)

    return LoopObservable(subscribe)


class _Iteration(Generic[T]):
    """One subscription: the task that iterates, and how many items the consumer holds."""

    def __init__(self, make: Callable[[], AsyncIterable[T]], window: int, observer: abc.ObserverBase[T]) -> None:
        self.loop = required_loop()
        self._make = make
        self._window = window
        self._observer = observer
        self._held = 0
        self._released = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_waiting = True  # for the iterator, or the consumer
        self._is_disposed = False

    def start(self) -> None:
        task = self.loop.create_task(self._run())
        self._task = task
        task.add_done_callback(self._on_done)

    def dispose(self) -> None:
        self._is_disposed = True
        # Elsewhere the iterator is at a yield, or closed already: a cancellation would hit the code that cleans up.
        if self._task is not None and self._is_waiting:
            self._task.cancel()

    async def _run(self) -> None:
        iterable = self._make()
        if not isinstance(iterable, AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"make must return an asynchronous iterable, not {type(iterable).__name__}")
        iterator = aiter(iterable)
        try:
            await self._emit_all(iterator)
        finally:
            self._is_waiting = False
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()

    async def _emit_all(self, iterator: AsyncIterator[T]) -> None:
        async for item in iterator:
            if self._is_disposed:
                return
            self._emit(item)
            if self._is_disposed:
                return
            # An event-loop iteration an item at the least: an iterator that never waits must not keep others waiting.
            await asyncio.sleep(0)
            while self._held >= self._window:
                self._released.clear()
                await self._released.wait()

    def _emit(self, item: T) -> None:
        self._is_waiting = False
        self._held += 1
        held = Hold(ItemCredit(self._on_released, self.loop))
        try:
            held.emit(self._observer.on_next, item)
        finally:
            held.release()
            self._is_waiting = True

    def _on_released(self) -> None:
        self._held -= 1
        self._released.set()

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if self._is_disposed:
            if error is not None:
                context = {"message": "an iterator raised when it was closed", "exception": error, "task": task}
                self.loop.call_exception_handler(context)
        elif task.cancelled():
            report_raised(self._observer.on_error, RuntimeError("the iterator's task was cancelled"))
        elif error is None:
            report_raised(self._observer.on_completed)
        else:
            report_raised(self._observer.on_error, error if isinstance(error, Exception) else RuntimeError(repr(error)))
