"""Where in the served folder the file of a name is, or is to be. Everything blocks."""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from shared.errors import NotFound
from shared.files import disk

from . import names
from .group import DurableFolders, FolderGroup
from .made import MadeFolders
from .records import Records
from .tree import OpenFolder, Place, Tree

__all__ = ["Places"]

# What took the place meanwhile, or removed its folder, is looked at again; in the end it is an error.
_MAX_TRIES: Final = 100
_TAKEN: Final = (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
# Of a place on another file system, or with a name that the file system can't have.
_IMPOSSIBLE: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ})


class Places:
    """A file is in the tree under its own name, or in a folder of the store's under its encoded name.

    Args:
        tree: The served folder.
        encoded: The folder for names that can't be a path in the tree, or whose place is taken by something else.
        made: The folders of the tree that the store has made.
        records: Have the full names of the encoded ones that are too long.
        with_room: See `UnfinishedUploads`.
    """

    def __init__(
        self,
        tree: Tree,
        encoded: str,
        made: MadeFolders,
        records: Records,
        with_room: Callable[[Callable[[], None]], None],
    ) -> None:
        self.tree: Final = tree
        self.encoded: Final = encoded
        self._encoded_folder = OpenFolder(encoded)
        self._durable = DurableFolders()
        self._made = made
        self._records = records
        self._has_encoded = True
        self._with_room = with_room

    def find(self, name: str) -> Place:
        """The place of a file, to be closed; NotFound if there is none."""
        # The encoded place first, since only this store writes there.
        if (place := self._encoded(name)) is not None:
            return place
        path = names.path_of(name)
        if path is not None and (found := self.tree.place(path)) is not None:
            return found
        raise NotFound.for_name(name)

    def encoded_place(self, entry: str) -> Place:
        """The place of that encoded name."""
        status = disk.regular_file(os.path.join(self.encoded, entry)) if self._has_encoded else None
        return Place(self._encoded_folder, entry, status, is_encoded=True)

    def _encoded(self, name: str) -> Place | None:
        """The encoded place of a name, if its file is there."""
        if not self._has_encoded:
            return None
        place = self.encoded_place(names.encode(name))
        return place if place.status is not None else None

    def count_encoded(self) -> None:
        """Finds out whether there are any encoded names; if not, none is looked for until the first is put."""
        with os.scandir(self.encoded) as entries:
            self._has_encoded = next(entries, None) is not None

    def name_of(self, entry: str) -> str | None:
        """The name that is encoded in the entry of an encoded place; None if there is none, or its record is lost."""
        key = names.fingerprint_in(entry)
        return names.decode(entry) if key is None else self._records.name_of(key)

    def group(self) -> FolderGroup:
        """What `target` and `put` share, to be closed."""
        return FolderGroup(self.tree, self._durable)

    def target(self, name: str, group: FolderGroup) -> Place:
        """The place where a file of that name is to be: that of its file, else its path, else the encoded one.

        The folders on the path are made. The group closes the place.
        """
        path = names.path_of(name)
        encoded = self._encoded(name)
        if path is None or encoded is not None:
            return encoded or self.encoded_place(names.encode(name))
        if self.tree.follow_links and (place := self.tree.place(path)) is not None:
            group.keep(place.folder)
            return place  # perhaps where a link leads
        return self._free_place(path, group) or self.encoded_place(names.encode(name))

    def put(
        self,
        source: Place,
        name: str,
        group: FolderGroup,
        *,
        overwrite: bool,
        is_begun: bool = False,
        target: Place | None = None,
    ) -> tuple[Place, os.stat_result | None]:
        """Renames the file at `source` to the `target` of `name`.

        It survives a crash of the machine once `sync` has returned.

        Args:
            source: Where it is.
            name: Its name.
            group: Has the folders that it opens.
            overwrite: Whether to replace the file of that name.
            is_begun: Whether that is the same file already; one of two links is then left.
            target: Where it is to be, if that was looked for before.

        Returns:
            Its place, for `sync`, and its status there: None if another program has taken it away already.

        Raises:
            FileExistsError: There is such a file, and `overwrite` is False.
        """
        is_in_tree = False
        try:
            for attempt in range(_MAX_TRIES):
                try:
                    target = target or self.target(name, group)
                    if not self._move(source, target, overwrite=overwrite, is_begun=is_begun):
                        break
                    is_in_tree = not target.is_encoded
                    return target, target.folder.status(target.entry)
                except _TAKEN as error:
                    is_taken = isinstance(error, FileExistsError) and self.has(name)
                    is_gone = source.folder.status(source.entry) is None
                    if is_taken or is_gone or attempt == _MAX_TRIES - 1:
                        raise
                    group.look_again(name.split("/")[:-1])
                    target = None
            return self._put_encoded(source, name, overwrite=overwrite)
        finally:
            if not is_in_tree:
                self.prune(name)

    def sync(self, name: str, place: Place, group: FolderGroup) -> None:
        """Makes a file that `put` has put there survive a crash of the machine, with the folders up to the root."""
        group.sync(place.folder, [] if place.is_encoded else name.split("/")[:-1])

    def prune(self, name: str) -> None:
        """Removes the folders on a file's path that the store has made and that are empty."""
        if (path := names.path_of(name)) is not None:
            self._made.prune(path[:-1])

    def remove(self, name: str, place: Place) -> None:
        """Removes the file at its place, or the link that led there, and the folders that the store has made for it."""
        path = names.path_of(name)
        if self.tree.follow_links and not place.is_encoded and path is not None:
            if (folder := self.tree.folder(path[:-1])) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
            with folder:
                _unlink(folder, path[-1])
        else:
            _unlink(place.folder, place.entry)
        self.prune(name)

    def leave(self, name: str, place: Place) -> None:
        """Ends what is left of a file's place that it was moved from: a link that led there, folders."""
        place.folder.sync()
        path = names.path_of(name)
        if path is not None and self.tree.follow_links and (folder := self.tree.folder(path[:-1])) is not None:
            with folder:
                if folder.link(path[-1]) is not None and not place.is_encoded:
                    _unlink(folder, path[-1])
        self.prune(name)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self.find(name).folder.close()
        except NotFound:
            return False
        return True

    def move_to_paths(self) -> int:
        """Moves the files whose names were encoded to their paths, where that is possible by now; returns how many."""
        moved = 0
        folders: set[tuple[str, ...]] = set()
        with os.scandir(self.encoded) as entries:
            for entry in entries:
                name = self.name_of(entry.name)
                path = None if name is None else names.path_of(name)
                if name is None or path is None:
                    continue
                with suppress(OSError):  # it is served from where it is
                    if self._move_to_path(entry.path, name, path):
                        folders.add(tuple(path[:-1]))
                        moved += 1
                        continue
                self._made.prune(path[:-1])
        for path in folders:
            self.tree.sync(path)
        disk.sync_folder(self.encoded)
        return moved

    def probe(self, scratch: str) -> None:
        """Finds out, in a folder that only this process uses, whether the file system folds names."""
        self.tree.is_exact = self._distinguishes(scratch)

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

    def _free_place(self, path: list[str], group: FolderGroup) -> Place | None:
        """The place at `path`, if nothing but a file is there; its folders are made."""
        folder = group.folder(path[:-1], self._make)
        if folder is None:
            return None
        entry = path[-1]
        status = folder.status(entry)
        is_file = status is not None and stat.S_ISREG(status.st_mode)
        if (status is None and self.tree.keeps(entry)) or (is_file and (self.tree.is_exact or folder.has(entry))):
            return Place(folder, entry, status)
        return None

    def _make(self, parent: OpenFolder, path: Sequence[str]) -> None:
        self._made.make(parent, path)
        self._durable.clear()

    def _put_encoded(self, source: Place, name: str, *, overwrite: bool) -> tuple[Place, os.stat_result | None]:
        """Puts a file where nothing can be renamed to its path, and removes the one that is there."""
        place = self.encoded_place(names.encode(name))
        if not self._move(source, place, overwrite=overwrite):
            raise OSError(errno.EXDEV, "the file is on another file system", name)
        place.folder.sync()
        status = place.folder.status(place.entry)
        if (path := names.path_of(name)) is not None and (old := self.tree.place(path)) is not None:
            with old:
                _unlink(old.folder, old.entry)
        return place, status

    def _move_to_path(self, source: str, name: str, path: list[str]) -> bool:
        with self.group() as group:
            if (place := self._free_place(path, group)) is None:
                return False
            status = os.lstat(source)
            known = self._records.content(name, status)
            if place.status is None:
                disk.create_from(source, place.path, dst_dir_fd=place.dir_fd)
            elif os.path.samestat(place.status, status):
                os.unlink(source)  # the process was killed in between
            else:
                return False
            if (moved := place.folder.status(place.entry)) is not None:
                self._records.carry(name, known, moved)
            return True

    def _move(self, source: Place, place: Place, *, overwrite: bool, is_begun: bool = False) -> bool:
        """Renames the file at `source` to `place`, and returns whether that is possible there."""
        self._has_encoded |= place.is_encoded

        def rename() -> None:
            if is_begun:
                os.unlink(source.path, dir_fd=source.dir_fd)
            elif overwrite:
                os.replace(source.path, place.path, src_dir_fd=source.dir_fd, dst_dir_fd=place.dir_fd)
            else:
                disk.create_from(source.path, place.path, source.dir_fd, place.dir_fd)

        try:
            self._with_room(rename)
        except OSError as error:
            if error.errno in _IMPOSSIBLE:
                return False
            raise
        return True


def _unlink(folder: OpenFolder, entry: str) -> None:
    os.unlink(folder.path_of(entry), dir_fd=folder.fd)
    folder.sync()
