"""File calls that differ between Linux, macOS and Windows. All of them block."""

import errno
import os
import stat
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from ..errors import StorageFull

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl
    import resource

__all__ = [
    "MAX_VECTORS",
    "create_from",
    "full_disk_is_typed",
    "lock",
    "max_descriptors",
    "open_to_extend",
    "open_to_read",
    "raise_max_descriptors",
    "read_at",
    "regular_file",
    "remove",
    "sync_folder",
    "write_at",
]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LOCKED: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EDEADLK})

MAX_VECTORS: Final = 1024
"""The system's IOV_MAX on Linux, macOS and the BSDs: the most buffers that one call writes."""

_BINARY: Final[int] = getattr(os, "O_BINARY", 0)
# A link isn't followed, and a FIFO that has just taken a file's place doesn't block.
_CAUTIOUS: Final[int] = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextmanager
def full_disk_is_typed(message: str, name: str | None = None) -> Generator[None, None, None]:
    """Raises StorageFull, about the file `name`, for a full disk, a quota, or the system's file size limit."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(message, name=name) from error
        raise


def max_descriptors() -> int | None:
    """How many files and sockets this process may have open; None where no limit is known."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_max_descriptors() -> None:
    """Raises the limit to what the system allows; the usual 1,024 are meant for programs that use `select`."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS reports no limit, and refuses it all the same
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def regular_file(path: str, dir_fd: int | None = None) -> os.stat_result | None:
    """The status of the regular file at `path`, from the folder `dir_fd`; None if there is none, or a link to one."""
    try:
        status = os.lstat(path, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def open_to_read(path: str, dir_fd: int | None = None) -> int | None:
    """A descriptor of the regular file at `path`, from the folder `dir_fd`; None if there is none."""
    if regular_file(path, dir_fd) is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | _BINARY | _CAUTIOUS, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # gone, or a link by now
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


def open_to_extend(path: str, flags: int = 0, mode: int = 0o644) -> int:
    """A descriptor to read and write, opened with more `flags`; `mode` is that of a new file."""
    return os.open(path, os.O_RDWR | _BINARY | _CAUTIOUS | flags, mode)


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes from `offset`; fewer only at the end of the file."""
    pieces: list[bytes] = []
    while length:
        piece = _read_some(fd, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def write_at(fd: int, views: Sequence[memoryview], offset: int) -> int:
    """Writes some of `views`, which are `MAX_VECTORS` at most, in order; returns how many bytes, at least one."""
    if sys.platform == "win32":
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, views[0])
    return os.pwritev(fd, views, offset)


def create_from(source: str, target: str, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
    """Renames the file `source` to `target` in one step, unless `target` exists; each from its folder.

    A process killed in between may leave both names, for one file with two links.

    Raises:
        FileExistsError: It does.
    """
    if sys.platform == "win32":
        os.rename(source, target)  # which refuses to replace, there
        return
    try:
        os.link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links; only another program can create `target` in between
        with suppress(FileNotFoundError):
            os.lstat(target, dir_fd=dst_dir_fd)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    else:
        os.unlink(source, dir_fd=src_dir_fd)


def remove(path: str) -> None:
    """Removes a file, which may not exist."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def sync_folder(path: str) -> None:
    """Makes the folder's entries survive the machine, where a folder can be synced."""
    if sys.platform != "win32":
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def lock(fd: int) -> None:
    """Locks an open file until `fd` is closed or the process ends, however it ends.

    Raises BlockingIOError if the lock is held already, by this process or another one.
    """
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _LOCKED:
            raise BlockingIOError(error.errno, "the lock is held already") from None
        raise


if sys.platform == "win32":

    def _read_some(fd: int, length: int, offset: int) -> bytes:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)

else:

    def _read_some(fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)
