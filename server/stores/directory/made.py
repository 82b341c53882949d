"""The folders that the store has made in the served one: those that it removes when it has emptied them.

There is a record of each, `<SHA-256 of the path>.json`, with its path and inode. A folder that people or other programs
made has none, or one of another inode, and stays. Everything blocks.
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from shared.files import disk

from . import names
from .records import read_json, write_json
from .tree import OpenFolder, Tree

__all__ = ["MadeFolders"]


class MadeFolders:
    """See above.

    Args:
        tree: The served folder.
        path: The folder with the records.
        scratch: See `write_json`.
        with_room: See `UnfinishedUploads`.
    """

    def __init__(self, tree: Tree, path: str, scratch: str, with_room: Callable[[Callable[[], None]], None]) -> None:
        self.path: Final = path
        self._tree = tree
        self._scratch = scratch
        self._with_room = with_room
        # A folder and its record come and go together.
        self._lock = threading.Lock()

    def make(self, parent: OpenFolder, path: Sequence[str]) -> None:
        """Makes the folder of that path, an entry of `parent`; OSError if that isn't possible."""
        entry = parent.path_of(path[-1])
        with self._lock:
            self._with_room(lambda: os.mkdir(entry, dir_fd=parent.fd))
            try:
                made = {"path": "/".join(path), "inode": os.lstat(entry, dir_fd=parent.fd).st_ino}
                record = self._record(path)
                self._with_room(lambda: write_json(record, made, scratch=self._scratch, durable=False))
            except BaseException:
                with suppress(OSError):
                    os.rmdir(entry, dir_fd=parent.fd)
                raise

    def prune(self, path: Sequence[str]) -> None:
        """Removes the folders on a path that the store made and that are empty, from its end on."""
        with suppress(OSError):
            parent = None
            while path and (parent := self._tree.folder(path[:-1])) is None:
                path = path[:-1]
            while path and parent is not None:
                with parent:
                    if not self._remove_empty(parent, path):
                        return
                    path = path[:-1]
                    parent = parent.folder("..") if path else None

    def clean(self) -> None:
        """Removes the folders that a killed process has left empty, and the records of those that are gone."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                match read_json(entry.path):
                    case {"path": str(path), "inode": int(inode)} if self._inode(path.split("/")) == inode:
                        self.prune(path.split("/"))
                    case _:
                        disk.remove(entry.path)

    def _remove_empty(self, parent: OpenFolder, path: Sequence[str]) -> bool:
        """Removes a folder, and returns whether it is gone; OSError if it isn't empty."""
        with self._lock:
            record = self._record(path)
            if (status := parent.status(path[-1])) is None:
                return True
            if read_json(record).get("inode") != status.st_ino:
                return False
            os.rmdir(parent.path_of(path[-1]), dir_fd=parent.fd)
            disk.remove(record)
            return True

    def _inode(self, path: Sequence[str]) -> int | None:
        if (folder := self._tree.folder(path)) is None:
            return None
        with folder:
            return folder.own_status().st_ino

    def _record(self, path: Sequence[str]) -> str:
        return os.path.join(self.path, f"{names.fingerprint('/'.join(path))}.json")
