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
from .base import GAVE_UP, MAX_ITEM_BYTES, MAX_REQUEST_N, checked
from .response import StreamRequest

__all__ = ["ExchangeRequest"]

# Items that may stand in the send queue; the publisher isn't asked for more, whatever the server has asked for.
_MAX_QUEUED: Final = 16

_CANCELLED: Final = RSocketProtocolError(ErrorCode.CANCELED, data="cancelled by the client")


class ExchangeRequest(StreamRequest, Subscriber):
    """One request-channel: sends what `publisher` emits, and is a stream that completes when both sides have completed.

    The publisher is asked for as many items as the server has asked for, but for no more than may stand in the queue.
    See `ColdReactiveXClient.request_channel`.
    """

    def __init__(
        self,
        socket: RSocketBase,
        payload: Payload,
        observer: abc.ObserverBase[Payload],
        request_limit: int,
        progress_timeout: float | None,
        publisher: Publisher | None,
        sending_done: asyncio.Event | None,
    ) -> None:
        super().__init__(socket, payload, observer, request_limit, progress_timeout)
        self._publisher = publisher
        self._sending_done = sending_done
        self._subscription: Subscription | None = None
        self._credit = 0  # what the server asked for, and the publisher wasn't asked for yet
        self._pulled = 0  # what the publisher was asked for, and hasn't emitted yet
        self._queued = 0
        self._held: list[tuple[Payload | None, bool]] = []  # what waits for the request's last fragment
        self._has_emitted_all = False  # the publisher has, or has failed
        self._has_sent_all = False
        self._has_received_all = False

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        window, is_all = self._demand.window, self._publisher is None
        return to_request_channel_frame(stream_id, self._payload, fragment_size, window, is_all)

    def send(self, connector: Connector) -> None:
        super().send(connector)
        publisher, self._publisher = self._publisher, None
        if publisher is None:
            self._on_sent_all()
            return
        try:
            publisher.subscribe(self)
        except Exception as error:
            self._give_up(error)

    def cancel(self) -> None:
        is_sending = not self._is_done and not self._has_sent_all
        is_sent = self._outgoing is not None and self._outgoing.is_sent
        super().cancel()
        if is_sending and is_sent:
            # A CANCEL ends only what the server sends: rsocket-py would keep the other half for ever.
            self._base.send_error(self.id, _CANCELLED)

    # What the publisher calls

    def on_subscribe(self, subscription: Subscription) -> None:
        if self._has_sent_all:
            subscription.cancel()
        else:
            self._subscription = subscription
            self._pull()

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        if self._has_emitted_all:
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
        self._queue(item, is_last=is_complete)

    def on_error(self, exception: Exception) -> None:
        if not self._has_emitted_all:
            self._has_emitted_all = True
            if not self._has_sent_all:
                self._give_up(exception)

    def on_complete(self) -> None:
        if not self._has_emitted_all:
            self._queue(None, is_last=True)

    def _queue(self, payload: Payload | None, *, is_last: bool) -> None:
        self._queued += 1
        self._has_emitted_all = is_last
        if self._outgoing is None or not self._outgoing.is_sent:
            self._held.append((payload, is_last))
        elif not self._has_sent_all:
            self._send_item(payload, is_last=is_last, on_sent=self._on_item_sent)

    def _pull(self) -> None:
        more = min(self._credit, _MAX_QUEUED - self._queued - self._pulled)
        if more > 0 and self._subscription is not None and not self._has_emitted_all:
            self._credit -= more
            self._pulled += more
            try:
                self._subscription.request(more)
            except Exception as error:
                self._refuse(error)  # rsocket's sender, which may have called this, would end with it

    def _refuse(self, error: Exception) -> None:
        if self._subscription is not None:
            self._subscription.cancel()
        self.on_error(error)

    def _give_up(self, error: Exception) -> None:
        """The publisher failed: the server gets an ERROR frame, the observer the error itself."""
        is_wire_error = isinstance(error, TransferError) and error.code
        self._end_with(to_protocol_error(error) if is_wire_error else GAVE_UP)
        self._fail(error)

    # What the connection calls

    def _sent_hook(self) -> Callable[[], None]:
        return self._on_request_sent

    def _on_request_sent(self) -> None:
        """The transport has got all of the request: what follows can't be taken for a fragment of it any more."""
        held, self._held = self._held, []
        for payload, is_last in held:
            if not self._has_sent_all:
                self._send_item(payload, is_last=is_last, on_sent=self._on_item_sent)

    def _on_item_sent(self) -> None:
        """The transport has got an item, or the completion."""
        self._queued -= 1
        if self._has_emitted_all and not self._queued and not self._has_sent_all:
            self._on_sent_all()
        else:
            self._pull()

    def _on_other(self, frame: Frame) -> None:
        if isinstance(frame, RequestNFrame):
            self._credit = min(self._credit + frame.request_n, MAX_REQUEST_N)
            self._pull()
        elif isinstance(frame, CancelFrame):
            self._on_sent_all()

    def _on_sent_all(self) -> None:
        """Nothing more is sent."""
        self._stop_sending()
        if self._has_received_all and not self._is_done:
            self._end()
            try:
                self._observer.on_completed()
            except Exception as error:
                self._fail(error)  # rsocket's sender would end with it

    def _on_received_all(self) -> None:
        self._has_received_all = True
        if self._has_sent_all:
            self._end()

    def awaits_server(self) -> bool:
        # Else only the publisher, or the consumer, can go on.
        return super().awaits_server() and (self._has_sent_all or not self._pulled or self._queued > 0)

    def _end(self) -> None:
        super()._end()
        self._stop_sending()

    def _stop_sending(self) -> None:
        self._has_sent_all = True
        if self._sending_done is not None:
            self._sending_done.set()
        subscription, self._subscription = self._subscription, None
        if subscription is not None and not self._has_emitted_all:
            self._has_emitted_all = True
            subscription.cancel()
