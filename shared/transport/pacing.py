"""Keeps event-loop iterations short, however many connections are busy and however small their frames are."""

import asyncio
import time
from collections import deque
from typing import Final
from weakref import WeakKeyDictionary

from ..aio import wake

__all__ = ["Pacer"]

# After so many frames, or so long, other callbacks of the event loop have their time slice. Handling a small frame
# takes 20 to 50 µs, that of an upload's begin 300.
_FRAMES_PER_SLICE: Final = 16
_FRAMES_PER_LOOK: Final = 4  # at the clock
_SLICE_SECONDS: Final = 0.0005
# How many of the connections that have more than that go on in one iteration.
_BUSY_PER_ITERATION: Final = 4


class _Queue:
    """The busy connections of one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def wait(self) -> None:
        """Returns in the event loop's next iteration, or a later one."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            loop.call_soon(self._resume_some)
        await waiter

    def _resume_some(self) -> None:
        for _ in range(min(_BUSY_PER_ITERATION, len(self._waiting))):
            wake(self._waiting.popleft())
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._resume_some)


_queues: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue]] = WeakKeyDictionary()


class Pacer:
    """Counts the frames that one connection handles without a pause."""

    def __init__(self) -> None:
        self._queue = _queues.setdefault(asyncio.get_running_loop(), _Queue())
        self._count = 0
        self._looked_at = 0.0

    def restart(self) -> None:
        """The connection waits for its peer: that is a pause."""
        self._count = 0

    def add(self) -> None:
        """A frame is handled."""
        self._count += 1

    def is_due(self) -> bool:
        """Whether `pause` is due."""
        count = self._count
        if not count or count % _FRAMES_PER_LOOK:
            return False
        if count >= _FRAMES_PER_SLICE:
            return True
        now, then = time.monotonic(), self._looked_at
        self._looked_at = now
        return count > _FRAMES_PER_LOOK and now - then > _SLICE_SECONDS

    async def pause(self) -> None:
        """Lets other callbacks of the event loop run."""
        self._count = 0
        await self._queue.wait()
