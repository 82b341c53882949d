"""The items of one stream in the connection's send queue."""

from collections import deque
from collections.abc import Callable
from typing import Final

from rsocket.frame_builders import to_payload_frame
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.files.sending import SendJob
from shared.frames.outbox import SkippedFrame
from shared.frames.outgoing import OutgoingFrame
from shared.protocol.wire import FRAGMENT_SIZE_BYTES

__all__ = ["MAX_ITEM_BYTES", "ItemQueue"]

MAX_ITEM_BYTES: Final = FRAGMENT_SIZE_BYTES - 64
"""The most data and metadata of an item: rsocket 0.4.20 mixes up the fragments of items that wait together."""


class ItemQueue:
    """Sends a stream's items, each in one frame, and knows which of them can still be withdrawn.

    Args:
        socket: The connection.
    """

    def __init__(self, socket: RSocketBase) -> None:
        self._socket = socket
        self._items: deque[OutgoingFrame] = deque()
        self._file: SendJob | None = None
        self._sent = 0

    def send(
        self,
        stream_id: int,
        payload: Payload | None,
        *,
        is_last: bool = False,
        on_sent: Callable[[], None] | None = None,
    ) -> None:
        """Queues one item; `payload` is None for the stream's completion without an item."""
        is_next = payload is not None
        frame = to_payload_frame(stream_id, payload or Payload(), is_last, is_next, FRAGMENT_SIZE_BYTES)
        skipped = SkippedFrame()
        skipped.stream_id = stream_id
        item = OutgoingFrame(frame, skipped, on_sent)
        self._forget_sent()
        self._items.append(item)
        self._socket.send_frame(item)

    def watch_file(self, job: SendJob) -> None:
        """Counts the items of a file, which queue themselves."""
        self._file = job

    def withdraw(self) -> None:
        """Gives up what isn't sent yet."""
        for item in self._items:
            item.withdraw()
        self._items.clear()
        if self._file is not None:
            self._file.stop()

    def handed_over(self) -> tuple[int, bool]:
        """How much the transport has got, in a unit that grows, and whether this is all there is so far."""
        self._forget_sent()
        file = self._file
        file_bytes = 0 if file is None else file.frame_bytes
        return self._sent + file_bytes, not self._items and (file is None or not file.is_queued)

    def _forget_sent(self) -> None:
        while self._items and self._items[0].is_sent:
            self._items.popleft()
            self._sent += 1
