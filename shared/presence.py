"""Time during which the event loop ran, to judge peers by.

A process may stand still: it is stopped or suspended, in a debugger, or a callback blocks its loop. What its peers sent
meanwhile waits in the sockets. By the time that passed they would have been silent, so they are judged by the time
during which they could be heard, and only when what waits has been read.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final

__all__ = ["RunClock", "Standstill", "TimeoutWhileRunning"]

_NOTHING: Final = object()
_LATE_PERIODS: Final = 2
_TICKS_PER_TIMEOUT: Final = 20
_LEAST_TICK_SECONDS: Final = 0.001


class RunClock:
    """Counts the seconds during which the event loop ran: a long pause between two ticks counts as two periods.

    Args:
        period: Seconds between two ticks.
        clock: Gives the time in seconds.
    """

    def __init__(self, period: float, clock: Callable[[], float]) -> None:
        self._most = _LATE_PERIODS * period
        self._clock = clock
        self._ticked_at = clock()
        self._counted = 0.0
        self._is_late = False

    def time(self) -> float:
        """Seconds since the clock was made."""
        return self._counted + min(self._clock() - self._ticked_at, self._most)

    def tick(self) -> bool:
        """To be called once in each period; whether what had come by the last tick, or in time, has been read.

        It may not have been at a late tick. By the next one it has, even if that is late, too: a loop whose callbacks
        are always slow judges as well.
        """
        now = self._clock()
        was_late, self._is_late = self._is_late, now - self._ticked_at > self._most
        self._counted, self._ticked_at = self.time(), now
        return was_late or not self._is_late


class Standstill:
    """How long a value has been the same."""

    __slots__ = ("_looked_at", "_since", "_value")

    def __init__(self) -> None:
        self._value: object = _NOTHING
        self._since = self._looked_at = 0.0

    def look(self, now: float, value: object, age: float = 0.0) -> float:
        """The seconds, at the time `now`, since the value became what it is, if that was `age` seconds ago.

        It was after the look before that, which found another one.
        """
        if value != self._value:
            is_first = self._value is _NOTHING
            self._value, self._since = value, now if is_first else max(now - age, self._looked_at)
        self._looked_at = now
        return now - self._since


class TimeoutWhileRunning:
    """As `asyncio.timeout`, by the time during which the event loop ran."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._period = max(seconds / _TICKS_PER_TIMEOUT, _LEAST_TICK_SECONDS)
        self._clock = RunClock(self._period, self._loop.time)
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._timer = self._loop.call_later(self._period, self._look)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(exc_type, exc, traceback)

    def _look(self) -> None:
        if self._clock.tick() and self._clock.time() >= self._seconds:
            self._limit.reschedule(self._loop.time())
        else:
            self._timer = self._loop.call_later(self._period, self._look)
