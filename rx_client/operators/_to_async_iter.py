"""From a pipeline to an `async for` loop, with its demand."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, Self, TypeVar

from reactivex import Observable
from reactivex.disposable import SingleAssignmentDisposable

from shared.errors import BackpressureOverflow

from ..chunks import hold
from ..rx.demand import NO_HOLD, Hold
from ..rx.loops import required_loop, subscribe_on

__all__ = ["ItemIterator", "to_async_iter"]

T = TypeVar("T")


def to_async_iter(window: int = 16) -> "Callable[[Observable[T]], ItemIterator[T]]":
    """Iterates over the source's items with `async for`; the iterator ends when the source has completed.

    An item's credit is held until the next item is asked for, so that a source that can be slowed down (see
    `map_async`) is never more than its own window ahead of the loop. Of the items of another source at most `window`
    wait. The source may emit in any thread.

    ::

        source          ---a--b--c---------|
                        [   to_async_iter()     ]
        async for       ^--a ^b  ^-c   ^---|
                         (^: asks for the next item, and releases the last one)

    Example:
        >>> chunks = reactivex.of(Chunk(0, b"some"), Chunk(4, b"bytes"))
        >>> async with chunks.pipe(to_async_iter()) as items:
        ...     async for chunk in items:
        ...         print(chunk.data)
        b'some'
        b'bytes'

    Args:
        window: The most items without credit that wait to be taken.

    Returns:
        An operator that makes an `ItemIterator`, whose docstring has the errors that the loop gets.

    Raises:
        ValueError: `window` is less than 1.
    """
    if window < 1:
        raise ValueError(f"the window must be 1 or more, not {window}")
    return lambda source: ItemIterator(source, window)


class ItemIterator(AsyncIterator[T]):
    """The items of one subscription, which is made when the first item is asked for.

    The end of an `async with` block, and `aclose`, dispose of the source at once. An iterator without either, as after
    the `break` of a loop that holds the only reference to it, disposes of the source when it is garbage-collected.

    Raises (from `__anext__`):
        Exception: The source's error, after the items that it emitted before.
        BackpressureOverflow: More than `window` items without credit waited; raised after them.
        RuntimeError: Another `__anext__` is under way.
    """

    def __init__(self, source: Observable[T], window: int) -> None:
        self._source: Observable[T] | None = source
        # Separate from the iterator, because the subscription must not keep the iterator alive.
        self._inbox = _Inbox[T](window)

    async def __anext__(self) -> T:
        if self._source is not None:
            source, self._source = self._source, None
            self._inbox.subscribe(source)
        return await self._inbox.take()

    async def aclose(self) -> None:
        """Disposes of the source and releases all items; an `__anext__` under way, and each later one, stops."""
        self._source = None
        self._inbox.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The collector runs in any thread and between any two instructions, so `close` is left to the loop.
        loop = self._inbox.loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._inbox.close)


class _Inbox(Generic[T]):
    """The items that wait to be taken, and the subscription that they come from."""

    def __init__(self, window: int) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._window = window
        self._upstream = SingleAssignmentDisposable()
        self._items: deque[tuple[T, Hold]] = deque()
        self._taken = NO_HOLD
        self._is_done = False
        self._error: Exception | None = None
        self._is_taking = False
        self._changed = asyncio.Event()

    def subscribe(self, source: Observable[T]) -> None:
        self.loop = required_loop()
        self._upstream.disposable = subscribe_on(self.loop, source, self._on_next, self._end, self._end)

    async def take(self) -> T:
        if self._is_taking:
            raise RuntimeError("the iterator's __anext__ is already under way")
        self._is_taking = True
        try:
            self._release_taken()
            while not self._items and not self._is_done:
                self._changed.clear()
                await self._changed.wait()
            if self._items:
                item, self._taken = self._items.popleft()
                return item
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopAsyncIteration
        finally:
            self._is_taking = False

    def close(self) -> None:
        self._upstream.dispose()
        self._release_taken()
        while self._items:
            self._items.popleft()[1].release()
        self._error = None
        self._end()

    def _on_next(self, item: T) -> None:
        if self._is_done:
            return
        held = hold(item)
        if not held and len(self._items) >= self._window:
            self._upstream.dispose()
            self._end(BackpressureOverflow(f"the source is more than {self._window} items ahead of its consumer"))
            return
        self._items.append((item, held))
        self._changed.set()

    def _end(self, error: Exception | None = None) -> None:
        if not self._is_done:
            self._is_done = True
            self._error = error
        self._changed.set()

    def _release_taken(self) -> None:
        taken, self._taken = self._taken, NO_HOLD
        taken.release()
