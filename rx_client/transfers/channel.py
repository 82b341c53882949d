"""The request-channel of one upload attempt."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TypeVar

from rsocket.frame import CancelFrame, FragmentableFrame, Frame, PayloadFrame, RequestNFrame
from rsocket.frame_builders import to_request_channel_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.aio import wait_uncancelled
from shared.engine import RSocketEngine
from shared.errors import ProtocolError
from shared.files.sending import FileRange, SendJob
from shared.protocol.digest import Digest, DigestLink
from shared.protocol.flow import DEFAULT_WINDOW, MAX_WINDOW_BYTES, WIDEST_WINDOW, UploadSender
from shared.protocol.messages import (
    CHUNK_BYTES,
    FILE_CHUNK_BYTES,
    Receipt,
    UploadEnd,
    UploadRequest,
    find_transfer,
    transfer_metadata,
    transfer_request,
)
from shared.protocol.wire import FileInfo, Route

from ..events import Progress, Started, TransferEvent
from ..requests.base import GAVE_UP, MAX_ITEM_BYTES, MAX_REQUEST_N, Request
from .compared import check_links
from .limit import Share

__all__ = ["UploadChannel"]

T = TypeVar("T")


class UploadChannel(Request):
    """Sends the items of one attempt as the server asks for them, and turns its receipts into events.

    Args:
        socket: The connection.
        name: The file.
        request: What the server needs to know of the upload.
        chunk_bytes: What one item carries; None for whatever is best.
        window: Items that may be sent and not yet durable; None for what the server asks for.
        is_file: Whether the source is a file, for the file lane to send.
        share: Of a rate limit, which then has a say in what an item carries.
        emit: Gets Started, and Progress as bytes become durable.
        on_committed: Called with the number of durable bytes when a receipt has come.
    """

    def __init__(
        self,
        socket: RSocketBase,
        name: str,
        request: UploadRequest,
        *,
        chunk_bytes: int | None,
        window: int | None,
        is_file: bool,
        share: Share | None,
        emit: Callable[[TransferEvent], None],
        on_committed: Callable[[int], None],
    ) -> None:
        payload = Payload(b"", transfer_request(Route.UPLOAD, name, request))
        super().__init__(socket, payload, self._on_ended)
        is_large = is_file and window is None and self.lane is not None and share is None
        self.chunk_bytes = chunk_bytes or (FILE_CHUNK_BYTES if is_large else CHUNK_BYTES)
        if share is not None:
            self.chunk_bytes = share.item_bytes
            share.on_granted = self._on_paid
        self._share = share
        self.info: FileInfo | None = None  # once the server has verified and published the file
        most = min(WIDEST_WINDOW * self.chunk_bytes, MAX_WINDOW_BYTES)
        self._sender = UploadSender(most if window is None else window * self.chunk_bytes)
        self._name = name
        self._upload = request
        self._emit = emit
        self._on_committed = on_committed
        self.links: Sequence[DigestLink] = ()  # what the server knows of the bytes before the start
        self._start: int | None = None
        self._failure: Exception | None = None
        self._wake = asyncio.Event()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> int:
        """Returns the offset that the server wants to go on from."""
        return await self._until(lambda: self._start)

    async def while_open(self, sending: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
        """Runs `sending`; if the channel fails, leaves it to its end in `tasks`: it may be waiting for a source.

        If `sending` fails, the server is notified of that, but not how.
        """
        task = asyncio.get_running_loop().create_task(sending)
        tasks.add(task)

        def on_done(_: asyncio.Task[None]) -> None:
            tasks.discard(task)
            # Where the exception isn't raised below, the channel's failure is the reason for it.
            if not task.cancelled() and task.exception() is not None:
                self._end_with(GAVE_UP)

        task.add_done_callback(on_done)
        try:
            await asyncio.wait([task, self._ended], return_when=asyncio.FIRST_COMPLETED)
            if self._has_last and self._failure is None:
                await asyncio.wait([task])  # a thread hasn't ended yet: it has sent the last item, or closes the source
        finally:
            if not task.done():
                self.cancel()
                task.cancel()
        if self._failure is not None:
            raise self._failure
        if not task.done():
            raise ProtocolError("the server completed the upload before it was sent")
        task.result()

    async def send_chunk(self, data: bytes, end: Callable[[], UploadEnd] | None = None) -> None:
        """Sends one item when the server has asked for it; `end` makes the metadata of the last one."""
        await self._until(lambda: self._may_queue or None)
        metadata = None if end is None else transfer_metadata(end())
        assert 0 < len(data) + len(metadata or b"") <= MAX_ITEM_BYTES, "an item must fit one frame, and not be empty"
        if not self._is_done:
            credit = self._sender.credit
            credit.take(len(data))
            if self._share is not None:
                self._share.settle(credit.taken, credit.sent_bytes)
            self._sender.is_ended = end is not None
            self._send_item(Payload(data, metadata), is_last=end is not None, on_sent=self._wake.set)

    @property
    def _may_queue(self) -> bool:
        """Whether an item may be sent, and few wait for the socket: the window is that of the line, not of memory."""
        if self._sender.may_send:
            self._forget_sent_items()
        return self._sender.may_send and len(self._items) < DEFAULT_WINDOW

    async def send_file(
        self, file: FileRange, *, last: Callable[[], bytes], digest: Digest | None, on_item: Callable[[], None]
    ) -> None:
        """Sends a file by the file lane, the last item included; see `SendJob`. Ask `lane` first.

        Raises:
            Exception: What reading the file or `last` raised, or FileChanged.
        """
        assert isinstance(self._base, RSocketEngine), "it has a lane"
        credit, queue = self._sender.credit, self._base.outbox.put
        job = SendJob(self.id, file, self.chunk_bytes, credit, queue, last=last, digest=digest, on_item=on_item)
        self._file = job
        try:
            job.resume()
            await asyncio.shield(job.finished)
        finally:
            job.stop()
            await wait_uncancelled(job.finished)
        if job.failure is not None:
            raise job.failure

    async def spoil(self, digest: str | None) -> None:
        """Sends a last item that can't be right, so that the server drops the upload."""
        start, sent = self._start or 0, self._sender.credit.sent_bytes
        await self.send_chunk(b"", lambda: UploadEnd(start + sent + 1, digest, digest if self.links else None))

    @property
    def sent_bytes(self) -> int:
        """Bytes that were sent."""
        return self._sender.credit.sent_bytes

    async def finish(self) -> FileInfo:
        """Returns when the server has verified and published the file."""
        return await self._until(lambda: self.info)

    async def _until(self, look: Callable[[], T | None]) -> T:
        """Returns what `look` returns, once that isn't None."""
        while self._failure is None:
            if (seen := look()) is not None:
                return seen
            if self._ended.done():
                raise ProtocolError("the server completed the upload without a final receipt")
            self._wake.clear()
            await self._wake.wait()
        raise self._failure

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_channel_frame(stream_id, self._payload, fragment_size, MAX_REQUEST_N)

    def awaits_server(self) -> bool:
        is_limited = self._share is not None and self._share.is_waiting
        return self._has_last or (not is_limited and self._sender.awaits_server)

    def _on_payload(self, frame: PayloadFrame) -> None:
        if frame.flags_complete:
            self._end()
        if frame.flags_next:
            self._on_receipt(bytes(frame.metadata or b""))
        if frame.flags_complete:
            self._on_ended(None)

    def _on_receipt(self, metadata: bytes) -> None:
        said = find_transfer(metadata)
        if said is None:
            raise ProtocolError("the server sent a receipt that says nothing")
        receipt = Receipt.from_json(said)
        if receipt.info is not None and receipt.info.name != self._name:
            raise ProtocolError("the server published another file than was sent", name=self._name)
        self.info = receipt.info
        before = self._sender.committed
        start = self._sender.on_receipt(receipt)
        if start is not None:
            self.links = check_links(receipt, self._upload.digest, self._name)
            self._start = start
            self._emit(Started(self._upload.upload_id, self._upload.size, start, name=self._name))
        elif receipt.committed > before:
            self._emit(Progress(receipt.committed, self._upload.size, name=self._name))
        self.arrived += start is not None or receipt.committed > before  # a repeated receipt is no progress
        self._on_committed(receipt.committed)
        self._on_credit()

    def _on_other(self, frame: Frame) -> None:
        if isinstance(frame, RequestNFrame):
            if self._share is not None:
                self._share.want_more(frame.request_n)
                return
            self._sender.credit.grant(frame.request_n)
            self._on_credit()
        elif isinstance(frame, CancelFrame):
            has_sent_all = self._sender.is_ended or (self._file is not None and self._file.is_all_sent)
            if not has_sent_all:
                self._end()
                self._on_ended(ProtocolError("the server stopped the upload without saying why"))

    @property
    def _has_last(self) -> bool:
        """Whether the last item is on its way, or sent."""
        return self._sender.is_ended or (self._file is not None and self._file.has_last)

    def _on_paid(self) -> None:
        """The limit has granted an item that the server has asked for."""
        self._sender.credit.grant(1)
        self._on_credit()

    def _end(self) -> None:
        super()._end()
        if self._share is not None:
            self._share.close(self._sender.credit.sent_bytes)

    def _on_credit(self) -> None:
        if self._file is not None:
            self._file.resume()
        self._wake.set()

    def _on_ended(self, error: Exception | None) -> None:
        """The server has completed (None), or the channel has failed."""
        self._failure = error
        self._wake.set()
        if not self._ended.done():
            self._ended.set_result(None)
