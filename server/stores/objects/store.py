"""Files in a bucket of an object store: `server.stores.base.Store` over S3, for any number of servers at once."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from shared.errors import Changed, NotFound, StorageUnavailable, TransferError
from shared.protocol.digest import Digest
from shared.protocol.wire import FileInfo

from ..base import Page, Reader, Store
from ..parts import KeyedLocks, Part, UploadSpec, already_exists, check_file_size, no_upload
from .bucket import Bucket, Object
from .context import UploadContext
from .facts import Facts, Published, is_of_upload, token_of
from .failures import Missing, Unmet
from .keys import Keys
from .listing import Lister
from .moving import Mover
from .part import ObjectPart, ObjectUpload
from .probing import probe
from .publishing import Publisher
from .reading import ObjectReader, OpenBodies
from .room import Room
from .state import State, StateObject, Taken, new_token, remove_upload
from .sweeping import Sweeper

__all__ = ["ObjectStore"]

_MIB: Final = 1024 * 1024

PAGE_OBJECTS: Final = 256
"""The files of a page: a request for each page takes some milliseconds. A listing that isn't read holds 80 KiB."""

_PART_BYTES: Final = 8 * _MIB
_MOST_PART_BYTES: Final = 64 * _MIB
# Of the 10,000 that a multipart upload may have; others are smaller than planned, or left out.
_PLANNED_PARTS: Final = 8000
# Uploads whose running digests are kept when they are suspended, about a kilobyte each.
_MAX_SUSPENDED: Final = 1024
# One part of one file may have 64 MiB.
_LEAST_UPLOAD_BYTES: Final = 2 * _MOST_PART_BYTES


class ObjectStore(Store):
    """Files in a bucket, which other servers and other programs may use at the same time.

    A file is the object whose key is the file's name behind `prefix`. What else is in the bucket is served, too; a key
    that is no valid name, or has a segment that is empty, `.` or `..`, isn't. An unfinished upload can go on at another
    server; it becomes durable in parts of 8 MiB (more if the file has over 62.5 GiB), and whole when it is suspended.

    An overwritten or deleted file can't be read on: that is Changed. A page of a listing has no digests, and as a
    file's time that of its object. A file that was written in parts has another etag after a move.

    `start` refuses a service that ignores the conditions of requests. Credentials and region are those that other AWS
    clients find, too: environment, files, the machine's role.

    Args:
        bucket: The bucket's name; it must be there.
        prefix: What all keys begin with, such as `files/`; a slash is added where there is none.
        endpoint: The service's URL; None for AWS.
        max_file_bytes: The largest file it takes, 500 GiB at the most.
        max_upload_bytes: The memory of all uploads together. Those beyond it wait, or are written in smaller pieces.
        deadline_seconds: How long a request is tried again.
    """

    keeps_opened = False
    lists_all = False
    page_files = PAGE_OBJECTS

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        max_file_bytes: int | None = None,
        max_upload_bytes: int = 128 * _MIB,
        deadline_seconds: float = 20.0,
    ) -> None:
        if prefix and not prefix.endswith("/"):
            prefix += "/"
        if max_upload_bytes < _LEAST_UPLOAD_BYTES:
            raise ValueError(f"max_upload_bytes must be {_LEAST_UPLOAD_BYTES} or more, not {max_upload_bytes}")
        self._max_file_bytes = max_file_bytes
        self._keys = keys = Keys(prefix)
        self._bucket = Bucket(bucket, endpoint, deadline_seconds)
        self._facts = Facts(self._bucket, keys)
        self._lister = Lister(self._bucket, keys)
        self._sweeper = Sweeper(self._bucket, keys, self._facts)
        self._publisher = Publisher(self._bucket, keys, self._facts)
        self._mover = Mover(self._bucket, keys, self._facts)
        self._bodies = OpenBodies()
        self._locks = KeyedLocks()
        self._room = Room(max_upload_bytes, self._relieve)
        self._open: dict[str, ObjectPart] = {}
        # By the upload's key: the owner and the serial number of the state that the digest belongs to.
        self._suspended: OrderedDict[str, tuple[str, int, Digest]] = OrderedDict()
        self._context: UploadContext | None = None

    async def start(self) -> None:
        """Tries out what the service can do.

        Raises:
            OSError: It can't be reached, there is no such bucket, or it ignores the conditions of requests.
        """
        await self._bucket.open()
        self._context = UploadContext(
            self._bucket, self._keys, self._facts, self._room, asyncio.Lock(), self._on_closed
        )
        try:
            self._lister.is_in_folders = await probe(self._bucket, self._keys)
        except (TransferError, Missing) as error:
            await self.close()
            raise OSError(f"the bucket {self._bucket.name!r} can't be used: {error}") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Keeps what the uploads under way have received. Only `start` may be called then."""
        parts = list(self._open.values())
        for part in parts:
            part.owner = None
        await asyncio.gather(*(part.close() for part in parts))
        self._bodies.close()
        await self._bucket.close()
        self._context = None

    async def stat(self, name: str) -> FileInfo:
        return await self._facts.info(name, await self._head(name))

    async def list(self, prefix: str = "", after: str = "", limit: int = PAGE_OBJECTS) -> Page:
        return await self._lister.page(prefix, after, limit)

    async def open(self, name: str) -> Reader:
        key = self._keys.of(name)
        try:
            found, body = await self._bucket.get(key, name=name)
        except Missing:
            raise NotFound.for_name(name) from None
        try:
            info = await self._facts.info(name, found)
        except BaseException:
            body.close()
            raise
        return ObjectReader(self._bucket, key, info, body, self._bodies)

    async def begin(
        self,
        upload_id: str,
        name: str,
        *,
        size: int | None,
        algorithm: str | None,
        overwrite: bool = True,
        modified: float | None = None,
    ) -> ObjectUpload:
        spec = UploadSpec(upload_id, name, size, algorithm)
        key = self._keys.state(upload_id)
        self._keys.of(name)
        part_bytes, max_bytes = self._sizes(spec)
        lock = self._locks[key]
        async with lock:
            if not overwrite:
                await self._check_free(name)
            part = await self._taken_over(key, spec)
            if part is None:
                state, digest = await self._claim(key, spec, part_bytes)
                assert self._context is not None, "the client would have raised"
                part = self._open[key] = ObjectPart(self._context, state, digest)
            return ObjectUpload(part, lock, overwrite=overwrite, modified=modified, max_bytes=max_bytes)

    async def put(self, name: str, content: bytes) -> None:
        check_file_size(name, len(content), self._max_file_bytes)
        digest = Digest()
        digest.update(content)
        published = Published.now(digest.text(), None)
        await self._publisher.put(name, content, published, upload_id=None, token=new_token(), overwrite=True)

    async def published(self, upload_id: str, name: str) -> FileInfo | None:
        try:
            found = await self._head(name)
        except NotFound:
            return None
        return await self._facts.info(name, found) if is_of_upload(found, upload_id) else None

    async def uploaded(self, upload_id: str, name: str) -> int:
        state = await StateObject.load(self._bucket, self._keys, upload_id, name)
        if state is None or state.value.name != name or await self._has_ended(state.value):
            raise no_upload(upload_id, name)
        return state.value.durable

    async def discard(self, upload_id: str) -> int:
        key = self._keys.state(upload_id)
        async with self._locks[key]:
            part = self._open.get(key)
            if part is not None:
                durable = part.durable
                await part.evict()
                return durable
            state = await StateObject.at(self._bucket, key)
            if state is None or await self._has_ended(state.value):
                raise no_upload(upload_id)
            try:
                await remove_upload(self._bucket, self._keys, state)
            except Taken:
                raise StorageUnavailable("the upload is going on at another server; try again") from None
            return state.value.durable

    async def delete(self, name: str, if_match: str | None = None) -> FileInfo:
        async with self._locks[f"file {name}"]:
            info = None
            while True:
                try:
                    found = await self._head(name)
                except NotFound:
                    if info is None:
                        raise
                    return info  # most likely, the answer to the first attempt was lost
                if if_match is not None and found.etag != if_match:
                    raise Changed(f"{name!r} has changed", name=name)
                info = await self._facts.info(name, found)
                try:
                    await self._bucket.delete(found.key, found.etag, name)
                except Unmet:
                    continue
                await self._facts.forget(name, found)
                return info

    async def move(self, source: str, target: str, *, overwrite: bool = True, if_match: str | None = None) -> FileInfo:
        async with self._locks[f"file {source}"]:
            return await self._mover.move(source, target, overwrite=overwrite, if_match=if_match)

    async def sweep(self, max_age_seconds: float) -> int:
        dropped = 0
        for key, part in list(self._open.items()):
            async with self._locks[key]:
                if self._open.get(key) is not part:
                    continue
                if max_age_seconds < 0:
                    await part.evict()
                    dropped += 1
                    continue
                try:
                    await part.touch()
                except Taken:
                    continue  # another server has it; its owner will notice
        return dropped + await self._sweeper.sweep(max_age_seconds, self._is_open)

    # Uploads

    def _sizes(self, spec: UploadSpec) -> tuple[int, int]:
        """The size of an upload's parts, and the most that it may have."""
        planned = -(-(spec.size or 0) // _PLANNED_PARTS)
        part_bytes = max(_PART_BYTES, -(-planned // _MIB) * _MIB)
        most = _PLANNED_PARTS * (part_bytes if spec.size is None else _MOST_PART_BYTES)
        if self._max_file_bytes is not None:
            most = min(most, self._max_file_bytes)
        spec.check(most)
        return part_bytes, most

    async def _taken_over(self, key: str, spec: UploadSpec) -> ObjectPart | None:
        """The part of an upload that this server has open, for a newer attempt; None if it has to be claimed."""
        part = self._open.get(key)
        if part is None:
            return None
        spec.check_same(part.spec)
        try:
            await part.take_over()
        except (Taken, TransferError) as error:
            if not part.has_failed and not isinstance(error, Taken):
                raise
            part.owner = None
            await part.close()
            return None
        return part

    async def _claim(self, key: str, spec: UploadSpec, part_bytes: int) -> tuple[StateObject, Digest | None]:
        """Makes this server the owner of an upload, which may be a new one; and the digest that it may go on with."""
        bucket, keys = self._bucket, self._keys
        upload_id, name, size, algorithm = spec.upload_id, spec.name, spec.size, spec.algorithm
        fresh = State(upload_id, name, size, algorithm, new_token(), part_bytes, new_token())
        while True:
            try:
                return await StateObject.create(bucket, keys, fresh), None
            except Taken:
                state = await StateObject.load(bucket, keys, upload_id, name)
            try:
                if state is None:
                    continue
                value = state.value
                has_ended = value.is_publishing and await self._is_published(value)
                if has_ended or value.is_dropped:
                    await remove_upload(bucket, keys, state, has_ended=has_ended)
                    continue
                spec.check_same(value.spec)
                owner, serial, digest = self._suspended.pop(key, ("", 0, None))
                is_ours = (owner, serial) == (value.owner, value.serial)
                await state.change(replace(value, owner=new_token(), is_publishing=False))
            except Taken:
                continue
            return state, digest if is_ours else None

    async def _has_ended(self, value: State) -> bool:
        return value.is_dropped or (value.is_publishing and await self._is_published(value))

    async def _is_published(self, value: State) -> bool:
        try:
            return token_of(await self._bucket.head(self._keys.of(value.name), value.name)) == value.token
        except Missing:
            return False

    def _on_closed(self, part: Part, value: State, digest: Digest | None) -> None:
        key = self._keys.state(value.upload_id)
        if self._open.get(key) is part:
            del self._open[key]
        if digest is not None:
            self._suspended[key] = (value.owner, value.serial, digest)
            self._suspended.move_to_end(key)
            if len(self._suspended) > _MAX_SUSPENDED:
                self._suspended.popitem(last=False)
        else:
            self._suspended.pop(key, None)

    def _is_open(self, key: str) -> bool:
        return key in self._open or f"{key.rpartition('/')[0]}.json" in self._open

    def _relieve(self) -> bool:
        """Has the upload with the most in memory send it."""
        parts: Sequence[ObjectPart] = sorted(self._open.values(), key=lambda part: part.tail_bytes, reverse=True)
        return any(part.relieve() for part in parts)

    # Files

    def key_of(self, name: str) -> str:
        """The key of a file's object; raises InvalidName where it can have none."""
        return self._keys.of(name)

    async def _head(self, name: str) -> Object:
        try:
            return await self._bucket.head(self._keys.of(name), name)
        except Missing:
            raise NotFound.for_name(name) from None

    async def _check_free(self, name: str) -> None:
        try:
            await self._head(name)
        except NotFound:
            return
        raise already_exists(name)
