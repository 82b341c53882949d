"""An upload as a channel: chunks in, receipts out, one owner for each `upload_id`."""

import asyncio
import logging
from collections.abc import Callable

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from rsocket.disposable import Disposable
from rsocket.payload import Payload

from shared.aio import wait_uncancelled
from shared.engine import RSocketEngine
from shared.errors import (
    IntegrityError,
    InvalidRequest,
    ProtocolError,
    Superseded,
    TransferError,
    to_protocol_error,
)
from shared.files.receiving import TAKEN, ReceiveJob
from shared.protocol.flow import DEFAULT_WINDOW, Credit, Demand, UploadReceiver
from shared.protocol.messages import Receipt, UploadEnd, UploadRequest, find_transfer, transfer_metadata
from shared.protocol.wire import FileInfo

from ..stores.base import Store, Upload
from ..stores.owners import UploadOwners
from ..work import Operation, Work

__all__ = ["UploadChannel"]

_log = logging.getLogger(__name__)


class UploadChannel(Publisher, Subscriber, Subscription, Disposable):
    """Both halves of one `file.upload` channel, as rsocket sees them.

    One object, so that whatever ends one half ends the other: the connection's loss reaches it as `cancel`, the
    client's failure as `on_error`. What is durable by then is kept for the next channel with the same `upload_id`.

    Args:
        owners: The newest channel of each upload.
        store: Where the file goes.
        name: The file's name.
        request: What the client asked for.
        first: Bytes that came with the request itself.
        work: Owns the task.
        operation: Is ended with the channel.
        engine: The connection; None in rsocket's own server.
        on_held: Called with the change of what was received and not stored, in bytes.
    """

    def __init__(
        self,
        owners: UploadOwners,
        store: Store,
        name: str,
        request: UploadRequest,
        first: bytes,
        work: Work,
        operation: Operation,
        engine: RSocketEngine | None,
        on_held: Callable[[int], None],
    ) -> None:
        self.name = name
        self.upload_id = request.upload_id
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owners = owners
        self._store = store
        self._request = request
        self._work = work
        self._operation = operation
        self._engine = engine
        self._receipts = _Receipts()
        self._inbound: Subscription | None = None
        self._stream_id: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._first = first
        self._receiver: UploadReceiver | None = None
        self._demand = Demand(DEFAULT_WINDOW)
        self._wake = asyncio.Event()
        self._job = ReceiveJob(self._demand, self._wake.set, on_held)
        self._is_complete = False
        self._is_given_up = False
        self._failure: Exception | None = None

    # What rsocket calls

    def on_subscribe(self, subscription: Subscription) -> None:
        self._inbound = subscription
        self._stream_id = getattr(subscription, "stream_id", None)

    def subscribe(self, subscriber: Subscriber) -> None:
        self._receipts.subscriber = subscriber
        subscriber.on_subscribe(self)
        self._task = self._work.spawn(self._run)
        self._task.add_done_callback(self._on_done)

    def request(self, n: int) -> None:
        if self._receipts.grant(n) and self._task is None:
            self._leave()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            self._leave()

    def dispose(self) -> None:
        self.cancel()

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        if self._failure is not None or self._task is None:
            return
        try:
            data = value.data if isinstance(value.data, bytes) else bytes(value.data or b"")
            self._take(data, bytes(value.metadata or b""))
        except TransferError as error:
            self._failure = _as_answer(error).with_traceback(None)  # which leads back here
        self._is_complete = self._is_complete or is_complete
        self._wake.set()

    def on_complete(self) -> None:
        self._is_complete = True
        self._wake.set()

    def on_error(self, exception: Exception) -> None:
        _log.info("the client gave up uploading %r", self.name)
        self._is_given_up = True
        self.cancel()

    def supersede(self) -> None:
        """A newer channel takes over."""
        if self._failure is None:
            self._failure = Superseded(f"a newer upload of {self.name!r} with the same id took over", name=self.name)
        self.cancel()

    # The work

    def _take(self, data: bytes, metadata: bytes) -> None:
        """Takes an item; its data may be with the job already."""
        said = find_transfer(metadata)
        end = None if said is None else UploadEnd.from_json(said)
        receiver = self._receiver
        if receiver is None:
            raise InvalidRequest("an item came before the server asked for any", name=self.name)
        if receiver.end is not None:
            raise InvalidRequest("an item follows the last one of the upload", name=self.name)
        if data is not TAKEN:
            self._job.take(data)
            if not data and end is None:
                raise InvalidRequest("an item of an upload carries bytes, or says that it is the last", name=self.name)
        if end is not None:
            receiver.on_end(end)
            self._end_lane()  # what follows the last item comes here, and is refused

    async def _run(self) -> None:
        request = self._request
        older = self._owners.claim(self)
        try:
            if older is not None:
                await wait_uncancelled(older.stopped)  # a newer channel waits for this one alone
            if request.sent_all:
                published = await self._store.published(request.upload_id, self.name)
                if published is not None:
                    self._finish(published)
                    return
            upload = await self._store.begin(
                request.upload_id,
                self.name,
                size=request.size,
                algorithm=request.digest,
                overwrite=request.overwrite,
            )
            try:
                await self._receive(upload)
            finally:
                self._end_lane()
                try:
                    await self._job.stop()
                finally:  # it raises if the channel is ended once more meanwhile
                    await upload.suspend()
        finally:
            self._owners.release(self)
            self.stopped.set_result(None)

    async def _receive(self, upload: Upload) -> None:
        inbound, request, job, demand = self._inbound, self._request, self._job, self._demand
        assert inbound is not None, "rsocket subscribes both halves before the task starts"
        if self._first and upload.received:
            raise InvalidRequest(f"the upload goes on at {upload.received}; its request can't carry the first bytes")
        receiver = self._receiver = UploadReceiver(upload.received, request.size, request.digest)
        self._receipts.put(Receipt(upload.durable, window=upload.window_bytes))
        self._open_job(upload, receiver)
        requested = demand.requested
        if self._first:
            requested -= 1  # it came unrequested
            job.take(self._first)
            self._first = b""  # it may be large, and the channel may live for long
        inbound.request(requested)
        items = nbytes = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            consumed, items = job.items - items, job.items
            if job.nbytes > nbytes:
                self._operation.nbytes += job.nbytes - nbytes
                nbytes = job.nbytes
                self._receipts.put(Receipt(await upload.flush() if job.is_idle else upload.durable))
            failure = self._failure or job.failure
            if failure is not None:
                await self._give_up(upload, _as_answer(failure))
            if job.is_idle and job.items == items and (receiver.end is not None or self._is_complete):
                break
            more = demand.on_consumed(consumed)
            if more and receiver.end is None:
                inbound.request(more)
        try:
            end = receiver.complete()
        except IntegrityError as error:
            await self._give_up(upload, error)
            raise
        await job.stop()
        self._finish(await upload.commit(end.digest))

    def _open_job(self, upload: Upload, receiver: UploadReceiver) -> None:
        """Items go to the upload: by the file lane where there is one and the upload is a file."""
        file = upload.as_file()
        self._job.open(upload.append, file, receiver.on_bytes)
        lane = None if self._engine is None else self._engine.transport.lane
        if file is not None and lane is not None and self._stream_id is not None:
            lane.receive(self._stream_id, self._job)

    def _end_lane(self) -> None:
        lane = None if self._engine is None else self._engine.transport.lane
        if lane is not None and self._stream_id is not None:
            lane.end_receiving(self._stream_id)

    async def _give_up(self, upload: Upload, failure: Exception) -> None:
        await self._job.stop()
        if isinstance(failure, IntegrityError):
            await upload.abort()  # what is wrong must not be resumed
        raise failure

    def _finish(self, info: FileInfo) -> None:
        self._receipts.put(Receipt(info.size, info))
        if not self._is_complete and self._inbound is not None:
            self._inbound.cancel()  # a client that doesn't complete its half would keep the stream open

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._first = b""
        outcome = asyncio.CancelledError() if task.cancelled() else task.exception()
        error = self._failure or outcome
        if error is not None:
            is_cancelled = isinstance(error, asyncio.CancelledError)
            if not is_cancelled:
                self._receipts.fail(error)
            if self._inbound is not None:
                self._inbound.cancel()
            if is_cancelled and self._is_given_up:
                self._receipts.complete()  # frees the stream here; the client has forgotten it
        self._operation.end(error)
        if error is not None or not self._receipts.is_due:
            self._leave()

    def _leave(self) -> None:
        """Nothing more is to be sent: drops what leads back here in reference cycles."""
        self._inbound = self._engine = None
        self._job.forget()
        self._receipts.close()
        if self._failure is not None:
            self._failure.__traceback__ = None


def _as_answer(error: Exception) -> Exception:
    """What the client is told of an error: what breaks the protocol is an invalid request."""
    return InvalidRequest(error.message) if isinstance(error, ProtocolError) else error


class _Receipts:
    """What the client is told of its upload: the newest receipt, whenever it has asked for one.

    Attributes:
        subscriber: The client's; None before it subscribes, and after the end.
        is_due: Whether a receipt waits until the client asks for it.
    """

    def __init__(self) -> None:
        self.subscriber: Subscriber | None = None
        self._credit = Credit()
        self._newest: Receipt | None = None

    @property
    def is_due(self) -> bool:
        return self._newest is not None

    def grant(self, n: int) -> bool:
        """The client asks for more receipts; whether one was sent."""
        self._credit.grant(n)
        return self._send()

    def put(self, receipt: Receipt) -> None:
        """Sends the receipt, or keeps it until the client asks for one; an older one that still waits is left out."""
        self._newest = receipt
        self._send()

    def fail(self, error: BaseException) -> None:
        """The upload has failed."""
        if self.subscriber is not None:
            self.subscriber.on_error(to_protocol_error(error))

    def complete(self) -> None:
        """Nothing more is to be said."""
        if self.subscriber is not None:
            self.subscriber.on_complete()

    def close(self) -> None:
        """Drops what waits, and the subscriber."""
        self.subscriber = self._newest = None

    def _send(self) -> bool:
        receipt, subscriber = self._newest, self.subscriber
        if receipt is None or subscriber is None or not self._credit.available:
            return False
        self._newest = None
        self._credit.take(0)
        subscriber.on_next(Payload(b"", transfer_metadata(receipt)))
        if receipt.info is not None:
            subscriber.on_complete()
        return True
