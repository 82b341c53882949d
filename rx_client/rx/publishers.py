"""Observables as Reactive Streams publishers."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, cast

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from reactivex import Observable, Subject
from reactivex.disposable import SingleAssignmentDisposable
from reactivex.scheduler.eventloop import AsyncIOScheduler
from rsocket.payload import Payload

from shared.errors import BackpressureOverflow

__all__ = ["PublisherLike", "to_publisher"]

P = ParamSpec("P")

PublisherLike = Observable[Payload] | Callable[[Subject[int]], Observable[Payload]] | Publisher
"""An observable, a function that makes one from the demand, or a publisher."""


def to_publisher(source: PublisherLike, max_buffered: int) -> Publisher:
    """`source` as a publisher.

    Args:
        source: An observable can't be slowed down: the publisher fails with BackpressureOverflow when more than
            `max_buffered` of its items wait. One that is made from a Subject can emit as many items as the Subject
            emits; that Subject completes when the subscription is cancelled.
        max_buffered: Items.
    """
    if isinstance(source, Publisher):
        return source
    if isinstance(source, Observable):
        observable = cast("Observable[Payload]", source)
        return _BufferingPublisher(lambda _: observable, max_buffered)
    return _BufferingPublisher(source, max_buffered)


class _BufferingPublisher(Publisher):
    def __init__(self, make: Callable[[Subject[int]], Observable[Payload]], max_buffered: int) -> None:
        self._make = make
        self._max_buffered = max_buffered

    def subscribe(self, subscriber: Subscriber) -> None:
        buffer = _Buffer(subscriber, self._max_buffered)
        buffer.subscribe_to(self._make(buffer.demand))
        subscriber.on_subscribe(buffer)


class _Buffer(Subscription):
    """One subscription: holds what the observable has emitted, and the subscriber hasn't requested.

    Attributes:
        demand: Emits what the subscriber requests.
    """

    def __init__(self, subscriber: Subscriber, max_buffered: int) -> None:
        self.demand: Subject[int] = Subject()
        self._subscriber = subscriber
        self._max_buffered = max_buffered
        self._upstream = SingleAssignmentDisposable()
        self._items: deque[Payload] = deque()
        self._requested = 0
        self._has_completed = False
        self._is_over = False

    def subscribe_to(self, source: Observable[Payload]) -> None:
        """Subscribes; what `source` calls in other threads happens in this one."""
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def here(call: Callable[P, None]) -> Callable[P, None]:
            def forward(*args: P.args, **kwargs: P.kwargs) -> None:
                if threading.get_ident() == thread:
                    call(*args, **kwargs)
                elif not loop.is_closed():
                    loop.call_soon_threadsafe(lambda: call(*args, **kwargs))

            return forward

        self._upstream.disposable = source.subscribe(
            here(self._on_next), here(self._on_error), here(self._on_completed), scheduler=AsyncIOScheduler(loop)
        )

    def request(self, n: int) -> None:
        self._requested += n
        self._drain()
        if not self._is_over:
            self.demand.on_next(n)

    def cancel(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._items.clear()
            self._upstream.dispose()
            self.demand.on_completed()

    def _on_next(self, item: Payload) -> None:
        if self._is_over:
            return
        self._items.append(item)
        self._drain()
        if len(self._items) > self._max_buffered:
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
            self._subscriber.on_next(self._items.popleft())
        if self._has_completed and not self._items and not self._is_over:
            self.cancel()
            self._subscriber.on_complete()
