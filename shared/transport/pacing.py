"""Keeps event-loop iterations short, however many connections are busy and however small their frames are."""

import asyncio
import time
from collections import deque
from typing import Final
from weakref import WeakKeyDictionary

from ..aio import wake

__all__ = ["Pacer"]

# A connection's time slice: after so many frames, or so long, other callbacks of the event loop run. Handling a small
# frame takes 20 to 50 µs, the first of an upload 300.
_FRAMES_PER_SLICE: Final = 16
_FRAMES_PER_LOOK: Final = 4  # at the clock
_SLICE_SECONDS: Final = 0.0005
# How many of the connections that have more frames than that continue in one iteration.
_BUSY_PER_ITERATION: Final = 4

# The busy connections of each event loop, which wait for their next slice.
_waiting: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Future[None]]]] = WeakKeyDictionary()


class Pacer:
    """Ends one connection's time slices."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._looked_at = 0.0

    def restart(self) -> None:
        """The connection waits for its peer, which ends the slice."""
        self._count = 0

    def add(self) -> None:
        """Counts a frame of this slice."""
        self._count += 1

    def is_due(self) -> bool:
        """Whether the slice is over, and `pause` is due."""
        count = self._count
        if not count or count % _FRAMES_PER_LOOK:
            return False
        if count >= _FRAMES_PER_SLICE:
            return True
        now, then = time.monotonic(), self._looked_at
        self._looked_at = now
        return count > _FRAMES_PER_LOOK and now - then > _SLICE_SECONDS

    async def pause(self) -> None:
        """Returns in the event loop's next iteration, or a later one."""
        self._count = 0
        waiter, waiting = self._loop.create_future(), _waiting.setdefault(self._loop, deque())
        waiting.append(waiter)
        if len(waiting) == 1:
            self._loop.call_soon(_resume_some, self._loop, waiting)
        await waiter


def _resume_some(loop: asyncio.AbstractEventLoop, waiting: deque[asyncio.Future[None]]) -> None:
    for _ in range(min(_BUSY_PER_ITERATION, len(waiting))):
        wake(waiting.popleft())
    if waiting:
        loop.call_soon(_resume_some, loop, waiting)
