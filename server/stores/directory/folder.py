"""A folder on a disk as a place for files and unfinished uploads: what lies where, and in which order it gets there.

Everything here blocks and knows nothing of asyncio; `server.stores.directory.store` calls it in threads, and ensures
that no two calls about one name, or about one upload, overlap.

::

    root/
        report.csv              a file whose name can be a directory's entry (`names.is_plain`)
        .rxfiles/               the store's own; everything else belongs to people
            names/              files whose name can't, or whose place is taken by something else: see `names.encode`
            records/            <SHA-256 of the name>.json: the full name, and the content's digest
            parts/              <SHA-256 of the upload_id>.part, the bytes so far, and .json, what they are to become
            tmp/                records being written
            lock                held while a process uses the folder

Nothing is ever written in the place of a file: a content is written as a part, synced, and renamed. A process may be
killed between any two steps:

- An upload exists while its `.part` does. Its `.json` is written before that, and removed after it.
- A file's record is written before the file, and holds the digest of both the new and the old content, each under what
  the file system says of it; so the content that is there finds its digest, and no other content does. A file that was
  written by hand has no digest.
- A file that is moved has its new name's record before it has the name, and loses the old name's record last. Where
  nothing may be overwritten it may be left with both names; to move it again ends that.
- A part with two names was published by a link, and its own name is what is left of that.

What a killed process leaves behind is removed by the next `open`.
"""

import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from shared.errors import Changed, NotFound
from shared.files import disk
from shared.protocol.wire import FileInfo

from ..failures import FULL
from ..parts import already_exists
from . import names
from .folder_lock import FolderLock
from .places import RESERVED, Places
from .records import Content, Records, entries, etag_of
from .unfinished import UnfinishedUploads, UploadFile

__all__ = ["Folder"]

_log = logging.getLogger(__name__)


class Folder:
    """The files of one folder.

    Args:
        path: The folder; made if it isn't there.
        read_only: Whether nothing is written to it, not even a lock.

    Attributes:
        uploads: The unfinished ones.
    """

    def __init__(self, path: str, *, read_only: bool = False) -> None:
        root = os.path.abspath(path)
        self._read_only = read_only
        self._own = os.path.join(root, RESERVED)
        self._scratch = os.path.join(self._own, "tmp")
        self._records = Records(os.path.join(self._own, "records"), self._scratch)
        self._places = Places(root, os.path.join(self._own, "names"), self._records)
        self.uploads = UnfinishedUploads(os.path.join(self._own, "parts"), self._scratch)
        self._lock_path = os.path.join(self._own, "lock")
        self._lock = FolderLock(root, None if read_only else self._lock_path)
        self._reopening = threading.Lock()

    def open(self) -> None:
        """Locks the folder and removes what a killed process left behind; BlockingIOError if another one uses it."""
        if self._read_only:
            self._lock.take()
            return
        root = self._places.root
        is_new = not os.path.isdir(root)
        for path in (self._places.encoded, self._records.path, self.uploads.path, self._scratch):
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
            self.close()
            raise

    def close(self) -> None:
        """Unlocks it."""
        self._lock.release()

    def check(self) -> None:
        """Opens the folder that is in the place of the one that was opened, unless that is still there.

        Raises:
            OSError: There is none, or it can't be opened.
        """
        if self._lock.is_there():
            return
        with self._reopening:
            if self._lock.is_there():
                return  # another thread has done it
            self._lock.check_place()
            self.close()
            self.open()
        _log.warning("%s is there again, and served", self._places.root)

    def stat(self, name: str) -> FileInfo:
        """What is known of a file; NotFound if there is none."""
        return self._info(name, self._places.find(name)[1])

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self._places.find(name)
        except NotFound:
            return False
        return True

    def open_file(self, name: str) -> tuple[int, FileInfo]:
        """A descriptor of the file and what is known of it; NotFound if there is none."""
        path, _ = self._places.find(name)
        fd = disk.open_to_read(path)
        if fd is None:
            raise NotFound.for_name(name)
        try:
            return fd, self._info(name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise

    def list(self, prefix: str) -> Sequence[FileInfo]:
        """The files whose name starts with `prefix`, by name."""
        found = dict(self._places.files(prefix))
        return [self._info(name, found[name]) for name in sorted(found)]

    def delete(self, name: str, if_match: str | None) -> FileInfo:
        """Removes a file; NotFound if there is none, Changed if its etag isn't `if_match`."""
        path, info = self._matching(name, if_match)
        try:
            os.unlink(path)
        except FileNotFoundError:
            raise NotFound.for_name(name) from None
        self._records.remove(names.fingerprint(name))
        disk.sync_folder(os.path.dirname(path))
        return info

    def move(self, source: str, target: str, *, overwrite: bool, if_match: str | None) -> FileInfo:
        """Renames a file; see `Store.move`."""
        path, info = self._matching(source, if_match)
        if source == target:
            return info
        try:
            self._place(path, target, info.digest, None, overwrite=overwrite, etag=info.etag)
        except FileNotFoundError:
            if os.path.lexists(path):
                raise  # something else is missing
            raise NotFound.for_name(source) from None
        disk.sync_folder(os.path.dirname(path))
        self._records.remove(names.fingerprint(source))
        return replace(info, name=target)

    def seal(self, upload: UploadFile, modified: float | None) -> None:
        """Seals an upload that is going to be published with that time."""
        try:
            old = self._places.find(upload.spec.name)[1]
        except NotFound:
            old = None
        upload.seal(modified, old)

    def publish(self, upload: UploadFile, *, overwrite: bool) -> FileInfo:
        """Makes the sealed upload a file; AlreadyExists if there is one, and `overwrite` is False."""
        name, content = upload.spec.name, upload.content
        status = self._place(content.path, name, content.digest.value, upload.spec.upload_id, overwrite=overwrite)
        upload.forget()
        return self._info(name, status)

    def published(self, upload_id: str, name: str) -> FileInfo | None:
        """The file, if it is the one that this upload published."""
        try:
            _, status = self._places.find(name)
        except NotFound:
            return None
        return self._info(name, status) if self._records.publisher(name, status) == upload_id else None

    def orphans(self) -> Sequence[str]:
        """The names that have a record but no file."""
        kept = self._fingerprints()
        found = (self._records.name_of(key) for key in self._records.fingerprints() if key not in kept)
        return [name for name in found if name is not None]

    def drop_orphan(self, name: str) -> None:
        """Removes the record of a name that has no file."""
        if not self.exists(name):
            self._records.remove(names.fingerprint(name))

    def _matching(self, name: str, if_match: str | None) -> tuple[str, FileInfo]:
        """Where a file is and what is known of it; NotFound if there is none, Changed if its etag isn't `if_match`."""
        path, status = self._places.find(name)
        info = self._info(name, status)
        if if_match is not None and if_match != info.etag:
            raise Changed(f"{name!r} has changed", name=name)
        return path, info

    def _place(
        self,
        path: str,
        name: str,
        digest: str | None,
        upload_id: str | None,
        *,
        overwrite: bool,
        etag: str | None = None,
    ) -> os.stat_result:
        """Makes what is at `path` the file of that name, its record first; AlreadyExists as for `publish`."""
        with disk.full_disk_is_typed(FULL, name):
            status = os.lstat(path)
            try:
                old = self._places.find(name)[1]
            except NotFound:
                old = None
            # Two links of one file are left by a process that was killed in `create_from`; to rename one does nothing.
            is_begun = old is not None and os.path.samestat(old, status)
            if old is not None and not overwrite and not is_begun:
                raise already_exists(name)
            record = Content(status, etag or digest or etag_of(status), digest)
            self.uploads.with_room(lambda: self._records.write(name, record, upload_id, old))
            target = self._places.target(name)
            if is_begun:
                os.unlink(path)
            else:
                try:
                    self.uploads.with_room(lambda: (os.replace if overwrite else disk.create_from)(path, target))
                except FileExistsError:
                    raise already_exists(name) from None
            disk.sync_folder(os.path.dirname(target))
            status = os.lstat(target)
            self._records.note(name, status)
        return status

    def _info(self, name: str, status: os.stat_result) -> FileInfo:
        content = self._records.content(name, status)
        return FileInfo(name, status.st_size, content.etag, status.st_mtime, content.digest)

    def _fingerprints(self) -> set[str]:
        return {names.fingerprint(name) for name, _ in self._places.files()}

    def _clean(self) -> None:
        for entry in entries(self._scratch):
            disk.remove(entry.path)
        os.utime(self._lock_path)  # takes no room on a full disk
        self.uploads.clean(os.stat(self._lock_path).st_mtime)
        kept = self._fingerprints()
        for key in self._records.fingerprints():
            if key not in kept:
                self._records.remove(key)
        for entry in entries(self._places.encoded):
            if (key := names.fingerprint_in(entry.name)) is not None and key not in kept:
                _log.warning("%s isn't served: its record is lost, and with it the name", entry.path)
