"""A request-channel whose items are sent by hand."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.frame import CancelFrame, FragmentableFrame, Frame, PayloadFrame, RequestNFrame
from rsocket.frame_builders import to_request_channel_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.aio import wait_uncancelled
from shared.errors import ProtocolError
from shared.files.lane import FileLane
from shared.files.sending import SendJob

from ..connection.connector import Connector
from .base import MAX_REQUEST_N, Request
from .items import MAX_ITEM_BYTES, ItemQueue

__all__ = ["ChannelListener", "ChannelRequest"]


class ChannelListener(Protocol):
    """Holds a channel, and hears what the server does."""

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

    See `Request`; `listener` hears what the server does.
    """

    def __init__(self, connector: Connector, socket: RSocketBase, payload: Payload, listener: ChannelListener) -> None:
        super().__init__(connector, socket, payload, listener.on_ended)
        self._listener = listener
        self._items = ItemQueue(socket)
        self._has_sent_all = False

    def _frame(self, stream_id: int, fragment_size: int) -> FragmentableFrame:
        return to_request_channel_frame(stream_id, self._payload, fragment_size, MAX_REQUEST_N)

    def send_item(self, data: bytes, metadata: bytes | None = None, *, is_last: bool = False) -> None:
        """Sends one item; the caller keeps to the server's demand."""
        assert 0 < len(data) + len(metadata or b"") <= MAX_ITEM_BYTES, "an item must fit one frame, and not be empty"
        if not self._is_done:
            self._has_sent_all = is_last
            self._items.send(self.id, Payload(data, metadata), is_last=is_last)

    @property
    def lane(self) -> FileLane | None:
        """What sends a file's bytes in a thread; None where that can't be."""
        return None if self.engine is None else self.engine.transport.lane

    async def send_file(self, make: Callable[[Callable[[SendJob], None]], SendJob]) -> None:
        """Sends a file as the channel's items, the last of them included.

        Args:
            make: Makes the job, with what puts it into the outbox.

        Raises:
            Exception: What reading the file raised, or FileChanged.
        """
        engine = self.engine
        assert engine is not None, "ask `lane` first"
        job = make(engine.outbox.put)
        self._items.watch_file(job)
        try:
            job.resume()
            await asyncio.shield(job.finished)
        finally:
            job.stop()
            await wait_uncancelled(job.finished)
        if job.failure is not None:
            raise job.failure
        self._has_sent_all = job.is_all_sent

    def fail(self) -> None:
        """Reports to the server that this side failed, but not how; does nothing if the channel has ended."""
        self._end_with(RSocketProtocolError(ErrorCode.APPLICATION_ERROR, data="internal: the client gave up"))

    def handed_over(self) -> tuple[int, bool]:
        (request, is_sent), (items, is_all) = super().handed_over(), self._items.handed_over()
        return request + items, is_sent and is_all

    def is_owed(self) -> bool:
        return self._listener.is_owed()

    def _end(self) -> None:
        super()._end()
        self._items.withdraw()

    def _on_payload(self, frame: PayloadFrame) -> None:
        if frame.flags_complete:
            self._end()
        if frame.flags_next:
            self.arrived += self._listener.on_receipt(bytes(frame.metadata or b""))
        if frame.flags_complete:
            self._listener.on_ended(None)

    def _on_other(self, frame: Frame) -> None:
        if isinstance(frame, RequestNFrame):
            self._listener.on_requested(frame.request_n)
        elif isinstance(frame, CancelFrame) and not self._has_sent_all:
            self._end()
            self._listener.on_ended(ProtocolError("the server stopped the upload without saying why"))
