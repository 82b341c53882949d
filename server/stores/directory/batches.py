"""Short work in threads, several items a handoff: for small files the handoff costs more than the disk's work."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, Generic, TypeVar, cast

from shared.aio import wait_uncancelled

__all__ = ["Batches", "Outcome", "call_each"]

T = TypeVar("T")
Item = TypeVar("Item")
Result = TypeVar("Result")

# Threads that run at once: what holds the interpreter's lock doesn't run in parallel.
_FEW: Final = 1
# A thread that takes longer waits for the disk, and doesn't count among them.
_QUICK_SECONDS: Final = 0.001
# Where each item takes no longer than this, the next batch has more of them.
_SHORT_SECONDS: Final = 0.0005

Outcome = tuple[T | None, BaseException | None]
"""A result, or an exception."""


class Batches(Generic[Item, Result]):
    """Has a blocking function work on items in the order in which they come, a few threads at a time, more where the
    disk is slow.

    Args:
        executor: The threads.
        work: The function; has an outcome for each of its items. What it raises is the outcome of all.
        most_items: Of a batch.
        most_batches: Under way at a time.
        is_joint: Whether the items of a batch wait for the disk together: then those that come meanwhile are the next
            batch. Else, where the disk is slow, a batch is one item.
    """

    def __init__(
        self,
        executor: Executor,
        work: Callable[[Sequence[Item]], Sequence[Outcome[Result]]],
        *,
        most_items: int,
        most_batches: int,
        is_joint: bool = False,
    ) -> None:
        self._executor = executor
        self._work = work
        self._most_items = most_items
        self._most_batches = most_batches
        self._is_joint = is_joint
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._futures: dict[int, Sequence[asyncio.Future[Result]]] = {}  # of the batches under way
        self._started: dict[int, float] = {}  # the batches of the threads that count, and when they were started
        self._batches = 0
        self._items = most_items if is_joint else 1  # of the next batch
        self._look: asyncio.TimerHandle | None = None

    async def run(self, item: Item) -> Result:
        """The item's result, or its exception; as `shared.aio.run_blocking`."""
        return await wait_uncancelled(self._queue(item))

    def _queue(self, item: Item) -> "asyncio.Future[Result]":
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append((item, future))
        self._start()
        return future

    def _start(self) -> None:
        while self._waiting and len(self._started) < _FEW and len(self._futures) < self._most_batches:
            batch = [self._waiting.popleft() for _ in range(min(self._items, len(self._waiting)))]
            futures = [future for _, future in batch]
            number = self._batches = self._batches + 1
            try:
                self._executor.submit(self._run, number, [item for item, _ in batch])
            except RuntimeError as error:  # it was shut down
                for future in futures:
                    future.set_exception(error)
                continue
            self._started[number] = self._loop.time()
            self._futures[number] = futures
        if self._waiting and self._look is None and self._started:
            self._look = self._loop.call_later(_QUICK_SECONDS, self._on_slow)

    def _on_slow(self) -> None:
        """Looks which threads wait for the disk; others may run meanwhile."""
        self._look = None
        since = self._loop.time() - _QUICK_SECONDS
        for number in [number for number, started in self._started.items() if started < since]:
            del self._started[number]
        self._start()

    def _run(self, number: int, items: Sequence[Item]) -> None:
        """In a thread."""
        began = time.perf_counter()
        try:
            outcomes = self._work(items)
        except BaseException as error:
            outcomes = [(None, error)] * len(items)
        seconds = (time.perf_counter() - began) / len(items)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_done, number, outcomes, seconds)
        del outcomes  # whose tracebacks refer to this frame: a reference cycle

    def _on_done(self, number: int, outcomes: Sequence[Outcome[Result]], seconds: float) -> None:
        self._started.pop(number, None)
        if not self._is_joint:
            self._items = min(2 * self._items, self._most_items) if seconds < _SHORT_SECONDS else 1
        for future, (result, error) in zip(self._futures.pop(number), outcomes, strict=True):
            if error is None:
                future.set_result(cast("Result", result))
            else:
                future.set_exception(error)
        self._start()


def call_each(functions: Sequence[Callable[[], Result]]) -> Sequence[Outcome[Result]]:
    """Calls functions; for `Batches`."""
    outcomes: list[Outcome[Result]] = []
    for function in functions:
        try:
            outcomes.append((function(), None))
        except BaseException as error:
            outcomes.append((None, error))
    try:
        return outcomes
    finally:
        del outcomes  # whose tracebacks refer to this frame: a reference cycle
