"""Blocking work, in threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

__all__ = ["run_blocking"]

P = ParamSpec("P")
T = TypeVar("T")


async def run_blocking(executor: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `function(*args, **kwargs)`, called in a thread.

    A thread can't be stopped. So a caller that is cancelled gets its CancelledError only after the function has
    returned: whoever comes next never finds a write still under way.

    Args:
        executor: Whose thread; the event loop's default executor if None.
        function: What to call.
    """
    call = asyncio.get_running_loop().run_in_executor(executor, lambda: function(*args, **kwargs))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        while not call.done():
            try:
                await asyncio.wait([call])
            except asyncio.CancelledError:
                continue  # the first one is raised below, when nothing runs any more
        if not call.cancelled():
            call.exception()  # seen; the caller didn't wait for it
        raise
    finally:
        del call  # whose exception leads to this frame, in a circle
