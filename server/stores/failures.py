"""What a disk's failures are for a client: typed errors, without the disk's own text, which has paths."""

import errno
import logging
from typing import Final

from shared.errors import Forbidden, ServerFull, StorageFull, StorageUnavailable, TransferError
from shared.files import disk

__all__ = ["FULL", "READ_ONLY", "too_many_files", "typed"]

_log = logging.getLogger(__name__)

FULL: Final = "the server's disk is full"
READ_ONLY: Final = "the server's files are read-only"

_TOO_MANY: Final = frozenset({errno.EMFILE, errno.ENFILE})
# A disk that fails, a folder that was removed or unmounted, a server of files that can't be reached.
_UNAVAILABLE: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ENOENT", "ENOTDIR", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN", "EREMOTEIO", "EUCLEAN", "ENOMEM"),
        *("ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ECONNRESET", "ECONNABORTED", "EPIPE"),
        *("EAGAIN", "EBUSY", "EINTR", "ENOLINK", "ENOMEDIUM", "ESHUTDOWN"),
    )
    if hasattr(errno, name)
)
_SHARING_VIOLATIONS: Final = frozenset({32, 33})  # of Windows: another program has the file open just now


def typed(error: OSError, name: str | None = None) -> TransferError | None:
    """The error for a client, about the file `name`; None if this isn't the disk's failure, but a defect.

    What only the server's owner can mend is logged.
    """
    failure = _typed(error, name)
    if isinstance(failure, StorageUnavailable | Forbidden):
        _log.warning("the files can't be used as they should: %s", error)
    return failure


def _typed(error: OSError, name: str | None) -> TransferError | None:
    number = error.errno
    if disk.is_full(error) or number == errno.EFBIG:
        return StorageFull(FULL, name=name)
    if number in _TOO_MANY:
        return too_many_files()
    if number in _UNAVAILABLE or getattr(error, "winerror", None) in _SHARING_VIOLATIONS:
        return StorageUnavailable("the server's files can't be used just now; try again later", name=name)
    if number == errno.EROFS:
        return Forbidden(READ_ONLY, name=name)
    if isinstance(error, PermissionError):
        return Forbidden("the server itself may not do this with its files", name=name)
    return None


def too_many_files() -> ServerFull:
    """The error where no more files may be open."""
    return ServerFull("too many files are open just now; try again later")
