"""Fragments to whole payloads, within limits that are checked before a frame is taken in: a state machine without I/O.

rsocket's own fragment cache has no limit, keeps the pieces of a cancelled request, and hands that request to the server
when its last piece arrives. Here a request reaches the server only as a whole. One that is cancelled, fails, or is
refused before its last fragment vanishes with everything that still arrives for it. So does what arrives for a stream
that this side has cancelled.

What isn't whole lives on sufferance: it is refused if it stops growing, and if somebody else needs its room who
deserves it more. Frames that are arriving count, too, since their header reserves a buffer of their size.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol, cast

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
from .buffers import ReservedBuffer
from .codec import FOLLOWS_OR_IGNORE, LENGTH_BYTES, MAX_FRAME_BYTES, FrameError, FrameHeader

__all__ = [
    "FrameSource",
    "PayloadRefused",
    "Reassembler",
    "ReassemblyBudget",
    "ReassemblyLimits",
    "SplitPayload",
    "Spool",
    "Spooler",
]

# What is counted for a payload that isn't whole yet, and for each of its fragments, beside their bytes: the Python
# objects that hold them. Without it a flood of one-byte fragments would take a hundred times its limit.
_PAYLOAD_COST_BYTES: Final = 1024
_FRAGMENT_COST_BYTES: Final = 64
# Frames up to this fit a connection's receive buffer, which it has anyway, and aren't counted unless they are kept.
_UNCOUNTED_BYTES: Final = 64 * 1024 - LENGTH_BYTES
# What is handed to a spool at once, the cost of its fragments included: a hop to a thread for each small one costs more
# than the write. A fragment of our own kind doesn't wait for the next, so that many uploads at once hold little.
_SPOOL_BYTES: Final = 512 * 1024
# A payload that isn't whole has to grow by this much in the time that it is given.
_GROWTH_BYTES: Final = 32 * 1024
# A connection whose payloads grow more slowly than this loses its room first when there is none left, as it holds that
# for longest; but not before it was looked at for so long.
_SLOW_BYTES_PER_SECOND: Final = 64 * 1024
_JUDGED_SECONDS: Final = 0.5
# How long it is remembered who holds most, so that a flood of refused frames doesn't cost a look at everybody each.
_RANKING_SECONDS: Final = 0.1
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
        max_metadata_bytes: One payload's metadata, whole or split; beyond it its stream is refused with `too_large`.
            Also one frame that is no payload or request; a longer one ends the connection.
        max_streams: Requests that aren't whole yet, and streams, together. One more request is refused with
            `too_many_streams`; so is one more item that isn't whole, if there are as many of those.
    """

    max_payload_bytes: int | None = None
    max_connection_bytes: int | None = None
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_metadata_bytes: int | None = None
    max_streams: int | None = None


class ReassemblyBudget:
    """What all connections together may hold of payloads that aren't whole yet; one object, shared by them.

    Where there is no room left, whoever asks for some gets that of the connection that holds most among the slow ones;
    else that of the one that holds most of all, if that is more than twice what the asking one would then hold.

    Args:
        max_bytes: The most; None is no limit.
        clock: Tells the time in seconds.
    """

    def __init__(self, max_bytes: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock: Final = clock
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self._used_bytes = 0
        self._holders: set[Reassembler] = set()
        self._ranked_at = -math.inf
        self._largest: Reassembler | None = None
        # Those that were slow, and what they held; the largest is the last.
        self._slow: dict[Reassembler, int] = {}
        self._slow_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What is held just now."""
        return self._used_bytes

    def take(self, nbytes: int, holder: "Reassembler | None" = None) -> bool:
        """Reserves `nbytes`, for which others may lose theirs; False, and nothing is reserved, if there is no room.

        Args:
            nbytes: How much.
            holder: For whom; None for somebody who takes nothing from others, nor loses to them.
        """
        if self._missing(nbytes) > 0 and (holder is None or not self._make_room(nbytes, holder)):
            return False
        self._used_bytes += nbytes
        if holder is not None:
            self._holders.add(holder)
        return True

    def give_back(self, nbytes: int) -> None:
        """Undoes `take`."""
        assert 0 <= nbytes <= self._used_bytes, "more is given back than was taken"
        self._used_bytes -= nbytes

    def forget(self, holder: "Reassembler") -> None:
        """Notes that a holder has given everything back."""
        self._holders.discard(holder)
        self._slow_bytes -= self._slow.pop(holder, 0)
        if self._largest is holder:
            self._largest, self._ranked_at = None, -math.inf

    def _missing(self, nbytes: int) -> float:
        return self._used_bytes + nbytes - self._max_bytes

    def _make_room(self, nbytes: int, asking: "Reassembler") -> bool:
        """Takes from others what is missing; whether there is room then."""
        now = self.clock()
        if now - self._ranked_at >= _RANKING_SECONDS:
            self._rank(now)
        while 0 < self._missing(nbytes) <= self._slow_bytes:
            victim = next(reversed(self._slow))
            if victim is asking:
                break
            self._slow_bytes -= self._slow.pop(victim)
            if victim.is_slow(now):
                victim.evict()
        largest, least = self._largest, 2 * (asking.held_bytes + nbytes)
        if self._missing(nbytes) > 0 and largest is not None and largest.evictable_bytes > least:
            # It isn't the one that asks, which would hold more than it does.
            self._ranked_at = -math.inf
            largest.evict()
        return self._missing(nbytes) <= 0

    def _rank(self, now: float) -> None:
        ranking = sorted(self._holders, key=lambda holder: holder.evictable_bytes)
        self._ranked_at = now
        self._largest = ranking[-1] if ranking else None
        self._slow = {holder: holder.evictable_bytes for holder in ranking if holder.is_slow(now)}
        self._slow_bytes = sum(self._slow.values())


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

    async def write(self, chunks: Sequence[bytes]) -> None:
        """Takes the next bytes, and keeps none of them in memory.

        Raises:
            TransferError: It can't; the request is refused.
        """
        ...

    def abandon(self) -> None:
        """The request will never be whole."""
        ...


Spooler = Callable[[FragmentableFrame, bytes], Spool | None]
"""Decides, from the first frame of a split request and its whole metadata, where its data goes; None for memory."""


class FrameSource(Protocol):
    """Where a frame arrives that was admitted and isn't whole yet."""

    @property
    def arrived_bytes(self) -> int:
        """What has arrived of it."""
        ...

    def skip(self) -> None:
        """Drops what has arrived of it, and what still will."""
        ...


class SplitPayload:
    """A payload or request that comes in several frames.

    Attributes:
        nbytes: Its data and metadata so far.
        metadata_bytes: Its metadata so far.
        spool: Where its data goes; None for memory.
        cost: What of it counts in the limits, but for what is being joined or stored.
        data_cost: What of that is data.
        busy_cost: What is being joined or stored.
        seen_bytes: Its size when it was last looked at whether it grows; None if it wasn't.
    """

    __slots__ = (
        "_buffer",
        "_data",
        "_metadata",
        "busy_cost",
        "cost",
        "data_cost",
        "first",
        "is_placed",
        "metadata_bytes",
        "nbytes",
        "seen_bytes",
        "spool",
    )

    def __init__(self, first: FragmentableFrame) -> None:
        self.first = first
        self.nbytes = 0
        self.metadata_bytes = 0
        self.cost = 0
        self.data_cost = 0
        self.busy_cost = 0
        self.seen_bytes: int | None = None
        self.spool: Spool | None = None
        self.is_placed = False
        self._metadata: list[bytes] = []
        self._data: list[bytes] = []
        self._buffer: ReservedBuffer | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its last fragment is here."""
        return not self.first.flags_follows

    @property
    def is_request(self) -> bool:
        """Whether it begins a stream."""
        return not isinstance(self.first, PayloadFrame)

    def add(self, fragment: FragmentableFrame, cost: int) -> int:
        """Takes the next fragment (at first the first), and what it counts in the limits; gives its size."""
        metadata_bytes, nbytes = len(fragment.metadata or b""), len(fragment.data or b"")
        self.cost += cost
        self.nbytes += nbytes + metadata_bytes
        self.metadata_bytes += metadata_bytes
        if fragment.metadata:
            self._metadata.append(bytes(fragment.metadata))  # as it is, where it is bytes already
        if fragment.data:
            if self._buffer is None:
                self._data.append(bytes(fragment.data))
            else:
                self._buffer.write(fragment.data)
            fragment.data = b""  # it may be borrowed
            # The first fragment's cost is also that of the payload itself, which stays.
            self.data_cost += nbytes if fragment is self.first else max(cost - metadata_bytes, 0)
        if not fragment.flags_follows:
            self._end(fragment)
        return nbytes + metadata_bytes

    def place(self, spooler: Spooler) -> None:
        """Decides where the data goes, when its first bytes are here: the metadata is whole by then."""
        if not self.is_placed and self._data:
            self.is_placed = True
            self.spool = spooler(self.first, b"".join(self._metadata))

    def gather(self) -> None:
        """Goes on in one buffer, once it is large and not for a spool."""
        is_one = self.is_whole and len(self._data) == 1
        if self._buffer is None and self.spool is None and self.nbytes > _JOINED_BYTES and not is_one:
            self._buffer = ReservedBuffer()
            for data in self._data:
                self._buffer.write(data)
            self._data.clear()

    @property
    def needs_room(self) -> bool:
        """Whether `make_room` should be called before the next fragment is added."""
        return self._buffer is not None and self._buffer.needs_room

    def make_room(self) -> None:
        """Makes room for what will come. Blocks; in a thread, and nothing is added meanwhile."""
        if self._buffer is not None:
            self._buffer.make_room()

    def take_data(self) -> Sequence[bytes]:
        """The data that came since the last call, for the spool."""
        data, self._data = self._data, []
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
        budget: That of all connections; its own, without end, if None.

    Attributes:
        spooler: Decides which split requests' data don't go to memory; None if all do.
        source: Where the frame arrives that was admitted last; None if all frames are fed at once.
        count_streams: Tells how many streams are open.
        most_of: Tells how large a split payload of a stream may become, in bytes; 0 if nobody waits for one, and it is
            dropped.
        on_refused: Called when something was put into `refusals`.
        refusals: What was refused between two frames, for whoever takes the next one; a FrameError if the connection
            can't go on.
    """

    def __init__(self, limits: ReassemblyLimits | None = None, budget: ReassemblyBudget | None = None) -> None:
        self.spooler: Spooler | None = None
        self.source: FrameSource | None = None
        self.count_streams: Callable[[], int] = _nothing_is_open
        self.most_of: Callable[[int], float] = _anything_is_wanted
        self.on_refused: Callable[[], None] = _nobody_hears
        self.refusals: deque[PayloadRefused | FrameError] = deque()
        self._budget = budget if budget is not None else ReassemblyBudget()
        self.set_limits(limits if limits is not None else ReassemblyLimits())
        self._held_bytes = 0
        self._busy_bytes = 0
        # The frame that was admitted last, if it counts, and what it counts.
        self._incoming: FrameHeader | None = None
        self._incoming_cost = 0
        self._incoming_seen: int | None = None
        self._is_closed = False
        self._partials: dict[int, SplitPayload] = {}
        self._requests = 0
        self._abandoned: OrderedDict[int, None] = OrderedDict()
        # How much has arrived of what was held, and how much that was at the last two looks, each with its time.
        self._grown_bytes = 0
        self._look = self._older_look = (0.0, 0)
        self._growth_seen = (self._budget.clock(), 0)

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
        if header.may_be_ignored:
            return False
        if not header.is_fragmentable:
            maximum = self._limits.max_metadata_bytes
            if maximum is not None and header.length > maximum:
                raise FrameError(f"a frame of {header.length} bytes; at most {maximum} are taken of its kind")
            if not self._take(header, header.length if header.length > _UNCOUNTED_BYTES else 0):
                raise FrameError(f"no room for a frame of {header.length} bytes")
            return True
        return self._admit_payload(header)

    def copies(self, header: FrameHeader) -> bool:
        """Whether `feed` will copy the data of the frame that was admitted last, which may be borrowed then."""
        return header.follows or header.stream_id in self._partials

    def feed(self, frame: Frame) -> Frame | SplitPayload | None:
        """Takes the frame that was admitted last.

        Returns:
            The frame, if it stands for itself; the payload that it completes, or one whose data is due at its spool,
            which is to be given to `release` once it was joined, or its data stored; one that needs room for the next
            fragment; None if it is kept, or concerns nobody.

        Raises:
            PayloadRefused: It has too much metadata; nothing of the payload is kept.
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
        """Gives back the room of what was joined or stored of a payload that `feed` returned."""
        cost, payload.busy_cost = payload.busy_cost, 0
        self._busy_bytes -= cost
        self._give_back(cost)

    def on_sent(self, frame: Frame) -> None:
        """Notes what this side sends: after its CANCEL or ERROR, no more of the stream's payloads is wanted."""
        kind = frame.frame_type
        if kind is _CANCEL or (kind is _ERROR and frame.stream_id in self._partials):
            self.abandon(frame.stream_id)

    def close(self) -> None:
        """Gives everything back but what is being joined or stored; what is fed from now on isn't counted."""
        for stream_id in list(self._partials):
            self.abandon(stream_id)
        header, source = self._incoming, self.source
        if header is not None and source is not None and source.arrived_bytes < header.length:
            source.skip()
        self._give_back(self._end_incoming())
        self.refusals.clear()
        self._is_closed = True
        # They refer to whoever refers to this.
        self.spooler = self.source = None
        self.count_streams, self.on_refused = _nothing_is_open, _nobody_hears
        self.most_of = _anything_is_wanted

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

        A payload has stopped if it has grown by less than 32 KiB in `seconds`, unless there was as much for each on the
        connection: where many are sent in turns, one has to wait for the others. What waits for this side's disk isn't
        to blame.
        """
        now = self._budget.clock()
        grown = self._grown()
        self._older_look, self._look = self._look, (now, grown)
        since, grown_then = self._growth_seen
        count = len(self._partials) + (self._incoming is not None)
        if not count or self._busy_bytes:
            self._growth_seen = (now, grown)
        elif now - since >= seconds:
            self._growth_seen = (now, grown)
            self._refuse_stalled(is_moving=grown - grown_then >= count * _GROWTH_BYTES)

    def is_slow(self, now: float) -> bool:
        """Whether what is held has grown by less than 64 KiB a second lately; of who has just begun nobody can tell."""
        then, grown = self._older_look
        seconds = now - then
        is_judged = seconds >= _JUDGED_SECONDS and not self._busy_bytes
        return is_judged and self._grown() - grown < seconds * _SLOW_BYTES_PER_SECOND

    def evict(self) -> None:
        """Refuses everything that isn't whole, as somebody else needs the room."""
        error = _no_room()
        for stream_id in list(self._partials):
            self._refuse_held(stream_id, error)
        if self._incoming is not None:
            self._refuse_held(self._incoming.stream_id, error)
        self.on_refused()

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
            if self._is_closed or not self.most_of(header.stream_id):
                return False  # the rest of it will never come, or nobody waits for it
            self._check_count(header)
            cost += _PAYLOAD_COST_BYTES
        elif header.length <= _UNCOUNTED_BYTES:
            cost = 0
        maximum = self._limits.max_payload_bytes
        most = math.inf if partial is None else self.most_of(header.stream_id)
        if not most:
            self.abandon(header.stream_id)  # its stream has ended meanwhile
            return False
        if size > most:
            maximum = math.floor(most)
        is_spooled = partial is not None and partial.spool is not None
        if maximum is not None and size > maximum and not is_spooled:
            self._refuse(header, partial, TooLarge(f"a payload of at least {size} bytes; at most {maximum} are taken"))
        if not self._take(header, cost):
            self._refuse(header, partial, _no_room())
        return True

    def _feed_payload(self, frame: FragmentableFrame, cost: int) -> Frame | SplitPayload | None:
        partial = self._partials.get(frame.stream_id)
        if frame.metadata:
            self._check_metadata(frame, partial, cost)
        if partial is None:
            # This side may have cancelled the stream between the frame's header and its end.
            is_wanted = frame.stream_id not in self._abandoned or not isinstance(frame, PayloadFrame)
            is_spooled = self.spooler is not None and cost >= _SPOOL_BYTES and isinstance(frame, RequestResponseFrame)
            if not is_wanted or not (frame.flags_follows or is_spooled):
                self._grown_bytes += cost
                self._give_back(cost)
                return frame if is_wanted else None
            # A large request is stored as a split one would be, though it came in one frame: nobody sends the next one
            # before, and it counts meanwhile.
            partial = self._partials[frame.stream_id] = SplitPayload(frame)
            self._requests += partial.is_request
        self._grown_bytes += partial.add(frame, cost)
        if self.spooler is not None:
            partial.place(self.spooler)
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
        # Nobody has seen a request that never became whole, so nobody waits for its end.
        self.abandon(frame.stream_id)
        return None

    def _check_count(self, header: FrameHeader) -> None:
        """Raises PayloadRefused if no more payloads may begin that aren't whole."""
        maximum = self._limits.max_streams
        if header.kind == FrameType.PAYLOAD:
            count = len(self._partials) - self._requests  # their streams count already, if there are any
        else:
            count = self._requests + self.count_streams()
        if maximum is not None and count >= maximum:
            error = TooManyStreams(f"a connection may have {maximum} requests under way, whole or not")
            self._refuse(header, None, error)

    def _check_metadata(self, frame: FragmentableFrame, partial: SplitPayload | None, cost: int) -> None:
        """Raises PayloadRefused if the metadata is more than anybody wants to parse."""
        maximum = self._limits.max_metadata_bytes
        nbytes = len(frame.metadata or b"") + (0 if partial is None else partial.metadata_bytes)
        if maximum is not None and nbytes > maximum:
            self._give_back(cost)
            self.abandon(frame.stream_id)
            kind = (frame if partial is None else partial.first).frame_type
            error = TooLarge(f"metadata of at least {nbytes} bytes; at most {maximum} are taken")
            raise PayloadRefused(frame.stream_id, kind, error)

    def _refuse(self, header: FrameHeader, partial: SplitPayload | None, error: TransferError) -> NoReturn:
        kind = header.kind if partial is None else int(partial.first.frame_type)
        self.abandon(header.stream_id)
        raise PayloadRefused(header.stream_id, kind, error)

    def _refuse_stalled(self, *, is_moving: bool) -> None:
        header, source = self._incoming, self.source
        arriving = source.arrived_bytes if header is not None and source is not None else 0
        error = Stalled("the rest of the payload didn't come in time")
        for stream_id, partial in list(self._partials.items()):
            is_arriving = header is not None and header.stream_id == stream_id
            seen, partial.seen_bytes = partial.seen_bytes, partial.nbytes + (arriving if is_arriving else 0)
            if seen is not None and partial.seen_bytes - seen < _GROWTH_BYTES and not is_moving:
                self._refuse_held(stream_id, error)
        header = self._incoming
        if header is not None and header.stream_id not in self._partials:
            seen, self._incoming_seen = self._incoming_seen, arriving
            if seen is not None and arriving - seen < _GROWTH_BYTES and not is_moving:
                self._refuse_held(header.stream_id, error)
        if self.refusals:
            self.on_refused()

    def _refuse_held(self, stream_id: int, error: TransferError) -> None:
        """Refuses what has arrived of a payload or frame; whoever takes the next frame is told."""
        partial, header = self._partials.get(stream_id), self._incoming
        if header is not None and header.stream_id == stream_id:
            self._give_back(self._end_incoming())
            if self.source is not None:
                self.source.skip()
            if not header.is_fragmentable:
                self.refusals.append(FrameError(error.message))
        if partial is not None:
            kind = int(partial.first.frame_type)
        elif header is not None and header.is_fragmentable:
            kind = header.kind
        else:
            return
        self.abandon(stream_id)
        self.refusals.append(PayloadRefused(stream_id, kind, error))

    def _remove(self, stream_id: int) -> SplitPayload | None:
        partial = self._partials.pop(stream_id, None)
        if partial is not None:
            self._requests -= partial.is_request
        return partial

    def _grown(self) -> int:
        """What has arrived of all that was ever held."""
        arriving = self.source.arrived_bytes if self._incoming is not None and self.source is not None else 0
        return self._grown_bytes + arriving

    def _take(self, header: FrameHeader, nbytes: int) -> bool:
        """Reserves the room for a frame that is arriving; whether there is any."""
        maximum = self._limits.max_connection_bytes
        if self._is_closed or not nbytes:
            return True
        if maximum is not None and self._held_bytes + nbytes > maximum:
            return False
        if not self._budget.take(nbytes, self):
            return False
        if not self._held_bytes:
            self._look = self._older_look = (self._budget.clock(), self._grown_bytes)
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


def _no_room() -> ServerFull:
    return ServerFull("no room just now for a payload of this size; try again later")


def _nothing_is_open() -> int:
    return 0


def _anything_is_wanted(_: int) -> float:
    return math.inf


def _nobody_hears() -> None:
    """What was refused is found in `refusals` all the same."""
