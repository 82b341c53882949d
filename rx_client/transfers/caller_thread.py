"""A thread for what belongs to the caller: iterators and file objects, whose calls may take as long as they like."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, ParamSpec, TypeVar

__all__ = ["PATIENCE_SECONDS", "CallerThread"]

P = ParamSpec("P")
T = TypeVar("T")

PATIENCE_SECONDS: Final = 0.5
"""How long a cancelled transfer waits for a call of the caller's that is under way; then it leaves it to itself."""


class CallerThread:
    """Makes calls one after another, in a thread that starts with the first one and ends after `close`.

    It is a daemon, and no thread of a pool: a call that never returns neither holds up the process at its end nor takes
    a thread from others. What is called later waits for it.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_open = self._has_thread = False

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
        """Queues a call; the future gets its result, and may be forgotten."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(_forget)

        def work() -> None:
            try:
                done = partial(_set_result, future, function(*args, **kwargs))
            except BaseException as error:
                done = partial(_set_exception, future, error)
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(done)

        with self._condition:
            self._calls.append(work)
            self._is_open = True
            self._condition.notify()
            if not self._has_thread:
                self._has_thread = True
                threading.Thread(target=self._work, name="rx_client-caller", daemon=True).start()
        return future

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns the call's result. A cancellation waits for the call's end, but not for long."""
        call = self.call(function, *args, **kwargs)
        await self.wait(call)
        return call.result()

    @staticmethod
    async def wait(call: "asyncio.Future[T]") -> None:
        """Returns when the call has; a cancellation as in `run`."""
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError:
            await asyncio.wait([call], timeout=PATIENCE_SECONDS)
            raise

    def close(self) -> None:
        """Lets the thread end after the calls that are queued; another call starts a new one."""
        with self._condition:
            self._is_open = False
            self._condition.notify()

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._calls:
                    if not self._is_open:
                        self._has_thread = False
                        return
                    self._condition.wait()
                call = self._calls.popleft()
            call()
            del call  # which may hold the caller's object


def _set_result(future: "asyncio.Future[T]", result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: "asyncio.Future[T]", error: BaseException) -> None:
    if not future.done():
        # A future can't have a StopIteration.
        future.set_exception(RuntimeError("a call raised StopIteration") if isinstance(error, StopIteration) else error)


def _forget(future: "asyncio.Future[T]") -> None:
    if not future.cancelled():
        future.exception()  # retrieved, so that asyncio doesn't report it
