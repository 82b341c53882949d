"""A transfer's events at given times."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from reactivex import abc
from reactivex.disposable import CompositeDisposable

from ..events import Completed, Progress, Retrying, Started, TransferEvent
from ..rx.loops import time_scheduler
from ..rx.observables import deliver

__all__ = ["Timed", "play"]

Timed = tuple[float, TransferEvent | Exception]
"""Seconds after the subscription, and what is emitted then."""


def play(name: str, script: Sequence[Timed], scheduler: abc.SchedulerBase | None) -> abc.Subscription[TransferEvent]:
    """Emits what the script of the file `name` says, timed by `scheduler`, else by the subscription's, else the loop.

    An error ends it, and Completed completes it; without either it stays open.

    Raises:
        TypeError: An entry is no pair of a number and an event or error.
        ValueError: A time is less than 0, or no finite number.
    """
    for entry in script:
        _check(entry)

    def subscribe(
        observer: abc.ObserverBase[TransferEvent], scheduler_: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        timers = time_scheduler(scheduler, scheduler_)

        def emit(said: TransferEvent | Exception) -> Callable[[abc.SchedulerBase, object], None]:
            def act(_: abc.SchedulerBase, __: object = None) -> None:
                if isinstance(said, Exception):
                    observer.on_error(said)
                    return
                deliver(observer, said)
                if isinstance(said, Completed):
                    observer.on_completed()

            return act

        return CompositeDisposable(
            *(timers.schedule_relative(after, emit(_named(said, name))) for after, said in script)
        )

    return subscribe


def _check(entry: object) -> None:
    match entry:
        case (int() | float() as after, Started() | Progress() | Retrying() | Completed() | Exception()):
            if not 0 <= after < math.inf:
                raise ValueError(f"a script's times are seconds after the subscription, 0 or more, not {after!r}")
        case _:
            raise TypeError(f"a script has pairs such as (1.5, Progress(500, 1000)), unlike {entry!r}")


def _named(said: TransferEvent | Exception, name: str) -> TransferEvent | Exception:
    return replace(said, name=name) if isinstance(said, Started | Progress | Retrying) and not said.name else said
