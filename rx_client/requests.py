"""rsocket's reactivex integration, made cold: one subscription is one request.

rsocket 0.4.20's `ReactiveXClient` sends when it is called, not when it is subscribed to; leaks the stream of a
subscription that ends in the tick it began in; drops an empty answer; and sends an observer's exception to the server.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from reactivex import Observable, abc
from reactivex.disposable import Disposable
from rsocket.frame import ErrorFrame, Frame, PayloadFrame
from rsocket.frame_builders import to_cancel_frame, to_request_response_frame, to_request_stream_frame
from rsocket.handlers.interfaces import Requester
from rsocket.payload import Payload
from rsocket.reactivex.reactivex_client import ReactiveXClient
from rsocket.rsocket_base import RSocketBase
from rsocket.streams.stream_handler import StreamHandler

from shared.errors import ConnectionLost, from_error_frame
from shared.outgoing import OutgoingFrame
from shared.wire import FRAGMENT_SIZE_BYTES

from .observables import LoopObservable

__all__ = ["MAX_REQUEST_N", "ColdReactiveXClient"]

MAX_REQUEST_N: Final = 0x7FFFFFFF
"""The most items that one request-n can ask for."""


class ColdReactiveXClient(ReactiveXClient):
    """A `ReactiveXClient` whose requests are cold observables.

    Each subscription makes a request of its own; disposing it sends CANCEL, takes back what isn't sent, and leaves no
    stream behind. Errors arrive as `shared.errors.TransferError`. An observer that raises cancels its request, gets its
    own exception through `on_error`, and the server hears nothing of it. Subscribe in the event loop's thread; dispose
    from any.
    """

    def __init__(self, rsocket: RSocketBase) -> None:
        super().__init__(rsocket)
        self._base = rsocket

    def request_response(self, request: Payload) -> Observable[Payload]:
        """Emits the one answer, also an empty one, and completes.

        Raises (through `on_error`):
            TransferError: The server answered with an error, or the connection was lost.
        """
        return self._cold(lambda observer: _ResponseRequest(self._base, request, observer))

    def request_stream(self, request: Payload, request_limit: int = MAX_REQUEST_N) -> Observable[Payload]:
        """Emits the stream's items and completes with it; may complete without an item.

        Args:
            request: What is sent.
            request_limit: The most items that the server is ever allowed to be ahead; it is refilled at half.

        Raises (through `on_error`):
            TransferError: The server answered with an error, or the connection was lost.
        """
        if not 1 <= request_limit <= MAX_REQUEST_N:
            raise ValueError(f"the request limit is 1 to {MAX_REQUEST_N}, not {request_limit}")
        return self._cold(lambda observer: _StreamRequest(self._base, request, observer, request_limit))

    def _cold(self, make: "Callable[[abc.ObserverBase[Payload]], _Request]") -> Observable[Payload]:
        def subscribe(
            observer: abc.ObserverBase[Payload], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            loop = asyncio.get_running_loop()
            # rsocket's own flag: with it set, its sender has stopped, and a request would wait for ever.
            if self._base._is_closing:
                observer.on_error(ConnectionLost("the connection is closed; connect again"))
                return Disposable()
            request = make(observer)
            request.send()

            def dispose() -> None:
                if _is_running(loop):
                    request.cancel()
                elif not loop.is_closed():
                    loop.call_soon_threadsafe(request.cancel)

            return Disposable(dispose)

        return LoopObservable(subscribe)


class _Request(StreamHandler, Requester):
    """One request: rsocket's frames in, an observer's calls out."""

    def __init__(self, socket: RSocketBase, payload: Payload, observer: abc.ObserverBase[Payload]) -> None:
        super().__init__(socket)
        self._base = socket
        self._payload = payload
        self._observer = observer
        self._outgoing: OutgoingFrame | None = None
        self._is_done = False

    def setup(self) -> None:
        """Nothing: `send` does it all."""

    def _frame(self, stream_id: int, fragment_size: int) -> Any:
        raise NotImplementedError

    def send(self) -> None:
        """Registers the stream and queues the request."""
        self._base.register_new_stream(self)
        assert self.stream_id is not None, "rsocket sets the id when it registers the stream"
        # Without a fragment size rsocket sends one frame of any length, whose 24-bit length field wraps.
        fragment_size = min(self._base.get_fragment_size_bytes() or FRAGMENT_SIZE_BYTES, FRAGMENT_SIZE_BYTES)
        frame = self._frame(self.stream_id, fragment_size)
        self._outgoing = OutgoingFrame(frame, replacement=to_cancel_frame(self.stream_id))
        self._base.send_request(self._outgoing)

    def cancel(self) -> None:
        """Ends the request from this side; nothing if it has ended."""
        if self._is_done:
            return
        self._end()
        # What isn't sent yet is taken back, and the CANCEL goes in its place.
        if self._outgoing is None or not self._outgoing.withdraw():
            self.send_cancel()

    def frame_received(self, frame: Frame) -> None:
        if self._is_done:
            return
        try:
            if isinstance(frame, PayloadFrame):
                self._on_payload(frame)
            elif isinstance(frame, ErrorFrame):
                self._end()
                self._observer.on_error(from_error_frame(frame.error_code, frame.data or b""))
        except Exception as error:
            self._on_observer_raised(error)

    def _on_payload(self, frame: PayloadFrame) -> None:
        raise NotImplementedError

    def _end(self) -> None:
        self._is_done = True
        self._finish_stream()

    def _on_observer_raised(self, error: Exception) -> None:
        """Reports what rsocket would send to the server."""
        self.cancel()
        try:
            self._observer.on_error(error)
        except Exception as unhandled:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "an observer of a transfer raised", "exception": unhandled}
            )


class _ResponseRequest(_Request):
    def _frame(self, stream_id: int, fragment_size: int) -> Any:
        return to_request_response_frame(stream_id, self._payload, fragment_size)

    def _on_payload(self, frame: PayloadFrame) -> None:
        self._end()
        self._observer.on_next(Payload(bytes(frame.data or b""), frame.metadata or b""))
        self._observer.on_completed()


class _StreamRequest(_Request):
    def __init__(
        self, socket: RSocketBase, payload: Payload, observer: abc.ObserverBase[Payload], request_limit: int
    ) -> None:
        super().__init__(socket, payload, observer)
        self._request_limit = request_limit
        self._credit = request_limit

    def _frame(self, stream_id: int, fragment_size: int) -> Any:
        return to_request_stream_frame(stream_id, self._payload, fragment_size, self._request_limit)

    def _on_payload(self, frame: PayloadFrame) -> None:
        if frame.flags_complete:
            self._end()
        if frame.flags_next:
            # A server that ignores request-n is ahead of its credit; its items are passed on as they come.
            self._credit = max(self._credit - 1, 0)
            self._observer.on_next(Payload(bytes(frame.data or b""), frame.metadata or b""))
        if frame.flags_complete:
            self._observer.on_completed()
        elif not self._is_done and self._credit <= self._request_limit // 2:
            refill = self._request_limit - self._credit
            self._credit += refill
            self.send_request_n(refill)


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
