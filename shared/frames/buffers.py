"""A buffer for what will be large, of a size that nobody knows yet: bytes go in at its end, and it is `bytes` then.

To join pieces instead touches as much memory again, and to touch memory for the first time takes longer than to receive
what goes there: half a microsecond and more for each 4 KiB. Linux has pages of 2 MiB for those who ask; one takes long
enough, some milliseconds where the machine is a virtual one, that a thread touches them before they are needed.
"""

import ctypes
import mmap
import sys
import weakref
from io import BytesIO
from typing import Final

__all__ = ["ReservedBuffer"]

# Address space alone, until it is written to. What is larger still is moved when it grows, in steps of an eighth; Linux
# doesn't copy it even then.
_RESERVED_BYTES: Final = 256 * 1024 * 1024
# Up to here pages are small: of many buffers that aren't large yet, each would take a page of 2 MiB more than it has.
_SMALL_BYTES: Final = 16 * 1024 * 1024
# What is touched at once by a thread, and what has to be touched beyond what is written: more than a frame.
_TOUCHED_BYTES: Final = 4 * 1024 * 1024
_ROOM_BYTES: Final = 1024 * 1024
_MADV_POPULATE_WRITE: Final = 23  # which Python doesn't know yet


class ReservedBuffer:
    """See above. It costs some 10 µs, however little of it is used."""

    def __init__(self) -> None:
        self._touched = 0
        try:
            self._buffer = BytesIO(bytes(_RESERVED_BYTES))
        except MemoryError:  # address space may be limited, too
            self._buffer = BytesIO()
        else:
            self._touched = _ask_for_large_pages(self._buffer)

    @property
    def needs_room(self) -> bool:
        """Whether `make_room` should be called before more is written."""
        return 0 < self._touched < min(self._buffer.tell() + _ROOM_BYTES, _RESERVED_BYTES)

    def make_room(self) -> None:
        """Touches what will be written next. Blocks; in a thread, and nothing is written meanwhile."""
        begin = max(self._touched, self._buffer.tell())
        self._touched = min(begin + _TOUCHED_BYTES, _RESERVED_BYTES)
        _touch(self._buffer, begin, self._touched)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Adds to its end."""
        self._buffer.write(data)

    def lend(self, nbytes: int) -> memoryview:
        """What will be all of it, to be filled by somebody who then gives it back with `release`; once, at first."""
        with self._buffer.getbuffer() as view:
            is_enough = len(view) >= nbytes
        if not is_enough:
            self._buffer = BytesIO(bytes(nbytes))
        self._buffer.seek(nbytes)
        view = self._buffer.getbuffer()[:nbytes]
        # Keeps what the view is of until the view is gone. If the garbage collector found both at once, it would clear
        # them in any order: Python 3.13 reports an error of the buffer's then, and 3.12.1 crashes.
        weakref.finalize(view, bool, view.obj)
        return view

    def finish(self) -> bytes:
        """All of it, without a copy (in CPython); once."""
        try:
            self._buffer.truncate()
        except BufferError:  # somebody has a view of it yet
            with self._buffer.getbuffer() as view:
                return bytes(view[: self._buffer.tell()])
        return self._buffer.getvalue()


if sys.platform == "linux":
    _madvise: Final = getattr(ctypes.CDLL(None), "madvise", None)

    def _ask_for_large_pages(buffer: BytesIO) -> int:
        """Asks for them from `_SMALL_BYTES` on; where they begin, 0 if there are none."""
        with buffer.getbuffer() as view:
            begin = ctypes.addressof(ctypes.c_char.from_buffer(view))
            first = -(-(begin + _SMALL_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
            if _madvise is None or begin + len(view) <= first:
                return 0
            nbytes = ctypes.c_size_t(begin + len(view) - first)
            is_refused = _madvise(ctypes.c_void_p(first), nbytes, ctypes.c_int(mmap.MADV_HUGEPAGE))
            return 0 if is_refused else first - begin

    def _touch(buffer: BytesIO, begin: int, end: int) -> None:
        with buffer.getbuffer() as view:
            first = (ctypes.addressof(ctypes.c_char.from_buffer(view)) + begin) // mmap.PAGESIZE * mmap.PAGESIZE
        if _madvise is not None:  # that it fails, on a system that can't, changes nothing
            _madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - begin), ctypes.c_int(_MADV_POPULATE_WRITE))

else:

    def _ask_for_large_pages(buffer: BytesIO) -> int:
        """Others decide for themselves."""
        return 0

    def _touch(buffer: BytesIO, begin: int, end: int) -> None:
        """Never called: there are no large pages."""
