"""Receive buffers that the process's connections share: one has a buffer only while something waits in it."""

from typing import Final
from weakref import WeakValueDictionary

from ..files.threads import SpareBuffers

__all__ = ["MAX_SPARE_BYTES", "BufferPool", "borrow_large", "give_back_large"]

MAX_SPARE_BYTES: Final = 1024 * 1024
"""The largest buffer for one frame that is kept for the next such frame."""

_large: Final = SpareBuffers(4, MAX_SPARE_BYTES)


class BufferPool:
    """Lends receive buffers: large ones to so many connections at a time, small ones to those beyond.

    Its methods may be called from any thread.

    Args:
        nbytes: The size of a large one: fewer system calls for many small frames.
        most: How many of these there are.
        small_bytes: The size of a small one.
        most_spares: How many large ones are kept for the next borrower.
    """

    def __init__(self, nbytes: int, most: int, small_bytes: int, most_spares: int) -> None:
        self._nbytes, self._most = nbytes, most
        self._small_bytes, self._most_spares = small_bytes, most_spares
        self._spares: list[memoryview] = []
        # The large ones that there are, by their `id`; one that is dropped, and not given back, counts no more.
        self._made: Final[WeakValueDictionary[int, memoryview]] = WeakValueDictionary()

    def borrow(self) -> memoryview:
        """A buffer for the caller alone."""
        try:
            return self._spares.pop()
        except IndexError:  # not asked beforehand, since another thread may take the last one in between
            pass
        if len(self._made) >= self._most:
            return memoryview(bytearray(self._small_bytes))
        made = memoryview(bytearray(self._nbytes))
        self._made[id(made)] = made
        return made

    def give_back(self, buffer: memoryview) -> None:
        """Takes a buffer back that has no other views."""
        if len(buffer) == self._nbytes and len(self._spares) < self._most_spares:
            self._spares.append(buffer)


def borrow_large(nbytes: int) -> memoryview:
    """A buffer of at least `nbytes`, for a frame that is larger than a receive buffer."""
    return memoryview(_large.borrow(nbytes))


def give_back_large(view: memoryview) -> None:
    """Takes such a buffer back, which is used no more."""
    buffer = view.obj
    view.release()
    if isinstance(buffer, bytearray):
        _large.give_back(buffer)
