"""A receiver's window that adapts to the line: the demand of a transfer whose caller gave no window.

What a sender may be ahead has to cover what the line holds, or it moves one window in a round trip. The receiver can't
see the line, but it sees its own idleness. The sender has to stop only behind the last item that it may send, so the
first item of a further request that comes late, while the consumer is done with everything before it, was waited for:
the window grows by what would have come meanwhile. If more than half of the window waits in memory by the time that
such an item comes, the consumer is the slower one, and the window is halved.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from .flow import DEFAULT_WINDOW, WIDEST_WINDOW, Demand

__all__ = ["AdaptiveDemand", "WindowBudget"]

# A shorter wait isn't a line's: a busy machine lets a process wait for as long.
_LEAST_WAIT_SECONDS: Final = 0.002
# A wait that costs less than this share of the window is no reason to widen it: the items of a slow line come one by
# one, and the receiver is idle before each of them.
_LEAST_GROWTH: Final = 1 / 4
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
        "_first_items",
        "_idle",
        "_is_behind",
        "_item_bytes",
        "_most",
        "_narrowed_at",
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
        # How many items come before the first one of each request whose first item hasn't arrived.
        self._first_items: deque[int] = deque()
        # Since when everything that arrived is consumed, and how many that were.
        self._idle = 0, 0.0
        # An item that was waited for: how many came before it, when it came, and how long the wait was.
        self._awaited: tuple[int, float, float] | None = None
        # Whether an item came that wasn't waited for; and what was requested when the window was halved: items before
        # that say nothing of the window as it is now.
        self._is_behind = False
        self._narrowed_at = 0
        self.start()

    def start(self) -> None:
        """The first items are requested now."""
        self._first_items.clear()
        self._first_items.append(self.arrived)
        self._idle = self.arrived, self._clock()

    @property
    def batch(self) -> int:
        return DEFAULT_WINDOW // 2

    def on_arrived(self, items: int = 1) -> None:
        before = self.arrived
        super().on_arrived(items)
        first_items = self._first_items
        if not first_items or before < first_items[0]:
            return
        while first_items and before >= first_items[0]:
            first_items.popleft()
        (count, since), now = self._idle, self._clock()
        if count == before and now - since >= _LEAST_WAIT_SECONDS:
            self._awaited = before, now, now - since
        elif before >= self._narrowed_at:
            self._is_behind = True  # perhaps: the event loop knows what is consumed

    def on_consumed(self, items: int = 1) -> int:
        self.consumed += items
        waiting, now = self.arrived - self.consumed, self._clock()
        if not waiting:
            self._idle = self.consumed, now
        if self._is_behind:
            self._is_behind = False
            if 2 * waiting > self.window:
                self.window = max(self.window // 2, DEFAULT_WINDOW)
                self._narrowed_at = self.requested
        if self._awaited is not None and self.consumed - self._awaited[0] >= self.batch:
            before, came_at, waited = self._awaited
            self._awaited = None
            missed = waited * (self.consumed - before) / max(now - came_at, 1e-6)
            if missed >= self.window * _LEAST_GROWTH:
                self._grow(int(missed * _GROWTH))
        requested = self.requested
        more = self._request_more()
        if more:
            self._first_items.append(requested)
        self._count()
        return more

    def end(self) -> None:
        """Nothing more arrives."""
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
