"""What peers may make this side hold of payloads that aren't whole: each connection's limits, and a common budget."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from .codec import MAX_FRAME_BYTES

__all__ = ["ReassemblyBudget", "ReassemblyLimits"]

# How long a ranking of the holders is used, so that a flood of refused frames doesn't cost one each.
_RANKING_SECONDS: Final = 0.1


class Holder(Protocol):
    """A connection that holds payloads which aren't whole."""

    @property
    def held_bytes(self) -> int:
        """What counts against the limits just now."""
        ...

    @property
    def evictable_bytes(self) -> int:
        """What `evict` gives back."""
        ...

    def is_slow(self, now: float) -> bool:
        """Whether what is held grows slowly."""
        ...

    def evict(self) -> None:
        """Refuses everything that isn't whole."""
        ...


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
        self._holders: set[Holder] = set()
        self._ranked_at = -math.inf
        self._largest: Holder | None = None
        # Those that were slow, and what they held; the largest is the last.
        self._slow: dict[Holder, int] = {}
        self._slow_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What is held just now."""
        return self._used_bytes

    def take(self, nbytes: int, holder: Holder | None = None) -> bool:
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

    def forget(self, holder: Holder) -> None:
        """Notes that a holder has given everything back."""
        self._holders.discard(holder)
        self._slow_bytes -= self._slow.pop(holder, 0)
        if self._largest is holder:
            self._largest, self._ranked_at = None, -math.inf

    def _missing(self, nbytes: int) -> float:
        return self._used_bytes + nbytes - self._max_bytes

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
