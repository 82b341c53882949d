"""Moving bytes between a socket and a file without bringing them into the process: zero-copy, on Linux."""

import errno
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

try:
    import fcntl
except ImportError:  # Windows, where none of this is used
    fcntl = None

__all__ = ["SPLICES", "Pipe", "is_unsupported", "move_from"]

SPLICES: Final = sys.platform == "linux" and hasattr(os, "splice")
"""Whether this system can move bytes by itself."""

# What a file system, or a sandbox, answers that can't.
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
# A pipe's capacity: more than an item.
_PIPE_BYTES: Final = 1024 * 1024
_MIN_PIPE_BYTES: Final = 4096
_F_SETPIPE_SZ: Final = 1031


class Pipe:
    """A pipe of one thread's, between a socket and a file."""

    def __init__(self) -> None:
        self.end, self._begin = os.pipe()
        self._nbytes = _MIN_PIPE_BYTES
        if fcntl is not None:
            with suppress(OSError):  # over a quota; then it takes more steps
                fcntl.fcntl(self._begin, _F_SETPIPE_SZ, _PIPE_BYTES)
                self._nbytes = _PIPE_BYTES

    def fill(self, connection: socket.socket, nbytes: int) -> int:
        """Moves up to `nbytes` into the empty pipe; how many, 0 at the connection's end.

        Raises:
            BlockingIOError: There are none just now.
        """
        try:
            return os.splice(connection.fileno(), self._begin, nbytes, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except OSError as error:
            if not is_unsupported(error):
                raise
        return os.write(self._begin, connection.recv(min(nbytes, self._nbytes)))  # it is empty, so this doesn't block

    def close(self) -> None:
        """Closes both ends."""
        os.close(self.end)
        os.close(self._begin)


def is_unsupported(error: OSError) -> bool:
    """Whether this is a system's answer that it can't move bytes by itself between these two."""
    return error.errno in _UNSUPPORTED


def move_from(pipe: int, file: int, nbytes: int, offset: int, recover: Callable[[OSError], None]) -> int:
    """Moves up to `nbytes` from a pipe to a file, and whatever was taken out of the pipe; how many. Blocks.

    `recover` is called with what a write raised; the write is tried again, unless that raises.
    """
    while True:
        try:
            return os.splice(pipe, file, nbytes, offset_dst=offset)
        except OSError as error:
            if is_unsupported(error):
                break
            recover(error)
    view = memoryview(os.read(pipe, nbytes))
    written = 0
    while written < len(view):
        try:
            written += os.pwrite(file, view[written:], offset + written)
        except OSError as error:
            recover(error)
    return written
