"""File calls that differ between Linux, macOS and Windows. All of them block."""

import errno
import math
import os
import shutil
import stat
import sys
import time
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
    "close",
    "copy_access",
    "create_from",
    "free_bytes",
    "full_disk_is_typed",
    "is_full",
    "keep",
    "lock",
    "max_descriptors",
    "open_to_extend",
    "open_to_read",
    "raise_max_descriptors",
    "read_at",
    "regular_file",
    "remove",
    "send_to_disk",
    "set_modified",
    "sync_folder",
    "taken_bytes",
    "write_all",
    "write_at",
]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_LOCKED: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EDEADLK})
# What a file system, or its server, answers that has no locks.
_LOCKLESS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})

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
        if is_full(error) or error.errno == errno.EFBIG:
            raise StorageFull(message, name=name) from error
        raise


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota has no room, and will have some when other files are removed."""
    return error.errno in _FULL


def free_bytes(path: str) -> int | None:
    """What can still be written to the file system of a folder; None where there is no limit, or none is known."""
    if sys.platform == "win32":
        return shutil.disk_usage(path).free
    status = os.statvfs(path)
    blocks = status.f_bavail if os.geteuid() else status.f_bfree  # some are reserved for the superuser
    return blocks * status.f_frsize if status.f_blocks else None


def taken_bytes(status: os.stat_result) -> int:
    """What removing a file makes free."""
    return status.st_size if sys.platform == "win32" else status.st_blocks * 512


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


def open_to_read(path: str, dir_fd: int | None = None) -> tuple[int, os.stat_result] | None:
    """A descriptor of the regular file at `path`, from the folder `dir_fd`, and its status; None if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | _BINARY | _CAUTIOUS, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # nothing, a link, a socket
            return None
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        return None
    return fd, status


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


def write_all(fd: int, data: bytes) -> None:
    """Writes all of `data` into an empty file."""
    view, written = memoryview(data), 0
    while written < len(data):
        written += write_at(fd, [view[written:]], written)


def copy_access(old: os.stat_result, new: os.stat_result, fd: int) -> None:
    """Gives an open file, whose status is `new`, the permission bits and, where the process may, the owner and group of
    the `old` one, which it replaces."""
    if sys.platform != "win32":
        if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
            with suppress(OSError):
                os.fchown(fd, old.st_uid, old.st_gid)
        bits = stat.S_IMODE(old.st_mode) & 0o777
        if bits != stat.S_IMODE(new.st_mode):
            os.fchmod(fd, bits)


def send_to_disk(fd: int) -> None:
    """Has the system begin to write an open file's content, where it can be asked to; a sync is quicker then.

    If that is done for several files, the syncs of all take little longer than that of one.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # which begins with that; what isn't written yet is kept


def keep(path: str, dir_fd: int | None = None) -> int | None:
    """A descriptor that keeps a file that is about to be replaced, where there are such; it can't be read.

    To free a file may take long, and a renaming that does it holds up all others of its file system; to close doesn't.
    """
    if hasattr(os, "O_PATH"):
        with suppress(OSError):  # there is none any more
            return os.open(path, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
    return None


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


def set_modified(fd: int, path: str, seconds: float | None) -> None:
    """Sets the time of an open file, or what its file system can have that is next to it; None is now.

    `path` is where it is, for a system that can't do it by the descriptor.
    """
    now = modified = time.time_ns()
    if seconds is not None:
        whole = math.floor(seconds)
        modified = whole * 10**9 + round((seconds - whole) * 10**9)  # exact: a float of all nanoseconds wouldn't be
    os.utime(fd if os.utime in os.supports_fd else path, ns=(now, modified))


def sync_folder(path: str) -> None:
    """Makes the folder's entries survive the machine, where a folder can be synced."""
    if sys.platform != "win32":
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def lock(fd: int) -> bool:
    """Locks an open file until `close(fd)`, or until the process ends, however it ends.

    Returns:
        Whether it is locked; False on a file system without locks.

    Raises:
        BlockingIOError: The lock is held already, by this process or another one.
    """
    _locked.add(fd)  # first, for a fork meanwhile
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        _locked.discard(fd)
        if error.errno in _LOCKED:
            raise BlockingIOError(error.errno, "the lock is held already") from None
        if error.errno in _LOCKLESS:
            return False
        raise
    return True


def close(fd: int) -> None:
    """Closes a file, and unlocks it: without that, a process that was forked meanwhile would hold the lock on."""
    if fd in _locked:
        _locked.discard(fd)
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


# The descriptors whose files this process has locked.
_locked: Final[set[int]] = set()


def _leave_locks() -> None:
    """In a forked process: what its parent has locked isn't held here, so that it is free when the parent is killed."""
    if _locked:
        with suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            for fd in _locked:
                os.dup2(null, fd, inheritable=False)  # not closed: the number must not become another file's
            os.close(null)
        _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


if sys.platform == "win32":

    def _read_some(fd: int, length: int, offset: int) -> bytes:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)

else:

    def _read_some(fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)
