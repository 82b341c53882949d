"""The send window: bounds what the streams of a connection have in its outbox, which has no limit itself."""

import asyncio
from collections import deque
from typing import Final

from shared.aio import wake
from shared.frames.room import LEAST_BYTES, SendRoom
from shared.protocol.messages import CHUNK_BYTES
from shared.protocol.wire import FRAGMENT_SIZE_BYTES

__all__ = ["SendWindow"]

# Above this nothing is added: one fragment's worth. An item is added whole, so there can be one more.
_LIMIT_BYTES: Final = FRAGMENT_SIZE_BYTES
_FEW_STREAMS: Final = 8
# Items of a connection's streams that are made in one event-loop iteration: they take some 20 µs each.
_ITEMS_PER_ITERATION: Final = 16
# The room that is reserved for an item before it is read: a chunk.
_RESERVED_BYTES: Final = CHUNK_BYTES


class SendWindow:
    """Bounds the items in the outbox by their bytes: a peer can request two billion items and read none of them.

    Args:
        room: That of all connections; its own, without a limit, if None.

    Attributes:
        room: Where the items count, too; while it is short, the window is small.
        digesting: Held by a stream that reads for its digest what the peer has already: one stream at a time.
    """

    def __init__(self, room: SendRoom | None = None) -> None:
        self.room: Final = room or SendRoom()
        self.digesting: Final = asyncio.Lock()
        self._queued_bytes = 0
        self._counted_bytes = 0
        self._is_closed = False
        self._streams = 0
        self._items = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def is_crowded(self) -> bool:
        """Whether there are too many streams for each of them to read ahead."""
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
        if not self._is_closed:
            self._counted_bytes += nbytes
            self.room.add(nbytes)

    def remove(self, nbytes: int) -> None:
        """An item has left the outbox; the stream that has waited longest continues."""
        if not self._is_closed:
            self._counted_bytes -= nbytes
            self.room.add(-nbytes)
        self.release(nbytes)

    def close(self) -> None:
        """The connection has ended, and its outbox is empty."""
        self._is_closed = True
        self.room.add(-self._counted_bytes)

    def release(self, nbytes: int) -> None:
        """Undoes `reserve`."""
        self._queued_bytes -= nbytes
        if self._queued_bytes < _LIMIT_BYTES:
            while self._waiters:
                waiter = self._waiters.popleft()
                if not waiter.done():
                    wake(waiter)
                    break

    def settle(self) -> None:
        """Gives back what `ready` reserved: the item was added, or there is none."""
        self.release(_RESERVED_BYTES)

    async def ready(self) -> None:
        """Waits for room for another item, which stays reserved until `settle` while the item is read."""
        self._items += 1
        if self._items >= _ITEMS_PER_ITERATION and self._queued_bytes < _LIMIT_BYTES:
            # Streams whose items cost nothing to make must not hold the event loop. Not for each item: where other
            # connections keep it busy, an iteration takes long.
            self._items = 0
            await asyncio.sleep(0)
        await self.reserve(_RESERVED_BYTES)

    async def reserve(self, nbytes: int) -> None:
        """Waits for room for `nbytes`, which stays reserved until `release`."""
        while self._queued_bytes >= (LEAST_BYTES if self.room.is_short else _LIMIT_BYTES):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self.release(0)  # this stream was woken; the next one takes its place
                raise
        self._queued_bytes += nbytes
