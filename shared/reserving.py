"""A buffer for what will be large, of a size that nobody knows yet: bytes go in at its end, and it is `bytes` then.

To join pieces instead touches as much memory again, and to touch memory for the first time takes longer than to receive
what goes there: half a microsecond and more for each 4 KiB. Linux has pages of 2 MiB for those who ask.
"""

import ctypes
import mmap
import sys
from io import BytesIO
from typing import Final

__all__ = ["ReservedBuffer"]

# Address space alone, until it is written to. What is larger still is moved when it grows, in steps of an eighth; Linux
# doesn't copy it even then.
_RESERVED_BYTES: Final = 256 * 1024 * 1024
# Up to here pages are small: of many buffers that aren't large yet, each would take a page of 2 MiB more than it has.
_SMALL_BYTES: Final = 16 * 1024 * 1024


class ReservedBuffer:
    """See above. It costs some 10 µs, however little of it is used."""

    def __init__(self) -> None:
        try:
            self._buffer = BytesIO(bytes(_RESERVED_BYTES))
        except MemoryError:  # address space may be limited, too
            self._buffer = BytesIO()
        else:
            _ask_for_large_pages(self._buffer)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Adds to its end."""
        self._buffer.write(data)

    def finish(self) -> bytes:
        """All of it, without a copy (in CPython); once."""
        self._buffer.truncate()
        return self._buffer.getvalue()


if sys.platform == "linux":
    _madvise: Final = getattr(ctypes.CDLL(None), "madvise", None)

    def _ask_for_large_pages(buffer: BytesIO) -> None:
        with buffer.getbuffer() as view:
            begin = ctypes.addressof(ctypes.c_char.from_buffer(view))
            first = -(-(begin + _SMALL_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
            if _madvise is not None:  # that it fails, on a system without them, changes nothing
                nbytes = ctypes.c_size_t(begin + len(view) - first)
                _madvise(ctypes.c_void_p(first), nbytes, ctypes.c_int(mmap.MADV_HUGEPAGE))

else:

    def _ask_for_large_pages(buffer: BytesIO) -> None:
        """Others decide for themselves."""
