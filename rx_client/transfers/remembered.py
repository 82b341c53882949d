"""What is remembered of unfinished uploads on this computer, so that the same program goes on when it is run again.

A small file for each, in the user's state folder, says which `upload_id` the server knows the upload by. The file's own
name is a hash of what must be the same for the upload to go on: the server, the file's name there, the path, and the
size and the time of what is at the path. No locks are needed: a file is replaced in one step, and where two runs
overwrite each other's, both uploads go on, and one of them is remembered.
"""

import json
import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final
from uuid import uuid4

import platformdirs

from shared.aio import run_blocking
from shared.errors import InvalidRequest
from shared.protocol.messages import check_upload_id

__all__ = ["UploadRecord", "state_folder"]

_log: Final = logging.getLogger(__name__)

# By then any server has dropped an upload that doesn't go on: its default is a day.
_MAX_AGE_SECONDS: Final = 30 * 24 * 3600
_MAX_BYTES: Final = 64 * 1024


def state_folder() -> Path:
    """Where this user's programs keep their state: `RXFILES_STATE`, if it is set, else what the system has for it."""
    given = os.environ.get("RXFILES_STATE")
    return Path(given) if given else platformdirs.user_state_path("rxfiles", appauthor=False)


class UploadRecord:
    """What is remembered of the upload of one path. A folder that can't be written is logged, once, and is no failure.

    Args:
        servers: The URIs of the server.
        name: The file's name there.
        path: The path.
        algorithm: Of the upload's digest: an upload can't go on with another one.
    """

    def __init__(self, servers: Sequence[str], name: str, path: str, algorithm: str | None) -> None:
        self._server = sorted(uri.lower().rstrip("/") for uri in servers)
        self._name = name
        self._path = os.path.abspath(path)
        self._algorithm = algorithm
        self._folder = state_folder() / "uploads"
        self._lock = threading.Lock()  # attempts of one upload may overlap
        self._upload_id = uuid4().hex
        self._file: Path | None = None  # of the content that `_upload_id` is for
        self._is_written = False

    async def recall(self) -> str:
        """The id of the upload of what is at the path now; a new one, if none is remembered."""
        return await run_blocking(None, self._recall)

    async def remember(self) -> None:
        """The server has begun the upload with this id."""
        await run_blocking(None, self._remember)

    async def forget(self) -> None:
        """The server doesn't know the id any more: the upload is published, or was dropped."""
        await run_blocking(None, self._forget)

    # In a thread

    def _recall(self) -> str:
        with self._lock:
            file = self._find()
            if file is None or file != self._file:
                self._file, self._upload_id = file, (file and _read(file)) or uuid4().hex
                self._is_written = False
            return self._upload_id

    def _find(self) -> Path | None:
        """The file with the record of what is at the path; None if that can't be read again, or isn't there."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None  # the upload is going to fail with it
        if not stat.S_ISREG(status.st_mode):
            return None
        key = [self._server, self._name, self._path, status.st_size, status.st_mtime_ns, self._algorithm]
        return self._folder / f"{sha256(json.dumps(key).encode()).hexdigest()}.json"

    def _remember(self) -> None:
        with self._lock:
            if self._file is None or self._is_written:
                return
            self._is_written = True  # or has failed once
            text = json.dumps(
                {"upload_id": self._upload_id, "server": self._server, "name": self._name, "path": self._path}
            )
            try:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                _write(self._file, text)
            except OSError as error:
                _warn(self._folder, error.strerror or str(error))
            else:
                _remove_old(self._folder)

    def _forget(self) -> None:
        with self._lock:
            file, upload_id = self._file, self._upload_id
            self._file, self._upload_id, self._is_written = None, uuid4().hex, False
            if file is not None and _read(file) == upload_id:  # else another run's
                with suppress(OSError):
                    file.unlink()


def _read(file: Path) -> str | None:
    """The id that a record says; None if there is none, or what is there isn't one."""
    try:
        with file.open("rb") as record:
            found: object = json.loads(record.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    match found:
        case {"upload_id": str(upload_id)}:
            try:
                return check_upload_id(upload_id)
            except InvalidRequest:
                return None
        case _:
            return None


def _write(file: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=file.parent)
    try:
        with open(descriptor, "w", encoding="ascii") as record:
            record.write(text)
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _remove_old(folder: Path) -> None:
    """Removes the records of uploads that have never gone on: their files were changed, say."""
    oldest = time.time() - _MAX_AGE_SECONDS
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)


@cache
def _warn(folder: Path, reason: str) -> None:
    _log.warning("uploads aren't remembered, since %s can't be written: %s", folder, reason)
