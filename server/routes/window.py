"""How much a connection's streams may have waiting in its outbox, which itself has no limit."""

import asyncio
from collections import deque
from typing import Final

from shared.aio import wake
from shared.protocol.messages import CHUNK_BYTES

__all__ = ["SendWindow"]

_FEW_STREAMS: Final = 8
# Items of a connection's streams that are made in one event-loop iteration: they take some 20 µs each.
_ITEMS_PER_ITERATION: Final = 16
# What an item is taken for until it is there: a chunk.
_RESERVED_BYTES: Final = CHUNK_BYTES


class SendWindow:
    """A peer can request two billion items and read none of them; its server holds `limit_bytes` of them.

    Args:
        limit_bytes: Above this nothing may be added; an item is added whole, so the outbox can be one item longer.

    Attributes:
        digesting: Held by the stream that reads again what its peer has, so that a connection does that once at a time.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.digesting: Final = asyncio.Lock()
        self._limit_bytes = limit_bytes
        self._queued_bytes = 0
        self._streams = 0
        self._items = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def is_crowded(self) -> bool:
        """Whether there are so many streams that what each of them reads ahead would add up."""
        return self._streams > _FEW_STREAMS

    def enter(self) -> None:
        """A stream has begun."""
        self._streams += 1

    def leave(self) -> None:
        """A stream has ended."""
        self._streams -= 1

    def add(self, nbytes: int) -> None:
        """An item was put into the outbox."""
        self._queued_bytes += nbytes

    def remove(self, nbytes: int) -> None:
        """An item has left the outbox; the stream that has waited longest continues."""
        self._queued_bytes -= nbytes
        if self._queued_bytes < self._limit_bytes:
            while self._waiters:
                waiter = self._waiters.popleft()
                if not waiter.done():
                    wake(waiter)
                    break

    def settle(self) -> None:
        """Gives back what `ready` reserved; the item was added by then, or there is none."""
        self.remove(_RESERVED_BYTES)

    async def ready(self) -> None:
        """Returns when there is room for another item, reserved until `settle`: the item has to be read first."""
        self._items += 1
        if self._items >= _ITEMS_PER_ITERATION and self._queued_bytes < self._limit_bytes:
            # Streams whose items cost nothing to make must not hold the event loop. Not for each item: where other
            # connections keep it busy, an iteration takes long.
            self._items = 0
            await asyncio.sleep(0)
        await self.reserve(_RESERVED_BYTES)

    async def reserve(self, nbytes: int) -> None:
        """Returns when there is room for an answer, which is reserved until `remove`: it has to be read first."""
        while self._queued_bytes >= self._limit_bytes:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self.remove(0)  # this stream was woken; the next one takes its place
                raise
        self._queued_bytes += nbytes
