"""Fragments to whole payloads, within limits that are checked before a frame is taken in: a state machine without I/O.

rsocket's own fragment cache has no limit, keeps the pieces of a cancelled request, and hands that request to the server
when its last piece arrives. Here a request reaches the server only as a whole. One that is cancelled, fails, or is
refused before its last fragment is dropped, with everything that still arrives for it. So is what arrives for a stream
that this side has cancelled.

A payload that isn't whole is refused if it stops growing, or if another connection needs its room (see
`ReassemblyBudget`). Frames that are arriving count, too, since a buffer of their size is reserved for them.
"""

import math
from collections import OrderedDict
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
)

from ..errors import InvalidRequest, TooLarge, TooManyStreams, TransferError
from .budget import Holder, ReassemblyBudget, ReassemblyLimits, no_room
from .buffers import LARGE_BYTES
from .codec import FOLLOWS_OR_IGNORE, HEADER_BYTES, STREAM_KINDS, FrameError, FrameHeader, parse_frame
from .fragments import FrameSource, IncomingFrame, SplitPayload
from .rules import PayloadRules

__all__ = ["Reassembler"]

# What is counted for a payload that isn't whole yet, and for each of its fragments, beside their bytes: the Python
# objects that hold them. Without it a flood of one-byte fragments would take a hundred times its limit.
_PAYLOAD_COST_BYTES: Final = 1024
_FRAGMENT_COST_BYTES: Final = 64
# What is touched of a large payload's buffer before it is needed, in pages of 2 MiB.
_LARGE_COST_BYTES: Final = 15 * 1024 * 1024
# Frames up to this fit a connection's receive buffer, which it has anyway, and aren't counted unless they are kept.
_UNCOUNTED_BYTES: Final = 16 * 1024 - 3
# What is handed to a spool at once, the cost of its fragments included: a thread handoff for each small one costs more
# than the write. A fragment of our own kind doesn't wait for the next, so that many uploads at once hold little.
_SPOOL_BYTES: Final = 512 * 1024
# What is taken in of a longer frame at a time, if its data goes to a spool; the second where there is little room.
_SLICE_BYTES: Final = 1024 * 1024
_SMALL_SLICE_BYTES: Final = 128 * 1024
# How many ended streams are remembered, so that what is still on its way to them isn't kept.
_MAX_ABANDONED: Final = 1024
_MAX_REQUEST_N: Final = 0x7FFFFFFF
_CANCEL: Final = FrameType.CANCEL
_ERROR: Final = FrameType.ERROR
# Not `FragmentableFrame`: `isinstance` takes longer with a `Union`.
_PAYLOADS = (PayloadFrame, RequestResponseFrame, RequestStreamFrame, RequestChannelFrame, RequestFireAndForgetFrame)


class Reassembler(Holder):
    """Joins the fragments of each stream's payload; one for each connection.

    For each frame `admit` is called with its header, and `feed` with the frame when the rest has arrived.

    Args:
        limits: The connection's; none if None.
        budget: That of all connections; its own, without a limit, if None.
        rules: What the connection decides and is notified of.

    Attributes:
        pending_requests: How many requests are incomplete.
        rules: The connection's; the default ones once this is closed.
    """

    def __init__(
        self,
        limits: ReassemblyLimits | None = None,
        budget: ReassemblyBudget | None = None,
        rules: PayloadRules | None = None,
    ) -> None:
        super().__init__(budget or ReassemblyBudget())
        self.pending_requests = 0
        self.rules = rules or PayloadRules()
        self.set_limits(limits or ReassemblyLimits())
        self._is_closed = False
        self._abandoned: OrderedDict[int, None] = OrderedDict()

    def set_limits(self, limits: ReassemblyLimits) -> None:
        """Replaces the limits, for what arrives from now on."""
        self._limits = limits
        # Most frames are this small, whole, and of streams without a partial payload: these take the fast path.
        most = (limits.max_frame_bytes, limits.max_payload_bytes, limits.max_metadata_bytes)
        self._small_bytes = min(_UNCOUNTED_BYTES, *most)

    @property
    def failure_code(self) -> ErrorCode:
        """What the peer gets for bytes that are no frame."""
        return self.rules.failure_code

    def expects_whole(self, stream_id: int, metadata_bytes: int) -> bool:
        """Whether a payload of this stream that isn't split is an item by itself, and wanted. From any thread."""
        is_small = metadata_bytes <= self._limits.max_metadata_bytes
        return is_small and stream_id not in self._partials and stream_id not in self._abandoned

    # Frames

    def take(self, message: memoryview) -> Frame | SplitPayload | None:
        """As `admit` and `feed`, for a transport that gives whole frames."""
        if len(message) < HEADER_BYTES:
            raise FrameError(f"a frame has at least {HEADER_BYTES} bytes, not {len(message)}")
        header = FrameHeader.parse(message, 0, len(message))
        if not self.admit(header):
            return None
        frame = parse_frame(header, message, is_borrowed=self.copies(header))
        if frame is None:
            self.drop(header)
            return None
        return self.feed(frame)

    def admit(self, header: FrameHeader, source: FrameSource | None = None) -> bool:
        """Decides from a frame's header whether its rest is taken in, and reserves the room for it.

        Args:
            header: The frame's.
            source: Where its rest arrives; None if all of it is here.

        Returns:
            Whether it is. If not, the frame is to be skipped: its payload was refused, its stream has ended on this
            side, it makes no sense, or its sender allows it to be ignored.

        Raises:
            FrameError: It isn't allowed, and the connection can't go on.
        """
        stream_id, kind, flags, length = header
        if (
            length <= self._small_bytes
            and stream_id
            and kind in STREAM_KINDS
            and not flags & FOLLOWS_OR_IGNORE
            and stream_id not in self._partials
            and stream_id not in self._abandoned
        ):
            return True
        limits = self._limits
        if not self.rules.expects(header):
            return False
        if length > limits.max_frame_bytes:
            raise FrameError(f"a frame of {length} bytes; at most {limits.max_frame_bytes} are taken")
        if header.may_be_ignored:
            return False
        if header.is_fragmentable:
            return self._admit_payload(header, source)
        if length > limits.max_metadata_bytes:
            raise FrameError(f"a frame of {length} bytes; at most {limits.max_metadata_bytes} are taken of its kind")
        if not self._reserve(header, source, length if length > _UNCOUNTED_BYTES else 0):
            raise FrameError(f"no room for a frame of {length} bytes")
        return True

    def slice_bytes(self, header: FrameHeader) -> int:
        """How many bytes of a frame that is about to be admitted are taken in at a time, as if they were fragments.

        All of them, but for data that goes to a spool.
        """
        if header.length <= _SMALL_SLICE_BYTES:
            return header.length
        partial = self._partials.get(header.stream_id)
        if header.kind == FrameType.REQUEST_RESPONSE:
            is_spooled = partial is None and self.rules.spools
        else:
            is_spooled = partial is not None and partial.spool is not None
        most = _SMALL_SLICE_BYTES if self._budget.is_short else _SLICE_BYTES
        return min(header.length, most) if is_spooled else header.length

    def refuse_incoming(self, error: TransferError) -> None:
        """Refuses the frame that was admitted last."""
        if self._incoming is not None:
            self._refuse_held(self._incoming.stream_id, error)

    def drop(self, header: FrameHeader) -> None:
        """Notes that the frame that was admitted last contradicts itself, and that its sender allows it to be ignored.

        A payload that it was a fragment of is refused.
        """
        self._give_back(self._end_incoming())
        if header.stream_id in self._partials:
            self._refuse(header.stream_id, header.kind, InvalidRequest("a fragment contradicts itself"))

    def copies(self, header: FrameHeader) -> bool:
        """Whether `feed` will copy the data of the frame that was admitted last, which may be borrowed then."""
        return header.follows or header.stream_id in self._partials

    def lend(self, header: FrameHeader) -> memoryview | None:
        """See `SplitPayload.lend`; for the frame that was admitted last."""
        partial = self._partials.get(header.stream_id)
        return None if partial is None else partial.lend(header)

    def feed(self, frame: Frame) -> Frame | SplitPayload | None:
        """Takes the frame that was admitted last.

        Returns:
            The frame, if it stands for itself; the payload that it completes, or one whose data is due at its spool,
            which is to be given to `release` once it was joined, or its data stored; one that needs a reservation, or
            room for the next fragment; None if it is kept, refused, or of no stream that is open.
        """
        stream_id = frame.stream_id
        if (
            frame.length <= self._small_bytes
            and not (self._incoming or frame.flags_follows)
            and stream_id not in self._partials
            and stream_id not in self._abandoned
        ):
            return frame  # the fast path, as in `admit`
        cost = self._end_incoming()
        if isinstance(frame, _PAYLOADS):
            return self._feed_payload(frame, cost)
        self._give_back(cost)
        partial = self._partials.get(stream_id)
        if partial is not None and isinstance(frame, CancelFrame | ErrorFrame):
            # The requester of a channel may cancel what it receives and go on sending; only an ERROR ends both. A
            # request that never became whole was never handed on, so nothing waits for its end.
            if partial.is_request or isinstance(frame, ErrorFrame):
                self.abandon(stream_id)
            return None if partial.is_request else frame
        first = None if partial is None else partial.first
        if isinstance(frame, RequestNFrame) and isinstance(first, RequestStreamFrame | RequestChannelFrame):
            total = first.initial_request_n + (frame.request_n & _MAX_REQUEST_N)
            first.initial_request_n = min(total, _MAX_REQUEST_N)
            return None
        return frame

    def release(self, payload: SplitPayload) -> None:
        """Gives back the room of what was joined or stored of a payload that `feed` returned."""
        cost, payload.busy_cost = payload.busy_cost, 0
        self._busy_bytes -= cost
        self._give_back(cost)

    def is_wanted(self, payload: SplitPayload) -> bool:
        """Whether a payload that `feed` returned is whole, or may still become so."""
        return payload.is_whole or self._partials.get(payload.first.stream_id) is payload

    def refuse(self, payload: SplitPayload, error: TransferError) -> None:
        """Refuses a payload that `feed` returned and that couldn't be stored."""
        self._refuse(payload.first.stream_id, payload.first.frame_type, error)

    def on_sent(self, frame: Frame) -> None:
        """Notes what this side sends: after its CANCEL or ERROR, no more of the stream's payloads is wanted."""
        kind = frame.frame_type
        if kind is _CANCEL or (kind is _ERROR and frame.stream_id in self._partials):
            self.abandon(frame.stream_id)

    def abandon(self, stream_id: int) -> None:
        """Drops what has arrived of a payload of this stream, and what still will."""
        partial = self._remove(stream_id)
        if partial is not None:
            self._give_back(partial.cost)
            partial.cost = 0
            partial.abandon()
        self._abandoned[stream_id] = None
        if len(self._abandoned) > _MAX_ABANDONED:
            self._abandoned.popitem(last=False)

    def close(self) -> None:
        """Gives everything back but what is being joined or stored; what is fed from now on isn't counted."""
        for stream_id in list(self._partials):
            self.abandon(stream_id)
        incoming = self._incoming
        if incoming is not None and incoming.source is not None and incoming.arrived_bytes < incoming.header.length:
            incoming.source.skip()
        self._give_back(self._end_incoming())
        self._is_closed = True
        self.rules = PayloadRules()  # the connection refers to this: no reference cycle

    # What is held

    def _refuse_held(self, stream_id: int, error: TransferError) -> None:
        """Refuses what has arrived of a payload or frame."""
        kind, incoming = 0, self._incoming
        if incoming is not None and incoming.stream_id == stream_id:
            self._give_back(self._end_incoming())
            if incoming.source is not None:
                incoming.source.skip()
            if not incoming.header.is_fragmentable:
                self.rules.on_frame_refused(error)
                return
            kind = incoming.header.kind
        elif stream_id not in self._partials:
            return
        self._refuse(stream_id, kind, error)

    # Payloads

    def _admit_payload(self, header: FrameHeader, source: FrameSource | None) -> bool:
        stream_id, is_payload = header.stream_id, header.kind == FrameType.PAYLOAD
        partial = self._partials.get(stream_id)
        if not is_payload:
            self._abandoned.pop(stream_id, None)  # the peer uses the id again
        size = cost = max(header.payload_bytes, 0)
        maximum = self._limits.max_payload_bytes
        error: TransferError | None = None
        if partial is not None:
            if not is_payload:
                self.rules.on_ignored(stream_id, header.kind)  # a request in the middle of another one
                return False
            most = math.inf if partial.is_request else self.rules.max_payload_bytes(stream_id)
            if not most:
                self.abandon(stream_id)  # its stream has ended meanwhile
                return False
            size += partial.nbytes
            cost += _FRAGMENT_COST_BYTES if cost else 0
            if partial.spool is None and partial.nbytes <= LARGE_BYTES < size:
                cost += _LARGE_COST_BYTES
            # What a spool stores is bounded by the store.
            maximum = math.inf if partial.spool is not None else min(maximum, most)
        elif is_payload and (stream_id in self._abandoned or not self.rules.max_payload_bytes(stream_id)):
            self.rules.on_ignored(stream_id, header.kind)
            return False
        elif header.follows:
            if self._is_closed:
                return False  # the rest of it will never come
            error = None if is_payload else self._excess()
            cost += _PAYLOAD_COST_BYTES
        elif header.length <= _UNCOUNTED_BYTES:
            cost = 0
        if error is None and size > maximum:
            error = TooLarge(f"a payload of at least {size} bytes; at most {maximum} are taken")
        if error is None and not self._reserve(header, source, cost):
            error = no_room() if size <= self._budget.max_bytes else TooLarge(f"{size} bytes don't fit into memory")
        if error is not None:
            self._refuse(stream_id, header.kind, error)
        return error is None

    def _excess(self) -> TransferError | None:
        """Why no more requests may begin that aren't whole; None if they may."""
        maximum = self._limits.max_streams
        if self.pending_requests + self.rules.count_streams() < maximum:
            return None
        return TooManyStreams(f"a connection may have {maximum} requests under way, whole or not")

    def _feed_payload(self, frame: FragmentableFrame, cost: int) -> Frame | SplitPayload | None:
        stream_id, maximum = frame.stream_id, self._limits.max_metadata_bytes
        partial = self._partials.get(stream_id)
        metadata_bytes = len(frame.metadata or b"") + (0 if partial is None else partial.metadata_bytes)
        if metadata_bytes > maximum:
            self._give_back(cost)
            error = TooLarge(f"metadata of at least {metadata_bytes} bytes; at most {maximum} are taken")
            self._refuse(stream_id, frame.frame_type, error)
            return None
        if partial is None:
            # This side may have cancelled the stream between the frame's header and its end.
            is_wanted = stream_id not in self._abandoned or not isinstance(frame, PayloadFrame)
            is_spooled = cost >= _SPOOL_BYTES and isinstance(frame, RequestResponseFrame)
            if not is_wanted or not (frame.flags_follows or is_spooled):
                self._grown_bytes += cost
                self._give_back(cost)
                return frame if is_wanted else None
            # A large request is stored as a split one would be, though it came in one frame: it counts until then.
            partial = self._partials[stream_id] = SplitPayload(frame)
            self.pending_requests += partial.is_request
        self._grown_bytes += partial.add(frame, cost)
        partial.place(self.rules.spool)
        partial.gather()
        if partial.is_whole:
            self._remove(stream_id)
            self._start_work(partial, partial.cost)
        elif partial.spool is not None and partial.data_cost >= (0 if self._budget.is_short else _SPOOL_BYTES):
            self._start_work(partial, partial.data_cost)
        elif not (partial.needs_room or partial.needs_reservation):
            return None
        return partial

    def _start_work(self, partial: SplitPayload, cost: int) -> None:
        """Notes that `cost` of a payload is being joined or stored until `release`, and can't be evicted."""
        partial.cost -= cost
        partial.data_cost = 0
        partial.busy_cost += cost
        self._busy_bytes += cost

    def _refuse(self, stream_id: int, kind: int, error: TransferError) -> None:
        """Refuses a payload; `kind` is that of its first frame, if none of its frames were kept."""
        partial = self._partials.get(stream_id)
        self.abandon(stream_id)
        self.rules.on_refused(stream_id, int(kind if partial is None else partial.first.frame_type), error)

    def _remove(self, stream_id: int) -> SplitPayload | None:
        partial = self._partials.pop(stream_id, None)
        if partial is not None:
            self.pending_requests -= partial.is_request
        return partial

    def _reserve(self, header: FrameHeader, source: FrameSource | None, nbytes: int) -> bool:
        """Reserves the room for a frame that is arriving; whether there is any."""
        if self._is_closed or not nbytes:
            return True
        return self._hold(IncomingFrame(header, nbytes, source), self._limits.max_connection_bytes)
