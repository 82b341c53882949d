"""A buffer for a payload that will be large, of an unknown size: bytes are appended, and it becomes `bytes` in the end.

Joining pieces would touch as much memory again, and touching memory for the first time takes longer than receiving what
goes there: half a microsecond and more for each 4 KiB. Linux has pages of 2 MiB for a process that asks for them. To
touch one takes some milliseconds on a virtual machine, so a thread does it before they are needed.
"""

import ctypes
import mmap
import os
import sys
import weakref
from io import BytesIO
from typing import Final

__all__ = ["LARGE_BYTES", "ReservedBuffer"]

# Only address space, until it is written to. A larger content is moved when it grows, in steps of an eighth; Linux does
# that without a copy.
_RESERVED_BYTES: Final = 256 * 1024 * 1024
LARGE_BYTES: Final = 16 * 1024 * 1024
"""Up to here pages are small: many buffers that aren't large yet would take a page of 2 MiB more each."""

# What a thread touches at once, and what has to be touched beyond what is written: more than a frame.
_TOUCHED_BYTES: Final = 4 * 1024 * 1024
_ROOM_BYTES: Final = 1024 * 1024
_MADV_POPULATE_WRITE: Final = 23  # not in `mmap` yet
_madvise: Final = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


class ReservedBuffer:
    """See above. Making one takes some 10 µs, however little of it is used."""

    def __init__(self) -> None:
        self._touched = 0
        try:
            self._buffer = BytesIO(bytes(_RESERVED_BYTES))
        except MemoryError:  # address space may be limited
            self._buffer = BytesIO()
        else:
            self._touched = _ask_for_large_pages(self._buffer)

    @property
    def needs_room(self) -> bool:
        """Whether `make_room` should be called before more is written."""
        return 0 < self._touched < min(self._buffer.tell() + _ROOM_BYTES, _RESERVED_BYTES)

    def make_room(self) -> None:
        """Touches what will be written next. Blocks: call it in a thread, and write nothing meanwhile."""
        begin = max(self._touched, self._buffer.tell())
        self._touched = min(begin + _TOUCHED_BYTES, _RESERVED_BYTES)
        _touch(self._buffer, begin, self._touched)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends `data`."""
        self._buffer.write(data)

    def lend(self, nbytes: int) -> memoryview:
        """A view that becomes the whole content: fill it, `release` it, then call `finish`. Once, before any write."""
        with self._buffer.getbuffer() as view:
            is_enough = len(view) >= nbytes
        if not is_enough:
            self._buffer = BytesIO(bytes(nbytes))
        self._buffer.seek(nbytes)
        return _kept(self._buffer.getbuffer()[:nbytes])

    def lend_next(self, nbytes: int) -> memoryview | None:
        """A view of what `nbytes` would be written to; `skip` is to follow. None if there is no room for them."""
        begin = self._buffer.tell()
        with self._buffer.getbuffer() as view:
            is_enough = len(view) >= begin + nbytes
        return _kept(self._buffer.getbuffer()[begin : begin + nbytes]) if is_enough else None

    def skip(self, nbytes: int) -> None:
        """Appends what was put into a view that `lend_next` gave, and that was released."""
        self._buffer.seek(nbytes, os.SEEK_CUR)

    def finish(self) -> bytes:
        """The whole content, without a copy (in CPython); once."""
        try:
            self._buffer.truncate()
        except BufferError:  # there is still a view of it
            with self._buffer.getbuffer() as view:
                return bytes(view[: self._buffer.tell()])
        return self._buffer.getvalue()


def _kept(view: memoryview) -> memoryview:
    """Keeps the view's buffer until the view is gone.

    If the garbage collector found both at once, it would clear them in any order: Python 3.13 reports an error of the
    buffer then, and 3.12.1 crashes.
    """
    weakref.finalize(view, bool, view.obj)
    return view


def _ask_for_large_pages(buffer: BytesIO) -> int:
    """Asks for them from `LARGE_BYTES` on; where they begin, 0 if there are none."""
    if sys.platform != "linux" or _madvise is None:
        return 0
    with buffer.getbuffer() as view:
        begin = ctypes.addressof(ctypes.c_char.from_buffer(view))
        first = -(-(begin + LARGE_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
        if begin + len(view) <= first:
            return 0
        nbytes = ctypes.c_size_t(begin + len(view) - first)
        is_refused = _madvise(ctypes.c_void_p(first), nbytes, ctypes.c_int(mmap.MADV_HUGEPAGE))
        return 0 if is_refused else first - begin


def _touch(buffer: BytesIO, begin: int, end: int) -> None:
    with buffer.getbuffer() as view:
        first = (ctypes.addressof(ctypes.c_char.from_buffer(view)) + begin) // mmap.PAGESIZE * mmap.PAGESIZE
    if _madvise is not None:  # a system that can't do this fails, which changes nothing
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - begin), ctypes.c_int(_MADV_POPULATE_WRITE))
