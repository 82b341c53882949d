"""The `chat/file-transfer` metadata item: the messages of our own routes, as JSON.

Unknown keys are ignored, so that either side may be older; a known key of a wrong type is an `InvalidRequest`.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self, cast

from ..errors import InvalidRequest
from .digest import DEFAULT_ALGORITHM, algorithm_of, check_algorithm
from .metadata import MetadataItem, build_metadata, parse_metadata
from .wire import FileInfo, check_name, request_metadata

__all__ = [
    "CHUNK_BYTES",
    "FILE_CHUNK_BYTES",
    "MAX_CHUNK_BYTES",
    "ChunkHead",
    "DownloadRequest",
    "FileRequest",
    "Json",
    "ListRequest",
    "Receipt",
    "UploadEnd",
    "UploadRequest",
    "chat_transfer_mimetype",
    "check_upload_id",
    "find_transfer",
    "parse_info",
    "transfer_metadata",
    "transfer_request",
]

chat_transfer_mimetype: Final = b"chat/file-transfer"

CHUNK_BYTES: Final = 256 * 1024
"""The data of a stream's item by default. 64 KiB costs 30 to 40% of the speed, 1 MiB gains nothing."""

FILE_CHUNK_BYTES: Final = 2 * CHUNK_BYTES
"""The same between two files, where the file lane moves it: there system calls and reports cost, not copies."""

MAX_CHUNK_BYTES: Final = 960_000
"""The most data of an item: it fits one frame with its metadata, a name of 1,024 bytes included."""

_MIN_ITEM_BYTES: Final = 4096
_MAX_OFFSET: Final = 2**63 - 1
_ITEM: Final = f"the {chat_transfer_mimetype.decode()} item"
_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")

# `json.dumps` would make an encoder for each message.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

Json = Mapping[str, object]


class _Message:
    """A message whose fields are the keys of a JSON object."""

    __slots__ = ()

    def to_json(self) -> Json:
        return _json_of(self)


@dataclass(frozen=True, slots=True)
class DownloadRequest(_Message):
    """Requests a range of a file.

    Attributes:
        offset: Where it starts, in bytes.
        length: How many bytes; None for all to the end. A range beyond the end is cut there.
        if_match: The etag that the file must have; None for any.
        digest: The algorithm to verify with; None for no verification.
        digest_from: Where the digest starts, at or before `offset`, for a client that has the bytes between; None for
            `offset` itself.
        item_bytes: The data of each item but the last; 4,096 to 960,000.
    """

    offset: int = 0
    length: int | None = None
    if_match: str | None = None
    digest: str | None = DEFAULT_ALGORITHM
    digest_from: int | None = None
    item_bytes: int = CHUNK_BYTES

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        item_bytes = _number(fields, "item_bytes", CHUNK_BYTES)
        if not _MIN_ITEM_BYTES <= item_bytes <= MAX_CHUNK_BYTES:
            raise InvalidRequest(f"'item_bytes' must be {_MIN_ITEM_BYTES} to {MAX_CHUNK_BYTES}, not {item_bytes}")
        return cls(
            offset=_number(fields, "offset", 0),
            length=_optional_number(fields, "length"),
            if_match=_optional_text(fields, "if_match"),
            digest=_algorithm(fields),
            digest_from=_optional_number(fields, "digest_from"),
            item_bytes=item_bytes,
        )


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """Accompanies the first and the last item of a download.

    Attributes:
        info: The file's; its digest is None as long as the server doesn't know it.
        offset: Where the range of this download starts.
        length: The range's length.
        range_digest: Of the bytes from `digest_from` to the range's end; in the last item, if a digest was requested.
    """

    info: FileInfo
    offset: int
    length: int
    range_digest: str | None = None

    def to_json(self) -> Json:
        digest = {} if self.range_digest is None else {"range_digest": self.range_digest}
        return {**_json_of(self.info), "offset": self.offset, "length": self.length, **digest}

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        return cls(
            info=_info(fields),
            offset=_number(fields, "offset"),
            length=_number(fields, "length"),
            range_digest=_optional_text(fields, "range_digest"),
        )


@dataclass(frozen=True, slots=True)
class UploadRequest(_Message):
    """Begins an upload, or resumes it from the server's durable offset.

    Attributes:
        upload_id: Its identity; 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with a dot.
        size: The whole content's length in bytes; None if the sender doesn't know it yet.
        digest: The algorithm to verify with; None for no verification.
        overwrite: Whether an existing file of that name may be replaced.
        sent_all: Whether an earlier attempt has sent everything, and lost its connection before the final receipt. If
            that attempt was published, the server answers so; otherwise a finished upload's id begins a new upload.
        client: Says whose `attempt` it is: a random id of the sending process, of the same characters as `upload_id`.
        attempt: Grows with each attempt of that client. One with a lower number than the server has seen of this upload
            and client is a late arrival of a lost connection, and ends with Superseded. Without `client` and `attempt`
            the last one to arrive counts as the newest.
    """

    upload_id: str
    size: int | None = None
    digest: str | None = DEFAULT_ALGORITHM
    overwrite: bool = True
    sent_all: bool = False
    client: str | None = None
    attempt: int | None = None

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        client = _optional_text(fields, "client")
        if client is not None and not _ID.fullmatch(client):
            raise _wrong("client", "1 to 128 characters of A-Z a-z 0-9 . _ -")
        return cls(
            upload_id=check_upload_id(_text(fields, "upload_id")),
            size=_optional_number(fields, "size"),
            digest=_algorithm(fields),
            overwrite=_flag(fields, "overwrite", True),
            sent_all=_flag(fields, "sent_all", False),
            client=client,
            attempt=_optional_number(fields, "attempt"),
        )


@dataclass(frozen=True, slots=True)
class UploadEnd(_Message):
    """Accompanies an upload's last item.

    Attributes:
        size: The whole content's length in bytes.
        digest: The whole content's, as `algorithm:hex`; None if the request had none.
    """

    size: int
    digest: str | None

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        digest = _optional_text(fields, "digest")
        if digest is not None:
            algorithm_of(digest)
        return cls(size=_number(fields, "size"), digest=digest)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The server's answer to an upload, repeated as it proceeds.

    Attributes:
        committed: Durable bytes so far, which is the offset of the next byte to send.
        info: The file's, when it is verified and published; only in the last receipt.
        window: In the first receipt: how many bytes the server must be able to receive before it can make any of them
            durable; None if it makes each item durable.
    """

    committed: int
    info: FileInfo | None = None
    window: int | None = None

    def to_json(self) -> Json:
        window = {} if self.window is None else {"window": self.window}
        return {"committed": self.committed, **window, **({} if self.info is None else _json_of(self.info))}

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        return cls(
            committed=_number(fields, "committed"),
            info=_info(fields) if "name" in fields else None,
            window=_optional_number(fields, "window"),
        )


@dataclass(frozen=True, slots=True)
class ListRequest(_Message):
    """Requests a listing of the names that start with `prefix`; with `details`, each item's metadata has a FileInfo."""

    details: bool = False
    prefix: str = ""

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        return cls(details=_flag(fields, "details", False), prefix=_optional_text(fields, "prefix") or "")


@dataclass(frozen=True, slots=True)
class FileRequest(_Message):
    """The request of `file.stat`, `file.delete` and `file.upload.status`.

    Attributes:
        if_match: The etag that the file must have; None for any.
        upload_id: For `file.upload.status`.
    """

    if_match: str | None = None
    upload_id: str | None = None

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        return cls(if_match=_optional_text(fields, "if_match"), upload_id=_optional_text(fields, "upload_id"))


Message = DownloadRequest | ChunkHead | UploadRequest | UploadEnd | Receipt | ListRequest | FileRequest


def transfer_metadata(message: Message | FileInfo) -> bytes:
    """The composite metadata of an item that has `message`."""
    fields = _json_of(message) if isinstance(message, FileInfo) else message.to_json()
    return build_metadata([MetadataItem(chat_transfer_mimetype, _encode(fields).encode())])


def transfer_request(route: str, name: str | None, message: Message) -> bytes:
    """The composite metadata of a request; raises InvalidName as `check_name` does."""
    return request_metadata(route, name) + transfer_metadata(message)


def find_transfer(metadata: bytes | Sequence[MetadataItem]) -> Json | None:
    """The JSON object of the `chat/file-transfer` item, or None; raises InvalidRequest if the metadata is malformed."""
    items = parse_metadata(metadata) if isinstance(metadata, bytes) else metadata
    found = [item.content for item in items if item.mimetype == chat_transfer_mimetype]
    if not found:
        return None
    if len(found) > 1:
        raise InvalidRequest(f"there is more than one {chat_transfer_mimetype.decode()} metadata item")
    try:
        fields: object = json.loads(found[0])
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{_ITEM} is not JSON") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{_ITEM} is not a JSON object")
    return cast(Json, fields)


def parse_info(metadata: bytes) -> FileInfo:
    """The FileInfo in an answer's metadata; raises InvalidRequest if there is none."""
    fields = find_transfer(metadata)
    if fields is None:
        raise InvalidRequest(f"the answer has no {chat_transfer_mimetype.decode()} item")
    return _info(fields)


def check_upload_id(upload_id: str) -> str:
    """Returns `upload_id`; raises InvalidRequest if it is malformed."""
    if not _ID.fullmatch(upload_id):
        raise InvalidRequest("an upload_id has 1 to 128 characters of A-Z a-z 0-9 . _ - and doesn't start with a dot")
    return upload_id


def _json_of(fields: _Message | FileInfo) -> Json:
    # Not `asdict`, which takes 10 µs of a small request's 100.
    return {name: getattr(fields, name) for name in fields.__slots__}


def _info(fields: Json) -> FileInfo:
    modified = fields.get("modified")
    if modified is not None and (isinstance(modified, bool) or not isinstance(modified, int | float)):
        raise _wrong("modified", "a number of seconds")
    if modified is not None and not abs(modified) <= sys.float_info.max:  # JSON has larger integers; Python's also NaN
        raise _wrong("modified", "a number of seconds")
    return FileInfo(
        name=check_name(_text(fields, "name")),
        size=_number(fields, "size"),
        etag=_optional_text(fields, "etag"),
        modified=modified,
        digest=_optional_text(fields, "digest"),
    )


def _algorithm(fields: Json) -> str | None:
    if "digest" not in fields:
        return DEFAULT_ALGORITHM
    algorithm = _optional_text(fields, "digest")
    return None if algorithm is None else check_algorithm(algorithm)


def _number(fields: Json, key: str, default: int | None = None) -> int:
    value = fields.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_OFFSET:
        raise _wrong(key, "a number of bytes")
    return value


def _optional_number(fields: Json, key: str) -> int | None:
    return None if fields.get(key) is None else _number(fields, key)


def _text(fields: Json, key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise _wrong(key, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can have half of a surrogate pair, which no file, log or message can
        raise _wrong(key, "Unicode") from None
    return value


def _optional_text(fields: Json, key: str) -> str | None:
    return None if fields.get(key) is None else _text(fields, key)


def _flag(fields: Json, key: str, default: bool) -> bool:
    value = fields.get(key, default)
    if not isinstance(value, bool):
        raise _wrong(key, "true or false")
    return value


def _wrong(key: str, kind: str) -> InvalidRequest:
    return InvalidRequest(f"{key!r} in {_ITEM} must be {kind}")
