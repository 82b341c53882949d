"""The unfinished uploads of a served folder. Everything blocks."""

import itertools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from typing import Final

from shared.errors import IntegrityError
from shared.files import disk
from shared.files.part import PartFile

from ..parts import UploadSpec
from . import names
from .records import entries, key_of, read_json, write_json

__all__ = ["FULL", "UnfinishedUploads", "UploadFile"]

FULL: Final = "the server's disk is full"


class UnfinishedUploads:
    """Two files for each upload, whose key is the SHA-256 of its id: the bytes so far, and what they are to become.

    An upload is open, or idle: then it is as old as the time since it was closed, by a clock that nobody sets. The age
    of what another process has left comes from the times that the file system gives to files.

    Args:
        path: The folder with both.
        scratch: See `write_json`.
    """

    def __init__(self, path: str, scratch: str) -> None:
        self.path: Final = path
        self._scratch = scratch
        # Guards what follows, and the files of idle uploads: threads open and drop them.
        self.lock: Final = threading.Lock()
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

    def claim(self, key: str, spec: UploadSpec) -> bool:
        """Takes an upload that is to be opened, and records a new one; whether it is there. The caller holds `lock`.

        Raises InvalidRequest if what is there is another upload's.
        """
        found = self.find(key)
        if found is not None:
            spec.check_same(found[0])
            self._idle.pop(key, None)
            return True
        self._drop(key)
        write_json(self.paths(key)[1], asdict(spec), scratch=self._scratch, durable=False)
        return False

    def set_idle(self, key: str) -> None:
        """An upload was closed."""
        with self.lock:
            self._idle[key] = time.monotonic()
            self._idle.move_to_end(key)

    def drop(self, key: str) -> None:
        """Removes an upload, which isn't being opened or written."""
        with self.lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._idle.pop(key, None)
        for path in self.paths(key):
            disk.remove(path)

    def clean(self) -> None:
        """Finds the uploads that another process has left, and removes what isn't one."""
        now, now_there = time.monotonic(), self._time_of_files()
        found: list[tuple[float, str]] = []
        for key in {key_of(entry) for entry in entries(self.path)}:
            upload = self.find(key)
            if upload is None:
                self.drop(key)
            else:
                found.append((now - max(0.0, now_there - upload[1].st_mtime), key))
        with self.lock:
            self._idle = OrderedDict((key, since) for since, key in sorted(found))

    def stale(self, oldest: float) -> Sequence[str]:
        """The keys of the uploads that are idle since before `oldest`, by `time.monotonic`."""
        with self.lock:
            return list(itertools.takewhile(lambda key: self._idle[key] < oldest, self._idle))

    def is_stale(self, key: str, oldest: float) -> bool:
        """Whether the upload is idle since before `oldest`."""
        return self._idle.get(key, oldest) < oldest

    def _time_of_files(self) -> float:
        """What a file that is written now has as its time: on a network, it comes from another machine's clock."""
        path = os.path.join(self._scratch, "now")
        try:
            with open(path, "wb") as file:
                return os.fstat(file.fileno()).st_mtime
        finally:
            disk.remove(path)


class UploadFile:
    """The bytes of one upload. Used by one thread at a time.

    Args:
        uploads: Where it is.
        spec: What it is to become.
        executor: The threads to write it with.

    Attributes:
        content: The bytes, and their digest.
    """

    def __init__(self, uploads: UnfinishedUploads, spec: UploadSpec, executor: Executor | None = None) -> None:
        self.spec: Final = spec
        self.content: Final = PartFile(spec.algorithm, full=FULL, name=spec.name, executor=executor)
        self._uploads = uploads
        self._key = names.fingerprint(spec.upload_id)
        self._is_claimed = False

    def open(self) -> bool:
        """Opens the bytes that are there, or starts anew; returns as `PartFile.catch_up`.

        Raises InvalidRequest if they are another upload's, and StorageFull if there is no room even to begin.
        """
        path, _ = self._uploads.paths(self._key)
        with self._uploads.lock, disk.full_disk_is_typed(FULL, self.spec.name):
            is_there = self._uploads.claim(self._key, self.spec)
            self._is_claimed = True
            self.content.open(path, 0 if is_there else os.O_CREAT | os.O_EXCL)
        return self.content.catch_up()

    def close(self) -> None:
        """Closes the file; the upload is idle then. Closing twice is fine."""
        self.content.close()
        if self._is_claimed:
            self._is_claimed = False
            self._uploads.set_idle(self._key)

    def seal(self) -> None:
        """Makes the bytes survive a crash of the machine, and closes the file.

        Raises IntegrityError if another program wrote to it. It is dropped then.
        """
        path, length = self.content.path, self.content.digest.length
        with disk.full_disk_is_typed(FULL, self.spec.name):
            try:
                now = time.time_ns()
                os.utime(path, ns=(now, now))
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
        disk.remove(self._uploads.paths(self._key)[1])

    def drop(self) -> None:
        """Closes the file, and removes the upload."""
        self._is_claimed = False
        self.content.close()
        self._uploads.drop(self._key)
