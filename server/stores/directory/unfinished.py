"""The unfinished uploads of a served folder. Everything blocks."""

import os
import time
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

    Args:
        path: The folder with both.
        scratch: See `write_json`.
    """

    def __init__(self, path: str, scratch: str) -> None:
        self.path: Final = path
        self._scratch = scratch

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

    def record(self, key: str, spec: UploadSpec) -> None:
        """Records what the bytes of an upload are to become."""
        write_json(self.paths(key)[1], asdict(spec), scratch=self._scratch, durable=False)

    def drop(self, key: str) -> None:
        """Removes an upload."""
        for path in self.paths(key):
            disk.remove(path)

    def clean(self) -> None:
        """Removes what isn't an upload."""
        for key in {key_of(entry) for entry in entries(self.path)}:
            if self.find(key) is None:
                self.drop(key)

    def stale(self, oldest: float) -> Sequence[str]:
        """The keys of the uploads that got no bytes since `oldest`, in seconds since the epoch."""
        return [key for key in {key_of(entry) for entry in entries(self.path)} if self.is_stale(key, oldest)]

    def is_stale(self, key: str, oldest: float) -> bool:
        """Whether the upload got no bytes since `oldest`."""
        part, record = self.paths(key)
        status = disk.regular_file(part) or disk.regular_file(record)
        return status is not None and status.st_mtime <= oldest


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

    def open(self) -> bool:
        """Opens the bytes that are there, or starts anew; returns as `PartFile.catch_up`.

        Raises InvalidRequest if they are another upload's, and StorageFull if there is no room even to begin.
        """
        path, _ = self._uploads.paths(self._key)
        with disk.full_disk_is_typed(FULL, self.spec.name):
            found = self._uploads.find(self._key)
            if found is None:
                self._uploads.drop(self._key)
                self._uploads.record(self._key, self.spec)
                self.content.open(path, os.O_CREAT | os.O_EXCL)
            else:
                self.spec.check_same(found[0])
                self.content.open(path, 0)
                os.utime(path)  # for `is_stale`: it is in use again
        return self.content.catch_up()

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
        disk.remove(self._uploads.paths(self._key)[1])

    def drop(self) -> None:
        """Closes the file, and removes the upload."""
        self.content.close()
        self._uploads.drop(self._key)
