"""A folder on a disk as a place for files and unfinished uploads: what lies where, and in which order it gets there.

Everything here blocks and knows nothing of asyncio; `server.directory_store` calls it in threads, and sees to it that
no two calls about one name, or about one upload, overlap.

::

    root/
        report.csv              a file whose name can be a directory's entry (`names.is_plain`)
        .rxfiles/               ours; everything else is a person's
            names/              files whose name can't, or whose place somebody else has: see `names.encode`
            records/            <SHA-256 of the name>.json: the full name, and the content's digest
            parts/              <SHA-256 of the upload_id>.part, the bytes so far, and .json, what they are to become
            tmp/                records being written
            lock                held while a process uses the folder

Nothing is ever written where a file is: a content is written as a part, synced, and renamed. A process may be killed
between any two steps:

- An upload exists while its `.part` does. Its `.json` is written before and removed after that.
- A file's record is written before the file, and holds the digest of both the new and the old content, each under the
  size, time and inode of the one it belongs to; so whichever is there finds its own, and no other ever does. A file
  that was written by hand has no digest.
- A part with two names was published by a link, and its own name is what is left of that.

What such a death leaves behind is removed by the next `open`.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import count
from typing import Final, cast

from shared.errors import Changed, IntegrityError, NotFound
from shared.files import disk
from shared.files.lane import move_from
from shared.protocol.digest import Count, Digest
from shared.protocol.wire import FileInfo

from ..parts import UploadSpec, already_exists
from . import names

__all__ = ["Folder", "PartFile"]

_log = logging.getLogger(__name__)

_RESERVED: Final = ".rxfiles"

# A listing of more files than these reads the records of all of them again.
_DIGESTS_IN_MEMORY: Final = 8192

_SLICE_BYTES: Final = 1024 * 1024
_SLICES_A_CALL: Final = 16


class Folder:
    """The files of one folder.

    Args:
        path: The folder; made if it isn't there.
    """

    def __init__(self, path: str) -> None:
        self._root = os.path.abspath(path)
        ours = os.path.join(self._root, _RESERVED)
        self._names = os.path.join(ours, "names")
        self._records = os.path.join(ours, "records")
        self._parts = os.path.join(ours, "parts")
        self._tmp = os.path.join(ours, "tmp")
        self._lock_path = os.path.join(ours, "lock")
        self._lock: int | None = None
        self._tells_apart = True
        self._serial = count()
        self._digest_of = lru_cache(_DIGESTS_IN_MEMORY)(self._read_digest)

    def open(self) -> None:
        """Locks the folder and removes what a killed process left behind.

        Raises:
            BlockingIOError: Another process uses it.
            OSError: It can't be made, read or written.
        """
        is_new = not os.path.isdir(self._root)
        for path in (self._names, self._records, self._parts, self._tmp):
            os.makedirs(path, exist_ok=True)
        # What is published in them later must be found again, even after a power failure.
        disk.sync_folder(os.path.dirname(self._names))
        disk.sync_folder(self._root)
        if is_new:
            disk.sync_folder(os.path.dirname(self._root))
        try:
            self._lock = disk.lock_file(self._lock_path)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, "another process serves this folder", self._root) from None
        try:
            self._tells_apart = self._probe()
            self._clean()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unlocks it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    # Files

    def stat(self, name: str) -> FileInfo:
        """What is known of a file; NotFound if there is none."""
        _, status = self._find(name)
        return self._info(name, status)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self._find(name)
        except NotFound:
            return False
        return True

    def open_file(self, name: str) -> tuple[int, FileInfo]:
        """A descriptor of the file and what is known of it; NotFound if there is none."""
        path, _ = self._find(name)
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
        found = dict(self._files(prefix))
        return [self._info(name, found[name]) for name in sorted(found)]

    def delete(self, name: str, if_match: str | None) -> FileInfo:
        """Removes a file; NotFound if there is none, Changed if its etag isn't `if_match`."""
        path, status = self._find(name)
        info = self._info(name, status)
        if if_match is not None and if_match != info.etag:
            raise Changed(f"{name!r} has changed", name=name)
        try:
            os.unlink(path)
        except FileNotFoundError:
            raise NotFound.for_name(name) from None
        disk.remove(self._record_path(name))
        disk.sync_folder(os.path.dirname(path))
        return info

    def publish(self, path: str, spec: UploadSpec, digest: str | None, *, overwrite: bool) -> FileInfo:
        """Makes the closed and synced file at `path`, on the same disk, the content of `spec.name`.

        Its digest is remembered where it is known.

        Raises:
            AlreadyExists: `overwrite` is False, and there is a file of that name.
        """
        name = spec.name
        if not overwrite and self.exists(name):
            raise already_exists(name)
        status = os.lstat(path)
        self._write_digest(name, _signature(status), digest, spec.upload_id)
        target = self._target(name)
        if overwrite:
            os.replace(path, target)
        else:
            try:
                disk.create_from(path, target)
            except FileExistsError:
                raise already_exists(name) from None
        disk.sync_folder(os.path.dirname(target))
        return self._info(name, status)

    def published(self, upload_id: str, name: str) -> FileInfo | None:
        """The file, if it is the one that this upload published."""
        try:
            _, status = self._find(name)
        except NotFound:
            return None
        by = self._record_of(name, "published").get(_signature(status))
        return self._info(name, status) if by == upload_id else None

    # Unfinished uploads

    def part_paths(self, key: str) -> tuple[str, str]:
        """Where the bytes, and what they are to become, of an upload are; `key` is its id's fingerprint."""
        base = os.path.join(self._parts, key)
        return f"{base}.part", f"{base}.json"

    def read_part(self, key: str) -> tuple[UploadSpec, os.stat_result] | None:
        """An unfinished upload; None if there is none."""
        part, record = self.part_paths(key)
        status = disk.regular_file(part)
        if status is None or status.st_nlink > 1:
            return None
        match disk.read_record(record):
            case {
                "upload_id": str(upload_id),
                "name": str(name),
                "size": int() | None as size,
                "algorithm": str() | None as algorithm,
            } if names.fingerprint(upload_id) == key:
                return UploadSpec(upload_id, name, size, algorithm), status
            case _:
                return None

    def write_part_record(self, key: str, spec: UploadSpec) -> None:
        """Says what the bytes of an upload are to become."""
        disk.write_record(self.part_paths(key)[1], asdict(spec), temporary=self._temporary(), durable=False)

    def drop_part(self, key: str) -> None:
        """Forgets an upload."""
        for path in self.part_paths(key):
            disk.remove(path)

    def stale_parts(self, oldest: float) -> Sequence[str]:
        """The keys of the uploads that nobody has added to since `oldest`, in seconds since the epoch."""
        return [key for key in {_key(entry) for entry in _entries(self._parts)} if self.is_stale_part(key, oldest)]

    def is_stale_part(self, key: str, oldest: float) -> bool:
        """Whether nobody has added to the upload since `oldest`."""
        part, record = self.part_paths(key)
        status = disk.regular_file(part) or disk.regular_file(record)
        return status is not None and status.st_mtime <= oldest

    # Records

    def orphans(self) -> Sequence[str]:
        """The names that have a record but no file."""
        kept = {names.fingerprint(name) for name, _ in self._files()}
        found: list[str] = []
        for entry in _entries(self._records):
            key = _key(entry)
            if key not in kept and (name := self._name_in_record(key)) is not None:
                found.append(name)
        return found

    def drop_orphan(self, name: str) -> None:
        """Removes the record of a name that has no file."""
        if not self.exists(name):
            disk.remove(self._record_path(name))

    def _record_path(self, name: str) -> str:
        return os.path.join(self._records, f"{names.fingerprint(name)}.json")

    def _name_in_record(self, key: str) -> str | None:
        match disk.read_record(os.path.join(self._records, f"{key}.json")):
            case {"name": str(name)} if names.fingerprint(name) == key:
                return name
            case _:
                return None

    def _read_digest(self, name: str, signature: str) -> str | None:
        return self._record_of(name, "digests").get(signature)

    def _record_of(self, name: str, kind: str) -> Mapping[str, str]:
        """What the name's record says of each content that has been there, by signature."""
        record = disk.read_record(self._record_path(name))
        said = record.get(kind)
        return cast("dict[str, str]", said) if record.get("name") == name and isinstance(said, dict) else {}

    def _write_digest(self, name: str, signature: str, digest: str | None, upload_id: str) -> None:
        digests = {} if digest is None else {signature: digest}
        try:
            old = _signature(self._find(name)[1])
        except NotFound:
            pass
        else:
            if (old_digest := self._digest_of(name, old)) is not None:
                digests[old] = old_digest
        record = {"name": name, "digests": digests, "published": {signature: upload_id}}
        disk.write_record(self._record_path(name), record, temporary=self._temporary(), durable=True)

    def _info(self, name: str, status: os.stat_result) -> FileInfo:
        signature = _signature(status)
        digest = self._digest_of(name, signature)
        return FileInfo(name, status.st_size, digest or signature, status.st_mtime, digest)

    # Places

    def _find(self, name: str) -> tuple[str, os.stat_result]:
        """Where the file is; the encoded place first, since nothing gets there but by us."""
        encoded = os.path.join(self._names, names.encode(name))
        if (status := disk.regular_file(encoded)) is not None:
            return encoded, status
        if self._may_be_plain(name):
            plain = os.path.join(self._root, name)
            status = disk.regular_file(plain)
            if status is not None and self._is_exact(name):
                return plain, status
        raise NotFound.for_name(name)

    def _target(self, name: str) -> str:
        """Where the file is to be: where it is, else at its plain place if that may be had and is free."""
        try:
            return self._find(name)[0]
        except NotFound:
            plain = os.path.join(self._root, name)
        # A file system that folds names may give back those that aren't ASCII in another form than it was given.
        is_kept = self._tells_apart or name.isascii()
        if self._may_be_plain(name) and is_kept and not os.path.lexists(plain):
            return plain
        return os.path.join(self._names, names.encode(name))

    def _may_be_plain(self, name: str) -> bool:
        return names.is_plain(name) and (name.isascii() or sys.getfilesystemencoding() == "utf-8")

    def _is_exact(self, name: str) -> bool:
        """Whether the entry found under `name` is called so, not only alike."""
        return self._tells_apart or any(entry.name == name for entry in _entries(self._root))

    def _files(self, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """Every file whose name starts with `prefix`; if a name comes twice, the later one counts."""
        for entry in _entries(self._root):
            # Whatever isn't wanted isn't asked for: where others are busy, a system call may wait for the interpreter.
            is_wanted = entry.name.startswith(prefix) and self._may_be_plain(entry.name)
            if is_wanted and (status := disk.regular_file(entry.path)) is not None:
                yield entry.name, status
        for entry in _entries(self._names):
            key = names.fingerprint_in(entry.name)
            name = names.decode(entry.name) if key is None else self._name_in_record(key)
            if name is None or not name.startswith(prefix):
                continue
            if (status := disk.regular_file(entry.path)) is not None:
                yield name, status

    def _probe(self) -> bool:
        """Whether the file system tells names apart that differ in case or normalisation only, and keeps them so."""
        given, *alike = ("a\N{LATIN SMALL LETTER E WITH ACUTE}", "A\N{LATIN SMALL LETTER E WITH ACUTE}", "ae\u0301")
        path = os.path.join(self._tmp, given)
        try:
            with open(path, "wb"):
                pass
        except (OSError, UnicodeEncodeError):
            return False
        try:
            return not any(os.path.lexists(os.path.join(self._tmp, other)) for other in alike)
        finally:
            os.unlink(path)

    def _temporary(self) -> str:
        return os.path.join(self._tmp, str(next(self._serial)))

    def _clean(self) -> None:
        for entry in _entries(self._tmp):
            disk.remove(entry.path)
        for key in {_key(entry) for entry in _entries(self._parts)}:
            if self.read_part(key) is None:
                self.drop_part(key)
        kept = {names.fingerprint(name) for name, _ in self._files()}
        for entry in _entries(self._records):
            if _key(entry) not in kept:
                disk.remove(entry.path)
        for entry in _entries(self._names):
            if (key := names.fingerprint_in(entry.name)) is not None and key not in kept:
                _log.warning("%s isn't served: its record is lost, and with it the name", entry.path)


class PartFile:
    """The durable bytes of one upload, and their running digest. One thread at a time.

    Args:
        folder: Where it is.
        spec: What it is to become.

    Attributes:
        digest: Of the bytes so far; behind them only while `catch_up` has something to do.
    """

    def __init__(self, folder: Folder, spec: UploadSpec) -> None:
        self.spec = spec
        self.digest = self._new_digest()
        self._folder = folder
        self._key = names.fingerprint(spec.upload_id)
        self._path, self._record = folder.part_paths(self._key)
        self._fd: int | None = None
        self._inode: int | None = None

    @disk.full_disk_is_typed()
    def open(self) -> bool:
        """Opens what is there, or starts anew; whether the digest knows all of it, else `catch_up` is to be called.

        Raises:
            InvalidRequest: What is there is another upload's.
            StorageFull: There is no room even to begin.
        """
        found = self._folder.read_part(self._key)
        if found is None:
            self._folder.drop_part(self._key)
            self._folder.write_part_record(self._key, self.spec)
            self._fd = disk.open_to_extend(self._path, create=True)
        else:
            self.spec.check_same(found[0])
            self._fd = disk.open_to_extend(self._path, create=False)
            os.utime(self._path)  # somebody wants it: it is as good as new to `sweep`
        status = os.fstat(self._fd)
        if status.st_ino != self._inode or status.st_size < self.digest.length:
            self.digest = self._new_digest()
        self._inode = status.st_ino
        if isinstance(self.digest, Count):
            self.digest.length = status.st_size
        return self.digest.length == status.st_size

    def catch_up(self) -> bool:
        """Reads some of what the digest doesn't know yet; whether it knows all now."""
        for _ in range(_SLICES_A_CALL):
            data = disk.read_at(self._open_fd(), _SLICE_BYTES, self.digest.length)
            self.digest.update(data)
            if len(data) < _SLICE_BYTES:
                return True
        return False

    @disk.full_disk_is_typed()
    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Adds to the end. Whatever is raised, the digest is that of the bytes that are there by then."""
        fd = self._open_fd()
        views = [memoryview(chunk) for chunk in chunks if chunk]
        first = 0
        while first < len(views):
            written = disk.write_at(fd, views[first : first + disk.MAX_VECTORS], self.digest.length)
            while written:
                done = views[first][:written]
                self.digest.update(done)
                written -= len(done)
                if len(done) == len(views[first]):
                    first += 1
                else:
                    views[first] = views[first][len(done) :]

    @disk.full_disk_is_typed()
    def seal(self) -> None:
        """Makes the bytes survive the machine, and closes the file.

        Raises:
            IntegrityError: Somebody else wrote to it. It is dropped then.
        """
        try:
            now = time.time_ns()
            os.utime(self._path, ns=(now, now))
            os.fsync(self._open_fd())
        except OSError:
            self.drop()  # the system forgets what it couldn't write; a second try would succeed without it
            raise
        self.close()
        size = os.lstat(self._path).st_size
        if size != self.digest.length:
            self.drop()
            raise IntegrityError(f"{size} bytes are stored, {self.digest.length} arrived", name=self.spec.name)

    @disk.full_disk_is_typed()
    def publish(self, *, overwrite: bool) -> FileInfo:
        """Makes the sealed bytes the file; see `Folder.publish`."""
        info = self._folder.publish(self._path, self.spec, self.digest.value, overwrite=overwrite)
        disk.remove(self._record)
        return info

    @disk.full_disk_is_typed()
    def write_from(self, pipe: int, nbytes: int) -> None:
        """Adds what a pipe has to the end; for an upload without a digest, since nobody sees the bytes."""
        assert isinstance(self.digest, Count), "the digest must see the bytes"
        fd = self._open_fd()
        while nbytes:
            moved = move_from(pipe, fd, nbytes, self.digest.length)
            self.digest.add(moved)
            nbytes -= moved

    def _new_digest(self) -> Digest:
        return Count() if self.spec.algorithm is None else Digest(self.spec.algorithm)

    def close(self) -> None:
        """Closes the file."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def drop(self) -> None:
        """Closes the file and removes it."""
        self.close()
        self._folder.drop_part(self._key)

    def _open_fd(self) -> int:
        if self._fd is None:
            raise RuntimeError("the part isn't open")
        return self._fd


def _signature(status: os.stat_result) -> str:
    """Tells one content of a file from another without reading it.

    Our own contents get a time with all its digits when they are published; so two never share a signature.
    """
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"


def _entries(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return list(entries)


def _key(entry: os.DirEntry[str]) -> str:
    return os.path.splitext(entry.name)[0]
