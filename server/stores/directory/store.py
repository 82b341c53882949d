"""Files in a folder of a disk: `server.stores.base.Store` over `Folder`, with no disk work in the event loop."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from os import PathLike, fspath
from os.path import abspath
from typing import Final, ParamSpec, TypeVar

from shared.aio import run_blocking, wait_uncancelled
from shared.errors import Forbidden
from shared.files import disk
from shared.files.part import FileTarget
from shared.protocol.wire import FileInfo

from ..base import PAGE_FILES, Page, Reader, Store
from ..failures import READ_ONLY, too_many_files
from ..parts import KeyedLocks, Part, PartUpload, UploadSpec, already_exists, check_file_size
from .folder import Folder
from .names import fingerprint
from .notifier import FolderNotifier
from .reader import DirectoryReader
from .threads import FolderThreads
from .unfinished import UploadFile

__all__ = ["DirectoryStore"]

P = ParamSpec("P")
T = TypeVar("T")

# Files that may be open whatever the system's limit is.
_MIN_OPEN: Final = 16

# How long `start` waits for the count of what isn't served.
_SURVEY_SECONDS: Final = 1.0

# Suspended uploads whose running digests are kept, about a kilobyte each; a part beyond them is read again to go on.
_MAX_SUSPENDED: Final = 1024


class DirectoryStore(Store):
    """Files in a folder, which survive a `kill -9` at any moment: each is old or new, whole; uploads can go on.

    The folder is a tree: the file `docs/b.txt` is `docs/b.txt` there, and what other programs put there is served, too,
    with no digest. A name that can't be a path, such as `../x`, is kept encoded in the subfolder `.rxfiles`, with all
    else that is the store's own; see `server.stores.directory.folder`. Links, devices, folders that can't be read and
    names that aren't valid aren't served; `start` logs how many there are.

    A folder that the store has made goes when a delete leaves it empty; one that was there, or that other programs
    made, stays.

    A full disk, or a quota, is StorageFull wherever something is written. Uploads and readers may have half of the
    descriptors that the process might open at the start; a call beyond that, or that finds none left, raises
    ServerFull. A folder that was removed, or whose disk was unmounted or fails, is StorageUnavailable, until one is
    there again. What the system doesn't allow is Forbidden. On Windows a file can't be replaced or deleted while it is
    read: that is StorageUnavailable, too.

    Args:
        path: The folder; `start` makes it if it isn't there.
        max_file_bytes: The largest file it takes; None for no limit.
        follow_links: Whether links that lead to a file or folder below `path` are served like what they lead to; no
            link is followed that leads elsewhere, or to a folder that it is in. An upload replaces what the link leads
            to, a delete removes the link.
        read_only: Whether nothing is written to the folder, not even a lock: everything that would is Forbidden. It
            must be there, and other processes may use it.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        max_file_bytes: int | None = None,
        *,
        follow_links: bool = False,
        read_only: bool = False,
    ) -> None:
        self._folder = Folder(fspath(path), follow_links=follow_links, read_only=read_only)
        self._notifier = FolderNotifier(abspath(path), self.changes)
        self._read_only = read_only
        self._max_file_bytes = max_file_bytes
        self._locks = KeyedLocks()
        # One page at a time, so that the folders' names that all listings share need no lock, and threads are left.
        self._listing = asyncio.Lock()
        self._open: dict[str, _DirectoryPart] = {}
        self._suspended: OrderedDict[str, UploadFile] = OrderedDict()
        self._readers: set[DirectoryReader] = set()
        self._opening = 0
        self._max_open: int | None = None
        self._threads: FolderThreads | None = None
        self._survey: asyncio.Future[None] | None = None
        self._is_closing = False

    @property
    def is_short_of_files(self) -> bool:
        return self._has_open(0.75)

    @property
    def relist_seconds(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._notifier.relist_seconds

    async def observe(self) -> None:
        await self._notifier.run()

    async def count_unfinished(self) -> int | None:
        return 0 if self._read_only else await self.run(self._folder.uploads.count)

    def _has_open(self, share: float) -> bool:
        """Whether that share of the files that may be open is."""
        is_open = len(self._open) + len(self._readers) + self._opening
        return self._max_open is not None and is_open >= share * self._max_open

    async def start(self) -> None:
        """Locks the folder, and removes what a killed process left behind; unfinished uploads stay.

        Files that an older version kept encoded are moved to their paths. What isn't served is counted, and logged in
        one line: within a second before this returns, else later.

        Raises:
            BlockingIOError: Another process serves the folder.
            OSError: The folder can't be made, read or written.
        """
        self._threads = threads = FolderThreads(self._folder)
        self._max_open = None if (most := disk.max_descriptors()) is None else max(_MIN_OPEN, most // 2)
        self._is_closing = False
        try:
            await run_blocking(threads.executor, self._folder.open)
        except BaseException:
            await self.close()
            raise
        self._survey = survey = asyncio.ensure_future(self.run(self._folder.log_unserved, lambda: self._is_closing))
        await asyncio.wait([survey], timeout=_SURVEY_SECONDS)  # in a large tree it goes on

    async def close(self) -> None:
        """Closes every upload and reader, and unlocks the folder. Only `start` may be called then."""
        if (threads := self._threads) is None:
            return
        self._is_closing = True
        if (survey := self._survey) is not None:
            self._survey = None
            await wait_uncancelled(survey)
        for key in list(self._open):
            async with self._locks[f"upload {key}"]:
                if (part := self._open.get(key)) is not None:
                    part.owner = None
                    await part.close()
        for reader in list(self._readers):
            await reader.close()
        await self.run(self._folder.close)
        self._suspended.clear()
        self._threads = None
        threads.end()  # they are idle, except for calls that were given up

    async def stat(self, name: str) -> FileInfo:
        return await self.threads.run_quickly(self._folder.stat, name)

    async def list(self, prefix: str = "", after: str = "", limit: int = PAGE_FILES) -> Page:
        async with self._listing:
            return await self.run(self._list, prefix, after, limit)

    async def open(self, name: str) -> Reader:
        if self._has_open(1):
            raise too_many_files()
        self._readers.add(reader := DirectoryReader(self, name))
        try:
            await self.run(reader.open, self._folder)
        except BaseException:
            await reader.close()
            raise
        return reader

    async def whole(self, name: str, most_bytes: int) -> bytes | None:
        with self._opening_one():
            return await self.threads.run_quickly(self._folder.whole, name, most_bytes)

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
        self._check_writable(name)
        spec = UploadSpec(upload_id, name, size, algorithm)
        spec.check(self._max_file_bytes)
        key = fingerprint(upload_id)
        lock = self._locks[f"upload {key}"]
        async with lock:
            if not overwrite and await self.run(self._folder.exists, name):
                raise already_exists(name)
            part = self._open.get(key)
            if part is not None:
                spec.check_same(part.spec)
            else:
                part = await self._open_part(key, spec)
            return PartUpload(part, lock, overwrite=overwrite, modified=modified, max_bytes=self._max_file_bytes)

    async def put(self, name: str, content: bytes) -> None:
        self._check_writable(name)
        check_file_size(name, len(content), self._max_file_bytes)
        with self._opening_one():
            async with self.lock_of_file(name):
                await self.threads.put(name, content)
        self.changes.note(name)

    async def published(self, upload_id: str, name: str) -> FileInfo | None:
        return await self.run(self._folder.published, upload_id, name)

    async def uploaded(self, upload_id: str, name: str) -> int:
        return await self.run(self._folder.uploads.durable, upload_id, name)

    async def discard(self, upload_id: str) -> int:
        self._check_writable(None)
        key = fingerprint(upload_id)
        async with self._locks[f"upload {key}"]:
            if (part := self._open.get(key)) is not None:
                await part.evict()
                return part.durable
            self._suspended.pop(key, None)
            return await self.run(self._folder.uploads.discard, upload_id)

    async def delete(self, name: str, if_match: str | None = None) -> FileInfo:
        self._check_writable(name)
        async with self.lock_of_file(name):
            info = await self.run(self._folder.delete, name, if_match)
        self.changes.note(name)
        return info

    async def move(self, source: str, target: str, *, overwrite: bool = True, if_match: str | None = None) -> FileInfo:
        self._check_writable(source)
        async with AsyncExitStack() as locks:
            for name in sorted({source.casefold(), target.casefold()}):  # in the same order in every call
                await locks.enter_async_context(self.lock_of_file(name))
            info = await self.run(self._folder.move, source, target, overwrite=overwrite, if_match=if_match)
        self.changes.note(source)
        self.changes.note(target)
        return info

    async def sweep(self, max_age_seconds: float) -> int:
        async with self._listing:
            self._folder.listings.free()
        if self._read_only:
            return 0
        uploads, oldest = self._folder.uploads, time.monotonic() - max_age_seconds
        dropped = 0
        for key in [*await self.run(uploads.stale, oldest), *(self._open if max_age_seconds < 0 else ())]:
            async with self._locks[f"upload {key}"]:
                if (part := self._open.get(key)) is not None:
                    if max_age_seconds >= 0:
                        continue  # it has gone on meanwhile
                    await part.evict()
                elif uploads.is_stale(key, oldest):
                    self._suspended.pop(key, None)
                    await self.run(uploads.drop, key)
                else:
                    continue
                dropped += 1
        for name in await self.run(self._folder.orphans):
            async with self.lock_of_file(name):
                await self.run(self._folder.drop_orphan, name)
        return dropped

    # For the parts and readers below.

    @property
    def threads(self) -> FolderThreads:
        """Those that use the folder."""
        if self._threads is None:
            raise RuntimeError("the store isn't started, or was closed")
        return self._threads

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The same, for whatever else there is to do about a file."""
        return self.threads.executor

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a blocking function, called in one of the store's threads."""
        return await self.threads.run(function, *args, **kwargs)

    def _list(self, prefix: str, after: str, limit: int) -> Page:
        self._folder.check()
        return self._folder.list(prefix, after, limit)

    def _open_file(self, file: UploadFile) -> bool:
        self._folder.check()
        return file.open()

    async def publish(self, part: "_DirectoryPart", *, overwrite: bool, modified: float | None) -> FileInfo:
        """Makes a part the file."""
        await self.run(self._folder.seal, part.file, modified)
        async with self.lock_of_file(part.spec.name):
            info = await self.run(self._folder.publish, part.file, overwrite=overwrite)
        self.changes.note(part.spec.name)
        return info

    def lock_of_file(self, name: str) -> asyncio.Lock:
        """The lock of a file's name, and of every name that some file system takes for the same."""
        return self._locks[f"file {name.casefold()}"]

    def forget(self, part: "_DirectoryPart", *, keep: bool) -> None:
        """Notes that a part is closed, and whether its digest may be needed again."""
        self._open.pop(part.key, None)
        self._suspended.pop(part.key, None)
        if keep:
            self._suspended[part.key] = part.file
            if len(self._suspended) > _MAX_SUSPENDED:
                self._suspended.popitem(last=False)

    def is_open_again(self, part: "_DirectoryPart") -> bool:
        """Whether a part that was closed has been opened anew."""
        return self._open.get(part.key, part) is not part

    def forget_reader(self, reader: "DirectoryReader") -> None:
        """Notes that a reader is closed."""
        self._readers.discard(reader)

    @contextmanager
    def _opening_one(self) -> Generator[None, None, None]:
        """Counts a file that is open inside; ServerFull where one more may not be opened."""
        if self._has_open(1):
            raise too_many_files()
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1

    def _check_writable(self, name: str | None) -> None:
        if self._read_only:
            raise Forbidden(READ_ONLY, name=name)

    async def _open_part(self, key: str, spec: UploadSpec) -> "_DirectoryPart":
        with self._opening_one():
            file = self._suspended.get(key)
            if file is None or file.spec != spec:
                file = UploadFile(self._folder.uploads, spec, self.executor)
            try:
                is_complete = await self.run(self._open_file, file)
                while not is_complete:
                    is_complete = await self.run(file.content.catch_up)
            except BaseException:
                await self.run(file.close)
                raise
        self._suspended.pop(key, None)
        part = self._open[key] = _DirectoryPart(self, key, file)
        return part


class _DirectoryPart(Part):
    """An unfinished upload on the disk: every byte written survives this process."""

    def __init__(self, store: DirectoryStore, key: str, file: UploadFile) -> None:
        super().__init__(file.spec, file.content.digest)
        self.key: Final = key
        self.file: Final = file
        self._store = store

    async def write(self, chunks: Sequence[bytes]) -> None:
        await self._store.run(self.file.content.write_all, chunks)

    @property
    def found_no_room(self) -> bool:
        return self.file.found_no_room

    def as_file(self) -> FileTarget:
        return self.file.content

    async def publish(self, *, overwrite: bool, modified: float | None) -> FileInfo:
        is_published = False
        try:
            info = await self._store.publish(self, overwrite=overwrite, modified=modified)
            is_published = True
        finally:
            try:
                if not is_published:
                    await self._store.run(self.file.close)
            finally:
                self._store.forget(self, keep=not is_published)
        return info

    async def close(self) -> None:
        try:
            await self._store.run(self.file.close)
        finally:
            self._store.forget(self, keep=True)

    async def drop(self) -> None:
        if self._store.is_open_again(self):
            return
        try:
            await self._store.run(self.file.drop)
        finally:
            self._store.forget(self, keep=False)
