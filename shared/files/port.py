"""What a transport lends to its file lane: its receive buffer, and hooks around the use of the socket."""

from collections.abc import Callable, Container
from typing import Protocol

from rsocket.frame import PayloadFrame

from ..frames.codec import FrameHeader

__all__ = ["ItemReader", "LanePort"]


class ItemReader(Protocol):
    """A transport's receive buffer, as the lane's thread uses it."""

    @property
    def is_ready(self) -> bool:
        """Whether there is something for the frame path."""
        ...

    @property
    def is_in_item(self) -> bool:
        """Whether some of an item is here that isn't whole yet."""
        ...

    @property
    def header_bytes_missing(self) -> int:
        """Bytes of the next frame's header that aren't here yet."""
        ...

    def next_item(self, streams: Container[int]) -> FrameHeader | None:
        """The next frame's header, if it is here, and the frame is an item of one of `streams`."""
        ...

    def take_data(self, item: FrameHeader) -> tuple[memoryview, Callable[[], None]] | None:
        """The data of a plain item, and what to call when it isn't used any more; None while some of it is missing."""
        ...

    def take_frame(self, item: FrameHeader) -> PayloadFrame | None:
        """The whole frame of an item; None while some of it is missing."""
        ...

    def take_begin(self, item: FrameHeader) -> memoryview:
        """What is here of a plain item's data, which `skip_begin` then drops; the rest is received elsewhere."""
        ...

    def skip_begin(self, nbytes: int) -> None: ...
    def skip_next(self, nbytes: int) -> None:
        """Drops the next `nbytes` that are received."""
        ...

    def get_buffer(self) -> memoryview:
        """Where the next bytes go."""
        ...

    def received(self, nbytes: int) -> None:
        """`nbytes` were put there."""
        ...


class LanePort(Protocol):
    """What a transport lends to its lane."""

    @property
    def reader(self) -> ItemReader: ...
    @property
    def is_lost(self) -> bool: ...
    def prefix(self, nbytes: int) -> bytes:
        """What stands before a frame of so many bytes."""
        ...

    def pause_reading(self) -> None:
        """The event loop reads nothing until it needs another frame."""
        ...

    async def drained(self) -> None:
        """Returns when all that was sent before is in the socket.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        ...

    def on_received(self) -> None:
        """Bytes have arrived. Called by a thread."""
        ...

    def on_lane_idle(self) -> None:
        """A thread has left the socket."""
        ...

    def on_lane_failed(self, error: OSError) -> None:
        """The connection has ended, or has to: half a frame was sent or received, and the rest never will be."""
        ...
