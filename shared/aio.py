"""Small asyncio helpers: blocking calls in threads, waits that outlast a cancellation, wake-ups, this thread's loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

__all__ = ["run_blocking", "running_loop", "wait_uncancelled", "wake"]

P = ParamSpec("P")
T = TypeVar("T")


async def run_blocking(executor: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls `function(*args, **kwargs)` in a thread of `executor` (None: the loop's default) and returns its result.

    A thread can't be stopped, so a cancelled caller gets its CancelledError only when the function has returned: the
    next operation never overlaps with a write that is still under way.
    """
    loop = asyncio.get_running_loop()
    return await wait_uncancelled(loop.run_in_executor(executor, lambda: function(*args, **kwargs)))


async def wait_uncancelled(future: "asyncio.Future[T]") -> T:
    """Waits until `future` is done and returns its result, or raises its exception.

    A cancellation neither reaches the future nor shortens the wait: it is raised when the future is done, instead of
    its result. For threads that use a descriptor or a buffer which the caller frees afterwards.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    try:
        if cancelled is None:
            return future.result()
        if not future.cancelled():
            future.exception()  # retrieved, so that asyncio doesn't report it
        raise cancelled
    finally:
        del cancelled, future  # their exceptions refer to this frame: a reference cycle otherwise


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def wake(waiter: "asyncio.Future[None] | None") -> None:
    """Completes `waiter`; does nothing if there is none, or if it is done or cancelled already."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
