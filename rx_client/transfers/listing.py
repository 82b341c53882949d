"""A long listing that goes on after the loss of its connection, behind the last name that it had."""

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from shared.errors import ProtocolError, is_retryable

__all__ = ["resumed"]


def resumed(names: Observable[str]) -> Observable[str]:
    """The names of a listing, each once, listed again after a transient failure.

    Only while the server keeps to the order of the names' bytes, as names could get lost otherwise; and only after an
    attempt that has listed something new, so that a server that is gone for good is an error.
    """

    def subscribe(_: object) -> Observable[str]:
        progress = _Progress()

        def again_or_end(error: Exception, _: object) -> Observable[str | Exception]:
            return reactivex.throw(error) if progress.may_go_on(error) else reactivex.just(error)

        attempts: Observable[str | Exception] = reactivex.defer(lambda _: progress.begin(names)).pipe(
            ops.filter(progress.is_new), ops.catch(again_or_end), ops.retry()
        )
        return attempts.pipe(ops.map(_name_or_raise))

    return reactivex.defer(subscribe)


class _Progress:
    """How far the listing has come, over all attempts."""

    def __init__(self) -> None:
        self._reached = b""  # by the attempts before
        self._last = b""  # in this attempt
        self._is_ordered = True

    def begin(self, names: Observable[str]) -> Observable[str]:
        self._reached, self._last = max(self._reached, self._last), b""
        return names

    def is_new(self, name: str) -> bool:
        key = name.encode()
        if key <= self._last:
            if self._reached:
                raise ProtocolError("the server lists its files in another order than before")
            self._is_ordered = False
        self._last = key
        return key > self._reached

    def may_go_on(self, error: Exception) -> bool:
        return self._is_ordered and is_retryable(error) and self._last > self._reached


def _name_or_raise(item: str | Exception) -> str:
    if isinstance(item, Exception):
        raise item
    return item
