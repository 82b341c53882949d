"""An upload in chunks: one channel an attempt, each going on where the server has it."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from uuid import uuid4

from rsocket.payload import Payload

from shared.errors import IntegrityError, InvalidRequest, ProtocolError, SourceExhausted
from shared.files.sending import FileChanged, FileRange, SendJob
from shared.protocol.digest import Digest
from shared.protocol.flow import DEFAULT_WINDOW, Credit, UploadSender
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

from ..events import Completed, Progress, Started, TransferEvent
from ..requests.channel import ChannelRequest
from ..requests.cold import ColdReactiveXClient
from .sources import OpenPath, PathSource, Source

__all__ = ["UploadTransfer"]


class UploadTransfer:
    """What the subscriptions of one `upload_from` share: the upload's id, and how far its digest has come.

    Args:
        name: The file's name.
        source: The content.
        size: What the caller says of its length in bytes; None if nothing.
        chunk_bytes: What one item carries; None for whatever is best.
        window: Chunks that may be sent and not yet durable; None for whatever is best.
        overwrite: Whether a file of that name may be replaced.
        algorithm: Of the digest to verify with; None to do without.
        upload_id: Names the upload; None to make one up.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        size: int | None,
        chunk_bytes: int | None,
        window: int | None,
        overwrite: bool,
        algorithm: str | None,
        upload_id: str | None,
    ) -> None:
        self._name = name
        self._source = source
        self._size = size
        self._chunk_bytes = chunk_bytes
        self._window = window
        self._overwrite = overwrite
        self._algorithm = algorithm
        self._upload_id = upload_id or uuid4().hex
        # Running digests at offsets that the server may name on the next attempt, oldest first.
        self._digests: deque[Digest] = deque()
        self._version: object = None
        self._has_sent_all = False

    async def attempt(
        self, requests: ColdReactiveXClient, emit: Callable[[TransferEvent], None], tasks: set[asyncio.Task[None]]
    ) -> None:
        """Uploads what the server doesn't have yet, and emits Started, Progress as bytes become durable, Completed.

        Args:
            requests: Makes the channel.
            emit: Gets the events.
            tasks: Holds what goes on when this has failed: a source that blocks a thread can't be stopped.
        """
        known = await self._source.size()
        if self._size is not None and known is not None and known != self._size:
            raise InvalidRequest(f"the source has {known} bytes, not {self._size}", name=self._name)
        version = await self._source.version()
        if version != self._version or self._source.starts_over:
            self._digests.clear()  # what was sent may not be what the source has now; the server will tell
        self._version = version
        total = known if self._size is None else self._size
        request = UploadRequest(self._upload_id, total, self._algorithm, self._overwrite, self._has_sent_all)
        payload = Payload(b"", transfer_request(Route.UPLOAD, self._name, request))
        started = Started(self._upload_id, total, resumed_from=0)
        channel = _Channel(emit, started)
        request = await requests.make(lambda connector, rsocket: ChannelRequest(connector, rsocket, payload, channel))
        has_lane = isinstance(self._source, PathSource) and request.lane is not None and self._window is None
        chunk_bytes = self._chunk_bytes or (FILE_CHUNK_BYTES if has_lane else CHUNK_BYTES)
        channel.open(request, chunk_bytes, DEFAULT_WINDOW if self._window is None else self._window)
        try:
            start = await channel.start()
            if channel.info is None:
                await channel.while_open(self._send(channel, start), tasks)
            info = await channel.finish()
        except BaseException as error:
            channel.request.cancel()
            if isinstance(error, IntegrityError):
                self._digests.clear()  # of what isn't there any more
            raise
        self._digests.clear()
        self._has_sent_all = False
        emit(Completed(info))

    async def _send(self, channel: "_Channel", start: int) -> None:
        try:
            await self._send_content(channel, start)
        except Exception:
            channel.request.fail()
            raise

    async def _send_content(self, channel: "_Channel", start: int) -> None:
        """Sends what the server doesn't have, by the file lane or by the frame path, and last of all the digest."""
        digest, source = self._digest_before(start), self._source
        if isinstance(source, PathSource):
            async with source.open(start) as file:
                if digest is not None and digest.length < start:
                    await self._catch_up(digest, file, start)
                if channel.request.lane is not None and file.size > start:
                    await self._send_file(channel, file, start, digest)
                else:
                    await self._send_chunks(channel, file, start, start, digest)
        else:
            await self._send_chunks(channel, source, start if digest is None else digest.length, start, digest)

    async def _send_file(self, channel: "_Channel", file: OpenPath, start: int, digest: Digest | None) -> None:
        """Sends the file as it was when it was opened, in a thread."""

        def remember() -> None:
            if digest is not None:
                self._digests.append(digest.copy())

        def end() -> bytes:
            self._has_sent_all = True
            return transfer_metadata(UploadEnd(file.size, None if digest is None else digest.text()))

        channel.on_committed = self._forget
        try:
            await channel.request.send_file(
                lambda queue: channel.job(
                    SendJob(
                        channel.request.id,
                        FileRange(file.fileno(), start, file.size),
                        channel.chunk_bytes,
                        channel.credit,
                        queue,
                        last=end,
                        digest=digest,
                        on_item=remember,
                    )
                )
            )
        except FileChanged:
            raise IntegrityError("the source became shorter while it was read", name=self._name) from None

    async def _send_chunks(
        self, channel: "_Channel", source: Source | OpenPath, offset: int, start: int, digest: Digest | None
    ) -> None:
        """Sends what `source` has from `offset` on, of which the server has what is before `start`."""
        async with aclosing(source.read(offset, channel.chunk_bytes)) as chunks:
            async for chunk in chunks:
                data = chunk
                if digest is not None:
                    digest.update(data)
                if offset < start:
                    # What the server has, but no digest of this process covers.
                    skipped = min(len(data), start - offset)
                    offset, data = offset + skipped, data[skipped:]
                    if not data:
                        continue
                await channel.ready()
                offset += len(data)
                channel.send(data)
                if digest is not None:
                    self._digests.append(digest.copy())
                    self._forget(channel.committed)
        if offset < start:
            raise SourceExhausted(f"the source has {offset} bytes; the server has {start} already", name=self._name)
        await channel.ready()
        self._has_sent_all = True
        channel.send(b"", UploadEnd(offset, None if digest is None else digest.text()))

    async def _catch_up(self, digest: Digest, file: OpenPath, start: int) -> None:
        """Adds what the server has already to the digest."""
        async with aclosing(file.read(digest.length, CHUNK_BYTES)) as chunks:
            async for chunk in chunks:
                digest.update(memoryview(chunk)[: start - digest.length])
                if digest.length == start:
                    return

    def _digest_before(self, start: int) -> Digest | None:
        """A running digest to go on with: the latest that isn't beyond `start`."""
        if self._algorithm is None:
            return None
        while self._digests and self._digests[-1].length > start:
            self._digests.pop()
        return self._digests[-1].copy() if self._digests else Digest(self._algorithm)

    def _forget(self, committed: int) -> None:
        """Forgets the digests at offsets that the server won't go back to."""
        while len(self._digests) > 1 and self._digests[1].length <= committed:
            self._digests.popleft()


class _Channel:
    """One attempt's channel: waits for demand, and turns receipts into events."""

    def __init__(self, emit: Callable[[TransferEvent], None], started: Started) -> None:
        self._request: ChannelRequest | None = None
        self.info: FileInfo | None = None
        self.chunk_bytes = CHUNK_BYTES
        self.on_committed: Callable[[int], None] | None = None
        self._sender = UploadSender(CHUNK_BYTES)
        self._job: SendJob | None = None
        self._emit = emit
        self._started = started
        self._start: int | None = None
        self._is_ended = False
        self._failure: Exception | None = None
        self._wake = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def request(self) -> ChannelRequest:
        assert self._request is not None, "`open` comes first"
        return self._request

    def open(self, request: ChannelRequest, chunk_bytes: int, window: int) -> None:
        """Says what an item carries, and how many may be under way and not durable; before `start`."""
        self._request = request
        self.chunk_bytes = chunk_bytes
        self._sender = UploadSender(window * chunk_bytes)

    @property
    def committed(self) -> int:
        return self._sender.committed

    @property
    def credit(self) -> Credit:
        return self._sender.credit

    def job(self, job: SendJob) -> SendJob:
        """Takes the job that is to be resumed whenever there is credit for it."""
        self._job = job
        return job

    async def start(self) -> int:
        """Sends the request; the offset that the server wants to go on from."""
        self.request.send()
        await self._until(lambda: self._start is not None)
        assert self._start is not None, "that was waited for"
        return self._start

    async def while_open(self, sending: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
        """Runs `sending`; leaves it to its end in `tasks` if the channel fails: it may be waiting for a source."""
        task = asyncio.get_running_loop().create_task(sending)
        tasks.add(task)

        def on_done(_: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled():
                task.exception()  # seen: where it isn't raised below, the channel's failure is the reason for it

        task.add_done_callback(on_done)
        try:
            await asyncio.wait([task, self._over], return_when=asyncio.FIRST_COMPLETED)
            if self._has_sent_all and self._failure is None:
                await asyncio.wait([task])  # a thread hasn't ended yet: it has sent the last item, or closes the source
        finally:
            if not task.done():
                self.request.cancel()
                task.cancel()
        if self._failure is not None:
            raise self._failure
        if not task.done():
            raise ProtocolError("the server completed the upload before it was sent")
        task.result()

    async def ready(self) -> None:
        """Returns when another item may be sent."""
        await self._until(lambda: self._sender.may_send)

    def send(self, data: bytes, end: UploadEnd | None = None) -> None:
        """Sends one item; the last one says so with `end`."""
        self._sender.credit.take(len(data))
        self._sender.is_ended = end is not None
        self.request.send_item(data, None if end is None else transfer_metadata(end), is_last=end is not None)

    async def finish(self) -> FileInfo:
        """Returns when the server has verified and published the file."""
        await self._until(lambda: self.info is not None)
        assert self.info is not None, "that was waited for"
        return self.info

    async def _until(self, condition: Callable[[], bool]) -> None:
        while self._failure is None and not condition():
            if self._is_ended:
                raise ProtocolError("the server completed the upload without a final receipt")
            self._wake.clear()
            await self._wake.wait()
        if self._failure is not None:
            raise self._failure

    # What the request calls

    def on_receipt(self, metadata: bytes) -> bool:
        said = find_transfer(metadata)
        if said is None:
            raise ProtocolError("the server sent a receipt that says nothing")
        receipt = Receipt.from_json(said)
        self.info = receipt.info
        before = self._sender.committed
        start = self._sender.on_receipt(receipt)
        if start is not None:
            self._start = start
            self._emit(replace(self._started, resumed_from=start))
        elif receipt.committed > before:
            self._emit(Progress(receipt.committed, self._started.total))
        if self.on_committed is not None:
            self.on_committed(self._sender.committed)
        self._on_credit()
        return start is not None or receipt.committed > before

    def on_requested(self, count: int) -> None:
        self._sender.credit.grant(count)
        self._on_credit()

    def _on_credit(self) -> None:
        if self._job is not None:
            self._job.resume()
        self._wake.set()

    def is_owed(self) -> bool:
        return self._has_sent_all or self._sender.awaits_server

    @property
    def _has_sent_all(self) -> bool:
        return self._sender.is_ended or (self._job is not None and self._job.has_last)

    def on_ended(self, error: Exception | None) -> None:
        self._is_ended = True
        self._failure = error
        self._wake.set()
        if not self._over.done():
            self._over.set_result(None)
