"""The requests that send one payload, by what comes back: one answer, a stream of items, or nothing."""

import asyncio
import math
from collections.abc import Callable
from typing import Generic, TypeVar

from reactivex import abc
from rsocket.frame import FragmentableFrame, PayloadFrame
from rsocket.frame_builders import (
    to_fire_and_forget_frame,
    to_metadata_push_frame,
    to_request_response_frame,
    to_request_stream_frame,
)
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.protocol.flow import Demand

from ..connection.connector import Connector
from ..rx.demand import NO_HOLD, Hold, ItemCredit
from .base import MAX_REQUEST_N, Request

__all__ = ["FireAndForgetRequest", "MetadataPushRequest", "ResponseRequest", "StreamRequest"]

T = TypeVar("T")


class ResponseRequest(Request, Generic[T]):
    """One request-response; `observer` gets what is made of its answer. See `ColdReactiveXClient.ask`."""

    def __init__(
        self,
        socket: RSocketBase,
        payload: Payload,
        observer: abc.ObserverBase[T],
        convert: Callable[[Payload], T],
        explain: Callable[[Exception], Exception],
        max_answer_bytes: float,
    ) -> None:
        super().__init__(socket, payload, lambda error: observer.on_error(explain(error)))
        self.max_payload_bytes = max_answer_bytes
        self._observer = observer
        self._convert = convert

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_response_frame(stream_id, self._payload, fragment_size)

    def _on_payload(self, frame: PayloadFrame) -> None:
        self._end()
        self._observer.on_next(self._convert(Payload(bytes(frame.data or b""), bytes(frame.metadata or b""))))
        self._observer.on_completed()


class StreamRequest(Request):
    """One request-stream; `observer` gets the items as they come. See `ColdReactiveXClient.request_stream`."""

    def __init__(
        self,
        socket: RSocketBase,
        payload: Payload,
        observer: abc.ObserverBase[Payload],
        request_limit: int,
        progress_timeout: float | None,
        max_item_bytes: float = math.inf,
    ) -> None:
        super().__init__(socket, payload, observer.on_error)
        self.progress_timeout = progress_timeout
        self.max_payload_bytes = max_item_bytes
        self._observer = observer
        self._demand = Demand(request_limit)
        self._loop = asyncio.get_running_loop()

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_stream_frame(stream_id, self._payload, fragment_size, self._demand.window)

    def _on_payload(self, frame: PayloadFrame) -> None:
        if frame.flags_complete:
            self._on_received_all()
        if frame.flags_next:
            self.arrived += 1
            # A foreign server that ignores request-n is ahead of its credit; its items are passed on as they come.
            is_requested = self._demand.outstanding > 0
            if is_requested:
                self._demand.on_arrived()
            item = Payload(bytes(frame.data or b""), bytes(frame.metadata or b""))
            credit = ItemCredit(self._on_consumed if is_requested else None, self._loop)
            # A consumer that holds an item must know whether that slows the server down.
            is_bounded = is_requested and self._demand.window < MAX_REQUEST_N
            try:
                (Hold(credit) if is_bounded else NO_HOLD).emit(self._observer.on_next, item)
            finally:
                credit.release()
        if frame.flags_complete and self._is_done:
            self._observer.on_completed()

    def _on_consumed(self) -> None:
        """The consumer is done with an item."""
        more = self._demand.on_consumed()
        if more and not self._is_done:
            self.send_request_n(more)

    def awaits_server(self) -> bool:
        return self._demand.outstanding > 0

    def _on_received_all(self) -> None:
        """The server has completed, with or without another item."""
        self._end()


class FireAndForgetRequest(Request):
    """Emits None and completes when the transport has got the request."""

    def __init__(self, socket: RSocketBase, payload: Payload, observer: abc.ObserverBase[None]) -> None:
        super().__init__(socket, payload, observer.on_error)
        self._observer = observer

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_fire_and_forget_frame(stream_id, self._payload, fragment_size)

    def _on_payload(self, frame: PayloadFrame) -> None:
        """Ignores it: there is no answer to this request."""

    def _sent_hook(self) -> Callable[[], None]:
        return self._on_request_sent

    def _on_request_sent(self) -> None:
        if self._is_done:
            return
        self._end()
        try:
            self._observer.on_next(None)
            self._observer.on_completed()
        except Exception as error:
            self._fail(error)  # rsocket's sender would end with it


class MetadataPushRequest(FireAndForgetRequest):
    """The same for a metadata-push, which has no stream: one is registered, to be notified of the connection's end.

    What is queued can't be withdrawn.
    """

    def send(self, connector: Connector) -> None:
        self._connector = connector
        self._base.register_new_stream(self)
        frame = to_metadata_push_frame(bytes(self._payload.metadata or b""))
        frame.sent_future = asyncio.get_running_loop().create_future()
        frame.sent_future.add_done_callback(lambda _: self._on_request_sent())
        self._base.send_frame(frame)

    def cancel(self) -> None:
        if not self._is_done:
            self._end()
