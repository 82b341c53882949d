"""The folders that one call writes to: each is opened once, and synced once. Everything blocks."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from .tree import Make, OpenFolder, Tree

__all__ = ["FolderGroup"]


class FolderGroup:
    """Open folders of a tree, closed with `with`.

    Args:
        tree: The served folder.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree: Final = tree
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
        if path:
            above = path[:-1]
            self._sync_once(tuple(above), lambda: self._tree.sync(above))

    def _sync_once(self, key: OpenFolder | tuple[str, ...], sync: Callable[[], None]) -> None:
        if key not in self._synced:
            self._synced[key] = None
            try:
                sync()
            except OSError as error:
                self._synced[key] = error
        if (failure := self._synced[key]) is not None:
            raise failure
