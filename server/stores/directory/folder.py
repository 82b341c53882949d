"""A folder on a disk as a place for files and unfinished uploads: what lies where, and in which order it gets there.

Everything here blocks and knows nothing of asyncio; `server.stores.directory.store` calls it in threads, and ensures
that no two calls about one name, or about one upload, overlap.

::

    root/
        docs/report.csv         the file `docs/report.csv`
        .rxfiles/               the store's own; everything else belongs to people
            names/              files whose name can't be a path, or whose place is taken: see `names.encode`
            records/            <SHA-256 of the name>.json: the full name, and the content's digest
            folders/            <SHA-256 of the path>.json: a folder that the store has made
            parts/              <SHA-256 of the upload_id>.part, the bytes so far, and .json, what they are to become
            tmp/                records being written
            lock                held while a process uses the folder

Nothing is ever written in the place of a file: a content is written beside the others, synced, and renamed. A process
may be killed between any two steps:

- An upload exists while its `.part` does. Its `.json` is written before that, and removed after it.
- A file's record is written before the file, and holds the digest of both the new and the old content, each under what
  the file system says of it; so the content that is there finds its digest, and no other content does. That of a file
  that is put as a whole is an attribute of the file instead, where the file system has some: see `Records.attach`. A
  file that was written by hand has no digest.
- A file that is moved has its new name's record before it has the name, and loses the old name's record last. Where
  nothing may be overwritten it may be left with both names; to move it again ends that.
- A part with two names was published by a link, and its own name is what is left of that.
- The folders of a file are made just before, and may be left empty.

What a killed process leaves behind is removed by the next `open`, which also moves files that an older version has
encoded, though their names can be paths.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from shared.errors import Changed, NotFound
from shared.files import disk
from shared.protocol.wire import FileInfo

from ..base import Page
from ..failures import FULL
from ..parts import already_exists
from . import names
from .folder_lock import FolderLock
from .listing import Listings, Unserved
from .made import MadeFolders
from .places import Places
from .puts import WholePuts
from .records import Content, Records, entries, etag_of
from .tree import RESERVED, OpenFolder, Place, Tree
from .unfinished import UnfinishedUploads, UploadFile

__all__ = ["Folder", "is_same", "read_same"]

_log = logging.getLogger(__name__)


class Folder:
    """The files of one folder.

    Args:
        path: The folder; made if it isn't there.
        follow_links: See `DirectoryStore`.
        read_only: Whether nothing is written to it, not even a lock.

    Attributes:
        listings: Of its files.
        uploads: The unfinished ones.
        puts: Puts whole files.
    """

    def __init__(self, path: str, *, follow_links: bool = False, read_only: bool = False) -> None:
        root = os.path.abspath(path)
        tree = Tree(root, follow_links=follow_links)
        self._root = root
        self._read_only = read_only
        self._own = os.path.join(root, RESERVED)
        self._scratch = os.path.join(self._own, "tmp")
        self._records = Records(root, os.path.join(self._own, "records"), self._scratch)
        self.uploads = UnfinishedUploads(os.path.join(self._own, "parts"), self._scratch)
        with_room = self.uploads.with_room
        self._made = MadeFolders(tree, os.path.join(self._own, "folders"), self._scratch, with_room)
        self._places = Places(tree, os.path.join(self._own, "names"), self._made, self._records, with_room)
        self.listings = Listings(self._places)
        self.puts = WholePuts(self._places, self._records, self.uploads, self._scratch)
        self._lock_path = os.path.join(self._own, "lock")
        self._lock = FolderLock(root, None if read_only else self._lock_path)
        self._reopening = threading.Lock()
        self._is_closed = False

    def open(self) -> None:
        """Locks the folder and removes what a killed process left behind; BlockingIOError if another one uses it."""
        self._is_closed = False
        if self._read_only:
            self._lock.take()
            return
        root = self._root
        is_new = not os.path.isdir(root)
        own = (self._places.encoded, self._records.path, self._made.path, self.uploads.path, self._scratch)
        for path in own:
            os.makedirs(path, exist_ok=True)
        with suppress(OSError):  # it may be another user's
            os.chmod(self.uploads.path, 0o700)  # what replaces a private file is private from the start
        # What is published in them later must be found again, even after a power failure.
        disk.sync_folder(self._own)
        disk.sync_folder(root)
        if is_new:
            disk.sync_folder(os.path.dirname(root))
        self._lock.take()
        try:
            self._places.probe(self._scratch)
            self._clean()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Unlocks it. A call that was given up, and goes on in its thread, doesn't open it again."""
        with self._reopening:
            self._is_closed = True
            self._lock.release()

    def check(self) -> None:
        """Opens the folder that is in the place of the one that was opened, unless that is still there.

        Raises:
            OSError: There is none, or it can't be opened.
        """
        if self._lock.is_there():
            return
        with self._reopening:
            if self._is_closed:
                raise OSError(errno.ESHUTDOWN, "the store is closed", self._root)
            if self._lock.is_there():
                return  # another thread has done it
            self._lock.check_place()
            self._lock.release()
            self.open()
        _log.warning("%s is there again, and served", self._root)

    def log_unserved(self, is_stopped: Callable[[], bool]) -> None:
        """Logs in one line what is in the folder and isn't served, if there is anything; gives up when stopped."""
        try:
            counts = self.listings.survey(is_stopped)
        except OSError as error:
            _log.warning("%s: what isn't served couldn't be counted: %s", self._root, error)
            return
        if counts and not is_stopped():
            kinds = ", ".join(f"{count} {kind.value}" for kind, count in sorted(counts.items(), key=_by_kind))
            _log.warning("%s: not served: %s", self._root, kinds)

    def stat(self, name: str) -> FileInfo:
        """What is known of a file; NotFound if there is none."""
        with self._places.find(name) as place:
            return self._info(name, _status(place))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._places.has(name)

    def open_file(self, name: str) -> tuple[int, os.stat_result, FileInfo]:
        """A descriptor of the file, its status and what is known of it; NotFound if there is none."""
        with self._places.find(name) as place:
            found = disk.open_to_read(place.path, place.dir_fd)
        if found is None:
            raise NotFound.for_name(name)
        fd, status = found
        try:
            return fd, status, self._info(name, status)
        except BaseException:
            os.close(fd)
            raise

    def whole(self, name: str, most_bytes: int) -> bytes | None:
        """See `Store.whole`."""
        fd, opened, info = self.open_file(name)
        try:
            return read_same(fd, opened, info.size, 0, name) if info.size <= most_bytes else None
        finally:
            os.close(fd)

    def list(self, prefix: str, after: str, limit: int) -> Page:
        """See `Store.list`."""
        found, end = self.listings.page(prefix, after, limit)
        return Page([self._info(name, status) for name, status in found], end)

    def delete(self, name: str, if_match: str | None) -> FileInfo:
        """Removes a file; NotFound if there is none, Changed if its etag isn't `if_match`."""
        with self._places.find(name) as place:
            info = self._matching(name, place, if_match)
            try:
                self._places.remove(name, place)
            except FileNotFoundError:
                raise NotFound.for_name(name) from None
        self._records.remove(names.fingerprint(name))
        return info

    def move(self, source: str, target: str, *, overwrite: bool, if_match: str | None) -> FileInfo:
        """Renames a file; see `Store.move`."""
        with self._places.find(source) as place:
            info = self._matching(source, place, if_match)
            if source == target:
                return info
            try:
                known = self._records.content(source, _status(place))
                known = self._place(place, target, known, self._find(target), None, overwrite=overwrite)
            except FileNotFoundError:
                if place.folder.status(place.entry) is not None:
                    raise  # something else is missing
                raise NotFound.for_name(source) from None
            # The status that the record has may be years old, and this process alone knows the one that it has now.
            with suppress(OSError):
                self._records.write(target, known, None, None)
            self._places.leave(source, place)
        self._records.remove(names.fingerprint(source))
        return replace(info, name=target)

    def seal(self, upload: UploadFile, modified: float | None) -> None:
        """Seals an upload that is going to be published with that time."""
        upload.seal(modified, self._find(upload.spec.name))

    def publish(self, upload: UploadFile, *, overwrite: bool) -> FileInfo:
        """Makes the sealed upload a file; AlreadyExists if there is one, and `overwrite` is False."""
        name, content = upload.spec.name, upload.content
        folder, entry = os.path.split(content.path)
        status, digest = os.lstat(content.path), content.digest.value
        known, old = Content(status, digest or etag_of(status), digest), self._find(name)
        with Place(OpenFolder(folder), entry, status) as part:
            status = self._place(part, name, known, old, upload.spec.upload_id, overwrite=overwrite).status
        upload.forget()
        return self._info(name, status)

    def published(self, upload_id: str, name: str) -> FileInfo | None:
        """The file, if it is the one that this upload published."""
        try:
            with self._places.find(name) as place:
                status = _status(place)
        except NotFound:
            return None
        return self._info(name, status) if self._records.publisher(name, status) == upload_id else None

    def orphans(self) -> Sequence[str]:
        """The names that have a record but no file."""
        found = map(self._records.name_of, self._records.fingerprints())
        return [name for name in found if name is not None and not self.exists(name)]

    def drop_orphan(self, name: str) -> None:
        """Removes the record of a name that has no file."""
        if not self.exists(name):
            self._records.remove(names.fingerprint(name))

    def _matching(self, name: str, place: Place, if_match: str | None) -> FileInfo:
        """What is known of a file; Changed if its etag isn't `if_match`."""
        info = self._info(name, _status(place))
        if if_match is not None and if_match != info.etag:
            raise Changed(f"{name!r} has changed", name=name)
        return info

    def _find(self, name: str) -> os.stat_result | None:
        """The status of a file; None if there is none."""
        try:
            with self._places.find(name) as place:
                return place.status
        except NotFound:
            return None

    def _place(
        self,
        source: Place,
        name: str,
        known: Content,
        old: os.stat_result | None,
        upload_id: str | None,
        *,
        overwrite: bool,
    ) -> Content:
        """Makes what is at `source` the file of that name, its record first; AlreadyExists as for `publish`.

        Args:
            source: Where it is.
            name: Its name.
            known: What is known of it.
            old: The file that it replaces; None if there is none.
            upload_id: Of the upload that publishes it, if there is one.
            overwrite: Whether that file may be replaced.
        """
        # Two links of one file are left by a process that was killed in `create_from`; to rename one does nothing.
        is_begun = old is not None and os.path.samestat(old, known.status)
        if old is not None and not overwrite and not is_begun:
            raise already_exists(name)
        with disk.full_disk_is_typed(FULL, name), self._places.group() as group:
            self.uploads.with_room(lambda: self._records.write(name, known, upload_id, old))
            try:
                place, status = self._places.put(source, name, group, overwrite=overwrite, is_begun=is_begun)
            except FileExistsError:
                raise already_exists(name) from None
            self._places.sync(name, place, group)
        published = known if status is None else replace(known, status=status)
        self._records.note(name, published)
        return published

    def _info(self, name: str, status: os.stat_result) -> FileInfo:
        content = self._records.content(name, status)
        return FileInfo(name, status.st_size, content.etag, status.st_mtime, content.digest)

    def _clean(self) -> None:
        for entry in entries(self._scratch):
            disk.remove(entry.path)
        os.utime(self._lock_path)  # takes no room on a full disk
        self.uploads.clean(os.stat(self._lock_path).st_mtime)
        moved = self._places.move_to_paths()
        self._places.count_encoded()
        if moved:
            _log.info("%s: %d files with encoded names were moved to their paths", self._root, moved)
        for key in self._records.fingerprints():
            name = self._records.name_of(key)
            if name is None or not self.exists(name):
                self._records.remove(key)
        self._made.clean()
        for entry in entries(self._places.encoded):
            if self._places.name_of(entry.name) is None:
                _log.warning("%s isn't served: its record is lost, and with it the name", entry.path)


def is_same(fd: int, opened: os.stat_result) -> bool:
    """Whether a file has the content that it was opened with, as far as its status tells."""
    status = os.fstat(fd)
    return (status.st_size, status.st_mtime_ns) == (opened.st_size, opened.st_mtime_ns)


def read_same(fd: int, opened: os.stat_result, length: int, offset: int, name: str) -> bytes:
    """Up to `length` bytes of the content with which a file was opened; Changed if another program has changed it."""
    expected = max(0, min(length, opened.st_size - offset))
    data = disk.read_at(fd, expected, offset)
    if len(data) < expected or not is_same(fd, opened):
        raise Changed(f"{name!r} was changed while it was read", name=name)
    return data


def _by_kind(counted: tuple[Unserved, int]) -> str:
    return counted[0].value


def _status(place: Place) -> os.stat_result:
    assert place.status is not None, "`Places.find` finds files only"
    return place.status
