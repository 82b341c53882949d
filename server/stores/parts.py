"""What all stores' uploads have in common: who owns an unfinished one, and what must be right before it is published.

Where the bytes are is a store's own matter: it gives a `Part`, and `PartUpload` makes a `server.store.Upload` of it.
"""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from shared.errors import AlreadyExists, IntegrityError, InvalidRequest, Superseded, TooLarge
from shared.protocol.digest import Count, Digest, algorithm_of, check_algorithm
from shared.protocol.wire import FileInfo

from .base import FileWriter

__all__ = ["KeyedLocks", "Part", "PartUpload", "UploadSpec", "already_exists"]


@dataclass(frozen=True, slots=True)
class UploadSpec:
    """What an upload is told when it begins, and has to be told again when it goes on."""

    upload_id: str
    name: str
    size: int | None
    algorithm: str | None

    def check(self, max_bytes: int | None) -> None:
        """Whether a store that takes files of `max_bytes` can take this one.

        Raises:
            InvalidRequest: The digest's algorithm is unknown.
            TooLarge: The announced size is over `max_bytes`.
        """
        if self.algorithm is not None:
            check_algorithm(self.algorithm)
        if max_bytes is not None and self.size is not None and self.size > max_bytes:
            raise TooLarge(f"a file may have {max_bytes} bytes here, not {self.size}", name=self.name)

    def check_same(self, known: "UploadSpec") -> None:
        """Whether this is the upload that began as `known`.

        Raises:
            InvalidRequest: It is another.
        """
        if self != known:
            raise InvalidRequest(
                f"the upload {self.upload_id!r} began with another file name, size or digest algorithm", name=self.name
            )


class Part(ABC):
    """The content of an unfinished upload so far, its running digest and its owner. Calls don't overlap.

    Attributes:
        spec: What the upload was told when it began.
        digest: Of the content so far.
        owner: Who may add to it just now; None while the upload is suspended.
    """

    def __init__(self, spec: UploadSpec) -> None:
        self.spec: Final = spec
        self.digest = Count() if spec.algorithm is None else Digest(spec.algorithm)
        self.owner: PartUpload | None = None

    @abstractmethod
    async def write(self, chunks: Sequence[bytes]) -> None:
        """Adds to the end. However it ends, the digest is that of what is durable by then."""

    def writer(self, room: int, check: Callable[[], None]) -> FileWriter | None:
        """See `server.store.FileUpload`; None if the content isn't in a file. `check` is called before each write."""
        return None

    @abstractmethod
    async def publish(self, *, overwrite: bool) -> FileInfo:
        """Makes it the file. The part is closed then; after a failure it is kept for a later `begin`."""

    @abstractmethod
    async def close(self) -> None:
        """Keeps it for a later `begin`."""

    @abstractmethod
    async def drop(self) -> None:
        """Forgets it."""


class PartUpload:
    """A `server.store.Upload` of a part, until it is closed, a newer `begin` takes over, or it expires.

    Args:
        part: The content so far; it is owned by this upload from now on.
        lock: That of the upload's id. Whoever made this holds it.
        overwrite: Whether a file of that name may be replaced.
        max_bytes: The store's limit for one file.
    """

    def __init__(self, part: Part, lock: asyncio.Lock, *, overwrite: bool, max_bytes: int | None = None) -> None:
        self._part = part
        self._lock = lock
        self._overwrite = overwrite
        limits = [limit for limit in (part.spec.size, max_bytes) if limit is not None]
        self._limit = min(limits) if limits else None
        self._is_closed = False
        self._is_unpublished = False
        part.owner = self

    @property
    def offset(self) -> int:
        return self._part.digest.length

    def writer(self) -> FileWriter | None:
        limit = sys.maxsize if self._limit is None else self._limit
        return self._part.writer(limit - self.offset, self._check_owned) if self._part.owner is self else None

    async def append(self, chunks: Sequence[bytes]) -> int:
        async with self._lock:
            self._check_owned()
            end = self.offset + sum(len(chunk) for chunk in chunks)
            if self._limit is not None and end > self._limit:
                raise TooLarge(f"the content has more than {self._limit} bytes", name=self._part.spec.name)
            if end > self.offset:
                await self._part.write(chunks)
            return self.offset

    async def commit(self, digest: str | None) -> FileInfo:
        async with self._lock:
            self._check_owned()
            spec = self._part.spec
            if digest is not None and algorithm_of(digest) != spec.algorithm:
                wanted = (
                    "the upload began without a digest" if spec.algorithm is None else f"a {spec.algorithm} one is due"
                )
                raise InvalidRequest(f"the digest is a {algorithm_of(digest)} one; {wanted}", name=spec.name)
            self._release()
            try:
                self._verify(digest)
            except IntegrityError:
                await self._part.drop()
                raise
            self._is_unpublished = True
            info = await self._part.publish(overwrite=self._overwrite)
            self._is_unpublished = False
            return info

    async def suspend(self) -> None:
        async with self._lock:
            if self._release():
                await self._part.close()

    async def abort(self) -> None:
        async with self._lock:
            # One whose publishing failed, or was cancelled, was kept like a suspended one; somebody may have come back.
            is_kept, self._is_unpublished = self._is_unpublished and self._part.owner is None, False
            if self._release() or is_kept:
                await self._part.drop()

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
        """Whether it was owned until now."""
        self._is_closed = True
        if self._part.owner is not self:
            return False
        self._part.owner = None
        return True

    def _verify(self, digest: str | None) -> None:
        spec = self._part.spec
        if spec.size is not None and self.offset != spec.size:
            raise IntegrityError(f"{self.offset} bytes arrived, {spec.size} were announced", name=spec.name)
        found = self._part.digest.value
        if digest is not None and digest != found:
            raise IntegrityError(f"the content's digest is {found}, {digest} was announced", name=spec.name)


class KeyedLocks:
    """A lock for each key, for as long as somebody has it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __getitem__(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


def already_exists(name: str) -> AlreadyExists:
    """The error for a name that is in use and mustn't be overwritten."""
    return AlreadyExists(f"there is a file named {name!r} already", name=name)
