"""rsocket's reactivex integration, made cold: one subscription is one request.

rsocket 0.4.20's `ReactiveXClient` sends when it is called, not when it is subscribed to; leaks the stream of a
subscription that ends in the tick it began in; drops an empty answer; and sends an observer's exception to the server.
"""

import asyncio
import math
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final, Generic, Protocol, TypeVar

from reactivex import Observable, abc
from reactivex.internal.exceptions import SequenceContainsNoElementsError
from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.frame import CancelFrame, ErrorFrame, FragmentableFrame, Frame, PayloadFrame, RequestNFrame
from rsocket.frame_builders import (
    to_payload_frame,
    to_request_channel_frame,
    to_request_response_frame,
    to_request_stream_frame,
)
from rsocket.handlers.interfaces import Requester
from rsocket.payload import Payload
from rsocket.reactivex.reactivex_client import ReactiveXClient
from rsocket.rsocket_base import RSocketBase
from rsocket.streams.stream_handler import StreamHandler

from shared.errors import ClientClosed, ConnectionFailed, ProtocolError, Stalled, from_error_frame
from shared.files.lane import FileItems, finished
from shared.frames.outgoing import OutgoingFrame
from shared.protocol.flow import Demand
from shared.protocol.wire import FRAGMENT_SIZE_BYTES
from shared.transport.tcp import FrameTransport, SkippedFrame

from ..connection.connector import Connector, GivenConnection
from ..rx.observables import LoopObservable, disposable_on

__all__ = [
    "MAX_REQUEST_N",
    "MAX_SMALL_BYTES",
    "ChannelListener",
    "ChannelRequest",
    "ColdReactiveXClient",
    "Request",
    "ask",
    "ask_for",
    "ask_stream",
    "cold",
    "transport_of",
]

_LOOKS_PER_TIMEOUT: Final = 8
_FIRST_LOOK_SECONDS: Final = 0.25

MAX_SMALL_BYTES: Final = 2 * 1024 * 1024
"""What is no whole file is smaller than that, however many frames it comes in."""

MAX_REQUEST_N: Final = 0x7FFFFFFF
"""The most items that one request-n can ask for."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class ColdReactiveXClient(ReactiveXClient):
    """A `ReactiveXClient` whose requests are cold observables.

    Each subscription makes a request of its own; disposing it sends CANCEL, takes back what isn't sent, and leaves no
    stream behind. Errors arrive as `shared.errors.TransferError`. An observer that raises cancels its request, gets its
    own exception through `on_error`, and the server hears nothing of it. Subscribe in the event loop's thread; dispose
    from any.
    """

    def __init__(self, rsocket: RSocketBase) -> None:
        super().__init__(rsocket)
        self._connector = GivenConnection(rsocket)

    def request_response(self, request: Payload) -> Observable[Payload]:
        """Emits the one answer, also an empty one, and completes.

        Raises (through `on_error`):
            TransferError: The server answered with an error, or the connection was lost.
        """
        return ask(self._connector, request)

    def request_stream(self, request: Payload, request_limit: int = MAX_REQUEST_N) -> Observable[Payload]:
        """Emits the stream's items and completes with it; may complete without an item.

        Args:
            request: What is sent.
            request_limit: The most items that the server is ever allowed to be ahead; it is refilled at half.

        Raises (through `on_error`):
            TransferError: The server answered with an error, or the connection was lost.
        """
        return ask_stream(self._connector, request, request_limit)


def ask(connector: Connector, request: Payload) -> Observable[Payload]:
    """One request-response for each subscription; see `ColdReactiveXClient.request_response`."""
    return ask_for(connector, request, _as_it_is, _as_it_is)


def ask_for(
    connector: Connector,
    request: Payload,
    convert: Callable[[Payload], T],
    explain: Callable[[Exception], Exception],
    max_answer_bytes: float = math.inf,
) -> Observable[T]:
    """As `ask`, for what is made of the answer.

    All of it is one observable: each operator on the way would take some 20 µs of a small request's 100.

    Args:
        connector: Who gives the connection.
        request: What is sent.
        convert: Makes what is emitted of the answer; what it raises is emitted, too.
        explain: Makes the error that is emitted of the one that ended the request.
        max_answer_bytes: How large an answer in several frames may be.
    """

    return _ColdObservable(
        connector,
        lambda rsocket, observer: _ResponseRequest(
            connector, rsocket, request, observer, convert, explain, max_answer_bytes
        ),
        explain,
    )


def ask_stream(
    connector: Connector, request: Payload, request_limit: int, max_item_bytes: float = math.inf
) -> Observable[Payload]:
    """One request-stream for each subscription; see `ColdReactiveXClient.request_stream`."""
    if not isinstance(request_limit, int) or not 1 <= request_limit <= MAX_REQUEST_N:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"the request limit is 1 to {MAX_REQUEST_N}, not {request_limit}")
    return cold(
        connector,
        lambda socket, observer: _StreamRequest(connector, socket, request, observer, request_limit, max_item_bytes),
    )


def cold(connector: Connector, make: "Callable[[RSocketBase, abc.ObserverBase[T]], Request]") -> Observable[T]:
    """An observable that makes a request of its own for each subscription, and cancels it on dispose.

    The request is sent before `subscribe` returns if there is a connection, else as soon as there is one.
    """
    return _ColdObservable(connector, make, _as_it_is)


def _as_it_is(what: T) -> T:
    return what


class _ColdObservable(LoopObservable[T_co]):
    """See `cold`."""

    def __init__(
        self,
        connector: Connector,
        make: "Callable[[RSocketBase, abc.ObserverBase[T_co]], Request]",
        explain: Callable[[Exception], Exception],
    ) -> None:
        super().__init__()
        self._connector = connector
        self._make = make
        self._explain = explain

    def _subscribe_core(
        self, observer: abc.ObserverBase[T_co], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        loop = asyncio.get_running_loop()
        rsocket = self._connector.current()
        if rsocket is not None:
            request = self._make(rsocket, observer)
            request.send()
            return disposable_on(loop, request.cancel)

        later: Request | None = None

        async def connect() -> None:
            nonlocal later
            try:
                later = self._make(await self._connector.connect(), observer)
                later.send()
            except Exception as error:
                observer.on_error(self._explain(error))

        task = loop.create_task(connect())

        def dispose() -> None:
            task.cancel()
            if later is not None:
                later.cancel()

        return disposable_on(loop, dispose)

    def __await__(self) -> Generator[Any, None, T_co]:
        """As RxPY's, without its trampoline and its disposables, where there is a connection."""
        rsocket = self._connector.current()
        if rsocket is None:
            return (yield from super().__await__())
        last: _Last[T_co] = _Last()
        request = self._make(rsocket, last)
        request.send()
        try:
            return (yield from last.future)
        finally:
            request.cancel()
            del request, last  # which lead to an exception that leads to this frame


class _Last(abc.ObserverBase[T]):
    """An observer that makes a future of what it sees: the last item, or the error."""

    def __init__(self) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._items: list[T] = []

    def on_next(self, value: T) -> None:
        self._items = [value]

    def on_error(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def on_completed(self) -> None:
        if not self.future.done():
            if self._items:
                self.future.set_result(self._items[0])
            else:
                self.future.set_exception(SequenceContainsNoElementsError())


def transport_of(rsocket: RSocketBase) -> FrameTransport | None:
    """The connection's transport, if it is one of ours."""
    current = rsocket._current_transport()
    transport = current.result() if current.done() and not current.cancelled() else None
    return transport if isinstance(transport, FrameTransport) else None


class Request(StreamHandler, Requester):
    """One request: rsocket's frames in, calls out.

    Args:
        connector: Who gave the connection.
        socket: The connection.
        payload: What is sent.
        on_error: Gets the one error that ends the request, typed.

    Attributes:
        max_payload_bytes: How large a payload may be that the server sends in several frames.
    """

    max_payload_bytes: float = MAX_SMALL_BYTES

    def __init__(
        self, connector: Connector, socket: RSocketBase, payload: Payload, on_error: Callable[[Exception], None]
    ) -> None:
        super().__init__(socket)
        self._connector = connector
        self._base = socket
        self._payload = payload
        self._on_error = on_error
        self._outgoing: OutgoingFrame | None = None
        self._is_done = False
        # What has arrived, in any unit that grows. Frames aren't: a server may send empty ones for ever.
        self._arrived = 0
        self._handed = 0
        self._handed_until = 0
        self._taken = 0
        self._seen: object = None
        self._moved_at = 0.0
        self._watch: asyncio.TimerHandle | None = None

    def setup(self) -> None:
        """Nothing: `send` does it all."""

    @abstractmethod
    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        """The request itself."""

    @abstractmethod
    def _on_payload(self, frame: PayloadFrame) -> None:
        """Takes what the server sends."""

    @property
    def transport(self) -> FrameTransport | None:
        """The connection's transport, if it is one of ours."""
        return transport_of(self._base)

    def send(self) -> None:
        """Registers the stream and queues the request."""
        self._base.register_new_stream(self)
        frame = self._frame(self.id, self._fragment_size())
        self._outgoing = OutgoingFrame(frame)
        self._base.send_request(self._outgoing)
        loop = asyncio.get_running_loop()
        self._moved_at = loop.time()
        # Most requests have ended by the first look, which asks the system.
        first_look = min(self._connector.progress_timeout / _LOOKS_PER_TIMEOUT, _FIRST_LOOK_SECONDS)
        self._watch = loop.call_later(first_look, self._watch_progress)

    def cancel(self) -> None:
        """Ends the request from this side; nothing if it has ended."""
        if self._is_done:
            return
        self._end()
        # What isn't sent yet is taken back, and the CANCEL goes in its place.
        if self._outgoing is None or not self._outgoing.withdraw():
            self.send_cancel()

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

    def _fail(self, error: Exception) -> None:
        """Emits the error; nobody else hears what an observer raises then."""
        try:
            self._on_error(error)
        except Exception as unhandled:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "an observer of a transfer raised", "exception": unhandled}
            )

    def _on_other(self, frame: Frame) -> None:
        """Whatever else concerns this stream; a request-response or a request-stream has no use for it."""

    def _end(self) -> None:
        self._is_done = True
        if self._watch is not None:
            self._watch.cancel()
        self._finish_stream()

    def _is_owed(self) -> bool:
        """Whether it is the server's turn; if not, that nothing moves is this side's own doing."""
        return True

    def _watch_progress(self) -> None:
        """Fails the request if nothing has moved for it for too long, though keepalives may go to and fro."""
        loop, timeout = asyncio.get_running_loop(), self._connector.progress_timeout
        transport = self.transport
        handed, is_all = self._handed_over()
        arrived = 0
        if transport is not None:
            arrived = transport.received_of(self.id)
            # What the peer takes of that which was sent up to this request's last frame is progress; what comes later,
            # such as keepalives, isn't. While there is more to come, its turn comes after that of others.
            if handed != self._handed or not is_all:
                self._handed, self._handed_until = handed, transport.handed_bytes
            self._taken = max(self._taken, min(transport.taken_bytes, self._handed_until))
        seen = (self._arrived, arrived, handed, self._taken)
        if seen != self._seen or not self._is_owed():
            self._seen, self._moved_at = seen, loop.time()
        elif loop.time() - self._moved_at >= timeout:
            self.cancel()
            self._on_error(Stalled(f"nothing moved for {timeout:g} s"))
            return
        self._watch = loop.call_later(timeout / _LOOKS_PER_TIMEOUT, self._watch_progress)

    def _handed_over(self) -> tuple[int, bool]:
        """How many of this request's frames were handed to the transport, and whether that is all there are so far."""
        return (0, True) if self._outgoing is None else (self._outgoing.fragments, self._outgoing.is_sent)

    @property
    def id(self) -> int:
        """The stream's, since `send`."""
        assert self.stream_id is not None, "rsocket sets the id when it registers the stream"
        return self.stream_id

    def _fragment_size(self) -> int:
        # Without a fragment size rsocket sends one frame of any length, whose 24-bit length field wraps.
        return min(self._base.get_fragment_size_bytes() or FRAGMENT_SIZE_BYTES, FRAGMENT_SIZE_BYTES)


class _ResponseRequest(Request, Generic[T]):
    def __init__(
        self,
        connector: Connector,
        socket: RSocketBase,
        payload: Payload,
        observer: abc.ObserverBase[T],
        convert: Callable[[Payload], T],
        explain: Callable[[Exception], Exception],
        max_answer_bytes: float,
    ) -> None:
        super().__init__(connector, socket, payload, lambda error: observer.on_error(explain(error)))
        self.max_payload_bytes = max_answer_bytes
        self._observer = observer
        self._convert = convert

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_response_frame(stream_id, self._payload, fragment_size)

    def _on_payload(self, frame: PayloadFrame) -> None:
        self._end()
        self._observer.on_next(self._convert(Payload(bytes(frame.data or b""), bytes(frame.metadata or b""))))
        self._observer.on_completed()


class _StreamRequest(Request):
    def __init__(
        self,
        connector: Connector,
        socket: RSocketBase,
        payload: Payload,
        observer: abc.ObserverBase[Payload],
        request_limit: int,
        max_item_bytes: float,
    ) -> None:
        super().__init__(connector, socket, payload, observer.on_error)
        self.max_payload_bytes = max_item_bytes
        self._observer = observer
        self._demand = Demand(request_limit)

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_stream_frame(stream_id, self._payload, fragment_size, self._demand.window)

    def _on_payload(self, frame: PayloadFrame) -> None:
        if frame.flags_complete:
            self._end()
        if frame.flags_next:
            self._arrived += 1
            # A foreign server that ignores request-n is ahead of its credit; its items are passed on as they come.
            is_requested = self._demand.outstanding > 0
            if is_requested:
                self._demand.received()
            self._observer.on_next(Payload(bytes(frame.data or b""), bytes(frame.metadata or b"")))
            if is_requested and not self._is_done and (more := self._demand.released()):
                self.send_request_n(more)
        if frame.flags_complete:
            self._observer.on_completed()


class ChannelListener(Protocol):
    """Who holds a channel, and hears what the server does."""

    def on_receipt(self, metadata: bytes) -> bool:
        """An item arrived; whether it says anything new."""
        ...

    def on_requested(self, count: int) -> None:
        """The server asks for `count` more items."""
        ...

    def on_ended(self, error: Exception | None) -> None:
        """The server has completed (None), or the channel has failed."""
        ...

    def is_owed(self) -> bool:
        """Whether it is the server's turn."""
        ...


class ChannelRequest(Request):
    """One request-channel whose items are sent by hand, each in one frame.

    Args:
        connector: Who gave the connection.
        socket: The connection.
        payload: What the request itself carries.
        listener: Hears what the server does.
    """

    def __init__(self, connector: Connector, socket: RSocketBase, payload: Payload, listener: ChannelListener) -> None:
        super().__init__(connector, socket, payload, listener.on_ended)
        self._listener = listener
        self._has_sent_all = False
        self._items: deque[OutgoingFrame | FileItems] = deque()
        self._items_sent = 0

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_channel_frame(stream_id, self._payload, fragment_size, MAX_REQUEST_N)

    def send_item(self, data: bytes, metadata: bytes | None = None, *, is_last: bool = False) -> None:
        """Sends one item; ask for the server's demand first."""
        nbytes = len(data) + len(metadata or b"")
        assert 0 < nbytes < FRAGMENT_SIZE_BYTES - 64, "an item must fit one frame, and not be empty"
        self._has_sent_all = is_last
        frame = to_payload_frame(self.id, Payload(data, metadata), is_last, True, FRAGMENT_SIZE_BYTES)
        skipped = SkippedFrame()
        skipped.stream_id = self.id
        item = OutgoingFrame(frame, replacement=skipped)
        self._forget_sent_items()
        self._items.append(item)
        self._base.send_frame(item)

    async def send_items(self, items: FileItems) -> None:
        """Sends items of a file as they are granted, with `queue`; returns when no thread reads the file any more."""
        self._forget_sent_items()
        self._items.append(items)
        try:
            await asyncio.shield(items.finished)
        finally:
            items.withdraw()
            await finished(items.finished)

    def queue(self, items: FileItems) -> None:
        """Puts them into the send queue."""
        self._base.send_frame(items)

    def cancel(self) -> None:
        """Ends the channel from this side, with the items that aren't sent yet; nothing if it has ended."""
        self._withdraw_items()
        super().cancel()

    def fail(self) -> None:
        """Tells the server that this side failed, but not how; nothing if the channel has ended."""
        if self._is_done:
            return
        if self._outgoing is not None and not self._outgoing.is_sent:
            self.cancel()
            return
        self._withdraw_items()
        self._end()
        gave_up = RSocketProtocolError(ErrorCode.APPLICATION_ERROR, data="internal: the client gave up")
        self._base.send_error(self.id, gave_up)

    def _forget_sent_items(self) -> None:
        while self._items and self._items[0].is_sent:
            self._items.popleft()
            self._items_sent += 1

    def _handed_over(self) -> tuple[int, bool]:
        self._forget_sent_items()
        handed, is_all = super()._handed_over()
        for item in self._items:
            if isinstance(item, FileItems):
                handed += item.sent
                is_all = is_all and item.is_idle
            else:
                is_all = False
        return handed + self._items_sent, is_all

    def _withdraw_items(self) -> None:
        for item in self._items:
            item.withdraw()
        self._items.clear()

    def _is_owed(self) -> bool:
        return self._listener.is_owed()

    def _on_payload(self, frame: PayloadFrame) -> None:
        if frame.flags_complete:
            self._end()
        if frame.flags_next:
            self._arrived += self._listener.on_receipt(bytes(frame.metadata or b""))
        if frame.flags_complete:
            self._listener.on_ended(None)

    def _on_other(self, frame: Frame) -> None:
        if isinstance(frame, RequestNFrame):
            self._listener.on_requested(frame.request_n)
        elif isinstance(frame, CancelFrame) and not self._has_sent_all:
            self._end()
            self._listener.on_ended(ProtocolError("the server stopped the upload without saying why"))
