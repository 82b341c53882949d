"""Bytes in, whole frames out: the receive buffer of one connection, without I/O.

Frames are taken out one at a time, when somebody asks for one; bytes that wait for that stay as they came. A frame that
is larger than the buffer gets a buffer of its size, once its header was admitted, and a payload is copied once, from
there to the `bytes` that are its own. (Receiving into a buffer that is then handed on, instead, saves 8 µs per 256 KiB,
of which zeroing a new buffer takes back 6; and its users would have to know that it isn't `bytes`.)

A whole payload in one frame of more than a MiB is received into what becomes its `bytes`: to copy 16 MB takes 25 ms
where its memory is new, and the event loop would be held for that.
"""

from collections.abc import Container
from typing import Final

from rsocket.frame import FragmentableFrame, Frame, FrameType

from ..frames.buffers import ReservedBuffer
from ..frames.codec import HEADER_BYTES, LENGTH_BYTES, FrameError, FrameHeader, data_offset, parse_frame
from ..frames.reassembly import Reassembler, SplitPayload

__all__ = ["FrameReceiver"]

_BUFFER_BYTES: Final = 64 * 1024
# What is read beyond the end of a large frame, so that the next header comes with the same system call; it is copied.
_TAIL_BYTES: Final = 4 * 1024
# The most that one read may bring: it is copied in the kernel, and holds the loop meanwhile.
_READ_BYTES: Final = 1024 * 1024
# The same where the memory is new: to touch it takes longer than to copy.
_NEW_READ_BYTES: Final = 256 * 1024
# From here on a whole payload's data is received into its own memory.
_OWN_BYTES: Final = 1024 * 1024
# Large buffers that no connection uses just now: few, and none larger than frames of our own kind need.
_MAX_SPARES: Final = 4
_MAX_SPARE_BYTES: Final = 1024 * 1024
_spares: list[memoryview] = []
# The largest frame that is an item of our own kind, with room for its buffer's tail.
_MAX_ITEM_BYTES: Final = _MAX_SPARE_BYTES - _BUFFER_BYTES
# The flags of a payload that is one whole item of a stream, without metadata, and not the last.
_ITEM_FLAGS: Final = 0x20


class FrameReceiver:
    """The bytes of one connection that wait to be frames.

    Args:
        reassembler: Decides which frames are taken in, and joins fragments.
    """

    def __init__(self, reassembler: Reassembler) -> None:
        self._reassembler = reassembler
        reassembler.source = self
        self._small = memoryview(bytearray(_BUFFER_BYTES))
        self._view = self._small
        self._start = 0
        self._end = 0
        # How many bytes from the start on are needed before anything can be done with them.
        self._needed = LENGTH_BYTES
        self._header: FrameHeader | None = None
        self._to_skip = 0
        # Of the payload whose data is received into its own memory: that, and what stood before it.
        self._own: ReservedBuffer | None = None
        self._head = b""

    @property
    def is_ready(self) -> bool:
        """Whether `take` has something to do."""
        return self._end - self._start >= self._needed or bool(self._reassembler.refusals)

    @property
    def is_full(self) -> bool:
        """Whether there is no room to receive into; not while `is_ready` is False."""
        return self._end == self._limit()

    def received_of(self, stream_id: int) -> int:
        """Bytes that have arrived of a frame of this stream whose end hasn't."""
        return self.arrived_bytes if self._header is not None and self._header.stream_id == stream_id else 0

    def get_buffer(self) -> memoryview:
        """Where the next bytes are to be received into; empty if `is_full`."""
        most = _READ_BYTES if self._own is None else _NEW_READ_BYTES
        return self._view[self._end : min(self._limit(), self._end + most)]

    def received(self, nbytes: int) -> None:
        """Notes that `nbytes` were put where `get_buffer` said."""
        self._end += nbytes

    def take(self) -> Frame | SplitPayload | None:
        """Goes one step on with what was received; only while `is_ready`.

        Returns:
            The next frame or split payload; None if this step gave none.

        Raises:
            PayloadRefused: A payload is over a limit, or was refused meanwhile; what arrives of it is skipped, and one
                may go on.
            FrameError: The connection can't go on.
        """
        if self._reassembler.refusals:
            raise self._reassembler.refusals.popleft()
        if self._to_skip:
            self._skip()
            return None
        view, begin = self._view, self._start + LENGTH_BYTES
        header = self._header
        if header is None:
            length = int.from_bytes(view[self._start : begin], "big")
            if length < HEADER_BYTES:
                raise FrameError(f"a frame has at least {HEADER_BYTES} bytes, not {length}")
            if self._end - begin < HEADER_BYTES:
                self._need(LENGTH_BYTES + HEADER_BYTES)
                return None
            header = FrameHeader.parse(view, begin, length)
            # Refused until shown otherwise: if this raises, the frame is skipped.
            self._to_skip, self._needed = LENGTH_BYTES + length, 1
            if not self._reassembler.admit(header):
                return None
            self._to_skip = 0
        elif self._own is not None:
            return self._reassembler.feed(self._take_own(header, self._own))
        total = LENGTH_BYTES + header.length
        if self._end - self._start < total:
            self._header = header
            if not self._begin_own(header):
                self._need(total)
            return None
        self._header = None
        frame = parse_frame(header, view[begin : self._start + total], is_borrowed=self._reassembler.copies(header))
        try:
            return self._reassembler.feed(frame) if frame is not None else None
        finally:
            self._advance(total)  # only now: what was borrowed is copied, or refused

    @property
    def arrived_bytes(self) -> int:
        """What has arrived of the frame that was admitted and isn't whole yet."""
        return len(self._head) + self._end - self._start if self._header is not None else 0

    def skip(self) -> None:
        """Gives up that frame and its buffer; what still arrives of it is dropped."""
        header = self._header
        if header is not None:
            self._to_skip = LENGTH_BYTES + header.length - len(self._head)
            self._header, self._head = None, b""
            self._skip()

    @property
    def header_bytes_missing(self) -> int:
        """Bytes of the next frame's length and header that aren't here yet."""
        return max(LENGTH_BYTES + HEADER_BYTES - (self._end - self._start), 0)

    def next_item(self, streams: Container[int]) -> FrameHeader | None:
        """The header of the next frame, if it is here, and is a plain item of one of `streams`; None if not.

        Plain is what is one whole item, has no metadata and isn't the last.
        """
        begin = self._start + LENGTH_BYTES
        if self._header is not None or self._to_skip or self._end - begin < HEADER_BYTES:
            return None
        view = self._view
        kind_and_flags = view[begin + 4] << 8 | view[begin + 5]
        if kind_and_flags != FrameType.PAYLOAD << 10 | _ITEM_FLAGS:
            return None
        length = int.from_bytes(view[self._start : begin], "big")
        stream_id = int.from_bytes(view[begin : begin + 4], "big")
        if stream_id not in streams or length > _MAX_ITEM_BYTES:
            return None
        return FrameHeader(stream_id, FrameType.PAYLOAD, _ITEM_FLAGS, length)

    @property
    def is_in_item(self) -> bool:
        """Whether `item_data` has made room for an item that isn't whole yet."""
        return self._header is None and self._needed > LENGTH_BYTES + HEADER_BYTES

    def item_data(self, item: FrameHeader) -> memoryview | None:
        """The data of the item that `next_item` found; None while more of it has to be received."""
        total = LENGTH_BYTES + item.length
        if self._end - self._start < total:
            self._need(total)
            return None
        return self._view[self._start + LENGTH_BYTES + HEADER_BYTES : self._start + total]

    def begin_item(self, item: FrameHeader) -> memoryview:
        """What is here of that item's data, where the rest is received elsewhere; `left_item` is to follow."""
        begin = self._start + LENGTH_BYTES + HEADER_BYTES
        return self._view[begin : min(self._end, begin + item.payload_bytes)]

    def left_item(self, nbytes: int) -> None:
        """Goes beyond the header, and the `nbytes` of data, of such an item."""
        self._advance(LENGTH_BYTES + HEADER_BYTES + nbytes)

    def skip_next(self, nbytes: int) -> None:
        """Drops the next `nbytes` that are received: the rest of such an item."""
        assert self._start == self._end, "nothing else was received"
        self._to_skip, self._needed = nbytes, 1

    def pass_item(self, item: FrameHeader) -> None:
        """Goes beyond that item; its data's view isn't good any more."""
        self._advance(LENGTH_BYTES + item.length)

    def discard(self) -> None:
        """Forgets what was received."""
        self._give_up()
        self._header, self._head = None, b""
        self._start = self._end = self._to_skip = 0
        self._needed = LENGTH_BYTES

    def close(self) -> None:
        """Forgets what was received, and gives up all buffers: nothing may be received any more."""
        self.discard()
        self._view = self._small = memoryview(b"")

    def _limit(self) -> int:
        """Where receiving ends: a large buffer may be larger than its frame."""
        if self._own is not None:
            return len(self._view)
        return len(self._small) if self._view is self._small else self._needed + _TAIL_BYTES

    def _begin_own(self, header: FrameHeader) -> bool:
        """Goes on to receive the frame's data into its own memory; False if it isn't worth it, or can't be."""
        if header.payload_bytes <= _OWN_BYTES or not header.is_fragmentable or self._reassembler.copies(header):
            return False
        head = self._view[self._start : self._end]
        data_at = data_offset(header, head[LENGTH_BYTES:]) + LENGTH_BYTES
        if not data_at < min(LENGTH_BYTES + header.length, len(self._small)):
            return False  # it contradicts itself, or says more than it carries
        if len(head) < data_at:
            self._need(data_at)
            return True
        own = ReservedBuffer()
        view, here = own.lend(LENGTH_BYTES + header.length - data_at), head[data_at:]
        view[: len(here)] = here
        self._head = bytes(head[:data_at])
        self._give_up()
        self._own, self._view = own, view
        self._start, self._end, self._needed = 0, len(here), len(view)
        return True

    def _take_own(self, header: FrameHeader, own: ReservedBuffer) -> Frame:
        """The frame whose data was received into its own memory."""
        frame = parse_frame(header, memoryview(self._head)[LENGTH_BYTES:])
        assert isinstance(frame, FragmentableFrame), "nothing else is received so"
        self._header, self._head = None, b""
        self._view.release()
        self._advance(self._end)
        frame.data = own.finish()
        return frame

    def _skip(self) -> None:
        nbytes = min(self._to_skip, self._end - self._start)
        self._to_skip -= nbytes
        self._advance(nbytes)
        if self._to_skip:
            self._needed = 1

    def _advance(self, nbytes: int) -> None:
        """Goes beyond what was dealt with."""
        self._start += nbytes
        self._needed = LENGTH_BYTES
        if self._start == self._end:
            self._start = self._end = 0
            self._give_up()
        elif self._view is not self._small:
            # The tail of a large frame: never more than fits.
            self._move(self._small)
        elif len(self._view) - self._start < LENGTH_BYTES:
            self._move(self._small)

    def _need(self, nbytes: int) -> None:
        """Makes room for `nbytes` from the start on."""
        self._needed = nbytes
        if nbytes > len(self._small):
            self._move(_borrow(nbytes + _TAIL_BYTES))
        elif nbytes > len(self._view) - self._start:
            self._move(self._small)

    def _move(self, target: memoryview) -> None:
        """Moves what is there to the front of `target`."""
        rest = self._end - self._start
        target[:rest] = self._view[self._start : self._end]
        self._give_up()
        self._view, self._start, self._end = target, 0, rest

    def _give_up(self) -> None:
        """Goes back to the small buffer."""
        if self._view is not self._small:
            if self._own is None and len(self._view) <= _MAX_SPARE_BYTES and len(_spares) < _MAX_SPARES:
                _spares.append(self._view)
            self._view, self._own = self._small, None


def _borrow(nbytes: int) -> memoryview:
    """A buffer of at least `nbytes`."""
    try:
        spare = _spares.pop()
    except IndexError:  # not looked at beforehand, as another thread may come between
        spare = None
    if spare is not None and len(spare) >= nbytes:
        return spare
    return memoryview(bytearray(-(-nbytes // _BUFFER_BYTES) * _BUFFER_BYTES))
