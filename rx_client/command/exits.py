"""The exit codes; the package's docstring has their meaning for scripts."""

from enum import IntEnum

__all__ = ["Exit"]


class Exit(IntEnum):
    """What the process's exit code says."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SOME_FAILED = 3
    NOT_FOUND = 4
    REFUSED = 5
    NO_SERVER = 6
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
