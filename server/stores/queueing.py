"""One connection's way to a store whose calls take a thread each: few of them at a time, so that others' have a turn.

A store's threads take what is asked for in its order. Without this, who asks for a thousand things on each of some
connections has everybody else wait behind them.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from shared.protocol.wire import FileInfo

from .base import Reader, Store, Upload

__all__ = ["StoreInTurns"]

# Enough to keep all of a store's threads busy for one connection.
_CALLS: Final = 16


class StoreInTurns:
    """A `server.store.Store` that passes on what it is asked: `_CALLS` at a time, listings one by one.

    Reading an open file and adding to an upload aren't held up: streams have their own windows.

    One is made for each connection.

    Args:
        store: Who does it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(_CALLS)
        # One at a time: it looks at every file there is.
        self._listing = asyncio.Lock()

    async def start(self) -> None:
        await self._store.start()

    async def close(self) -> None:
        await self._store.close()

    async def stat(self, name: str) -> FileInfo:
        async with self._turns:
            return await self._store.stat(name)

    async def list(self, prefix: str = "") -> Sequence[FileInfo]:
        async with self._listing, self._turns:
            return await self._store.list(prefix)

    async def open(self, name: str) -> Reader:
        async with self._turns:
            return await self._store.open(name)

    async def begin(
        self, upload_id: str, name: str, *, size: int | None, algorithm: str | None, overwrite: bool = True
    ) -> Upload:
        async with self._turns:
            return await self._store.begin(upload_id, name, size=size, algorithm=algorithm, overwrite=overwrite)

    async def put(self, name: str, content: bytes) -> None:
        async with self._turns:
            await self._store.put(name, content)

    async def published(self, upload_id: str, name: str) -> FileInfo | None:
        async with self._turns:
            return await self._store.published(upload_id, name)

    async def uploaded(self, upload_id: str, name: str) -> int:
        async with self._turns:
            return await self._store.uploaded(upload_id, name)

    async def delete(self, name: str, if_match: str | None = None) -> FileInfo:
        async with self._turns:
            return await self._store.delete(name, if_match)

    async def sweep(self, max_age_seconds: float) -> int:
        return await self._store.sweep(max_age_seconds)
