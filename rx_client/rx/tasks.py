"""Observables whose work is a coroutine."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from reactivex import abc

from .loops import disposable_on, required_loop
from .observables import TransferObservable, report_raised

__all__ = ["from_coroutine"]

T = TypeVar("T")


def from_coroutine(
    work: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]],
    tasks: set[asyncio.Task[None]],
    name: str,
    owner: asyncio.AbstractEventLoop | None = None,
) -> TransferObservable[T]:
    """A transfer that runs `work(emit)` in a task for each subscription; it completes, or fails, as the task does.

    Disposing cancels the task; what `work` cleans up then goes on after the dispose has returned.

    Args:
        work: Calls `emit` for each item. An observer that raises does so out of `emit`.
        tasks: Holds each task while it runs, so that their end can be waited for.
        name: The file's.
        owner: The loop of the tasks; None for the one where the observable is subscribed to.
    """

    def subscribe(observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
        loop = required_loop()
        is_disposed = False

        def emit(item: T) -> None:
            if not is_disposed:
                observer.on_next(item)

        def on_done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            cancelled = RuntimeError("the transfer's task was cancelled")
            error = cancelled if task.cancelled() else task.exception()
            if is_disposed:
                return
            if error is None:
                report_raised(observer.on_completed)
            else:
                report_raised(
                    observer.on_error,
                    error if isinstance(error, Exception) else RuntimeError(f"the transfer was ended by {error!r}"),
                )

        task = loop.create_task(work(emit))
        tasks.add(task)
        task.add_done_callback(on_done)

        def dispose() -> None:
            nonlocal is_disposed
            is_disposed = True
            task.cancel()

        return disposable_on(loop, dispose)

    return TransferObservable(subscribe, owner, is_source=True, name=name)
