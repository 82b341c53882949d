"""The operations of one server: counts them, logs how each one ends, and owns their tasks."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from rsocket.exceptions import RSocketProtocolError

from shared.errors import ServerError, TransferError, is_code

__all__ = ["OTHER", "Operation", "Progress", "RouteCounts", "Transfer", "Work"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

OTHER: Final = "other"
"""In place of the route, for requests of routes that aren't in the table: a peer may ask for any."""


class Progress(Protocol):
    """The stream of an operation, for the statistics."""

    @property
    def is_upload(self) -> bool:
        """Whether the content comes from the client."""
        ...

    @property
    def moved_bytes(self) -> int:
        """The content that has passed."""
        ...

    @property
    def demand(self) -> int:
        """Items that were requested, and haven't passed."""
        ...


class Transfer(NamedTuple):
    """What a transfer is, for the statistics."""

    route: str
    name: str
    user: str
    peer: str


@dataclass(slots=True)
class RouteCounts:
    """The operations of one route. Those that haven't ended are under way."""

    started: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0


class Work:
    """Counts the operations of one server and owns the tasks that do them.

    Attributes:
        began_at: When the server was made, by `time.monotonic`.
        connections: Those that are open.
        started: Requests that were begun.
        completed: Those whose whole answer was handed to the connection.
        failed: Those that ended with an error.
        cancelled: Those that the client cancelled, or whose connection ended, before that.
        idle: Set while no operation is under way but those without end.
        routes: Counts by route.
        errors: How many failed, by the error's code.
        received_bytes: Content of uploads, of operations that have ended.
        sent_bytes: Content of downloads, and all else that answers have, of the same.
        transfers: Those under way that are streams.
        unstored_bytes: What has arrived of uploads in chunks and isn't stored yet.
    """

    def __init__(self) -> None:
        self.began_at = time.monotonic()
        self.connections = 0
        self.started = 0
        self.completed = 0
        self.failed = 0
        self.cancelled = 0
        self.unstored_bytes = 0
        self.routes: dict[str, RouteCounts] = {}
        self.errors: dict[str, int] = {}
        self.received_bytes = self.sent_bytes = 0
        self.transfers: dict[Operation, None] = {}
        self._endless = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cleaning: set[asyncio.Task[None]] = set()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def active(self) -> int:
        """Operations under way."""
        return self.started - self.completed - self.failed - self.cancelled

    def begin(self, what: str, route: str = OTHER) -> "Operation":
        """Counts an operation of that route as started; `what` is for the log."""
        self.started += 1
        self.idle.clear()
        try:
            counts = self.routes[route]
        except KeyError:
            counts = self.routes[route] = RouteCounts()
        counts.started += 1
        return Operation(self, what, counts)

    def count_error(self, code: str) -> None:
        """Counts a request that failed."""
        self.errors[code] = self.errors.get(code, 0) + 1

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
        received: Bytes of content of the request so far.
        nbytes: The same of the answer.
        started_at: By `time.monotonic`.
        transfer: What it is, while it is a transfer under way.
        stream: How far that has come.
    """

    transfer: Transfer | None = None
    stream: Progress | None = None

    def __init__(self, work: Work, what: str, counts: RouteCounts) -> None:
        self.what = what
        self.received = 0
        self.nbytes = 0
        self._counts = counts
        self._is_endless = False
        self._work: Work | None = work
        self.started_at = time.monotonic()

    def set_endless(self) -> None:
        """Only the client ends it: a server that closes doesn't wait for that."""
        if self._work is not None and not self._is_endless:
            self._is_endless = True
            self._work.count_endless(1)

    def follow(self, stream: Progress, transfer: Transfer) -> None:
        """It is this transfer, which the statistics show until it ends."""
        if self._work is not None:
            self.stream, self.transfer = stream, transfer
            self._work.transfers[self] = None

    def end(self, outcome: BaseException | None) -> None:
        """Counts the operation as completed (None), cancelled (CancelledError) or failed (anything else).

        An error that has no meaning on the wire is logged with its traceback.
        """
        work, self._work = self._work, None
        if work is None:
            return
        if self.stream is not None:
            self.stream = self.transfer = None  # the first leads back here: a reference cycle
            del work.transfers[self]
        work.received_bytes += self.received
        work.sent_bytes += self.nbytes
        counts = self._counts
        if outcome is None:
            work.completed += 1
            counts.completed += 1
            result = "completed"
        elif isinstance(outcome, asyncio.CancelledError):
            work.cancelled += 1
            counts.cancelled += 1
            result = "cancelled"
        else:
            work.failed += 1
            counts.failed += 1
            code = _code(outcome)
            work.count_error(code if is_code(code) else ServerError.code)
            result = f"failed: {code}"
            is_said = isinstance(outcome, RSocketProtocolError) or (isinstance(outcome, TransferError) and outcome.code)
            if not is_said:
                _log.error("a request failed: %s", self.what, exc_info=outcome)
        nbytes, seconds = self.received + self.nbytes, time.monotonic() - self.started_at
        _log.info("%s: %d bytes in %.3f s, %s", self.what, nbytes, seconds, result)
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
