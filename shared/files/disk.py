"""File calls that differ between Linux, macOS and Windows, and small JSON records. All of them block."""

import errno
import json
import os
import stat
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, cast

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
    "lock_file",
    "max_descriptors",
    "open_to_extend",
    "open_to_read",
    "raise_max_descriptors",
    "read_at",
    "read_record",
    "regular_file",
    "remove",
    "sync_folder",
    "write_at",
    "write_record",
]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

MAX_VECTORS: Final = 1024
"""The system's IOV_MAX, on Linux, macOS and the BSDs."""

_BINARY: Final[int] = getattr(os, "O_BINARY", 0)
# A link isn't followed, and a FIFO, should one take a file's place just now, doesn't block.
_NO_SURPRISE: Final[int] = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextmanager
def full_disk_is_typed() -> Generator[None, None, None]:
    """Makes a full disk, a quota or a file size limit of the system into `StorageFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("the server's disk is full") from error
        raise


def max_descriptors() -> int | None:
    """How many files and sockets this process may have open; None where nobody says."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def raise_max_descriptors() -> None:
    """Asks for all the descriptors that the system allows; the usual 1,024 are for programs that use `select`."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS says that there is no limit, and doesn't mean it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def regular_file(path: str) -> os.stat_result | None:
    """What is at `path`, if it is a regular file and no link to one."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def open_to_read(path: str) -> int | None:
    """A descriptor of the regular file at `path`; None if there is none."""
    if regular_file(path) is None:
        return None
    try:
        fd = os.open(path, os.O_RDONLY | _BINARY | _NO_SURPRISE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # gone, or a link by now
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


def open_to_extend(path: str, *, create: bool) -> int:
    """A descriptor to read and write; `create` makes an empty file, which mustn't be there yet."""
    return os.open(path, os.O_RDWR | _BINARY | _NO_SURPRISE | (os.O_CREAT | os.O_EXCL if create else 0), 0o644)


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
    """Writes some of `views`, `MAX_VECTORS` of them at the most, in order; how many bytes, at least one."""
    if sys.platform == "win32":
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, views[0])
    return os.pwritev(fd, views, offset)


def create_from(source: str, target: str) -> None:
    """Gives the file `source` the name `target`, in one step, unless something has that name.

    Killed in between, it may leave both names, for one file with two links.

    Raises:
        FileExistsError: Something has.
    """
    if sys.platform == "win32":
        os.rename(source, target)  # which refuses to replace, there
        return
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links; only somebody outside of this process can come between
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def remove(path: str) -> None:
    """Removes a file, which may have gone already."""
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


def lock_file(path: str) -> int:
    """A descriptor that holds the lock of `path` until it is closed or its process ends, however it ends.

    Raises:
        BlockingIOError: Another one holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o644)
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise BlockingIOError(error.errno, "another process has the lock", path) from None
        raise
    return fd


def read_record(path: str) -> Mapping[str, object]:
    """What `write_record` wrote; empty if there is nothing, or nothing that it can have written."""
    try:
        with open(path, "rb") as file:
            record: object = json.loads(file.read())
    except (FileNotFoundError, ValueError):
        return {}
    return cast("dict[str, object]", record) if isinstance(record, dict) else {}


def write_record(path: str, record: Mapping[str, object], *, temporary: str, durable: bool) -> None:
    """Puts `record` at `path` in one step, as JSON; what was there before stays until then.

    Args:
        path: The record's.
        record: What to write.
        temporary: A path on the same file system that nobody else uses.
        durable: Whether it must survive the machine, not only this process.
    """
    try:
        with open(temporary, "wb") as file:
            file.write(json.dumps(record).encode())
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if durable:
        sync_folder(os.path.dirname(path))


if sys.platform == "win32":

    def _read_some(fd: int, length: int, offset: int) -> bytes:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, length)

else:

    def _read_some(fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)
