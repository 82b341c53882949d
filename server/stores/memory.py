"""Files in a dictionary, as in the tutorial: `server.stores.base.Store` over `ChatData.files`."""

import asyncio
import io
import itertools
import time
from collections import OrderedDict
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Final

from shared.errors import Changed, NotFound, StorageFull
from shared.protocol.digest import DEFAULT_ALGORITHM
from shared.protocol.wire import FileInfo

from .base import PAGE_FILES, AtOnceStore, Page, Reader, Reservation, Store
from .catalog import FILES_A_SLICE, Catalog, Claim, Known, KnownReader, cost_of
from .parts import KeyedLocks, Part, PartUpload, UploadSpec, already_exists, check_file_size, no_upload
from .sorted_names import SortedNames

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """A view of a dictionary that others may read and change at any time, in the event loop's thread.

    What is known of a value beside its length (digest, time) is kept here, and found anew when the dictionary has
    another object under that name: so values must be `bytes`, which can't change.

    Unfinished uploads live in the store, and survive connections but not the process.

    Args:
        files: The dictionary.
        max_bytes: The most that the files, the unfinished uploads, and what is reserved for files that are arriving may
            have together; None for no limit. Each counts with its content, its name, and 1,024 bytes. What others put
            into the dictionary is counted now and then.
        max_file_bytes: The largest file it takes; None for no limit.
    """

    spools = False
    queues_calls = False

    def __init__(
        self, files: MutableMapping[str, bytes], max_bytes: int | None = None, max_file_bytes: int | None = None
    ) -> None:
        self._files = files
        self._catalog = Catalog(files)
        self._parts: dict[str, _MemoryPart] = {}
        self._names = SortedNames(files)
        # Those without an owner, the oldest first, and what they count.
        self._idle: OrderedDict[str, _MemoryPart] = OrderedDict()
        self._idle_bytes = 0
        self._locks = KeyedLocks()
        self.apply_limits(max_bytes, max_file_bytes)

    @property
    def at_once(self) -> AtOnceStore | None:
        # A subclass of either may override what is skipped here: it may raise, count or wait.
        return self if type(self) is MemoryStore and type(self._files) is dict else None

    def apply_limits(self, max_bytes: int | None, max_file_bytes: int | None) -> None:
        self._catalog.max_bytes = max_bytes
        # A file over the store's whole room is never going to fit, however much is deleted.
        limits = (limit for limit in (max_bytes, max_file_bytes) if limit is not None)
        self._max_file_bytes = min(limits, default=None)

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        for part in self._parts.values():
            if part.owner is not None:
                part.owner = None
                self.set_idle(part)

    async def stat(self, name: str) -> FileInfo:
        return (await self._look(name)).info

    async def list(self, prefix: str = "", after: str = "", limit: int = PAGE_FILES) -> Page:
        if await self._names.look(anew=not after):
            await self._catalog.free()
        found: list[tuple[str, bytes]] = []
        end = None
        for index, name in enumerate(self._names.since(max(prefix, after)), 1):
            if not name.startswith(prefix):
                break
            if name != after and (content := self._files.get(name)) is not None:
                if len(found) == limit:
                    end = found[-1][0]
                    break
                found.append((name, content))
            if not index % FILES_A_SLICE:
                await asyncio.sleep(0)
        return Page([(await self._catalog.know(name, content)).info for name, content in found], end)

    async def open(self, name: str) -> Reader:
        return KnownReader(await self._look(name))

    async def begin(
        self,
        upload_id: str,
        name: str,
        *,
        size: int | None,
        algorithm: str | None,
        overwrite: bool = True,
        modified: float | None = None,
    ) -> PartUpload:
        spec = UploadSpec(upload_id, name, size, algorithm or DEFAULT_ALGORITHM)
        spec.check(self._max_file_bytes)
        lock = self._locks[upload_id]
        async with lock:
            if not overwrite and name in self._files:
                raise already_exists(name)
            part = self._parts.get(upload_id)
            if part is None:
                part = _MemoryPart(spec, self, self._catalog)
                await self.make_room(part.cost + part.missing, name)
                self._parts[upload_id] = part
                self._catalog.used += part.cost
                part.reserve()
            else:
                spec.check_same(part.spec)
                if upload_id in self._idle:
                    await self._resume(part)
            return PartUpload(part, lock, overwrite=overwrite, modified=modified, max_bytes=self._max_file_bytes)

    async def put(self, name: str, content: bytes) -> None:
        check_file_size(name, len(content), self._max_file_bytes)
        await self.make_room(self._catalog.growth(name, len(content)), name)
        self.put_reserved(name, content)

    def reserve(self, name: str) -> Reservation | None:
        # As for `at_once`: a subclass may override `put`.
        return _MemoryReservation(name, self, self._catalog) if type(self) is MemoryStore else None

    def put_at_once(self, name: str, content: bytes) -> bool:
        if self._max_file_bytes is not None and len(content) > self._max_file_bytes:
            return False
        if not self._catalog.has_room(name, len(content)):
            return False
        self.put_reserved(name, content)
        return True

    def content(self, name: str) -> bytes:
        try:
            return self._files[name]
        except KeyError:
            raise NotFound.for_name(name) from None

    def known(self, name: str) -> FileInfo | None:
        known = self._catalog.get(name)
        return None if known is None else known.info

    async def published(self, upload_id: str, name: str) -> FileInfo | None:
        known = self._catalog.get(name)
        return known.info if known is not None and known.upload_id == upload_id else None

    async def uploaded(self, upload_id: str, name: str) -> int:
        part = self._parts.get(upload_id)
        if part is None or part.spec.name != name:
            raise no_upload(upload_id, name)
        return part.durable

    async def count_unfinished(self) -> int | None:
        return len(self._parts)

    async def discard(self, upload_id: str) -> int:
        async with self._locks[upload_id]:
            part = self._parts.get(upload_id)
            if part is None:
                raise no_upload(upload_id)
            await part.evict()
            return part.durable

    async def delete(self, name: str, if_match: str | None = None) -> FileInfo:
        known = await self._look(name)
        # The file may have been replaced while its digest was computed: only the very value that was looked at counts.
        if if_match is not None and (if_match != known.info.etag or self._files.get(name) is not known.content):
            raise Changed(f"{name!r} has changed", name=name)
        if self._files.pop(name, None) is None:
            raise NotFound.for_name(name)
        self._catalog.see(name)
        self.changes.note(name)
        return known.info

    async def move(self, source: str, target: str, *, overwrite: bool = True, if_match: str | None = None) -> FileInfo:
        while True:
            known = await self._look(source)
            await self.make_room(cost_of(target, 0) - cost_of(source, 0), target)
            if self._files.get(source) is known.content:
                break  # else it was replaced while its digest was computed, or the files were counted
        if if_match is not None and if_match != known.info.etag:
            raise Changed(f"{source!r} has changed", name=source)
        if source == target:
            return known.info
        if not overwrite and target in self._files:
            raise already_exists(target)
        moved = Known(known.content, replace(known.info, name=target), None)
        self._files[target] = known.content
        del self._files[source]
        self._catalog.add(target, moved)
        self._catalog.see(source)
        self.changes.note(source)
        self.changes.note(target)
        return moved.info

    async def sweep(self, max_age_seconds: float) -> int:
        self._names.free()
        await self._catalog.free()
        oldest = time.monotonic() - max_age_seconds
        dropped = 0
        for index, upload_id in enumerate(list(self._parts if max_age_seconds < 0 else self._idle)):
            if not index % FILES_A_SLICE:
                await asyncio.sleep(0)
            async with self._locks[upload_id]:
                part = self._parts.get(upload_id)
                if part is not None and (max_age_seconds < 0 or (upload_id in self._idle and part.closed < oldest)):
                    await part.evict()
                    dropped += 1
        return dropped

    async def _look(self, name: str) -> Known:
        return await self._catalog.know(name, self.content(name))

    # For the parts below.

    async def make_room(self, nbytes: int, name: str) -> None:
        """Raises StorageFull unless there is room for so many more bytes; the caller stores them before it awaits.

        Drops uploads without an owner, the oldest first, if that makes room.
        """
        while lacking := await self._catalog.lacking(nbytes):
            if lacking > self._idle_bytes:
                raise StorageFull(f"the server's memory has no room for {nbytes} more bytes", name=name)
            for part in list(itertools.islice(self._idle.values(), FILES_A_SLICE)):
                lacking -= part.counted
                self.forget(part)
                if lacking <= 0:
                    return
            await asyncio.sleep(0)

    async def _resume(self, part: "_MemoryPart") -> None:
        self._leave_idle(part)
        try:
            await self.make_room(part.missing, part.spec.name)
        except BaseException:
            self.set_idle(part)
            raise
        part.reserve()

    def set_idle(self, part: "_MemoryPart") -> None:
        """Notes that a part has no owner."""
        part.release()
        part.closed = time.monotonic()
        self._idle[part.spec.upload_id] = part
        self._idle_bytes += part.counted

    def _leave_idle(self, part: "_MemoryPart") -> None:
        if self._idle.pop(part.spec.upload_id, None) is not None:
            self._idle_bytes -= part.counted

    def check_size(self, name: str, nbytes: int) -> None:
        """Raises TooLarge if a file of that size is over the limit."""
        check_file_size(name, nbytes, self._max_file_bytes)

    def put_reserved(self, name: str, content: bytes) -> None:
        """As `put`, where there is room."""
        self._files[name] = content
        self._catalog.see(name)
        if self.changes.watchers:  # a call would be a hundredth of a small request
            self.changes.note(name)

    def forget(self, part: "_MemoryPart") -> None:
        """Notes that a part has ended."""
        del self._parts[part.spec.upload_id]
        self._leave_idle(part)
        part.release()
        self._catalog.used -= part.counted

    def publish(self, part: "_MemoryPart", content: bytes, *, overwrite: bool, modified: float | None) -> FileInfo:
        """Makes `content`, all of the part's, the file."""
        name = part.spec.name
        if not overwrite and name in self._files:
            self.set_idle(part)
            raise already_exists(name)
        self.forget(part)
        self._files[name] = content
        known = Known.of(name, content, part.digest.text(), part.spec.upload_id, modified)
        self._catalog.add(name, known)
        self.changes.note(name)
        return known.info


class _MemoryPart(Part):
    """An unfinished upload in memory.

    Attributes:
        cost: What it counts beside its content.
        closed: When it was closed, by `time.monotonic`, if it has no owner.
    """

    def __init__(self, spec: UploadSpec, store: MemoryStore, catalog: Catalog) -> None:
        super().__init__(spec)
        self.cost: Final = cost_of(spec.name, len(spec.upload_id))
        self.closed = 0.0
        self._reserved = 0
        self._found_no_room = False
        self._store = store
        self._catalog = catalog
        self._buffer = io.BytesIO()

    @property
    def found_no_room(self) -> bool:
        return self._found_no_room

    @property
    def counted(self) -> int:
        """What it counts against the store's limit."""
        return self.cost + self.digest.length

    @property
    def missing(self) -> int:
        """What it is going to need, as far as that is known."""
        return 0 if self.spec.size is None else self.spec.size - self.digest.length

    def reserve(self) -> None:
        """Reserves what is missing."""
        self._reserved = self.missing
        self._catalog.reserved += self._reserved

    def release(self) -> None:
        """Gives up what is reserved."""
        self._catalog.reserved -= self._reserved
        self._reserved = 0

    async def write(self, chunks: Sequence[bytes]) -> None:
        catalog = self._catalog
        for index, chunk in enumerate(chunks):
            if index:
                await asyncio.sleep(0)  # other callbacks run: a chunk of a megabyte takes almost 1 ms
            reserved = min(len(chunk), self._reserved)
            try:
                await self._store.make_room(len(chunk) - reserved, self.spec.name)
            except StorageFull:
                self._found_no_room = True
                raise
            self._found_no_room = False
            self._reserved -= reserved
            catalog.reserved -= reserved
            catalog.used += len(chunk)
            self._buffer.write(chunk)
            self.digest.update(chunk)

    async def publish(self, *, overwrite: bool, modified: float | None) -> FileInfo:
        content = self._buffer.getvalue()  # not a copy, in CPython
        return self._store.publish(self, content, overwrite=overwrite, modified=modified)

    async def close(self) -> None:
        self._store.set_idle(self)

    async def drop(self) -> None:
        self._store.forget(self)


class _MemoryReservation(Reservation):
    def __init__(self, name: str, store: MemoryStore, catalog: Catalog) -> None:
        self._claim = Claim(name)
        self._nbytes = 0
        self._is_over = False
        self._store = store
        self._catalog = catalog

    async def grow(self, nbytes: int) -> None:
        name, nbytes = self._claim.name, self._nbytes + nbytes
        self._store.check_size(name, nbytes)
        cost, found = cost_of(name, nbytes), 0
        while (missing := self._catalog.missing(self._claim, cost)) > found:
            await self._store.make_room(missing, name)
            found = missing  # but meanwhile the file that is replaced may have become smaller
        if not self._is_over:
            self._nbytes = nbytes
            self._catalog.claim(self._claim, cost)

    def put(self, content: bytes) -> None:
        self.release()
        self._store.put_reserved(self._claim.name, content)

    def release(self) -> None:
        self._is_over = True
        self._catalog.release(self._claim)
