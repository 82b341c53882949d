"""What the uploads of all stores share: one owner for an unfinished one, and the checks before it is published.

Where the bytes are is up to each store: it gives a `Part`, and `PartUpload` makes a `server.stores.base.Upload` of it.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from shared.errors import AlreadyExists, IntegrityError, InvalidRequest, NotFound, Superseded, TooLarge
from shared.files.part import FileTarget
from shared.protocol.digest import Count, Digest, DigestLink, algorithm_of, check_algorithm
from shared.protocol.wire import FileInfo

from .base import Upload

__all__ = ["KeyedLocks", "Part", "PartUpload", "UploadSpec", "already_exists", "check_file_size", "no_upload"]


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """The arguments of `Store.begin` that identify an upload: they have to be the same when it is resumed."""

    upload_id: str
    name: str
    size: int | None
    algorithm: str | None

    def check(self, max_bytes: int | None) -> None:
        """Raises InvalidRequest if the algorithm is unknown, and TooLarge if the size is over the store's limit."""
        if self.algorithm is not None:
            check_algorithm(self.algorithm)
        check_file_size(self.name, self.size or 0, max_bytes)

    def check_same(self, known: "UploadSpec") -> None:
        """Raises InvalidRequest unless this is the upload that began as `known`."""
        if self != known:
            raise InvalidRequest(
                f"the upload {self.upload_id!r} began with another file name, size or digest algorithm", name=self.name
            )


class Part(ABC):
    """The content of an unfinished upload so far, with its running digest and its owner. Calls don't overlap.

    The defaults are those of a store where every byte written is durable.

    Attributes:
        spec: What the upload got when it began.
        digest: Of the content so far; of the bytes behind the last of `links`, if there are any.
        links: See `Upload`.
        claimed: The whole content's, as the sender said, where the rest of it was verified. None before.
        owner: The upload that may add to it; None while it is suspended.
        window_bytes: See `Upload`.
    """

    window_bytes: int | None = None
    links: Sequence[DigestLink] = ()
    claimed: str | None = None

    def __init__(self, spec: UploadSpec, digest: Digest | None = None) -> None:
        self.spec: Final = spec
        self.digest = digest or (Count() if spec.algorithm is None else Digest(spec.algorithm))
        self.owner: PartUpload | None = None

    @property
    def durable(self) -> int:
        """See `Upload`."""
        return self.digest.length

    @property
    def found_no_room(self) -> bool:
        """Whether its last write did: it is dropped rather than suspended then, since others need what it takes."""
        return False

    @abstractmethod
    async def write(self, chunks: Sequence[bytes]) -> None:
        """Adds to the end. However it ends, the digest is that of what was added."""

    async def flush(self) -> None:
        """Makes as much of it durable as the store can."""
        return

    def as_file(self) -> FileTarget | None:
        """The file that the content is in; None if it isn't in one."""
        return None

    @abstractmethod
    async def publish(self, *, overwrite: bool, modified: float | None) -> FileInfo:
        """Makes it the file, with that time, or that of now. The part is closed then.

        After a failure it is kept for a later `begin`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Keeps it for a later `begin`."""

    @abstractmethod
    async def drop(self) -> None:
        """Removes it."""

    async def evict(self) -> None:
        """Removes it; an owner can add nothing any more."""
        self.owner = None
        await self.drop()


class PartUpload(Upload):
    """An upload of a part, until it is closed, a newer `begin` takes over, or it expires.

    Args:
        part: The content so far; this upload owns it from now on.
        lock: That of the upload's id. The caller holds it.
        overwrite: Whether a file of that name may be replaced.
        modified: The file's time; None for now.
        max_bytes: The store's limit for one file.
    """

    def __init__(
        self,
        part: Part,
        lock: asyncio.Lock,
        *,
        overwrite: bool,
        modified: float | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.window_bytes = part.window_bytes
        self.links = part.links
        self._part = part
        self._lock = lock
        self._overwrite = overwrite
        self._modified = modified
        self._limit = min((limit for limit in (part.spec.size, max_bytes) if limit is not None), default=None)
        self._is_closed = False
        self._is_unpublished = False
        part.owner = self

    @property
    def received(self) -> int:
        return self._part.digest.length

    @property
    def durable(self) -> int:
        return self._part.durable

    def as_file(self) -> FileTarget | None:
        file = self._part.as_file()
        return None if file is None else _CheckedTarget(file, self._check_room)

    async def append(self, chunks: Sequence[bytes]) -> None:
        async with self._lock:
            nbytes = sum(map(len, chunks))
            self._check_room(nbytes)
            if nbytes:
                await self._part.write(chunks)

    async def flush(self) -> int:
        async with self._lock:
            self._check_owned()
            await self._part.flush()
            return self.durable

    async def commit(self, digest: str | None, rest_digest: str | None = None) -> FileInfo:
        async with self._lock:
            self._check_owned()
            self._check_digests(digest, rest_digest)
            self._release()
            try:
                self._verify(digest if not self.links else rest_digest)
            except IntegrityError:
                await self._part.drop()
                raise
            self._is_unpublished = True
            self._part.claimed = digest
            info = await self._part.publish(overwrite=self._overwrite, modified=self._modified)
            self._is_unpublished = False
            return info

    async def suspend(self) -> None:
        async with self._lock:
            if self._release():
                await (self._part.drop() if self._part.found_no_room else self._part.close())

    async def abort(self) -> None:
        async with self._lock:
            # A part whose publishing failed or was cancelled was kept as a suspended one, and may have a new owner.
            is_kept, self._is_unpublished = self._is_unpublished and self._part.owner is None, False
            if self._release() or is_kept:
                await self._part.drop()

    def _check_room(self, nbytes: int) -> None:
        """Raises TooLarge, or as `_check_owned`, if this upload may not add that many bytes."""
        self._check_owned()
        if self._limit is not None and self.received + nbytes > self._limit:
            raise TooLarge(f"the content has more than {self._limit} bytes", name=self._part.spec.name)

    def _check_owned(self) -> None:
        if self._part.owner is self:
            return
        if self._is_closed:
            raise RuntimeError("the upload was closed by suspend, abort or commit")
        raise Superseded(
            f"a newer transfer took over the upload {self._part.spec.upload_id!r}, or it expired",
            name=self._part.spec.name,
        )

    def _release(self) -> bool:
        """Gives up the part, and returns whether this upload owned it."""
        self._is_closed = True
        if self._part.owner is not self:
            return False
        self._part.owner = None
        return True

    def _check_digests(self, digest: str | None, rest_digest: str | None) -> None:
        """Raises InvalidRequest unless they are what is due."""
        spec = self._part.spec
        for each in (digest, rest_digest):
            if each is not None and algorithm_of(each) != spec.algorithm:
                wanted = (
                    "the upload began without a digest" if spec.algorithm is None else f"a {spec.algorithm} one is due"
                )
                raise InvalidRequest(f"the digest is a {algorithm_of(each)} one; {wanted}", name=spec.name)
        if self.links and (digest is None) != (rest_digest is None):
            raise InvalidRequest("the digest of the bytes behind the known ones is due, too", name=spec.name)

    def _verify(self, digest: str | None) -> None:
        spec = self._part.spec
        if spec.size is not None and self.received != spec.size:
            raise IntegrityError(f"{self.received} bytes arrived, {spec.size} were announced", name=spec.name)
        found = self._part.digest.value
        if digest is not None and digest != found:
            raise IntegrityError(f"the content's digest is {found}, {digest} was announced", name=spec.name)


class _CheckedTarget:
    """A `FileTarget` that calls `check` with the number of bytes before each write."""

    def __init__(self, file: FileTarget, check: Callable[[int], None]) -> None:
        self.executor: Final = file.executor
        self._file = file
        self._check = check

    def write(self, data: memoryview) -> None:
        self._check(len(data))
        self._file.write(data)

    @property
    def write_from(self) -> Callable[[int, int], None] | None:
        write_from = self._file.write_from
        if write_from is None:
            return None

        def checked(pipe: int, nbytes: int) -> None:
            self._check(nbytes)
            write_from(pipe, nbytes)

        return checked


class KeyedLocks:
    """A lock for each key, which lives as long as it is held or waited for."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __getitem__(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


def check_file_size(name: str, nbytes: int, max_bytes: int | None) -> None:
    """Raises TooLarge if a file of that size is over the store's limit."""
    if max_bytes is not None and nbytes > max_bytes:
        raise TooLarge(f"a file may have {max_bytes} bytes here, not {nbytes}", name=name)


def already_exists(name: str) -> AlreadyExists:
    """The error for a name that is in use and mustn't be overwritten."""
    return AlreadyExists(f"there is a file named {name!r} already", name=name)


def no_upload(upload_id: str, name: str | None = None) -> NotFound:
    """The error for an upload that isn't there; of the file `name`, if that is known."""
    of_file = "" if name is None else f" of {name!r}"
    return NotFound(f"no unfinished upload {upload_id!r}{of_file}", name=name)
