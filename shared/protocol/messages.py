"""The `chat/file-transfer` metadata item: what our own routes say beside the tutorial's, as JSON.

Unknown keys are ignored, so that either side may be older; a known key of the wrong type is an `InvalidRequest`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Self, cast

from ..errors import InvalidRequest
from .digest import DEFAULT_ALGORITHM, algorithm_of, check_algorithm
from .metadata import MetadataItem, build_metadata, parse_metadata
from .wire import FileInfo, check_name, request_metadata

__all__ = [
    "CHUNK_BYTES",
    "MAX_CHUNK_BYTES",
    "UNSEEN_CHUNK_BYTES",
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
"""What a stream's item carries by default. 64 KiB costs 30 to 40% of the speed, 1 MiB gains nothing."""

UNSEEN_CHUNK_BYTES: Final = 3 * CHUNK_BYTES
"""The same where nobody looks at the bytes, so that they stay in the system: there it's calls that cost, not copies."""

MAX_CHUNK_BYTES: Final = 960_000
"""The most that an item may carry: with its metadata (a name of 1,024 bytes included) it must fit one frame."""

_MIN_ITEM_BYTES: Final = 4096
_MAX_OFFSET: Final = 2**63 - 1
_UPLOAD_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")

# `json.dumps` would make one for each message.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """Asks for a range of a file.

    Attributes:
        offset: Where it starts, in bytes.
        length: How many bytes; None for all to the end. A range beyond the end is cut there.
        if_match: The etag that the file must have; None if any will do.
        digest: The algorithm to verify with; None to do without.
        digest_from: Where the digest starts, at or before `offset`, for somebody who has the bytes between; None for
            `offset` itself.
        item_bytes: What an item carries, the last one excepted; 4,096 to 960,000.
    """

    offset: int = 0
    length: int | None = None
    if_match: str | None = None
    digest: str | None = DEFAULT_ALGORITHM
    digest_from: int | None = None
    item_bytes: int = CHUNK_BYTES

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Json) -> Self:
        item_bytes = _number(said, "item_bytes", CHUNK_BYTES)
        if not _MIN_ITEM_BYTES <= item_bytes <= MAX_CHUNK_BYTES:
            raise InvalidRequest(f"'item_bytes' must be {_MIN_ITEM_BYTES} to {MAX_CHUNK_BYTES}, not {item_bytes}")
        return cls(
            offset=_number(said, "offset", 0),
            length=_optional_number(said, "length"),
            if_match=_optional_text(said, "if_match"),
            digest=_algorithm(said),
            digest_from=_optional_number(said, "digest_from"),
            item_bytes=item_bytes,
        )


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """Goes with the first and the last item of a download.

    Attributes:
        info: The file's; its digest is None as long as the server doesn't know it.
        offset: Where the range starts that is being sent.
        length: How long it is.
        range_digest: Of the bytes from `digest_from` to the range's end; in the last item, if a digest was asked for.
    """

    info: FileInfo
    offset: int
    length: int
    range_digest: str | None = None

    def to_json(self) -> Json:
        return {
            **asdict(self.info),
            "offset": self.offset,
            "length": self.length,
            **({} if self.range_digest is None else {"range_digest": self.range_digest}),
        }

    @classmethod
    def from_json(cls, said: Json) -> Self:
        return cls(
            info=_info(said),
            offset=_number(said, "offset"),
            length=_number(said, "length"),
            range_digest=_optional_text(said, "range_digest"),
        )


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """Begins an upload, or goes on with it where the server has it.

    Attributes:
        upload_id: Names it; 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with a dot.
        size: The whole content's length in bytes; None if the sender doesn't know it yet.
        digest: The algorithm to verify with; None to do without.
        overwrite: Whether a file of that name may be replaced.
        sent_all: Whether an earlier attempt had sent everything, and lost the connection before the final receipt. If
            that attempt was published, the server says so; otherwise a finished upload's id begins a new upload.
    """

    upload_id: str
    size: int | None = None
    digest: str | None = DEFAULT_ALGORITHM
    overwrite: bool = True
    sent_all: bool = False

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Json) -> Self:
        return cls(
            upload_id=check_upload_id(_text(said, "upload_id")),
            size=_optional_number(said, "size"),
            digest=_algorithm(said),
            overwrite=_flag(said, "overwrite", True),
            sent_all=_flag(said, "sent_all", False),
        )


@dataclass(frozen=True, slots=True)
class UploadEnd:
    """Goes with an upload's last item.

    Attributes:
        size: The whole content's length in bytes.
        digest: The whole content's, as `algorithm:hex`; None if the request said so.
    """

    size: int
    digest: str | None

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Json) -> Self:
        digest = _optional_text(said, "digest")
        if digest is not None:
            algorithm_of(digest)
        return cls(size=_number(said, "size"), digest=digest)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an upload's server answers, again and again.

    Attributes:
        committed: Durable bytes so far; the next byte to send is this one.
        info: The file's, once it is verified and published; then this is the last receipt.
    """

    committed: int
    info: FileInfo | None = None

    def to_json(self) -> Json:
        return {"committed": self.committed, **({} if self.info is None else _info_json(self.info))}

    @classmethod
    def from_json(cls, said: Json) -> Self:
        return cls(committed=_number(said, "committed"), info=_info(said) if "name" in said else None)


@dataclass(frozen=True, slots=True)
class ListRequest:
    """Asks for a listing with a FileInfo in each item's metadata, of the names that start with `prefix`."""

    details: bool = False
    prefix: str = ""

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, said: Json) -> Self:
        return cls(details=_flag(said, "details", False), prefix=_optional_text(said, "prefix") or "")


@dataclass(frozen=True, slots=True)
class FileRequest:
    """Asks about one file (`file.stat`), or for its removal (`file.delete`), or about an upload's progress.

    Attributes:
        if_match: The etag that the file must have; None if any will do.
        upload_id: For `file.upload.status`.
    """

    if_match: str | None = None
    upload_id: str | None = None

    def to_json(self) -> Json:
        return {"if_match": self.if_match, "upload_id": self.upload_id}

    @classmethod
    def from_json(cls, said: Json) -> Self:
        return cls(if_match=_optional_text(said, "if_match"), upload_id=_optional_text(said, "upload_id"))


Message = DownloadRequest | ChunkHead | UploadRequest | UploadEnd | Receipt | ListRequest | FileRequest


def transfer_metadata(message: Message | FileInfo) -> bytes:
    """The composite metadata of an item that carries `message`."""
    return build_metadata([_item(message)])


def transfer_request(route: str, name: str | None, message: Message) -> bytes:
    """The composite metadata of a request.

    Raises:
        InvalidName: `name` isn't one.
    """
    return request_metadata(route, name) + transfer_metadata(message)


def find_transfer(metadata: bytes | Sequence[MetadataItem]) -> Json | None:
    """What the `chat/file-transfer` item says; None if there is none.

    Raises:
        InvalidRequest: The metadata is malformed, there are two such items, or it isn't a JSON object.
    """
    items = parse_metadata(metadata) if isinstance(metadata, bytes) else metadata
    found = [item.content for item in items if item.mimetype == chat_transfer_mimetype]
    if not found:
        return None
    if len(found) > 1:
        raise InvalidRequest(f"there is more than one {chat_transfer_mimetype.decode()} metadata item")
    try:
        said: object = json.loads(found[0])
    except (ValueError, RecursionError):
        raise InvalidRequest(f"the {chat_transfer_mimetype.decode()} item is not JSON") from None
    if not isinstance(said, dict):
        raise InvalidRequest(f"the {chat_transfer_mimetype.decode()} item is not a JSON object")
    return cast(Json, said)


def check_upload_id(upload_id: str) -> str:
    """`upload_id`, if it can be one.

    Raises:
        InvalidRequest: It can't.
    """
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise InvalidRequest("an upload_id has 1 to 128 characters of A-Z a-z 0-9 . _ - and doesn't start with a dot")
    return upload_id


def _item(message: Message | FileInfo) -> MetadataItem:
    said = _info_json(message) if isinstance(message, FileInfo) else message.to_json()
    return MetadataItem(chat_transfer_mimetype, _encode(said).encode())


def _info_json(info: FileInfo) -> Json:
    # By hand, here and for `FileRequest`: `asdict` takes 10 µs of a small request's 100.
    return {
        "name": info.name,
        "size": info.size,
        "etag": info.etag,
        "modified": info.modified,
        "digest": info.digest,
    }


def _info(said: Json) -> FileInfo:
    modified = said.get("modified")
    if modified is not None and (
        isinstance(modified, bool) or not isinstance(modified, int | float) or not _is_finite(modified)
    ):
        raise _wrong("modified", "a number of seconds")
    return FileInfo(
        name=check_name(_text(said, "name")),
        size=_number(said, "size"),
        etag=_optional_text(said, "etag"),
        modified=modified,
        digest=_optional_text(said, "digest"),
    )


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # JSON has integers that no float can hold
        return False


def _algorithm(said: Json) -> str | None:
    if "digest" not in said:
        return DEFAULT_ALGORITHM
    algorithm = _optional_text(said, "digest")
    return None if algorithm is None else check_algorithm(algorithm)


def _number(said: Json, key: str, default: int | None = None) -> int:
    value = said.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_OFFSET:
        raise _wrong(key, "a number of bytes")
    return value


def _optional_number(said: Json, key: str) -> int | None:
    return None if said.get(key) is None else _number(said, key)


def _text(said: Json, key: str) -> str:
    value = said.get(key)
    if not isinstance(value, str):
        raise _wrong(key, "a string")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can name half of a surrogate pair, which no file, log or other message can take
        raise _wrong(key, "Unicode") from None
    return value


def _optional_text(said: Json, key: str) -> str | None:
    return None if said.get(key) is None else _text(said, key)


def _flag(said: Json, key: str, default: bool) -> bool:
    value = said.get(key, default)
    if not isinstance(value, bool):
        raise _wrong(key, "true or false")
    return value


def _wrong(key: str, kind: str) -> InvalidRequest:
    return InvalidRequest(f"{key!r} in the {chat_transfer_mimetype.decode()} item must be {kind}")


def parse_info(metadata: bytes) -> FileInfo:
    """The FileInfo that an answer's metadata carries.

    Raises:
        InvalidRequest: It carries none.
    """
    said = find_transfer(metadata)
    if said is None:
        raise InvalidRequest(f"the answer has no {chat_transfer_mimetype.decode()} item")
    return _info(said)
