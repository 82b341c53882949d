"""Listings of the served folder, a page at a time, in the order of the names. Everything blocks, one call at a time.

The order of the names is that of a walk in which a folder `a` comes where `a/` belongs. A page starts where the last
one has stopped, at a name: it reads the folders on the way there, and those that can have names with the prefix.

Nothing is kept for a listing. The names of folders are kept, in order, and all listings share them: a large folder
isn't read again for each page. A folder is read again if it has changed; where a listing goes on in the middle of one,
at most a tenth of the time is spent on that, since it may miss what has come since it began with that folder.
"""

import os
import stat
import time
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from heapq import merge
from operator import itemgetter
from typing import Final

from shared.errors import InvalidName
from shared.protocol.wire import MAX_NAME_BYTES, check_name

from . import names
from .places import Places
from .tree import OpenFolder, Tree

__all__ = ["Listings", "Unserved"]

# Of a larger folder, so many names are kept together, and it is read once for each so many: some 5 MiB, and twice that
# while it is read.
_WINDOW_NAMES: Final = 65_536
# For all folders together; each counts some names more.
_KEPT_NAMES: Final = 2 * _WINDOW_NAMES
_FOLDER_COST_NAMES: Final = 16
_READING_SHARE: Final = 0.1
# Changes that are as close to each other may give a folder the same time: FAT has the coarsest.
_SAME_TIME_NS: Final = 2_000_000_000
# So that a page doesn't take long however few files there are.
_FOLDERS_A_PAGE: Final = 128

Status = Callable[[str], os.stat_result | None]
"""Gets the status of a file by its name; None if there is none by now."""


class Unserved(Enum):
    """What is in the served folder and isn't a file of the store, in words."""

    LINK = "links"
    SPECIAL = "devices, FIFOs or sockets"
    FOLDER = "unreadable folders"
    NAME = "names that aren't valid"


@dataclass(frozen=True, slots=True)
class _Window:
    """Some of the names in a folder, in order; those of folders end with `/`.

    Attributes:
        version: The folder's, when it was read.
        is_settled: Whether any later change gives the folder another version.
        first: The names are those from here on.
        names: At most `_WINDOW_NAMES`.
        is_last: Whether there are no more.
        until: When the folder needn't be read again, on the monotonic clock.
    """

    version: tuple[int, ...]
    is_settled: bool
    first: str
    names: Sequence[str]
    is_last: bool
    until: float

    def covers(self, first: str) -> bool:
        """Whether it has the name that comes first from there on, if there is one."""
        return self.first <= first and (self.is_last or first <= self.names[-1])

    def is_of(self, version: tuple[int, ...]) -> bool:
        """Whether it has what is in the folder, which has this version."""
        return self.is_settled and self.version == version


class Listings:
    """See above.

    Args:
        places: Where the files are.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._tree = places.tree
        # By the folder's path, with `/` at its end, or None for the folder of encoded names; the oldest come first.
        self._kept: OrderedDict[str | None, list[_Window]] = OrderedDict()
        self._kept_names = 0

    def free(self) -> None:
        """Drops the names that are kept."""
        self._kept.clear()
        self._kept_names = 0

    def page(self, prefix: str, after: str, limit: int) -> tuple[list[tuple[str, os.stat_result]], str | None]:
        """The names and statuses of the files of a page, and where the listing goes on: see `Store.list`."""
        found: list[tuple[str, os.stat_result]] = []
        last = ""
        folders = 0
        opened = _Opened(self._tree)
        try:
            # Of a name that comes twice, the encoded one counts.
            both = merge(self._encoded(prefix, after), self._paths(prefix, after, opened), key=itemgetter(0))
            for name, status_of in both:
                if status_of is None:
                    folders += 1
                    if folders > _FOLDERS_A_PAGE:
                        return found, name
                elif name != last and (status := status_of(name)) is not None:
                    if len(found) == limit:
                        return found, last
                    found.append((name, status))
                    last = name
            return found, None
        finally:
            opened.close()

    def survey(self, is_stopped: Callable[[], bool]) -> Counter[Unserved]:
        """Counts what isn't served, until that is stopped."""
        counts = Counter[Unserved]()
        bases = [""]
        while bases and not is_stopped():
            base = bases.pop()
            if (folder := self._tree.folder(_path(base))) is None:
                counts[Unserved.FOLDER] += 1
                continue
            with folder, folder.entries() as entries:
                for entry in entries:
                    key = self._key(base, entry)
                    if isinstance(key, Unserved):
                        counts[key] += 1
                    elif key is not None and key.endswith("/") and not entry.is_symlink():
                        bases.append(base + key)
        return counts

    def _encoded(self, prefix: str, after: str) -> Iterator[tuple[str, Status | None]]:
        """The files with encoded names."""

        def read(folder: OpenFolder) -> Iterator[str]:
            with folder.entries() as entries:
                yield from filter(None, (self._places.name_of(entry.name) for entry in entries))

        def open_folder() -> OpenFolder | None:
            return OpenFolder(self._places.encoded) if os.path.isdir(self._places.encoded) else None

        for name in self._names_in(None, max(prefix, after), open_folder, read, is_begun=bool(after)):
            if not name.startswith(prefix):
                return
            if name != after:
                yield name, self._encoded_status

    def _encoded_status(self, name: str) -> os.stat_result | None:
        return self._places.encoded_place(names.encode(name)).status

    def _paths(self, prefix: str, after: str, opened: "_Opened") -> Iterator[tuple[str, Status | None]]:
        """The files of the tree, and where the walk enters a folder, its path, with None."""
        first = max(prefix, after)

        def names_in(base: str) -> Iterator[str]:
            head, slash, _ = (first[len(base) :] if first.startswith(base) else "").partition("/")
            is_begun = after.startswith(base) and after != base
            return self._names_in(
                base, head + slash, lambda: opened.at(base), lambda folder: self._read(base, folder), is_begun=is_begun
            )

        walk = [("", names_in(""))]
        while walk:
            base, entries = walk[-1]
            for entry in entries:
                name = base + entry
                is_folder = entry.endswith("/")
                if not name.startswith(prefix) and not (is_folder and prefix.startswith(name)):
                    if name > prefix:
                        return
                elif not is_folder:
                    if name > after:
                        yield name, opened.status
                elif name >= first or first.startswith(name):
                    if name > after:  # not for the folders that lead there
                        yield name, None
                    walk.append((name, names_in(name)))
                    break
            else:
                walk.pop()

    def _names_in(
        self,
        base: str | None,
        first: str,
        open_folder: Callable[[], OpenFolder | None],
        read: Callable[[OpenFolder], Iterator[str]],
        *,
        is_begun: bool,
    ) -> Iterator[str]:
        """The names in a folder from `first` on.

        Args:
            base: The key of what is kept.
            first: The first one.
            open_folder: Opens the folder.
            read: Gets its names.
            is_begun: Whether the listing has begun with this folder before.
        """
        while (folder := open_folder()) is not None:
            window = self._window(base, first, folder, read, is_begun=is_begun)
            for index in range(bisect_left(window.names, first), len(window.names)):
                yield window.names[index]
            if window.is_last:
                return
            first = f"{window.names[-1]}\0"
            is_begun = True

    def _window(
        self,
        base: str | None,
        first: str,
        folder: OpenFolder,
        read: Callable[[OpenFolder], Iterator[str]],
        *,
        is_begun: bool,
    ) -> _Window:
        status = folder.own_status()
        version = (status.st_dev, status.st_ino, status.st_mtime_ns)
        windows = self._kept.pop(base, [])
        self._kept_names -= sum(map(_cost, windows))
        has_many = any(not window.is_last for window in windows)
        if not is_begun:
            # Whatever is kept from now on is at least as new as this listing.
            windows = [window for window in windows if window.is_of(version)]
        now = time.monotonic()
        found = next((window for window in windows if window.covers(first)), None)
        if found is None or not (found.is_of(version) or (is_begun and now < found.until)):
            is_settled = abs(time.time_ns() - status.st_mtime_ns) > _SAME_TIME_NS
            begin = first if has_many else ""
            some, is_last = _first_names(read(folder), begin)
            if not is_last and some[-1] < first:
                begin = first
                some, is_last = _first_names(read(folder), begin)
            then = time.monotonic()
            found = _Window(version, is_settled, begin, some, is_last, then + (then - now) / _READING_SHARE)
            windows = [window for window in windows if not window.covers(first)]
        else:
            windows.remove(found)
        self._keep(base, [*windows, found])
        return found

    def _keep(self, base: str | None, windows: list[_Window]) -> None:
        self._kept[base] = windows
        self._kept_names += sum(map(_cost, windows))
        while self._kept_names > _KEPT_NAMES and (len(self._kept) > 1 or len(windows) > 1):
            oldest, its_windows = next(iter(self._kept.items()))
            self._kept_names -= _cost(its_windows.pop(0))
            if not its_windows:
                del self._kept[oldest]

    def _read(self, base: str, folder: OpenFolder) -> Iterator[str]:
        with folder.entries() as entries:
            for entry in entries:
                key = self._key(base, entry)
                if isinstance(key, str):
                    yield key

    def _key(self, base: str, entry: os.DirEntry[str]) -> str | Unserved | None:
        """A file's name in its folder, or that of a folder with `/`; what it is otherwise, None for the store's own."""
        name = entry.name
        if not base and self._tree.is_reserved(name):
            return None
        # Most names can be told without a closer look, and there may be a million.
        is_usual = name.isascii() and name.isprintable() and 4 * len(base) + len(name) <= MAX_NAME_BYTES
        if not (is_usual and os.name != "nt") and not _is_name(base, name):
            return Unserved.NAME
        if entry.is_file(follow_symlinks=False):
            return name
        if entry.is_dir(follow_symlinks=False):
            return f"{name}/"
        return self._linked(base, name) if entry.is_symlink() else Unserved.SPECIAL

    def _linked(self, base: str, name: str) -> str | Unserved:
        if not self._tree.follow_links:
            return Unserved.LINK
        path = [*_path(base), name]
        if (place := self._tree.place(path)) is not None:
            place.folder.close()
            return name
        if (folder := self._tree.folder(path)) is not None:
            folder.close()
            return f"{name}/"
        return Unserved.LINK


class _Opened:
    """The folder of a walk that is open: one at a time, however deep it is."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._base: str | None = None
        self._folder: OpenFolder | None = None

    def at(self, base: str) -> OpenFolder | None:
        """The folder of that path, which has `/` at its end; None if there is none, or it can't be read."""
        if base != self._base:
            folder = self._child(base) or self._tree.folder(_path(base))
            self.close()
            self._base, self._folder = base, folder
        return self._folder

    def _child(self, base: str) -> OpenFolder | None:
        """The folder, if it is in the one that is open: that needs no walk from the root, unless it may be a link."""
        parent, above = self._folder, self._base or ""
        if parent is None or not base.startswith(above) or self._tree.follow_links or not self._tree.is_exact:
            return None
        entry, _, rest = base[len(above) :].partition("/")
        with suppress(PermissionError):
            return None if rest or not entry else parent.folder(entry)
        return None

    def status(self, name: str) -> os.stat_result | None:
        """The status of a file; None if there is none."""
        before, slash, entry = name.rpartition("/")
        folder = self.at(before + slash)
        try:
            status = None if folder is None else folder.status(entry)
        except PermissionError:  # a folder whose names can be read, and nothing else
            return None
        if status is not None and stat.S_ISLNK(status.st_mode) and self._tree.follow_links:
            if (place := self._tree.place(name.split("/"))) is None:
                return None
            place.folder.close()
            return place.status
        return status if status is not None and stat.S_ISREG(status.st_mode) else None

    def close(self) -> None:
        """Closes it."""
        folder, self._folder, self._base = self._folder, None, None
        if folder is not None:
            folder.close()


def _is_name(base: str, name: str) -> bool:
    try:
        check_name(base + name)
    except InvalidName:
        return False
    return names.is_entry(name)


def _path(base: str) -> list[str]:
    return base.split("/")[:-1]


def _cost(window: _Window) -> int:
    return len(window.names) + _FOLDER_COST_NAMES


def _first_names(names_there: Iterator[str], first: str) -> tuple[list[str], bool]:
    """The first names from `first` on, in order, and whether that is all of them."""
    found: list[str] = []
    is_all = True
    for name in names_there:
        if name >= first:
            found.append(name)
            if len(found) == 2 * _WINDOW_NAMES:
                found.sort()
                del found[_WINDOW_NAMES:]
                is_all = False
    found.sort()
    if len(found) > _WINDOW_NAMES:
        del found[_WINDOW_NAMES:]
        is_all = False
    return found, is_all
