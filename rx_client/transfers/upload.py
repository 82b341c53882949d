"""An upload in chunks: one channel an attempt, each going on where the server has it."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from uuid import uuid4

from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.errors import IntegrityError, InvalidRequest, ProtocolError, SourceExhausted
from shared.files.lane import FileItems
from shared.protocol.digest import Digest
from shared.protocol.flow import UploadSender, choose_windows
from shared.protocol.messages import (
    CHUNK_BYTES,
    UNSEEN_CHUNK_BYTES,
    Receipt,
    UploadEnd,
    UploadRequest,
    find_transfer,
    transfer_metadata,
    transfer_request,
)
from shared.protocol.wire import FileInfo, Route

from ..connection.connector import Connector
from ..events import Completed, Progress, Started, TransferEvent
from ..requests.cold import ChannelRequest, transport_of
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
        self, connector: Connector, emit: Callable[[TransferEvent], None], tasks: set[asyncio.Task[None]]
    ) -> None:
        """Uploads what the server doesn't have yet, and emits Started, Progress as bytes become durable, Completed.

        Args:
            connector: Gives the connection.
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
        rsocket = await connector.connect()
        is_unseen = self._chunk_bytes is None and self._is_unseen(rsocket)
        window, direct_window = choose_windows(self._window, is_unseen=is_unseen)
        chunk_bytes = UNSEEN_CHUNK_BYTES if is_unseen else self._chunk_bytes or CHUNK_BYTES
        channel = _Channel(connector, rsocket, payload, window, direct_window, chunk_bytes, emit, started)
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

    def _is_unseen(self, rsocket: RSocketBase) -> bool:
        """Whether nobody looks at the bytes, so that they can stay in the system."""
        transport = transport_of(rsocket)
        is_file = isinstance(self._source, PathSource) and transport is not None and transport.moves_files
        return is_file and self._algorithm is None

    async def _send(self, channel: "_Channel", start: int) -> None:
        try:
            await self._send_chunks(channel, start)
        except Exception:
            channel.request.fail()
            raise

    async def _send_chunks(self, channel: "_Channel", start: int) -> None:
        digest = self._digest_before(start)
        offset = digest.length if digest is not None else start
        source = self._source
        if isinstance(source, PathSource) and channel.moves_files:
            async with source.open(start) as file:
                if digest is not None and offset < start:
                    await self._catch_up(digest, file, start)
                offset = await self._send_file(channel, file, start, digest)
                offset = await self._send_rest(channel, file, offset, start, digest)
        else:
            offset = await self._send_rest(channel, source, offset, start, digest)
        if offset < start:
            raise SourceExhausted(f"the source has {offset} bytes; the server has {start} already", name=self._name)
        await channel.ready()
        self._has_sent_all = True
        channel.send(b"", UploadEnd(offset, None if digest is None else digest.text()))

    async def _send_rest(
        self,
        channel: "_Channel",
        source: Source | OpenPath,
        offset: int,
        start: int,
        digest: Digest | None,
    ) -> int:
        """Sends what `source` has from `offset` on, of which the server has what is before `start`; where it ends."""
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
        return offset

    async def _send_file(self, channel: "_Channel", file: OpenPath, offset: int, digest: Digest | None) -> int:
        """Sends the file's chunks past the event loop, all but the last; where that begins."""

        def remember() -> None:
            assert digest is not None, "it isn't called without"
            self._digests.append(digest.copy())

        count = max(file.size - offset - 1, 0) // channel.chunk_bytes
        if not count:
            return offset
        items = FileItems(
            channel.request.id,
            file.fileno(),
            offset,
            count,
            channel.chunk_bytes,
            queue=channel.request.queue,
            digest=digest,
            on_item=None if digest is None else remember,
        )
        # If fewer can be sent, it is shorter than it was: the rest will tell.
        return offset + channel.chunk_bytes * await channel.send_items(items, self._forget)

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

    def __init__(
        self,
        connector: Connector,
        rsocket: RSocketBase,
        payload: Payload,
        window: int,
        direct_window: int,
        chunk_bytes: int,
        emit: Callable[[TransferEvent], None],
        started: Started,
    ) -> None:
        self.chunk_bytes = chunk_bytes
        self.request = ChannelRequest(connector, rsocket, payload, self)
        self.info: FileInfo | None = None
        self._sender = UploadSender(window)
        self._window = window
        self._direct_window = direct_window
        self._emit = emit
        self._started = started
        self._start: int | None = None
        self._is_ended = False
        self._failure: Exception | None = None
        self._grant: Callable[[], None] | None = None
        self._wake = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def committed(self) -> int:
        return self._sender.committed

    @property
    def moves_files(self) -> bool:
        """Whether `send_items` can be called."""
        transport = self.request.transport
        return transport is not None and transport.moves_files

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
        self._sender.sends(len(data), is_last=end is not None)
        self.request.send_item(data, None if end is None else transfer_metadata(end), is_last=end is not None)

    async def send_items(self, items: FileItems, on_committed: Callable[[int], None]) -> int:
        """Sends items of a file, whenever another one may be sent; how many could be.

        Raises:
            OSError: The file can't be read.
        """

        def grant() -> None:
            on_committed(self.committed)
            granted = min(self._sender.room, items.ungranted)
            for _ in range(granted):
                self._sender.sends(self.chunk_bytes, is_last=False)
            if granted:
                items.grant(granted)

        self._grant = grant
        self._sender.window = self._direct_window  # no chunk that may be sent waits in memory
        try:
            grant()
            await self.request.send_items(items)
        finally:
            self._grant = None
            self._sender.window = self._window
        if items.failure is not None:
            raise items.failure
        self._sender.takes_back(items.granted - items.sent, self.chunk_bytes)
        return items.sent

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
        start = self._sender.receipt(receipt)
        if start is not None:
            self._start = start
            self._emit(replace(self._started, resumed_from=start))
        elif receipt.committed > before:
            self._emit(Progress(receipt.committed, self._started.total))
        self._on_room()
        return start is not None or receipt.committed > before

    def on_requested(self, count: int) -> None:
        self._sender.requested(count)
        self._on_room()

    def _on_room(self) -> None:
        if self._grant is not None:
            self._grant()
        self._wake.set()

    def is_owed(self) -> bool:
        return self._sender.is_owed

    def on_ended(self, error: Exception | None) -> None:
        self._is_ended = True
        self._failure = error
        self._wake.set()
        if not self._over.done():
            self._over.set_result(None)
