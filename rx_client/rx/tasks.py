"""Observables whose work is a coroutine."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from reactivex import abc

from .observables import TransferObservable, disposable_on

__all__ = ["from_coroutine"]

T = TypeVar("T")


def from_coroutine(
    work: Callable[[Callable[[T], None]], Awaitable[None]], tasks: set[asyncio.Task[None]]
) -> TransferObservable[T]:
    """An observable that runs `work(emit)` in a task for each subscription; it completes, or fails, as the task does.

    Disposing cancels the task; what `work` cleans up then goes on after the dispose has returned.

    Args:
        work: Calls `emit` for each item. An observer that raises does so out of `emit`.
        tasks: Holds each task while it runs, so that their end can be waited for.
    """

    def subscribe(observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
        loop = asyncio.get_running_loop()
        is_disposed = False

        def emit(item: T) -> None:
            if not is_disposed:
                observer.on_next(item)

        async def run() -> None:
            await work(emit)

        def on_done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if task.cancelled():
                error: BaseException | None = asyncio.CancelledError("the transfer's task was cancelled")
            else:
                error = task.exception()
            if is_disposed:
                return
            try:
                if error is None:
                    observer.on_completed()
                else:
                    observer.on_error(error if isinstance(error, Exception) else RuntimeError(str(error)))
            except Exception as unhandled:
                loop.call_exception_handler({"message": "an observer of a transfer raised", "exception": unhandled})

        task = loop.create_task(run())
        tasks.add(task)
        task.add_done_callback(on_done)

        def dispose() -> None:
            nonlocal is_disposed
            is_disposed = True
            task.cancel()

        return disposable_on(loop, dispose)

    return TransferObservable(subscribe)
