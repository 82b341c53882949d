"""The operators that the verbs share: how a transfer is retried, what its failure is, and the total of many."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, cast

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from shared import AlreadyExists, ClientClosed, ConnectionFailed, ConnectionLost, Unauthenticated

from ..events import EXISTS, Failed, Skipped, TotalProgress, TransferEvent, TreeEvent
from ..operators import progress_every, retry_backoff, total_progress, with_rate
from ..transfers.folders import LEFT_OUT
from .failures import UnfitError

__all__ = ["Operator", "existing", "failure_alone", "fit_or_failed", "steady", "with_total"]

T = TypeVar("T")
U = TypeVar("U")
Operator = Callable[[Observable[T]], Observable[U]]


def steady(retries: int, period: float) -> Operator[TransferEvent, TransferEvent]:
    """For each transfer: resumes it after a transient failure, and adds its rate to what a display has time for."""
    return reactivex.compose(retry_backoff(retries), with_rate(), progress_every(period))


def failure_alone(name: str) -> Operator[T, T | Failed]:
    """Makes an event of a failure, so that others go on; not of one that the others would share."""

    def caught(error: Exception, _: Observable[T | Failed]) -> Observable[T | Failed]:
        is_lost = isinstance(error, ConnectionLost) and not isinstance(error, ClientClosed)
        is_shared = isinstance(error, ConnectionFailed | Unauthenticated | BrokenPipeError) and not is_lost
        return reactivex.throw(error) if is_shared else reactivex.just(Failed(name, error))

    def alone(source: Observable[T | Failed]) -> Observable[T | Failed]:
        return source.pipe(ops.catch(caught))

    return alone


def existing(*, is_failure: bool) -> Operator[TreeEvent, TreeEvent]:
    """Makes a failure of each file that exists already, or skips it, whatever a tree or a single transfer does."""

    def decided(event: TreeEvent) -> TreeEvent:
        match event:
            case Skipped(name, reason) if is_failure and reason == EXISTS:
                return Failed(name, AlreadyExists(f"{name} exists already", name=name))
            case Failed(name, AlreadyExists()) if not is_failure:
                return Skipped(name, EXISTS)
            case _:
                return event

    return ops.map(decided)


def fit_or_failed(advice: str) -> Callable[[T], T | Failed]:
    """For `ops.map`: makes a failure of a file that is skipped since it can't be where it has to, as by its name."""

    def decided(event: T) -> T | Failed:
        if isinstance(event, Skipped) and event.reason not in LEFT_OUT:
            return Failed(event.name, UnfitError(f"{event.reason}; {advice}"))
        return event

    return decided


def with_total(
    period: float, expected: Observable[int] | None = None
) -> Operator[TreeEvent, TreeEvent | TotalProgress]:
    """Adds a `TotalProgress` to the events of the files themselves, every `period` seconds, and a last one.

    Args:
        period: Seconds.
        expected: Emits the bytes of all files when they are counted, which goes on beside the transfers; nothing if
            they can't be. None for those of the files that have begun.
    """

    def total_of(events: Observable[TreeEvent]) -> Observable[TotalProgress]:
        summed = events.pipe(total_progress(), ops.filter(lambda event: isinstance(event, TotalProgress)))
        totals = cast("Observable[TotalProgress]", summed)
        if expected is None:
            return totals
        known: Observable[int | None] = expected
        known = known.pipe(ops.catch(reactivex.empty()), ops.start_with(None))
        pairs: Observable[tuple[TotalProgress, int | None]] = totals.pipe(ops.with_latest_from(known))
        return pairs.pipe(ops.map(lambda pair: replace(pair[0], total=pair[1])))

    def both(events: Observable[TreeEvent]) -> Observable[TreeEvent | TotalProgress]:
        return reactivex.merge(events, total_of(events).pipe(with_rate(), progress_every(period)))

    return ops.publish(both)
