"""How a file's name is written on a disk: pure functions, which look at no disk.

A name has up to two places. Most are a path below the served folder as they are (`path_of`). Every name, those too, has
an encoded form (`encode`), for a folder that only the store writes to:

- It is injective, and stays so on a file system that ignores case or Unicode normalisation: it has only lower-case
  ASCII letters, digits and `-_.%=~`. Capitals, and all that isn't ASCII, are `%xx` escapes of their UTF-8 bytes.
- It is safe everywhere: it starts with `=` or `~`, so it is no Windows device, not hidden, not `.` or `..`; it doesn't
  end with a dot or a space.
- It is reversible (`decode`), or, where it would be longer than 128 characters, the name's SHA-256. The full name of
  such a file is in its record: see `server.stores.directory.folder`.
"""

import hashlib
import os
import re
import sys
from typing import Final

from shared.errors import InvalidName
from shared.protocol.wire import check_name

__all__ = ["decode", "encode", "fingerprint", "fingerprint_in", "is_entry", "is_reversible", "path_of"]

# File systems allow 255, but Windows by default only 260 for a whole path.
_MAX_ENCODED: Final = 128
_MAX_ENTRY_BYTES: Final = 255

_UNESCAPED: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")
_ESCAPE: Final = re.compile(rb"%([0-9a-f]{2})")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")

# What Windows refuses or takes for a device, a stream or a short 8.3 name, and `/` with it.
_UNSAFE: Final = re.compile(r'[<>:"/\\|?*]|~[0-9]')
_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$", "clock$"]
    + [f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"]
)


def path_of(name: str) -> list[str] | None:
    """The path of a name below the served folder, if this system can have one; None if it can't.

    Two names may still have the same path on a file system that ignores case or normalisation.
    """
    path = name.split("/")
    return path if all(map(is_entry, path)) else None


def is_entry(name: str, *, is_windows: bool = os.name == "nt") -> bool:
    """Whether a folder of this system can have an entry of that name, as far as the name tells."""
    if name in ("", ".", "..") or (not name.isascii() and sys.getfilesystemencoding() != "utf-8"):
        return False
    if is_windows and (
        not name.isprintable()
        or name.rstrip(". ") != name
        or _UNSAFE.search(name)
        or name.partition(".")[0].rstrip(" ").lower() in _DEVICES
    ):
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= _MAX_ENTRY_BYTES


def encode(name: str) -> str:
    """The entry for `name` in the store's own folder."""
    raw = name.encode("utf-8")
    escaped = "".join(chr(byte) if byte in _UNESCAPED else f"%{byte:02x}" for byte in raw)
    if escaped.endswith("."):
        escaped = f"{escaped[:-1]}%2e"
    return f"={escaped}" if len(escaped) < _MAX_ENCODED else f"~{fingerprint(name)}"


def is_reversible(name: str) -> bool:
    """Whether `encode` keeps the name."""
    return 3 * len(name.encode("utf-8")) < _MAX_ENCODED - 3 or fingerprint_in(encode(name)) is None


def decode(entry: str) -> str | None:
    """The name whose `encode` is `entry`; None if there is none, or if `entry` is only a fingerprint."""
    if not (entry.startswith("=") and entry.isascii()):
        return None
    try:
        name = check_name(_ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), entry[1:].encode()).decode())
    except (UnicodeDecodeError, InvalidName):
        return None
    return name if encode(name) == entry else None


def fingerprint(text: str) -> str:
    """The SHA-256 of `text`, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def fingerprint_in(entry: str) -> str | None:
    """The fingerprint in `entry`, if that is what `encode` made of a long name; else None."""
    return entry[1:] if entry.startswith("~") and _FINGERPRINT.fullmatch(entry, 1) else None
