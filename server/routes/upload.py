"""An upload as a channel: chunks in, receipts out, one owner for each `upload_id`."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from rsocket.disposable import Disposable
from rsocket.payload import Payload

from shared.errors import IntegrityError, InvalidRequest, Superseded, TransferError, to_protocol_error
from shared.files.lane import Diversion, finished
from shared.protocol.flow import DEFAULT_WINDOW, DIRECT_WINDOW, UploadReceiver
from shared.protocol.messages import Receipt, UploadEnd, UploadRequest, find_transfer, transfer_metadata
from shared.transport.tcp import FrameTransport

from ..stores.base import FileUpload, Store, Upload
from ..work import Operation, Work

if TYPE_CHECKING:
    from ..data import ChatData

__all__ = ["UploadChannel", "UploadOwners"]

_log = logging.getLogger(__name__)

_MAX_REQUEST_N: Final = 0x7FFFFFFF


class UploadOwners:
    """Who has which upload: the newest channel wins, since the older one may be a half-dead connection."""

    def __init__(self) -> None:
        self._newest: dict[str, UploadChannel] = {}

    def claim(self, channel: "UploadChannel") -> "UploadChannel | None":
        """Makes the channel its upload's owner; an older one ends with Superseded.

        Returns:
            The older one, whose end is to be waited for: threads may still write for it.

        Raises:
            InvalidRequest: The id is in use for another file.
        """
        upload_id = channel.request_made.upload_id
        older = self._newest.get(upload_id)
        if older is not None:
            if older.name != channel.name:
                raise InvalidRequest(f"the upload {upload_id!r} is of another file", name=channel.name)
            older.supersede()
        self._newest[upload_id] = channel
        return older

    def release(self, channel: "UploadChannel") -> None:
        """Notes that the channel has ended."""
        if self._newest.get(channel.request_made.upload_id) is channel:
            del self._newest[channel.request_made.upload_id]


class UploadChannel(Publisher, Subscriber, Subscription, Disposable):
    """Both halves of one `file.upload` channel.

    One object, so that whatever ends one half ends the other: the connection's loss reaches it as `cancel`, the
    client's failure as `on_error`. What is durable by then is kept for the next channel with the same `upload_id`.

    Args:
        data: Who has which upload.
        store: Where the file goes.
        name: The file's name.
        request: What the client asked for.
        first: Bytes that came with the request itself.
        work: Owns the task.
        operation: Is ended with the channel.
        transport: The connection, whose items can be diverted to a file; None if they can't.
        on_unstored: Told of the bytes of each item that has arrived, and, with a minus, that was stored or dropped.
    """

    def __init__(
        self,
        data: "ChatData",
        store: Store,
        name: str,
        request: UploadRequest,
        first: bytes,
        work: Work,
        operation: Operation,
        transport: FrameTransport | None,
        on_unstored: Callable[[int], None],
    ) -> None:
        self.name = name
        self.request_made = request
        self._store = store
        self._owners = data.uploads
        self._first = first
        self._work = work
        self._operation = operation
        self._transport = transport
        self._on_unstored = on_unstored
        self._unstored_bytes = 0
        self._stream_id: int | None = None
        self._diversion: Diversion | None = None
        self._upload: Upload | None = None
        self._task: asyncio.Task[None] | None = None
        self._inbound: Subscription | None = None
        self._outbound: Subscriber | None = None
        self._items: deque[tuple[bytes, UploadEnd | None]] = deque()
        self._receiver: UploadReceiver | None = None
        self._wake = asyncio.Event()
        self._is_complete = False
        self._failure: Exception | None = None
        self._is_given_up = False
        self._receipts = 0
        self._receipt: Receipt | None = None
        self.stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count_unstored(len(first))

    # What rsocket calls

    def on_subscribe(self, subscription: Subscription) -> None:
        self._inbound = subscription
        self._stream_id = getattr(subscription, "stream_id", None)

    def subscribe(self, subscriber: Subscriber) -> None:
        self._outbound = subscriber
        subscriber.on_subscribe(self)
        self._task = self._work.spawn(self._run)
        self._task.add_done_callback(self._on_done)

    def request(self, n: int) -> None:
        self._receipts = min(self._receipts + max(n, 0), _MAX_REQUEST_N)
        self._send_receipt()

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
        if self._diversion is not None:
            self._diversion.close()  # the task stores this one, and nothing may overtake it
        try:
            self._take(bytes(value.data or b""), bytes(value.metadata or b""))
        except TransferError as error:
            self._failure = error.with_traceback(None)  # which leads back here
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
        said = find_transfer(metadata)
        end = None if said is None else UploadEnd.from_json(said)
        if self._receiver is None:
            raise InvalidRequest("an item came before the server asked for any", name=self.name)
        self._receiver.item(data, end)
        self._items.append((data, end))
        self._count_unstored(len(data))

    def _count_unstored(self, nbytes: int) -> None:
        self._unstored_bytes += nbytes
        self._on_unstored(nbytes)

    async def _run(self) -> None:
        request = self.request_made
        older = self._owners.claim(self)
        try:
            if older is not None:
                await finished(older.stopped)  # who comes after this one waits for this one alone
            if request.sent_all:
                published = await self._store.published(request.upload_id, self.name)
                if published is not None:
                    self._finish(Receipt(published.size, published))
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
                await self._stop_diverting()
                await upload.suspend()
        finally:
            self._owners.release(self)
            self.stopped.set_result(None)

    async def _receive(self, upload: Upload) -> None:
        assert self._inbound is not None, "rsocket subscribes both halves before the task starts"
        if self._first and upload.offset:
            raise InvalidRequest(f"the upload goes on at {upload.offset}; its request can't carry the first bytes")
        receiver = UploadReceiver(upload.offset, self.request_made.size, self.request_made.digest, DEFAULT_WINDOW)
        self._receiver = receiver
        self._acknowledge(Receipt(upload.offset))
        granted = DEFAULT_WINDOW
        if self._first:
            receiver.item(self._first, None)
            self._acknowledge(Receipt(await upload.append([self._first])))
            self._count_unstored(-len(self._first))
            self._first = b""  # it may be large, and the channel may live for long
            granted += receiver.stored(1) - 1
        self._divert(upload, receiver)
        self._inbound.request(granted)
        while receiver.end is None or self._items:
            await self._wake.wait()
            self._wake.clear()
            items, count = [data for data, _ in self._items if data], len(self._items)
            self._items.clear()
            if items:
                self._acknowledge(Receipt(await upload.append(items)))
                nbytes = sum(map(len, items))
                self._operation.nbytes += nbytes
                self._count_unstored(-nbytes)
            if self._failure is not None:
                if isinstance(self._failure, IntegrityError):
                    await upload.abort()  # what is wrong must not be gone on with
                raise self._failure
            if self._is_complete and not self._items:
                receiver.complete()
            if not self._items and receiver.end is None:
                self._divert(upload, receiver)
            self._ask_for_more(receiver, count)
        info = await upload.commit(receiver.end.digest)
        self._finish(Receipt(info.size, info))

    def _ask_for_more(self, receiver: UploadReceiver, stored: int, widened: int = 0) -> None:
        more = receiver.stored(stored) + widened
        if more and receiver.end is None and self._inbound is not None:
            if self._diversion is not None:
                self._diversion.grant(more, 0)
            self._inbound.request(more)

    def _divert(self, upload: Upload, receiver: UploadReceiver) -> None:
        """Lets the items that are nothing but bytes be written where they are received, until another one comes."""
        if self._diversion is not None and not self._diversion.is_closed:
            return
        writer = upload.writer() if isinstance(upload, FileUpload) else None
        if writer is None or self._transport is None or self._stream_id is None or not self._transport.moves_files:
            return
        room, size = writer.room, self.request_made.size
        if size is not None:
            room = min(room, size - upload.offset)
        self._upload = upload
        self._diversion = Diversion(
            writer.write, self._on_written, self._on_not_written, writer.executor, writer.write_from
        )
        self._diversion.grant(receiver.outstanding, room)
        self._transport.divert(self._stream_id, self._diversion)

    def _on_written(self, items: int, nbytes: int) -> None:
        if self._receiver is None or self._upload is None or self._failure is not None:
            return
        self._operation.nbytes += nbytes
        self._receiver.plain_items(items, nbytes)
        self._acknowledge(Receipt(self._upload.offset))
        # Only now: while items come the way of all frames, a window of them may be in memory.
        self._ask_for_more(self._receiver, items, self._receiver.widen(DIRECT_WINDOW))

    def _on_not_written(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._wake.set()

    async def _stop_diverting(self) -> None:
        if self._diversion is not None and self._transport is not None and self._stream_id is not None:
            await self._transport.stop_diverting(self._stream_id)

    def _acknowledge(self, receipt: Receipt) -> None:
        self._receipt = receipt
        self._send_receipt()

    def _send_receipt(self) -> None:
        """Sends the newest receipt if the client asked for one; older ones that it didn't take are left out."""
        if self._receipt is None or not self._receipts or self._outbound is None:
            return
        receipt, self._receipt = self._receipt, None
        self._receipts -= 1
        self._outbound.on_next(Payload(b"", transfer_metadata(receipt)))
        if receipt.info is not None:
            self._outbound.on_complete()
        if self._task is None:
            self._leave()

    def _finish(self, receipt: Receipt) -> None:
        self._acknowledge(receipt)
        if not self._is_complete and self._inbound is not None:
            self._inbound.cancel()  # a client that doesn't complete its half would keep the stream open

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._items.clear()
        self._first = b""
        self._count_unstored(-self._unstored_bytes)
        outcome = asyncio.CancelledError() if task.cancelled() else task.exception()
        error = self._failure or outcome
        if error is not None and not isinstance(error, asyncio.CancelledError):
            if not isinstance(error, TransferError):
                _log.error("an upload failed", exc_info=error)
            if self._outbound is not None:
                self._outbound.on_error(to_protocol_error(error))
            if self._inbound is not None:
                self._inbound.cancel()
        elif error is not None and self._inbound is not None:
            self._inbound.cancel()
            if self._is_given_up and self._outbound is not None:
                self._outbound.on_complete()  # frees the stream here; the client has forgotten it
        self._operation.end(error)
        if error is not None or self._receipt is None:
            self._leave()

    def _leave(self) -> None:
        """Nothing more is to be said: breaks the circles that lead back here."""
        self._inbound = self._outbound = self._receipt = self._upload = self._diversion = None
        if self._failure is not None:
            self._failure.__traceback__ = None
