"""A connection's socket as the file lane's threads use it."""

import os
import socket
from collections.abc import Sequence

__all__ = ["Bytes", "LaneSocket"]

Bytes = bytes | bytearray | memoryview


class LaneSocket(socket.socket):
    """A descriptor of its own for the socket, which doesn't block. One thread at a time receives, and one sends.

    Attributes:
        moves_files: Whether the system may move bytes between it and a file.
        unsent_bytes: What was taken by `write` and isn't in the socket: `write` is called, with no parts, until all is.
    """

    moves_files = True

    @property
    def unsent_bytes(self) -> int:
        return 0

    def receive(self, buffer: memoryview) -> int:
        """Receives into `buffer`, and returns how many bytes, 0 at the connection's end.

        Raises:
            BlockingIOError: There is nothing just now.
            OSError: The connection has ended, or has to.
        """
        return os.readv(self.fileno(), [buffer])

    def write(self, parts: Sequence[Bytes]) -> int:
        """Sends some of `parts`, and returns how many of their bytes were taken.

        Raises:
            BlockingIOError: The socket takes nothing just now.
            OSError: The connection has ended, or has to.
        """
        return os.writev(self.fileno(), parts)
