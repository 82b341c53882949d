"""Which object a file is, and where the store keeps what is its own: below `.rxfiles/`, which isn't served."""

import hashlib
from typing import Final

from shared.errors import InvalidName
from shared.protocol.wire import MAX_NAME_BYTES, encode_name

__all__ = ["RESERVED", "Keys", "fingerprint"]

RESERVED: Final = ".rxfiles/"

_MAX_KEY_BYTES: Final = 1024


class Keys:
    """The keys of a store in a bucket.

    Args:
        prefix: What the keys of all its objects begin with; empty, or ending in a slash.

    Attributes:
        uploads: Where the unfinished uploads are: the state of each, and what doesn't fill a part of it.
        facts: Where it is kept what is known of files that were uploaded in parts.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix: Final = prefix
        self.reserved: Final = f"{prefix}{RESERVED}"
        self.uploads: Final = f"{self.reserved}uploads/"
        self.facts: Final = f"{self.reserved}facts/"

    def of(self, name: str) -> str:
        """The key of a file.

        Raises:
            InvalidName: No object can have it: it is reserved, it is too long with the prefix, or a segment of it is
                empty, `.` or `..`, which some services take for another name.
        """
        key = f"{self.prefix}{name}"
        if f"{name}/".startswith(RESERVED):
            raise InvalidName(f"names that begin with {RESERVED!r} are the server's own", name=name)
        if not _has_segments(name):
            raise InvalidName("in this server's object store no segment of a name is empty, '.' or '..'", name=name)
        if len(key.encode()) > _MAX_KEY_BYTES:
            most = MAX_NAME_BYTES - len(self.prefix.encode())
            raise InvalidName(f"in this server's object store a name has at most {most} bytes of UTF-8", name=name)
        return key

    def name(self, key: str) -> str | None:
        """The file that an object is; None if it isn't one that is served."""
        name = key.removeprefix(self.prefix)
        try:
            self.of(name)
            encode_name(name)
        except InvalidName:
            return None
        return name

    def state(self, upload_id: str) -> str:
        """The key of an upload's state."""
        return f"{self.uploads}{fingerprint(upload_id)}.json"

    def piece(self, upload_id: str, token: str) -> str:
        """The key of bytes that an upload has received and that don't fill a part."""
        return f"{self.uploads}{fingerprint(upload_id)}/{token}"

    def facts_of(self, name: str, etag: str) -> str:
        """The key of what is known of a file with that content."""
        return f"{self.facts}{fingerprint(name, etag)}.json"


def fingerprint(*texts: str) -> str:
    """A key's segment for any text."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _has_segments(name: str) -> bool:
    return not any(segment in {"", ".", ".."} for segment in name.split("/"))
