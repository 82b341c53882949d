"""A piece of a file in a transfer, and the credit that it holds."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from shared.aio import running_loop

__all__ = ["Chunk", "release"]


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
        self._credit = _Credit(on_released, loop)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Chunk(offset={self.offset}, {len(self.data)} bytes)"

    def retain(self) -> None:
        """Keeps the credit beyond `on_next`, for a consumer that isn't done with the chunk when that returns.

        Raises:
            RuntimeError: The credit has gone back already.
        """
        if not self._credit.holders:
            raise RuntimeError("a chunk can be retained only before its on_next returns; its credit has gone back")
        self._credit.holders += 1

    def release(self) -> None:
        """Undoes one `retain`; the last release gives the credit back.

        Raises:
            RuntimeError: It was released more often than retained (in another thread: the event loop reports it).
        """
        credit = self._credit
        if credit.loop is None or running_loop() is credit.loop:
            credit.release()
        elif not credit.loop.is_closed():
            credit.loop.call_soon_threadsafe(credit.release)

    def replace(self, data: bytes) -> "Chunk":
        """A chunk of other bytes (compressed, say) with the same credit, for the next stage of a pipeline."""
        chunk = Chunk(self.offset, data)
        chunk._credit = self._credit
        return chunk


def release(item: object) -> None:
    """Releases `item` if it is a chunk; other items hold no credit."""
    if isinstance(item, Chunk):
        item.release()


@dataclass(slots=True)
class _Credit:
    """Counts a chunk's holders; the first is the `on_next` that delivers it."""

    on_released: Callable[[], None] | None
    loop: asyncio.AbstractEventLoop | None
    holders: int = 1

    def release(self) -> None:
        if not self.holders:
            raise RuntimeError("the chunk was released more often than retained")
        self.holders -= 1
        if not self.holders and self.on_released is not None:
            self.on_released()
