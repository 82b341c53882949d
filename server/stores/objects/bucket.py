"""The requests to one bucket: typed, tried again for a bounded time, and with a bounded number of connections."""

import asyncio
import base64
import io
import random
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol, TypeVar, cast

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from shared.aio import run_blocking
from shared.errors import TransferError

from .failures import FAILURES, Missing, Retryable, Unmet, gave_up, typed

__all__ = ["Body", "Bucket", "Listing", "Object"]

DEADLINE_SECONDS: Final = 20.0
"""How long a request is tried again: less than the 60 s after which a client takes the server for stalled."""

_CONNECT_SECONDS: Final = 5.0
_READ_SECONDS: Final = 15.0
_CONNECTIONS: Final = 128
# Bytes in a second: a request may take longer than the deadline by the time that this takes for its content.
_LEAST_RATE: Final = 1024 * 1024
_FIRST_DELAY: Final = 0.05
_MOST_DELAY: Final = 2.0
_DEFAULT_REGION: Final = "us-east-1"
# The CRC-32 of as much takes some 300 µs.
_INLINE_CRC_BYTES: Final = 512 * 1024

T = TypeVar("T")

Response = Mapping[str, Any]


class Body(Protocol):
    """An object's content on its way."""

    async def read(self, amt: int | None = None) -> bytes:
        """Some of the next bytes, at most `amt`; none at the end."""
        ...

    def close(self) -> None:
        """Closes the connection, if there is more to come."""
        ...


@dataclass(frozen=True, slots=True)
class Object:
    """What is known of an object.

    Attributes:
        key: Its key.
        size: Its length in bytes.
        etag: Its ETag, without quotes.
        modified: When it was written, in seconds since the epoch, by the store's clock.
        metadata: The user's; empty in a listing.
    """

    key: str
    size: int
    etag: str
    modified: float
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of keys.

    Attributes:
        objects: In the store's own order.
        folders: With a delimiter, what several keys begin with, each ending in it.
        token: Where the listing goes on; None at its end.
        time: When it was made, in seconds since the epoch, by the store's clock; None if it didn't say.
    """

    objects: Sequence[Object]
    folders: Sequence[str]
    token: str | None
    time: float | None


class Bucket:
    """A client for one bucket, used between `open` and `close`.

    An object's content is sent with its CRC-32: SeaweedFS makes an empty object of what has arrived when a client is
    killed in the middle, but not if that has another checksum. A part's isn't, as its upload would have to have all of
    them at its end; a part counts when the answer to it has come.

    Each request is tried again until `deadline_seconds` are over. A request that was answered with an error, or not at
    all, may have been done all the same: then its repetition is refused, and the caller looks what is there.

    All methods may raise StorageUnavailable, StorageFull, Forbidden and InvalidName; `name` is that of the file that
    these are about.

    Args:
        name: The bucket's.
        endpoint: The service's URL; None for that of AWS, or of the environment.
    """

    def __init__(self, name: str, endpoint: str | None, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        self.name: Final = name
        self.endpoint: Final = endpoint
        self._deadline_seconds = deadline_seconds
        self._stack: AsyncExitStack | None = None
        self._client: object | None = None

    async def open(self) -> None:
        """Makes the client; sends nothing."""
        session = get_session()
        config = AioConfig(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=_CONNECTIONS,
            retries={"total_max_attempts": 1},  # it would take its own success for another's
            s3={"addressing_style": "path" if self.endpoint else "auto", "payload_signing_enabled": False},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        region = None if session.get_config_variable("region") else _DEFAULT_REGION
        client = session.create_client("s3", region, endpoint_url=self.endpoint, config=config)
        stack = AsyncExitStack()
        self._client = await stack.enter_async_context(client)
        self._stack = stack

    async def close(self) -> None:
        """Closes the connections. Closing twice is fine."""
        stack, self._stack, self._client = self._stack, None, None
        if stack is not None:
            await stack.aclose()

    async def head(self, key: str, name: str | None = None) -> Object:
        """What is known of an object; raises Missing."""
        return _object(key, await self._call("head_object", name, Key=key))

    async def get(
        self, key: str, *, offset: int = 0, if_match: str | None = None, name: str | None = None
    ) -> tuple[Object, Body]:
        """An object, and its content from `offset` on, which must not be beyond its end; raises Missing, Refused."""
        arguments = _given(IfMatch=_quoted(if_match), Range=f"bytes={offset}-" if offset else None)
        response = await self._call("get_object", name, Key=key, **arguments)
        return _object(key, response), cast(Body, response["Body"])

    async def content(self, key: str, *, if_match: str | None = None, name: str | None = None) -> tuple[Object, bytes]:
        """A small object as a whole; raises Missing, Refused."""

        async def load() -> tuple[Object, bytes]:
            response = await self._request("get_object", Key=key, **_given(IfMatch=_quoted(if_match)))
            body = cast(Body, response["Body"])
            try:
                blocks: list[bytes] = []
                while block := await body.read(1024 * 1024):
                    blocks.append(block)
                return _object(key, response), b"".join(blocks)
            finally:
                body.close()

        return await self.retried(load, name)

    async def put(
        self,
        key: str,
        content: bytes | io.BytesIO,
        metadata: Mapping[str, str] | None = None,
        *,
        if_match: str | None = None,
        only_new: bool = False,
        name: str | None = None,
    ) -> str:
        """Writes an object; returns its ETag.

        Raises Refused where `only_new` and there is one, or it isn't `if_match`.
        """
        conditions = _given(IfMatch=_quoted(if_match), IfNoneMatch="*" if only_new else None)
        arguments = {"Key": key, "Metadata": metadata or {}, **conditions}
        # Not bytes, which the client library would hand to the socket's buffer as a whole.
        body = io.BytesIO(content) if isinstance(content, bytes) else content
        with body.getbuffer() as view:
            checksum = _crc32(view) if len(view) <= _INLINE_CRC_BYTES else await run_blocking(None, _crc32, view)
        return await self._send("put_object", name, body, {**arguments, "ChecksumCRC32": checksum})

    async def delete(self, key: str, if_match: str | None = None, name: str | None = None) -> None:
        """Removes an object, if it is there; with `if_match`, raises Missing or Refused where it isn't that one."""
        await self._call("delete_object", name, Key=key, **_given(IfMatch=_quoted(if_match)))

    async def list(
        self, prefix: str, *, after: str = "", limit: int = 1000, delimiter: str = "", token: str | None = None
    ) -> Listing:
        """A page of the keys that begin with `prefix`, beyond `after`, or from where `token` says."""
        arguments = _given(
            StartAfter=after if after and token is None else None, Delimiter=delimiter or None, ContinuationToken=token
        )
        response = await self._call("list_objects_v2", None, Prefix=prefix, MaxKeys=limit, **arguments)
        return Listing(
            [_object(item["Key"], item) for item in response.get("Contents", ())],
            [item["Prefix"] for item in response.get("CommonPrefixes", ())],
            response.get("NextContinuationToken") if response.get("IsTruncated") else None,
            _date(response["ResponseMetadata"]["HTTPHeaders"].get("date")),
        )

    async def begin_parts(self, key: str, metadata: Mapping[str, str], name: str) -> str:
        """Begins a multipart upload; returns its id."""
        response = await self._call("create_multipart_upload", name, Key=key, Metadata=metadata)
        return str(response["UploadId"])

    async def put_part(self, key: str, parts_id: str, number: int, content: io.BytesIO, name: str) -> str:
        """Writes a part of a multipart upload; returns its ETag. Raises Missing."""
        arguments = {"Key": key, "UploadId": parts_id, "PartNumber": number}
        return await self._send("upload_part", name, content, arguments)

    async def copy_part(
        self, key: str, parts_id: str, number: int, source: Object, start: int, end: int, name: str
    ) -> str:
        """Writes a part that is a range of another object; returns its ETag. Raises Missing, Refused."""
        response = await self._call(
            "upload_part_copy",
            name,
            Key=key,
            UploadId=parts_id,
            PartNumber=number,
            CopySource={"Bucket": self.name, "Key": source.key},
            CopySourceIfMatch=_quoted(source.etag),
            CopySourceRange=f"bytes={start}-{end - 1}",
        )
        return _etag(response["CopyPartResult"])

    async def parts(self, key: str, parts_id: str, name: str) -> Mapping[int, tuple[str, int]]:
        """The ETag and size of each part by its number; raises Missing."""
        found: dict[int, tuple[str, int]] = {}
        marker: int | None = 0
        while marker is not None:
            response = await self._call("list_parts", name, Key=key, UploadId=parts_id, PartNumberMarker=marker)
            found |= {part["PartNumber"]: (_etag(part), part["Size"]) for part in response.get("Parts", ())}
            marker = int(response["NextPartNumberMarker"]) if response.get("IsTruncated") else None
        return found

    async def complete_parts(
        self, key: str, parts_id: str, parts: Sequence[tuple[int, str]], *, only_new: bool, name: str
    ) -> str:
        """Makes the parts the object; returns its ETag. Raises Refused where `only_new` and there is one, Missing."""
        wanted = [{"PartNumber": number, "ETag": _quoted(etag)} for number, etag in parts]
        conditions = _given(IfNoneMatch="*" if only_new else None)
        response = await self._call(
            "complete_multipart_upload",
            name,
            Key=key,
            UploadId=parts_id,
            MultipartUpload={"Parts": wanted},
            **conditions,
        )
        return _etag(response)

    async def abort_parts(self, key: str, parts_id: str) -> None:
        """Removes a multipart upload, if it is there."""
        with suppress(Missing):
            await self._call("abort_multipart_upload", None, Key=key, UploadId=parts_id)

    async def retried(self, request: Callable[[], Awaitable[T]], name: str | None = None, nbytes: int = 0) -> T:
        """What `request`, which sends so many bytes, returns once it succeeds; raises as the methods above."""
        loop = asyncio.get_running_loop()
        deadline, delay = loop.time() + self._deadline_seconds + nbytes / _LEAST_RATE, _FIRST_DELAY
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    return await request()
            except FAILURES as error:
                failure = typed(error, name)
                if not isinstance(failure, Retryable):
                    if isinstance(failure, Unmet | TransferError):
                        raise failure from None
                    raise
                if loop.time() + delay >= deadline:
                    raise gave_up(failure, name) from None
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(2 * delay, _MOST_DELAY)

    async def _call(self, operation: str, name: str | None, **arguments: object) -> Response:
        return await self.retried(lambda: self._request(operation, **arguments), name)

    async def _send(
        self, operation: str, name: str | None, content: io.BytesIO, arguments: Mapping[str, object]
    ) -> str:
        def send() -> Awaitable[Response]:
            content.seek(0)
            return self._request(operation, Body=content, **arguments)

        return _etag(await self.retried(send, name, content.getbuffer().nbytes))

    def _request(self, operation: str, **arguments: object) -> Awaitable[Response]:
        client = self._client
        if client is None:
            raise RuntimeError("the store isn't started, or was closed")
        return getattr(client, operation)(Bucket=self.name, **arguments)


def _given(**arguments: object) -> dict[str, object]:
    return {name: value for name, value in arguments.items() if value is not None}


def _quoted(etag: str | None) -> str | None:
    return None if etag is None else f'"{etag}"'


def _etag(response: Response) -> str:
    return str(response["ETag"]).strip('"')


def _crc32(content: memoryview) -> str:
    return base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()


def _object(key: str, response: Response) -> Object:
    """From the answer to a HEAD or GET, also of a range, or from a listing's item."""
    size = response["Size"] if "Size" in response else response["ContentLength"]
    if "ContentRange" in response:
        size = int(str(response["ContentRange"]).rpartition("/")[2])
    modified = cast(datetime, response["LastModified"])
    return Object(key, int(size), _etag(response), modified.timestamp(), response.get("Metadata", {}))


def _date(text: str | None) -> float | None:
    try:
        return None if text is None else parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
