"""A receiver's window that adapts to the line: the demand of a transfer whose caller gave no window.

What a sender may be ahead has to cover what the line holds, or it moves one window in a round trip; more than that just
waits in sockets, and delays the connection's other answers. The receiver sees neither, but the first item of each
further request for items tells:

- The sender had to wait for the request if the consumer was done with all that came before, and the item took no longer
  than others do from their request on: the window grows by what would have come meanwhile. If the item took longer, the
  sender, its disk or a busy machine held it up.
- More than half of the window waits somewhere if items take more than twice the shortest time from their request on, or
  if so much waits in memory: the window is halved.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from .flow import DEFAULT_WINDOW, WIDEST_WINDOW, Demand

__all__ = ["AdaptiveDemand", "WindowBudget"]

# A shorter wait isn't a line's: a busy machine lets a process wait for as long.
_LEAST_WAIT_SECONDS: Final = 0.002
# What waits cost in a window's time is no reason to widen it if it is less than this share of it.
_LEAST_GROWTH: Final = 1 / 4
# An item that took so many times the shortest time was held up, if this share of that was spent idly. The shortest time
# is so many times longer then, as the line may have become longer.
_HELD_UP: Final = 1.5
_HELD_UP_WAIT: Final = 1 / 8
_LONGER: Final = 1.25
# So many requests in a row whose items took more than so many times the shortest time are no accident.
_QUEUED: Final = 2.0
_QUEUED_REQUESTS: Final = 4
# The first items after a wait come more slowly than those behind them, which find everything running.
_GROWTH: Final = 2


class WindowBudget:
    """What the adaptive windows of a client may have together, beside that with which each of them begins.

    Args:
        max_bytes: The most.

    Attributes:
        used_bytes: What they have.
    """

    def __init__(self, max_bytes: int) -> None:
        self.used_bytes = 0
        self._max_bytes = max_bytes

    @property
    def free_bytes(self) -> int:
        """What may be added."""
        return self._max_bytes - self.used_bytes


class AdaptiveDemand(Demand):
    """See above. It begins with `DEFAULT_WINDOW` items, and never has fewer.

    Args:
        most: The widest window, in items.
        item_bytes: What an item has at the most; of interest to the budget alone.
        budget: Where the window counts as far as it is wider than at the beginning; None to do without.
        clock: Gives the time in seconds.
    """

    __slots__ = (
        "_awaited",
        "_budget",
        "_clock",
        "_counted",
        "_idle",
        "_is_behind",
        "_item_bytes",
        "_missed",
        "_missed_since",
        "_most",
        "_narrowed_at",
        "_queued",
        "_requests",
        "_round_trip",
    )

    def __init__(
        self,
        most: int = WIDEST_WINDOW,
        item_bytes: int = 0,
        budget: WindowBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(DEFAULT_WINDOW)
        self._most = most
        self._item_bytes = item_bytes
        self._budget = budget
        self._clock = clock
        self._counted = 0  # items in the budget
        # Of each request whose first item hasn't arrived: how many items come before that, and when it was made.
        self._requests: deque[tuple[int, float]] = deque()
        self._round_trip = math.inf  # the shortest time from a request to its first item
        # Since when everything that arrived is consumed, and how many that were.
        self._idle = 0, 0.0
        # An item that was waited for: how many came before it, when it came, and how long the wait was.
        self._awaited: tuple[int, float, float] | None = None
        # What waits have cost, in items, and how many had arrived when that was 0.
        self._missed, self._missed_since = 0.0, 0
        # Whether the consumer may be behind; how many requests in a row took long; and how many items were requested
        # when the window was last halved: items before that say nothing of it.
        self._is_behind = False
        self._queued = 0
        self._narrowed_at = 0
        self.start()

    def start(self) -> None:
        """The first items are requested now."""
        self._idle = self.arrived, self._clock()
        self._requests.clear()
        self._requests.append(self._idle)

    @property
    def batch(self) -> int:
        return DEFAULT_WINDOW // 2

    def on_arrived(self, items: int = 1) -> None:
        before = self.arrived
        super().on_arrived(items)
        requests = self._requests
        if not requests or before < requests[0][0]:
            return
        now, requested_at = self._clock(), 0.0
        while requests and before >= requests[0][0]:
            _, requested_at = requests.popleft()
        self._judge(before, now, now - requested_at)

    def _judge(self, before: int, now: float, took: float) -> None:
        """The first item of a request has arrived after `before` others, so many seconds after it was requested."""
        count, since = self._idle
        waited = now - since if count == before else 0.0
        self._round_trip = min(self._round_trip, took)
        self._is_behind = before >= self._narrowed_at  # perhaps: the event loop knows what is consumed
        if took <= self._round_trip * _HELD_UP:
            self._queued = 0
            if waited >= _LEAST_WAIT_SECONDS:
                self._awaited = before, now, waited
        elif waited >= max(took * _HELD_UP_WAIT, _LEAST_WAIT_SECONDS):
            self._round_trip *= _LONGER
        elif took > self._round_trip * _QUEUED and self._is_behind:
            self._queued += 1

    def on_consumed(self, items: int = 1) -> int:
        self.consumed += items
        waiting, now = self.arrived - self.consumed, self._clock()
        if not waiting:
            self._idle = self.consumed, now
        if self._is_behind:
            self._is_behind = False
            if 2 * waiting > self.window or self._queued >= _QUEUED_REQUESTS:
                self.window = max(self.window // 2, DEFAULT_WINDOW)
                self._narrowed_at, self._queued = self.requested, 0
        if self._awaited is not None:
            self._count_missed(now, *self._awaited)
        requested = self.requested
        more = self._request_more()
        if more:
            self._requests.append((requested, now))
        self._count()
        return more

    def _count_missed(self, now: float, before: int, came_at: float, waited: float) -> None:
        """Counts what would have come while the item behind `before` others was waited for; perhaps it is too much."""
        count = self.consumed - before
        if count < self.batch:
            return
        self._awaited = None
        if before - self._missed_since > self.window:
            self._missed, self._missed_since = 0.0, before
        self._missed += waited * count / max(now - came_at, 1e-6) - 1
        if self._missed >= self.window * _LEAST_GROWTH:
            self._grow(int(self._missed * _GROWTH))
            self._missed, self._missed_since = 0.0, self.consumed

    def end(self) -> None:
        """Nothing more arrives, as far as the budget is concerned; a thread may still be taking what does."""
        if self._budget is not None:
            self.window = self._most = DEFAULT_WINDOW
            self.requested = self.arrived
            self._count()

    def _grow(self, items: int) -> None:
        window = min(self.window + items, self._most)
        if self._budget is not None:
            window = min(window, DEFAULT_WINDOW + self._counted + self._budget.free_bytes // self._item_bytes)
        self.window = max(self.window, window)

    def _count(self) -> None:
        """Counts in the budget what the sender may be ahead, or was allowed to be before the window became smaller."""
        if self._budget is not None:
            items = max(self.window, self.requested - self.consumed) - DEFAULT_WINDOW
            self._budget.used_bytes += (items - self._counted) * self._item_bytes
            self._counted = items
