"""Looks after a server's connections: twice a second after those with something under way, seldom after the others.

Thousands of idle clients would else cost more than what the busy ones do.
"""

from collections import OrderedDict
from itertools import islice
from typing import Final

from shared.presence import RunClock

from .connection import ServerConnection

__all__ = ["WATCH_SECONDS", "ConnectionWatch"]

WATCH_SECONDS: Final = 0.5
"""How often `ConnectionWatch.check` is to be called."""

# A quiet connection is looked at this often in the time that it may be silent for.
_LOOKS_PER_SILENCE: Final = 16


class ConnectionWatch:
    """The connections of one server.

    Args:
        clock: Counts the time during which the server ran.
        idle_seconds: How long a connection may be silent, at least.
    """

    def __init__(self, clock: RunClock, idle_seconds: float) -> None:
        self._clock = clock
        # Each quiet connection has its turn at one of so many calls of `check`.
        self._calls = max(1, int(idle_seconds / _LOOKS_PER_SILENCE / WATCH_SECONDS))
        self._active: dict[ServerConnection, None] = {}
        self._quiet: OrderedDict[ServerConnection, None] = OrderedDict()

    def add(self, connection: ServerConnection) -> None:
        """The connection was made, or has something under way again."""
        self._quiet.pop(connection, None)
        self._active[connection] = None

    def remove(self, connection: ServerConnection) -> None:
        """The connection has ended."""
        self._quiet.pop(connection, None)
        self._active.pop(connection, None)

    def check(self) -> None:
        """Closes connections that are silent, or take nothing, for too long."""
        now = self._clock.time()
        for connection in list(islice(self._quiet, -(-len(self._quiet) // self._calls))):
            self._quiet.move_to_end(connection)
            connection.check_quiet(now)
        for connection in list(self._active):
            if connection.check(now):
                del self._active[connection]
                self._quiet[connection] = None
