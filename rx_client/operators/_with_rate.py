"""Bytes a second and the time that is left, for displays."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar, cast

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, SerialDisposable

from ..events import Completed, Failed, Progress, Retrying, Started, TotalProgress
from ..rx.loops import time_scheduler
from ..rx.observables import deliver, like

__all__ = ["with_rate"]

T = TypeVar("T")

# A transfer that stands still emits nothing: then its last progress is emitted again that often, until the rate is 0.
_REPEAT_SECONDS: Final = 1.0
# So that what is kept doesn't grow with the number of events.
_SAMPLES_PER_WINDOW: Final = 50


def with_rate(
    window: float = 5.0, *, scheduler: abc.SchedulerBase | None = None
) -> Callable[[Observable[T]], Observable[T]]:
    """Fills in `bytes_per_second` and `seconds_left` of each `Progress`; all other items are emitted as they are.

    The rate is that of the last `window` seconds, of the bytes that have become durable since the subscription: what a
    resumed transfer had before doesn't count, and a retry that goes back to a lower offset makes no negative rate. It
    is None while no time has passed. Where no event comes for a second, the last `Progress` is emitted once more with a
    lower rate, until that is 0, so that a display never shows the speed of what stands still; not during the wait that
    `Retrying` announces. Merged transfers are told apart by `name`; after `total_progress` it is the rate of them all.

    ::

        source          -S-----P10----P20--------------C-|
                        [          with_rate()           ]
        result          -S-----P10----P20--P20--P20----C-|
        a second               10     10   6.7  5

    Example:
        >>> files = reactivex.of(Started(None, 9, 0, name="a"), Progress(9, 9, name="a"))
        >>> last = await files.pipe(ops.delay(0.01), with_rate())
        >>> last.transferred, last.seconds_left in (0, None)
        (9, True)

    Args:
        window: Seconds that the rate is of, more than 0. A longer window makes a steadier rate.
        scheduler: Tells the time; by default the subscription's, else the running loop's.

    Returns:
        An operator whose observable completes with the source.

    Raises:
        ValueError: `window` isn't positive.

    Raises (through `on_error`):
        Exception: The source's error.
        WrongLoop: There is neither a scheduler nor a running event loop.
    """
    if not window > 0:
        raise ValueError(f"the window must be more than 0 seconds, not {window}")

    def _with_rate(source: Observable[T]) -> Observable[T]:
        def subscribe(observer: abc.ObserverBase[T], scheduler_: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            timers = time_scheduler(scheduler, scheduler_)
            start = timers.now
            meters: dict[str | None, _Meter] = {}
            timer = SerialDisposable()
            is_timed = False

            def now() -> float:
                return (timers.now - start).total_seconds()

            def meter_of(name: str | None) -> _Meter:
                return meters.setdefault(name, _Meter(window))

            def rated(event: Progress) -> Progress:
                nonlocal is_timed
                meter = meter_of(None if isinstance(event, TotalProgress) else event.name)
                rate = meter.rate_at(event, now())
                if not is_timed:
                    is_timed = True
                    timer.disposable = timers.schedule_relative(_REPEAT_SECONDS, on_time)
                missing = None if event.total is None else max(event.total - event.transferred, 0)
                left = missing / rate if rate and missing is not None else None
                return replace(event, bytes_per_second=rate, seconds_left=left)

            def on_time(_: abc.SchedulerBase, __: object = None) -> None:
                nonlocal is_timed
                is_timed = False
                silent = [meter.last for meter in meters.values() if meter.is_silent(now())]
                for event in silent:
                    if event is not None:
                        deliver(observer, cast(T, rated(event)))
                if not is_timed and any(meter.is_moving for meter in meters.values()):
                    is_timed = True
                    timer.disposable = timers.schedule_relative(_REPEAT_SECONDS, on_time)

            def on_next(item: T) -> None:
                match item:
                    case Progress():
                        observer.on_next(cast(T, rated(item)))
                        return
                    case Started(resumed_from=position):
                        meter_of(item.name).begin(position, now())
                    case Retrying():
                        meter_of(item.name).is_moving = False
                    case Completed() | Failed():
                        meters.pop(item.name, None)
                    case _:
                        pass
                observer.on_next(item)

            def on_error(error: Exception) -> None:
                timer.dispose()
                observer.on_error(error)

            def on_completed() -> None:
                timer.dispose()
                observer.on_completed()

            return CompositeDisposable(source.subscribe(on_next, on_error, on_completed, scheduler=scheduler_), timer)

        return like(source, subscribe)

    return _with_rate


@dataclass(slots=True)
class _Meter:
    """How far one transfer, or all of them, has come at some moments of the window.

    Attributes:
        last: The last progress.
        is_moving: Whether the last rate was more than 0, or isn't known.
    """

    window: float
    last: Progress | None = None
    is_moving: bool = False
    _last_at: float = 0.0
    _moved: int = 0
    _position: int | None = None
    _samples: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]])

    def begin(self, position: int, now: float) -> None:
        """An attempt begins at `position`."""
        self._position = position
        self._take_sample(now)

    def rate_at(self, event: Progress, now: float) -> float | None:
        """The rate now, at this event."""
        if isinstance(event, TotalProgress):
            self._moved = event.moved
        elif self._position is not None:
            self._moved += max(event.transferred - self._position, 0)
        self._position, self.last, self._last_at = event.transferred, event, now
        self._take_sample(now)
        begun, moved_before = self._samples[0]
        rate = (self._moved - moved_before) / (now - begun) if now > begun else None
        self.is_moving = rate is None or rate > 0
        return rate

    def is_silent(self, now: float) -> bool:
        """Whether its display should be told that nothing has moved."""
        return self.is_moving and now - self._last_at >= _REPEAT_SECONDS

    def _take_sample(self, now: float) -> None:
        samples = self._samples
        if not samples or now - samples[-1][0] >= self.window / _SAMPLES_PER_WINDOW:
            samples.append((now, self._moved))
        while len(samples) > 1 and samples[1][0] <= now - self.window:
            samples.popleft()
