"""A byte stream in, whole frames out: the receive buffer of one TCP connection, without I/O.

Frames are parsed one at a time, when the connection asks for one; until then their bytes stay as they came, in a buffer
that is borrowed while something is in it: an idle connection has none. A frame that is larger than the buffer gets a
buffer of its size, once its header was admitted, and its payload is copied once, to `bytes` of its own. The file lane's
thread takes items of its streams out of the same buffer, while the event loop doesn't use it.

A fragment of a large payload is received where the payload is joined, and a whole payload in one frame of more than a
MiB into the memory that becomes its `bytes`: a copy of 16 MB to new memory would block the event loop for 25 ms. If its
data goes to a disk, it is taken in by slices.
"""

from collections.abc import Callable, Container
from functools import partial
from typing import Final

from rsocket.frame import FragmentableFrame, Frame, FrameType, PayloadFrame

from ..errors import TooLarge
from ..frames.buffers import ReservedBuffer
from ..frames.codec import (
    FOLLOWS_OR_IGNORE,
    HEADER_BYTES,
    FrameError,
    FrameHeader,
    data_offset,
    fragment_of,
    parse_frame,
)
from ..frames.fragments import SplitPayload
from ..frames.reassembly import Reassembler
from .framing import LENGTH_BYTES
from .lending import MAX_SPARE_BYTES, BufferPool, borrow_large, give_back_large
from .plain import check_plain

__all__ = ["FrameDecoder"]

_BUFFER_BYTES: Final = 16 * 1024
_lent: Final = BufferPool(64 * 1024, most=128, small_bytes=_BUFFER_BYTES, most_spares=32)
_NO_BUFFER: Final = memoryview(b"")
# What is read beyond the end of a large frame, so that one call brings the next header, too; it is copied.
_TAIL_BYTES: Final = 4 * 1024
# The most that one read may bring: the kernel copies it, and blocks the event loop meanwhile.
_READ_BYTES: Final = 1024 * 1024
# The same for new memory: touching it takes longer than copying.
_NEW_READ_BYTES: Final = 256 * 1024
# From here on the data of a payload that is one frame is received into its own memory.
_OWN_BYTES: Final = 1024 * 1024
_SMALL_BYTES: Final = 128 * 1024  # up to here a frame is never taken in by slices
# The largest frame that is an item of our own kind, with room for its buffer's tail.
_MAX_ITEM_BYTES: Final = MAX_SPARE_BYTES - _BUFFER_BYTES
_METADATA: Final = 0x100
_NEXT: Final = 0x20
_Finish = Callable[[], bytes | memoryview]


class FrameDecoder:
    """The received bytes of one connection, and the frames in them.

    Args:
        reassembler: Decides which frames are taken in, and joins fragments.
    """

    def __init__(self, reassembler: Reassembler) -> None:
        self._reassembler = reassembler
        self._small = self._view = _NO_BUFFER  # the first is borrowed while anything is received
        self._is_closed = False
        self._start = 0
        self._end = 0
        # How many bytes from the start on are needed for the next step.
        self._needed = LENGTH_BYTES
        self._header: FrameHeader | None = None
        self._to_skip = 0
        self._is_first = True
        # Of a frame whose data is received where it stays: what gives that, and the frame's bytes before the data.
        self._own: _Finish | None = None
        self._head = b""
        # Of a frame that is taken in by slices, as if it came in fragments: its header, the bytes behind the present
        # slice, and how many more bytes than its header says that slice has on the wire (fewer, but for the first).
        self._whole: FrameHeader | None = None
        self._unsliced_bytes = 0
        self._prefix_bytes = LENGTH_BYTES

    @property
    def is_ready(self) -> bool:
        """Whether `take` has something to do."""
        return self._end - self._start >= self._needed

    @property
    def is_full(self) -> bool:
        """Whether there is no room to receive into; only possible while `is_ready`."""
        return self._is_closed or (self._view is not _NO_BUFFER and self._end == self._limit())

    def received_of(self, stream_id: int) -> int:
        """Bytes that have arrived of a frame of this stream whose end hasn't."""
        if self._header is not None:
            return self.arrived_bytes if self._header.stream_id == stream_id else 0
        begin = self._start + LENGTH_BYTES
        is_its = self.is_in_item and int.from_bytes(self._view[begin : begin + 4], "big") == stream_id
        return self._end - self._start if is_its else 0

    def get_buffer(self) -> memoryview:
        """The part of the buffer for the next bytes; empty if `is_full`."""
        if self._view is _NO_BUFFER and not self._is_closed:
            self._small = self._view = _lent.borrow()
        most = _READ_BYTES if len(self._view) <= _OWN_BYTES else _NEW_READ_BYTES
        return self._view[self._end : min(self._limit(), self._end + most)]

    def received(self, nbytes: int) -> None:
        """Notes that `nbytes` were received into `get_buffer()`."""
        self._end += nbytes

    def release(self) -> None:
        """Gives the buffer back if nothing is in it."""
        if self._view is self._small is not _NO_BUFFER and self._start == self._end:
            small, self._small = self._small, _NO_BUFFER
            self._view, self._start, self._end = _NO_BUFFER, 0, 0
            _lent.give_back(small)

    def take_only(self, frame: bytes) -> bool:
        """Takes this frame, with its length before it, if it is all that is here; whether it was."""
        is_begin = self._header is None and self._whole is None and not self._to_skip
        if not is_begin or self._end - self._start != len(frame) or bytes(self._view[self._start : self._end]) != frame:
            return False
        self._advance(len(frame))
        return True

    def take(self) -> Frame | SplitPayload | None:
        """Does the next step with what was received; only while `is_ready`.

        Returns:
            The next frame or split payload; None if this step completed none.

        Raises:
            FrameError: The connection can't go on.
        """
        if self._to_skip:
            self._skip()
            return None
        if self._whole is not None and (self._header is None or self._prefix_bytes < 0):
            return self._take_slice(self._whole)
        view, begin = self._view, self._start + LENGTH_BYTES
        header = self._header
        if header is None:
            header = self._admit_next(view, begin)
            if header is None:
                return None
        elif self._own is not None:
            return self._reassembler.feed(self._take_own(header, self._own))
        total = LENGTH_BYTES + header.length
        if self._end - self._start < total:
            self._header = header
            if not self._begin_own(header):
                self._need(total)
            return None
        self._header = None
        if self._whole is not None and header.length < data_offset(header, view[begin:]) <= self._whole.length:
            self._header = header
            self._reassembler.refuse_incoming(TooLarge("there is too much metadata"))
            return None
        frame = parse_frame(header, view[begin : self._start + total], is_borrowed=self._reassembler.copies(header))
        try:
            if frame is not None:
                return self._reassembler.feed(frame)
            self._reassembler.drop(header)
            return None
        finally:
            self._advance(total)  # not before `feed` has copied or refused what was borrowed

    def _admit_next(self, view: memoryview, begin: int) -> FrameHeader | None:
        """The header of the next frame, or of its first slice; None if it isn't here, or is skipped."""
        length = int.from_bytes(view[self._start : begin], "big")
        if self._is_first:
            check_plain(length)
        self._is_first = False
        if length < HEADER_BYTES:
            raise FrameError(f"a frame has at least {HEADER_BYTES} bytes, not {length}")
        if self._end - begin < HEADER_BYTES:
            self._need(LENGTH_BYTES + HEADER_BYTES)
            return None
        header = FrameHeader.parse(view, begin, length)
        # Skipped unless it is admitted, also if this raises.
        self._to_skip, self._needed = LENGTH_BYTES + length, 1
        most = length if length <= _SMALL_BYTES else self._reassembler.slice_bytes(header)
        first = header if most == length else header.first_slice(most)
        if not self._reassembler.admit(first, self):
            return None
        self._to_skip, self._prefix_bytes = 0, LENGTH_BYTES
        if first is not header:
            self._whole, self._unsliced_bytes = header, length - most
        return first

    def _take_slice(self, whole: FrameHeader) -> Frame | SplitPayload | None:
        """Takes the next slice of a frame's data as a fragment."""
        header = self._header
        if header is None:
            rest = self._unsliced_bytes
            most = self._reassembler.slice_bytes(whole.next_slice(rest, is_last=True)) - HEADER_BYTES
            header = whole.next_slice(most, is_last=most == rest)
            self._to_skip, self._needed = rest, 1
            if not self._reassembler.admit(header, self):
                self._whole, self._unsliced_bytes = None, 0
                return None
            self._to_skip, self._unsliced_bytes, self._prefix_bytes = 0, rest - most, -HEADER_BYTES
        total = header.length + self._prefix_bytes
        if self._end - self._start < total:
            self._header = header
            self._need(total)
            return None
        self._header = None
        self._whole = whole if self._unsliced_bytes else None
        fragment = fragment_of(header, bytes(self._view[self._start : self._start + total]))
        self._advance(total)
        return self._reassembler.feed(fragment)

    @property
    def arrived_bytes(self) -> int:
        """What has arrived of the frame, or slice, that was admitted and isn't whole yet."""
        return len(self._head) + self._end - self._start if self._header is not None else 0

    def skip(self) -> None:
        """Drops that frame, with what still arrives of it, and frees its buffer."""
        header = self._header
        if header is not None:
            self._to_skip = self._prefix_bytes + header.length - len(self._head) + self._unsliced_bytes
            self._header, self._head, self._whole, self._unsliced_bytes = None, b"", None, 0
            self._skip()

    def next_item(self, streams: Container[int]) -> FrameHeader | None:
        """The header of the next frame, if it is here, and the frame is a whole item of one of `streams`."""
        begin = self._start + LENGTH_BYTES
        is_between = self._header is None and self._whole is None and not self._to_skip
        if not is_between or self._end - begin < HEADER_BYTES:
            return None
        view = self._view
        kind_and_flags = view[begin + 4] << 8 | view[begin + 5]
        flags = kind_and_flags & 0x3FF
        if kind_and_flags >> 10 != FrameType.PAYLOAD or not flags & _NEXT or flags & FOLLOWS_OR_IGNORE:
            return None
        length = int.from_bytes(view[self._start : begin], "big")
        stream_id = int.from_bytes(view[begin : begin + 4], "big")
        if stream_id not in streams or not HEADER_BYTES < length <= _MAX_ITEM_BYTES:
            return None
        metadata_begin = begin + HEADER_BYTES + LENGTH_BYTES
        has_length = bool(flags & _METADATA) and self._end >= metadata_begin
        metadata_bytes = int.from_bytes(view[begin + HEADER_BYTES : metadata_begin], "big") if has_length else 0
        # If not, it is the last fragment of an item, its stream was refused, or its metadata is to be refused.
        is_whole = self._reassembler.expects_whole(stream_id, metadata_bytes)
        return FrameHeader(stream_id, FrameType.PAYLOAD, flags, length) if is_whole else None

    @property
    def is_in_item(self) -> bool:
        """Whether there is room for an item of the file lane that isn't whole yet."""
        return self._header is None and self._needed > LENGTH_BYTES + HEADER_BYTES

    def take_data(self, item: FrameHeader) -> tuple[memoryview, Callable[[], None]] | None:
        """The data of the plain item that `next_item` found, and what to call when it isn't used any more.

        The data stays valid until then. None while some of it is still to be received.
        """
        total = LENGTH_BYTES + item.length
        if self._end - self._start < total:
            self._need(total)
            return None
        begin = self._start + LENGTH_BYTES + HEADER_BYTES
        large, end = self._view, self._start + total
        if large is self._small:
            data = memoryview(bytes(large[begin:end]))
            self._advance(total)
            return data, lambda: None  # it is a copy
        rest = large[end : self._end]
        self._small[: len(rest)] = rest
        self._view, self._start, self._end, self._needed = self._small, 0, len(rest), LENGTH_BYTES
        return large[begin:end], partial(give_back_large, large)

    def take_frame(self, item: FrameHeader) -> PayloadFrame | None:
        """The whole frame of the item that `next_item` found; None while some is missing. Raises what `take` raises."""
        total = LENGTH_BYTES + item.length
        if self._end - self._start < total:
            self._need(total)
            return None
        frame = parse_frame(item, self._view[self._start + LENGTH_BYTES : self._start + total])
        assert isinstance(frame, PayloadFrame), "its header says so"
        self._advance(total)
        return frame

    def take_begin(self, item: FrameHeader) -> memoryview:
        """What is here of a plain item's data, if the rest is received elsewhere; `skip_begin` is to follow."""
        begin = self._start + LENGTH_BYTES + HEADER_BYTES
        return self._view[begin : min(self._end, begin + item.payload_bytes)]

    def skip_begin(self, nbytes: int) -> None:
        """Drops the header, and `nbytes` of data, of such an item."""
        self._advance(LENGTH_BYTES + HEADER_BYTES + nbytes)

    @property
    def header_bytes_missing(self) -> int:
        """Bytes of the next frame's length and header that aren't here yet."""
        return max(LENGTH_BYTES + HEADER_BYTES - (self._end - self._start), 0)

    def skip_next(self, nbytes: int) -> None:
        """Drops the next `nbytes` that are received: the rest of such an item."""
        assert self._start == self._end, "nothing else was received"
        self._to_skip, self._needed = nbytes, 1

    def discard(self) -> None:
        """Drops what was received."""
        self._give_up()
        self._header, self._head, self._whole, self._unsliced_bytes = None, b"", None, 0
        self._start = self._end = self._to_skip = 0
        self._needed = LENGTH_BYTES

    def close(self) -> None:
        """Drops what was received, and frees all buffers: nothing may be received any more."""
        self.discard()
        self.release()
        self._is_closed = True

    def _limit(self) -> int:
        """Where receiving ends: a large buffer may have more room than its frame needs."""
        is_exact = self._own is not None or self._view is self._small
        return len(self._view) if is_exact else self._needed + _TAIL_BYTES

    def _begin_own(self, header: FrameHeader) -> bool:
        """Receives the rest of the frame's data where it stays; False if it isn't worth it, or impossible."""
        head = self._view[self._start : self._end]
        if (place := self._reassembler.lend(header)) is not None:
            self._receive_into(place[:], head, LENGTH_BYTES + HEADER_BYTES, lambda: place)
            return True
        if header.payload_bytes <= _OWN_BYTES or not header.is_fragmentable or self._reassembler.copies(header):
            return False
        data_at = data_offset(header, head[LENGTH_BYTES:]) + LENGTH_BYTES
        if not data_at < min(LENGTH_BYTES + header.length, len(self._small)):
            return False  # it contradicts itself, or has more metadata than fits the buffer
        if len(head) < data_at:
            self._need(data_at)
            return True
        own = ReservedBuffer()
        self._receive_into(own.lend(LENGTH_BYTES + header.length - data_at), head, data_at, own.finish)
        return True

    def _receive_into(self, view: memoryview, head: memoryview, data_at: int, finish: _Finish) -> None:
        """Receives the rest into `view`, of which `head` has the beginning from `data_at` on."""
        here = head[data_at:]
        view[: len(here)] = here
        self._head = bytes(head[:data_at])
        self._give_up()
        self._own, self._view = finish, view
        self._start, self._end, self._needed = 0, len(here), len(view)

    def _take_own(self, header: FrameHeader, finish: _Finish) -> Frame:
        """The frame whose data was received where it stays."""
        frame = parse_frame(header, memoryview(self._head)[LENGTH_BYTES:])
        assert isinstance(frame, FragmentableFrame), "nothing else is received so"
        self._header, self._head = None, b""
        self._view.release()
        self._advance(self._end)
        frame.data = finish()
        return frame

    def _skip(self) -> None:
        nbytes = min(self._to_skip, self._end - self._start)
        self._to_skip -= nbytes
        self._advance(nbytes)
        if self._to_skip:
            self._needed = 1

    def _advance(self, nbytes: int) -> None:
        """Drops what was handled."""
        self._start += nbytes
        self._needed = LENGTH_BYTES if self._whole is None else 1
        if self._start == self._end:
            self._start = self._end = 0
            self._give_up()
        elif self._view is not self._small or len(self._view) - self._start < LENGTH_BYTES:
            self._move(self._small)  # the tail of a large frame always fits

    def _need(self, nbytes: int) -> None:
        """Makes room for `nbytes` from the start on."""
        self._needed = nbytes
        if nbytes > len(self._small):
            wanted = -(-(nbytes + _TAIL_BYTES) // _BUFFER_BYTES) * _BUFFER_BYTES
            self._move(borrow_large(wanted))
        elif nbytes > len(self._view) - self._start:
            self._move(self._small)

    def _move(self, target: memoryview) -> None:
        """Moves the received bytes to the front of `target`."""
        rest = self._end - self._start
        target[:rest] = self._view[self._start : self._end]
        self._give_up()
        self._view, self._start, self._end = target, 0, rest

    def _give_up(self) -> None:
        """Returns to the small buffer."""
        if self._view is not self._small:
            large, self._view = self._view, self._small
            if self._own is None:
                give_back_large(large)
            self._own = None
