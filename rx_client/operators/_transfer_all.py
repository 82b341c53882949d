"""Many transfers, with a limit on how many run at a time."""

from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import TypeVar

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable, SingleAssignmentDisposable

from shared.aio import running_loop

from ..events import Progress
from ..rx.demand import Hold, ItemCredit, emitting
from ..rx.observables import LoopObservable, loop_of

__all__ = ["transfer_all"]

T = TypeVar("T")


def transfer_all(max_concurrent: int) -> Callable[[Observable[Observable[T]]], Observable[T]]:
    """Subscribes to the transfers that the source emits, in order, and merges their items.

    Unlike RxPY's `merge(max_concurrent=...)`, it starts none after another one has failed. A transfer that waits holds
    the credit of its item, so that a source that can be slowed down (see `map_async`) isn't far ahead; of those of
    another source any number may wait: they are cold, and take a few hundred bytes each. A transfer makes place for the
    next one when the consumer is done with its items, but for Progress. Events have their file's `name`. Use
    `retry_backoff` and the like on each transfer, before they are merged.

    ::

        a               ---1--2--3-|
        b               ----4---5-|
        c                           --6--7-|
        source          -a-b-c-|
                        [ transfer_all(2)           ]
        result          ----1-4-2--35--6--7-|

    Example:
        >>> names = reactivex.of("a.txt", "b.txt", "c.txt")
        >>> done = names.pipe(ops.map(lambda name: reactivex.just(f"{name} is up")), transfer_all(2))
        >>> await done.pipe(ops.to_list())
        ['a.txt is up', 'b.txt is up', 'c.txt is up']

    Args:
        max_concurrent: The most transfers that are subscribed to at a time.

    Returns:
        An operator whose observable completes when the source and all transfers have.

    Raises:
        ValueError: `max_concurrent` is less than 1.

    Raises (through `on_error`):
        Exception: The first error of the source or of a transfer; the other transfers have been disposed of.
    """
    if max_concurrent < 1:
        raise ValueError(f"max_concurrent must be 1 or more, not {max_concurrent}")

    def _transfer_all(source: Observable[Observable[T]]) -> Observable[T]:
        def subscribe(observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            # Transfers emit in their client's loop, the source where it likes.
            lock, loop = RLock(), running_loop()
            upstream = SingleAssignmentDisposable()
            subscriptions = CompositeDisposable(upstream)
            waiting: deque[tuple[Observable[T], Hold]] = deque()
            active, is_starting, is_source_done = 0, False, False

            def start() -> None:
                nonlocal active, is_starting
                with lock:
                    # A transfer that completes while it is subscribed to calls this again: the loop below goes on, and
                    # the stack doesn't grow with each.
                    if is_starting:
                        return
                    is_starting = True
                    while waiting and active < max_concurrent and not subscriptions.is_disposed:
                        active += 1
                        transfer, held = waiting.popleft()
                        run(transfer)
                        held.release()
                    is_starting = False
                    if is_source_done and not active:
                        observer.on_completed()

            def run(transfer: Observable[T]) -> None:
                subscription = SingleAssignmentDisposable()
                subscriptions.add(subscription)

                def on_ended() -> None:
                    nonlocal active
                    with lock:
                        active -= 1
                    subscriptions.remove(subscription)
                    start()

                whole = ItemCredit(on_ended, loop)
                subscription.disposable = transfer.subscribe(
                    _holding(whole, observer.on_next), on_error, whole.release, scheduler=scheduler
                )

            def on_error(error: Exception) -> None:
                subscriptions.dispose()
                observer.on_error(error)

            def on_next(transfer: Observable[T]) -> None:
                if not subscriptions.is_disposed:
                    waiting.append((transfer, emitting().retain()))
                    start()

            def on_completed() -> None:
                nonlocal is_source_done
                is_source_done = True
                start()

            def drop_waiting() -> None:
                while waiting:
                    waiting.popleft()[1].release()

            subscriptions.add(Disposable(drop_waiting))
            upstream.disposable = source.subscribe(on_next, on_error, on_completed, scheduler=scheduler)
            return subscriptions

        return LoopObservable(subscribe, loop_of(source))

    return _transfer_all


def _holding(whole: ItemCredit, on_next: Callable[[T], None]) -> Callable[[T], None]:
    """`on_next`, whose items hold the credit of their whole transfer until the consumer is done with them."""

    def emit(item: T) -> None:
        if isinstance(item, Progress):
            on_next(item)  # there may be any number, and a consumer that is behind may do without
            return
        held = emitting().retain(whole)
        try:
            held.emit(on_next, item)
        finally:
            held.release()

    return emit
