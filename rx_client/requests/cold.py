"""rsocket's reactivex integration, made cold: one subscription is one request.

rsocket 0.4.20's `ReactiveXClient` sends when it is called, not when it is subscribed to; leaks the stream of a
subscription that ends in the same event-loop iteration; drops an empty answer; and sends an observer's exception to the
server.
"""

import asyncio
import math
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

from reactivex import Observable, abc
from reactivex.internal.exceptions import SequenceContainsNoElementsError
from rsocket.payload import Payload
from rsocket.reactivex.reactivex_client import ReactiveXClient
from rsocket.rsocket_base import RSocketBase

from shared.aio import running_loop

from ..connection.connector import Connector, GivenConnection
from ..rx.loops import disposable_on, required_loop
from ..rx.observables import LoopObservable
from ..rx.publishers import PublisherLike, to_publisher
from .base import MAX_ITEM_BYTES, MAX_REQUEST_N, Request, checked
from .exchange import ExchangeRequest
from .response import FireAndForgetRequest, MetadataPushRequest, ResponseRequest, StreamRequest

__all__ = ["ColdReactiveXClient"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
RequestT = TypeVar("RequestT", bound=Request)

# Items of an observable that may wait for the server's demand and for the connection.
_MAX_BUFFERED: Final = 256


def _identity(value: T) -> T:
    return value


def _check_limit(request_limit: int) -> None:
    if not isinstance(request_limit, int) or not 1 <= request_limit <= MAX_REQUEST_N:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"the request limit is 1 to {MAX_REQUEST_N}, not {request_limit}")


class ColdReactiveXClient(ReactiveXClient):
    """A `ReactiveXClient` whose requests are cold observables.

    Each subscription makes a request of its own; disposing it sends CANCEL, withdraws what isn't sent, and leaves no
    stream behind. An observer that raises cancels its request and gets its own exception through `on_error`; the
    server sees only the CANCEL. Subscribe and dispose in any thread: see `FileClient`. A request is a Payload of
    bytes, bytearray or memoryview, copied at the call if it is mutable; any other type is a TypeError.

    A request fails, through `on_error`, with a `shared.errors.TransferError`: the server's; ConnectionLost;
    ConnectionFailed if a connection has to be made and can't; Stalled.

    Args:
        rsocket: A connected rsocket, which stays the caller's to make again; or a connector. `FileClient.requests`
            is one over a connection that is made again when a request needs it.

    Attributes:
        connector: Gives the requests their connection.
    """

    def __init__(self, rsocket: RSocketBase | Connector) -> None:
        # The parent only calls `connect` and `close`, which a `Connection` has, too.
        super().__init__(rsocket)  # pyright: ignore[reportArgumentType]
        self.connector: Final = GivenConnection(rsocket) if isinstance(rsocket, RSocketBase) else rsocket

    def request_response(self, request: Payload) -> Observable[Payload]:
        """Emits the one answer, also an empty one, and completes."""
        return self.ask(checked(request), _identity)

    def request_stream(
        self,
        request: Payload,
        request_limit: int = MAX_REQUEST_N,
        *,
        max_item_bytes: float = math.inf,
        progress_timeout: float | None = None,
    ) -> Observable[Payload]:
        """Emits the stream's items and completes with it; may complete without an item.

        Args:
            request: What is sent.
            request_limit: The most items that the server is ever allowed to be ahead; it is refilled at half. If it is
                given, operators such as `map_async` hold an item's credit until they are done with it.
            max_item_bytes: How large an item may be that comes in several frames.
            progress_timeout: Seconds without an item that fail the request with Stalled; None for the connection's 60,
                `math.inf` for a stream that may be silent for as long as it likes.

        Raises:
            ValueError: `request_limit` isn't 1 to 2**31 - 1.
        """
        _check_limit(request_limit)
        payload = checked(request)
        return self.cold(
            lambda rsocket, observer: StreamRequest(
                rsocket, payload, observer, request_limit, progress_timeout, max_item_bytes
            )
        )

    def request_channel(
        self,
        request: Payload,
        request_limit: int = MAX_REQUEST_N,
        observable: PublisherLike | None = None,
        sending_done: asyncio.Event | None = None,
        *,
        max_buffered: int = _MAX_BUFFERED,
        progress_timeout: float | None = None,
    ) -> Observable[Payload]:
        """Sends what `observable` emits, emits the server's items, and completes when both sides have completed.

        Disposing, and any error, also disposes the subscription to `observable`. If `observable` fails, its error is
        emitted, and sent to the server: as it is if it is a TransferError, else as `internal`. If the server cancels,
        nothing more is sent, and the items from the server go on.

        Args:
            request: What is sent first.
            request_limit: The most items that the server is ever allowed to be ahead; it is refilled at half.
            observable: What is sent then; subscribed to by each subscription. A reactivestreams Publisher is asked for
                as many items as the server asks for, and has no more than 16 in the send queue; so is a function that
                makes an Observable from a Subject of these numbers. The items of an Observable wait in a buffer, and
                hold their credit if its source can be slowed down, as `from_async_iter` can. An item has to fit one
                frame: 999,936 bytes of data and metadata. None sends nothing.
            sending_done: Set when nothing more will be sent.
            max_buffered: How many items without credit of an observable may wait.
            progress_timeout: As for `request_stream`; time that passes without anything to send doesn't count.

        Raises:
            ValueError: `request_limit` or `max_buffered` is out of its range.

        Raises (through `on_error`):
            BackpressureOverflow: More than `max_buffered` such items wait, or a publisher emits what wasn't requested.
            InvalidRequest: An item doesn't fit one frame.
            TypeError: An item isn't a Payload of bytes.
            Exception: Whatever `observable` failed with.
        """
        _check_limit(request_limit)
        if max_buffered < 1:
            raise ValueError(f"an observable needs room for 1 item or more, not {max_buffered}")
        payload, publisher = checked(request), None if observable is None else to_publisher(observable, max_buffered)
        return self.cold(
            lambda rsocket, observer: ExchangeRequest(
                rsocket, payload, observer, request_limit, progress_timeout, publisher, sending_done
            )
        )

    def fire_and_forget(self, request: Payload) -> Observable[None]:
        """Emits None and completes when the request has left this process; whether it arrives isn't known."""
        payload = checked(request)
        return self.cold(lambda rsocket, observer: FireAndForgetRequest(rsocket, payload, observer))

    def metadata_push(self, metadata: bytes) -> Observable[None]:
        """As `fire_and_forget`, for metadata alone, which isn't about a request but about the connection.

        Raises:
            ValueError: It doesn't fit one frame, with 999,936 bytes at the most.
        """
        if len(metadata) > MAX_ITEM_BYTES:
            raise ValueError(f"metadata has {MAX_ITEM_BYTES} bytes at the most, to fit one frame; not {len(metadata)}")
        payload = checked(Payload(None, metadata))
        return self.cold(lambda rsocket, observer: MetadataPushRequest(rsocket, payload, observer))

    def ask(
        self,
        request: Payload,
        convert: Callable[[Payload], T],
        explain: Callable[[Exception], Exception] = _identity,
        max_answer_bytes: float = math.inf,
    ) -> Observable[T]:
        """As `request_response`, for what is made of the answer: each operator would cost a fifth of a small request.

        Args:
            request: What is sent.
            convert: Makes what is emitted of the answer; what it raises is emitted, too.
            explain: Makes the error that is emitted of the one that ended the request.
            max_answer_bytes: How large an answer in several frames may be.
        """
        return _ColdObservable(
            self.connector,
            lambda rsocket, observer: ResponseRequest(rsocket, request, observer, convert, explain, max_answer_bytes),
            explain,
        )

    def cold(self, make: Callable[[RSocketBase, abc.ObserverBase[T]], Request]) -> Observable[T]:
        """Makes a request for each subscription, and cancels it on dispose. See also `open`.

        The request is sent before `subscribe` returns if there is a connection, else as soon as there is one.
        """
        return _ColdObservable(self.connector, make, _identity)

    async def open(self, make: Callable[[RSocketBase], RequestT]) -> RequestT:
        """Makes and sends one request, over a connection that is made if need be.

        Raises:
            ConnectionFailed: There is no connection in time.
        """
        request = make(await self.connector.connect())
        request.send(self.connector)
        return request


class _ColdObservable(LoopObservable[T_co]):
    """See `ColdReactiveXClient.cold`."""

    def __init__(
        self,
        connector: Connector,
        make: Callable[[RSocketBase, abc.ObserverBase[T_co]], Request],
        explain: Callable[[Exception], Exception],
    ) -> None:
        super().__init__(loop=connector.loop, is_source=True)
        self._connector = connector
        self._make = make
        self._explain = explain

    def _subscribe_core(
        self, observer: abc.ObserverBase[T_co], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        loop = required_loop()
        rsocket = self._connector.current()
        if rsocket is not None:
            request = self._make(rsocket, observer)
            request.send(self._connector)
            return disposable_on(loop, request.cancel)

        later: Request | None = None

        async def connect() -> None:
            nonlocal later
            try:
                later = self._make(await self._connector.connect(), observer)
                later.send(self._connector)
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
        if rsocket is None or self.loop is not running_loop():
            return (yield from super().__await__())
        last: _Last[T_co] = _Last()
        request = self._make(rsocket, last)
        request.send(self._connector)
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
