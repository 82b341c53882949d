"""Sources for the operators' tests."""

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

import reactivex
from reactivex import Observable, abc
from reactivex.disposable import Disposable

from rx_client.chunks import Chunk
from rx_client.rx.observables import TransferObservable

T = TypeVar("T")


def transfer(source: Observable[T], name: str = "") -> TransferObservable[T]:
    """`source` as a TransferObservable, like the client's transfers."""
    return TransferObservable(
        lambda observer, scheduler=None: source.subscribe(observer, scheduler=scheduler), name=name
    )


def one_after_the_other(*attempts: Observable[T]) -> Observable[T]:
    """A source whose n-th subscription subscribes to the n-th of `attempts`."""
    coming = iter(attempts)
    return reactivex.defer(lambda _: next(coming))


def at_once(*items: T, error: Exception | None = None, is_completed: bool = True) -> Observable[T]:
    """A source that emits everything inside `subscribe`."""

    def subscribe(observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
        for item in items:
            observer.on_next(item)
        if error is not None:
            observer.on_error(error)
        elif is_completed:
            observer.on_completed()
        return Disposable()

    return Observable(subscribe)


class ChunkSource:
    """A source like a download: emits chunks while there is credit, which goes back with each release.

    Attributes:
        observable: Emits the chunks to one subscription; never completes if `total` is None.
        produced: The number of emitted chunks.
        released: The numbers of released chunks, in the order of their release.
    """

    def __init__(self, window: int, total: int | None = None) -> None:
        self.produced = 0
        self.released: list[int] = []
        self.is_disposed = False
        self._credit = window
        self._total = total
        self._is_emitting = False
        self._observer: abc.ObserverBase[Chunk] | None = None
        self.observable: Observable[Chunk] = Observable(self._subscribe)

    @property
    def held(self) -> int:
        return self.produced - len(self.released)

    def _subscribe(
        self, observer: abc.ObserverBase[Chunk], scheduler: abc.SchedulerBase | None = None
    ) -> abc.DisposableBase:
        self._observer = observer
        handle = asyncio.get_running_loop().call_soon(self._emit)

        def dispose() -> None:
            self.is_disposed = True
            handle.cancel()

        return Disposable(dispose)

    def _emit(self) -> None:
        if self._is_emitting or self.is_disposed:
            return
        assert self._observer is not None
        self._is_emitting = True
        while self._credit and self.produced != self._total and not self.is_disposed:
            self._credit -= 1
            number = self.produced
            self.produced += 1
            chunk = Chunk(number, b"%d" % number, self._on_released(number))
            self._observer.on_next(chunk)
            chunk.release()
        self._is_emitting = False
        if self.produced == self._total:
            self._observer.on_completed()

    def _on_released(self, number: int) -> Callable[[], None]:
        def on_released() -> None:
            self.released.append(number)
            self._credit += 1
            self._emit()

        return on_released


async def ticks(count: int = 5) -> None:
    """Runs `count` iterations of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def numbers(chunks: Iterable[Chunk]) -> list[int]:
    return [chunk.offset for chunk in chunks]
