"""Where in the served folder the file of a name is, or is to be. Everything blocks."""

import os
import sys
from collections.abc import Iterator
from typing import Final

from shared.errors import NotFound
from shared.files import disk

from . import names
from .records import Records, entries

__all__ = ["RESERVED", "Places"]

RESERVED: Final = ".rxfiles"
"""The subfolder for everything but files with ordinary names."""


class Places:
    """A file is in the served folder under its own name, or in a subfolder under its encoded name.

    Args:
        root: The served folder.
        encoded: The subfolder for names that can't be an entry of `root`, or whose place is taken by something else.
        records: Have the full names of the encoded ones that are too long.
    """

    def __init__(self, root: str, encoded: str, records: Records) -> None:
        self.root: Final = root
        self.encoded: Final = encoded
        self._records = records
        self._is_exact = sys.platform not in ("darwin", "win32")  # for a folder that is only read; see `probe`

    def find(self, name: str) -> tuple[str, os.stat_result]:
        """The path and status of a file; NotFound if there is none."""
        # The encoded place first, since only this store writes there.
        encoded = os.path.join(self.encoded, names.encode(name))
        if (status := disk.regular_file(encoded)) is not None:
            return encoded, status
        if self._may_be_plain(name):
            plain = os.path.join(self.root, name)
            status = disk.regular_file(plain)
            # A file system that folds names finds another file under this name, too.
            if status is not None and (self._is_exact or any(entry.name == name for entry in entries(self.root))):
                return plain, status
        raise NotFound.for_name(name)

    def target(self, name: str) -> str:
        """Where the file is to be: where it is, else at its plain place if that is possible and free."""
        try:
            return self.find(name)[0]
        except NotFound:
            plain = os.path.join(self.root, name)
        # A file system that folds names may return a name that isn't ASCII in another form than it was given.
        is_kept = self._is_exact or name.isascii()
        if self._may_be_plain(name) and is_kept and not os.path.lexists(plain):
            return plain
        return os.path.join(self.encoded, names.encode(name))

    def files(self, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """Every file whose name starts with `prefix`; if a name comes twice, the later one counts."""
        for entry in entries(self.root):
            # No system call for a file that isn't wanted: each may wait for the interpreter where others are busy.
            is_wanted = entry.name.startswith(prefix) and self._may_be_plain(entry.name)
            if is_wanted and (status := disk.regular_file(entry.path)) is not None:
                yield entry.name, status
        for entry in entries(self.encoded) if os.path.isdir(self.encoded) else ():  # not in one that is only read
            key = names.fingerprint_in(entry.name)
            name = names.decode(entry.name) if key is None else self._records.name_of(key)
            if name is None or not name.startswith(prefix):
                continue
            if (status := disk.regular_file(entry.path)) is not None:
                yield name, status

    def probe(self, scratch: str) -> None:
        """Finds out, in a folder that only this process uses, whether the file system folds names."""
        self._is_exact = self._distinguishes(scratch)

    @staticmethod
    def _distinguishes(scratch: str) -> bool:
        """Whether names that differ in case or normalisation are different files, and keep their form."""
        given, *alike = ("a\N{LATIN SMALL LETTER E WITH ACUTE}", "A\N{LATIN SMALL LETTER E WITH ACUTE}", "ae\u0301")
        path = os.path.join(scratch, given)
        try:
            with open(path, "wb"):
                pass
        except (OSError, UnicodeEncodeError):
            return False
        try:
            return not any(os.path.lexists(os.path.join(scratch, other)) for other in alike)
        finally:
            os.unlink(path)

    def _may_be_plain(self, name: str) -> bool:
        return names.is_plain(name) and (name.isascii() or sys.getfilesystemencoding() == "utf-8")
