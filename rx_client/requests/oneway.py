"""Requests without an answer: fire-and-forget, and metadata-push."""

import asyncio
from collections.abc import Callable

from reactivex import abc
from rsocket.frame import FragmentableFrame, PayloadFrame
from rsocket.frame_builders import to_fire_and_forget_frame, to_metadata_push_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from ..connection.connector import Connector
from .base import Request

__all__ = ["FireAndForgetRequest", "MetadataPushRequest"]


class FireAndForgetRequest(Request):
    """Emits None and completes when the transport has got the request."""

    def __init__(
        self, connector: Connector, socket: RSocketBase, payload: Payload, observer: abc.ObserverBase[None]
    ) -> None:
        super().__init__(connector, socket, payload, observer.on_error)
        self._observer = observer

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_fire_and_forget_frame(stream_id, self._payload, fragment_size)

    def send(self, on_sent: Callable[[], None] | None = None) -> None:
        super().send(on_sent or self._on_sent)

    def _on_payload(self, frame: PayloadFrame) -> None:
        """Ignores it: there is no answer to this request."""

    def _on_sent(self) -> None:
        if self._is_done:
            return
        self._end()
        try:
            self._observer.on_next(None)
            self._observer.on_completed()
        except Exception as error:
            self._fail(error)  # rsocket's sender would end with it


class MetadataPushRequest(FireAndForgetRequest):
    """The same for a metadata-push, which has no stream: this one's is never opened, but hears of the connection's end.

    What is queued can't be withdrawn.
    """

    def send(self, on_sent: Callable[[], None] | None = None) -> None:
        self._base.register_new_stream(self)
        frame = to_metadata_push_frame(bytes(self._payload.metadata or b""))
        frame.sent_future = asyncio.get_running_loop().create_future()
        frame.sent_future.add_done_callback(lambda _: self._on_sent())
        self._base.send_frame(frame)

    def cancel(self) -> None:
        if not self._is_done:
            self._end()
