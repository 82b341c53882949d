"""Returns freed memory to the system; without it the process would keep all that a flood has ever taken.

GNU's C library keeps the pages below a block that is in use; other libraries return them by themselves. And Python
keeps some free objects of each type in reserve, each perhaps on a page of its own, until a full garbage collection.
"""

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable
from typing import Final

__all__ = ["HeapTrimmer", "map_large_blocks"]

# Less isn't worth the work.
_MIN_BYTES: Final = 8 * 1024 * 1024
# `mallopt`'s name for the size from which a block has a mapping of its own, and our value: a fragment is larger.
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK_BYTES: Final = 512 * 1024
# Up to so many blocks more than at the start, of some 50 bytes each, a full collection takes a millisecond or two.
_FEW_BLOCKS: Final = 50_000
# Between two attempts: the longer, the less the last ones have returned, since what is in use can't be.
_MIN_PAUSE_SECONDS: Final = 1.0
_MAX_PAUSE_SECONDS: Final = 8.0


def map_large_blocks() -> None:
    """Has the C library map each large block by itself, and unmap it when it is freed. For the process's start.

    By default it raises its threshold when it frees the first one and keeps later ones in its heap, where a flood of
    them leaves gaps of half the size of what is in use.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


class HeapTrimmer:
    """Trims the C library's heap as long as the process uses more memory than it once did: how much is free is unknown.

    The garbage is collected as well, which stops all threads, in a process that has called `gc.freeze()` at its start
    and has little more in use than then.
    """

    def __init__(self) -> None:
        self._malloc_trim: Callable[[int], int] | None = None
        if sys.platform == "linux":
            self._malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._least_bytes = _resident_bytes()
        self._first_blocks = sys.getallocatedblocks()
        self._pause_seconds = _MIN_PAUSE_SECONDS
        self._next = time.monotonic()

    def is_due(self) -> bool:
        """Whether to call `trim`. Takes some 20 µs; for about two calls a second."""
        if self._malloc_trim is None or time.monotonic() < self._next:
            return False
        resident = _resident_bytes()
        self._least_bytes = min(self._least_bytes, resident)
        return resident - self._least_bytes >= _MIN_BYTES

    def trim(self) -> None:
        """Returns to the system what is free. Blocks."""
        assert self._malloc_trim is not None, "it is never due without malloc_trim"
        before = _resident_bytes()
        if gc.get_freeze_count() and sys.getallocatedblocks() - self._first_blocks < _FEW_BLOCKS:
            gc.collect()
        self._malloc_trim(0)
        is_worth_it = before - _resident_bytes() >= _MIN_BYTES // 8
        self._pause_seconds = _MIN_PAUSE_SECONDS if is_worth_it else min(2 * self._pause_seconds, _MAX_PAUSE_SECONDS)
        self._next = time.monotonic() + self._pause_seconds


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no descriptor is left, or there is no /proc
        return 0
