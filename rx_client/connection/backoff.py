"""When the next attempt to connect may begin, however often a connection is asked for: no I/O, no clock.

If the delay began anew with each connection, or with each request for one, an application that retries at once would
make hundreds of connections a second to a server that accepts them and then hangs up.
"""

import random
from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """The delays between attempts, counted from the beginning of one to the beginning of the next.

    They double from `base` to `cap`, until a connection has lived for `cap` seconds: after that the next attempt is
    immediate, as it must be when a server was restarted. So attempts may follow each other quickly only a few times,
    and what is cut again and again, at whatever age, ends up with one attempt in about `cap` seconds.

    Args:
        base: Seconds; the first delay.
        cap: Seconds; the longest delay.
        jitter: Gives the part of a delay that is waited for; at random from half of it to all of it, if not for tests.
    """

    def __init__(self, base: float, cap: float, jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0)) -> None:
        self._base = base
        self._cap = cap
        self._jitter = jitter
        self._delay = 0.0
        self._began_at = 0.0
        self._next_at: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until the next attempt may begin; 0 if it may now."""
        return 0.0 if self._next_at is None else max(0.0, self._next_at - now)

    def begin(self, now: float) -> None:
        """An attempt begins."""
        self._delay = min(max(2 * self._delay, self._base), self._cap)
        self._began_at = now
        self._next_at = now + self._delay * self._jitter()

    def lost(self, now: float) -> None:
        """The connection that the last attempt made has ended."""
        if now - self._began_at >= self._cap:
            self._delay, self._next_at = 0.0, None
