"""Asynchronous functions in a pipeline, with its demand."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import SingleAssignmentDisposable

from shared.errors import BackpressureOverflow

from ..chunks import hold
from ..rx.demand import Hold
from ..rx.loops import disposable_on, required_loop, subscribe_on
from ..rx.observables import LoopObservable, loop_of

__all__ = ["map_async"]

T = TypeVar("T")
U = TypeVar("U")


def map_async(
    fn: Callable[[T], Awaitable[U]], concurrency: int = 1, *, max_pending: int = 1024
) -> Callable[[Observable[T]], Observable[U]]:
    """Emits the result of `fn` for each item, in the source's order, with at most `concurrency` calls at a time.

    A result that has to wait for an earlier one counts as a call, as in Akka's `mapAsync`.

    The demand of `fn` reaches a source that can be slowed down, through RxPY's operators in between, too: an item's
    credit is held from its arrival until its result was emitted, unless the next stage holds it longer. Such sources
    are the client's requests, `from_async_iter`, and whatever emits a `Chunk`, which is retained; a function that
    returns `chunk.replace(...)` hands that on. Other sources, and operators that emit later what they got (`delay`,
    `merge(max_concurrent=...)`), can't be slowed down: at most `max_pending` of their items wait.

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
        max_pending: The most items without credit that wait for their call.

    Returns:
        An operator whose observable completes when the source has and the last result was emitted. Disposing it cancels
        the calls under way.

    Raises:
        ValueError: `concurrency` is less than 1, or `max_pending` less than 0.

    Raises (through `on_error`):
        Exception: What `fn` raised, at once, or the source's error; the other calls have been cancelled.
        RuntimeError: A call was cancelled, by itself or from outside.
        WrongLoop: There is no running event loop.
        BackpressureOverflow: More than `max_pending` items without credit waited.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be 1 or more, not {concurrency}")
    if max_pending < 0:
        raise ValueError(f"max_pending must be 0 or more, not {max_pending}")

    def _map_async(source: Observable[T]) -> Observable[U]:
        def subscribe(observer: abc.ObserverBase[U], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            mapping = _Mapping(fn, concurrency, max_pending, observer)
            mapping.upstream.disposable = subscribe_on(
                mapping.loop, source, mapping.on_next, mapping.fail, mapping.on_completed, scheduler
            )
            return disposable_on(mapping.loop, mapping.stop)

        return LoopObservable(subscribe, loop_of(source))

    return _map_async


@dataclass(eq=False)
class _Mapping(Generic[T, U]):
    """One subscription: the items that wait for their call, and the calls; both in the source's order."""

    fn: Callable[[T], Awaitable[U]]
    concurrency: int
    max_pending: int
    observer: abc.ObserverBase[U]
    loop: asyncio.AbstractEventLoop = field(default_factory=required_loop)
    upstream: SingleAssignmentDisposable = field(default_factory=SingleAssignmentDisposable)
    waiting: deque[tuple[T, Hold]] = field(default_factory=deque[tuple[T, Hold]])
    calls: "deque[_Call[T, U]]" = field(default_factory=deque["_Call[T, U]"])
    is_source_done: bool = False
    is_ended: bool = False

    def on_next(self, item: T) -> None:
        if self.is_ended:
            return
        held = hold(item)
        self.waiting.append((item, held))
        self._start_calls()
        if len(self.waiting) > self.max_pending and not held:
            self.fail(BackpressureOverflow(f"the source is more than {self.max_pending} items ahead of its consumer"))

    def on_completed(self) -> None:
        self.is_source_done = True
        self._complete_if_done()

    def fail(self, error: Exception) -> None:
        self.stop()
        self.observer.on_error(error)

    def stop(self) -> None:
        self.is_ended = True
        self.upstream.dispose()
        unfinished = [*(call.held for call in self.calls), *(held for _, held in self.waiting)]
        for call in self.calls:
            if call.task is not None:
                call.task.cancel()
        self.calls.clear()
        self.waiting.clear()
        for held in unfinished:
            held.release()

    def _start_calls(self) -> None:
        while self.waiting and len(self.calls) < self.concurrency:
            call = _Call[T, U](*self.waiting.popleft())
            # Listed before its task is made: an eager task runs at once, and may dispose of this subscription.
            self.calls.append(call)
            call.task = self.loop.create_task(self._call_fn(call.item))
            call.task.add_done_callback(self._on_call_done)
            if self.is_ended:
                call.task.cancel()

    async def _call_fn(self, item: T) -> U:
        return await self.fn(item)

    def _on_call_done(self, task: asyncio.Task[U]) -> None:
        # Also after the end, so that what a cancelled call raised counts as retrieved.
        error = _failure(task)
        if self.is_ended:
            return
        if error is not None:
            self.fail(error)
        else:
            self._emit_results()

    def _emit_results(self) -> None:
        while self.calls and (task := self.calls[0].task) is not None and task.done() and _failure(task) is None:
            held = self.calls.popleft().held
            try:
                held.emit(self.observer.on_next, task.result())
            except Exception as error:
                self.fail(error)
            finally:
                held.release()
            self._start_calls()
        self._complete_if_done()

    def _complete_if_done(self) -> None:
        if self.is_source_done and not self.waiting and not self.calls and not self.is_ended:
            self.is_ended = True
            self.observer.on_completed()


@dataclass(slots=True)
class _Call(Generic[T, U]):
    """An item, what it holds, and its task, which is None while it is being made."""

    item: T
    held: Hold
    task: asyncio.Task[U] | None = None


def _failure(task: asyncio.Task[U]) -> Exception | None:
    """The reason why a call that is done has no result; None if it has one."""
    if task.cancelled():
        return RuntimeError("the call of an asynchronous function was cancelled, but not by a dispose")
    raised = task.exception()
    if raised is None or isinstance(raised, Exception):
        return raised
    # KeyboardInterrupt and SystemExit, which asyncio also raises from the event loop.
    return RuntimeError(f"the call of an asynchronous function was ended by {type(raised).__name__}")
