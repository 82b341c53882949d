"""What both ends agree on: routes, mimetypes, the rules for file names, and limits."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ..errors import InvalidName, InvalidRequest
from .metadata import MetadataItem, build_metadata, build_routing

__all__ = [
    "DEFAULT_PORT",
    "FRAGMENT_SIZE_BYTES",
    "MAX_METADATA_BYTES",
    "MAX_NAME_BYTES",
    "FileInfo",
    "Route",
    "chat_filename_mimetype",
    "check_modified",
    "check_name",
    "decode_name",
    "encode_name",
    "name_metadata",
    "parse_name",
    "request_metadata",
]

chat_filename_mimetype: Final = b"chat/file-name"
"""The mimetype of the metadata item with a file's name, as in the rsocket-py tutorial."""

DEFAULT_PORT: Final = 6565
"""The tutorial's TCP port."""

FRAGMENT_SIZE_BYTES: Final = 1_000_000
"""The largest frame either side sends, in bytes, as in the tutorial. Lengths over 2**24 - 1 wrap in rsocket 0.4.20."""

MAX_METADATA_BYTES: Final = 16 * 1024
"""The most metadata of a payload, in bytes: four times what ours needs for a name of 1,024 bytes escaped as JSON."""

MAX_NAME_BYTES: Final = 1024
"""The longest file name, in bytes of UTF-8."""


_FIRST_SECOND: Final = -62_135_596_800
_END_SECOND: Final = 253_402_300_800


class Route:
    """The routes' names; one may serve several interaction models."""

    UPLOAD: Final = "file.upload"
    DOWNLOAD: Final = "file.download"
    FILES: Final = "files"
    WATCH: Final = "files.watch"
    STATS: Final = "server.stats"
    UPLOAD_STATUS: Final = "file.upload.status"
    UPLOAD_DISCARD: Final = "file.upload.discard"
    STAT: Final = "file.stat"
    DELETE: Final = "file.delete"
    MOVE: Final = "file.move"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is known of a stored file; None for what the used route doesn't report.

    Attributes:
        name: Its name.
        size: Its content's length in bytes.
        etag: Changes whenever the content does; opaque.
        modified: When its content was last changed, as the uploader says, else when it was published; in seconds since
            the epoch.
        digest: The whole content's, as `algorithm:hex`.
    """

    name: str
    size: int
    etag: str | None = None
    modified: float | None = None
    digest: str | None = None


def check_modified(seconds: float) -> None:
    """Raises InvalidRequest unless a file can have this time: one of the years 1 to 9999."""
    if not _FIRST_SECOND <= seconds < _END_SECOND:  # nor is NaN between them
        raise InvalidRequest("'modified' must be a number of seconds since the epoch, in the years 1 to 9999")


def check_name(name: str) -> str:
    """Returns `name`.

    Raises:
        InvalidName: It is empty, over 1,024 bytes of UTF-8, not encodable, or has NUL or control characters.
    """
    encode_name(name)
    return name


def encode_name(name: str) -> bytes:
    """The UTF-8 of `name`, checked as in `check_name`."""
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidName("a file name must be encodable as UTF-8; this one has lone surrogates") from None
    if not encoded:
        raise InvalidName("a file name must not be empty")
    if len(encoded) > MAX_NAME_BYTES:
        raise InvalidName(f"a file name has at most {MAX_NAME_BYTES} bytes of UTF-8; this one has {len(encoded)}")
    for char in name if not name.isprintable() else "":  # a printable name has no control characters
        if unicodedata.category(char) == "Cc":
            raise InvalidName(f"a file name must not contain control characters; this one has U+{ord(char):04X}")
    return encoded


def decode_name(encoded: bytes | bytearray | memoryview) -> str:
    """The name with this UTF-8; raises InvalidName if it isn't UTF-8, and as `check_name` does."""
    try:
        name = bytes(encoded).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidName("a file name must be UTF-8") from None
    return check_name(name)


def parse_name(items: Sequence[MetadataItem]) -> str:
    """A request's file name; raises InvalidRequest unless there is exactly one, and InvalidName if it is no name."""
    names = [item.content for item in items if item.mimetype == chat_filename_mimetype]
    if len(names) != 1:
        raise InvalidRequest(
            f"this request needs exactly one {chat_filename_mimetype.decode()} metadata item, not {len(names)}"
        )
    return decode_name(names[0])


def name_metadata(name: str) -> bytes:
    """The composite metadata of a file's name: all of an answer's, and a part of a request's."""
    return build_metadata([MetadataItem(chat_filename_mimetype, encode_name(name))])


def request_metadata(route: str, name: str | None = None) -> bytes:
    """The composite metadata of a request: its route and, if it is about one file, the checked name."""
    return _route_metadata(route) + (b"" if name is None else name_metadata(name))


@lru_cache(maxsize=16)  # there are ten
def _route_metadata(route: str) -> bytes:
    return build_metadata([build_routing(route)])
