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
# A thread that takes longer, and longer than this for each item, waits for the disk, and doesn't count among them.
_QUICK_SECONDS: Final = 0.001
_QUICK_ITEM_SECONDS: Final = 0.00025
# Where each item takes longer, the disk is slow. To wait for the CPU of a busy machine takes less.
_SLOW_ITEM_SECONDS: Final = 0.002

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
        is_joint: Whether the items of a batch wait for the disk together. Where the disk is slow, those under way and
            those that wait are spread over all the batches then; else a batch is one item.
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
        self._late_at: dict[int, float] = {}  # when each of the batches that count is late, and doesn't count any more
        self._batches = 0
        self._items = 1  # of the next batch
        self._is_slow = False
        self._look: asyncio.TimerHandle | None = None

    async def run(self, item: Item) -> Result:
        """The item's result, or its exception; as `shared.aio.run_blocking`."""
        return await wait_uncancelled(self._queue(item))

    def _queue(self, item: Item) -> "asyncio.Future[Result]":
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append((item, future))
        if len(self._waiting) == 1:
            self._loop.call_soon(self._start)  # with the others of this event-loop iteration
        return future

    def _start(self) -> None:
        while self._waiting and self._may_start():
            batch = [self._waiting.popleft() for _ in range(min(self._next_items(), len(self._waiting)))]
            futures = [future for _, future in batch]
            number = self._batches = self._batches + 1
            try:
                self._executor.submit(self._run, number, [item for item, _ in batch])
            except RuntimeError as error:  # it was shut down
                for future in futures:
                    future.set_exception(error)
                continue
            self._late_at[number] = self._loop.time() + _QUICK_SECONDS + len(batch) * _QUICK_ITEM_SECONDS
            self._futures[number] = futures
        if self._waiting and self._look is None and len(self._futures) < self._most_batches:
            self._look = self._loop.call_later(_QUICK_SECONDS, self._on_time)

    def _may_start(self) -> bool:
        return len(self._futures) < self._most_batches and (self._is_slow or len(self._late_at) < _FEW)

    def _next_items(self) -> int:
        if self._is_slow and self._is_joint:
            items = len(self._waiting) + sum(map(len, self._futures.values()))
            return min(-(-items // self._most_batches), self._most_items)
        return self._items

    def _on_time(self) -> None:
        """Looks which threads wait for the disk; others may run meanwhile."""
        self._look = None
        now = self._loop.time()
        self._late_at = {number: late_at for number, late_at in self._late_at.items() if now < late_at}
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
        self._late_at.pop(number, None)
        self._is_slow = seconds >= _SLOW_ITEM_SECONDS
        self._items = 1 if self._is_slow else min(2 * self._items, self._most_items)
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
