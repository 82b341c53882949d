"""Demand through any pipeline: the credit of an item belongs to the call of `on_next` that delivers it.

RxPY's observables have no demand, and its operators emit other items than they get. Most of them do so inside of the
`on_next` that they were called with, though. So a source that can be slowed down names the credit of its item while
that call takes, and an operator that keeps an item beyond the call holds the credit that is named then, whatever has
become of the item on its way.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from shared.aio import running_loop

__all__ = ["NO_HOLD", "Hold", "ItemCredit", "emitting"]

T = TypeVar("T")

# Of the counts of all credits: each is held for a moment.
_lock: Final = threading.Lock()


class ItemCredit:
    """What a source spent on one item; it goes back when all holders have released it, the source itself included.

    May be held in any thread.

    Args:
        on_released: Called once, when it goes back.
        loop: Where that is called; None for wherever it is released.
    """

    __slots__ = ("_holders", "_loop", "_on_released")

    def __init__(self, on_released: Callable[[], None] | None, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._holders = 1
        self._on_released = on_released
        self._loop = loop

    @property
    def is_held(self) -> bool:
        """Whether it hasn't gone back."""
        return self._holders > 0

    def retain(self) -> None:
        """Adds a holder; ask `is_held` first."""
        with _lock:
            self._holders += 1

    def release(self) -> None:
        """Removes a holder; ask `is_held` first."""
        with _lock:
            self._holders -= 1
            is_last = not self._holders
        if not is_last or self._on_released is None:
            return
        if self._loop is None or self._loop is running_loop():
            self._on_released()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._on_released)


class Hold:
    """The credits that an item on its way holds: mostly one, none if its source can't be slowed down.

    Args:
        held: Each has a holder that the new object stands for.
    """

    __slots__ = ("credits",)

    def __init__(self, *held: ItemCredit) -> None:
        self.credits: Final = held

    def __bool__(self) -> bool:
        return bool(self.credits)

    def emit(self, on_next: Callable[[T], object], item: T) -> None:
        """Delivers `item`, so that the consumer can hold these credits; see `emitting`. They aren't released."""
        before, _current.hold = _current.hold, self
        try:
            on_next(item)
        finally:
            _current.hold = before

    def retain(self, *others: ItemCredit) -> "Hold":
        """Another holder of these credits and of `others`."""
        held = (*self.credits, *(other for other in others if other not in self.credits))
        for credit in held:
            credit.retain()
        return Hold(*held) if held else NO_HOLD

    def release(self) -> None:
        """Undoes one `retain`, or the source's hold."""
        for credit in self.credits:
            credit.release()


NO_HOLD: Final = Hold()
"""Of an item whose source can't be slowed down."""


def emitting() -> Hold:
    """What the item holds that is being delivered in this thread; to be asked inside of `on_next`."""
    return _current.hold


class _Current(threading.local):
    hold: Hold = NO_HOLD


_current: Final = _Current()
