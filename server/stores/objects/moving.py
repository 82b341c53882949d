"""Renames files: the content is copied under its new name in one step, and then removed under the old one."""

from typing import Final

from shared.errors import Changed, NotFound, StorageUnavailable
from shared.protocol.wire import FileInfo

from ..parts import already_exists
from .bucket import Bucket, Object
from .facts import Facts, Published, metadata_in_parts, token_of
from .failures import Missing, Refused, Unmet
from .keys import Keys
from .publishing import Publisher
from .state import new_token

__all__ = ["Mover"]

_MIB: Final = 1024 * 1024
# Up to this a file is copied through this process, which keeps its ETag; beyond it by the service, in parts.
_SMALL_BYTES: Final = 8 * _MIB
_COPIED_BYTES: Final = 512 * _MIB
_ATTEMPTS: Final = 5


class Mover:
    """See above. Where the file is replaced meanwhile, the new one is moved."""

    def __init__(self, bucket: Bucket, keys: Keys, facts: Facts) -> None:
        self._bucket = bucket
        self._keys = keys
        self._facts = facts

    async def move(self, source: str, target: str, *, overwrite: bool, if_match: str | None) -> FileInfo:
        """As `Store.move`."""
        key = self._keys.of(source)
        self._keys.of(target)
        for _ in range(_ATTEMPTS):
            try:
                found = await self._bucket.head(key, source)
                if if_match is not None and found.etag != if_match:
                    raise Changed(f"{source!r} has changed", name=source)
                info = await self._facts.info(source, found)
                if source == target:
                    return info
                if not overwrite:
                    await self._check_free(target)
                published = Published(info.digest, info.modified if info.modified is not None else found.modified)
                copy = self._copy_small if found.size <= _SMALL_BYTES else self._copy_large
                etag = await copy(found, target, published, overwrite=overwrite)
                await self._remove(found, source)
            except Refused:
                continue  # another one is there by now
            except Missing:
                raise NotFound.for_name(source) from None
            await self._facts.forget(source, found)
            return FileInfo(target, found.size, etag, published.modified, published.digest)
        raise StorageUnavailable(f"{source!r} changes all the time; try again later", name=source)

    async def _remove(self, found: Object, name: str) -> None:
        try:
            await self._bucket.delete(found.key, found.etag, name)
        except Unmet:
            try:
                await self._bucket.head(found.key, name)
            except Missing:
                return  # most likely, the answer to the first attempt was lost
            raise

    async def _check_free(self, target: str) -> None:
        try:
            await self._bucket.head(self._keys.of(target), target)
        except Missing:
            return
        raise already_exists(target)

    async def _copy_small(self, found: Object, target: str, published: Published, *, overwrite: bool) -> str:
        _, content = await self._bucket.content(found.key, if_match=found.etag, name=target)
        publisher = Publisher(self._bucket, self._keys, self._facts)
        return await publisher.put(target, content, published, upload_id=None, token=new_token(), overwrite=overwrite)

    async def _copy_large(self, found: Object, target: str, published: Published, *, overwrite: bool) -> str:
        bucket, key, token = self._bucket, self._keys.of(target), new_token()
        parts_id = await bucket.begin_parts(key, metadata_in_parts(None, token), target)
        try:
            parts: list[tuple[int, str]] = []
            for start in range(0, found.size, _COPIED_BYTES):
                end = min(start + _COPIED_BYTES, found.size)
                number = len(parts) + 1
                parts.append((number, await bucket.copy_part(key, parts_id, number, found, start, end, target)))
            try:
                etag = await bucket.complete_parts(key, parts_id, parts, only_new=not overwrite, name=target)
            except (Refused, Missing):
                there = await bucket.head(key, target)
                if token_of(there) != token:
                    raise already_exists(target) from None
                etag = there.etag
        except BaseException:
            await bucket.abort_parts(key, parts_id)
            raise
        await self._facts.keep(target, etag, published)
        return etag
