"""What peers may make this side hold of payloads that aren't whole: each connection's limits, and a common budget."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..errors import ServerFull, Stalled, TransferError
from .codec import MAX_FRAME_BYTES
from .fragments import IncomingFrame, SplitPayload
from .growth import GROWTH_BYTES, Growth

__all__ = ["Holder", "ReassemblyBudget", "ReassemblyLimits", "no_room"]

# How long a ranking of the holders is used, so that a flood of refused frames doesn't cost one each.
_RANKING_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class ReassemblyLimits:
    """What one connection's peer may make this side hold, in bytes.

    Attributes:
        max_payload_bytes: One payload's data and metadata together, whole or split. Beyond it its stream is refused
            with `too_large`.
        max_connection_bytes: All payloads of the connection that aren't whole yet. The one that goes beyond it is
            refused with `server_full`.
        max_frame_bytes: One frame. A longer one ends the connection.
        max_metadata_bytes: One payload's metadata, whole or split; beyond it its stream is refused with `too_large`.
            Also one frame that is no payload or request; a longer one ends the connection.
        max_streams: Requests that aren't whole yet, and streams, together. One more request is refused with
            `too_many_streams`.
    """

    max_payload_bytes: float = math.inf
    max_connection_bytes: float = math.inf
    max_frame_bytes: int = MAX_FRAME_BYTES
    max_metadata_bytes: float = math.inf
    max_streams: float = math.inf


class Holder(ABC):
    """What one connection holds of payloads that aren't whole, and of the frame that is arriving.

    Args:
        budget: That of all connections.

    Attributes:
        held_bytes: What counts against the limits.
    """

    def __init__(self, budget: "ReassemblyBudget") -> None:
        self.held_bytes = 0
        self._budget = budget
        self._busy_bytes = 0  # of what is held: what is being joined or stored, and can't be given up
        self._grown_bytes = 0  # how much has arrived of all that was ever held
        self._growth = Growth(budget.clock())
        # The frame that was admitted last, if it counts, until it is fed.
        self._incoming: IncomingFrame | None = None
        self._partials: dict[int, SplitPayload] = {}

    @property
    def pending(self) -> int:
        """How many payloads are incomplete."""
        return len(self._partials)

    def received_of(self, stream_id: int) -> int:
        """Bytes that have arrived of an incomplete payload of this stream, but for the frame that is arriving."""
        partial = self._partials.get(stream_id)
        return 0 if partial is None else partial.nbytes

    @property
    def evictable_bytes(self) -> int:
        """What `evict` gives back."""
        return self.held_bytes - self._busy_bytes

    def is_slow(self, now: float) -> bool:
        """Whether what is held has grown by less than 64 KiB a second lately; False for what has just begun."""
        return not self._busy_bytes and self._growth.is_slow(now, self._grown())

    def check(self, seconds: float) -> None:
        """Observes how what is held grows, and refuses what has stopped. To be called about twice a second.

        A payload has stopped if it has grown by less than 32 KiB in `seconds`, unless as much has arrived for each on
        the connection on average: one has to wait while the others are sent. None has while this side's disk is busy.
        """
        now, grown, held = self._budget.clock(), self._grown(), self._held_streams()
        self._growth.look(now, grown)
        if not held or self._busy_bytes:
            self._growth.excuse(now, grown)
            return
        has_grown = self._growth.judge(now, grown, seconds, len(held))
        if has_grown is None:
            return
        error = Stalled("the rest of the payload didn't come in time")
        for stream_id in held:
            partial, incoming = self._partials.get(stream_id), self._incoming
            arriving = incoming if incoming is not None and incoming.stream_id == stream_id else None
            observed = partial or arriving
            if observed is None:
                continue  # it was refused with another one
            nbytes = (0 if partial is None else partial.nbytes) + (0 if arriving is None else arriving.arrived_bytes)
            seen, observed.seen_bytes = observed.seen_bytes, nbytes
            if seen is not None and nbytes - seen < GROWTH_BYTES and not has_grown:
                self._refuse_held(stream_id, error)

    def evict(self) -> None:
        """Refuses everything that isn't whole, since another connection needs the room."""
        for stream_id in self._held_streams():
            self._refuse_held(stream_id, no_room())

    def _held_streams(self) -> list[int]:
        incoming = [] if self._incoming is None else [self._incoming.stream_id]
        return list(dict.fromkeys([*self._partials, *incoming]))

    @abstractmethod
    def _refuse_held(self, stream_id: int, error: TransferError) -> None:
        """Refuses what has arrived of a payload or frame."""

    def _grown(self) -> int:
        return self._grown_bytes + (0 if self._incoming is None else self._incoming.arrived_bytes)

    def _hold(self, incoming: IncomingFrame, maximum: float) -> bool:
        """Reserves the room for a frame that is arriving; False if there is none, or it would exceed `maximum`."""
        nbytes = incoming.cost
        if self.held_bytes + nbytes > maximum or not self._budget.take(nbytes, self):
            return False
        if not self.held_bytes:
            self._growth.begin(self._budget.clock(), self._grown_bytes)
        self.held_bytes += nbytes
        self._incoming = incoming
        return True

    def _end_incoming(self) -> int:
        """Notes that no counted frame is arriving any more; returns what the last one counted."""
        incoming, self._incoming = self._incoming, None
        return 0 if incoming is None else incoming.cost

    def _give_back(self, nbytes: int) -> None:
        if nbytes:
            self.held_bytes -= nbytes
            self._budget.give_back(nbytes)
            if not self.held_bytes:
                self._budget.forget(self)


class ReassemblyBudget:
    """What all connections together may hold of payloads that aren't whole yet; one object, shared by them.

    A connection for which there is no room takes that of the slow connection that holds most; else that of the
    connection that holds most of all, if that is more than twice what the new holder would have then.

    Args:
        max_bytes: The most that is held.
        clock: Gives the time in seconds.

    Attributes:
        max_bytes: The most that is held.
        used_bytes: What is held.
    """

    def __init__(self, max_bytes: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock: Final = clock
        self.used_bytes = 0
        self.max_bytes: Final = max_bytes
        self._holders: set[Holder] = set()
        self._ranked_at = -math.inf
        self._largest: Holder | None = None
        # Those that were slow, and what they held; the largest is the last.
        self._slow: dict[Holder, int] = {}
        self._slow_bytes = 0

    @property
    def is_short(self) -> bool:
        """Whether more than half of it is used."""
        return self.used_bytes > self.max_bytes / 2

    def take(self, nbytes: int, holder: Holder) -> bool:
        """Reserves `nbytes`, for which others may lose theirs; False, and nothing is reserved, if there is no room."""
        if self._missing(nbytes) > 0 and not self._make_room(nbytes, holder):
            return False
        self.used_bytes += nbytes
        self._holders.add(holder)
        return True

    def give_back(self, nbytes: int) -> None:
        """Undoes `take`."""
        assert 0 <= nbytes <= self.used_bytes, "more is given back than was taken"
        self.used_bytes -= nbytes

    def forget(self, holder: Holder) -> None:
        """Notes that a holder has given everything back."""
        self._holders.discard(holder)
        self._slow_bytes -= self._slow.pop(holder, 0)
        if self._largest is holder:
            self._largest, self._ranked_at = None, -math.inf

    def _missing(self, nbytes: int) -> float:
        return self.used_bytes + nbytes - self.max_bytes

    def _make_room(self, nbytes: int, asking: Holder) -> bool:
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
            # This isn't the asking connection, which holds less than `least`.
            self._ranked_at = -math.inf
            largest.evict()
        return self._missing(nbytes) <= 0

    def _rank(self, now: float) -> None:
        ranking = sorted(self._holders, key=lambda holder: holder.evictable_bytes)
        self._ranked_at = now
        self._largest = ranking[-1] if ranking else None
        self._slow = {holder: holder.evictable_bytes for holder in ranking if holder.is_slow(now)}
        self._slow_bytes = sum(self._slow.values())


def no_room() -> ServerFull:
    """The refusal of a payload for which there is no room."""
    return ServerFull("no room just now for a payload of this size; try again later")
