"""A strict parser from a frame's header, and from its bytes to rsocket's `Frame`, and back. No buffers, no sockets.

rsocket's own parser accepts a metadata length beyond the frame's end, silently drops what it can't parse (so that the
peer waits for ever), and can't read an ERROR frame with a code that it doesn't know.
"""

import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from rsocket.error_codes import ErrorCode
from rsocket.frame import (
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
    SetupFrame,
    parse_or_ignore,
)

__all__ = [
    "FOLLOWS_OR_IGNORE",
    "HEADER_BYTES",
    "KEEPALIVE",
    "KEEPALIVE_ANSWER",
    "MAX_FRAME_BYTES",
    "REQUEST_KINDS",
    "STREAM_KINDS",
    "FrameError",
    "FrameHeader",
    "data_offset",
    "fragment_of",
    "parse_frame",
    "serialize_head",
]

MAX_FRAME_BYTES: Final = 0xFFFFFF
"""The longest frame: the length field of a TCP connection has 24 bits."""

HEADER_BYTES: Final = 6
"""What every frame begins with: its stream, kind and flags."""

_HEADER: Final = struct.Struct(">IH")
_KEEPALIVE: Final = struct.Struct(">IHQ")
_RESPOND: Final = 0x80
KEEPALIVE: Final = _KEEPALIVE.pack(0, FrameType.KEEPALIVE << 10 | _RESPOND, 0)
"""The usual KEEPALIVE: it asks for an answer, without data and without a position to resume from."""
KEEPALIVE_ANSWER: Final = _KEEPALIVE.pack(0, FrameType.KEEPALIVE << 10, 0)
"""The answer to it."""

_U32: Final = struct.Struct(">I")
_SETUP: Final = struct.Struct(">HHII")
_IGNORE: Final = 0x200
_METADATA: Final = 0x100
_FOLLOWS: Final = 0x80
_COMPLETE: Final = 0x40
_NEXT: Final = 0x20
_PAYLOAD_FLAGS: Final = _METADATA | _FOLLOWS | _COMPLETE | _NEXT
_IS_LAST_ITEM: Final = _FOLLOWS | _COMPLETE
_RESUME: Final = 0x80
_LEASE: Final = 0x40
_MASK_31_BITS: Final = 0x7FFFFFFF

_FRAGMENTABLE: Final[dict[int, Callable[[], FragmentableFrame]]] = {
    FrameType.REQUEST_RESPONSE: RequestResponseFrame,
    FrameType.REQUEST_FNF: RequestFireAndForgetFrame,
    FrameType.REQUEST_STREAM: RequestStreamFrame,
    FrameType.REQUEST_CHANNEL: RequestChannelFrame,
    FrameType.PAYLOAD: PayloadFrame,
}
REQUEST_KINDS: Final = frozenset(int(kind) for kind in _FRAGMENTABLE if kind != FrameType.PAYLOAD)
"""The frames that open a stream."""

STREAM_KINDS: Final = frozenset(map(int, (*_FRAGMENTABLE, FrameType.REQUEST_N, FrameType.CANCEL, FrameType.ERROR)))
"""The frames of streams. An ERROR may also be the connection's."""

_WITH_REQUEST_N: Final = frozenset({int(FrameType.REQUEST_STREAM), int(FrameType.REQUEST_CHANNEL)})
FOLLOWS_OR_IGNORE: Final = _FOLLOWS | _IGNORE
"""The flags of frames that aren't whole payloads, and of those that may be of an unknown kind."""

_KNOWN_KINDS: Final = frozenset(int(kind) for kind in FrameType if kind is not FrameType.EXT)
_MISPLACED_ON_STREAMS: Final = _KNOWN_KINDS - STREAM_KINDS
_MISPLACED_ON_CONNECTION: Final = STREAM_KINDS - {int(FrameType.ERROR)}
_KNOWN_ERROR_CODES: Final = frozenset(int(code) for code in ErrorCode)


class FrameError(Exception):
    """The bytes are no frame, or no frame that may arrive now; the connection can't go on."""


class FrameHeader(NamedTuple):
    """What is known of a frame before the rest of it has arrived.

    Attributes:
        stream_id: Its stream; 0 is the connection's own.
        kind: A `FrameType`, or a type that is unknown and may be ignored.
        flags: Ten bits, whose meaning depends on the kind. A PAYLOAD that completes its stream doesn't follow on.
        length: The whole frame, without its length field, in bytes.
    """

    stream_id: int
    kind: int
    flags: int
    length: int

    @classmethod
    def parse(cls, view: memoryview, offset: int, length: int) -> "FrameHeader":
        """The header at `offset` of a frame of `length` bytes.

        Raises:
            FrameError: The stream id has more than 31 bits, or the type is unknown and may not be ignored.
        """
        stream_id, kind_and_flags = _HEADER.unpack_from(view, offset)
        if kind_and_flags & _IS_LAST_ITEM == _IS_LAST_ITEM and kind_and_flags >> 10 == FrameType.PAYLOAD:
            kind_and_flags &= ~_FOLLOWS
        header = cls(stream_id, kind_and_flags >> 10, kind_and_flags & 0x3FF, length)
        if stream_id > _MASK_31_BITS:
            raise FrameError("a stream id has 31 bits")
        if header.kind not in _KNOWN_KINDS and not header.may_be_ignored:
            raise FrameError(f"unknown frame type {header.kind:#x}")
        return header

    def first_slice(self, nbytes: int) -> "FrameHeader":
        """The header of its first `nbytes`, as if the rest came in fragments."""
        return self._replace(flags=(self.flags | _FOLLOWS) & ~_COMPLETE, length=nbytes)

    def next_slice(self, nbytes: int, *, is_last: bool) -> "FrameHeader":
        """The header of such a fragment with `nbytes` of its data."""
        flags = _NEXT | (self.flags & (_FOLLOWS | _COMPLETE) if is_last else _FOLLOWS)
        return FrameHeader(self.stream_id, FrameType.PAYLOAD, flags, HEADER_BYTES + nbytes)

    @property
    def is_misplaced(self) -> bool:
        """Whether it is a stream's frame on stream 0, or the connection's on another; such a frame is ignored."""
        return self.kind in (_MISPLACED_ON_STREAMS if self.stream_id else _MISPLACED_ON_CONNECTION)

    @property
    def may_be_ignored(self) -> bool:
        """Whether this is a frame of a later protocol that a receiver skips."""
        return self.kind not in _KNOWN_KINDS and bool(self.flags & _IGNORE)

    @property
    def is_fragmentable(self) -> bool:
        """Whether it is a payload or a request."""
        return self.kind in _FRAGMENTABLE

    @property
    def is_plain(self) -> bool:
        """Whether a payload is one whole item of a stream, without metadata, and not the last."""
        return self.flags & _PAYLOAD_FLAGS == _NEXT

    @property
    def follows(self) -> bool:
        """Whether a payload or request goes on in another frame."""
        return bool(self.flags & _FOLLOWS)

    @property
    def payload_bytes(self) -> int:
        """The data and metadata of a payload or request; negative if the frame is too short to be one."""
        overhead = HEADER_BYTES + (_U32.size if self.kind in _WITH_REQUEST_N else 0)
        return self.length - overhead - (3 if self.flags & _METADATA else 0)


def data_offset(header: FrameHeader, view: memoryview) -> int:
    """Where the data of a payload or request begins.

    If `view`, the bytes that are here, is too short to say so: where the length of the metadata ends.
    """
    offset = HEADER_BYTES + (_U32.size if header.kind in _WITH_REQUEST_N else 0)
    if not header.flags & _METADATA:
        return offset
    known_at = offset + 3
    return known_at + int.from_bytes(view[offset:known_at], "big") if len(view) >= known_at else known_at


def parse_frame(header: FrameHeader, view: memoryview, *, is_borrowed: bool = False) -> Frame | None:
    """The frame whose bytes `view` holds, its data and metadata as `bytes`; None if it may be ignored.

    Args:
        header: The frame's.
        view: Its bytes, without the length field.
        is_borrowed: Makes the data of a payload or request a part of `view`, for a caller that copies it.

    Raises:
        FrameError: It contradicts itself.
    """
    make = _FRAGMENTABLE.get(header.kind)
    if make is not None:
        try:
            return _parse_fragmentable(make(), header, view, is_borrowed)
        except FrameError:
            if header.flags & _IGNORE:
                return None
            raise
    if header.may_be_ignored:
        return None
    if header.kind == FrameType.ERROR:
        return _parse_error(header, view)
    if header.kind == FrameType.SETUP:
        return _parse_setup(header, view)
    try:
        frame = parse_or_ignore(bytes(view))
    except Exception as error:  # rsocket's parser raises whatever struct, enum and slicing raise
        raise FrameError(f"malformed {FrameType(header.kind).name} frame") from error
    if isinstance(frame, RequestNFrame):
        frame.request_n &= _MASK_31_BITS  # rsocket counts the reserved bit
    return frame


def fragment_of(header: FrameHeader, data: bytes) -> PayloadFrame:
    """The frame with this header and data."""
    frame = PayloadFrame()
    frame.stream_id, frame.length, frame.data = header.stream_id, header.length, data
    frame.flags_follows, frame.flags_complete = header.follows, bool(header.flags & _COMPLETE)
    frame.flags_next = True
    return frame


def _parse_fragmentable(
    frame: FragmentableFrame, header: FrameHeader, view: memoryview, is_borrowed: bool
) -> FragmentableFrame:
    flags = header.flags
    frame.stream_id = header.stream_id
    frame.length = header.length
    frame.flags_ignore = bool(flags & _IGNORE)
    frame.flags_follows = bool(flags & _FOLLOWS)
    offset = HEADER_BYTES
    if isinstance(frame, PayloadFrame):
        frame.flags_complete = bool(flags & _COMPLETE)
        frame.flags_next = bool(flags & _NEXT)
    elif header.kind in _WITH_REQUEST_N and isinstance(frame, RequestStreamFrame | RequestChannelFrame):
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
    frame.data = view[offset:] if is_borrowed else bytes(view[offset:])
    return frame


def _parse_error(header: FrameHeader, view: memoryview) -> ErrorFrame:
    offset = HEADER_BYTES + _U32.size
    if len(view) < offset:
        raise FrameError("an ERROR frame ends before its code")
    code: int = _U32.unpack_from(view, HEADER_BYTES)[0]
    frame = ErrorFrame()
    frame.stream_id = header.stream_id
    # rsocket's enum has no custom codes; what counts is that the stream failed, and the text.
    frame.error_code = ErrorCode(code) if code in _KNOWN_ERROR_CODES else ErrorCode.APPLICATION_ERROR
    # rsocket decodes it, and a text that can't be decoded must not keep the stream open.
    frame.data = bytes(view[offset:]).decode("utf-8", errors="replace").encode()
    return frame


def _parse_setup(header: FrameHeader, view: memoryview) -> SetupFrame:
    """Every length is checked: a slice beyond the end is only shorter, and an integer from it is another one."""
    offset = HEADER_BYTES

    def take(nbytes: int) -> memoryview:
        nonlocal offset
        offset += nbytes
        if offset > len(view):
            raise FrameError("a SETUP that is longer than its frame")
        return view[offset - nbytes : offset]

    frame = SetupFrame()
    frame.length = header.length
    versions = _SETUP.unpack(take(_SETUP.size))
    frame.major_version, frame.minor_version = versions[:2]
    frame.keep_alive_milliseconds, frame.max_lifetime_milliseconds = (time & _MASK_31_BITS for time in versions[2:])
    frame.flags_lease, frame.flags_resume = bool(header.flags & _LEASE), bool(header.flags & _RESUME)
    if frame.flags_resume:
        take(int.from_bytes(take(2), "big"))
    frame.metadata_encoding = bytes(take(take(1)[0]))
    frame.data_encoding = bytes(take(take(1)[0]))
    if header.flags & _METADATA:
        frame.metadata = bytes(take(int.from_bytes(take(3), "big")))
    frame.data = bytes(view[offset:])
    return frame


def serialize_head(frame: Frame) -> bytes | bytearray:
    """The frame up to its metadata and data; sets its length. In a third of rsocket's time for the usual kinds."""
    if type(frame) is PayloadFrame:
        flags = (_FOLLOWS if frame.flags_follows else 0) | (_COMPLETE if frame.flags_complete else 0)
        if frame.flags_next or frame.data or frame.metadata:
            flags |= _NEXT
    elif type(frame) is RequestResponseFrame:
        flags = _FOLLOWS if frame.flags_follows else 0
    else:
        return frame.serialize_frame_prefix()
    metadata = frame.metadata
    frame.length = HEADER_BYTES + len(frame.data or b"") + (3 + len(metadata) if metadata else 0)
    kind_and_flags = frame.frame_type << 10 | (_IGNORE if frame.flags_ignore else 0) | flags
    if not metadata:
        return _HEADER.pack(frame.stream_id, kind_and_flags)
    return _HEADER.pack(frame.stream_id, kind_and_flags | _METADATA) + len(metadata).to_bytes(3, "big")
