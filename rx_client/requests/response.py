"""A request-response."""

from collections.abc import Callable
from typing import Generic, TypeVar

from reactivex import abc
from rsocket.frame import FragmentableFrame, PayloadFrame
from rsocket.frame_builders import to_request_response_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from ..connection.connector import Connector
from .base import Request

__all__ = ["ResponseRequest"]

T = TypeVar("T")


class ResponseRequest(Request, Generic[T]):
    """One request-response; `observer` gets what is made of its answer. See `ColdReactiveXClient.ask`."""

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
