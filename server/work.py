"""The operations of one server: counts them, logs how each one ends, and owns their tasks."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from rsocket.exceptions import RSocketProtocolError

from shared.errors import TransferError

__all__ = ["Operation", "Work"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Work:
    """Counts the operations of one server and owns the tasks that do them.

    Attributes:
        started: Requests that were begun.
        completed: Those whose whole answer was handed to the connection.
        failed: Those that ended with an error.
        cancelled: Those that the client cancelled, or whose connection ended, before that.
        idle: Set while no operation is under way but those without end.
        unstored_bytes: What has arrived of uploads in chunks and isn't stored yet.
    """

    def __init__(self) -> None:
        self.started = 0
        self.completed = 0
        self.failed = 0
        self.cancelled = 0
        self.unstored_bytes = 0
        self._endless = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cleaning: set[asyncio.Task[None]] = set()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def active(self) -> int:
        """Operations under way."""
        return self.started - self.completed - self.failed - self.cancelled

    def begin(self, what: str) -> "Operation":
        """Counts an operation as started; `what` is for the log."""
        self.started += 1
        self.idle.clear()
        return Operation(self, what)

    def count_endless(self, change: int) -> None:
        """So many more, or fewer, of those under way end only when the client wants it."""
        self._endless += change
        if self.active == self._endless:
            self.idle.set()

    def spawn(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[T]:
        """Runs `function(*args, **kwargs)` in a task that `settle` cancels and waits for."""
        task = asyncio.get_running_loop().create_task(function(*args, **kwargs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def clean_up(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `function()`, which frees something, in a task that `settle` waits for and doesn't cancel."""
        task = asyncio.get_running_loop().create_task(_clean_up(function))
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    async def drain(self, seconds: float) -> None:
        """Waits until no operation is under way, for `seconds` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.idle.wait()

    async def settle(self) -> None:
        """Cancels the tasks that are left, and waits until they and all clean-ups have ended."""
        while self._tasks or self._cleaning:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait([*self._tasks, *self._cleaning])


class Operation:
    """One request under way. The first call of `end` counts it and logs one line.

    Attributes:
        what: The peer, the route and the file, for the log.
        nbytes: Bytes of content so far, for the log.
    """

    def __init__(self, work: Work, what: str) -> None:
        self.what = what
        self.nbytes = 0
        self._is_endless = False
        self._work: Work | None = work
        self._started_at = time.monotonic()

    def set_endless(self) -> None:
        """Only the client ends it: a server that closes doesn't wait for that."""
        if self._work is not None and not self._is_endless:
            self._is_endless = True
            self._work.count_endless(1)

    def end(self, outcome: BaseException | None) -> None:
        """Counts the operation as completed (None), cancelled (CancelledError) or failed (anything else).

        An error that has no meaning on the wire is logged with its traceback.
        """
        work, self._work = self._work, None
        if work is None:
            return
        if outcome is None:
            work.completed += 1
            result = "completed"
        elif isinstance(outcome, asyncio.CancelledError):
            work.cancelled += 1
            result = "cancelled"
        else:
            work.failed += 1
            result = f"failed: {_code(outcome)}"
            is_said = isinstance(outcome, RSocketProtocolError) or (isinstance(outcome, TransferError) and outcome.code)
            if not is_said:
                _log.error("a request failed: %s", self.what, exc_info=outcome)
        _log.info("%s: %d bytes in %.3f s, %s", self.what, self.nbytes, time.monotonic() - self._started_at, result)
        work.count_endless(-1 if self._is_endless else 0)


async def _clean_up(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    try:
        await function()
    except TransferError as error:
        _log.warning("what a request left could not be removed: %s", error)


def _code(error: BaseException) -> str:
    """The error's code on the wire."""
    if isinstance(error, RSocketProtocolError):
        return (error.data or "").partition(":")[0]
    return error.code if isinstance(error, TransferError) and error.code else "internal"
