"""One request over a connection: rsocket's frames in, calls out."""

import asyncio
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from rsocket.exceptions import RSocketProtocolError
from rsocket.frame import ErrorFrame, FragmentableFrame, Frame, PayloadFrame
from rsocket.handlers.interfaces import Requester
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase
from rsocket.streams.stream_handler import StreamHandler

from shared.engine import RSocketEngine
from shared.errors import ClientClosed, ConnectionFailed, Stalled, from_error_frame
from shared.frames.outgoing import OutgoingFrame
from shared.protocol.flow import MAX_REQUEST_N
from shared.protocol.wire import FRAGMENT_SIZE_BYTES

from ..connection.connector import Connector
from .stall import ProgressWatch

__all__ = ["MAX_REQUEST_N", "MAX_SMALL_BYTES", "Request", "checked"]

MAX_SMALL_BYTES: Final = 2 * 1024 * 1024
"""A payload that isn't a whole file is smaller than that, however many frames it comes in."""


def checked(payload: Payload) -> Payload:
    """A copy of `payload` that can be sent: rsocket's sender, and the connection with it, would end with anything else.

    Raises:
        TypeError: It isn't a Payload, or its data or metadata is neither bytes-like nor None.
    """
    if not isinstance(payload, Payload):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a request and each item is a Payload, not {type(payload).__name__}")
    return Payload(_as_bytes(payload.data), _as_bytes(payload.metadata))


def _as_bytes(part: bytes | bytearray | memoryview | None) -> bytes | None:
    if part is None or isinstance(part, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
        return None if part is None else bytes(part)
    raise TypeError(f"a payload's data and metadata are bytes-like or None, not {type(part).__name__}")


class Request(StreamHandler, Requester):
    """One request's lifecycle: sent once, ended once, by the server, by an error or by `cancel`.

    Args:
        connector: Gave the connection.
        socket: The connection.
        payload: What is sent.
        on_error: Gets the one error that ends the request, typed.

    Attributes:
        max_payload_bytes: How large a payload may be that the server sends in several frames.
        progress_timeout: Seconds without progress that fail the request with Stalled; None for the connector's.
        arrived: What has arrived, in any unit that grows. Not frames: a server may send empty ones without end.
    """

    max_payload_bytes: float = MAX_SMALL_BYTES
    progress_timeout: float | None = None

    def __init__(
        self, connector: Connector, socket: RSocketBase, payload: Payload, on_error: Callable[[Exception], None]
    ) -> None:
        super().__init__(socket)
        self.arrived = 0
        self._connector = connector
        self._base = socket
        self._payload = payload
        self._on_error = on_error
        self._outgoing: OutgoingFrame | None = None
        self._watch: ProgressWatch | None = None
        self._is_done = False

    def setup(self) -> None:
        """Does nothing: `send` does it all."""

    @abstractmethod
    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        """The request itself."""

    @abstractmethod
    def _on_payload(self, frame: PayloadFrame) -> None:
        """Takes what the server sends."""

    def _on_other(self, frame: Frame) -> None:
        """Takes another frame of this stream; a request-response or a request-stream has no use for it."""

    @property
    def id(self) -> int:
        """The stream's, since `send`."""
        assert self.stream_id is not None, "rsocket sets the id when it registers the stream"
        return self.stream_id

    @property
    def engine(self) -> RSocketEngine | None:
        """The connection, if it is one of ours, and not an application's own rsocket."""
        return self._base if isinstance(self._base, RSocketEngine) else None

    def send(self, on_sent: Callable[[], None] | None = None) -> None:
        """Registers the stream and queues the request; calls `on_sent` when the transport has got all of it."""
        base = self._base
        base.register_new_stream(self)
        # Without a fragment size rsocket sends one frame of any length, whose 24-bit length field wraps.
        fragment_size = min(base.get_fragment_size_bytes() or FRAGMENT_SIZE_BYTES, FRAGMENT_SIZE_BYTES)
        self._outgoing = OutgoingFrame(self._frame(self.id, fragment_size), None, on_sent)
        base.send_request(self._outgoing)
        timeout = self.progress_timeout or self._connector.progress_timeout
        if timeout != math.inf:
            self._watch = ProgressWatch(self, timeout, self._on_stalled)

    def cancel(self) -> None:
        """Ends the request from this side; does nothing if it has ended."""
        if self._is_done:
            return
        self._end()
        # What isn't sent yet is withdrawn, and the CANCEL goes in its place.
        if self._outgoing is None or not self._outgoing.withdraw():
            self.send_cancel()

    def _end_with(self, error: RSocketProtocolError) -> None:
        """Ends a channel from this side with an ERROR frame; does nothing if it has ended."""
        if self._outgoing is None or not self._outgoing.is_sent:
            self.cancel()
        elif not self._is_done:
            self._end()
            self._base.send_error(self.id, error)

    def frame_received(self, frame: Frame) -> None:
        """Takes a frame from rsocket, which would send to the server whatever this raised."""
        if self._is_done:
            return
        try:
            if isinstance(frame, PayloadFrame):
                self._on_payload(frame)
            elif isinstance(frame, ErrorFrame):
                self._end()
                error = from_error_frame(frame.error_code, frame.data or b"")
                is_ours = self._connector.is_closed and isinstance(error, ConnectionFailed)
                self._fail(ClientClosed("the client was closed") if is_ours else error)
            else:
                self._on_other(frame)
        except Exception as error:
            self.cancel()
            self._fail(error)

    def handed_over(self) -> tuple[int, bool]:
        """How many of the request's frames the transport has got, and whether these are all there are so far."""
        return (0, True) if self._outgoing is None else (self._outgoing.fragments, self._outgoing.is_sent)

    def is_owed(self) -> bool:
        """Whether it is the server's turn; if not, a standstill is this side's own doing."""
        return True

    def _end(self) -> None:
        self._is_done = True
        if self._watch is not None:
            self._watch.stop()
            self._watch = None  # which holds this request: a reference cycle
        self._finish_stream()

    def _fail(self, error: Exception) -> None:
        """Emits the error; what an observer raises then is reported to the event loop alone."""
        try:
            self._on_error(error)
        except Exception as unhandled:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "an observer of a transfer raised", "exception": unhandled}
            )

    def _on_stalled(self, text: str) -> None:
        self.cancel()
        self._on_error(Stalled(text))
