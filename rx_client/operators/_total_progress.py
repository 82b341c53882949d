"""The progress of many transfers together."""

from collections.abc import Callable
from typing import TypeVar

from reactivex import Observable, abc

from ..events import Completed, Failed, Progress, Skipped, Started, TotalProgress
from ..rx.observables import LoopObservable, loop_of

__all__ = ["total_progress"]

T = TypeVar("T")


def total_progress(total: int | None = None) -> Callable[[Observable[T]], Observable[T | TotalProgress]]:
    """Emits a `TotalProgress` in place of each `Started` and `Progress` of merged transfers, and after each end of one.

    All other items are emitted as they are. Transfers are told apart by their events' `name`, so no two of them may
    have the same at a time; what is kept grows with those under way, not with those that have ended. One that ends
    without an event, as one that a user cancels, counts as under way: emit `Skipped(name, reason)` for it.
    `progress_every` and `with_rate` work on the result.

    ::

        source          -Sa--Pa---Sb--Pb--Ca------Cb-----|
                        [      total_progress()          ]
        result          -T---T----T---T---CaT-----CbT----|
                         (T: the bytes of `a` and `b`)

    Example:
        >>> a = reactivex.of(Started(None, 10, 0, name="a"), Progress(10, 10, name="a"))
        >>> b = reactivex.of(Started(None, 30, 5, name="b"), Progress(9, 30, name="b"))
        >>> await reactivex.concat(a, b).pipe(total_progress())
        TotalProgress(transferred=19, total=40, name='b', moved=14, active=2)

    Args:
        total: The bytes that all of it will have, where that is known beforehand; from a listing, say. Without it, the
            `total` of what is emitted is of those that have begun.

    Returns:
        An operator whose observable completes with the source.

    Raises (through `on_error`):
        Exception: The source's error.
    """

    def _total_progress(source: Observable[T]) -> Observable[T | TotalProgress]:
        def subscribe(
            observer: abc.ObserverBase[T | TotalProgress], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            sum_ = _Sum(total)

            def on_next(item: T) -> None:
                match item:
                    case TotalProgress():
                        observer.on_next(item)
                        return
                    case Started(resumed_from=position):
                        sum_.begin(item.name, position, item.total)
                    case Progress(transferred=position):
                        sum_.move(item.name, position, item.total)
                    case Completed(info=info):
                        sum_.complete(info.name, info.size)
                        observer.on_next(item)
                    case Failed():
                        sum_.fail(item.name)
                        observer.on_next(item)
                    case Skipped():
                        sum_.skip(item.name)
                        observer.on_next(item)
                    case _:
                        observer.on_next(item)
                        return
                observer.on_next(sum_.now())

            return source.subscribe(on_next, observer.on_error, observer.on_completed, scheduler=scheduler)

        return LoopObservable(subscribe, loop_of(source))

    return _total_progress


class _Sum:
    """What is known of the transfers of one subscription; those that have ended are a few numbers only."""

    def __init__(self, expected: int | None) -> None:
        self._expected = expected
        self._active: dict[str, tuple[int, int | None]] = {}  # durable bytes, and all of them
        self._name = ""
        self._ended_bytes = self._moved = 0
        self._completed = self._failed = self._skipped = 0

    def begin(self, name: str, position: int, total: int | None) -> None:
        self._name = name
        self._active[name] = position, total

    def move(self, name: str, position: int, total: int | None) -> None:
        self._name = name
        before, _ = self._active.get(name, (0, None))
        self._moved += max(position - before, 0)
        self._active[name] = position, total

    def complete(self, name: str, size: int) -> None:
        self._name = name
        before, _ = self._active.pop(name, (size, None))
        self._moved += max(size - before, 0)
        self._ended_bytes += size
        self._completed += 1

    def fail(self, name: str) -> None:
        self._name = name
        self._active.pop(name, None)
        self._failed += 1

    def skip(self, name: str) -> None:
        self._name = name
        self._active.pop(name, None)
        self._skipped += 1

    def now(self) -> TotalProgress:
        totals = [total for _, total in self._active.values()]
        known = [total for total in totals if total is not None]
        begun = self._ended_bytes + sum(known) if len(known) == len(totals) else None
        return TotalProgress(
            self._ended_bytes + sum(position for position, _ in self._active.values()),
            begun if self._expected is None else self._expected,
            name=self._name,
            moved=self._moved,
            active=len(self._active),
            completed=self._completed,
            failed=self._failed,
            skipped=self._skipped,
        )
