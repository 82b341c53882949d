"""Bounds how often a warning is logged: a peer that can cause one can cause a million."""

import logging
import time
from typing import Final

__all__ = ["limit_repeats", "quiet_rsocket"]

# What rsocket 0.4.20 logs, at WARNING or ERROR, of a normal cancel or disconnect.
_NORMAL: Final = frozenset(
    {
        "%s: Dropping frame from unknown stream %d",
        "Runtime error canceling task: %s",
        "Error",  # with the traceback of a disconnect that the sender or receiver reports as well
    }
)
_WINDOW_SECONDS: Final = 60.0
# rsocket has some thirty messages, and this project fewer; those with a peer's text in them must not accumulate.
_MAX_MESSAGES: Final = 100


class _RepeatLimit(logging.Filter):
    """Drops warnings and errors whose message, without its arguments, is repeated too often.

    Args:
        per_minute: How many of each message pass in a minute.
        notice: Appended to the last one that passes.
        ignored: Messages that never pass.
    """

    def __init__(self, per_minute: int, notice: str = "", ignored: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._per_minute = per_minute
        self._notice = notice
        self._ignored = ignored
        self._counts: dict[str, tuple[float, int]] = {}  # since when, and how many since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        message, now = str(record.msg), time.monotonic()
        if message in self._ignored:
            return False
        since, count = self._counts.get(message, (now, 0))
        if now - since >= _WINDOW_SECONDS:
            since, count = now, 0
        if len(self._counts) > _MAX_MESSAGES:
            self._counts.clear()
        self._counts[message] = since, count + 1
        if count + 1 == self._per_minute:
            record.msg = message + self._notice
        return count < self._per_minute


_RSOCKET: Final = _RepeatLimit(1, ignored=_NORMAL)


def quiet_rsocket() -> None:
    """Stops rsocket's logger from reporting normal cancels and disconnects, and from repeating itself."""
    logging.getLogger("pyrsocket").addFilter(_RSOCKET)  # adding the same filter again changes nothing


def limit_repeats(*loggers: str, per_minute: int = 10) -> None:
    """Lets each warning or error of these loggers pass at most `per_minute` times a minute, from now on."""
    for logger in map(logging.getLogger, loggers):
        logger.filters = [each for each in logger.filters if not isinstance(each, _RepeatLimit)]
        logger.addFilter(_RepeatLimit(per_minute, "; more of this kind isn't logged for a minute"))
