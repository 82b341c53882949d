"""Fragments to whole payloads, within limits that are checked before a frame is taken in: a state machine without I/O.

rsocket's own fragment cache has no limit, keeps the pieces of a cancelled request, and hands that request to the server
when its last piece arrives. Here a request reaches the server only as a whole. One that is cancelled, fails, or is
refused before its last fragment vanishes with everything that still arrives for it. So does what arrives for a stream
that this side has cancelled.

A payload that isn't whole is refused if it stops growing, or if a connection that deserves it more needs its room.
Frames that are arriving count, too, since their header reserves a buffer of their size.
"""

import math
from collections import OrderedDict
from typing import Final, NoReturn, Protocol

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

from ..errors import ServerFull, Stalled, TooLarge, TooManyStreams, TransferError
from .budget import ReassemblyBudget, ReassemblyLimits
from .codec import FOLLOWS_OR_IGNORE, HEADER_BYTES, FrameError, FrameHeader, parse_frame
from .fragments import SplitPayload
from .growth import GROWTH_BYTES, Growth
from .rules import PayloadRules, Refusal

__all__ = ["FrameSource", "Reassembler"]

# What is counted for a payload that isn't whole yet, and for each of its fragments, beside their bytes: the Python
# objects that hold them. Without it a flood of one-byte fragments would take a hundred times its limit.
_PAYLOAD_COST_BYTES: Final = 1024
_FRAGMENT_COST_BYTES: Final = 64
# Frames up to this fit a connection's receive buffer, which it has anyway, and aren't counted unless they are kept.
_UNCOUNTED_BYTES: Final = 64 * 1024 - 3
# What is handed to a spool at once, the cost of its fragments included: a hop to a thread for each small one costs more
# than the write. A fragment of our own kind doesn't wait for the next, so that many uploads at once hold little.
_SPOOL_BYTES: Final = 512 * 1024
# How many ended streams are remembered, so that what is still on its way to them isn't kept.
_MAX_ABANDONED: Final = 1024
_MAX_REQUEST_N: Final = 0x7FFFFFFF
_CANCEL: Final = FrameType.CANCEL
_ERROR: Final = FrameType.ERROR

_PAYLOADS_AND_REQUESTS = (
    PayloadFrame,
    RequestResponseFrame,
    RequestStreamFrame,
    RequestChannelFrame,
    RequestFireAndForgetFrame,
)


class FrameSource(Protocol):
    """Where a frame arrives that was admitted and isn't whole yet."""

    @property
    def arrived_bytes(self) -> int:
        """What has arrived of it."""
        ...

    def skip(self) -> None:
        """Drops what has arrived of it, and what still will."""
        ...


class Reassembler:
    """Joins the fragments of each stream's payload; one for each connection.

    For each frame `admit` is called with its header, and `feed` with the frame when the rest has arrived.

    Args:
        limits: The connection's.
        budget: That of all connections; its own, without end, if None.
        rules: What the connection decides, and hears.
    """

    def __init__(
        self,
        limits: ReassemblyLimits | None = None,
        budget: ReassemblyBudget | None = None,
        rules: PayloadRules | None = None,
    ) -> None:
        self._rules = rules if rules is not None else PayloadRules()
        self._budget = budget if budget is not None else ReassemblyBudget()
        self.set_limits(limits if limits is not None else ReassemblyLimits())
        self._held_bytes = 0
        self._busy_bytes = 0
        # The frame that was admitted last, if it counts, and what it counts.
        self._incoming: FrameHeader | None = None
        self._incoming_cost = 0
        self._source: FrameSource | None = None
        self._incoming_seen: int | None = None
        self._is_closed = False
        self._partials: dict[int, SplitPayload] = {}
        self._requests = 0
        self._abandoned: OrderedDict[int, None] = OrderedDict()
        self._grown_bytes = 0  # how much has arrived of all that was ever held
        self._growth = Growth(self._budget.clock())

    def set_limits(self, limits: ReassemblyLimits) -> None:
        """Replaces the limits, for what arrives from now on."""
        self._limits = limits
        # Most frames are this small and whole, of streams that nothing is known of here: those need no second look.
        known = (limits.max_frame_bytes, limits.max_payload_bytes, limits.max_metadata_bytes)
        self._small_bytes = min(_UNCOUNTED_BYTES, *(limit for limit in known if limit is not None))

    def received_of(self, stream_id: int) -> int:
        """Bytes that have arrived of a payload of this stream that isn't whole yet."""
        partial = self._partials.get(stream_id)
        return 0 if partial is None else partial.nbytes

    def expects_whole(self, stream_id: int) -> bool:
        """Whether a payload of this stream that isn't split is an item by itself, and wanted. From any thread."""
        return stream_id not in self._partials and stream_id not in self._abandoned

    @property
    def pending(self) -> int:
        """How many payloads are incomplete."""
        return len(self._partials)

    @property
    def pending_requests(self) -> int:
        """How many of those are requests."""
        return self._requests

    @property
    def held_bytes(self) -> int:
        """What counts against the limits just now."""
        return self._held_bytes

    @property
    def evictable_bytes(self) -> int:
        """What `evict` gives back."""
        return self._held_bytes - self._busy_bytes

    def is_wanted(self, payload: SplitPayload) -> bool:
        """Whether a payload that `feed` returned is whole, or may still become so."""
        return payload.is_whole or self._partials.get(payload.first.stream_id) is payload

    def take(self, message: memoryview) -> Frame | SplitPayload | None:
        """As `admit` and `feed`, for a transport that gives whole frames."""
        if len(message) < HEADER_BYTES:
            raise FrameError(f"a frame has at least {HEADER_BYTES} bytes, not {len(message)}")
        header = FrameHeader.parse(message, 0, len(message))
        if not self.admit(header):
            return None
        frame = parse_frame(header, message, is_borrowed=self.copies(header))
        return None if frame is None else self.feed(frame)

    def admit(self, header: FrameHeader, source: FrameSource | None = None) -> bool:
        """Decides from a frame's header whether its rest is taken in, and reserves the room for it.

        Args:
            header: The frame's.
            source: Where its rest arrives; None if all of it is here.

        Returns:
            Whether it is. If not, the frame is to be skipped: its payload was refused, its stream has ended on this
            side, or its sender allows it to be ignored.

        Raises:
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
        self._source = None if self._is_closed else source
        if header.length > self._limits.max_frame_bytes:
            raise FrameError(f"a frame of {header.length} bytes; at most {self._limits.max_frame_bytes} are taken")
        if header.may_be_ignored:
            return False
        if not header.is_fragmentable:
            maximum = self._limits.max_metadata_bytes
            if maximum is not None and header.length > maximum:
                raise FrameError(f"a frame of {header.length} bytes; at most {maximum} are taken of its kind")
            if not self._reserve(header, header.length if header.length > _UNCOUNTED_BYTES else 0):
                raise FrameError(f"no room for a frame of {header.length} bytes")
            return True
        try:
            return self._admit_payload(header)
        except _Refused as refused:
            self._rules.on_refused(refused.refusal)
            return False

    def copies(self, header: FrameHeader) -> bool:
        """Whether `feed` will copy the data of the frame that was admitted last, which may be borrowed then."""
        return header.follows or header.stream_id in self._partials

    def feed(self, frame: Frame) -> Frame | SplitPayload | None:
        """Takes the frame that was admitted last.

        Returns:
            The frame, if it stands for itself; the payload that it completes, or one whose data is due at its spool,
            which is to be given to `release` once it was joined, or its data stored; one that needs room for the next
            fragment; None if it is kept, refused, or of no stream that is open.
        """
        cost = self._end_incoming()
        stream_id = frame.stream_id
        if (
            frame.length <= self._small_bytes
            and not (cost or frame.flags_follows)
            and stream_id not in self._partials
            and stream_id not in self._abandoned
        ):
            return frame  # most are such, as in `admit`
        if isinstance(frame, _PAYLOADS_AND_REQUESTS):
            try:
                return self._feed_payload(frame, cost)
            except _Refused as refused:
                self._rules.on_refused(refused.refusal)
                return None
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
        """Gives back the room of what was joined or stored of a payload that `feed` returned."""
        cost, payload.busy_cost = payload.busy_cost, 0
        self._busy_bytes -= cost
        self._give_back(cost)

    def refuse(self, payload: SplitPayload, error: TransferError) -> None:
        """Refuses a payload that `feed` returned and that couldn't be stored."""
        self.abandon(payload.first.stream_id)
        self._rules.on_refused(Refusal(payload.first.stream_id, int(payload.first.frame_type), error))

    def on_sent(self, frame: Frame) -> None:
        """Notes what this side sends: after its CANCEL or ERROR, no more of the stream's payloads is wanted."""
        kind = frame.frame_type
        if kind is _CANCEL or (kind is _ERROR and frame.stream_id in self._partials):
            self.abandon(frame.stream_id)

    def close(self) -> None:
        """Gives everything back but what is being joined or stored; what is fed from now on isn't counted."""
        for stream_id in list(self._partials):
            self.abandon(stream_id)
        header, source = self._incoming, self._source
        if header is not None and source is not None and source.arrived_bytes < header.length:
            source.skip()
        self._give_back(self._end_incoming())
        self._is_closed = True
        # Both refer to the connection, which refers to this.
        self._source, self._rules = None, PayloadRules()

    def abandon(self, stream_id: int) -> None:
        """Drops what has arrived of a payload of this stream, and what still will."""
        partial = self._remove(stream_id)
        if partial is not None:
            self._give_back(partial.cost)
            partial.cost = 0
            if partial.spool is not None:
                partial.spool.abandon()
        self._abandoned[stream_id] = None
        if len(self._abandoned) > _MAX_ABANDONED:
            self._abandoned.popitem(last=False)

    def check(self, seconds: float) -> None:
        """Notes how what is held has grown, and refuses what has stopped. To be called about twice a second.

        A payload has stopped if it has grown by less than 32 KiB in `seconds`, unless as much has arrived for each on
        the connection: where many are sent in turns, one has to wait for the others. While this side's disk is busy,
        none is judged.
        """
        now, grown = self._budget.clock(), self._grown()
        self._growth.look(now, grown)
        count = len(self._partials) + (self._incoming is not None)
        if not count or self._busy_bytes:
            self._growth.excuse(now, grown)
            return
        has_grown = self._growth.judge(now, grown, seconds, count)
        if has_grown is not None:
            self._refuse_stalled(is_moving=has_grown)

    def is_slow(self, now: float) -> bool:
        """Whether what is held has grown by less than 64 KiB a second lately; False for what has just begun."""
        return not self._busy_bytes and self._growth.is_slow(now, self._grown())

    def evict(self) -> None:
        """Refuses everything that isn't whole, since another connection needs the room."""
        error = _no_room()
        for stream_id in list(self._partials):
            self._refuse_held(stream_id, error)
        if self._incoming is not None:
            self._refuse_held(self._incoming.stream_id, error)

    def _admit_payload(self, header: FrameHeader) -> bool:
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
            if self._is_closed or not self._rules.max_payload_bytes(header.stream_id):
                return False  # the rest of it will never come, or nothing waits for it
            self._check_count(header)
            cost += _PAYLOAD_COST_BYTES
        elif header.length <= _UNCOUNTED_BYTES:
            cost = 0
        maximum = self._limits.max_payload_bytes
        most = math.inf if partial is None else self._rules.max_payload_bytes(header.stream_id)
        if not most:
            self.abandon(header.stream_id)  # its stream has ended meanwhile
            return False
        if size > most:
            maximum = math.floor(most)
        is_spooled = partial is not None and partial.spool is not None
        if maximum is not None and size > maximum and not is_spooled:
            self._refuse(header, partial, TooLarge(f"a payload of at least {size} bytes; at most {maximum} are taken"))
        if not self._reserve(header, cost):
            self._refuse(header, partial, _no_room())
        return True

    def _feed_payload(self, frame: FragmentableFrame, cost: int) -> Frame | SplitPayload | None:
        partial = self._partials.get(frame.stream_id)
        if frame.metadata:
            self._check_metadata(frame, partial, cost)
        if partial is None:
            # This side may have cancelled the stream between the frame's header and its end.
            is_wanted = frame.stream_id not in self._abandoned or not isinstance(frame, PayloadFrame)
            is_spooled = cost >= _SPOOL_BYTES and isinstance(frame, RequestResponseFrame)
            if not is_wanted or not (frame.flags_follows or is_spooled):
                self._grown_bytes += cost
                self._give_back(cost)
                return frame if is_wanted else None
            # A large request is stored as a split one would be, though it came in one frame: it counts until then.
            partial = self._partials[frame.stream_id] = SplitPayload(frame)
            self._requests += partial.is_request
        self._grown_bytes += partial.add(frame, cost)
        partial.place(self._rules.spool)
        partial.gather()
        if partial.is_whole:
            self._remove(frame.stream_id)
            self._start_work(partial, partial.cost)
        elif partial.spool is not None and partial.data_cost >= _SPOOL_BYTES:
            self._start_work(partial, partial.data_cost)
        elif not partial.needs_room:
            return None
        return partial

    def _start_work(self, partial: SplitPayload, cost: int) -> None:
        """Notes that what counts `cost` of a payload is joined or stored until `release`: it can't be evicted."""
        partial.cost -= cost
        partial.data_cost = 0
        partial.busy_cost += cost
        self._busy_bytes += cost

    def _feed_end(self, frame: Frame) -> Frame | None:
        partial = self._partials.get(frame.stream_id)
        if partial is None:
            return frame
        if not partial.is_request:
            # The requester of a channel may cancel what it receives and go on sending; only an ERROR ends both.
            if isinstance(frame, ErrorFrame):
                self.abandon(frame.stream_id)
            return frame
        # A request that never became whole was never handed on, so nothing waits for its end.
        self.abandon(frame.stream_id)
        return None

    def _check_count(self, header: FrameHeader) -> None:
        """Refuses the payload if no more may begin that aren't whole."""
        maximum = self._limits.max_streams
        if header.kind == FrameType.PAYLOAD:
            count = len(self._partials) - self._requests  # their streams count already, if there are any
        else:
            count = self._requests + self._rules.count_streams()
        if maximum is not None and count >= maximum:
            error = TooManyStreams(f"a connection may have {maximum} requests under way, whole or not")
            self._refuse(header, None, error)

    def _check_metadata(self, frame: FragmentableFrame, partial: SplitPayload | None, cost: int) -> None:
        """Refuses the payload if its metadata is over the limit."""
        maximum = self._limits.max_metadata_bytes
        nbytes = len(frame.metadata or b"") + (0 if partial is None else partial.metadata_bytes)
        if maximum is not None and nbytes > maximum:
            self._give_back(cost)
            self.abandon(frame.stream_id)
            kind = (frame if partial is None else partial.first).frame_type
            error = TooLarge(f"metadata of at least {nbytes} bytes; at most {maximum} are taken")
            raise _Refused(Refusal(frame.stream_id, kind, error))

    def _refuse(self, header: FrameHeader, partial: SplitPayload | None, error: TransferError) -> NoReturn:
        kind = header.kind if partial is None else int(partial.first.frame_type)
        self.abandon(header.stream_id)
        raise _Refused(Refusal(header.stream_id, kind, error))

    def _refuse_stalled(self, *, is_moving: bool) -> None:
        header, source = self._incoming, self._source
        arriving = source.arrived_bytes if header is not None and source is not None else 0
        error = Stalled("the rest of the payload didn't come in time")
        for stream_id, partial in list(self._partials.items()):
            is_arriving = header is not None and header.stream_id == stream_id
            seen, partial.seen_bytes = partial.seen_bytes, partial.nbytes + (arriving if is_arriving else 0)
            if seen is not None and partial.seen_bytes - seen < GROWTH_BYTES and not is_moving:
                self._refuse_held(stream_id, error)
        header = self._incoming
        if header is not None and header.stream_id not in self._partials:
            seen, self._incoming_seen = self._incoming_seen, arriving
            if seen is not None and arriving - seen < GROWTH_BYTES and not is_moving:
                self._refuse_held(header.stream_id, error)

    def _refuse_held(self, stream_id: int, error: TransferError) -> None:
        """Refuses what has arrived of a payload or frame."""
        partial, header = self._partials.get(stream_id), self._incoming
        if header is not None and header.stream_id == stream_id:
            self._give_back(self._end_incoming())
            if self._source is not None:
                self._source.skip()
            if not header.is_fragmentable:
                self._rules.on_frame_refused(error)
        if partial is not None:
            kind = int(partial.first.frame_type)
        elif header is not None and header.is_fragmentable:
            kind = header.kind
        else:
            return
        self.abandon(stream_id)
        self._rules.on_refused(Refusal(stream_id, kind, error))

    def _remove(self, stream_id: int) -> SplitPayload | None:
        partial = self._partials.pop(stream_id, None)
        if partial is not None:
            self._requests -= partial.is_request
        return partial

    def _grown(self) -> int:
        """What has arrived of all that was ever held."""
        arriving = self._source.arrived_bytes if self._incoming is not None and self._source is not None else 0
        return self._grown_bytes + arriving

    def _reserve(self, header: FrameHeader, nbytes: int) -> bool:
        """Reserves the room for a frame that is arriving; whether there is any."""
        maximum = self._limits.max_connection_bytes
        if self._is_closed or not nbytes:
            return True
        if maximum is not None and self._held_bytes + nbytes > maximum:
            return False
        if not self._budget.take(nbytes, self):
            return False
        if not self._held_bytes:
            self._growth.begin(self._budget.clock(), self._grown_bytes)
        self._held_bytes += nbytes
        self._incoming, self._incoming_cost = header, nbytes
        return True

    def _end_incoming(self) -> int:
        """Notes that no counted frame is arriving any more; what the last one counted."""
        cost, self._incoming, self._incoming_cost, self._incoming_seen = self._incoming_cost, None, 0, None
        return cost

    def _give_back(self, nbytes: int) -> None:
        if not nbytes:
            return
        self._held_bytes -= nbytes
        self._budget.give_back(nbytes)
        if not self._held_bytes:
            self._budget.forget(self)


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.error.message)
        self.refusal = refusal


def _no_room() -> ServerFull:
    return ServerFull("no room just now for a payload of this size; try again later")
