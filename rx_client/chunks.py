"""A piece of a file in a transfer, and the credit that it holds."""

import asyncio
from collections.abc import Callable

from .rx.demand import Hold, ItemCredit, emitting

__all__ = ["Chunk", "hold"]


class Chunk:
    """Some bytes of a file, and the credit that the server spent to send them.

    The credit goes back, so that the server may send another chunk, when the subscriber's `on_next` returns; or, if
    `retain` was called inside it, when `release` was called as often as `retain`, in any thread.

    Attributes:
        offset: The bytes' position in the file.
        data: The bytes.
    """

    __slots__ = ("_credit", "data", "offset")

    def __init__(
        self,
        offset: int,
        data: bytes,
        on_released: Callable[[], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.offset = offset
        self.data = data
        self._credit = ItemCredit(on_released, loop)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Chunk(offset={self.offset}, {len(self.data)} bytes)"

    def retain(self) -> None:
        """Keeps the credit beyond `on_next`, for a consumer that isn't done with the chunk when that returns.

        Raises:
            RuntimeError: The credit has gone back already.
        """
        self._retainable().retain()

    def release(self) -> None:
        """Undoes one `retain`; the last release gives the credit back.

        Raises:
            RuntimeError: It was released more often than retained.
        """
        if not self._credit.is_held:
            raise RuntimeError("the chunk was released more often than retained")
        self._credit.release()

    def deliver(self, on_next: Callable[["Chunk"], object]) -> None:
        """Calls `on_next` with this chunk, and releases it."""
        try:
            Hold(self._credit).emit(on_next, self)
        finally:
            self.release()

    def hold(self) -> Hold:
        """Retains the chunk, and whatever else it costs the source that is delivering it."""
        return emitting().retain(self._retainable())

    def replace(self, data: bytes) -> "Chunk":
        """A chunk of other bytes (compressed, say) with the same credit, for the next stage of a pipeline."""
        chunk = Chunk(self.offset, data)
        chunk._credit = self._credit
        return chunk

    def _retainable(self) -> ItemCredit:
        if not self._credit.is_held:
            raise RuntimeError("a chunk can be retained only before its on_next returns; its credit has gone back")
        return self._credit


def hold(item: object) -> Hold:
    """Holds what `item`, which is being delivered, costs its source; to be released when the consumer is done with it.

    Raises:
        RuntimeError: It is a chunk whose credit has gone back.
    """
    return item.hold() if isinstance(item, Chunk) else emitting().retain()
