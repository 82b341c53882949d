"""A path as the end of a download: what is there is looked at first, and what isn't a file is written to as it is."""

import asyncio
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import xxhash

from shared.aio import run_blocking
from shared.files import disk
from shared.files.part import FileTarget, PartFile
from shared.protocol.digest import Digest
from shared.protocol.wire import FileInfo

from .writers import DescriptorWriter, Sink, WriterSink

__all__ = ["PathSink"]

_SUFFIX: Final = ".rxpart"
# A file name has at most 255 bytes; what is cut off is in the hash that follows.
_MAX_STEM_BYTES: Final = 200
_NOTE_SUFFIX: Final = ".note"
_NOTE_ATTRIBUTE: Final = "user.rxfiles.part"
_NOTE_BYTES: Final = 8192

# What a rename answers about a file that is mounted, as containers do.
_MOUNTED: Final = frozenset({errno.EBUSY, errno.EXDEV})
_COPY_BYTES: Final = 1024 * 1024
_MAX_LINKS: Final = 40
_MAX_PARTS: Final = 1000
_DESCRIPTORS: Final = re.compile(r"/proc/(self|\d+)(/task/\d+)?/fd|/dev/fd")
# A FIFO without a reader is asked again after so many seconds.
_ASK_AGAIN_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class _Target:
    """What a path leads to.

    Attributes:
        path: Without links.
        status: Of the file that is there; None if there is nothing.
        is_stream: Whether it is written to as it is: a FIFO, a terminal or another device, an open file of a process.
    """

    path: str
    status: os.stat_result | None
    is_stream: bool = False

    @classmethod
    def at(cls, path: str) -> "_Target":
        """Looks at a path. Blocks.

        Raises:
            OSError: No file can be put there: it is a folder, a disk or a socket, or its folder is missing.
        """
        path, is_descriptor = _follow(path)
        try:
            status = os.stat(path) if is_descriptor else os.lstat(path)
        except FileNotFoundError:
            os.stat(os.path.dirname(path))
            return cls(path, None)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if is_descriptor or kind in (stat.S_IFIFO, stat.S_IFCHR):
            return cls(path, status, is_stream=True)
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, "a disk or socket is no place for a download", path)
        folder = os.stat(os.path.dirname(path))
        if folder.st_mode & stat.S_ISVTX and sys.platform != "win32":
            user = os.geteuid()
            if user and user not in (status.st_uid, folder.st_uid):
                raise PermissionError(errno.EPERM, "only its owner may replace a file in this folder", path)
        return cls(path, status)


class PathSink(Sink):
    """Writes beside a path, and moves the whole file there when it is verified; what was there stays until then.

    The part is called `.NAME.HASH.rxpart`, where HASH is of the path's name. An extended attribute of it, or else a
    file beside it, says which file it is of. So it is found without a look at what else is in the folder. A process
    that downloads the same file goes on with it, and one that downloads another file starts it over. A part in use is
    locked; another download to the same path takes the next name, with a number in it. A part that isn't to be kept
    is removed when an attempt ends.
    """

    def __init__(self, path: str, name: str, algorithm: str | None, *, keep_part: bool) -> None:
        super().__init__()
        self._keep_part = keep_part
        self._path = os.fspath(Path(path))
        self._is_folder = os.path.basename(path) in ("", os.curdir, os.pardir)  # there or not
        self._name = name
        self._algorithm = algorithm
        self._full = f"no room for {path}"
        self._file = PartFile(algorithm, full=self._full, name=name)
        self._target: _Target | None = None
        self._part: str | None = None
        self._stream: _DescriptorSink | None = None
        self._modified: float | None = None

    @property
    def offset(self) -> int:
        return self._file.digest.length

    @property
    def digest(self) -> Digest | None:
        return None if self._algorithm is None else self._file.digest

    def as_file(self) -> FileTarget:
        return self._file

    async def look(self) -> Sink:
        found = await run_blocking(None, self._look)
        if isinstance(found, _DescriptorSink):
            return await found.look()
        while found is not None and not await run_blocking(None, self._file.catch_up, found.size):
            pass
        return self

    async def begin(self, info: FileInfo) -> None:
        self._modified = info.modified
        await run_blocking(None, self._begin, info)

    async def append(self, chunks: Sequence[bytes]) -> None:
        await run_blocking(None, self._file.write_all, chunks)

    async def restart(self) -> None:
        self.etag = None
        self._file.reset()

    async def discard(self) -> None:
        await self.restart()

    async def finish(self) -> None:
        await run_blocking(None, self._publish)

    async def suspend(self) -> None:
        if self._stream is not None:
            await self._stream.suspend()
        if self._part is not None or self._file.is_open:  # else it is published
            await run_blocking(None, self._close)

    # In a thread

    def _look(self) -> "_DescriptorSink | _Note | None":
        """Opens and locks a part; returns its note if another process has left bytes of the file in it."""
        if self._is_folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._path)
        target = _Target.at(self._path)
        if target.is_stream:
            if self._stream is None or self._stream.path != target.path:
                self._stream = _DescriptorSink(target.path, self._algorithm)
            return self._stream
        if self._target is None or self._target.path != target.path:
            self._part = None
        self._target = target
        try:
            with self._full_disk_is_typed():
                self._open_part(target)
        except OSError as error:
            raise OSError(error.errno, error.strerror, target.path) from error
        assert self._part is not None, "it is open"
        note = _read_note(self._part)
        if note is not None and note.name == self._name:
            if self.offset and note.etag == self.etag:
                return None  # this transfer's own
            self.etag = note.etag
        else:
            note = self.etag = None
        self._file.reset()
        return note

    def _open_part(self, target: _Target) -> None:
        # As private as the file that it is going to replace.
        mode = 0o666 if target.status is None else target.status.st_mode & 0o666 | 0o600
        for number in range(_MAX_PARTS):
            part = self._part or _part_name(target.path, str(number) if number else "")
            try:
                if self._part is None and _is_foreign(part):
                    raise BlockingIOError
                self._file.open(part, os.O_CREAT, mode=mode, locked=True)
            except BlockingIOError:
                self._part = None  # another transfer has it
                continue
            if self._part is None and not self._file.is_locked:
                # Nothing says whether another transfer has a part; one with this name no other transfer has.
                self._file.close()
                with suppress(FileNotFoundError):  # another transfer finds the same at the same time
                    if not os.stat(part).st_size:
                        os.unlink(part)
                part = _part_name(target.path, os.urandom(4).hex())
                self._file.open(part, os.O_CREAT, mode=mode)
            if self._file.is_at(part):
                self._part = part
                return
            self._file.close()  # published or removed by another transfer, which had it until now
            self._part = None
        raise BlockingIOError(errno.EBUSY, "too many downloads to one path are under way")

    def _full_disk_is_typed(self) -> AbstractContextManager[None]:
        return disk.full_disk_is_typed(self._full, self._name)

    def _begin(self, info: FileInfo) -> None:
        assert self._part is not None, "`look` comes first"
        self._file.truncate()
        if not self.offset:
            with self._full_disk_is_typed():
                _write_note(self._part, None if info.etag is None else _Note(self._name, info.etag, info.size))
        self.etag = info.etag

    def _publish(self) -> None:
        part, target = self._part, self._target
        assert part is not None, "`look` comes first"
        assert target is not None, "`look` comes first"
        now = _Target.at(self._path)
        if now.path != target.path or now.is_stream:
            raise FileExistsError(errno.EEXIST, "something else has taken the file's place meanwhile", self._path)
        if now.status is not None:
            with suppress(OSError):  # a file system that has none; the part is private enough
                self._file.copy_access(now.status)
        if self._modified is not None:
            with _as_far_as_possible():
                self._file.set_modified(self._modified)
        self._file.sync()
        if sys.platform == "win32":
            self._file.close()  # what is open can't be moved there
        try:
            os.replace(part, now.path)
        except OSError as error:
            if error.errno not in _MOUNTED:
                raise
            _copy(part, now.path, self._name, self._modified)
            os.unlink(part)
            _remove_note(part)
        else:
            _remove_note(part, now.path)
        self._part = self.etag = None
        self._file.close()
        self._file.reset()  # here, since the task that waits for this thread may be cancelled meanwhile
        with suppress(PermissionError):  # a folder that may be written, and not read
            disk.sync_folder(os.path.dirname(now.path))

    def _close(self) -> None:
        if self._part is not None and not (self._keep_part and self.offset):
            # Before it is unlocked: another transfer must not go on with it.
            part, self._part = self._part, None
            if self._file.is_at(part):
                if sys.platform == "win32":
                    self._file.close()  # what is open can't be removed there
                with suppress(PermissionError):  # another transfer has it by now
                    disk.remove(part)
                    _remove_note(part)
            self.etag = None
            self._file.reset()
        self._file.close()


class _DescriptorSink(WriterSink):
    """Writes to a FIFO or device, which is opened for each attempt; a FIFO without a reader is waited for."""

    def __init__(self, path: str, algorithm: str | None) -> None:
        self.path: Final = path
        self._opened = DescriptorWriter(path)
        super().__init__(self._opened, 0, algorithm)

    async def look(self) -> Sink:
        while True:
            try:
                await run_blocking(None, self._opened.open)
            except OSError as error:
                if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(self.path).st_mode):
                    raise
                await asyncio.sleep(_ASK_AGAIN_SECONDS)
            else:
                return self

    async def suspend(self) -> None:
        self._opened.close()


def _follow(path: str) -> tuple[str, bool]:
    """Where a path leads, and whether that is an open file of a process, whose name may be another file's by now.

    Raises:
        OSError: Links lead to each other.
    """
    for _ in range(_MAX_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        path = os.path.join(folder, name)
        if _DESCRIPTORS.fullmatch(folder):
            return path, True
        try:
            link = os.readlink(path)
        except OSError:  # no link, or nothing
            return path, False
        path = os.path.join(folder, link)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _part_name(path: str, distinction: str) -> str:
    folder, name = os.path.split(path)
    encoded = os.fsencode(name)  # which need not be UTF-8
    stem = encoded[:_MAX_STEM_BYTES].decode(errors="ignore")
    ending = f"-{distinction}{_SUFFIX}" if distinction else _SUFFIX
    return os.path.join(folder, f".{stem}.{xxhash.xxh3_64_hexdigest(encoded)}{ending}")


def _is_foreign(part: str) -> bool:
    """Whether something has a part's name that isn't one of this user's."""
    try:
        status = os.lstat(part)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode) or (sys.platform != "win32" and status.st_uid != os.geteuid())


def _as_far_as_possible() -> AbstractContextManager[None]:
    """For a file's time: that the file system can't have it, or only the owner may set it, is no reason to fail."""
    return suppress(OSError, OverflowError, ValueError)


def _copy(part: str, path: str, name: str, modified: float | None) -> None:
    """Writes a part's content into a file, in place, and sets its time."""
    with disk.full_disk_is_typed(f"no room for {path}", name), open(part, "rb") as source, open(path, "r+b") as target:
        target.truncate()
        while data := source.read(_COPY_BYTES):
            target.write(data)
        target.flush()
        if modified is not None:
            with _as_far_as_possible():
                disk.set_modified(target.fileno(), path, modified)
        os.fsync(target.fileno())


# What a part is of


class _Note(NamedTuple):
    """The file at the server that a part is of."""

    name: str
    etag: str
    size: int


def _write_note(part: str, note: _Note | None) -> None:
    """Notes which file a part is of; None if that isn't known."""
    _remove_note(part)
    if note is None:
        return
    data = json.dumps(note).encode()
    try:
        os.setxattr(part, _NOTE_ATTRIBUTE, data)
    except (AttributeError, OSError):  # not on this system, or not in this file system
        with open(part + _NOTE_SUFFIX, "wb") as file:
            file.write(data)


def _read_note(part: str) -> _Note | None:
    data = b""
    with suppress(AttributeError, OSError):
        data = os.getxattr(part, _NOTE_ATTRIBUTE)
    if not data:
        with suppress(OSError), open(part + _NOTE_SUFFIX, "rb") as file:
            data = file.read(_NOTE_BYTES)
    try:
        note: object = json.loads(data)
    except ValueError:
        return None
    match note:
        case [str() as name, str() as etag, int() as size]:
            return _Note(name, etag, size)
        case _:
            return None


def _remove_note(part: str, path: str | None = None) -> None:
    """Removes what `_write_note` has written; the part may be at another `path` by now."""
    with suppress(AttributeError, OSError):
        os.removexattr(path or part, _NOTE_ATTRIBUTE)
    with suppress(OSError):
        os.unlink(part + _NOTE_SUFFIX)
