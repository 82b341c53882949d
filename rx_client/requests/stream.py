"""A request-stream."""

import math

from reactivex import abc
from rsocket.frame import FragmentableFrame, PayloadFrame
from rsocket.frame_builders import to_request_stream_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.protocol.flow import Demand

from ..connection.connector import Connector
from .base import Request

__all__ = ["StreamRequest"]


class StreamRequest(Request):
    """One request-stream; `observer` gets the items as they come. See `ColdReactiveXClient.request_stream`."""

    def __init__(
        self,
        connector: Connector,
        socket: RSocketBase,
        payload: Payload,
        observer: abc.ObserverBase[Payload],
        request_limit: int,
        progress_timeout: float | None,
        max_item_bytes: float = math.inf,
    ) -> None:
        super().__init__(connector, socket, payload, observer.on_error)
        self.progress_timeout = progress_timeout
        self.max_payload_bytes = max_item_bytes
        self._observer = observer
        self._demand = Demand(request_limit)

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
            self._observer.on_next(Payload(bytes(frame.data or b""), bytes(frame.metadata or b"")))
            if is_requested and not self._is_done and (more := self._demand.on_consumed()):
                self.send_request_n(more)
        if frame.flags_complete and self._is_done:
            self._observer.on_completed()

    def _on_received_all(self) -> None:
        """The server has completed, with or without another item."""
        self._end()
