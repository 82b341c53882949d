"""Keeps rsocket's log for what somebody should read."""

import logging
import time
from typing import Final

__all__ = ["limit_repeats", "quiet_rsocket"]

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
# What of ours may be said for each connection is said of so many of them in that time.
_REPEATS: Final = 10


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


class _Repeats(logging.Filter):
    """Drops what is said too often, by its wording: who connects again and again must not fill the disk either."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        wording, now = str(record.msg), time.monotonic()
        since, count = self.said.get(wording, (now, 0))
        if now - since >= _SECONDS_BETWEEN:
            since, count = now, 0
        self.said[wording] = since, count + 1
        if count + 1 == _REPEATS:
            record.msg = f"{wording}; more of this kind isn't logged for a minute"
        return count < _REPEATS


_FILTER: Final = _Sparse()
_REPEATED: Final = _Repeats()


def quiet_rsocket() -> None:
    """Stops rsocket's logger from reporting normal cancels and disconnects, and from repeating itself."""
    logging.getLogger("pyrsocket").addFilter(_FILTER)  # adding the same filter again changes nothing


def limit_repeats(*loggers: str) -> None:
    """From now on, each wording of a warning or error of these loggers is logged ten times in a minute at the most."""
    _REPEATED.said.clear()
    for name in loggers:
        logging.getLogger(name).addFilter(_REPEATED)
