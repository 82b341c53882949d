"""A download in chunks: as an observable of chunks, or into a sink."""

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from reactivex import abc
from rsocket.frame import FragmentableFrame, PayloadFrame
from rsocket.frame_builders import to_request_stream_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.engine import RSocketEngine
from shared.errors import Changed, IntegrityError, ProtocolError
from shared.files.receiving import TAKEN, ReceiveJob
from shared.protocol.adaptive import AdaptiveDemand
from shared.protocol.digest import Digest
from shared.protocol.flow import DEFAULT_WINDOW, Demand, RangeReceiver
from shared.protocol.messages import (
    FILE_CHUNK_BYTES,
    ChunkHead,
    DownloadRequest,
    find_transfer,
    parse_info,
    transfer_request,
)
from shared.protocol.wire import FileInfo, Route

from ..chunks import Chunk
from ..connection.connector import Connector
from ..connection.session import ClientSession
from ..events import Completed, Progress, Started, TransferEvent
from ..requests.base import Request
from ..requests.cold import ColdReactiveXClient
from .limit import RateLimit, Share
from .writers import Sink

# A file that changes faster than it can be downloaded, a log say, isn't started over for ever.
_MAX_RESTARTS: Final = 3
# What may wait for an application's own consumer where the window adapts. The connection is read from whatever that
# does, since it may wait for another answer; so the window bounds what it holds, and counts in a budget.
_MAX_WAITING_BYTES: Final = 12 * 1024 * 1024

__all__ = ["ChunkRequest", "answered_info", "download_into"]


class RangeRequest(Request):
    """One request-stream of a file's chunks, of which the server may be `window` ahead of the consumer.

    If that is None, the window adapts to the line. Where the rate is limited, the first chunk is paid for beforehand,
    and each further one before it is requested.
    """

    def __init__(
        self,
        socket: RSocketBase,
        name: str,
        request: DownloadRequest,
        window: int | None,
        share: Share | None,
        on_error: Callable[[Exception], None],
        *,
        is_file: bool = False,
    ) -> None:
        if share is not None:
            request = replace(request, item_bytes=share.item_bytes)
        payload = Payload(b"", transfer_request(Route.DOWNLOAD, name, request))
        super().__init__(socket, payload, on_error)
        self.receiver = RangeReceiver(name, request)
        self._share = share
        self._demand: Demand
        if share is not None or window is not None or not isinstance(socket, ClientSession):
            self._demand = Demand(DEFAULT_WINDOW if window is None else window, None if share is None else 1)
        elif is_file:
            self._demand = AdaptiveDemand()
        else:
            most = _MAX_WAITING_BYTES // request.item_bytes
            self._demand = AdaptiveDemand(most, request.item_bytes, socket.windows)

    def send(self, connector: Connector) -> None:
        super().send(connector)
        if self._share is not None:
            self._share.on_granted = self._request_one
            self._share.want(self._demand.missing)

    @abstractmethod
    def _on_chunk(self, data: bytes) -> None:
        """Takes a chunk's bytes, after what its item says beside them."""

    @abstractmethod
    def _on_complete(self) -> None:
        """The server has sent everything."""

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_stream_frame(stream_id, self._payload, fragment_size, self._demand.requested)

    def _on_payload(self, frame: PayloadFrame) -> None:
        if frame.flags_next:
            said = find_transfer(bytes(frame.metadata)) if frame.metadata else None
            if said is not None:
                self.receiver.on_head(ChunkHead.from_json(said))
            self._on_chunk(frame.data if isinstance(frame.data, bytes) else bytes(frame.data or b""))
        if frame.flags_complete and not self._is_done:
            self._end()
            self._on_complete()

    def awaits_server(self) -> bool:
        return self._demand.outstanding > 0

    def _end(self) -> None:
        super()._end()
        self._demand.end()

    def _on_consumed(self, items: int = 1) -> None:
        if self._share is not None:
            self._demand.consumed += items
            self._share.want(self._demand.missing)
            return
        more = self._demand.on_consumed(items)
        if more and not self._is_done:
            self.send_request_n(more)

    def _request_one(self) -> None:
        """The limit has granted an item."""
        if not self._is_done:
            self._demand.requested += 1
            self.send_request_n(1)


class ChunkRequest(RangeRequest):
    """A range as chunks for `observer`; each one's credit goes back when it is released. See `RangeRequest`."""

    def __init__(
        self,
        socket: RSocketBase,
        name: str,
        request: DownloadRequest,
        window: int | None,
        share: Share | None,
        observer: abc.ObserverBase[Chunk],
    ) -> None:
        super().__init__(socket, name, request, window, share, observer.on_error)
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._digest = None if request.digest is None else Digest(request.digest)

    def _on_chunk(self, data: bytes) -> None:
        self._demand.on_arrived()
        self.arrived += len(data)
        offset = self.receiver.offset
        self.receiver.on_bytes(len(data))
        if self._share is not None:
            self._share.settle(self._demand.arrived, self.receiver.received)
        if self._digest is not None:
            self._digest.update(data)
        Chunk(offset, data, self._on_consumed, self._loop).deliver(self._observer.on_next)

    def _on_complete(self) -> None:
        if self._digest is not None:
            self.receiver.complete(self._digest)
        self._observer.on_completed()

    def _end(self) -> None:
        super()._end()
        if self._share is not None:
            self._share.close(self.receiver.received)


class SinkRequest(RangeRequest):
    """A range for a sink: the chunks wait in a job until the sink is open, and are then written there."""

    def __init__(
        self,
        socket: RSocketBase,
        name: str,
        request: DownloadRequest,
        window: int | None,
        share: Share | None,
        *,
        is_file: bool,
    ) -> None:
        super().__init__(socket, name, request, window, share, self._on_failed, is_file=is_file)
        # What a caller's own window bounds doesn't hold up the connection.
        may_hold_up = is_file and isinstance(self._demand, AdaptiveDemand)
        self._job = ReceiveJob(self._demand, self._on_written, self._on_held if may_hold_up else None)
        self._failure: Exception | None = None
        self._is_complete = False
        self._consumed = self._written_bytes = self._held_bytes = 0
        self._wake = asyncio.Event()

    async def head(self) -> ChunkHead:
        """What the server says of the file with the first chunk; raises what the request failed with."""
        while self.receiver.head is None:
            if self._is_complete:
                self.receiver.complete(None)
            await self._until_changed()
        return self.receiver.head

    def write_to(self, sink: Sink) -> None:
        """Opens the job: chunks go to the sink, by the file lane where there is one and the sink is a file."""
        file = sink.as_file()
        self._job.open(sink.append, file, self.receiver.on_bytes)
        if file is not None and self.lane is not None and not self._is_done:
            self.lane.receive(self.id, self._job)

    async def written(self) -> bool:
        """Returns True when more was written, False when everything is; raises what the request or sink failed with."""
        while self._job.failure is not None or not (self._is_complete and self._job.is_idle):
            await self._until_changed()
            if self._job.failure is None:
                return True
        return False

    @property
    def is_idle(self) -> bool:
        """Whether everything that has arrived is written."""
        return self._job.is_idle

    async def stop(self) -> None:
        """Ends the request; nothing is written any more when this returns."""
        self.cancel()
        if self.lane is not None:
            self.lane.end_receiving(self.id)
        await self._job.stop()
        if self._share is not None:
            self._share.close(self._job.nbytes)

    def _on_chunk(self, data: bytes) -> None:
        if data is not TAKEN:
            self.arrived += len(data)
            self._job.take(data)
        if self.receiver.head is None:
            raise ProtocolError("the first item of a download must say which file and range it is")
        self._wake.set()

    def _on_held(self, nbytes: int) -> None:
        """So many bytes more, or fewer, wait to be written to the file."""
        if isinstance(self._base, ClientSession):
            self._held_bytes += nbytes
            self._base.on_held(nbytes, self._held_bytes)

    def _on_written(self) -> None:
        """The job has written more, or failed."""
        job = self._job
        self.arrived += job.nbytes - self._written_bytes
        self._written_bytes = job.nbytes
        items, self._consumed = job.items - self._consumed, job.items
        if items:
            if self._share is not None:
                self._share.settle(job.items, job.nbytes)
            self._on_consumed(items)
        if job.failure is not None:
            self.cancel()  # what follows must not be written behind what is missing
        self._wake.set()

    def _on_complete(self) -> None:
        self._is_complete = True
        self._wake.set()

    def _on_failed(self, error: Exception) -> None:
        self._failure = error
        self._wake.set()

    async def _until_changed(self) -> None:
        """Returns when something has arrived or was written; raises what the request or the sink failed with."""
        failure = self._failure or self._job.failure
        if failure is not None:
            raise failure
        await self._wake.wait()
        self._wake.clear()


async def download_into(
    requests: ColdReactiveXClient,
    name: str,
    sink: Sink,
    *,
    algorithm: str | None,
    digest_from: int,
    window: int | None,
    limit: RateLimit | None,
    emit: Callable[[TransferEvent], None],
) -> None:
    """Downloads what `sink` doesn't have yet, and emits Started, Progress as bytes are written, Completed."""
    async with sink.attempt:
        try:
            target = await sink.look()
            restarts = 0
            while True:
                if target.offset > digest_from and target.etag is None:
                    await target.restart()  # the rest may be of another file
                offset, etag = target.offset, target.etag
                request = DownloadRequest(offset, None, etag, algorithm, digest_from if algorithm else None)
                try:
                    info = await _receive(requests, name, request, target, window, limit, emit)
                except Changed:
                    restarts += 1
                    if target.etag is None or restarts > _MAX_RESTARTS:
                        raise
                    await target.restart()
                except IntegrityError:
                    await target.discard()  # a later attempt must not go on with it
                    raise
                else:
                    break
            await target.finish()
        finally:
            await sink.suspend()
        emit(Completed(info))


def answered_info(answer: Payload) -> FileInfo:
    """The FileInfo that an answer is."""
    return parse_info(bytes(answer.metadata or b""))


async def _receive(
    requests: ColdReactiveXClient,
    name: str,
    request: DownloadRequest,
    sink: Sink,
    window: int | None,
    limit: RateLimit | None,
    emit: Callable[[TransferEvent], None],
) -> FileInfo:
    """Makes one attempt to get the rest of the file."""
    share = None if limit is None else limit.share()

    def make(rsocket: RSocketBase) -> SinkRequest:
        has_lane = isinstance(rsocket, RSocketEngine) and rsocket.transport.lane is not None
        is_file = sink.as_file() is not None
        is_large = has_lane and is_file and window is None
        asked = replace(request, item_bytes=FILE_CHUNK_BYTES) if is_large else request
        return SinkRequest(rsocket, name, asked, window, share, is_file=is_file)

    try:
        if share is not None:
            await share.first()
        stream = await requests.open(make)
    except BaseException:
        if share is not None:
            share.close()
        raise
    try:
        info = (await stream.head()).info
        await sink.begin(info)
        emit(Started(None, info.size, sink.offset, name=name))
        reported = sink.offset
        stream.write_to(sink)
        is_more = True
        while is_more:
            is_more = await stream.written()
            if sink.offset > reported:
                reported = sink.offset
                emit(Progress(reported, info.size, name=name))
        return stream.receiver.complete(sink.digest)
    finally:
        await stream.stop()
