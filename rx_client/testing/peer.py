"""A server without a connection: takes the frames of a client's requests, and answers them from a store.

A `Peer` stands in for the rsocket that a `rx_client.requests.base.Request` is given, so that everything above it, from
the checks of arguments to the events, is the client's own. Frames are taken, and answered, in a later event-loop
iteration, as those of a connection.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.frame import (
    CancelFrame,
    Frame,
    FrameFragmentMixin,
    PayloadFrame,
    RequestChannelFrame,
    RequestNFrame,
    RequestResponseFrame,
    RequestStreamFrame,
    exception_to_error_frame,
)
from rsocket.frame_builders import to_payload_frame, to_request_n_frame
from rsocket.payload import Payload
from rsocket.streams.stream_handler import StreamHandler

from shared.aio import wake
from shared.errors import IntegrityError, RemoteError, Superseded, UnknownRoute, to_protocol_error
from shared.frames.outbox import SkippedFrame
from shared.protocol.flow import DEFAULT_WINDOW, UploadReceiver
from shared.protocol.messages import Json, Receipt, UploadEnd, UploadRequest, find_transfer, transfer_metadata
from shared.protocol.metadata import MetadataItem, parse_metadata, parse_routing
from shared.protocol.wire import Route, chat_filename_mimetype, parse_name

from ..transfers.download import SinkRequest
from .faults import LOSE, STALL, Fault
from .server import FakeServer, Served
from .store import Part

__all__ = ["Peer"]

T = TypeVar("T", bound=StreamHandler)

# How often it is looked whether what has arrived was written, and for how long.
_LOOK_SECONDS: Final = 0.001
_MOST_LOOKS: Final = 5000

_log = logging.getLogger(__name__)


class Peer:
    """One connection to a `FakeServer`; `on_lost` is called when it is lost by a fault.

    Attributes:
        is_lost: Whether it has ended.
        open: The requests under way, by their stream.
    """

    def __init__(self, server: FakeServer, on_lost: Callable[[], None]) -> None:
        self.server: Final = server
        self.is_lost = False
        self.open: Final[dict[int, Served]] = {}
        self._on_lost = on_lost
        self._last_id = -1
        self._handlers: dict[int, StreamHandler] = {}
        self._halves: dict[int, _Half] = {}

    # What a request calls, as of an rsocket

    def get_fragment_size_bytes(self) -> int | None:
        return None

    def register_new_stream(self, handler: T) -> T:
        self._last_id += 2
        handler.stream_id = self._last_id
        self._handlers[self._last_id] = handler
        return handler

    def finish_stream(self, stream_id: int) -> None:
        self._handlers.pop(stream_id, None)

    def send_request(self, frame: FrameFragmentMixin) -> None:
        self.send_frame(frame)

    def send_frame(self, frame: Frame | FrameFragmentMixin) -> None:
        asyncio.get_running_loop().call_soon(self._take, frame)

    def send_error(self, stream_id: int, exception: Exception) -> None:
        asyncio.get_running_loop().call_soon(self.end, stream_id)

    # What a stream calls

    def emit(self, stream_id: int, frame: Frame) -> None:
        """Hands a frame to the client."""
        handler = self._handlers.get(stream_id)
        if handler is not None:
            handler.frame_received(frame)

    def send(self, stream_id: int, payload: Payload, *, is_last: bool) -> None:
        """Sends an item, or an answer, and ends the stream with the last one."""
        if is_last:
            self.end(stream_id)
        self.emit(stream_id, to_payload_frame(stream_id, payload, is_last))

    def fail(self, stream_id: int, error: Exception) -> None:
        """Ends a stream with an error."""
        self.end(stream_id)
        is_foreign = isinstance(error, RemoteError)
        text = RSocketProtocolError(ErrorCode.APPLICATION_ERROR, data=str(error)) if is_foreign else None
        self.emit(stream_id, exception_to_error_frame(stream_id, text or to_protocol_error(error)))

    def end(self, stream_id: int) -> None:
        """Ends the server's half of a stream."""
        self.open.pop(stream_id, None)
        half = self._halves.pop(stream_id, None)
        if half is not None:
            half.close()

    def run(self, stream_id: int, step: Callable[[], None]) -> None:
        """Calls `step` for a stream, unless it has ended by then; see `FakeServer.run`. Its failure is the stream's."""

        if stream_id in self.open:
            self.server.run(self.open[stream_id].name, lambda: self._run_now(stream_id, step))

    def _run_now(self, stream_id: int, step: Callable[[], None]) -> None:
        if stream_id in self.open:
            try:
                step()
            except Exception as error:
                if not getattr(error, "code", ""):
                    _log.exception("the fake server failed to serve a request")
                self.fail(stream_id, error)

    def happen(self, stream_id: int, fault: Fault | None, go_on: Callable[[], None], looks: int = 0) -> None:
        """Goes on with a stream, after a fault if there is one.

        What has arrived before is written, and reported, unless that takes long: a test knows where a retry resumes.
        """
        handler = self._handlers.get(stream_id)
        if fault is None:
            go_on()
        elif fault.what is STALL:
            self.run(stream_id, go_on)
            for waiting in self.server.on_stall:
                wake(waiting)
        elif isinstance(handler, SinkRequest) and looks < _MOST_LOOKS:
            looks = max(looks + 1, _MOST_LOOKS - 1) if handler.is_idle else looks + 1  # once more: it is reported then
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self.happen, stream_id, fault, go_on, looks)
        elif fault.what is LOSE:
            self.lose()
            self._on_lost()
        else:
            assert isinstance(fault.what, Exception), "there are no others"
            self.fail(stream_id, fault.what)

    def lose(self) -> None:
        """Ends everything under way, as the end of a connection does."""
        self.is_lost = True
        for stream_id in list(self.open):
            self.end(stream_id)
        lost = RSocketProtocolError(ErrorCode.CONNECTION_ERROR, data="the connection to the server was lost")
        for stream_id in list(self._handlers):
            self.emit(stream_id, exception_to_error_frame(stream_id, lost))

    def _take(self, frame: Frame | FrameFragmentMixin) -> None:
        """Takes a frame, or all fragments of one."""
        first, data, metadata = _joined(frame)
        if first is None or self.is_lost or isinstance(first, SkippedFrame):
            return
        stream_id = first.stream_id
        if isinstance(first, CancelFrame):
            self.end(stream_id)
        elif isinstance(first, RequestNFrame):
            if (half := self._halves.get(stream_id)) is not None:
                half.on_request_n(first.request_n)
        elif isinstance(first, PayloadFrame):
            self.run(stream_id, lambda: self._halves[stream_id].on_item(data, metadata))
        elif isinstance(first, RequestResponseFrame | RequestStreamFrame | RequestChannelFrame):
            self._begin(first, data, metadata)
        elif first.sent_future is not None:  # a metadata push, which has no use here
            first.sent_future.set_result(None)

    def _begin(
        self, frame: RequestResponseFrame | RequestStreamFrame | RequestChannelFrame, data: bytes, metadata: bytes
    ) -> None:
        stream_id = frame.stream_id
        self.open[stream_id] = Served("", "")

        def parse() -> None:
            items = parse_metadata(metadata)
            served = self.open[stream_id] = Served(parse_routing(items), _name_of(items))
            self.server.served.append(served)
            self.run(stream_id, begin)

        def begin() -> None:
            fault = self.server.faults.begin(self.open[stream_id].name)
            self.happen(stream_id, fault, serve)

        def serve() -> None:
            route, name = self.open[stream_id]
            said = find_transfer(metadata) or {}
            if isinstance(frame, RequestResponseFrame):
                self._answer(stream_id, route, name, said, data)
            elif isinstance(frame, RequestStreamFrame):
                items = self.server.store.items(route, name, said)
                self._halves[stream_id] = half = _Items(self, stream_id, name, items)
                half.on_request_n(frame.initial_request_n)
            elif route == Route.UPLOAD:
                self._halves[stream_id] = upload = _Upload(self, stream_id, name, UploadRequest.from_json(said))
                upload.begin()
            else:
                raise UnknownRoute(f"no route {route!r} for request-channel")

        self._run_now(stream_id, parse)

    def _answer(self, stream_id: int, route: str, name: str, said: Json, data: bytes) -> None:
        """Answers a request-response; a fault may come before all of its data is here, or the answer's there."""

        def answer(fault: Fault | None = None) -> None:
            payload = self.server.store.answer(route, name, said, data)
            fault = fault or self.server.faults.step(name, payload.data)[1]
            self.happen(stream_id, fault, lambda: self.send(stream_id, payload, is_last=True))

        passed, fault = self.server.faults.step(name, data)
        if passed < len(data):
            self.happen(stream_id, fault, answer)
        else:
            answer(fault)


class _Half:
    """The server's half of a stream or channel."""

    def __init__(self, peer: Peer, stream_id: int, name: str) -> None:
        self._peer = peer
        self._id = stream_id
        self._name = name

    def on_request_n(self, n: int) -> None:
        """The client asks for more items."""

    def on_item(self, data: bytes, metadata: bytes) -> None:
        """The client has sent an item."""

    def close(self) -> None:
        """The stream has ended."""


class _Items(_Half):
    """Sends items as they are asked for; a fault may cut one in two."""

    def __init__(self, peer: Peer, stream_id: int, name: str, items: Iterator[tuple[Payload, bool]]) -> None:
        super().__init__(peer, stream_id, name)
        self._items = items
        self._rest: tuple[Payload, bool] | None = None
        self._credit = 0
        self._is_due = False

    def on_request_n(self, n: int) -> None:
        self._credit += n
        self._go_on()

    def _go_on(self) -> None:
        if self._credit and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._peer.run, self._id, self._step)

    def _step(self) -> None:
        self._is_due = False
        item, self._rest = self._rest or next(self._items, None), None
        if item is None:
            self._peer.end(self._id)
            self._peer.emit(self._id, to_payload_frame(self._id, Payload(), True, False))
            return
        payload, is_last = item
        fault = None
        if self._name and payload.data:
            data, metadata = bytes(payload.data), payload.metadata
            passed, fault = self._peer.server.faults.step(self._name, data)
            if fault is not None:
                if is_last or passed < len(data):
                    self._rest = (Payload(data[passed:], metadata if is_last else None), is_last)
                payload, is_last = Payload(data[:passed], metadata), False
        self._credit -= 1
        self._peer.send(self._id, payload, is_last=is_last)
        self._peer.happen(self._id, fault, self._go_on)


class _Upload(_Half):
    """Takes an upload's items, each durable at once, and sends receipts."""

    def __init__(self, peer: Peer, stream_id: int, name: str, request: UploadRequest) -> None:
        super().__init__(peer, stream_id, name)
        self._request = request
        self._part: Part | None = None
        self._receiver = UploadReceiver(0, request.size, request.digest)

    def begin(self) -> None:
        """Sends the first receipt, and asks for items; the last one, if the upload was published before."""
        request, store = self._request, self._peer.server.store
        if request.sent_all and (info := store.published(self._name, request.upload_id)) is not None:
            self._send(Receipt(info.size, info))
            return
        part = self._part = store.begin(self._name, request)
        if part.supersede is not None:
            text = f"a newer upload of {self._name!r} with the same id took over"
            part.supersede(Superseded(text, name=self._name))
        part.supersede = partial(self._peer.fail, self._id)
        self._receiver = UploadReceiver(len(part.content), request.size, request.digest)
        self._send(Receipt(len(part.content)))
        self._ask_for(DEFAULT_WINDOW)

    def on_item(self, data: bytes, metadata: bytes) -> None:
        said = find_transfer(metadata)
        self._take(data, None if said is None else UploadEnd.from_json(said))

    def close(self) -> None:
        if self._part is not None:
            self._part.supersede = None

    def _take(self, data: bytes, end: UploadEnd | None) -> None:
        passed, fault = self._peer.server.faults.step(self._name, data)
        part, peer = self._part, self._peer
        assert part is not None, "it has begun"
        try:
            if passed:
                self._receiver.on_bytes(passed)
                part.content += data[:passed]
                self._send(Receipt(len(part.content)))
            if fault is not None:
                peer.happen(self._id, fault, lambda: self._take(data[passed:], end))
            elif end is None:
                self._ask_for(1)
            else:
                self._receiver.on_end(end)
                self._receiver.complete()
                info = peer.server.store.commit(self._name, self._request, end)
                self._send(Receipt(info.size, info))
        except IntegrityError:
            peer.server.store.parts.pop(self._request.upload_id, None)  # what is wrong must not be resumed
            raise

    def _send(self, receipt: Receipt) -> None:
        is_last = receipt.info is not None
        self._peer.send(self._id, Payload(b"", transfer_metadata(receipt)), is_last=is_last)

    def _ask_for(self, items: int) -> None:
        self._peer.emit(self._id, to_request_n_frame(self._id, items))


def _joined(frame: Frame | FrameFragmentMixin) -> tuple[Frame | None, bytes, bytes]:
    """The first fragment, and the data and metadata of all of them."""
    if not isinstance(frame, FrameFragmentMixin):
        return frame, bytes(frame.data or b""), bytes(frame.metadata or b"")
    first = fragment = frame.get_next_fragment()
    data, metadata = list[bytes](), list[bytes]()
    while fragment is not None:
        data.append(bytes(fragment.data or b""))
        metadata.append(bytes(fragment.metadata or b""))
        fragment = frame.get_next_fragment() if fragment.flags_follows else None
    return first, b"".join(data), b"".join(metadata)


def _name_of(items: list[MetadataItem]) -> str:
    return parse_name(items) if any(item.mimetype == chat_filename_mimetype for item in items) else ""
