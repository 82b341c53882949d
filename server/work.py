"""What a server has under way: its tasks, and how its operations end."""

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
        started: Requests that were taken on.
        completed: Those whose answer was handed to the connection as a whole.
        failed: Those that ended with an error.
        cancelled: Those that the client cancelled, or whose connection ended, before that.
        unstored_bytes: What has arrived of uploads in chunks and isn't stored yet.
    """

    def __init__(self) -> None:
        self.started = 0
        self.completed = 0
        self.failed = 0
        self.cancelled = 0
        self.unstored_bytes = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cleaning: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Operations under way."""
        return self.started - self.completed - self.failed - self.cancelled

    def begin(self, what: str) -> "Operation":
        """Counts an operation as started; `what` is for the log."""
        self.started += 1
        self._idle.clear()
        return Operation(self, what)

    def spawn(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[T]:
        """Runs `function(*args, **kwargs)` in a task that `settle` waits for."""
        task = asyncio.get_running_loop().create_task(function(*args, **kwargs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def clean_up(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `function()` in a task that `settle` doesn't cancel: it frees what nobody else would."""
        task = asyncio.get_running_loop().create_task(function())
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)

    def check_idle(self) -> None:
        """Wakes `drain` if nothing is under way."""
        if not self.active:
            self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Waits until nothing is under way, `seconds` at the most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()

    async def settle(self) -> None:
        """Cancels the tasks that are left and waits for their end, and for what is cleaned up behind them."""
        while self._tasks or self._cleaning:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait([*self._tasks, *self._cleaning])


class Operation:
    """One request under way; the first call of `end` counts, and logs one line.

    Attributes:
        nbytes: Bytes of content so far, for the log.
    """

    def __init__(self, work: Work, what: str) -> None:
        self.nbytes = 0
        self._work: Work | None = work
        self._what = what
        self._started_at = time.monotonic()

    def end(self, outcome: BaseException | None) -> None:
        """Counts the operation as completed (None), cancelled (CancelledError) or failed (anything else)."""
        work, self._work = self._work, None
        if work is None:
            return
        if outcome is None:
            work.completed += 1
            said = "completed"
        elif isinstance(outcome, asyncio.CancelledError):
            work.cancelled += 1
            said = "cancelled"
        else:
            work.failed += 1
            said = f"failed: {_code(outcome)}"
        _log.info("%s: %d bytes in %.3f s, %s", self._what, self.nbytes, time.monotonic() - self._started_at, said)
        work.check_idle()


def _code(error: BaseException) -> str:
    """The word for an error on the wire."""
    if isinstance(error, RSocketProtocolError):
        return (error.data or "").partition(":")[0]
    return error.code if isinstance(error, TransferError) and error.code else "internal"
