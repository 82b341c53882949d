"""What all connections together may have made that isn't sent: a peer may ask for much, and read none of it."""

import math
import threading
from typing import Final

__all__ = ["LEAST_BYTES", "SendRoom"]

LEAST_BYTES: Final = 16 * 1024
"""What each connection may have in any case: readers that have stopped must not keep the others' answers back."""


class SendRoom:
    """Counts what is made and not sent, for all connections; where it is short, each makes little at a time.

    So no more than `max_bytes`, and `LEAST_BYTES` or one small answer a connection, is in memory. Its methods may be
    called from any thread.

    Attributes:
        used_bytes: What is made and not sent.
    """

    def __init__(self, max_bytes: float = math.inf) -> None:
        self.used_bytes = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    @property
    def is_short(self) -> bool:
        """Whether no more than a little may be made."""
        return self.used_bytes >= self._max_bytes

    def take(self, nbytes: int) -> int:
        """How much may be made now of what would have `nbytes`; it counts from now on."""
        with self._lock:
            free = self._max_bytes - self.used_bytes
            granted = nbytes if nbytes <= free else min(nbytes, max(int(free), LEAST_BYTES))
            self.used_bytes += granted
        return granted

    def add(self, nbytes: int) -> None:
        """Counts so many bytes more, or fewer."""
        with self._lock:
            self.used_bytes += nbytes
