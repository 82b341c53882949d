"""The folders that one call writes to: each is opened once, and synced once. Everything blocks."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from .tree import Make, OpenFolder, Tree

__all__ = ["DurableFolders", "FolderGroup"]

_MAX_DURABLE: Final = 1024


class DurableFolders:
    """The paths of folders that survive a crash of the machine, the last that were found so, each with its identity.

    To sync the folders that a folder is in, for each of its files, would take as long as to sync the file.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[str, ...], tuple[int, int]] = OrderedDict()

    def has(self, path: tuple[str, ...], folder: OpenFolder) -> bool:
        """Whether the folder that is open is the one that was found at that path."""
        return self._found.get(path) == folder.identity()

    def add(self, path: tuple[str, ...], folder: OpenFolder) -> None:
        """Notes that the folders on the path of an open one were synced."""
        with self._lock:
            self._found[path] = folder.identity()
            if len(self._found) > _MAX_DURABLE:
                self._found.popitem(last=False)

    def clear(self) -> None:
        """To be called when a folder was made, which may have the identity of one that was removed."""
        with self._lock:
            self._found.clear()


class FolderGroup:
    """Open folders of a tree, closed with `with`.

    Args:
        tree: The served folder.
        durable: Folders of it.
    """

    def __init__(self, tree: Tree, durable: DurableFolders) -> None:
        self._tree = tree
        self._durable = durable
        self._by_path: dict[tuple[str, ...], OpenFolder] = {}
        self._open: list[OpenFolder] = []
        # Those that were synced, and what that raised; a folder that couldn't be synced isn't tried again, as the
        # system forgets what it couldn't write.
        self._synced: dict[OpenFolder | tuple[str, ...], OSError | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for folder in self._open:
            folder.close()

    def folder(self, path: Sequence[str], make: Make) -> OpenFolder | None:
        """The folder at `path`, which is made if it isn't there; None as for `Tree.folder`."""
        key = tuple(path)
        folder = self._by_path.get(key)
        if folder is None and (folder := self._tree.folder(path, make)) is not None:
            self._by_path[key] = self.keep(folder)
        return folder

    def keep(self, folder: OpenFolder) -> OpenFolder:
        """Takes over a folder, to close it."""
        self._open.append(folder)
        return folder

    def look_again(self, path: Sequence[str]) -> None:
        """Opens the folder at `path` anew when it is needed next: another one may be there by now."""
        self._by_path.pop(tuple(path), None)

    def sync(self, folder: OpenFolder, path: Sequence[str]) -> None:
        """Makes the entries of a folder survive a crash of the machine, and those of the folders on its path.

        To be called when everything was renamed, as a folder is synced once.
        """
        # First: the file system may make the folders on the path durable with it.
        self._sync_once(folder, folder.sync)
        if path and not self._durable.has(key := tuple(path), folder):
            above = path[:-1]
            self._sync_once(tuple(above), lambda: self._tree.sync(above))
            self._durable.add(key, folder)

    def _sync_once(self, key: OpenFolder | tuple[str, ...], sync: Callable[[], None]) -> None:
        if key not in self._synced:
            self._synced[key] = None
            try:
                sync()
            except OSError as error:
                self._synced[key] = error
        if (failure := self._synced[key]) is not None:
            raise failure
