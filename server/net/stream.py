"""A reactive-streams publisher that is pulled: one item for each one requested, and none that can't be sent yet."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from rsocket.disposable import Disposable
from rsocket.payload import Payload

from shared.errors import InvalidRequest, to_protocol_error
from shared.files.lane import FileItems, finished
from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES

from ..stores.base import OpenFile
from ..work import Operation

__all__ = ["Items", "PullStream", "SendWindow"]

Items = AsyncGenerator[tuple[Payload, bool], None]
"""Pairs of a payload, which may not be empty in both data and metadata (rsocket would drop it), and whether it is the
last, so that no credit is needed to say that the stream is complete."""

_MAX_REQUEST_N: Final = 0x7FFFFFFF
_FEW_STREAMS: Final = 8
# Items of a connection's streams that are made in one turn of the loop: they take some 20 µs each.
_ITEMS_PER_TURN: Final = 16
# What an item is taken for until it is there: a chunk.
_RESERVED_BYTES: Final = CHUNK_BYTES


class SendWindow:
    """How much one connection's streams may have waiting in rsocket's send queue, which itself has no limit.

    A peer can ask for two billion items and read none of them; with this, its server holds `limit_bytes` of them.

    Args:
        limit_bytes: Above this nobody may add; an item is added whole, so the queue can be one item longer.

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
        """Notes that a stream has begun."""
        self._streams += 1

    def leave(self) -> None:
        """Notes that a stream has ended."""
        self._streams -= 1

    def add(self, nbytes: int) -> None:
        """Notes that an item went into the queue."""
        self._queued_bytes += nbytes

    def remove(self, nbytes: int) -> None:
        """Notes that an item left the queue; the stream that has waited longest goes on."""
        self._queued_bytes -= nbytes
        if self._queued_bytes < self._limit_bytes:
            while self._waiters:
                waiter = self._waiters.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    break

    def settle(self) -> None:
        """Gives back what `ready` reserved; the item was added by then, or there is none."""
        self.remove(_RESERVED_BYTES)

    async def ready(self) -> None:
        """Returns when there is room for another item, reserved until `settle`: the item has to be read first."""
        await self._room()
        self._queued_bytes += _RESERVED_BYTES

    async def reserve(self, nbytes: int) -> None:
        """Returns when there is room for an answer, which is reserved until `remove`: it has to be read first."""
        await self._wait()
        self._queued_bytes += nbytes

    async def _room(self) -> None:
        self._items += 1
        if self._items >= _ITEMS_PER_TURN and self._queued_bytes < self._limit_bytes:
            # A turn for the loop: streams whose items cost nothing to make must not hold it. Not for each item: where
            # others keep it busy a turn takes long.
            self._items = 0
            await asyncio.sleep(0)
        await self._wait()

    async def _wait(self) -> None:
        while self._queued_bytes >= self._limit_bytes:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self.remove(0)  # the turn was this stream's; the next one takes it
                raise


class PullStream(Publisher, Subscription, Disposable):
    """Publishes what an async generator yields, an item a credit.

    The generator is started by the first request, runs in one task, and is closed when the stream completes, fails, is
    cancelled, or its connection ends. Its exceptions reach the peer as typed errors.

    Args:
        make: Makes the generator, which may also send items of a file past it, with `send_items`.
        window: The connection's send window.
        operation: Is ended with the stream; None if nobody counts.
        queue: Puts FileItems into the connection's send queue; None where that can't be, and they aren't used.
    """

    def __init__(
        self,
        make: "Callable[[PullStream], Items]",
        window: SendWindow,
        operation: Operation | None = None,
        queue: Callable[[FileItems], None] | None = None,
    ) -> None:
        self._items = make(self)
        self._window = window
        self._operation = operation
        self._queue = queue
        self._file_items: FileItems | None = None
        self._stream_id: int | None = None
        self._credit = 0
        self._has_room = False
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._refusal: InvalidRequest | None = None

    @property
    def sends_files(self) -> bool:
        """Whether `send_items` may be called."""
        return self._queue is not None and self._stream_id is not None

    @property
    def is_crowded(self) -> bool:
        """Whether there are so many streams that what each of them reads ahead would add up."""
        return self._window.is_crowded

    @property
    def digesting(self) -> asyncio.Lock:
        """See `SendWindow`."""
        return self._window.digesting

    async def send_items(self, file: OpenFile, offset: int, count: int, item_bytes: int, digest: Digest | None) -> int:
        """Sends items of a file, past the generator; how many could be sent.

        Args:
            file: Where the bytes are.
            offset: Where in the file the first item begins.
            count: How many items there are.
            item_bytes: What each of them carries.
            digest: Gets the bytes while they pass; None to do without.

        Raises:
            Exception: Whatever reading the file raised.
        """
        assert self._queue is not None, "ask `sends_files` first"
        assert self._stream_id is not None, "ask `sends_files` first"
        items = self._file_items = FileItems(
            self._stream_id,
            file.descriptor,
            offset,
            count,
            item_bytes,
            queue=self._queue,
            digest=digest,
            executor=file.executor,
            is_same=file.is_same,
        )
        self._settle()  # they hold no more than one item, however many there are
        self._grant(items)
        try:
            await asyncio.shield(items.finished)
        finally:
            self._file_items = None
            items.withdraw()
            await finished(items.finished)  # the file can't be closed before
            self._credit += items.granted - items.sent
            if self._operation is not None:
                self._operation.nbytes += items.sent_bytes
        if items.failure is not None:
            raise items.failure
        return items.sent

    def _grant(self, items: FileItems) -> None:
        granted = min(self._credit, items.ungranted)
        if granted:
            self._credit -= granted
            items.grant(granted)

    async def demanded(self) -> None:
        """Returns when an item is asked for."""
        while not self._credit:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def subscribe(self, subscriber: Subscriber) -> None:
        self._window.enter()
        self._stream_id = getattr(subscriber, "stream_id", None)
        self._task = asyncio.get_running_loop().create_task(self._run(subscriber))
        self._task.add_done_callback(lambda task: self._finish(task, subscriber))
        subscriber.on_subscribe(self)

    def request(self, n: int) -> None:
        if n <= 0:
            self._refusal = InvalidRequest(f"request-n must be 1 or more, not {n}")
            self.cancel()
            return
        self._credit = min(self._credit + n, _MAX_REQUEST_N)
        if self._file_items is not None:
            self._grant(self._file_items)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def dispose(self) -> None:
        self.cancel()

    async def _run(self, subscriber: Subscriber) -> None:
        async with aclosing(self._items) as items:
            is_last = False
            while not is_last:
                await self.demanded()
                await self._reserve()
                try:
                    payload, is_last = await anext(items)
                    assert payload.data or payload.metadata, "an item that is empty in both vanishes in rsocket"
                    self._credit -= 1
                    if self._operation is not None:
                        self._operation.nbytes += len(payload.data or b"")
                    subscriber.on_next(payload)
                except StopAsyncIteration:
                    break
                finally:
                    self._settle()
        subscriber.on_complete()

    async def _reserve(self) -> None:
        await self._window.ready()
        self._has_room = True

    def _settle(self) -> None:
        if self._has_room:
            self._has_room = False
            self._window.settle()

    def _finish(self, task: asyncio.Task[None], subscriber: Subscriber) -> None:
        # Here rather than in `_run`, which doesn't run at all if it is cancelled before its first turn.
        self._window.leave()
        self._task = None  # whose exception leads back here, in a circle
        outcome = asyncio.CancelledError() if task.cancelled() else task.exception()
        error = self._refusal or outcome
        if error is not None and not isinstance(error, asyncio.CancelledError):
            subscriber.on_error(to_protocol_error(error))
        if self._operation is not None:
            self._operation.end(error)
