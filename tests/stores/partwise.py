"""A store that can only make parts of a certain size durable, as object stores do."""

from collections.abc import Sequence
from typing import Any, Final

from server.stores.base import Store, Upload
from server.stores.memory import MemoryStore
from shared.errors import TooLarge
from shared.protocol.wire import FileInfo

PART_BYTES: Final = 8 * 1024 * 1024


class PartwiseStore:
    """A memory store whose uploads become durable in parts of `part_bytes`, and whole only when they are committed.

    Args:
        max_file_bytes: The largest file it takes; None for no limit.
        part_bytes: The size of a part.
        inner: Where the files are; a memory store if None.
    """

    at_once = None
    spools = True
    queues_calls = True

    def __init__(
        self, max_file_bytes: int | None = None, part_bytes: int = PART_BYTES, inner: Store | None = None
    ) -> None:
        self._inner: Store = inner if inner is not None else MemoryStore({}, None, max_file_bytes)
        self._max_file_bytes = max_file_bytes
        self._part_bytes = part_bytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)  # all but uploads

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
        inner = await self._inner.begin(
            upload_id, name, size=size, algorithm=algorithm, overwrite=overwrite, modified=modified
        )
        limit = min((each for each in (size, self._max_file_bytes) if each is not None), default=None)
        return _PartwiseUpload(inner, limit, self._part_bytes)


class _PartwiseUpload(Upload):
    """Adds whole parts to an upload of the memory store; the rest is lost when it is suspended or taken over."""

    def __init__(self, inner: Upload, limit: int | None, part_bytes: int) -> None:
        self.window_bytes = part_bytes
        self._inner = inner
        self._limit = limit
        self._rest = bytearray()

    @property
    def received(self) -> int:
        return self._inner.received + len(self._rest)

    @property
    def durable(self) -> int:
        return self._inner.durable

    async def append(self, chunks: Sequence[bytes]) -> None:
        await self._inner.append([])  # raises if it has another owner, or is closed
        if self._limit is not None and self.received + sum(map(len, chunks)) > self._limit:
            raise TooLarge(f"the content has more than {self._limit} bytes")
        self._rest += b"".join(chunks)

    async def flush(self) -> int:
        await self._add(len(self._rest) - len(self._rest) % self.window_bytes)
        return await self._inner.flush()

    async def commit(self, digest: str | None) -> FileInfo:
        await self._add(len(self._rest))
        return await self._inner.commit(digest)

    async def suspend(self) -> None:
        await self._inner.suspend()

    async def abort(self) -> None:
        await self._inner.abort()

    async def _add(self, nbytes: int) -> None:
        added = bytes(self._rest[:nbytes])
        del self._rest[:nbytes]
        await self._inner.append([added])
