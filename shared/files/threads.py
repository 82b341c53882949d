"""What the file lane's threads need: waiting for a socket, yielding the CPU, buffers, and losing a socket in time."""

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["SocketTurn", "SpareBuffers", "wait_for_socket", "yield_cpu"]

_sched_yield: Final[Callable[[], None] | None] = getattr(os, "sched_yield", None)

# How long a thread waits for a socket before it ends, so that the executor's other callers get a thread.
_WAIT_MS: Final = 10
# A CPU that comes back after this was used by an event loop; if later, by a thread that works for long.
_SOON_SECONDS: Final = 0.001
# After such a thread, the CPU is kept for so many times as long as that thread had it.
_KEPT_TIMES: Final = 8
# A thread that a disk holds up for this long loses the socket.
_HELD_UP_SECONDS: Final = 0.05


class _Yielding(threading.local):
    """When a thread yields the CPU the next time."""

    next_at = 0.0


_yielding: Final = _Yielding()


def yield_cpu() -> None:
    """Lets whichever other thread is ready have the CPU; to be called by a thread that has moved an item.

    A system that shares a CPU between threads lets one run for some milliseconds although an event loop was woken
    meanwhile; a small request would wait for that at each of its thread handoffs. An event loop is soon done. Another
    thread may keep the CPU for as long as the system lets it, and isn't yielded to again for some times as long.
    """
    now = time.monotonic()
    if _sched_yield is not None and now >= _yielding.next_at:
        _sched_yield()
        after = time.monotonic()
        if after - now > _SOON_SECONDS:
            _yielding.next_at = after + (after - now) * _KEPT_TIMES


def wait_for_socket(connection: socket.socket, event: int, milliseconds: int = _WAIT_MS) -> bool:
    """Waits for `select.POLLIN` or `select.POLLOUT`; whether it came in time. Blocks."""
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(milliseconds))


class SocketTurn:
    """One thread's right to use one direction of a socket; a thread that a disk holds up loses it.

    The event loop revokes it, and lets the connection's other streams go on; the thread finds out when the disk
    answers, and then leaves the socket alone.
    """

    __slots__ = ("_disk_since", "_lock", "is_revoked")

    def __init__(self) -> None:
        self.is_revoked = False
        self._lock = threading.Lock()
        self._disk_since: float | None = None

    def enter_disk(self) -> None:
        """The thread is between two frames, and is going to ask a disk."""
        self._disk_since = time.monotonic()

    def leave_disk(self) -> bool:
        """The disk has answered; whether the thread still has the socket."""
        with self._lock:
            self._disk_since = None
            return not self.is_revoked

    def revoke_if_held_up(self) -> bool:
        """Revokes the turn if a disk has held the thread up for too long; whether it did. Called by the event loop."""
        with self._lock:
            since = self._disk_since
            self.is_revoked = since is not None and time.monotonic() - since > _HELD_UP_SECONDS
            return self.is_revoked


class SpareBuffers:
    """A few buffers for items that no transfer uses just now. Its methods may be called from any thread.

    Args:
        most: How many are kept.
        most_bytes: The largest that is kept.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._spares: list[bytearray] = []

    def borrow(self, nbytes: int) -> bytearray:
        """A buffer of at least `nbytes`."""
        try:
            buffer = self._spares.pop()
        except IndexError:  # not asked beforehand, since another thread may take the last one in between
            buffer = None
        return buffer if buffer is not None and len(buffer) >= nbytes else bytearray(nbytes)

    def give_back(self, buffer: bytearray) -> None:
        """Takes a buffer back that has no views any more."""
        if len(self._spares) < self._most and len(buffer) <= self._most_bytes:
            self._spares.append(buffer)
