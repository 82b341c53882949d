"""One connection's access to a store whose calls each take a thread: few at a time, so that others get theirs.

A store's threads take calls in the order in which they come. Without this, a client that makes a thousand requests on
each of a few connections has all others wait behind them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, cast

from .base import PAGE_FILES, AtOnceStore, Page, Reservation, Store

__all__ = ["QueuedStore"]

M = TypeVar("M", bound=Callable[..., Awaitable[object]])

# Enough to keep all of a store's threads busy for one connection.
_CALLS: Final = 16


def _queued(method: M) -> M:
    """A method of `QueuedStore` that calls the one of the same name when fewer than `_CALLS` calls are under way."""
    name = method.__name__

    async def call(self: "QueuedStore", *args: object, **kwargs: object) -> object:
        async with self.calls:
            return await getattr(self.store, name)(*args, **kwargs)

    return cast(M, call)


class QueuedStore(Store):
    """Passes calls on, `_CALLS` at a time, and pages of listings one by one. Each connection has its own.

    Reads of an open file and additions to an upload aren't queued: streams have their own windows.

    Args:
        store: What does the work.
    """

    queues_calls = False

    def __init__(self, store: Store) -> None:
        self.spools = store.spools
        self.store: Final = store
        self.calls: Final = asyncio.Semaphore(_CALLS)
        # One at a time, since a page may be a large folder's.
        self._listing = asyncio.Lock()

    @property
    def at_once(self) -> AtOnceStore | None:
        return self.store.at_once

    async def list(self, prefix: str = "", after: str = "", limit: int = PAGE_FILES) -> Page:
        async with self._listing, self.calls:
            return await self.store.list(prefix, after, limit)

    def reserve(self, name: str) -> Reservation | None:
        return self.store.reserve(name)

    start = _queued(Store.start)
    close = _queued(Store.close)
    stat = _queued(Store.stat)
    open = _queued(Store.open)
    whole = _queued(Store.whole)
    begin = _queued(Store.begin)
    put = _queued(Store.put)
    published = _queued(Store.published)
    uploaded = _queued(Store.uploaded)
    delete = _queued(Store.delete)
    move = _queued(Store.move)
    sweep = _queued(Store.sweep)
