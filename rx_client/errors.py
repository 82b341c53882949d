"""Which failures of a pipe may pass: those of this project, and RxPY's own."""

from shared.errors import is_retryable

__all__ = ["is_transient"]


def is_transient(error: Exception) -> bool:
    """Whether an attempt that failed with `error` may succeed later: `is_retryable`, or it took too long for RxPY.

    `ops.timeout` ends with a bare `Exception("Timeout")`, which nothing but its text distinguishes from others.
    """
    return is_retryable(error) or (type(error) is Exception and error.args == ("Timeout",))
