"""How an upload becomes a file: in one request, or by completing its parts; either is one step for a reader.

The state says before that it is being published. So where the answer is lost, or the server is killed, the next one
finds out by the object's token whether it was.
"""

import asyncio
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Protocol

from shared.aio import run_blocking
from shared.errors import AlreadyExists, StorageUnavailable
from shared.protocol.wire import FileInfo

from ..parts import already_exists
from .bucket import Bucket, Object
from .facts import Facts, Published, etag_of_parts, md5_of, metadata_of, token_of
from .failures import Missing, Refused, Unmet
from .keys import Keys
from .state import State, StateObject, remove_upload

__all__ = ["Publishable", "Publisher", "md5_in_thread"]

# MD5 of as much takes a millisecond or two.
_INLINE_MD5_BYTES: Final = 256 * 1024
# Where a file can't be made and isn't there, either: it was just removed, or SeaweedFS has a folder of that name.
_DELAYS: Final = (0.0, 0.1, 0.5)


class Publishable(Protocol):
    """An upload all of whose bytes are here."""

    @property
    def state(self) -> StateObject:
        """Its state."""
        ...

    @property
    def etags(self) -> dict[int, str]:
        """Those of the parts that this server has written, by their numbers."""
        ...

    @property
    def tail(self) -> io.BytesIO:
        """What isn't in parts."""
        ...

    async def change(self, value: State) -> None:
        """Changes the state; raises Superseded where another server has done so."""
        ...


class Publisher:
    """Publishes uploads; see above. Both raise AlreadyExists and Superseded, and then nothing was published."""

    def __init__(self, bucket: Bucket, keys: Keys, facts: Facts) -> None:
        self._bucket = bucket
        self._keys = keys
        self._facts = facts

    async def as_whole(
        self, upload: Publishable, digest: str | None, *, overwrite: bool, modified: float | None
    ) -> FileInfo:
        """Writes the object in one request, where all of the content is in memory."""
        value, published, content = upload.state.value, Published.now(digest, modified), upload.tail
        size = content.getbuffer().nbytes
        await upload.change(replace(upload.state.value, is_publishing=True))
        etag = await self.put(
            value.name, content, published, upload_id=value.upload_id, token=value.token, overwrite=overwrite
        )
        if value.parts_id is not None:  # and it has no parts
            await self._bucket.abort_parts(self._keys.of(value.name), value.parts_id)
        await remove_upload(self._bucket, self._keys, upload.state, has_ended=True)
        return FileInfo(value.name, size, etag, published.modified, digest)

    async def put(
        self,
        name: str,
        content: bytes | io.BytesIO,
        published: Published,
        *,
        upload_id: str | None,
        token: str,
        overwrite: bool,
    ) -> str:
        """Writes a file in one request; returns its ETag. Raises AlreadyExists."""
        key = self._keys.of(name)
        md5 = await md5_in_thread(content if isinstance(content, bytes) else content.getbuffer())
        metadata = metadata_of(published, md5, upload_id, token)
        for delay in _DELAYS:
            try:
                return await self._bucket.put(key, content, metadata, only_new=not overwrite, name=name)
            except Refused:
                if (found := await self._written(name, token)) is not None:
                    return found.etag  # the answer to the first attempt was lost
            await self._make_free(key, delay)
        raise AlreadyExists(f"the object store has a folder in the place of {name!r}; allow to overwrite", name=name)

    async def in_parts(
        self, upload: Publishable, digest: str | None, *, overwrite: bool, modified: float | None
    ) -> FileInfo:
        """Completes the multipart upload."""
        value, published = upload.state.value, Published.now(digest, modified)
        parts_id, name = value.parts_id, value.name
        assert parts_id is not None, "it has parts"
        try:
            parts = await self._parts(upload, parts_id)
            expected = etag_of_parts([etag for _, etag in parts])
            if expected is not None:
                await self._facts.keep(name, expected, published)
            await upload.change(replace(upload.state.value, is_publishing=True))
            etag = await self._complete(value, parts_id, parts, overwrite=overwrite)
        except Missing:
            await remove_upload(self._bucket, self._keys, upload.state)
            raise StorageUnavailable("what was uploaded is lost; upload it again", name=name) from None
        if etag != expected:
            await self._facts.keep(name, etag, published)
        await remove_upload(self._bucket, self._keys, upload.state, has_ended=True)
        return FileInfo(name, value.durable, etag, published.modified, digest)

    async def _parts(self, upload: Publishable, parts_id: str) -> Sequence[tuple[int, str]]:
        value = upload.state.value
        numbers, etags = value.numbers(), upload.etags
        if any(number not in etags for number in numbers):
            there = await self._bucket.parts(self._keys.of(value.name), parts_id, value.name)
            if sum(size for number, (_, size) in there.items() if number in set(numbers)) != value.parted:
                raise Missing
            etags = {number: etag for number, (etag, _) in there.items()} | etags
        return [(number, etags[number]) for number in numbers]

    async def _complete(self, value: State, parts_id: str, parts: Sequence[tuple[int, str]], *, overwrite: bool) -> str:
        name, key = value.name, self._keys.of(value.name)
        for delay in _DELAYS:
            try:
                return await self._bucket.complete_parts(key, parts_id, parts, only_new=not overwrite, name=name)
            except Unmet as error:
                if (found := await self._written(name, value.token)) is not None:
                    return found.etag  # the answer to the first attempt was lost, or an older owner was faster
                if isinstance(error, Missing):
                    raise
            await self._make_free(key, delay)
        raise AlreadyExists(f"the object store has a folder in the place of {name!r}; allow to overwrite", name=name)

    async def _make_free(self, key: str, delay: float) -> None:
        """Removes the empty folder that a service may have in the place of an object, and waits."""
        folder = f"{key}/"
        if not (await self._bucket.list(folder, limit=1)).objects:
            await self._bucket.delete(folder)
        await asyncio.sleep(delay)

    async def _written(self, name: str, token: str) -> Object | None:
        """The file, if the request with that token has written it; None if there is none.

        Raises:
            AlreadyExists: Another request has.
        """
        try:
            found = await self._bucket.head(self._keys.of(name), name)
        except Missing:
            return None
        if token_of(found) != token:
            raise already_exists(name)
        return found


async def md5_in_thread(content: bytes | memoryview) -> str:
    """As `md5_of`, without holding up the event loop."""
    try:
        return md5_of(content) if len(content) <= _INLINE_MD5_BYTES else await run_blocking(None, md5_of, content)
    finally:
        if isinstance(content, memoryview):
            content.release()  # the buffer can't be written to before
