"""Files in a dictionary, as in the tutorial: `server.store.Store` over `ChatData.files`."""

import asyncio
import io
import math
import time
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

from shared.aio import run_blocking
from shared.errors import Changed, NotFound, StorageFull, TooLarge
from shared.protocol.digest import DEFAULT_ALGORITHM, Digest
from shared.protocol.wire import FileInfo

from .base import Reader
from .parts import KeyedLocks, Part, PartUpload, UploadSpec, already_exists

__all__ = ["MemoryStore"]

# The default digest of a megabyte takes 20 to 100 microseconds, about what it costs to ask a thread.
_INLINE_DIGEST_BYTES: Final = 1024 * 1024

# Looking at that many takes 0.1 to 0.2 milliseconds.
_FILES_A_TURN: Final = 256

# What a file or an unfinished upload takes beside its content and its name: what is known of it, here and elsewhere.
_ENTRY_BYTES: Final = 1024

# Counting all files anew takes that part of the time at the most.
_COUNTING_SHARE: Final = 0.1

# However few there are, they aren't counted more often: to be put without counting is to be put at once.
_COUNTED_SECONDS: Final = 0.01


class MemoryStore:
    """A view of a dictionary that others may read and change at any time, in the event loop's thread.

    What is known of a value beside its length (digest, time) is kept here, and found anew when the dictionary has
    another object under that name: so values must be `bytes`, which can't change.

    Unfinished uploads live in the store, and survive connections but not the process.

    What goes through the store is counted as it does. What others do to the dictionary is found by counting all of it
    anew now and then: so it may be over the limit for a while.

    Args:
        files: The dictionary.
        max_bytes: The most that the files and the unfinished uploads may have together; None for no limit. Each counts
            with its content, its name, and 1,024 bytes.
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
        # What each file counts, as it was last seen; and the sum of that and of what the parts count.
        self._counted: dict[str, int] = {}
        self._used = 0
        self._counting = asyncio.Lock()
        self._counts = 0
        self._count_again_at = -math.inf

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
        found: list[FileInfo] = []
        names = list(self._files)
        contents = list(map(self._files.__getitem__, names))
        for index, (name, content) in enumerate(zip(names, contents, strict=True)):
            if name.startswith(prefix):
                found.append((await self._know(name, content)).info)
            if not index % _FILES_A_TURN:
                await asyncio.sleep(0)
        await self._see_all(self._known)
        return found

    async def open(self, name: str) -> Reader:
        return _MemoryReader(await self._look(name))

    async def begin(
        self, upload_id: str, name: str, *, size: int | None, algorithm: str | None, overwrite: bool = True
    ) -> PartUpload:
        spec = UploadSpec(upload_id, name, size, algorithm or DEFAULT_ALGORITHM)
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
                part = _MemoryPart(spec, self)
                await self.make_room(part.cost, name)
                self._parts[upload_id] = part
                self._used += part.cost
            return PartUpload(part, lock, overwrite=overwrite, max_bytes=self._max_file_bytes)

    async def put(self, name: str, content: bytes) -> None:
        if self._max_file_bytes is not None and len(content) > self._max_file_bytes:
            raise TooLarge(f"a file may have {self._max_file_bytes} bytes here, not {len(content)}", name=name)
        self._see(name)
        await self.make_room(_cost(name, len(content)) - self._counted.get(name, 0), name)
        self._files[name] = content
        self._see(name)

    def put_at_once(self, name: str, content: bytes) -> bool:
        """As `put`, if it is certain that there is room; whether it is. If not, `put` finds out, or says why not."""
        if self._max_file_bytes is not None and len(content) > self._max_file_bytes:
            return False
        self._see(name)
        if self._must_count() or self._lacks(_cost(name, len(content)) - self._counted.get(name, 0)):
            return False
        self._files[name] = content
        self._see(name)
        return True

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
        self._see(name)
        return known.info

    async def sweep(self, max_age_seconds: float) -> int:
        await self._see_all(self._known)
        oldest = time.monotonic() - max_age_seconds
        dropped = 0
        for index, upload_id in enumerate(list(self._parts)):
            if not index % _FILES_A_TURN:
                await asyncio.sleep(0)
            async with self._locks[upload_id]:
                part = self._parts.get(upload_id)
                if part is not None and part.touched <= oldest:
                    part.owner = None
                    await part.drop()
                    dropped += 1
        return dropped

    # For the parts below.

    async def make_room(self, nbytes: int, name: str) -> None:
        """Returns if there is room for so many bytes more. The caller stores them before it waits for anything.

        Raises:
            StorageFull: There isn't.
        """
        if self._max_bytes is None:
            return
        if self._must_count() or (self._lacks(nbytes) and self._may_be_wrong()):
            await self._count()
        if self._lacks(nbytes):
            raise StorageFull(f"the server's memory has no room for {nbytes} more bytes", name=name)

    def grown(self, nbytes: int) -> None:
        """Notes that a part has so many bytes more."""
        self._used += nbytes

    def forget(self, part: "_MemoryPart") -> None:
        """Notes that a part has ended."""
        del self._parts[part.spec.upload_id]
        self._used -= part.cost + part.digest.length

    def publish(self, part: "_MemoryPart", content: bytes, *, overwrite: bool) -> FileInfo:
        """Makes `content`, all of the part's, the file."""
        name = part.spec.name
        if not overwrite and name in self._files:
            raise already_exists(name)
        self.forget(part)
        self._files[name] = content
        known = self._known[name] = _Known.of(name, content, part.digest.text(), part.spec.upload_id)
        self._see(name)
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
            self._see(name)
        return known

    def _must_count(self) -> bool:
        return self._max_bytes is not None and time.monotonic() >= self._count_again_at

    def _lacks(self, nbytes: int) -> bool:
        return self._max_bytes is not None and nbytes > 0 and self._used + nbytes > self._max_bytes

    def _may_be_wrong(self) -> bool:
        """Whether to count again though it was done just now: somebody took files away, or it costs nothing."""
        count = len(self._files)
        return count != len(self._counted) or count <= _FILES_A_TURN

    async def _count(self) -> None:
        """Finds what others did to the dictionary."""
        counts = self._counts
        async with self._counting:
            if counts != self._counts:
                return  # somebody has just done it
            began = time.monotonic()
            await self._see_all(self._counted)
            await self._see_all(self._files)
            self._counts += 1
            now = time.monotonic()
            self._count_again_at = now + max((now - began) / _COUNTING_SHARE, _COUNTED_SECONDS)

    async def _see_all(self, names: Iterable[str]) -> None:
        for index, name in enumerate(list(names), 1):
            self._see(name)
            if not index % _FILES_A_TURN:
                await asyncio.sleep(0)

    def _see(self, name: str) -> None:
        """Counts what the dictionary has under that name now, and frees what is only here any more."""
        content = self._files.get(name)
        cost = 0 if content is None else _cost(name, len(content))
        self._used += cost - self._counted.get(name, 0)
        if cost:
            self._counted[name] = cost
        else:
            self._counted.pop(name, None)
        known = self._known.get(name)
        if known is not None and known.content is not content:
            del self._known[name]


def _cost(name: str, nbytes: int) -> int:
    """What so many bytes of that name count."""
    return _ENTRY_BYTES + len(name if name.isascii() else name.encode("utf-8", "surrogatepass")) + nbytes


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
        self.cost: Final = _cost(spec.name, len(spec.upload_id))
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
            await self._store.make_room(len(chunk), self.spec.name)
            self._buffer.write(chunk)
            self.digest.update(chunk)
            self._store.grown(len(chunk))

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
