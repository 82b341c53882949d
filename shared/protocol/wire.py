"""The vocabulary of the wire: routes, mimetypes, the file name's rules, and what both ends agree on beside them."""

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
    "check_name",
    "decode_name",
    "encode_name",
    "name_metadata",
    "parse_name",
    "request_metadata",
]

chat_filename_mimetype: Final = b"chat/file-name"
"""The mimetype of the metadata item that carries a file's name, as in the rsocket-py tutorial."""

DEFAULT_PORT: Final = 6565
"""The tutorial's TCP port."""

FRAGMENT_SIZE_BYTES: Final = 1_000_000
"""The largest frame either side sends, in bytes, as in the tutorial. Frames above 2**24 - 1 wrap in rsocket 0.4.20."""

MAX_METADATA_BYTES: Final = 16 * 1024
"""The most metadata of a payload; ours, a name of 1,024 bytes escaped as JSON included, has a quarter of it."""

MAX_NAME_BYTES: Final = 1024
"""The longest file name, in bytes of UTF-8."""


class Route:
    """The routes; a name may serve several interaction models."""

    UPLOAD: Final = "file.upload"
    DOWNLOAD: Final = "file.download"
    FILES: Final = "files"
    UPLOAD_STATUS: Final = "file.upload.status"
    STAT: Final = "file.stat"
    DELETE: Final = "file.delete"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What is known of a stored file. None means that the route which was used doesn't tell.

    Attributes:
        name: Its name.
        size: Its content's length in bytes.
        etag: Changes whenever the content does; compared, never interpreted.
        modified: When it was published, in seconds since the epoch.
        digest: The whole content's, as `algorithm:hex`.
    """

    name: str
    size: int
    etag: str | None = None
    modified: float | None = None
    digest: str | None = None


def check_name(name: str) -> str:
    """`name`, if a file may be called so.

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
    for char in name if not name.isprintable() else "":  # what is printable has no control characters
        if unicodedata.category(char) == "Cc":
            raise InvalidName(f"a file name must not contain control characters; this one has U+{ord(char):04X}")
    return encoded


def decode_name(encoded: bytes | bytearray | memoryview) -> str:
    """The name that `encoded` stands for, checked as in `check_name`.

    Raises:
        InvalidName: It isn't UTF-8, or isn't a name.
    """
    try:
        name = bytes(encoded).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidName("a file name must be UTF-8") from None
    return check_name(name)


def parse_name(items: Sequence[MetadataItem]) -> str:
    """The file name among a request's items.

    Raises:
        InvalidRequest: There is none, or more than one.
        InvalidName: It isn't a name.
    """
    names = [item.content for item in items if item.mimetype == chat_filename_mimetype]
    if len(names) != 1:
        raise InvalidRequest(
            f"this request needs exactly one {chat_filename_mimetype.decode()} metadata item, not {len(names)}"
        )
    return decode_name(names[0])


def name_metadata(name: str) -> bytes:
    """The composite metadata that names a file: all of an answer's, and a part of a request's."""
    return build_metadata([MetadataItem(chat_filename_mimetype, encode_name(name))])


def request_metadata(route: str, name: str | None = None) -> bytes:
    """The composite metadata of a request: its route and, where it is about one file, that file's name.

    Raises:
        InvalidName: `name` isn't one.
    """
    return _route_metadata(route) + (b"" if name is None else name_metadata(name))


@lru_cache(maxsize=16)  # there are six
def _route_metadata(route: str) -> bytes:
    return build_metadata([build_routing(route)])
