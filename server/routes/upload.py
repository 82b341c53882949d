"""An upload as a channel: chunks in, receipts out, one owner for each `upload_id`."""

import asyncio
import logging

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from rsocket.disposable import Disposable
from rsocket.payload import Payload

from shared.errors import IntegrityError, InvalidRequest, ProtocolError, Superseded, TransferError, to_protocol_error
from shared.files.lane import FileLane
from shared.files.receiving import TAKEN, ReceiveJob
from shared.protocol.adaptive import AdaptiveDemand
from shared.protocol.flow import Credit, UploadReceiver
from shared.protocol.messages import Receipt, UploadEnd, UploadRequest, find_transfer, transfer_metadata
from shared.protocol.wire import FileInfo

from ..stores.base import Upload
from .table import Request

__all__ = ["UploadChannel"]

_log = logging.getLogger(__name__)


class UploadChannel(Publisher, Subscriber, Subscription, Disposable):
    """Both halves of one `file.upload` channel, as rsocket sees them.

    One object, so that whatever ends one half ends the other: the connection's loss reaches it as `cancel`, the
    client's failure as `on_error`. What is durable by then is kept for the next channel with the same `upload_id`.

    Args:
        request: The request, whose data may be the first bytes; its operation ends with the channel.
    """

    def __init__(self, request: Request[UploadRequest]) -> None:
        session, connection = request.session, request.session.connection
        self._name = request.name
        self._upload_id = session.user.scoped(request.message.upload_id)
        self._owners = session.data.uploads
        self._store = session.store
        self._message = request.message
        self._work = connection.work
        self._operation = request.operation
        self._operation.what += f" {self._upload_id}"
        self._engine = connection.engine
        self._lane: FileLane | None = None
        self._inbound: Subscription | None = None
        self._stream_id: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._receiver: UploadReceiver | None = None
        self._demand = AdaptiveDemand()
        self._wake = asyncio.Event()
        self._job = ReceiveJob(self._demand, self._wake.set, connection.on_held)
        first = bytes(request.payload.data or b"")
        self._has_first = bool(first)
        if first:
            self._job.take(first)  # it counts from now on, however long the store takes to begin
        self._is_complete = False
        self._is_given_up = False
        self._failure: Exception | None = None
        # The receipts: their subscriber, its demand, and the newest one while it waits for demand.
        self._subscriber: Subscriber | None = None
        self._credit = Credit()
        self._receipt: Receipt | None = None
        request.follow(self)

    @property
    def is_upload(self) -> bool:
        """See `server.work.Progress`."""
        return True

    @property
    def moved_bytes(self) -> int:
        """See `server.work.Progress`."""
        return self._operation.received

    @property
    def demand(self) -> int:
        """See `server.work.Progress`."""
        return self._demand.outstanding

    # What rsocket calls

    def on_subscribe(self, subscription: Subscription) -> None:
        self._inbound = subscription
        self._stream_id = getattr(subscription, "stream_id", None)

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        subscriber.on_subscribe(self)
        self._task = self._work.spawn(self._run)
        self._task.add_done_callback(self._on_done)

    def request(self, n: int) -> None:
        if n <= 0:
            self._failure = InvalidRequest(f"request-n must be 1 or more, not {n}", name=self._name)
            self.cancel()
            return
        self._credit.grant(n)
        self._send_receipt()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            self._leave()

    def dispose(self) -> None:
        self.cancel()

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        if self._failure is not None or self._task is None or self._is_complete:
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
        _log.info("the client gave up uploading %r", self._name)
        self._is_given_up = True
        self.cancel()

    # The work

    def _take(self, data: bytes, metadata: bytes) -> None:
        """Takes an item; its data may be with the job already."""
        said = find_transfer(metadata)
        end = None if said is None else UploadEnd.from_json(said)
        receiver = self._receiver
        if receiver is None:
            raise InvalidRequest("an item came before the server asked for any", name=self._name)
        if receiver.end is not None:
            raise InvalidRequest("an item follows the last one of the upload", name=self._name)
        if data is not TAKEN:
            self._job.take(data)
            if not data and end is None:
                raise InvalidRequest("an item of an upload carries bytes, or says that it is the last", name=self._name)
        if end is not None:
            receiver.on_end(end)
            self._end_lane()  # what follows the last item comes here, and is refused

    async def _run(self) -> None:
        message = self._message
        async with self._owners.claim(self._upload_id, self._name, self._supersede, message):
            if message.sent_all:
                published = await self._store.published(self._upload_id, self._name)
                if published is not None:
                    self._finish(published)
                    return
            upload = await self._begin()
            if upload.links and not message.compares:
                await upload.abort()  # neither side could verify it
                upload = await self._begin()
            try:
                await self._receive(upload)
            except IntegrityError:
                await self._job.stop()
                await upload.abort()  # what is wrong must not be resumed
                raise
            finally:
                self._end_lane()
                try:
                    await self._job.stop()
                finally:  # it raises if the channel is ended once more meanwhile
                    await upload.suspend()

    async def _begin(self) -> Upload:
        message = self._message
        return await self._store.begin(
            self._upload_id,
            self._name,
            size=message.size,
            algorithm=message.digest,
            overwrite=message.overwrite,
            modified=message.modified,
        )

    def _supersede(self, error: Superseded) -> None:
        """A newer channel takes over, or the upload is dropped."""
        if self._failure is None:
            self._failure = error
        self.cancel()

    async def _receive(self, upload: Upload) -> None:
        inbound, job, demand = self._inbound, self._job, self._demand
        assert inbound is not None, "rsocket subscribes both halves before the task starts"
        if self._has_first and upload.received:
            raise InvalidRequest(f"the upload goes on at {upload.received}; its request can't carry the first bytes")
        receiver = self._receiver = UploadReceiver(upload.received, self._message.size, self._message.digest)
        self._put_receipt(Receipt(upload.durable, window=upload.window_bytes, digests=tuple(upload.links) or None))
        file = upload.as_file()
        job.open(upload.append, file, receiver.on_bytes)
        if file is not None and self._engine is not None and self._stream_id is not None:
            self._lane = self._engine.transport.lane
            if self._lane is not None:
                self._lane.receive(self._stream_id, job)
        demand.start()
        inbound.request(demand.outstanding)  # the first bytes came unrequested
        items = nbytes = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            consumed, items = job.items - items, job.items
            if job.nbytes > nbytes:
                self._operation.received += job.nbytes - nbytes
                nbytes = job.nbytes
                self._put_receipt(Receipt(await upload.flush() if job.is_idle else upload.durable))
            failure = self._failure or job.failure
            if failure is not None:
                raise _as_answer(failure)
            if job.is_idle and job.items == items and (receiver.end is not None or self._is_complete):
                break
            more = demand.on_consumed(consumed)
            if more and receiver.end is None:
                inbound.request(more)
        end = receiver.complete()
        await job.stop()
        digests = (end.digest, end.rest_digest) if upload.links else (end.digest,)
        self._finish(await upload.commit(*digests))

    def _end_lane(self) -> None:
        if self._lane is not None and self._stream_id is not None:
            self._lane.end_receiving(self._stream_id)

    def _finish(self, info: FileInfo) -> None:
        self._put_receipt(Receipt(info.size, info))
        if not self._is_complete and self._inbound is not None:
            self._inbound.cancel()  # a client that doesn't complete its half would keep the stream open

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._job.forget()
        outcome = asyncio.CancelledError() if task.cancelled() else task.exception()
        error = self._failure or outcome
        if error is not None:
            is_cancelled, subscriber = isinstance(error, asyncio.CancelledError), self._subscriber
            if not is_cancelled and subscriber is not None:
                subscriber.on_error(to_protocol_error(error))
            if self._inbound is not None:
                self._inbound.cancel()
            if is_cancelled and self._is_given_up and subscriber is not None:
                subscriber.on_complete()  # frees the stream here; the client has forgotten it
        self._operation.end(error)
        if error is not None or self._receipt is None:
            self._leave()

    def _put_receipt(self, receipt: Receipt) -> None:
        """Sends a receipt, or keeps it in place of an older one until the client asks for it."""
        self._receipt = receipt
        self._send_receipt()

    def _send_receipt(self) -> None:
        """Sends the receipt that waits, if there is one and the client has asked for it."""
        receipt, subscriber = self._receipt, self._subscriber
        if receipt is None or subscriber is None or not self._credit.available:
            return
        self._receipt = None
        self._credit.take(0)
        subscriber.on_next(Payload(b"", transfer_metadata(receipt)))
        if receipt.info is not None:
            subscriber.on_complete()
        if self._task is None:
            self._leave()

    def _leave(self) -> None:
        """Nothing more is to be sent: drops what leads back here in reference cycles."""
        self._inbound = self._engine = self._lane = self._subscriber = self._receipt = None
        self._job.forget()
        if self._failure is not None:
            self._failure.__traceback__ = None


def _as_answer(error: Exception) -> Exception:
    """The error that is sent to the client: a breach of the protocol is an invalid request."""
    return InvalidRequest(error.message) if isinstance(error, ProtocolError) else error
