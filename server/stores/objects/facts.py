"""What is known of a file beside its content: the object's metadata, or an object of its own.

An object that was written in one request has all of it in its metadata. That of a multipart upload is fixed when it
begins, before the digest and the time are known: these are in a small object, whose key is made from the file's name
and its ETag. Both hold for that very content only, also where another program has written over the object and kept its
metadata.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shared.errors import TransferError
from shared.protocol.wire import FileInfo, check_modified

from .bucket import Bucket, Object
from .failures import Missing
from .keys import Keys, fingerprint

__all__ = [
    "Facts",
    "Published",
    "etag_of_parts",
    "is_of_upload",
    "md5_of",
    "metadata_in_parts",
    "metadata_of",
    "token_of",
]

_DIGEST, _MD5, _MODIFIED = "rxfiles-digest", "rxfiles-md5", "rxfiles-modified"
_UPLOAD, _TOKEN, _IN_PARTS = "rxfiles-upload", "rxfiles-token", "rxfiles-parts"

_MOST_CACHED: Final = 1024


@dataclass(frozen=True, slots=True)
class Published:
    """What an uploaded file is, apart from its content.

    Attributes:
        digest: The content's, as `algorithm:hex`; None if it isn't known.
        modified: In seconds since the epoch.
    """

    digest: str | None
    modified: float

    @classmethod
    def now(cls, digest: str | None, modified: float | None) -> "Published":
        """With the time that the uploader gave, or that of now."""
        return cls(digest, time.time() if modified is None else modified)


class Facts:
    """Finds and keeps what is known of the files in a bucket. The last ones that it read are in memory."""

    def __init__(self, bucket: Bucket, keys: Keys) -> None:
        self._bucket = bucket
        self._keys = keys
        self._cache: OrderedDict[str, Published] = OrderedDict()

    async def info(self, name: str, found: Object) -> FileInfo:
        """What is known of a file, from the answer to a HEAD or GET."""
        published = _from_metadata(found)
        if published is None and _IN_PARTS in found.metadata:
            published = await self._load(name, found.etag)
        digest, modified = (None, found.modified) if published is None else (published.digest, published.modified)
        return FileInfo(name, found.size, found.etag, modified, digest)

    async def keep(self, name: str, etag: str, published: Published) -> None:
        """Keeps what is known of a file in parts, before it is published or after its ETag has become another."""
        key = self._keys.facts_of(name, etag)
        said = {"name": name, "etag": etag, "digest": published.digest, "modified": published.modified}
        await self._bucket.put(key, json.dumps(said).encode(), name=name)
        self._remember(key, published)

    async def forget(self, name: str, found: Object) -> None:
        """Drops what is known of a file that was removed."""
        if _IN_PARTS in found.metadata:
            key = self._keys.facts_of(name, found.etag)
            self._cache.pop(key, None)
            await self._bucket.delete(key)

    async def is_orphan(self, key: str) -> bool:
        """Whether the file of what is kept under that key isn't there any more."""
        try:
            _, content = await self._bucket.content(key)
            match json.loads(content):
                case {"name": str(name), "etag": str(etag)}:
                    found = await self._bucket.head(self._keys.of(name))
                    return found.etag != etag
                case _:
                    return True
        except (Missing, ValueError):
            return True

    async def _load(self, name: str, etag: str) -> Published | None:
        key = self._keys.facts_of(name, etag)
        if (known := self._cache.get(key)) is not None:
            return known
        try:
            _, content = await self._bucket.content(key)
            match json.loads(content):
                case {"digest": str() | None as digest, "modified": int() | float() as modified}:
                    published = Published(digest, modified)
                case _:
                    return None
        except (Missing, ValueError):
            return None
        self._remember(key, published)
        return published

    def _remember(self, key: str, published: Published) -> None:
        self._cache[key] = published
        if len(self._cache) > _MOST_CACHED:
            self._cache.popitem(last=False)


def metadata_of(published: Published, md5: str, upload_id: str | None, token: str) -> dict[str, str]:
    """The metadata of a file that is written in one request; `md5` is the content's, in hex."""
    said = {_MD5: md5, _MODIFIED: repr(published.modified), _TOKEN: token}
    if published.digest is not None:
        said[_DIGEST] = published.digest
    if upload_id is not None:
        said[_UPLOAD] = fingerprint(upload_id)
    return said


def metadata_in_parts(upload_id: str | None, token: str) -> dict[str, str]:
    """The metadata of a file that is written in parts."""
    return {_IN_PARTS: "1", _TOKEN: token} | ({} if upload_id is None else {_UPLOAD: fingerprint(upload_id)})


def token_of(found: Object) -> str | None:
    """What says which request has written an object; None if no store did."""
    return found.metadata.get(_TOKEN)


def is_of_upload(found: Object, upload_id: str) -> bool:
    """Whether that upload has published an object."""
    return found.metadata.get(_UPLOAD) == fingerprint(upload_id)


def md5_of(content: bytes | memoryview) -> str:
    """In hex, as in an ETag."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def etag_of_parts(etags: list[str]) -> str | None:
    """The ETag that the object of these parts is going to have; None if it can't be known."""
    try:
        joined = b"".join(bytes.fromhex(etag) for etag in etags)
    except ValueError:
        return None
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(etags)}"


def _from_metadata(found: Object) -> Published | None:
    said: Mapping[str, str] = found.metadata
    if said.get(_MD5) != found.etag:
        return None
    try:
        modified = float(said[_MODIFIED])
        check_modified(modified)
    except (KeyError, ValueError, TransferError):
        return None
    return Published(said.get(_DIGEST), modified)
