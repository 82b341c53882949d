"""Memory that the process has freed, back to the system: it would keep all that a flood has ever taken.

GNU's C library keeps what lies below something that is in use; others give it back by themselves. And Python keeps a
few small objects of each kind in reserve, each of which may lie in a page, and an arena, of its own, until its garbage
collector has looked at everything.
"""

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Final

__all__ = ["FreeMemory", "keep_large_blocks_apart"]

# Less isn't worth the work.
_MIN_BYTES: Final = 8 * 1024 * 1024
# `mallopt`'s name for the size from which on a block is the system's, and what it is set to: a fragment is larger.
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK_BYTES: Final = 512 * 1024
# So many blocks more than at the start, 50 bytes each or so, are next to nothing in use; the collector is quick then.
_FEW_BLOCKS: Final = 50_000
# When to try again. What is still in use isn't given back: if there is much of it, one may look at it less often.
_LEAST_SECONDS: Final = 1.0
_MOST_SECONDS: Final = 8.0


def keep_large_blocks_apart() -> None:
    """Has the C library ask the system for each large block by itself, and give it back when it is freed.

    Else it learns from the first one that is freed to keep them all in its heap, where a flood of them leaves gaps that
    are half as large as what is in use. For a process's owner to call at its start.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


class FreeMemory:
    """What the process uses, and when some of it may have become free.

    It can't be asked how much is free; so it is tried, as long as the process has more than it once got along with.

    The garbage collector, which holds all threads, is only asked in a process that has called `gc.freeze()` when it had
    started, while little else is in use: it takes a millisecond or two then.
    """

    def __init__(self) -> None:
        self._trim = _trimmer()
        self._least_bytes = _resident_bytes()
        self._first_blocks = sys.getallocatedblocks()
        self._pause_seconds = _LEAST_SECONDS
        self._next = time.monotonic()

    def is_due(self) -> bool:
        """Whether `give_back` is to be called. To be asked about twice a second; it takes some 20 µs."""
        if self._trim is None or time.monotonic() < self._next:
            return False
        resident = _resident_bytes()
        self._least_bytes = min(self._least_bytes, resident)
        return resident - self._least_bytes >= _MIN_BYTES

    def give_back(self) -> None:
        """Gives back what is free. Blocks."""
        assert self._trim is not None, "it isn't due where nobody can"
        before = _resident_bytes()
        if gc.get_freeze_count() and sys.getallocatedblocks() - self._first_blocks < _FEW_BLOCKS:
            gc.collect()
        self._trim(0)
        is_worth_it = before - _resident_bytes() >= _MIN_BYTES // 8
        self._pause_seconds = _LEAST_SECONDS if is_worth_it else min(2 * self._pause_seconds, _MOST_SECONDS)
        self._next = time.monotonic() + self._pause_seconds


def _trimmer() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no descriptor is left, or there is no such thing
        return 0
