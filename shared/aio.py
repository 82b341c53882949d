"""Small asyncio helpers: blocking calls in threads, waits for descriptors, and waits that outlast a cancellation."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, ParamSpec, TypeVar

__all__ = ["run_blocking", "running_loop", "until_ready", "wait_uncancelled", "wake"]

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
        # Not `asyncio.wait`, which takes several times as long.
        waiter = future.get_loop().create_future()
        on_done = partial(_wake_after, waiter)
        future.add_done_callback(on_done)
        try:
            await waiter
        except asyncio.CancelledError as error:
            future.remove_done_callback(on_done)
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


def _wake_after(waiter: "asyncio.Future[None]", _: "asyncio.Future[Any]") -> None:
    wake(waiter)


def wake(waiter: "asyncio.Future[None] | None") -> None:
    """Completes `waiter`; does nothing if there is none, or if it is done or cancelled already."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


async def until_ready(descriptor: int, *, to_write: bool = False) -> None:
    """Returns when a read of `descriptor`, or a write, doesn't block: at once if the system can't say when that is."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    own = os.dup(descriptor)  # the caller may watch the original, which has one callback, or close it
    remove = loop.remove_writer if to_write else loop.remove_reader
    try:
        try:
            (loop.add_writer if to_write else loop.add_reader)(own, wake, ready)
        except (OSError, NotImplementedError):  # /dev/null and files, which never block; Windows
            return
        try:
            await ready
        finally:
            remove(own)
    finally:
        os.close(own)
