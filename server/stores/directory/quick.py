"""Short calls in a store's threads, several a handoff: for small files the handoff costs more than the disk's work."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final, TypeVar

from shared.aio import wait_uncancelled

__all__ = ["QuickCalls"]

T = TypeVar("T")

# Threads that run at once: what holds the interpreter's lock doesn't run in parallel.
_FEW: Final = 1
# A thread that takes longer waits for the disk, and doesn't count among them.
_QUICK_SECONDS: Final = 0.001
# Calls a handoff, where each takes no longer than this.
_MOST_CALLS: Final = 16
_SHORT_SECONDS: Final = 0.0005

_Function = Callable[[], object]
_Outcome = tuple[object, BaseException | None]


class QuickCalls:
    """Runs calls in the order in which they come, a few threads at a time; more where the disk is slow.

    Args:
        executor: The threads.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[_Function, asyncio.Future[Any]]] = deque()
        self._futures: dict[int, Sequence[asyncio.Future[Any]]] = {}  # of the batches under way
        self._started: dict[int, float] = {}  # the batches of the threads that count, and when they were started
        self._batches = 0
        self._calls_a_batch = 1
        self._look: asyncio.TimerHandle | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """The result of a blocking function; as `shared.aio.run_blocking`."""
        return await wait_uncancelled(self._queue(function))

    def _queue(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((function, future))
        self._start()
        return future

    def _start(self) -> None:
        while self._waiting and len(self._started) < _FEW:
            calls = [self._waiting.popleft() for _ in range(min(self._calls_a_batch, len(self._waiting)))]
            self._batches += 1
            batch = self._batches
            self._started[batch] = self._loop.time()
            self._futures[batch] = [future for _, future in calls]
            try:
                self._executor.submit(self._work, batch, [function for function, _ in calls])
            except RuntimeError as error:  # it was shut down
                self._on_done(batch, [(None, error)] * len(calls), 0.0)
        if self._waiting and self._look is None:
            self._look = self._loop.call_later(_QUICK_SECONDS, self._on_slow)

    def _on_slow(self) -> None:
        """Looks which threads wait for the disk; others may run meanwhile."""
        self._look = None
        since = self._loop.time() - _QUICK_SECONDS
        for batch in [batch for batch, started in self._started.items() if started < since]:
            del self._started[batch]
        self._start()

    def _work(self, batch: int, functions: Sequence[_Function]) -> None:
        """In a thread."""
        began = time.perf_counter()
        outcomes: list[_Outcome] = []
        for function in functions:
            try:
                outcomes.append((function(), None))
            except BaseException as error:
                outcomes.append((None, error))
        seconds = (time.perf_counter() - began) / len(functions)
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._on_done, batch, outcomes, seconds)
        del outcomes  # whose tracebacks refer to this frame: a reference cycle

    def _on_done(self, batch: int, outcomes: Sequence[_Outcome], seconds: float) -> None:
        self._started.pop(batch, None)
        is_short = seconds < _SHORT_SECONDS
        self._calls_a_batch = min(2 * self._calls_a_batch, _MOST_CALLS) if is_short else 1
        for future, (result, error) in zip(self._futures.pop(batch), outcomes, strict=True):
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._start()
