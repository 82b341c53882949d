"""Fragments to whole payloads, within limits that are checked before a frame is taken in: a state machine without I/O.

rsocket's own fragment cache has no limit, keeps the pieces of a cancelled request, and hands that request to the server
when its last piece arrives. Here a request reaches the server only as a whole. One that is cancelled, fails, or is
refused before its last fragment vanishes with everything that still arrives for it. So does what arrives for a stream
that this side has cancelled.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

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
)

from .errors import ServerFull, TooLarge, TransferError
from .frames import FOLLOWS_OR_IGNORE, MAX_FRAME_BYTES, FrameError, FrameHeader
from .reserving import ReservedBuffer

__all__ = ["PayloadRefused", "Reassembler", "ReassemblyBudget", "ReassemblyLimits", "SplitPayload", "Spool", "Spooler"]

# What is counted for a payload that isn't whole yet, and for each of its fragments, beside their bytes: the Python
# objects that hold them. Without it a flood of one-byte fragments would take a hundred times its limit.
_PAYLOAD_COST_BYTES: Final = 1024
_FRAGMENT_COST_BYTES: Final = 64
# Frames up to this fit a connection's receive buffer, which it has anyway, and aren't counted unless they are kept.
_UNCOUNTED_BYTES: Final = 64 * 1024
# How many ended streams are remembered, so that what is still on its way to them isn't kept.
_MAX_ABANDONED: Final = 1024
_MAX_REQUEST_N: Final = 0x7FFFFFFF
# Joining no more than this takes 100 µs at the most.
_JOINED_BYTES: Final = 1024 * 1024
_CANCEL: Final = FrameType.CANCEL
_ERROR: Final = FrameType.ERROR

_PAYLOADS_AND_REQUESTS = (
    PayloadFrame,
    RequestResponseFrame,
    RequestStreamFrame,
    RequestChannelFrame,
    RequestFireAndForgetFrame,
)


@dataclass(frozen=True, slots=True)
class ReassemblyLimits:
    """What one connection's peer may make this side hold, in bytes; None is no limit.

    Attributes:
        max_payload_bytes: One payload's data and metadata together, whole or split. Beyond it its stream is refused
            with `too_large`.
        max_connection_bytes: All payloads of the connection that aren't whole yet. The one that goes beyond it is
            refused with `server_full`.
        max_frame_bytes: One frame. A longer one ends the connection.
    """

    max_payload_bytes: int | None = None
    max_connection_bytes: int | None = None
    max_frame_bytes: int = MAX_FRAME_BYTES


class ReassemblyBudget:
    """What all connections together may hold of payloads that aren't whole yet; one object, shared by them.

    Args:
        max_bytes: The most; None is no limit.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What is held just now."""
        return self._used_bytes

    def take(self, nbytes: int) -> bool:
        """Reserves `nbytes`; False, and nothing changes, if there is no room."""
        if self._max_bytes is not None and self._used_bytes + nbytes > self._max_bytes:
            return False
        self._used_bytes += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        """Undoes `take`."""
        assert 0 <= nbytes <= self._used_bytes, "more is given back than was taken"
        self._used_bytes -= nbytes


class PayloadRefused(Exception):
    """A payload is over a limit. Nothing of it is kept, and what follows of it is dropped.

    Attributes:
        stream_id: Its stream.
        error: What its sender is to be told.
        kind: The `FrameType` that the payload began with.
    """

    def __init__(self, stream_id: int, kind: int, error: TransferError) -> None:
        super().__init__(error.message)
        self.stream_id = stream_id
        self.kind = kind
        self.error = error


class Spool(Protocol):
    """Takes the data of one split request as it arrives, in place of memory; it stands for the data of the whole."""

    async def write(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            TransferError: It can't; the request is refused.
        """
        ...

    def abandon(self) -> None:
        """The request will never be whole."""
        ...


Spooler = Callable[[FragmentableFrame, bytes], Spool | None]
"""Decides, from the first frame of a split request and its whole metadata, where its data goes; None for memory."""


class SplitPayload:
    """A payload or request that comes in several frames.

    Attributes:
        nbytes: Its data and metadata so far.
        spool: Where its data goes; None for memory.
    """

    __slots__ = ("_buffer", "_data", "_metadata", "cost", "first", "is_placed", "nbytes", "spool")

    def __init__(self, first: FragmentableFrame) -> None:
        self.first = first
        self.nbytes = 0
        self.cost = 0
        self.spool: Spool | None = None
        self.is_placed = False
        self._metadata: list[bytes] = []
        self._data: list[bytes] = []
        self._buffer: ReservedBuffer | None = None

    def add(self, fragment: FragmentableFrame, cost: int) -> None:
        """Takes the next fragment (at first the first), and what it counts in the limits."""
        self.cost += cost
        self.nbytes += len(fragment.data or b"") + len(fragment.metadata or b"")
        if fragment.metadata:
            self._metadata.append(bytes(fragment.metadata))  # as it is, where it is bytes already
        if fragment.data:
            if self._buffer is None:
                self._data.append(bytes(fragment.data))
            else:
                self._buffer.write(fragment.data)
            fragment.data = b""  # it may be borrowed
        if not fragment.flags_follows:
            self._end(fragment)

    def place(self, spooler: Spooler) -> None:
        """Decides where the data goes, when its first bytes are here: the metadata is whole by then."""
        if not self.is_placed and self._data:
            self.is_placed = True
            self.spool = spooler(self.first, b"".join(self._metadata))

    def gather(self) -> None:
        """Goes on in one buffer, once it is large and not for a spool."""
        if self._buffer is None and self.spool is None and self.nbytes > _JOINED_BYTES:
            self._buffer = ReservedBuffer()
            for data in self._data:
                self._buffer.write(data)
            self._data.clear()

    def take_data(self) -> bytes:
        """The data that came since the last call, for the spool."""
        data = b"".join(self._data)
        self._data.clear()
        return data

    def join(self) -> FragmentableFrame:
        """The one frame that the fragments make; once."""
        whole = self.first
        whole.metadata = b"".join(self._metadata)
        if self.spool is not None:
            # It stands for its data: whoever asked for one looks for it there.
            whole.data = cast(bytes, self.spool)
        elif self._buffer is not None:
            whole.data = self._buffer.finish()
        else:
            whole.data = b"".join(self._data)
        self._metadata.clear()
        self._data.clear()
        self._buffer = None
        return whole

    def _end(self, last: FragmentableFrame) -> None:
        whole = self.first
        whole.flags_follows = False
        if isinstance(last, PayloadFrame) and isinstance(whole, PayloadFrame | RequestChannelFrame):
            whole.flags_complete = whole.flags_complete or last.flags_complete
        if isinstance(last, PayloadFrame) and isinstance(whole, PayloadFrame):
            whole.flags_next = whole.flags_next or last.flags_next


class Reassembler:
    """Joins the fragments of each stream's payload; one for each connection.

    For each frame `admit` is called with its header, and `feed` with the frame when the rest has arrived.

    Args:
        limits: The connection's.
        budget: That of all connections; None if there is none.

    Attributes:
        spooler: Decides which split requests' data don't go to memory; None if all do.
    """

    def __init__(self, limits: ReassemblyLimits | None = None, budget: ReassemblyBudget | None = None) -> None:
        self.spooler: Spooler | None = None
        self._budget = budget
        self.set_limits(limits if limits is not None else ReassemblyLimits())
        self._held_bytes = 0
        self._incoming_cost = 0
        self._is_closed = False
        self._partials: dict[int, SplitPayload] = {}
        self._abandoned: OrderedDict[int, None] = OrderedDict()

    def set_limits(self, limits: ReassemblyLimits) -> None:
        """Replaces the limits, for what arrives from now on."""
        self._limits = limits
        # Most frames are this small and whole, of streams that nothing is known of here: those need no second look.
        self._small_bytes = min(_UNCOUNTED_BYTES, limits.max_frame_bytes, limits.max_payload_bytes or MAX_FRAME_BYTES)

    def received_of(self, stream_id: int) -> int:
        """Bytes that have arrived of a payload of this stream that isn't whole yet."""
        partial = self._partials.get(stream_id)
        return 0 if partial is None else partial.nbytes

    @property
    def pending(self) -> int:
        """How many payloads are incomplete."""
        return len(self._partials)

    @property
    def held_bytes(self) -> int:
        """What counts against the limits just now."""
        return self._held_bytes

    def admit(self, header: FrameHeader) -> bool:
        """Decides from a frame's header whether its rest is taken in, and reserves the room for it.

        Returns:
            Whether it is. If not, the frame is to be skipped, without a word: its stream has ended on this side, or its
            sender allows it to be ignored.

        Raises:
            PayloadRefused: Its payload is over a limit; the frame is to be skipped, and its sender told.
            FrameError: It may not come here, and the connection can't go on.
        """
        stream_id, _, flags, length = header
        if (
            length <= self._small_bytes
            and not flags & FOLLOWS_OR_IGNORE
            and stream_id not in self._partials
            and stream_id not in self._abandoned
        ):
            return True
        if header.length > self._limits.max_frame_bytes:
            raise FrameError(f"a frame of {header.length} bytes; at most {self._limits.max_frame_bytes} are taken")
        if not header.is_fragmentable:
            cost = header.length if header.length > _UNCOUNTED_BYTES else 0
            if not self._take(cost):
                raise FrameError(f"no room for a frame of {header.length} bytes")
            self._incoming_cost = cost
            return not header.may_be_ignored
        partial = self._partials.get(header.stream_id)
        size = cost = max(header.payload_bytes, 0)
        if partial is not None:
            if header.kind != FrameType.PAYLOAD:
                raise FrameError(f"a second request on stream {header.stream_id}, in the middle of the first")
            size += partial.nbytes
            cost += _FRAGMENT_COST_BYTES if cost else 0
        elif header.kind == FrameType.PAYLOAD and header.stream_id in self._abandoned:
            return False
        elif header.follows:
            cost += _PAYLOAD_COST_BYTES
        elif header.length <= _UNCOUNTED_BYTES:
            cost = 0
        maximum = self._limits.max_payload_bytes
        is_spooled = partial is not None and partial.spool is not None
        if maximum is not None and size > maximum and not is_spooled:
            self._refuse(header, partial, TooLarge(f"a payload of at least {size} bytes; at most {maximum} are taken"))
        if not self._take(cost):
            self._refuse(header, partial, ServerFull("no room just now for a payload of this size; try again later"))
        self._incoming_cost = cost
        return True

    def copies(self, header: FrameHeader) -> bool:
        """Whether `feed` will copy the data of the frame that was admitted last, which may be borrowed then."""
        return header.is_fragmentable and (header.follows or header.stream_id in self._partials)

    def feed(self, frame: Frame) -> Frame | SplitPayload | None:
        """Takes the frame that was admitted last.

        Returns:
            The frame, if it stands for itself; the payload that it completes, or one whose data goes to a spool, which
            is to be given to `release` once it was joined, or its data taken; None if it is kept, or concerns nobody.
        """
        cost, self._incoming_cost = self._incoming_cost, 0
        stream_id = frame.stream_id
        if not (cost or frame.flags_follows or stream_id in self._partials or stream_id in self._abandoned):
            return frame  # most are such, as in `admit`
        if isinstance(frame, _PAYLOADS_AND_REQUESTS):
            return self._feed_payload(frame, cost)
        self._give_back(cost)
        if isinstance(frame, CancelFrame | ErrorFrame) and frame.stream_id:
            return self._feed_end(frame)
        if isinstance(frame, RequestNFrame):
            partial = self._partials.get(frame.stream_id)
            if partial is not None and isinstance(partial.first, RequestStreamFrame | RequestChannelFrame):
                total = partial.first.initial_request_n + (frame.request_n & _MAX_REQUEST_N)
                partial.first.initial_request_n = min(total, _MAX_REQUEST_N)
                return None
        return frame

    def release(self, payload: SplitPayload) -> None:
        """Gives back the room of a payload that `feed` returned."""
        self._give_back(payload.cost)
        payload.cost = 0

    def on_sent(self, frame: Frame) -> None:
        """Notes what this side sends: after its CANCEL or ERROR, no more of the stream's payloads is wanted."""
        kind = frame.frame_type
        if kind is _CANCEL or (kind is _ERROR and frame.stream_id in self._partials):
            self.abandon(frame.stream_id)

    def close(self) -> None:
        """Gives everything back; what is fed from now on isn't counted."""
        for partial in self._partials.values():
            if partial.spool is not None:
                partial.spool.abandon()
        self._partials.clear()
        self._give_back(self._held_bytes)
        self._incoming_cost = 0
        self._is_closed = True

    def _feed_payload(self, frame: FragmentableFrame, cost: int) -> Frame | SplitPayload | None:
        partial = self._partials.get(frame.stream_id)
        if partial is None:
            # This side may have cancelled the stream between the frame's header and its end.
            is_wanted = frame.stream_id not in self._abandoned or not isinstance(frame, PayloadFrame)
            if not frame.flags_follows or not is_wanted:
                self._give_back(cost)
                return frame if is_wanted else None
            partial = self._partials[frame.stream_id] = SplitPayload(frame)
        partial.add(frame, cost)
        if self.spooler is not None:
            partial.place(self.spooler)
        partial.gather()
        if not partial.first.flags_follows:
            del self._partials[frame.stream_id]
        elif partial.spool is None:
            return None
        return partial

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

    def _refuse(self, header: FrameHeader, partial: SplitPayload | None, error: TransferError) -> None:
        kind = header.kind if partial is None else int(partial.first.frame_type)
        self.abandon(header.stream_id)
        raise PayloadRefused(header.stream_id, kind, error)

    def abandon(self, stream_id: int) -> None:
        """Drops what has arrived of a payload of this stream, and what still will."""
        partial = self._partials.pop(stream_id, None)
        if partial is not None:
            self.release(partial)
            if partial.spool is not None:
                partial.spool.abandon()
        self._abandoned[stream_id] = None
        if len(self._abandoned) > _MAX_ABANDONED:
            self._abandoned.popitem(last=False)

    def _take(self, nbytes: int) -> bool:
        maximum = self._limits.max_connection_bytes
        if self._is_closed or not nbytes:
            return True
        if maximum is not None and self._held_bytes + nbytes > maximum:
            return False
        if self._budget is not None and not self._budget.take(nbytes):
            return False
        self._held_bytes += nbytes
        return True

    def _give_back(self, nbytes: int) -> None:
        if self._is_closed or not nbytes:
            return
        self._held_bytes -= nbytes
        if self._budget is not None:
            self._budget.give_back(nbytes)
