"""From a pipeline to an `async for` loop, without losing its demand."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, Self, TypeVar

from reactivex import Observable
from reactivex.disposable import SingleAssignmentDisposable

from shared.errors import BackpressureOverflow

from ..chunks import Chunk
from ..rx.observables import on_loop

__all__ = ["ItemIterator", "to_async_iter"]

T = TypeVar("T")


def to_async_iter(window: int = 16) -> "Callable[[Observable[T]], ItemIterator[T]]":
    """Gives the items to an `async for` loop, one at a time.

    A `Chunk` keeps its credit until the next item is asked for, so the sender is never more than its window ahead of
    the loop. Other items carry no credit, and their source can't be slowed down: no more than `window` of them wait.

    ::

        source          ---a--b--c---------|
                        [   to_async_iter()     ]
        async for       ^--a ^b  ^-c   ^---|
                         (^: asks for the next, and releases the last)

    Example:
        >>> chunks = reactivex.of(Chunk(0, b"some"), Chunk(4, b"bytes"))
        >>> async with chunks.pipe(to_async_iter()) as items:
        ...     async for chunk in items:
        ...         print(chunk.data)
        b'some'
        b'bytes'

    Args:
        window: The most items other than chunks that wait.

    Returns:
        An operator that gives an `ItemIterator`; see there for the errors that it raises.

    Raises:
        ValueError: `window` is less than 1.
    """
    if window < 1:
        raise ValueError(f"the window must be 1 or more, not {window}")
    return lambda source: ItemIterator(source, window)


class ItemIterator(AsyncIterator[T]):
    """The items of one subscription, which is made when the first is asked for.

    Leave the loop early inside `async with`, or call `aclose`: both dispose of the source at once. An iterator that is
    only forgotten, as by the `break` of a loop that holds the one reference to it, does so when it is collected.

    Raises (from `__anext__`):
        Exception: The source's error, after the items that came before it.
        BackpressureOverflow: More items waited than the window has room for; after those, too.
        RuntimeError: Another `__anext__` is under way.
    """

    def __init__(self, source: Observable[T], window: int) -> None:
        self._source: Observable[T] | None = source
        # Apart from the iterator, which the source must not keep alive.
        self._inbox = _Inbox[T](window)

    async def __anext__(self) -> T:
        if self._source is not None:
            source, self._source = self._source, None
            self._inbox.subscribe(source)
        return await self._inbox.take()

    async def aclose(self) -> None:
        """Disposes of the source and gives all credit back; an `__anext__` under way, and any later, finds the end."""
        self._source = None
        self._inbox.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # In whatever thread, between whatever two instructions; hence not here and now.
        loop = self._inbox.loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._inbox.close)


class _Inbox(Generic[T]):
    """What has come and wasn't taken yet, and the subscription that it comes from."""

    def __init__(self, window: int) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._window = window
        self._upstream = SingleAssignmentDisposable()
        self._items: deque[T] = deque()
        self._taken: T | None = None
        self._is_done = False
        self._error: Exception | None = None
        self._is_taking = False
        self._waiter: asyncio.Future[None] | None = None

    def subscribe(self, source: Observable[T]) -> None:
        self.loop = asyncio.get_running_loop()
        self._upstream.disposable = on_loop(source).subscribe(self._on_next, self._end, self._end)

    async def take(self) -> T:
        if self._is_taking:
            raise RuntimeError("the iterator's __anext__ is already under way")
        self._is_taking = True
        try:
            self._release_taken()
            while not self._items and not self._is_done:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            if self._items:
                self._taken = self._items.popleft()
                return self._taken
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            raise StopAsyncIteration
        finally:
            self._waiter = None
            self._is_taking = False

    def close(self) -> None:
        self._upstream.dispose()
        self._release_taken()
        while self._items:
            _release(self._items.popleft())
        self._error = None
        self._end()

    def _on_next(self, item: T) -> None:
        if self._is_done:
            return
        if isinstance(item, Chunk):
            item.retain()
        elif len(self._items) >= self._window:
            self._upstream.dispose()
            self._end(BackpressureOverflow(f"more than {self._window} items waited for an async iterator"))
            return
        self._items.append(item)
        self._wake()

    def _end(self, error: Exception | None = None) -> None:
        if not self._is_done:
            self._is_done = True
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _release_taken(self) -> None:
        taken, self._taken = self._taken, None
        _release(taken)


def _release(item: object) -> None:
    if isinstance(item, Chunk):
        item.release()
