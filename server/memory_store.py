"""Files in a dictionary, as in the tutorial: `server.store.Store` over `ChatData.files`."""

import asyncio
import io
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.blocking import run_blocking
from shared.digest import Digest
from shared.errors import Changed, NotFound, StorageFull, TooLarge
from shared.wire import FileInfo

from .store import Reader
from .uploads import KeyedLocks, Part, PartUpload, UploadSpec, already_exists

__all__ = ["MemoryStore"]

# The default digest of a megabyte takes 20 to 100 microseconds, about what it costs to ask a thread.
_INLINE_DIGEST_BYTES: Final = 1024 * 1024

# A listing looks at that many in 0.1 milliseconds.
_FILES_A_TURN: Final = 256


class MemoryStore:
    """A view of a dictionary that others may read and change at any time, in the event loop's thread.

    What is known of a value beside its length (digest, time) is kept here, and found anew when the dictionary has
    another object under that name: so values must be `bytes`, which can't change.

    Unfinished uploads live in the store, and survive connections but not the process.

    Args:
        files: The dictionary.
        max_bytes: The most that the files and the unfinished uploads may have together; None for no limit.
        max_file_bytes: The largest file it takes; None for no limit.
    """

    def __init__(
        self, files: MutableMapping[str, bytes], max_bytes: int | None = None, max_file_bytes: int | None = None
    ) -> None:
        self._files = files
        self.set_limits(max_bytes, max_file_bytes)
        self._known: dict[str, _Known] = {}
        self._parts: dict[str, _MemoryPart] = {}
        self._locks = KeyedLocks()

    def set_limits(self, max_bytes: int | None, max_file_bytes: int | None) -> None:
        """Replaces the limits, for what comes from now on."""
        self._max_bytes = max_bytes
        # A file over the store's whole room is never going to fit, however much is deleted.
        limits = [limit for limit in (max_bytes, max_file_bytes) if limit is not None]
        self._max_file_bytes = min(limits) if limits else None

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        for part in self._parts.values():
            part.owner = None

    async def stat(self, name: str) -> FileInfo:
        return (await self._look(name)).info

    async def list(self, prefix: str = "") -> Sequence[FileInfo]:
        self._forget_replaced()
        found: list[FileInfo] = []
        names = list(self._files)
        for index, (name, content) in enumerate([(name, self._files[name]) for name in names]):
            if name.startswith(prefix):
                found.append((await self._know(name, content)).info)
            if not index % _FILES_A_TURN:
                await asyncio.sleep(0)
        return found

    async def open(self, name: str) -> Reader:
        return _MemoryReader(await self._look(name))

    async def begin(
        self, upload_id: str, name: str, *, size: int | None, algorithm: str, overwrite: bool = True
    ) -> PartUpload:
        spec = UploadSpec(upload_id, name, size, algorithm)
        spec.check(self._max_file_bytes)
        lock = self._locks[upload_id]
        async with lock:
            if not overwrite and name in self._files:
                raise already_exists(name)
            part = self._parts.get(upload_id)
            if part is not None:
                spec.check_same(part.spec)
                part.touch()
            else:
                part = self._parts[upload_id] = _MemoryPart(spec, self)
            return PartUpload(part, lock, overwrite=overwrite, max_bytes=self._max_file_bytes)

    async def put(self, name: str, content: bytes) -> None:
        self.put_at_once(name, content)

    def put_at_once(self, name: str, content: bytes) -> None:
        """As `put`."""
        if self._max_file_bytes is not None and len(content) > self._max_file_bytes:
            raise TooLarge(f"a file may have {self._max_file_bytes} bytes here, not {len(content)}", name=name)
        self.check_room(len(content) - len(self._files.get(name, b"")), name)
        self._files[name] = content

    def content(self, name: str) -> bytes:
        """The whole file.

        Raises:
            NotFound: There is none of that name.
        """
        try:
            return self._files[name]
        except KeyError:
            raise NotFound.for_name(name) from None

    def known(self, name: str) -> FileInfo | None:
        """What `stat` tells, if that takes no time; None if there is no such file, or its digest isn't known yet."""
        known = self._known.get(name)
        return known.info if known is not None and self._files.get(name) is known.content else None

    async def published(self, upload_id: str, name: str) -> FileInfo | None:
        known = self._known.get(name)
        return self.known(name) if known is not None and known.upload_id == upload_id else None

    async def uploaded(self, upload_id: str, name: str) -> int:
        part = self._parts.get(upload_id)
        if part is None or part.spec.name != name:
            raise NotFound(f"no unfinished upload {upload_id!r} of {name!r}", name=name)
        return part.digest.length

    async def delete(self, name: str, if_match: str | None = None) -> FileInfo:
        known = await self._look(name)
        # Somebody may have replaced it while its digest was computed: only the very value that was looked at counts.
        if if_match is not None and (if_match != known.info.etag or self._files.get(name) is not known.content):
            raise Changed(f"{name!r} has changed", name=name)
        if self._files.pop(name, None) is None:
            raise NotFound.for_name(name)
        self._known.pop(name, None)
        return known.info

    async def sweep(self, max_age_seconds: float) -> int:
        self._forget_replaced()
        oldest = time.monotonic() - max_age_seconds
        dropped = 0
        for upload_id in list(self._parts):
            async with self._locks[upload_id]:
                part = self._parts.get(upload_id)
                if part is not None and part.touched <= oldest:
                    part.owner = None
                    await part.drop()
                    dropped += 1
        return dropped

    # For the parts below.

    def check_room(self, nbytes: int, name: str) -> None:
        """Whether a part may get that many bytes more.

        Raises:
            StorageFull: There is no room for them.
        """
        if self._max_bytes is None:
            return
        # Counted each time, as the dictionary isn't ours alone; ten thousand files take a fraction of a millisecond.
        used = sum(map(len, self._files.values())) + sum(part.digest.length for part in self._parts.values())
        if used + nbytes > self._max_bytes:
            raise StorageFull(f"the server's memory has no room for {nbytes} more bytes", name=name)

    def forget(self, part: "_MemoryPart") -> None:
        """Notes that a part has ended."""
        del self._parts[part.spec.upload_id]

    def publish(self, part: "_MemoryPart", content: bytes, *, overwrite: bool) -> FileInfo:
        """Makes `content`, all of the part's, the file."""
        name = part.spec.name
        if not overwrite and name in self._files:
            raise already_exists(name)
        self.forget(part)
        self._files[name] = content
        known = self._known[name] = _Known.of(name, content, part.digest.text(), part.spec.upload_id)
        return known.info

    async def _look(self, name: str) -> "_Known":
        return await self._know(name, self.content(name))

    async def _know(self, name: str, content: bytes) -> "_Known":
        known = self._known.get(name)
        if known is not None and known.content is content:
            return known
        digest = Digest()
        if len(content) <= _INLINE_DIGEST_BYTES:
            digest.update(content)
            await asyncio.sleep(0)  # a listing may need many
        else:
            await run_blocking(None, digest.update, content)
        known = _Known.of(name, content, digest.text())
        if self._files.get(name) is content:
            self._known[name] = known
        return known

    def _forget_replaced(self) -> None:
        """Frees the values that are only here any more, since somebody took them out of the dictionary."""
        for name, known in list(self._known.items()):
            if self._files.get(name) is not known.content:
                del self._known[name]


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of one value of the dictionary."""

    content: bytes
    info: FileInfo
    upload_id: str | None

    @classmethod
    def of(cls, name: str, content: bytes, digest: str, upload_id: str | None = None) -> "_Known":
        return cls(content, FileInfo(name, len(content), digest, time.time(), digest), upload_id)


class _MemoryPart(Part):
    """An unfinished upload in memory."""

    def __init__(self, spec: UploadSpec, store: MemoryStore) -> None:
        super().__init__(spec)
        self.touched = time.monotonic()
        self._store = store
        self._buffer = io.BytesIO()

    def touch(self) -> None:
        """Puts off its expiry."""
        self.touched = time.monotonic()

    async def write(self, chunks: Sequence[bytes]) -> None:
        self.touch()
        for index, chunk in enumerate(chunks):
            if index:
                await asyncio.sleep(0)  # a turn for the others: a chunk of a megabyte takes the better part of 1 ms
            self._store.check_room(len(chunk), self.spec.name)
            self._buffer.write(chunk)
            self.digest.update(chunk)

    async def publish(self, *, overwrite: bool) -> FileInfo:
        return self._store.publish(self, self._buffer.getvalue(), overwrite=overwrite)  # not a copy, in CPython

    async def close(self) -> None:
        """It stays as it is."""

    async def drop(self) -> None:
        self._store.forget(self)


class _MemoryReader:
    """Holds the value that it was opened for."""

    def __init__(self, known: _Known) -> None:
        self.info: Final = known.info
        self._content = known.content

    async def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    async def close(self) -> None:
        self._content = b""
