"""A request-channel between a publisher and an observer, with demand in both directions."""

import asyncio
from collections.abc import Callable
from typing import Final

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from reactivex import abc
from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.frame import CancelFrame, FragmentableFrame, Frame, RequestNFrame
from rsocket.frame_builders import to_request_channel_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.errors import BackpressureOverflow, InvalidRequest, TransferError, to_protocol_error

from ..connection.connector import Connector
from .base import MAX_REQUEST_N, checked
from .items import MAX_ITEM_BYTES, ItemQueue
from .stream import StreamRequest

__all__ = ["ExchangeRequest"]

# Items that may stand in the send queue; the publisher isn't asked for more, whatever the server has asked for.
_MAX_QUEUED: Final = 16

_GAVE_UP: Final = RSocketProtocolError(ErrorCode.APPLICATION_ERROR, data="internal: the client gave up")
_CANCELLED: Final = RSocketProtocolError(ErrorCode.CANCELED, data="cancelled by the client")


class ExchangeRequest(StreamRequest):
    """One request-channel: sends what `publisher` emits, and is a stream that completes when both sides have completed.

    See `ColdReactiveXClient.request_channel`.
    """

    def __init__(
        self,
        connector: Connector,
        socket: RSocketBase,
        payload: Payload,
        observer: abc.ObserverBase[Payload],
        request_limit: int,
        progress_timeout: float | None,
        publisher: Publisher | None,
        sending_done: asyncio.Event | None,
    ) -> None:
        super().__init__(connector, socket, payload, observer, request_limit, progress_timeout)
        self._publisher = publisher
        self._items = ItemQueue(socket)
        self._sender = _ItemSender(self, sending_done)
        self._has_received_all = False

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        window, is_all = self._demand.window, self._publisher is None
        return to_request_channel_frame(stream_id, self._payload, fragment_size, window, is_all)

    def send(self, on_sent: Callable[[], None] | None = None) -> None:
        super().send(on_sent)
        publisher, self._publisher = self._publisher, None
        if publisher is None:
            self.on_sent_all()
            return
        try:
            publisher.subscribe(self._sender)
        except Exception as error:
            self.fail(error)

    def send_item(self, payload: Payload | None, *, is_last: bool) -> None:
        """Queues an item of the publisher's, or its completion."""
        self._items.send(self.id, payload, is_last=is_last, on_sent=self._sender.on_sent)

    def on_sent_all(self) -> None:
        """Nothing more is sent."""
        self._sender.stop()
        if self._has_received_all and not self._is_done:
            self._end()
            try:
                self._observer.on_completed()
            except Exception as error:
                self._fail(error)  # rsocket's sender would end with it

    def fail(self, error: Exception) -> None:
        """The publisher failed: the server hears of it, in the words of `shared.errors`, and so does the observer."""
        is_wire_error = isinstance(error, TransferError) and error.code
        self._end_with(to_protocol_error(error) if is_wire_error else _GAVE_UP)
        self._fail(error)

    def cancel(self) -> None:
        is_sending = not self._is_done and not self._sender.is_done
        is_sent = self._outgoing is not None and self._outgoing.is_sent
        super().cancel()
        if is_sending and is_sent:
            # A CANCEL ends only what the server sends: rsocket-py would keep the other half for ever.
            self._base.send_error(self.id, _CANCELLED)

    def handed_over(self) -> tuple[int, bool]:
        (request, is_sent), (items, is_all) = super().handed_over(), self._items.handed_over()
        return request + items, is_sent and is_all

    def is_owed(self) -> bool:
        return not self._sender.waits_for_publisher

    def _end(self) -> None:
        super()._end()
        self._sender.stop()
        self._items.withdraw()

    def _on_received_all(self) -> None:
        self._has_received_all = True
        if self._sender.is_done:
            self._end()

    def _on_other(self, frame: Frame) -> None:
        if isinstance(frame, RequestNFrame):
            self._sender.on_requested(frame.request_n)
        elif isinstance(frame, CancelFrame):
            self.on_sent_all()


class _ItemSender(Subscriber):
    """Asks a publisher for as many items as the server has asked for, but for no more than may stand in the queue."""

    def __init__(self, request: ExchangeRequest, done: asyncio.Event | None) -> None:
        self._request: ExchangeRequest | None = request
        self._done = done
        self._subscription: Subscription | None = None
        self._credit = 0  # what the server asked for, and the publisher wasn't asked for yet
        self._pulled = 0  # what the publisher was asked for, and hasn't emitted yet
        self._queued = 0
        self._has_ended = False

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to be sent."""
        return self._request is None

    @property
    def waits_for_publisher(self) -> bool:
        """Whether only the publisher can go on."""
        return self._request is not None and self._pulled > 0 and not self._queued

    def stop(self) -> None:
        """Cancels the subscription; nothing more is sent."""
        self._request = None  # which holds this: a reference cycle
        if self._done is not None:
            self._done.set()
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._has_ended:
            self._has_ended = True
            subscription.cancel()

    def on_subscribe(self, subscription: Subscription) -> None:
        if self._request is None:
            subscription.cancel()
        else:
            self._subscription = subscription
            self._pull()

    def on_requested(self, count: int) -> None:
        """The server asks for `count` more items."""
        self._credit = min(self._credit + count, MAX_REQUEST_N)
        self._pull()

    def on_sent(self) -> None:
        """The transport has got an item, or the completion."""
        self._queued -= 1
        if self._has_ended and not self._queued and self._request is not None:
            self._request.on_sent_all()
        else:
            self._pull()

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        if self._has_ended:
            return
        try:
            item = checked(value)
            if (nbytes := len(item.data or b"") + len(item.metadata or b"")) > MAX_ITEM_BYTES:
                raise InvalidRequest(f"an item has {MAX_ITEM_BYTES} bytes at the most, to fit one frame; not {nbytes}")
            if not self._pulled:
                raise BackpressureOverflow("the publisher emitted an item that wasn't requested")
        except (TypeError, TransferError) as error:
            self._refuse(error)
            return
        self._pulled -= 1
        self._send(item, is_last=is_complete)

    def on_error(self, exception: Exception) -> None:
        if not self._has_ended:
            self._has_ended = True
            if self._request is not None:
                self._request.fail(exception)

    def on_complete(self) -> None:
        if not self._has_ended:
            self._send(None, is_last=True)

    def _send(self, payload: Payload | None, *, is_last: bool) -> None:
        self._queued += 1
        self._has_ended = is_last
        if self._request is not None:
            self._request.send_item(payload, is_last=is_last)

    def _refuse(self, error: Exception) -> None:
        if self._subscription is not None:
            self._subscription.cancel()
        self.on_error(error)

    def _pull(self) -> None:
        more = min(self._credit, _MAX_QUEUED - self._queued - self._pulled)
        if more > 0 and self._subscription is not None and not self._has_ended:
            self._credit -= more
            self._pulled += more
            try:
                self._subscription.request(more)
            except Exception as error:
                self._refuse(error)  # rsocket's sender, which may have called this, would end with it
