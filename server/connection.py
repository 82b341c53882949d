"""One client's connection: rsocket's server, with answers that can be stopped and a send queue that can't grow."""

import asyncio
import logging

from rsocket.disposable import Disposable
from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.frame import CancelFrame, Frame, RequestResponseFrame, SetupFrame
from rsocket.frame_builders import to_payload_frame
from rsocket.helpers import payload_from_frame
from rsocket.payload import Payload
from rsocket.rsocket_server import RSocketServer
from rsocket.streams.stream_handler import StreamHandler

from shared.errors import ServerError, to_protocol_error
from shared.outgoing import OutgoingFrame
from shared.transport import FrameTransport, SkippedFrame
from shared.wire import FRAGMENT_SIZE_BYTES

from .data import ChatData
from .handler import FileRequestHandler
from .session import ChatUserSession
from .stream import SendWindow
from .work import Operation, Work

__all__ = ["ServerConnection"]

_log = logging.getLogger(__name__)

# Items of one connection's streams that wait in rsocket's send queue: one fragment's worth.
_SEND_WINDOW_BYTES = FRAGMENT_SIZE_BYTES


class ServerConnection(RSocketServer):
    """Serves one connection from its `connection_made` to its end.

    Args:
        transport: The connection.
        data: What is served.
        work: Counts the operations and owns their tasks.
    """

    def __init__(self, transport: FrameTransport, data: ChatData, work: Work) -> None:
        self._work = work
        self._file_transport = transport
        self._is_set_up = False
        self._window = SendWindow(_SEND_WINDOW_BYTES)
        session = ChatUserSession(data, work, self._window)
        super().__init__(
            transport,
            handler_factory=lambda: FileRequestHandler(session.router_factory()),
            metadata_encoding=WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA,
            fragment_size_bytes=FRAGMENT_SIZE_BYTES,
        )

    async def handle_setup(self, frame: SetupFrame) -> None:
        """As rsocket's, but a SETUP that is rejected, or comes twice, ends the connection."""
        if self._is_set_up:
            self._file_transport.fail(ErrorCode.INVALID_SETUP, "invalid_setup: the connection is set up already")
            return
        try:
            await super().handle_setup(frame)
        except RSocketProtocolError as error:
            self._file_transport.fail(error.error_code, error.data or "rejected_setup: the server gave no reason")
        else:
            self._is_set_up = True

    async def handle_request_response(self, frame: RequestResponseFrame) -> None:
        """As rsocket's, but the stream lives until its answer was sent, so that a CANCEL can stop that."""
        self._stream_control.assert_stream_id_available(frame.stream_id)
        future = await self._handler.request_response(payload_from_frame(frame))
        self._register_stream(frame.stream_id, _Reply(self, future, self._work.begin())).setup()

    def send_payload(self, stream_id: int, payload: Payload, complete: bool = False, is_next: bool = True) -> None:
        """As rsocket's, but counted in the send window, and never larger than a frame.

        rsocket interleaves the fragments of two items of one stream, and the receiver joins them wrongly.
        """
        nbytes = len(payload.data or b"") + len(payload.metadata or b"")
        assert nbytes < FRAGMENT_SIZE_BYTES - 64, "an item of a stream must fit one frame"
        frame = to_payload_frame(stream_id, payload, complete, is_next, FRAGMENT_SIZE_BYTES)
        self._window.add(nbytes)
        self.send_frame(OutgoingFrame(frame, SkippedFrame(), lambda: self._window.remove(nbytes)))


class _Reply(StreamHandler, Disposable):
    """Answers one request-response with what a future gives, fragment by fragment, until cancelled."""

    def __init__(self, socket: ServerConnection, future: asyncio.Future[Payload], operation: Operation) -> None:
        super().__init__(socket)
        self._connection = socket
        self._future = future
        self._operation = operation
        self._outgoing: OutgoingFrame | None = None
        self._is_cancelled = False

    def setup(self) -> None:
        self._future.add_done_callback(self._on_done)

    def frame_received(self, frame: Frame) -> None:
        if isinstance(frame, CancelFrame):
            self.dispose()
            self._finish_stream()

    def dispose(self) -> None:
        self._is_cancelled = True
        self._future.cancel()
        if self._outgoing is not None:
            self._outgoing.withdraw()
        self._operation.end(asyncio.CancelledError())

    def _on_done(self, future: asyncio.Future[Payload]) -> None:
        if self._is_cancelled:
            if not future.cancelled():
                future.exception()  # retrieved, so that asyncio doesn't report it
            return
        if future.cancelled():
            self._fail(ServerError("the server stopped working on this request"))
        elif (error := future.exception()) is not None:
            self._fail(error)
        elif not _is_payload(payload := future.result()):
            _log.error("a route answered with %s, not with a Payload of bytes", type(payload).__name__)
            self._fail(ServerError("the server failed to serve this request; its log says why"))
        else:
            frame = to_payload_frame(self._stream(), payload, complete=True, fragment_size_bytes=FRAGMENT_SIZE_BYTES)
            self._outgoing = OutgoingFrame(frame, SkippedFrame(), self._on_sent)
            self._connection.send_frame(self._outgoing)

    def _on_sent(self) -> None:
        self._operation.end(None)
        self._finish_stream()

    def _fail(self, error: BaseException) -> None:
        typed = error if isinstance(error, RSocketProtocolError) else to_protocol_error(error)
        self._connection.send_error(self._stream(), typed)
        self._operation.end(error)
        self._finish_stream()

    def _stream(self) -> int:
        assert self.stream_id is not None, "rsocket sets the id when it registers the stream"
        return self.stream_id


def _is_payload(value: object) -> bool:
    return isinstance(value, Payload) and all(
        # A route may have put anything there.
        part is None or isinstance(part, bytes | bytearray)  # pyright: ignore[reportUnnecessaryIsInstance]
        for part in (value.data, value.metadata)
    )
