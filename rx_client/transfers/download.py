"""A download in chunks: as an observable of chunks, or into a sink."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from reactivex import Observable
from rsocket.frame import FragmentableFrame, PayloadFrame
from rsocket.frame_builders import to_request_stream_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.errors import Changed, IntegrityError
from shared.files.lane import Diversion
from shared.protocol.digest import Digest
from shared.protocol.flow import Demand, RangeReceiver, choose_windows
from shared.protocol.messages import (
    UNSEEN_CHUNK_BYTES,
    ChunkHead,
    DownloadRequest,
    FileRequest,
    find_transfer,
    parse_info,
    transfer_request,
)
from shared.protocol.wire import FileInfo, Route

from ..chunks import Chunk
from ..connection.connector import Connector
from ..events import Completed, Progress, Started, TransferEvent
from ..requests.cold import MAX_SMALL_BYTES, Request, ask_for, transport_of
from .sinks import PathSink, Sink

# A file that changes faster than it can be downloaded, a log say, isn't started over for ever.
_MAX_RESTARTS: Final = 3

__all__ = ["ChunkRequest", "answered_info", "ask_info", "download_into"]


class ChunkListener(Protocol):
    """Who gets the chunks."""

    def on_next(self, value: Chunk, /) -> None: ...
    def on_error(self, error: Exception, /) -> None: ...
    def on_completed(self) -> None: ...


class ChunkRequest(Request):
    """One request-stream of a file's chunks; each one's credit is returned when it is released.

    Args:
        connector: Who gave the connection.
        socket: The connection.
        name: The file.
        request: The range.
        window: Chunks that the server may be ahead of the consumer.
        listener: Gets the chunks.
        digest: To verify the range with, while it passes; None if the listener does that, or nobody.
    """

    def __init__(
        self,
        connector: Connector,
        socket: RSocketBase,
        name: str,
        request: DownloadRequest,
        window: int,
        listener: ChunkListener,
        digest: Digest | None,
    ) -> None:
        payload = Payload(b"", transfer_request(Route.DOWNLOAD, name, request))
        super().__init__(connector, socket, payload, listener.on_error)
        self.receiver = RangeReceiver(name, request)
        self._window = window
        self._demand = Demand(window)
        self._written: asyncio.Future[None] | None = None
        self._listener = listener
        self._digest = digest
        self._diversion: Diversion | None = None

    @property
    def may_divert(self) -> bool:
        """Whether `divert` can be called: nothing is diverted just now, and it would be of use."""
        transport = self.transport
        is_free = self._diversion is None or self._diversion.is_closed
        return is_free and not self._is_done and transport is not None and transport.moves_files

    def divert(self, sink: PathSink, listener: "DiversionListener", window: int) -> None:
        """Lets the chunks that are nothing but bytes be written where they are received, until another one comes.

        Args:
            sink: Takes the chunks' bytes, in a thread. All chunks that came before have to be written.
            listener: Is told of it.
            window: The window that there is to be once chunks come this way, if it is wider than the request's.
        """

        def on_written(items: int, nbytes: int) -> None:
            self._arrived += nbytes  # some of an item is progress, too
            self._demand.received(items)
            self.receiver.plain_items(nbytes)
            # Only now: while chunks come the way of all frames, a window of them may be in memory.
            self._release(items, self._demand.widen(window))
            listener.on_written()

        def on_failed(error: Exception) -> None:
            self.cancel()  # what follows must not be written behind what is missing
            listener.on_error(error)

        transport = self.transport
        assert transport is not None, "ask `may_divert` first"
        write_from = sink.write_from if sink.digest is None else None
        self._diversion = Diversion(sink.write_through, on_written, on_failed, None, write_from)
        self._diversion.grant(self._demand.outstanding, self.receiver.left)
        transport.divert(self.id, self._diversion)

    async def stop_diverting(self) -> None:
        """Returns when no thread writes any more; nothing if nothing is diverted."""
        if self._diversion is not None and (transport := self.transport) is not None:
            await transport.stop_diverting(self.id)

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_stream_frame(stream_id, self._payload, fragment_size, self._demand.window)

    def _on_payload(self, frame: PayloadFrame) -> None:
        if self._diversion is not None:
            self._diversion.close()  # the listener writes this one, and nothing may overtake it
        if frame.flags_next:
            self._demand.received()
            data = bytes(frame.data or b"")
            self._arrived += len(data)
            offset = self.receiver.offset
            said = find_transfer(bytes(frame.metadata)) if frame.metadata else None
            self.receiver.item(data, None if said is None else ChunkHead.from_json(said))
            if self._digest is not None:
                self._digest.update(data)
            chunk = Chunk(offset, data, self._on_released)
            try:
                self._listener.on_next(chunk)
            finally:
                chunk.release()
            self._hold_if_full()
        if frame.flags_complete and not self._is_done:
            self._end()
            if self._digest is not None:
                self.receiver.complete(self._digest)
            self._listener.on_completed()

    def _hold_if_full(self) -> None:
        """Lets nothing more arrive while a window of chunks is in memory.

        What was asked for beyond it was to be written where it is received, and comes the way of all frames instead.
        """
        transport = self.transport
        is_full = self._demand.held >= self._window and self._demand.outstanding > 0
        if is_full and self._written is None and transport is not None and not self._is_done:
            self._written = asyncio.get_running_loop().create_future()
            transport.hold(self._written)

    def _go_on(self) -> None:
        written, self._written = self._written, None
        if written is not None and not written.done():
            written.set_result(None)

    def _end(self) -> None:
        super()._end()
        self._go_on()

    def _is_owed(self) -> bool:
        return self._demand.outstanding > 0 and self._written is None

    def _on_released(self) -> None:
        self._release(1)

    def _release(self, count: int, widened: int = 0) -> None:
        more = self._demand.released(count) + widened
        if self._demand.held < self._window:
            self._go_on()
        if more and not self._is_done:
            if self._diversion is not None:
                self._diversion.grant(more, 0)
            self.send_request_n(more)


class DiversionListener(Protocol):
    """Who hears of chunks that are written where they are received."""

    def on_written(self) -> None:
        """More were written."""
        ...

    def on_error(self, error: Exception, /) -> None:
        """Writing failed."""
        ...


class _Inbox:
    """Holds the chunks that wait to be written; each keeps its credit until then."""

    def __init__(self) -> None:
        self.chunks: deque[Chunk] = deque()
        self.failure: Exception | None = None
        self.is_complete = False
        self.wake = asyncio.Event()

    def on_written(self) -> None:
        self.wake.set()

    def on_next(self, value: Chunk) -> None:
        value.retain()
        self.chunks.append(value)
        self.wake.set()

    def on_error(self, error: Exception) -> None:
        self.failure = error
        self.wake.set()

    def on_completed(self) -> None:
        self.is_complete = True
        self.wake.set()


async def download_into(
    connector: Connector,
    name: str,
    sink: Sink,
    *,
    algorithm: str | None,
    digest_from: int,
    window: int | None,
    emit: Callable[[TransferEvent], None],
) -> None:
    """Downloads what `sink` doesn't have yet, and emits Started, Progress as bytes are written, Completed."""
    async with sink.turn:
        try:
            if isinstance(sink, PathSink) and await sink.has_parts():
                await sink.find_part(await ask_info(connector, Route.STAT, name, FileRequest()))
            restarts = 0
            while True:
                if sink.offset > digest_from and sink.etag is None:
                    await sink.restart()  # nobody can tell whether the rest would be of the same file
                request = DownloadRequest(sink.offset, None, sink.etag, algorithm, digest_from if algorithm else None)
                try:
                    info = await _receive(connector, name, request, sink, window, emit)
                except Changed:
                    restarts += 1
                    if sink.etag is None or restarts > _MAX_RESTARTS:
                        raise
                    await sink.restart()
                except IntegrityError:
                    if isinstance(sink, PathSink):
                        await sink.restart()  # what is wrong must not be gone on with
                    raise
                else:
                    break
            await sink.finish()
        finally:
            await sink.suspend()
        emit(Completed(info))


def ask_info(connector: Connector, route: str, name: str, request: FileRequest) -> Observable[FileInfo]:
    """Asks one of the routes that answer with a FileInfo."""
    payload = Payload(b"", transfer_request(route, name, request))
    return ask_for(connector, payload, answered_info, lambda error: error, MAX_SMALL_BYTES)


def answered_info(answer: Payload) -> FileInfo:
    """The FileInfo that an answer is."""
    return parse_info(bytes(answer.metadata or b""))


async def _receive(
    connector: Connector,
    name: str,
    request: DownloadRequest,
    sink: Sink,
    window: int | None,
    emit: Callable[[TransferEvent], None],
) -> FileInfo:
    inbox = _Inbox()
    rsocket = await connector.connect()
    transport = transport_of(rsocket)
    moves_files = transport is not None and transport.moves_files
    is_unseen = isinstance(sink, PathSink) and sink.digest is None and moves_files
    if is_unseen:
        request = replace(request, item_bytes=UNSEEN_CHUNK_BYTES)
    first_window, direct_window = choose_windows(window, is_unseen=is_unseen)
    stream = ChunkRequest(connector, rsocket, name, request, first_window, inbox, None)
    # Chunks that were written, and whose credit is kept until the rest can be diverted: all that came is written then.
    kept: list[Chunk] = []
    told = sink.offset
    try:
        stream.send()
        is_begun = False
        while True:
            await inbox.wake.wait()
            inbox.wake.clear()
            chunks = [inbox.chunks.popleft() for _ in range(len(inbox.chunks))]
            head = stream.receiver.head
            if chunks and head is not None:
                if not is_begun:
                    is_begun = True
                    await sink.begin(head.info)
                    emit(Started(None, head.info.size, sink.offset))
                await sink.write([chunk.data for chunk in chunks])
                kept += chunks
                if isinstance(sink, PathSink) and stream.may_divert and not inbox.chunks:
                    stream.divert(sink, inbox, direct_window)
                if not (isinstance(sink, PathSink) and stream.may_divert):
                    for chunk in kept:
                        chunk.release()
                    kept.clear()
            if is_begun and head is not None and sink.offset > told:
                told = sink.offset
                emit(Progress(told, head.info.size))
            if inbox.failure is not None:
                raise inbox.failure
            if inbox.is_complete and not inbox.chunks:
                return stream.receiver.complete(sink.digest)
    finally:
        stream.cancel()
        await stream.stop_diverting()
