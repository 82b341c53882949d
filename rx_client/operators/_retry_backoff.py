"""Retry with exponential backoff and jitter, for as long as the attempts make progress."""

import random as _random
from collections.abc import Callable
from typing import TypeVar, cast

from reactivex import Observable, abc
from reactivex.disposable import SerialDisposable, SingleAssignmentDisposable

from ..errors import is_transient
from ..events import Progress, Retrying, Started, TransferEvent
from ..rx.loops import time_scheduler
from ..rx.observables import TransferObservable, deliver, like

__all__ = ["retry_backoff"]

T = TypeVar("T")


def retry_backoff(
    attempts: int = 5,
    *,
    base: float = 0.5,
    cap: float = 30.0,
    jitter: float = 1.0,
    when: Callable[[Exception], bool] = is_transient,
    random: Callable[[], float] = _random.random,
    scheduler: abc.SchedulerBase | None = None,
) -> Callable[[Observable[T]], Observable[T]]:
    """Subscribes to the source again after a transient failure; for a transfer, emits `Retrying` before each wait.

    The n-th retry comes after `min(cap, base * 2 ** (n - 1))` seconds, of which the fraction `jitter` is random. 1.0 is
    the "full jitter" of AWS's article "Exponential Backoff And Jitter", which best spreads the clients of a server that
    has restarted.

    The count of retries, and with it the delay, starts again when an attempt gets further than all before: when
    `Progress` or `Started` has more bytes than any earlier event. (`Started` has, when a receipt was lost.) So a long
    transfer survives any number of losses, and one without progress fails. Other items don't show progress, as a cold
    source emits them again: for such a source `attempts` counts for the whole subscription.

    A source is a transfer if it is a `TransferObservable`, as `upload_from`, `download_to` and this package's operators
    on them return it, or has emitted a `TransferEvent`. Of other sources only their own items are emitted.

    ::

        source          -S--P--X       S--X          S--P--C-|
                        [ retry_backoff(base=1, jitter=0)    ]
        result          -S--P--R-------S--R----------S--P--C-|
                               <- 1 s ->  <-  2 s  -->

    Example:
        >>> failures = iter([ConnectionError("lost"), ConnectionError("lost")])
        >>> def once_more(_):
        ...     error = next(failures, None)
        ...     return reactivex.throw(error) if error else reactivex.just("done")
        >>> may_pass = lambda error: isinstance(error, ConnectionError)
        >>> await reactivex.defer(once_more).pipe(retry_backoff(base=0.01, when=may_pass))
        'done'

    Args:
        attempts: The most retries in a row without progress; 0 for none.
        base: Seconds before the first retry.
        cap: The most seconds before any retry.
        jitter: The random fraction of each delay, 0.0 to 1.0.
        when: Whether a failure is transient; by default `is_transient`, so that `pipe(ops.timeout(5), retry_backoff())`
            tries again after five seconds without an item.
        random: Returns floats from 0.0 up to 1.0; for tests.
        scheduler: Times the delays; by default the subscription's, else the running loop's.

    Returns:
        An operator whose observable emits the source's items, those of failed attempts included, and completes with the
        source. Disposing it also ends a wait.

    Raises:
        ValueError: An argument is out of its range.

    Raises (through `on_error`):
        Exception: The source's last error, unchanged, when it isn't transient or no attempt is left; or what `when` or
            `random` raised.
        WrongLoop: There is neither a scheduler nor a running event loop.
    """
    if attempts < 0:
        raise ValueError(f"attempts must be 0 or more, not {attempts}")
    if not (base >= 0 and cap >= 0):
        raise ValueError(f"base and cap must be 0 seconds or more, not {base} and {cap}")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must be 0.0 to 1.0, not {jitter}")

    def delay_before(retry: int) -> float:
        # A larger exponent would overflow a float.
        delay = min(cap, base * 2.0 ** min(retry - 1, 1000))
        return delay * (1 - jitter * random())

    def _retry_backoff(source: Observable[T]) -> Observable[T]:
        def subscribe(observer: abc.ObserverBase[T], scheduler_: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            timers = time_scheduler(scheduler, scheduler_)
            current = SerialDisposable()
            # Of a transfer, the file's name; None as long as it isn't known to be one.
            name = source.name if isinstance(source, TransferObservable) else None
            failures = furthest = 0

            def on_next(item: T) -> None:
                nonlocal name, failures, furthest
                match item:
                    case Progress(transferred=reached) | Started(resumed_from=reached) if reached > furthest:
                        furthest, failures = reached, 0
                    case _:
                        pass
                if isinstance(item, TransferEvent):
                    name = item.name
                observer.on_next(item)

            def on_error(error: Exception) -> None:
                nonlocal failures
                try:
                    if failures == attempts or not when(error):
                        observer.on_error(error)
                        return
                    delay = delay_before(failures + 1)
                except Exception as raised:
                    observer.on_error(raised)
                    return
                failures += 1
                if name is not None:
                    deliver(observer, cast(T, Retrying(failures, delay, error, name=name)))
                current.disposable = timers.schedule_relative(delay, attempt)

            def attempt(_: abc.SchedulerBase | None = None, __: object = None) -> None:
                # Assigned before the source is subscribed to, which may fail at once and assign the next timer.
                subscription = SingleAssignmentDisposable()
                current.disposable = subscription
                subscription.disposable = source.subscribe(
                    on_next, on_error, observer.on_completed, scheduler=scheduler_
                )

            attempt()
            return current

        return like(source, subscribe)

    return _retry_backoff
