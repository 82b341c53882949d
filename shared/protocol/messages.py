"""The `chat/file-transfer` metadata item: the messages of our own routes, as JSON.

Unknown keys are ignored, so that either side may be older; a known key of a wrong type is an `InvalidRequest`.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache
from typing import Annotated, Any, Final, NamedTuple, Self, cast, get_args, get_type_hints

from ..errors import InvalidRequest
from .digest import DEFAULT_ALGORITHM, DigestLink, algorithm_of, check_algorithm
from .metadata import MetadataItem, build_metadata, parse_metadata
from .wire import FileInfo, check_modified, check_name, request_metadata

__all__ = [
    "CHUNK_BYTES",
    "FILE_CHUNK_BYTES",
    "MAX_CHUNK_BYTES",
    "MIN_ITEM_BYTES",
    "ChunkHead",
    "DownloadRequest",
    "FileRequest",
    "Json",
    "JsonMessage",
    "ListRequest",
    "MoveRequest",
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

MIN_ITEM_BYTES: Final = 4096
"""The least data of an item that a download may ask for."""

_MAX_OFFSET: Final = 2**63 - 1
_ITEM: Final = f"the {chat_transfer_mimetype.decode()} item"
_ID: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")

# `json.dumps` would make an encoder for each message.
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode

Json = Mapping[str, object]


def check_upload_id(upload_id: str) -> str:
    """Returns `upload_id`; raises InvalidRequest if it is malformed."""
    if not _ID.fullmatch(upload_id):
        raise InvalidRequest(
            "an upload_id or client has 1 to 128 characters of A-Z a-z 0-9 . _ - and doesn't start with a dot"
        )
    return upload_id


def _check_item_bytes(item_bytes: int) -> None:
    if not MIN_ITEM_BYTES <= item_bytes <= MAX_CHUNK_BYTES:
        raise _wrong("item_bytes", f"{MIN_ITEM_BYTES} to {MAX_CHUNK_BYTES}, not {item_bytes}")


@dataclass(frozen=True, slots=True)
class _Message:
    """A message whose fields are the keys of a JSON object, each read as its type says, and checked by its annotation.

    The fields of a FileInfo are keys of the same object.
    """

    def to_json(self) -> Json:
        """Leaves out what is None and may be left out."""
        said: dict[str, object] = {}
        for field in _fields_of(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, FileInfo):
                said |= _json_of(value)
            elif value is not None or field.default is not None:
                said[field.name] = value
        return said

    @classmethod
    def from_json(cls, fields: Json) -> Self:
        """Takes a missing key, and null where the type has no None, for the default.

        Raises:
            InvalidRequest: A key without a default is missing, or a value isn't of its type or out of its range.
        """
        said: dict[str, object] = {}
        for field in _fields_of(cls):
            value = fields.get(field.key)
            if value is None and field.default is not MISSING and not (field.may_be_none and field.key in fields):
                continue
            if value is not None or not field.may_be_none:
                value = field.read(fields, field.key)
                for check in field.checks:
                    check(value)
            said[field.name] = value
        return cls(**said)


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
    digest: Annotated[str | None, check_algorithm] = DEFAULT_ALGORITHM
    digest_from: int | None = None
    item_bytes: Annotated[int, _check_item_bytes] = CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class ChunkHead(_Message):
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
        modified: When the content was last changed, in seconds since the epoch; None for when it is published.
        compares: Whether the sender does what `Receipt.digests` asks for; else the upload starts over in that case.
    """

    upload_id: Annotated[str, check_upload_id]
    size: int | None = None
    digest: Annotated[str | None, check_algorithm] = DEFAULT_ALGORITHM
    overwrite: bool = True
    sent_all: bool = False
    client: Annotated[str | None, check_upload_id] = None
    attempt: int | None = None
    modified: Annotated[float | None, check_modified] = None
    compares: bool = False


@dataclass(frozen=True, slots=True)
class UploadEnd(_Message):
    """Accompanies an upload's last item.

    Attributes:
        size: The whole content's length in bytes.
        digest: The whole content's, as `algorithm:hex`; None if the request had none.
        rest_digest: That of the bytes behind the last of `Receipt.digests`; None if there were none.
    """

    size: int
    digest: Annotated[str | None, algorithm_of]
    rest_digest: Annotated[str | None, algorithm_of] = None


@dataclass(frozen=True, slots=True)
class Receipt(_Message):
    """The server's answer to an upload, repeated as it proceeds.

    Attributes:
        committed: Durable bytes so far, which is the offset of the next byte to send.
        info: The file's, when it is verified and published; only in the last receipt.
        window: In the first receipt: how many bytes the server must be able to receive before it can make any of them
            durable; None if it makes each item durable.
        digests: In the first receipt, where the server can't go on with the digest of what another one has received:
            those of ranges from the content's start on, for the sender to compare with what it has.
    """

    committed: int
    info: FileInfo | None = None
    window: int | None = None
    digests: tuple[DigestLink, ...] | None = None


@dataclass(frozen=True, slots=True)
class ListRequest(_Message):
    """Requests the names that start with `prefix`; with `details`, each has a FileInfo. Also of `files.watch`."""

    details: bool = False
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class FileRequest(_Message):
    """The request of `file.stat`, `file.delete`, `file.upload.status` and `file.upload.discard`.

    Attributes:
        if_match: The etag that the file must have; None for any.
        upload_id: For the last two.
    """

    if_match: str | None = None
    upload_id: str | None = None


@dataclass(frozen=True, slots=True)
class MoveRequest(_Message):
    """The request of `file.move`.

    Attributes:
        target: What the file will be called.
        overwrite: Whether an existing file of that name may be replaced.
        if_match: The etag that the file must have; None for any. With an etag, the request may be repeated: where the
            source is missing, and the target has that etag, the move counts as done.
    """

    target: Annotated[str, check_name]
    overwrite: bool = True
    if_match: str | None = None


JsonMessage = _Message
Message = DownloadRequest | ChunkHead | UploadRequest | UploadEnd | Receipt | ListRequest | FileRequest | MoveRequest


def transfer_metadata(message: JsonMessage | FileInfo) -> bytes:
    """The composite metadata of an item that has `message`."""
    fields = _json_of(message) if isinstance(message, FileInfo) else message.to_json()
    return build_metadata([MetadataItem(chat_transfer_mimetype, _encode(fields).encode())])


def transfer_request(route: str, name: str | None, message: JsonMessage) -> bytes:
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


def _json_of(info: FileInfo) -> Json:
    # Not `asdict`, which takes 10 µs of a small request's 100.
    return {name: getattr(info, name) for name in info.__slots__}


class _Field(NamedTuple):
    """How a message's field is read. `key` is the one that it can't be there without: of a FileInfo, its name."""

    name: str
    key: str
    read: Callable[[Json, str], object]
    checks: Sequence[Callable[[Any], object]]
    may_be_none: bool
    default: object


@cache
def _fields_of(kind: type[_Message]) -> Sequence[_Field]:
    found: list[_Field] = []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain, checks = getattr(hint, "__origin__", hint), getattr(hint, "__metadata__", ())
        kinds = get_args(plain) or (plain,)
        key = "name" if FileInfo in kinds else name
        default = kind.__dataclass_fields__[name].default
        found.append(_Field(name, key, _READERS[kinds[0]], checks, type(None) in kinds, default))
    return found


def _info(fields: Json) -> FileInfo:
    return FileInfo(
        name=check_name(_text(fields, "name")),
        size=_number(fields, "size"),
        etag=_optional_text(fields, "etag"),
        modified=None if fields.get("modified") is None else _seconds(fields, "modified"),
        digest=_optional_text(fields, "digest"),
    )


def _number(fields: Json, key: str) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_OFFSET:
        raise _wrong(key, "a whole number, 0 to 2**63 - 1")
    return value


def _seconds(fields: Json, key: str) -> float:
    value = fields.get(key)
    # JSON has integers that are larger than any float, and Python's also NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise _wrong(key, "a number of seconds")
    return value


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


def _flag(fields: Json, key: str) -> bool:
    value = fields.get(key)
    if not isinstance(value, bool):
        raise _wrong(key, "true or false")
    return value


def _links(fields: Json, key: str) -> tuple[DigestLink, ...]:
    links: list[DigestLink] = []
    for link in cast(list[object], fields[key]) if isinstance(fields[key], list) else [None]:
        match link:
            case [int(end), str(digest)] if (links[-1].end if links else 0) < end <= _MAX_OFFSET:
                algorithm_of(digest)
                links.append(DigestLink(end, digest))
            case _:
                raise _wrong(key, "a list of offsets, each higher than the one before, and digests")
    return tuple(links)


def _wrong(key: str, kind: str) -> InvalidRequest:
    return InvalidRequest(f"{key!r} in {_ITEM} must be {kind}")


_READERS: Final[Mapping[object, Callable[[Json, str], object]]] = {
    int: _number,
    float: _seconds,
    str: _text,
    bool: _flag,
    FileInfo: lambda fields, _: _info(fields),
    tuple[DigestLink, ...]: _links,
}
