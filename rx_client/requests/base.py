"""One request over a connection: rsocket's frames in, calls out."""

import asyncio
import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Final

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.frame import ErrorFrame, FragmentableFrame, Frame, PayloadFrame
from rsocket.frame_builders import to_payload_frame
from rsocket.handlers.interfaces import Requester
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase
from rsocket.streams.stream_handler import StreamHandler

from shared.engine import RSocketEngine
from shared.errors import ClientClosed, ConnectionFailed, Stalled, from_error_frame
from shared.files.lane import FileLane
from shared.files.sending import SendJob
from shared.frames.outbox import SkippedFrame
from shared.frames.outgoing import OutgoingFrame
from shared.protocol.flow import MAX_REQUEST_N
from shared.protocol.wire import FRAGMENT_SIZE_BYTES

from ..connection.connector import Connector
from ..rx.observables import report_raised

__all__ = ["GAVE_UP", "MAX_ITEM_BYTES", "MAX_REQUEST_N", "MAX_SMALL_BYTES", "Request", "checked"]

MAX_SMALL_BYTES: Final = 2 * 1024 * 1024
"""A payload that isn't a whole file is smaller than that, however many frames it comes in."""

MAX_ITEM_BYTES: Final = FRAGMENT_SIZE_BYTES - 64
"""The most data and metadata of an item: rsocket 0.4.20 mixes up the fragments of items that wait together."""

GAVE_UP: Final = RSocketProtocolError(ErrorCode.APPLICATION_ERROR, data="internal: the client gave up")
"""Ends a channel that failed on this side, without saying how."""

_CHECKS_PER_TIMEOUT: Final = 8
# Most requests have ended by the first check, which asks the system.
_FIRST_CHECK_SECONDS: Final = 0.25


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

    `on_error` gets the one error that ends it, typed.

    Attributes:
        max_payload_bytes: How large a payload may be that the server sends in several frames.
        progress_timeout: Seconds without progress that fail the request with Stalled; None for the connector's.
        arrived: What has arrived, in any unit that grows. Not frames: a server may send empty ones without end.
    """

    max_payload_bytes: float = MAX_SMALL_BYTES
    progress_timeout: float | None = None

    # The state of the stall check: when something moved last, and how far everything had come by then (see `_check`).
    _timer: asyncio.TimerHandle | None = None
    _due_at = _moved_at = 0.0
    _seen = (-1, 0, 0, 0)
    _handed_until = 0

    def __init__(self, socket: RSocketBase, payload: Payload, on_error: Callable[[Exception], None]) -> None:
        super().__init__(socket)
        self.arrived = 0
        self._connector: Connector | None = None
        self._base = socket
        self._payload = payload
        self._on_error = on_error
        self._outgoing: OutgoingFrame | None = None
        # A channel's items that may still be withdrawn, and how many were sent; the file whose items queue themselves.
        self._items: list[OutgoingFrame] = []
        self._items_sent = 0
        self._file: SendJob | None = None
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

    def _sent_hook(self) -> Callable[[], None] | None:
        """What is called when the transport has got the request's last fragment; None for nothing.

        None by default, since what waits in the outbox leads back to a bound method's request: a reference cycle, if
        the connection is lost first.
        """
        return None

    def awaits_server(self) -> bool:
        """Whether the server has to do something; if not, a standstill is this side's own doing."""
        return True

    @property
    def id(self) -> int:
        """The stream's, since `send`."""
        assert self.stream_id is not None, "rsocket sets the id when it registers the stream"
        return self.stream_id

    @property
    def lane(self) -> FileLane | None:
        """What moves a file's bytes in a thread; None where that can't be, or the rsocket is an application's own."""
        return self._base.transport.lane if isinstance(self._base, RSocketEngine) else None

    def send(self, connector: Connector) -> None:
        """Registers the stream and queues the request."""
        self._connector = connector
        base = self._base
        base.register_new_stream(self)
        # Without a fragment size rsocket sends one frame of any length, whose 24-bit length field wraps.
        fragment_size = min(base.get_fragment_size_bytes() or FRAGMENT_SIZE_BYTES, FRAGMENT_SIZE_BYTES)
        self._outgoing = OutgoingFrame(self._frame(self.id, fragment_size), None, self._sent_hook())
        base.send_request(self._outgoing)
        timeout = self.progress_timeout or connector.progress_timeout
        if timeout != math.inf:
            first_check = min(timeout / _CHECKS_PER_TIMEOUT, _FIRST_CHECK_SECONDS)
            loop = asyncio.get_running_loop()
            self._due_at = loop.time() + first_check
            self._timer = loop.call_later(first_check, self._check, timeout)

    def _send_item(
        self, payload: Payload | None, *, is_last: bool = False, on_sent: Callable[[], None] | None = None
    ) -> None:
        """Queues an item of a channel, in one frame; `payload` is None for the completion without an item."""
        frame = to_payload_frame(self.id, payload or Payload(), is_last, payload is not None, FRAGMENT_SIZE_BYTES)
        skipped = SkippedFrame()
        skipped.stream_id = self.id
        item = OutgoingFrame(frame, skipped, on_sent)
        self._forget_sent_items()
        self._items.append(item)
        self._base.send_frame(item)

    def _forget_sent_items(self) -> None:
        while self._items and self._items[0].is_sent:
            del self._items[0]
            self._items_sent += 1

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
                is_closed = self._connector is not None and self._connector.is_closed
                is_ours = is_closed and isinstance(error, ConnectionFailed)
                self._fail(ClientClosed("the client was closed") if is_ours else error)
            else:
                self._on_other(frame)
        except Exception as error:
            self.cancel()
            self._fail(error)

    def _end(self) -> None:
        self._is_done = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # which holds this request: a reference cycle
        self._finish_stream()
        if self._items:
            for item in self._items:
                item.withdraw()
            self._items.clear()
        if self._file is not None:
            self._file.stop()

    def _fail(self, error: Exception) -> None:
        """Emits the error; what an observer raises then is reported to the event loop alone."""
        report_raised(self._on_error, error)

    def _check(self, timeout: float) -> None:
        """Fails the request with Stalled once nothing has moved for `timeout`, though keepalives may go to and fro."""
        loop, outgoing, file = asyncio.get_running_loop(), self._outgoing, self._file
        assert outgoing is not None, "`send` starts the checks"
        self._forget_sent_items()
        handed = outgoing.fragments + self._items_sent + (0 if file is None else file.frame_bytes)
        received, (*_, handed_before, taken) = 0, self._seen
        if isinstance(self._base, RSocketEngine):
            flow = self._base.transport.flow
            received = self._base.reassembler.received_of(self.id) + self._base.transport.arrived_of(self.id)
            # What the peer takes of everything up to this request's last frame is progress; what it takes of later
            # frames, such as keepalives, isn't. As long as the request has more to send, other streams' frames may
            # stand before it.
            has_more = not outgoing.is_sent or self._items or (file is not None and file.is_queued)
            if handed != handed_before or has_more:
                self._handed_until = flow.handed_bytes
            taken = max(taken, min(flow.taken_bytes, self._handed_until))
        seen = (self.arrived, received, handed, taken)
        late = loop.time() - self._due_at
        is_late = late > timeout / _CHECKS_PER_TIMEOUT
        if is_late:
            self._moved_at += late  # this process stood still: what the server sent meanwhile may not have been read
        if seen != self._seen or not self.awaits_server():
            self._seen, self._moved_at = seen, loop.time()
        elif not is_late and loop.time() - self._moved_at >= timeout:
            self.cancel()
            self._on_error(Stalled(f"nothing moved for {timeout:g} s"))
            return
        self._due_at = loop.time() + timeout / _CHECKS_PER_TIMEOUT
        self._timer = loop.call_later(timeout / _CHECKS_PER_TIMEOUT, self._check, timeout)
