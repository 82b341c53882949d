"""Keeps rsocket's log for what somebody should read."""

import logging
import time
from typing import Final

__all__ = ["quiet_rsocket"]

# Each of these is what rsocket 0.4.20 says, at WARNING or ERROR, of a cancel or a disconnect that went as it should.
_NORMAL: Final = frozenset(
    {
        "%s: Dropping frame from unknown stream %d",
        "Runtime error canceling task: %s",
        "Error",  # with the traceback of a disconnect that the other end of the code reports, too
    }
)
# Whatever a peer can make rsocket say, it can make it say a million times.
_SECONDS_BETWEEN: Final = 60.0


class _Sparse(logging.Filter):
    """Drops what is normal, and all but the first in a minute of what isn't, by its wording."""

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        wording = str(record.msg)
        now = time.monotonic()
        if wording in _NORMAL or now - self._said_at.get(wording, -_SECONDS_BETWEEN) < _SECONDS_BETWEEN:
            return False
        if len(self._said_at) > 100:
            self._said_at.clear()  # rsocket has some thirty wordings; one with a peer's words in it must not pile up
        self._said_at[wording] = now
        return True


_FILTER: Final = _Sparse()


def quiet_rsocket() -> None:
    """Stops rsocket's logger from reporting normal cancels and disconnects, and from repeating itself."""
    logging.getLogger("pyrsocket").addFilter(_FILTER)  # adding the same filter again changes nothing
