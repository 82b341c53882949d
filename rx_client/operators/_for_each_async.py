"""Asynchronous actions at the end of a pipeline, with its demand."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from reactivex import Observable
from reactivex import operators as ops

from ._map_async import map_async

__all__ = ["for_each_async"]

T = TypeVar("T")


def for_each_async(
    fn: Callable[[T], Awaitable[object]], concurrency: int = 1, *, max_pending: int = 1024
) -> Callable[[Observable[T]], Observable[int]]:
    """Calls `fn` for each item, as `map_async` does, and emits the number of items at the end.

    An item's credit goes back when `fn` is done with it.

    ::

        source          -a---b---c-|
                        [ for_each_async(fn)  ]
        fn(...)          --   --  ---
        result          -------------3|

    Example:
        >>> async def save(chunk):
        ...     await asyncio.sleep(0.01)
        >>> chunks = reactivex.of(Chunk(0, b"some"), Chunk(4, b"bytes"))
        >>> await chunks.pipe(for_each_async(save))
        2

    Args:
        fn: Called in a task of its own for each item.
        concurrency: The most calls at a time.
        max_pending: The most items without credit that wait for their call.

    Returns:
        An operator whose observable emits exactly one int, the number of items, when the source has completed and `fn`
        is done with all of them, and then completes.

    Raises:
        ValueError: `concurrency` is less than 1, or `max_pending` less than 0.

    Raises (through `on_error`):
        Exception: As for `map_async`; no number is emitted then.
    """
    mapped = map_async(fn, concurrency, max_pending=max_pending)
    return lambda source: mapped(source).pipe(ops.count())
