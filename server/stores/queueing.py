"""One connection's access to a store whose calls each take a thread: its share of these, and of what may be open.

A store's threads take calls in the order in which they come. Without this, a client that makes a thousand requests on
each of a few connections has all others wait behind them; and a client that opens files and doesn't read them, on a few
connections, leaves none to others.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, cast
from weakref import WeakSet

from .base import PAGE_FILES, AtOnceStore, Page, Reader, Reservation, Store, Upload
from .failures import too_many_files

__all__ = ["QueuedStore"]

M = TypeVar("M", bound=Callable[..., Awaitable[object]])

# Enough to keep all of a store's threads busy for one connection.
_CALLS: Final = 16
# What a connection may have open, as long as the store can open any.
_OWN_FILES: Final = 16


def _queued(method: M) -> M:
    """A method of `QueuedStore` that calls the one of the same name when fewer than `_CALLS` calls are under way."""
    name = method.__name__

    async def call(self: "QueuedStore", *args: object, **kwargs: object) -> object:
        async with self.calls:
            return await getattr(self.store, name)(*args, **kwargs)

    return cast(M, call)


class QueuedStore(Store):
    """Passes calls on, `_CALLS` at a time, and pages of listings one by one. Each connection has its own.

    Where the store has few readers and uploads left, a connection may have `_OWN_FILES` open.

    Reads of an open file and additions to an upload aren't queued: streams have their own windows.

    Args:
        store: What does the work.

    Attributes:
        opened: What it has open.
    """

    queues_calls = False

    def __init__(self, store: Store) -> None:
        self.spools, self.keeps_opened, self.lists_all = store.spools, store.keeps_opened, store.lists_all
        self.page_files = store.page_files
        self.store: Final = store
        self.changes = store.changes
        self.calls: Final = asyncio.Semaphore(_CALLS)
        self.opened: Final[WeakSet[Reader | Upload]] = WeakSet()
        # One at a time, since a page may be a large folder's.
        self._listing = asyncio.Lock()

    @property
    def is_short_of_files(self) -> bool:
        return self.store.is_short_of_files

    @property
    def at_once(self) -> AtOnceStore | None:
        return self.store.at_once

    async def list(self, prefix: str = "", after: str = "", limit: int = PAGE_FILES) -> Page:
        async with self._listing, self.calls:
            return await self.store.list(prefix, after, limit)

    def reserve(self, name: str) -> Reservation | None:
        return self.store.reserve(name)

    async def open(self, name: str) -> Reader:
        async with self.calls:
            self._check_open_files()
            reader = await self.store.open(name)
        self.opened.add(reader)
        return reader

    async def begin(
        self,
        upload_id: str,
        name: str,
        *,
        size: int | None,
        algorithm: str | None,
        overwrite: bool = True,
        modified: float | None = None,
    ) -> Upload:
        async with self.calls:
            self._check_open_files()
            upload = await self.store.begin(
                upload_id, name, size=size, algorithm=algorithm, overwrite=overwrite, modified=modified
            )
        self.opened.add(upload)
        return upload

    def _check_open_files(self) -> None:
        if len(self.opened) >= _OWN_FILES and self.store.is_short_of_files:
            raise too_many_files()

    count_unfinished = _queued(Store.count_unfinished)
    start = _queued(Store.start)
    close = _queued(Store.close)
    stat = _queued(Store.stat)
    whole = _queued(Store.whole)
    put = _queued(Store.put)
    published = _queued(Store.published)
    uploaded = _queued(Store.uploaded)
    discard = _queued(Store.discard)
    delete = _queued(Store.delete)
    move = _queued(Store.move)
    sweep = _queued(Store.sweep)
