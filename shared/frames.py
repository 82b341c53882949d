"""Bytes to rsocket frames and, for what is split over several, back to one: no sockets here.

rsocket's own parser accepts a metadata length beyond the frame's end, drops what it can't parse in silence (so that the
peer waits for ever), and can't read an ERROR frame with a code it doesn't know. Its fragment cache keeps the pieces of
a cancelled request, and hands that request to the server when its last piece arrives.
"""

import struct
from collections.abc import Callable
from typing import Final

from rsocket.error_codes import ErrorCode
from rsocket.frame import (
    CancelFrame,
    ErrorFrame,
    FragmentableFrame,
    Frame,
    FrameType,
    PayloadFrame,
    RequestChannelFrame,
    RequestFireAndForgetFrame,
    RequestNFrame,
    RequestResponseFrame,
    RequestStreamFrame,
    parse_or_ignore,
)

__all__ = ["FrameError", "Reassembler", "parse_frame"]

_HEADER: Final = struct.Struct(">IH")
_U32: Final = struct.Struct(">I")
_IGNORE = 0x200
_METADATA = 0x100
_FOLLOWS = 0x80
_COMPLETE = 0x40
_NEXT = 0x20
_MASK_31_BITS = 0x7FFFFFFF

_FRAGMENTABLE: dict[int, Callable[[], FragmentableFrame]] = {
    FrameType.REQUEST_RESPONSE: RequestResponseFrame,
    FrameType.REQUEST_FNF: RequestFireAndForgetFrame,
    FrameType.REQUEST_STREAM: RequestStreamFrame,
    FrameType.REQUEST_CHANNEL: RequestChannelFrame,
    FrameType.PAYLOAD: PayloadFrame,
}
_KNOWN_TYPES = frozenset(int(kind) for kind in FrameType if kind is not FrameType.EXT)
_KNOWN_ERROR_CODES = frozenset(int(code) for code in ErrorCode)


class FrameError(Exception):
    """The bytes are no frame; the connection can't go on."""


def parse_frame(buffer: bytes | bytearray | memoryview, *, own: bool) -> Frame | None:
    """The frame in `buffer`, without its length prefix; None for one that its sender allows to be ignored.

    Args:
        buffer: The whole frame.
        own: Whether `buffer` belongs to the frame from now on, so that a payload may be a view into it. Otherwise the
            payload is copied.

    Raises:
        FrameError: It is too short, of an unknown type, or contradicts itself.
    """
    view = memoryview(buffer)
    if len(view) < _HEADER.size:
        raise FrameError(f"a frame has at least {_HEADER.size} bytes, not {len(view)}")
    stream_id, type_and_flags = _HEADER.unpack_from(view)
    kind, flags = type_and_flags >> 10, type_and_flags & 0x3FF
    if stream_id > _MASK_31_BITS:
        raise FrameError("a stream id has 31 bits")
    make = _FRAGMENTABLE.get(kind)
    if make is not None:
        return _parse_fragmentable(make(), view, stream_id, flags, own=own)
    if kind not in _KNOWN_TYPES:
        if flags & _IGNORE:
            return None
        raise FrameError(f"unknown frame type {kind:#x}")
    if kind == FrameType.ERROR:
        return _parse_error(view, stream_id)
    try:
        return parse_or_ignore(bytes(view))
    except Exception as error:  # rsocket's parser raises whatever struct, enum and slicing raise
        raise FrameError(f"malformed {FrameType(kind).name} frame") from error


def _parse_fragmentable(
    frame: FragmentableFrame, view: memoryview, stream_id: int, flags: int, *, own: bool
) -> FragmentableFrame:
    if stream_id == 0:
        raise FrameError("stream 0 is the connection's own")
    frame.stream_id = stream_id
    frame.flags_ignore = bool(flags & _IGNORE)
    frame.flags_follows = bool(flags & _FOLLOWS)
    offset = _HEADER.size
    if isinstance(frame, PayloadFrame):
        frame.flags_complete = bool(flags & _COMPLETE)
        frame.flags_next = bool(flags & _NEXT)
    elif isinstance(frame, RequestStreamFrame | RequestChannelFrame):
        if len(view) < offset + _U32.size:
            raise FrameError("a request frame ends before its initial request-n")
        frame.initial_request_n = _U32.unpack_from(view, offset)[0] & _MASK_31_BITS
        offset += _U32.size
        if isinstance(frame, RequestChannelFrame):
            frame.flags_complete = bool(flags & _COMPLETE)
    if flags & _METADATA:
        data_at = offset + 3 + int.from_bytes(view[offset : offset + 3], "big")
        if data_at > len(view):
            raise FrameError("a frame's metadata goes beyond its end")
        frame.metadata = bytes(view[offset + 3 : data_at])
        offset = data_at
    frame.data = view[offset:] if own else bytes(view[offset:])
    frame.length = len(view)
    return frame


def _parse_error(view: memoryview, stream_id: int) -> ErrorFrame:
    offset = _HEADER.size + _U32.size
    if len(view) < offset:
        raise FrameError("an ERROR frame ends before its code")
    code: int = _U32.unpack_from(view, _HEADER.size)[0]
    frame = ErrorFrame()
    frame.stream_id = stream_id
    # rsocket's enum has no room for a custom code; what counts to us is that the stream failed, and the text.
    frame.error_code = ErrorCode(code) if code in _KNOWN_ERROR_CODES else ErrorCode.APPLICATION_ERROR
    frame.data = bytes(view[offset:])
    return frame


class _Partial:
    """What has arrived of one split payload."""

    __slots__ = ("data", "first", "metadata")

    def __init__(self, first: FragmentableFrame) -> None:
        self.first = first
        self.metadata: list[bytes | bytearray] = []
        self.data: list[bytes | bytearray | memoryview] = []

    def add(self, fragment: FragmentableFrame) -> None:
        if fragment.metadata:
            self.metadata.append(fragment.metadata)
        if fragment.data:
            self.data.append(fragment.data)

    def join(self, last: FragmentableFrame) -> FragmentableFrame:
        whole = self.first
        whole.metadata = b"".join(self.metadata)
        whole.data = b"".join(self.data)
        whole.flags_follows = False
        if isinstance(last, PayloadFrame) and isinstance(whole, PayloadFrame | RequestChannelFrame):
            whole.flags_complete = whole.flags_complete or last.flags_complete
        if isinstance(last, PayloadFrame) and isinstance(whole, PayloadFrame):
            whole.flags_next = whole.flags_next or last.flags_next
        return whole


class Reassembler:
    """Joins the fragments of each stream's payload; a state machine, one for each connection.

    A request reaches the server only as a whole. One that is cancelled, or fails, before its last fragment vanishes
    with everything that still arrives for it. So does what arrives for a stream that this side has cancelled.
    """

    # How many ended streams are remembered, so that what is still on its way to them isn't kept.
    _MAX_ABANDONED = 1024

    def __init__(self) -> None:
        self._partials: dict[int, _Partial] = {}
        self._abandoned: dict[int, None] = {}

    @property
    def pending(self) -> int:
        """How many payloads are incomplete."""
        return len(self._partials)

    def feed(self, frame: Frame) -> Frame | None:
        """Takes the next frame of the connection; gives the whole frame that it completes, or None.

        Raises:
            FrameError: A request frame arrived in the middle of its own stream's fragments.
        """
        stream_id = frame.stream_id
        if isinstance(
            frame,
            PayloadFrame | RequestResponseFrame | RequestStreamFrame | RequestChannelFrame | RequestFireAndForgetFrame,
        ):
            return self._feed_fragmentable(frame)
        if isinstance(frame, CancelFrame | ErrorFrame) and stream_id:
            return self._feed_end(frame)
        if isinstance(frame, RequestNFrame):
            partial = self._partials.get(stream_id)
            if partial is not None and isinstance(partial.first, RequestStreamFrame | RequestChannelFrame):
                total = partial.first.initial_request_n + (frame.request_n & _MASK_31_BITS)
                partial.first.initial_request_n = min(total, _MASK_31_BITS)
                return None
        return frame

    def _feed_fragmentable(self, frame: FragmentableFrame) -> Frame | None:
        stream_id = frame.stream_id
        partial = self._partials.get(stream_id)
        if partial is not None:
            if not isinstance(frame, PayloadFrame):
                raise FrameError(f"a second request on stream {stream_id}, in the middle of the first")
            partial.add(frame)
            if frame.flags_follows:
                return None
            del self._partials[stream_id]
            return partial.join(frame)
        if stream_id in self._abandoned and isinstance(frame, PayloadFrame):
            return None
        if frame.flags_follows:
            partial = self._partials[stream_id] = _Partial(frame)
            partial.add(frame)
            return None
        if isinstance(frame.data, memoryview):
            frame.data = bytes(frame.data)
        return frame

    def _feed_end(self, frame: Frame) -> Frame | None:
        partial = self._partials.get(frame.stream_id)
        if partial is None:
            return frame
        if isinstance(partial.first, PayloadFrame):
            # The requester of a channel may cancel what it receives and go on sending; only an ERROR ends both.
            if isinstance(frame, ErrorFrame):
                self.abandon(frame.stream_id)
            return frame
        # Nobody has seen a request that never became whole, so nobody waits for its end.
        self.abandon(frame.stream_id)
        return None

    def abandon(self, stream_id: int) -> None:
        """Drops what has arrived of a payload of this stream, and what still will."""
        self._partials.pop(stream_id, None)
        self._abandoned[stream_id] = None
        if len(self._abandoned) > self._MAX_ABANDONED:
            del self._abandoned[next(iter(self._abandoned))]
