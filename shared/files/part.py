"""A file that isn't whole yet: what the server's directory store and the client's `PathSink` both do with it."""

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, Protocol

from ..errors import StorageFull
from ..protocol.digest import Count, Digest
from . import disk
from .pipes import move_from

__all__ = ["FileTarget", "PartFile"]

_SLICE_BYTES: Final = 1024 * 1024
_SLICES_A_CALL: Final = 16


class FileTarget(Protocol):
    """The end of an unfinished file, to which a thread adds the bytes of a transfer."""

    @property
    def executor(self) -> Executor | None:
        """The threads to write with; None for the event loop's default executor."""
        ...

    def write(self, data: memoryview) -> None:
        """Adds to the end and to the running digest. Blocks; the view may be reused when it returns.

        Raises:
            StorageFull: No room; some of the bytes may have been added.
            TransferError: The transfer may not add them: nothing was added.
            OSError: The disk failed.
        """
        ...

    @property
    def write_from(self) -> Callable[[int, int], None] | None:
        """Adds what a pipe has, zero-copy; given are the pipe and the number of bytes. Blocks, and raises as `write`.

        None where the bytes have to be seen, for a digest.
        """
        ...


class PartFile:
    """A `FileTarget`: an unfinished file, and the running digest of its bytes.

    Everything blocks, and is called by one thread at a time. Opened again after `close`, it reads nothing again as long
    as it is the same file.

    Args:
        algorithm: Of the digest; None to only count the bytes.
        full: The message of the StorageFull that a full disk, a quota or the system's file size limit becomes.
        name: The file that this error is about.
        executor: See `FileTarget`.
        on_failure: Called in the thread with what a write raised; returns what is to be raised instead, or None to
            try again.

    Attributes:
        digest: Of the bytes so far; the next byte belongs at its `length`.
        path: Where the file is; empty until it is opened.
        full_at: Where the last write that found no room began; None if all did.
        is_locked: Whether the file was locked when it was last opened `locked`: not every file system has locks.
    """

    def __init__(
        self,
        algorithm: str | None,
        *,
        full: str,
        name: str,
        executor: Executor | None = None,
        on_failure: Callable[[OSError], Exception | None] | None = None,
    ) -> None:
        self.executor: Final = executor
        self.path = ""
        self.full_at: int | None = None
        self.is_locked = False
        self._algorithm = algorithm
        self._on_failure = on_failure or partial(_full_disk_is_typed, full, name)
        self._fd: int | None = None
        self._inode: int | None = None
        self.reset()

    def reset(self) -> None:
        """Starts a new digest; the next byte belongs at the file's start."""
        self.digest: Digest = Count() if self._algorithm is None else Digest(self._algorithm)

    def open(self, path: str, flags: int, *, mode: int = 0o644, locked: bool = False) -> int:
        """Opens the file and returns its size; calls `reset` if it isn't the same as before, or was cut short.

        Args:
            path: Where it is.
            flags: Beside `os.O_RDWR`, for example `os.O_CREAT`.
            mode: Of a new file.
            locked: Whether to lock it until it is closed.

        Raises:
            BlockingIOError: It is locked already, by this process or another one.
            OSError: It can't be opened.
        """
        fd = disk.open_to_extend(path, flags, mode)
        try:
            if locked:
                self.is_locked = disk.lock(fd)
            status = os.fstat(fd)
        except BaseException:
            disk.close(fd)
            raise
        if status.st_ino != self._inode or status.st_size < self.digest.length:
            self.reset()
        self._fd, self._inode, self.path = fd, status.st_ino, path
        return status.st_size

    def is_at(self, path: str) -> bool:
        """Whether the open file is the one at `path`: it may have been moved or removed before it was locked."""
        try:
            return os.path.samestat(os.fstat(self._open_fd()), os.lstat(path))
        except FileNotFoundError:
            return False

    def copy_access(self, old: os.stat_result) -> None:
        """See `disk.copy_access`."""
        fd = self._open_fd()
        disk.copy_access(old, os.fstat(fd), fd)

    def set_modified(self, seconds: float | None) -> None:
        """See `disk.set_modified`."""
        disk.set_modified(self._open_fd(), self.path, seconds)

    def catch_up(self, limit: int | None = None) -> bool:
        """Adds up to 16 MiB that only the file has to the digest, and returns whether it has all of it.

        Args:
            limit: Bytes beyond this position don't count; None for the file's size.
        """
        fd = self._open_fd()
        size = os.fstat(fd).st_size
        end = size if limit is None else min(size, limit)
        if isinstance(self.digest, Count):
            self.digest.length = end
        for _ in range(_SLICES_A_CALL):
            data = disk.read_at(fd, min(_SLICE_BYTES, end - self.digest.length), self.digest.length)
            if not data:
                return True
            self.digest.update(data)
        return self.digest.length == end

    def truncate(self) -> None:
        """Drops what the file has beyond the digest."""
        os.ftruncate(self._open_fd(), self.digest.length)

    def write(self, data: memoryview) -> None:
        self.write_all([data])

    def write_all(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Adds to the end. However it ends, the digest is that of the bytes that are there by then."""
        fd = self._open_fd()
        views = [memoryview(chunk) for chunk in chunks if chunk]
        first = 0
        while first < len(views):
            try:
                written = disk.write_at(fd, views[first : first + disk.MAX_VECTORS], self.digest.length)
            except OSError as error:
                self._recover(error)
                continue
            while written:
                done = views[first][:written]
                self.digest.update(done)
                written -= len(done)
                if len(done) == len(views[first]):
                    first += 1
                else:
                    views[first] = views[first][len(done) :]

    @property
    def write_from(self) -> Callable[[int, int], None] | None:
        return self._write_from if self._algorithm is None else None

    def _write_from(self, pipe: int, nbytes: int) -> None:
        fd, count = self._open_fd(), self.digest
        assert isinstance(count, Count), "a digest must see the bytes"
        while nbytes:
            moved = move_from(pipe, fd, nbytes, count.length, self._recover)
            count.add(moved)
            nbytes -= moved

    def _recover(self, error: OSError) -> None:
        """Returns if the write that raised `error` may be tried again; else raises what the caller is to get."""
        failure = self._on_failure(error)
        if failure is None:
            return
        if disk.is_full(error):
            self.full_at = self.digest.length
        raise failure from (None if failure is error else error)

    def sync(self) -> None:
        """Makes the bytes survive a crash of the machine."""
        os.fsync(self._open_fd())

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._fd is not None

    def close(self) -> None:
        """Closes the file; closing twice is fine."""
        fd, self._fd = self._fd, None
        if fd is not None:
            disk.close(fd)

    def _open_fd(self) -> int:
        if self._fd is None:
            raise RuntimeError("the part isn't open")
        return self._fd


def _full_disk_is_typed(message: str, name: str, error: OSError) -> Exception:
    is_full = disk.is_full(error) or error.errno == errno.EFBIG
    return StorageFull(message, name=name) if is_full else error
