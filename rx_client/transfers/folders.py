"""Local folders as trees of files: what is below one, and safe places in one for names that come from a server."""

import os
import stat
import sys
import tempfile
import threading
import unicodedata
from collections.abc import AsyncGenerator, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from shared.aio import run_blocking
from shared.errors import InvalidName
from shared.protocol.wire import check_name

from ..events import EXISTS, Failed, Skipped

__all__ = ["LEFT_OUT", "LocalFile", "TargetFolder", "is_case_insensitive", "unsafe_reason", "walk"]

# Entries that one thread handoff reads.
_BATCH: Final = 256
# What Windows takes for a device, whatever the suffix.
_DEVICES: Final = frozenset(
    {
        "CON",
        "PRN",
        "AUX",
        "NUL",
        "CONIN$",
        "CONOUT$",
        *(f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³"),
    }
)
_Identities = tuple[tuple[int, int], ...]
_PART_SUFFIXES: Final = (".rxpart", ".rxpart.note")
_LINK: Final = "it is a symbolic link"
_LOOP: Final = "it is a symbolic link to a folder that it is in"
_SPECIAL: Final = "it is neither a file nor a folder"
_PART: Final = "it is what an unfinished download has left"

LEFT_OUT: Final = frozenset({EXISTS, _LINK, _LOOP, _SPECIAL, _PART})
"""The reasons of `Skipped` for files that aren't meant to be transferred. With others, a file would be missing."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A regular file.

    Attributes:
        name: The server's name for it.
        path: Where it is.
    """

    name: str
    path: Path


async def walk(
    folder: Path, prefix: str, *, follow_symlinks: bool
) -> AsyncGenerator[LocalFile | Failed | Skipped, None]:
    """Finds the files below a folder, and what can't be transferred there; reads on as it is iterated over.

    The names are those below the folder, with slashes, behind `prefix`. What is held in memory is the names of folders
    that haven't been read yet.

    Raises:
        OSError: The folder itself can't be read.
    """
    found = _walk(os.fspath(folder), prefix, follow_symlinks)
    try:
        while batch := await run_blocking(None, lambda: list(islice(found, _BATCH))):
            for each in batch:
                yield each
    finally:
        await run_blocking(None, found.close)


def _walk(folder: str, prefix: str, follow_symlinks: bool) -> Generator[LocalFile | Failed | Skipped, None, None]:
    waiting: list[tuple[str, str, _Identities]] = [(folder, prefix, (_identity(folder),))]
    while waiting:
        path, above, ancestors = waiting.pop()
        try:
            with closing(os.scandir(path)) as entries:
                for entry in entries:
                    found = _look_at(entry, above + entry.name, ancestors, follow_symlinks)
                    if isinstance(found, tuple):
                        waiting.append((entry.path, f"{above}{entry.name}/", found))
                    else:
                        yield found
        except OSError as error:
            if path == folder:
                raise
            yield Failed(above, error)


def _look_at(
    entry: os.DirEntry[str], name: str, ancestors: _Identities, follow_symlinks: bool
) -> LocalFile | Failed | Skipped | _Identities:
    """What an entry is; of a folder, the identities of what it is in, and its own."""
    try:
        check_name(name)
    except InvalidName as error:
        return Skipped(name.encode("utf-8", "backslashreplace").decode(), str(error))
    try:
        if not follow_symlinks and _is_link(entry):
            return Skipped(name, _LINK)
        if entry.is_dir():
            identity = _identity(entry.path) if follow_symlinks else (0, 0)
            if follow_symlinks and identity in ancestors:
                return Skipped(name, _LOOP)
            return (*ancestors, identity)
        if not entry.is_file():
            return Skipped(name, _SPECIAL)
    except OSError as error:
        return Failed(name, error)
    if _is_part(entry.name):
        return Skipped(name, _PART)
    return LocalFile(name, Path(entry.path))


def _is_link(entry: os.DirEntry[str]) -> bool:
    if sys.platform == "win32":
        tag = entry.stat(follow_symlinks=False).st_reparse_tag
        return tag in (stat.IO_REPARSE_TAG_SYMLINK, stat.IO_REPARSE_TAG_MOUNT_POINT)
    return entry.is_symlink()


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.lower().endswith(_PART_SUFFIXES)


class TargetFolder:
    """A folder for files whose names come from a server: nothing lands outside of it.

    Made if it isn't there. All methods block.

    Args:
        folder: Its path. It may be a link itself; links below it are followed as long as they stay in it.
        overwrite: Whether files that are there may be replaced.

    Raises:
        OSError: It can't be made, or it isn't a folder, or nothing can be put there.
    """

    def __init__(self, folder: Path, *, overwrite: bool) -> None:
        os.makedirs(folder, exist_ok=True)
        self._root = os.path.realpath(folder)
        self._overwrite = overwrite
        # Several threads ask for places at once; a file that is on its way counts as if it were there.
        self._lock = threading.Lock()
        self._coming: set[str] = set()
        # Only where they would be the same file: a few bytes for each name.
        self._taken: set[int] | None = set() if is_case_insensitive(self._root) else None

    def place(self, name: str) -> Path | str:
        """Makes the folders that `name` is in; returns its path, or why it can't have one, in words.

        The path is taken until `free` is called.

        Raises:
            OSError: The disk failed.
        """
        with self._lock:
            place = self._place(name)
            if isinstance(place, Path):
                self._coming.add(os.fspath(place))
        return place

    def free(self, path: Path) -> None:
        """The file is there, or isn't going to be."""
        with self._lock:
            self._coming.discard(os.fspath(path))

    def _place(self, name: str) -> Path | str:
        if (reason := unsafe_reason(name)) is not None:
            return reason
        if self._taken is not None:
            key = hash(unicodedata.normalize("NFC", name.casefold()))
            if key in self._taken:
                return "another file's name differs in upper and lower case only, which are the same here"
            self._taken.add(key)
        *folders, last = name.split("/")
        path = self._root
        for folder in folders:
            path = os.path.join(path, folder)
            if (reason := self._enter(path, folder)) is not None:
                return reason
        path = os.path.join(path, last)
        return self._reason_against(path) or Path(path)

    def _enter(self, path: str, name: str) -> str | None:
        """Makes a folder, if it isn't there; returns why nothing can be put in it."""
        if path not in self._coming and not os.path.lexists(path):
            os.makedirs(path, exist_ok=True)
        if not self._stays_inside(path):
            return f"{name!r} is a symbolic link that leads out of the folder"
        return None if os.path.isdir(path) else f"{name!r} is a file here, not a folder"

    def _reason_against(self, path: str) -> str | None:
        """Why no file can be put at a path whose folder is there."""
        if path in self._coming:
            return "another file of this name is being downloaded"
        if not os.path.lexists(path):
            return None
        if not self._stays_inside(path):
            return "it is a symbolic link here that leads out of the folder"
        if os.path.isdir(path):
            return "it is a folder here"
        if not self._overwrite:
            return EXISTS
        is_special = os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)
        return "it isn't a regular file here" if is_special else None

    def _stays_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._root or real.startswith(os.path.join(self._root, ""))


def unsafe_reason(name: str) -> str | None:
    """Why a server's name can't be a path below a folder, in words; None if it can.

    The rules are those of all systems together, so that the same files arrive on each.
    """
    if "\\" in name:
        return "its name has a backslash"
    if ":" in name:
        return "its name has a colon, as drives and streams of Windows have"
    for part in name.split("/"):
        if not part:
            return "its name is absolute, or has two slashes in a row, or one at its end"
        if part in (".", ".."):
            return f"its name has the part {part!r}"
        if part[-1] in ". ":
            return f"{part!r} ends with a dot or a space, which Windows drops"
        if part.partition(".")[0].rstrip(" ").upper() in _DEVICES:
            return f"{part!r} is a device of Windows"
        if _is_part(part):
            return f"{part!r} is what an unfinished download is called"
    return None


def is_case_insensitive(folder: str) -> bool:
    """Whether two names that differ in upper and lower case only are one file in `folder`; tries it. Blocks."""
    with tempfile.NamedTemporaryFile(prefix=".rxfiles-probe-", dir=folder) as probe:
        upper = os.path.join(folder, os.path.basename(probe.name).upper())
        return os.path.lexists(upper)
