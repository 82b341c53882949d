"""The unfinished uploads of a served folder. Everything blocks."""

import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import partial
from typing import Final, TypeVar

from shared.errors import IntegrityError, StorageFull
from shared.files import disk
from shared.files.part import PartFile

from ..failures import FULL, typed
from ..parts import UploadSpec, no_upload
from . import names
from .records import entries, key_of, read_json, write_json

__all__ = ["UnfinishedUploads", "UploadFile"]

T = TypeVar("T")


class UnfinishedUploads:
    """Two files for each upload, whose key is the SHA-256 of its id: the bytes so far, and what they are to become.

    An upload is open, or idle: then it is as old as the time since it was closed, by a clock that is never set. The age
    of what another process has left comes from the times that the file system gives to files.

    What open uploads are going to need is reserved, as far as their sizes are known. Where the disk has no room, idle
    uploads are dropped, the oldest first.

    Args:
        path: The folder with both.
        scratch: See `write_json`.
    """

    def __init__(self, path: str, scratch: str) -> None:
        self.path: Final = path
        self._scratch = scratch
        # Guards what follows, and the files of idle uploads: threads open and drop them.
        self._lock: Final = threading.RLock()
        self._open: dict[str, UploadFile] = {}
        # When each idle upload was closed, by `time.monotonic`; the oldest first.
        self._idle: OrderedDict[str, float] = OrderedDict()

    def paths(self, key: str) -> tuple[str, str]:
        """Where the bytes of an upload are, and its record."""
        base = os.path.join(self.path, key)
        return f"{base}.part", f"{base}.json"

    def find(self, key: str) -> tuple[UploadSpec, os.stat_result] | None:
        """An upload and the status of its bytes; None if there is none."""
        part, record = self.paths(key)
        status = disk.regular_file(part)
        if status is None or status.st_nlink > 1:
            return None
        match read_json(record):
            case {
                "upload_id": str(upload_id),
                "name": str(name),
                "size": int() | None as size,
                "algorithm": str() | None as algorithm,
            } if names.fingerprint(upload_id) == key:
                return UploadSpec(upload_id, name, size, algorithm), status
            case _:
                return None

    def count(self) -> int:
        """How many there are, open or not."""
        return sum(entry.name.endswith(".part") for entry in os.scandir(self.path))

    def durable(self, upload_id: str, name: str | None = None) -> int:
        """How many bytes an upload has, of the file `name` if that is given; raises NotFound if there is none."""
        found = self.find(names.fingerprint(upload_id))
        if found is None or name not in (None, found[0].name):
            raise no_upload(upload_id, name)
        return found[1].st_size

    def discard(self, upload_id: str) -> int:
        """Removes an upload that isn't open, and returns how many bytes it had; raises NotFound if there is none."""
        durable = self.durable(upload_id)
        self.drop(names.fingerprint(upload_id))
        return durable

    def claim(self, upload: "UploadFile") -> bool:
        """Takes an upload that is to be opened; whether it is there.

        Raises InvalidRequest if what is there is another upload's, and StorageFull if there is no room for the rest.
        """
        key, spec = upload.key, upload.spec
        with self._lock:
            found = self.find(key)
            if found is not None:
                spec.check_same(found[0])
            upload.found_bytes = 0 if found is None else found[1].st_size
            self._idle.pop(key, None)
            try:
                if spec.size is not None:
                    self._make_room(spec.size - upload.found_bytes, spec.name)
            except BaseException:
                if found is not None:
                    self.set_idle(key)
                raise
            self._open[key] = upload
        return found is not None

    def record(self, upload: "UploadFile") -> None:
        """Records what the bytes of a new upload are to become."""
        for path in self.paths(upload.key):
            disk.remove(path)
        path, record = self.paths(upload.key)[1], asdict(upload.spec)
        self.with_room(lambda: write_json(path, record, scratch=self._scratch, durable=False))

    def with_room(self, function: Callable[[], T]) -> T:
        """Calls a function, again if the disk has no room and an idle upload was dropped."""
        while True:
            try:
                return function()
            except OSError as error:
                if not disk.is_full(error) or not self.drop_oldest():
                    raise

    def drop_oldest(self) -> bool:
        """Removes the upload that was idle for longest; whether there was one."""
        with self._lock:
            key = next(iter(self._idle), None)
            if key is not None:
                self._drop(key)
        return key is not None

    def _make_room(self, nbytes: int, name: str) -> None:
        while nbytes > 0 and (free := disk.free_bytes(self.path)) is not None:
            lacking = nbytes + sum(upload.missing for upload in self._open.values()) - free
            if lacking <= 0:
                return
            if not (keys := self._oldest(lacking)):
                raise StorageFull(f"the server's disk has no room for {nbytes} more bytes", name=name)
            for key in keys:
                self._drop(key)

    def _oldest(self, nbytes: int) -> Sequence[str]:
        """The oldest idle uploads that take so many bytes; none if all of them take less."""
        keys: list[str] = []
        for key in self._idle:
            keys.append(key)
            status = disk.regular_file(self.paths(key)[0])
            nbytes -= 0 if status is None else disk.taken_bytes(status)
            if nbytes <= 0:
                return keys
        return []

    def set_idle(self, key: str) -> None:
        """An upload was closed."""
        with self._lock:
            self._open.pop(key, None)
            self._idle[key] = time.monotonic()
            self._idle.move_to_end(key)

    def forget(self, key: str) -> None:
        """Removes the record of an upload whose bytes have become a file."""
        with self._lock:
            self._open.pop(key, None)
        disk.remove(self.paths(key)[1])

    def drop(self, key: str) -> None:
        """Removes an upload, which isn't being opened or written."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._idle.pop(key, None)
        self._open.pop(key, None)
        for path in self.paths(key):
            disk.remove(path)

    def clean(self, now_there: float) -> None:
        """Finds the uploads that another process has left, and removes what isn't one.

        Given is the time by the file system's clock, which may be another machine's.
        """
        now = time.monotonic()
        found: list[tuple[float, str]] = []
        for key in {key_of(entry) for entry in entries(self.path)} - self._open.keys():
            upload = self.find(key)
            if upload is None:
                self.drop(key)
            else:
                found.append((now - max(0.0, now_there - upload[1].st_mtime), key))
        with self._lock:
            self._idle = OrderedDict((key, since) for since, key in sorted(found))

    def stale(self, oldest: float) -> Sequence[str]:
        """The keys of the uploads that are idle since before `oldest`, by `time.monotonic`."""
        with self._lock:
            # What couldn't be removed, as the folder wasn't there, may be there again.
            found = {key_of(entry) for entry in entries(self.path)}
            self._idle.update(dict.fromkeys(found - self._idle.keys() - self._open.keys(), time.monotonic()))
            return list(itertools.takewhile(lambda key: self._idle[key] < oldest, self._idle))

    def is_stale(self, key: str, oldest: float) -> bool:
        """Whether the upload is idle since before `oldest`."""
        return self._idle.get(key, oldest) < oldest


class UploadFile:
    """The bytes of one upload. Used by one thread at a time.

    Args:
        uploads: Where it is.
        spec: What it is to become.
        executor: The threads to write it with.

    Attributes:
        key: Its key among them.
        content: The bytes, and their digest.
        found_bytes: How many of them were there when it was opened.
    """

    def __init__(self, uploads: UnfinishedUploads, spec: UploadSpec, executor: Executor | None = None) -> None:
        self.spec: Final = spec
        on_failure = partial(_on_failure, uploads, spec.name)
        self.content: Final = PartFile(
            spec.algorithm, full=FULL, name=spec.name, executor=executor, on_failure=on_failure
        )
        self.key: Final = names.fingerprint(spec.upload_id)
        self._uploads = uploads
        self.found_bytes = 0
        self._is_claimed = False

    @property
    def missing(self) -> int:
        """How many bytes are still to come, as far as that is known."""
        return (
            0 if self.spec.size is None else max(0, self.spec.size - max(self.found_bytes, self.content.digest.length))
        )

    @property
    def found_no_room(self) -> bool:
        """Whether its last write did."""
        return self.content.full_at == self.content.digest.length

    def open(self) -> bool:
        """Opens the bytes that are there, or starts anew; returns as `PartFile.catch_up`.

        Raises InvalidRequest if they are another upload's, and StorageFull if there is no room even to begin.
        """
        path, _ = self._uploads.paths(self.key)
        with disk.full_disk_is_typed(FULL, self.spec.name):
            is_there = self._uploads.claim(self)
            self._is_claimed = True
            flags = 0 if is_there else os.O_CREAT | os.O_EXCL
            try:
                if not is_there:
                    self._uploads.record(self)
                self._uploads.with_room(lambda: self.content.open(path, flags, mode=0o666))
            except BaseException:
                if not is_there:
                    self.drop()
                raise
        return self.content.catch_up()

    def close(self) -> None:
        """Closes the file; the upload is idle then. Closing twice is fine."""
        try:
            self.content.close()
        finally:
            if self._is_claimed:
                self._is_claimed = False
                self._uploads.set_idle(self.key)

    def seal(self, modified: float | None = None, old: os.stat_result | None = None) -> None:
        """Makes the bytes survive a crash of the machine, and closes the file.

        Its time is `modified`, or now. It has the permission bits, and if possible the owner, of the `old` file that it
        is to replace; else those that the process's umask leaves to a new one.

        Raises IntegrityError if another program wrote to it. It is dropped then.
        """
        path, length = self.content.path, self.content.digest.length
        with disk.full_disk_is_typed(FULL, self.spec.name):
            try:
                if old is not None:
                    self.content.copy_access(old)
                self.content.set_modified(modified)
                self.content.sync()
            except OSError:
                self.drop()  # the system forgets what it couldn't write; a second try would succeed without it
                raise
        self.content.close()
        size = os.lstat(path).st_size
        if size != length:
            self.drop()
            raise IntegrityError(f"{size} bytes are stored, {length} arrived", name=self.spec.name)

    def forget(self) -> None:
        """Removes the record, when the bytes have become a file."""
        self._is_claimed = False
        self._uploads.forget(self.key)

    def drop(self) -> None:
        """Closes the file, and removes the upload."""
        self._is_claimed = False
        self.content.close()
        self._uploads.drop(self.key)


def _on_failure(uploads: UnfinishedUploads, name: str, error: OSError) -> Exception | None:
    """What is raised for a write that failed; None if it is to be tried again, as an idle upload made room."""
    if disk.is_full(error) and uploads.drop_oldest():
        return None
    return typed(error, name) or error
