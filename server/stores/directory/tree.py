"""The served folder as a tree: opens a folder or finds an entry by its path, and never leads out of the root.

Each step starts at the folder that the last one has opened, so that nothing that other programs put into a path
meanwhile, such as a link, leads anywhere else. Where the system can't open an entry of an open folder (Windows), each
step is looked at before it is made. Everything blocks.
"""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Final, Self

from shared.files import disk

__all__ = ["RESERVED", "OpenFolder", "Place", "Tree"]

RESERVED: Final = ".rxfiles"
"""The root's entry that is the store's own."""

HAS_DIR_FD: Final = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
"""Whether entries are opened by their folder's descriptor."""

# A name that this file system can't have, and what else means that there is no such folder.
_NO_NAME: Final = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})
_NO_FOLDER: Final = _NO_NAME | {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_MAX_LINKS: Final = 40  # as Linux has it
# Each time another one has removed the folder that was just made.
_MAX_TRIES: Final = 100
# Stands among the steps where a segment of the path has been followed to its end.
_END: Final = "/"


class OpenFolder:
    """A folder that stays the same one while it is open, wherever other programs move it.

    Args:
        path: Its path, for a folder without a descriptor: the root itself, and all where the system has no other way.
        fd: Its descriptor, if it has one.
    """

    def __init__(self, path: str, fd: int | None = None) -> None:
        self.fd: Final = fd
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """To be called once."""
        if self.fd is not None:
            os.close(self.fd)

    def path_of(self, entry: str) -> str:
        """What to pass to the system's calls, beside `dir_fd`."""
        return entry if self.fd is not None else os.path.join(self._path, entry)

    def status(self, entry: str) -> os.stat_result | None:
        """The status of an entry, not of what it links to; None if there is none."""
        try:
            return os.lstat(self.path_of(entry), dir_fd=self.fd)
        except OSError as error:
            if error.errno in _NO_FOLDER:
                return None
            raise

    def own_status(self) -> os.stat_result:
        """The folder's own."""
        return os.stat(self.fd if self.fd is not None else self._path)

    def identity(self) -> tuple[int, int]:
        """What no other folder has that is there."""
        status = self.own_status()
        return status.st_dev, status.st_ino

    def link(self, entry: str) -> str | None:
        """Where an entry links to; None if it is no link."""
        with suppress(OSError):
            return os.readlink(self.path_of(entry), dir_fd=self.fd)
        return None

    def folder(self, entry: str) -> "OpenFolder | None":
        """An entry that is a folder and no link; None if it isn't. PermissionError if it can't be read."""
        path = self.path_of(entry)
        if not HAS_DIR_FD:
            is_folder = (status := self.status(entry)) is not None and stat.S_ISDIR(status.st_mode)
            return OpenFolder(path) if is_folder else None
        try:
            return OpenFolder("", os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd))
        except OSError as error:
            if error.errno in _NO_FOLDER:
                return None
            raise

    def has(self, entry: str) -> bool:
        """Whether there is an entry of exactly that name, which a file system that folds names takes for others."""
        return entry in os.listdir(self.fd if self.fd is not None else self._path)

    def entries(self) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        """What is in it."""
        return os.scandir(self.fd if self.fd is not None else self._path)

    def sync(self) -> None:
        """Makes its entries survive the machine, where a folder can be synced."""
        if self.fd is not None:
            os.fsync(self.fd)
        else:
            disk.sync_folder(self._path)


class Place:
    """An entry of an open folder, where a file is or is to be; closed with `with`.

    Attributes:
        folder: The folder.
        entry: The entry's name.
        status: The file's; None if there is none.
        is_encoded: Whether the entry is a name's encoded form, in a folder that isn't of the tree.
    """

    def __init__(
        self, folder: OpenFolder, entry: str, status: os.stat_result | None = None, *, is_encoded: bool = False
    ) -> None:
        self.folder: Final = folder
        self.entry: Final = entry
        self.status: Final = status
        self.is_encoded: Final = is_encoded

    @property
    def path(self) -> str:
        """What to pass to the system's calls, beside `dir_fd`."""
        return self.folder.path_of(self.entry)

    @property
    def dir_fd(self) -> int | None:
        """See `path`."""
        return self.folder.fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.folder.close()


Make = Callable[[OpenFolder, Sequence[str]], None]
"""Makes the folder of that path, which is without links, as an entry of the open one; FileExistsError if it exists."""


class Tree:
    """See above. Paths are sequences of names that `names.path_of` gave.

    Args:
        root: The served folder.
        follow_links: Whether links that lead to a place below the root are followed; else they are as nothing.

    Attributes:
        is_exact: Whether the file system distinguishes names that differ in case or normalisation, and keeps them: at
            first as the system usually does, for a folder that is only read; see `Places.probe`.
    """

    def __init__(self, root: str, *, follow_links: bool = False) -> None:
        self.root: Final = root
        self.follow_links: Final = follow_links
        self.is_exact = sys.platform not in ("darwin", "win32")

    def folder(self, path: Sequence[str], make: Make | None = None) -> OpenFolder | None:
        """The folder at `path`, open; None if there is none, it can't be read, or is in itself by way of a link.

        Args:
            path: Empty for the root.
            make: Makes the folders that are missing. None is returned if something else is in the way.

        Raises:
            PermissionError: The root can't be read; or, with `make`, one of the folders can't be read or written.
        """
        found = self._walk([step for segment in path for step in (segment, _END)], make)
        return None if found is None else found[0]

    def sync(self, path: Sequence[str]) -> None:
        """Makes a folder and those that it is in survive the machine, with their entries."""
        found = self._walk([step for segment in path for step in (segment, _END)], durable=True)
        if found is not None:  # else another program has just moved it
            with found[0] as folder:
                folder.sync()

    def place(self, path: Sequence[str]) -> Place | None:
        """The regular file at `path`; None if there is none. PermissionError if the root can't be read."""
        *folders, last = path
        found = self._walk([*(step for segment in folders for step in (segment, _END)), last])
        if found is None:
            return None
        folder, entry = found
        try:
            status = folder.status(entry) if entry else None
            is_there = status is not None and stat.S_ISREG(status.st_mode)
            # A file system that folds names finds another file under this name, too.
            if is_there and (self.is_exact or folder.has(entry)):
                return Place(folder, entry, status)
        except BaseException:
            folder.close()
            raise
        folder.close()
        return None

    def is_reserved(self, entry: str) -> bool:
        """Whether this entry of the root is the store's own."""
        return (entry if self.is_exact else entry.casefold()) == RESERVED

    def _walk(
        self, steps: Sequence[str], make: Make | None = None, *, durable: bool = False
    ) -> tuple[OpenFolder, str] | None:
        """The folder to which the steps lead, and the last one if it isn't a folder; None if they lead nowhere."""
        walk = _Walk(self, steps, make, durable)
        try:
            found = walk.run()
        except BaseException:
            walk.here.close()
            raise
        if found is None:
            walk.here.close()
            return None
        return walk.here, found

    def keeps(self, entry: str) -> bool:
        """Whether a new entry keeps its name: a file system that folds names may return it in another form."""
        return self.is_exact or entry.isascii()


class _Walk:
    """One walk from the root, step by step.

    Attributes:
        here: The folder that was reached, open; the caller closes it.
    """

    def __init__(self, tree: Tree, steps: Sequence[str], make: Make | None, durable: bool) -> None:
        self._tree = tree
        self._make = make
        self._durable = durable
        self._todo = list(reversed(steps))
        self._real: list[str] = []  # the path of `here`, without links
        self._links = 0
        self.here = OpenFolder(tree.root)
        self._passed = {self.here.identity()} if tree.follow_links else set[tuple[int, int]]()

    def run(self) -> str | None:
        """The last step, if it isn't a folder; empty if it is one; None if the steps lead nowhere."""
        while self._todo:
            step = self._todo.pop()
            if step == _END:
                is_possible = self._end_segment()
            elif step == "..":  # of a link
                is_possible = self._go_up()
            elif not self._real and self._tree.is_reserved(step):
                is_possible = False
            elif self._todo and self._go_down(step):
                is_possible = True
            elif self._tree.follow_links and (target := self.here.link(step)) is not None:
                is_possible = self._follow(target)
            else:
                return None if self._todo else step
            if not is_possible:
                return None
        return ""

    def _end_segment(self) -> bool:
        if not self._tree.follow_links:
            return True
        identity = self.here.identity()
        is_new = identity not in self._passed
        self._passed.add(identity)
        return is_new

    def _go_up(self) -> bool:
        if not self._real:
            return False
        self._todo += self._real[-2::-1]
        self._go_to_root()
        return True

    def _go_down(self, step: str) -> bool:
        child = self._child(step)
        if child is None:
            return False
        try:
            if self._durable:
                self.here.sync()
        except BaseException:
            child.close()
            raise
        self._real.append(step)
        self._go_to(child)
        return True

    def _follow(self, target: str) -> bool:
        self._links += 1
        if self._links > _MAX_LINKS:
            return False
        if os.path.isabs(target):
            for root in (self._tree.root, os.path.realpath(self._tree.root)):
                if f"{target}/".startswith(f"{root.rstrip('/')}/"):
                    target = target[len(root) :]
                    break
            else:
                return False
            self._go_to_root()
        self._todo += [part for part in target.split("/")[::-1] if part not in ("", ".")]
        return True

    def _go_to_root(self) -> None:
        self._real = []
        self._go_to(OpenFolder(self._tree.root))

    def _go_to(self, folder: OpenFolder) -> None:
        self.here.close()
        self.here = folder

    def _child(self, entry: str) -> OpenFolder | None:
        here, make, tree = self.here, self._make, self._tree
        for _ in range(_MAX_TRIES):
            is_other = not tree.is_exact and not here.has(entry)
            try:
                child = None if is_other else here.folder(entry)
            except PermissionError:
                if make is not None:
                    raise
                return None
            if make is None or child is not None:
                return child
            status = here.status(entry)
            if status is not None and (is_other or not stat.S_ISDIR(status.st_mode)):
                return None
            if not tree.keeps(entry):
                return None
            try:
                make(here, [*self._real, entry])
            except OSError as error:
                if error.errno in _NO_NAME:
                    return None
                if not isinstance(error, FileExistsError):
                    raise
        return None
