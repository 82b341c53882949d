"""One connection's access to a store whose calls each take a thread: few at a time, so that others get theirs.

A store's threads take calls in the order in which they come. Without this, a client that makes a thousand requests on
each of a few connections has all others wait behind them.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from shared.protocol.wire import FileInfo

from .base import AtOnceStore, Reader, Store, Upload

__all__ = ["QueuedStore"]

# Enough to keep all of a store's threads busy for one connection.
_CALLS: Final = 16


class QueuedStore(Store):
    """Passes calls on, `_CALLS` at a time, and listings one by one. Each connection has its own.

    Reads of an open file and additions to an upload aren't queued: streams have their own windows.

    Args:
        store: What does the work.
    """

    queues_calls = False

    def __init__(self, store: Store) -> None:
        self.spools = store.spools
        self._store = store
        self._calls = asyncio.Semaphore(_CALLS)
        # One at a time, since it looks at every file there is.
        self._listing = asyncio.Lock()

    @property
    def at_once(self) -> AtOnceStore | None:
        return self._store.at_once

    def apply_limits(self, max_bytes: int | None, max_file_bytes: int | None) -> None:
        self._store.apply_limits(max_bytes, max_file_bytes)

    async def start(self) -> None:
        await self._store.start()

    async def close(self) -> None:
        await self._store.close()

    async def stat(self, name: str) -> FileInfo:
        async with self._calls:
            return await self._store.stat(name)

    async def list(self, prefix: str = "") -> Sequence[FileInfo]:
        async with self._listing, self._calls:
            return await self._store.list(prefix)

    async def open(self, name: str) -> Reader:
        async with self._calls:
            return await self._store.open(name)

    async def begin(
        self, upload_id: str, name: str, *, size: int | None, algorithm: str | None, overwrite: bool = True
    ) -> Upload:
        async with self._calls:
            return await self._store.begin(upload_id, name, size=size, algorithm=algorithm, overwrite=overwrite)

    async def put(self, name: str, content: bytes) -> None:
        async with self._calls:
            await self._store.put(name, content)

    async def published(self, upload_id: str, name: str) -> FileInfo | None:
        async with self._calls:
            return await self._store.published(upload_id, name)

    async def uploaded(self, upload_id: str, name: str) -> int:
        async with self._calls:
            return await self._store.uploaded(upload_id, name)

    async def delete(self, name: str, if_match: str | None = None) -> FileInfo:
        async with self._calls:
            return await self._store.delete(name, if_match)

    async def sweep(self, max_age_seconds: float) -> int:
        return await self._store.sweep(max_age_seconds)
