"""A reactive-streams publisher over an async generator: an item is made when it is requested and can be sent."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from rsocket.disposable import Disposable
from rsocket.payload import Payload

from shared.aio import wait_uncancelled, wake
from shared.errors import InvalidRequest, to_protocol_error
from shared.files.sending import FileRange, SendJob
from shared.protocol.digest import Digest
from shared.protocol.flow import Credit

from ..work import Operation
from .context import ConnectionContext

__all__ = ["Items", "PullStream"]

Items = AsyncGenerator[Payload | tuple[Payload, bool], None]
"""Payloads, or pairs of a payload and whether it is the last, so that completing the stream needs no credit. A payload
that is empty in both data and metadata is an error, since rsocket would drop it."""


class PullStream(Publisher, Subscription, Disposable):
    """Publishes what an async generator yields, an item for each one requested.

    The generator is started by the first request, runs in one task, and is closed when the stream completes, fails, is
    cancelled, or its connection ends. Its exceptions reach the peer as typed errors.

    Args:
        make: Makes the generator, which may send a file instead of yielding items, with `send_file`.
        connection: The stream's.
        operation: Is ended with the stream.

    Attributes:
        window: The connection's send window.
    """

    def __init__(
        self, make: "Callable[[PullStream], Items]", connection: ConnectionContext, operation: Operation
    ) -> None:
        self.window: Final = connection.window
        self._items = make(self)
        self._operation = operation
        self._engine = connection.engine
        self._stream_id: int | None = None
        self._credit = Credit()
        self._job: SendJob | None = None
        self._has_room = False
        self._wake: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._refusal: InvalidRequest | None = None
        self._counted_bytes = 0  # of the job's

    @property
    def is_upload(self) -> bool:
        """See `server.work.Progress`."""
        return False

    @property
    def moved_bytes(self) -> int:
        """See `server.work.Progress`."""
        return self._operation.nbytes + (0 if self._job is None else self._job.nbytes - self._counted_bytes)

    @property
    def demand(self) -> int:
        """See `server.work.Progress`."""
        return self._credit.granted - self._credit.taken

    @property
    def sends_files(self) -> bool:
        """Whether `send_file` may be called."""
        return self._engine is not None and self._stream_id is not None and self._engine.transport.lane is not None

    async def send_file(
        self, file: FileRange, item_bytes: int, first: bytes, last: Callable[[], bytes], digest: Digest | None
    ) -> None:
        """Sends a file as all of the stream's items; the generator has nothing to yield then.

        Args: see `SendJob`.

        Raises:
            FileChanged: The file was changed or cut short by another program.
            OSError: It couldn't be read.
            CancelledError: The connection ended before.
        """
        engine, stream_id = self._engine, self._stream_id
        if engine is None or stream_id is None:
            raise RuntimeError("ask `sends_files` first")
        self._settle()  # a job holds no more than one item, however many there are
        job = self._job = SendJob(
            stream_id,
            file,
            item_bytes,
            self._credit,
            engine.outbox.put,
            first=first,
            last=last,
            digest=digest,
            room=self.window.room,
        )
        try:
            job.resume()
            await asyncio.shield(job.finished)
        finally:
            job.stop()
            await wait_uncancelled(job.finished)  # the file can't be closed before
            self._counted_bytes = job.nbytes
            self._operation.nbytes += self._counted_bytes
        if job.failure is not None:
            raise job.failure
        if not job.is_all_sent:
            raise asyncio.CancelledError("the connection ended before the file was sent")
        engine.finish_stream(stream_id)  # its last item has completed it

    def wait_without_room(self) -> None:
        """Gives back the room for the next item, which others may need: the generator is going to wait for long."""
        self._settle()

    async def demanded(self) -> None:
        """Returns when an item is requested."""
        while not self._credit.available:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def subscribe(self, subscriber: Subscriber) -> None:
        self.window.enter()
        self._stream_id = getattr(subscriber, "stream_id", None)
        self._task = asyncio.get_running_loop().create_task(self._run(subscriber))
        self._task.add_done_callback(lambda task: self._finish(task, subscriber))
        subscriber.on_subscribe(self)

    def request(self, n: int) -> None:
        if n <= 0:
            self._refusal = InvalidRequest(f"request-n must be 1 or more, not {n}")
            self.cancel()
            return
        self._credit.grant(n)
        if self._job is not None:
            self._job.resume()
        wake(self._wake)

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
                await self.window.ready()
                self._has_room = True
                try:
                    is_last = self._publish(await anext(items), subscriber)
                except StopAsyncIteration:
                    break
                finally:
                    self._settle()
        if self._job is None:
            subscriber.on_complete()

    def _publish(self, item: Payload | tuple[Payload, bool], subscriber: Subscriber) -> bool:
        """Sends an item, which isn't kept here; whether it is the last one."""
        payload, is_last = item if isinstance(item, tuple) else (item, False)
        if not payload.data and not payload.metadata:
            raise ValueError("an item of a stream must not be empty in both data and metadata")
        nbytes = len(payload.data or b"")
        self._credit.take(nbytes)
        self._operation.nbytes += nbytes
        subscriber.on_next(payload)
        return is_last

    def _settle(self) -> None:
        if self._has_room:
            self._has_room = False
            self.window.settle()

    def _finish(self, task: asyncio.Task[None], subscriber: Subscriber) -> None:
        # Here rather than in `_run`, which doesn't run at all if it is cancelled before it starts.
        self.window.leave()
        self._task = self._engine = self._job = None  # which lead back here: reference cycles
        outcome = asyncio.CancelledError() if task.cancelled() else task.exception()
        error = self._refusal or outcome
        if error is not None and not isinstance(error, asyncio.CancelledError):
            subscriber.on_error(to_protocol_error(error))
        self._operation.end(error)
