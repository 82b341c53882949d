"""The memory of all uploads together: bytes that were received and aren't in the object store yet."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["Room"]


class Room:
    """Hands out bytes, first come, first served. Where none are left, `relieve` is called until enough are leaving.

    Args:
        limit: How many bytes there are.
        relieve: Makes an upload send what it holds; whether there was one that could.

    Attributes:
        leaving: Of the bytes that are taken, those that are being sent.
    """

    def __init__(self, limit: int, relieve: Callable[[], bool]) -> None:
        self.leaving = 0
        self._limit: Final = limit
        self._relieve = relieve
        self._used = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, nbytes: int) -> None:
        """Waits until there is room for so many bytes more."""
        if not self._waiters and self._used + nbytes <= self._limit:
            self._used += nbytes
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((nbytes, waiter))
        self._make_room()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give(nbytes)
            raise

    def give(self, nbytes: int) -> None:
        """Gives back bytes."""
        self._used -= nbytes
        while self._waiters:
            wanted, waiter = self._waiters[0]
            if not waiter.done():
                if self._used + wanted > self._limit:
                    self._make_room()
                    return
                self._used += wanted
                waiter.set_result(None)
            self._waiters.popleft()

    def _make_room(self) -> None:
        wanted = sum(nbytes for nbytes, waiter in self._waiters if not waiter.done())
        while self._used + wanted - self.leaving > self._limit and self._relieve():
            pass
