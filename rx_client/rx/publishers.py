"""Observables as Reactive Streams publishers."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from reactivex import Observable, Subject
from reactivex.disposable import SingleAssignmentDisposable
from rsocket.payload import Payload

from shared.errors import BackpressureOverflow

from .demand import Hold, emitting
from .loops import subscribe_on

__all__ = ["PublisherLike", "to_publisher"]

PublisherLike = Observable[Payload] | Callable[[Subject[int]], Observable[Payload]] | Publisher
"""An observable, a function that makes one from the demand, or a publisher."""


def to_publisher(source: PublisherLike, max_buffered: int) -> Publisher:
    """`source` as a publisher.

    It fails with BackpressureOverflow when more than `max_buffered` items wait of an observable that can't be slowed
    down. One that is made from a Subject can emit as many items as the Subject emits; that Subject completes
    when the subscription is cancelled.
    """
    if isinstance(source, Publisher):
        return source
    observable = cast("Observable[Payload]", source)
    return _BufferingPublisher((lambda _: observable) if isinstance(source, Observable) else source, max_buffered)


class _BufferingPublisher(Publisher):
    def __init__(self, make: Callable[[Subject[int]], Observable[Payload]], max_buffered: int) -> None:
        self._make = make
        self._max_buffered = max_buffered

    def subscribe(self, subscriber: Subscriber) -> None:
        subscriber.on_subscribe(_Buffer(self._make, subscriber, self._max_buffered))


class _Buffer(Subscription):
    """One subscription: holds what the observable has emitted, in any thread, and the subscriber hasn't requested."""

    def __init__(
        self, make: Callable[[Subject[int]], Observable[Payload]], subscriber: Subscriber, max_buffered: int
    ) -> None:
        self._demand: Subject[int] = Subject()
        self._subscriber = subscriber
        self._max_buffered = max_buffered
        self._upstream = SingleAssignmentDisposable()
        self._items: deque[tuple[Payload, Hold]] = deque()
        self._requested = 0
        self._has_completed = False
        self._is_over = False
        loop, source = asyncio.get_running_loop(), make(self._demand)
        self._upstream.disposable = subscribe_on(loop, source, self._on_next, self._on_error, self._on_completed)

    def request(self, n: int) -> None:
        self._requested += n
        self._drain()
        if not self._is_over:
            self._demand.on_next(n)

    def cancel(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._upstream.dispose()
            while self._items:
                self._items.popleft()[1].release()
            self._demand.on_completed()

    def _on_next(self, item: Payload) -> None:
        if self._is_over:
            return
        held = emitting().retain()
        self._items.append((item, held))
        self._drain()
        if len(self._items) > self._max_buffered and not held:
            text = f"the source is more than {self._max_buffered} items ahead of the connection"
            self._on_error(BackpressureOverflow(text))

    def _on_error(self, error: Exception) -> None:
        if not self._is_over:
            self.cancel()
            self._subscriber.on_error(error)

    def _on_completed(self) -> None:
        self._has_completed = True
        self._drain()

    def _drain(self) -> None:
        while self._items and self._requested:
            self._requested -= 1
            item, held = self._items.popleft()
            self._subscriber.on_next(item)
            held.release()
        if self._has_completed and not self._items and not self._is_over:
            self.cancel()
            self._subscriber.on_complete()
