"""Asynchronous functions in a pipeline, without losing its demand."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import SingleAssignmentDisposable

from shared.errors import BackpressureOverflow

from ..chunks import Chunk
from ..rx.observables import LoopObservable, disposable_on

__all__ = ["map_async"]

T = TypeVar("T")
U = TypeVar("U")


def map_async(
    fn: Callable[[T], Awaitable[U]], concurrency: int = 1, *, max_pending: int = 1024
) -> Callable[[Observable[T]], Observable[U]]:
    """Emits what `fn` gives for each item, in the source's order, with at most `concurrency` calls at a time.

    A result that isn't its turn yet occupies the place of its call, as in Akka's `mapAsync`.

    A `Chunk` is retained when it arrives and released when its result was emitted, so the sender is never more than its
    window ahead of `fn`. A function that returns `chunk.replace(...)` hands the credit to the next stage, which may
    retain it in turn. Other items carry no credit, and their source can't be slowed down: no more than `max_pending` of
    them wait.

    ::

        source          -a---b---c---------|
                        [ map_async(fn, 2)      ]
        fn(a)            ------A
        fn(b)                --B
        fn(c)                  ----C
        result          -------AB--C-------|

    Example:
        >>> async def length(chunk):
        ...     await asyncio.sleep(0.01)
        ...     return len(chunk)
        >>> chunks = reactivex.of(Chunk(0, b"some"), Chunk(4, b"bytes"))
        >>> await chunks.pipe(map_async(length, concurrency=2), ops.to_list())
        [4, 5]

    Args:
        fn: Called in a task of its own for each item.
        concurrency: The most calls at a time.
        max_pending: The most items other than chunks that wait for their call.

    Returns:
        An operator whose observable completes when the source has and the last result was emitted. Disposing it cancels
        the calls under way.

    Raises:
        ValueError: `concurrency` is less than 1, or `max_pending` less than 0.

    Raises (through `on_error`):
        Exception: What `fn` raised, as soon as it did, or the source's error; the other calls have been cancelled.
        RuntimeError: A call was cancelled, by itself or from outside.
        BackpressureOverflow: More than `max_pending` items waited.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be 1 or more, not {concurrency}")
    if max_pending < 0:
        raise ValueError(f"max_pending must be 0 or more, not {max_pending}")

    def _map_async(source: Observable[T]) -> Observable[U]:
        def subscribe(observer: abc.ObserverBase[U], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            mapping = _Mapping(fn, concurrency, max_pending, observer)
            mapping.upstream.disposable = source.subscribe(
                mapping.on_next, mapping.fail, mapping.on_completed, scheduler=scheduler
            )
            return disposable_on(mapping.loop, mapping.stop)

        return LoopObservable(subscribe)

    return _map_async


class _Mapping(Generic[T, U]):
    """One subscription: the items that wait for their call, and the calls, both in the source's order."""

    def __init__(
        self, fn: Callable[[T], Awaitable[U]], concurrency: int, max_pending: int, observer: abc.ObserverBase[U]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.upstream = SingleAssignmentDisposable()
        self._fn = fn
        self._concurrency = concurrency
        self._max_pending = max_pending
        self._observer = observer
        self._waiting: deque[T] = deque()
        self._calls: deque[_Call[T, U]] = deque()
        self._is_source_done = False
        self._is_ended = False

    def on_next(self, item: T) -> None:
        if self._is_ended:
            return
        if isinstance(item, Chunk):
            item.retain()
        self._waiting.append(item)
        self._start_calls()
        if len(self._waiting) > self._max_pending and not isinstance(item, Chunk):
            self.fail(BackpressureOverflow(f"more than {self._max_pending} items waited for an asynchronous function"))

    def on_completed(self) -> None:
        self._is_source_done = True
        self._complete_if_done()

    def fail(self, error: Exception) -> None:
        self.stop()
        self._observer.on_error(error)

    def stop(self) -> None:
        self._is_ended = True
        self.upstream.dispose()
        unfinished = [*(call.item for call in self._calls), *self._waiting]
        for call in self._calls:
            if call.task is not None:
                call.task.cancel()
        self._calls.clear()
        self._waiting.clear()
        for item in unfinished:
            _release(item)

    def _start_calls(self) -> None:
        while self._waiting and len(self._calls) < self._concurrency:
            call = _Call[T, U](self._waiting.popleft())
            # Listed before the task is made: an eager one runs at once, and may dispose of everything.
            self._calls.append(call)
            call.task = self.loop.create_task(self._call_fn(call.item))
            call.task.add_done_callback(self._on_call_done)
            if self._is_ended:
                call.task.cancel()

    async def _call_fn(self, item: T) -> U:
        return await self._fn(item)

    def _on_call_done(self, task: asyncio.Task[U]) -> None:
        # Looked at after the end, too: nobody else retrieves what a cancelled call raised.
        error = _failure(task)
        if self._is_ended:
            return
        if error is not None:
            self.fail(error)
        else:
            self._emit_results()

    def _emit_results(self) -> None:
        while self._calls and (task := self._calls[0].task) is not None and task.done() and _failure(task) is None:
            item = self._calls.popleft().item
            try:
                self._observer.on_next(task.result())
            except Exception as error:
                self.fail(error)
            finally:
                _release(item)
            self._start_calls()
        self._complete_if_done()

    def _complete_if_done(self) -> None:
        if self._is_source_done and not self._waiting and not self._calls and not self._is_ended:
            self._is_ended = True
            self._observer.on_completed()


class _Call(Generic[T, U]):
    """An item, and the task that works on it once it was made."""

    __slots__ = ("item", "task")

    def __init__(self, item: T) -> None:
        self.item = item
        self.task: asyncio.Task[U] | None = None


def _failure(task: asyncio.Task[U]) -> Exception | None:
    """Why a call that is done has no result; None if it has one."""
    if task.cancelled():
        return RuntimeError("the call of an asynchronous function was cancelled, and not by a dispose")
    raised = task.exception()
    if raised is None or isinstance(raised, Exception):
        return raised
    # KeyboardInterrupt and SystemExit, which asyncio raises out of the loop itself.
    return RuntimeError(f"the call of an asynchronous function was ended by {type(raised).__name__}")


def _release(item: object) -> None:
    if isinstance(item, Chunk):
        item.release()
