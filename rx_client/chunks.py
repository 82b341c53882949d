"""A piece of a file on its way, and the credit that it holds."""

from collections.abc import Callable

__all__ = ["Chunk"]


class Chunk:
    """Some bytes of a file, and the claim on the sender's demand that came with them.

    The claim is given back, and the server may send another chunk, when the subscriber's `on_next` returns, unless
    somebody called `retain` inside it: then when `release` was called as often as `retain`.

    Attributes:
        offset: Where in the file the bytes belong.
        data: The bytes.
    """

    __slots__ = ("_credit", "data", "offset")

    def __init__(self, offset: int, data: bytes, on_released: Callable[[], None] | None = None) -> None:
        self.offset = offset
        self.data = data
        self._credit = _Credit(on_released)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"Chunk(offset={self.offset}, {len(self.data)} bytes)"

    def retain(self) -> None:
        """Keeps the credit beyond `on_next`, for a consumer that isn't done with the chunk when it returns.

        Raises:
            RuntimeError: The credit was given back already.
        """
        self._credit.retain()

    def release(self) -> None:
        """Undoes one `retain`; the last one gives the credit back.

        Raises:
            RuntimeError: It was released more often than retained.
        """
        self._credit.release()

    def replace(self, data: bytes) -> "Chunk":
        """A chunk of other bytes (compressed, say) that holds the same credit, for the next stage of a pipeline."""
        chunk = Chunk(self.offset, data)
        chunk._credit = self._credit
        return chunk


class _Credit:
    """Counts who still needs the chunk; starts with one, for the `on_next` that delivers it."""

    __slots__ = ("_holders", "_on_released")

    def __init__(self, on_released: Callable[[], None] | None) -> None:
        self._holders = 1
        self._on_released = on_released

    def retain(self) -> None:
        if not self._holders:
            raise RuntimeError("retain a chunk before its on_next returns; its credit was given back already")
        self._holders += 1

    def release(self) -> None:
        if not self._holders:
            raise RuntimeError("the chunk was released more often than retained")
        self._holders -= 1
        if not self._holders and self._on_released is not None:
            self._on_released()
