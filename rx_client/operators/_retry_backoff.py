"""Retry with exponential backoff and jitter, for as long as the attempts get further."""

import random as _random
from collections.abc import Callable
from typing import TypeVar, cast

from reactivex import Observable, abc
from reactivex.disposable import SerialDisposable, SingleAssignmentDisposable

from shared.errors import is_retryable

from ..events import Progress, Retrying, Started, TransferEvent
from ..rx.observables import TransferObservable, deliver, like, time_scheduler

__all__ = ["retry_backoff"]

T = TypeVar("T")


def retry_backoff(
    attempts: int = 5,
    *,
    base: float = 0.5,
    cap: float = 30.0,
    jitter: float = 1.0,
    when: Callable[[Exception], bool] = is_retryable,
    random: Callable[[], float] = _random.random,
    scheduler: abc.SchedulerBase | None = None,
) -> Callable[[Observable[T]], Observable[T]]:
    """Subscribes to the source again after a failure that may pass; for a transfer, `Retrying` tells of it.

    The n-th retry comes after `min(cap, base * 2 ** (n - 1))` seconds, of which the fraction `jitter` is random: with
    1.0 it's the "full jitter" of AWS's article "Exponential Backoff And Jitter", which spreads the clients of a server
    that comes back best.

    The count starts again, and with it the delays, when an attempt got further than every one before: when `Progress`,
    or `Started` with what a lost receipt didn't tell, names more bytes than any event so far. So a long transfer
    survives any number of losses, and one that is stuck gives up. Items that aren't transfer events tell nothing of the
    kind, as a cold source emits them again: there `attempts` is for the whole subscription.

    `Retrying` is emitted before each wait if the source is a `TransferObservable`, which `upload_from`, `download_to`
    and this package's operators return, or has emitted a `TransferEvent`; other sources' items are passed on alone.

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
        attempts: How many retries may follow each other without getting further; 0 for none.
        base: Seconds before the first retry.
        cap: The most seconds before any retry.
        jitter: The random fraction of each delay, 0.0 to 1.0.
        when: Whether a failure may pass; what it raises is passed on in the failure's place.
        random: Gives floats from 0.0 up to 1.0; for tests.
        scheduler: For the delays.

    Returns:
        An operator whose observable emits the source's items, those of failed attempts included, and completes with the
        source. Disposing it also ends a wait.

    Raises:
        ValueError: An argument is out of its range.

    Raises (through `on_error`):
        Exception: The source's last error, unchanged, when `when` refuses it or the attempts are used up.
    """
    if attempts < 0:
        raise ValueError(f"attempts must be 0 or more, not {attempts}")
    if not (base >= 0 and cap >= 0):
        raise ValueError(f"base and cap must be 0 seconds or more, not {base} and {cap}")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter must be 0.0 to 1.0, not {jitter}")

    def delay_before(retry: int) -> float:
        # The exponent is bounded because a float's is.
        delay = min(cap, base * 2.0 ** min(retry - 1, 1000))
        return delay * (1 - jitter * random())

    def _retry_backoff(source: Observable[T]) -> Observable[T]:
        def subscribe(observer: abc.ObserverBase[T], scheduler_: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            timers = time_scheduler(scheduler, scheduler_)
            current = SerialDisposable()
            is_transfer = isinstance(source, TransferObservable)
            failures = furthest = 0

            def on_next(item: T) -> None:
                nonlocal is_transfer, failures, furthest
                match item:
                    case Progress(transferred=reached) | Started(resumed_from=reached) if reached > furthest:
                        furthest, failures = reached, 0
                    case _:
                        pass
                is_transfer = is_transfer or isinstance(item, TransferEvent)
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
                if is_transfer:
                    deliver(observer, cast(T, Retrying(failures, delay, error)))
                current.disposable = timers.schedule_relative(delay, attempt)

            def attempt(_: abc.SchedulerBase | None = None, __: object = None) -> None:
                # In place before the source is subscribed to, which may fail at once and set the next timer.
                subscription = SingleAssignmentDisposable()
                current.disposable = subscription
                subscription.disposable = source.subscribe(
                    on_next, on_error, observer.on_completed, scheduler=scheduler_
                )

            attempt()
            return current

        return like(source, subscribe)

    return _retry_backoff
