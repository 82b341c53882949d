"""Keeps rsocket's log for what somebody should read."""

import logging
from typing import Final

__all__ = ["quiet_rsocket"]

# Each of these is what rsocket 0.4.20 says, at WARNING or ERROR, of a cancel or a disconnect that went as it should.
_NORMAL: Final = (
    "%s: Dropping frame from unknown stream %d",
    "Runtime error canceling task: %s",
)


class _NotNormal(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg in _NORMAL:
            return False
        # Said with the traceback of the disconnect that the other end already reports.
        return not (record.msg == "Error" and record.exc_info)


_FILTER: Final = _NotNormal()


def quiet_rsocket() -> None:
    """Stops rsocket's logger from reporting normal cancels and disconnects as warnings and errors."""
    logging.getLogger("pyrsocket").addFilter(_FILTER)  # adding the same filter again changes nothing
