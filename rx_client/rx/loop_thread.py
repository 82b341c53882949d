"""An event loop in a thread of its own, for applications that have none."""

import asyncio
import concurrent.futures.thread  # pyright: ignore[reportUnusedImport]
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from shared.errors import ClientClosed

__all__ = ["LoopThread"]

T = TypeVar("T")

# How often a call looks whether the thread still lives; so often can Ctrl-C interrupt it on Windows.
_LOOK_SECONDS: Final = 0.5
# How long a process that ends waits for what its threads still have to clean up.
_EXIT_SECONDS: Final = 5.0


class LoopThread:
    """A thread that runs an event loop until it is stopped.

    A process that ends without that does `on_exit` in the loop and stops it, for five seconds at the most; the thread
    is a daemon, so that nothing else holds it up.

    Args:
        on_exit: See above.

    Attributes:
        loop: The event loop.
    """

    def __init__(self, on_exit: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._on_exit = on_exit
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop: Final = self._runner.get_loop()
        self._stopped = asyncio.Event()
        self._is_at_exit = False
        self._thread = threading.Thread(target=self._run, name="rx_client-loop", daemon=True)
        self._thread.start()
        _running.add(self)

    def call(self, function: Callable[[], Coroutine[Any, Any, T]], seconds: float | None = None) -> T:
        """What a coroutine returns in the loop. A KeyboardInterrupt cancels it.

        Raises:
            TimeoutError: It takes longer than `seconds`.
            ClientClosed: The thread has ended meanwhile.
        """
        future = asyncio.run_coroutine_threadsafe(function(), self.loop)
        try:
            while not concurrent.futures.wait([future], _LOOK_SECONDS if seconds is None else seconds).done:
                if seconds is not None:
                    raise TimeoutError(f"not done within {seconds:g} s")
                if not self._thread.is_alive():
                    raise ClientClosed("the client is closed")
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self, seconds: float | None = None) -> None:
        """Stops the loop, cancels what is left in it, and waits for the thread's end, or so long; twice is fine."""
        _running.discard(self)
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(seconds)

    def end_with_process(self) -> None:
        """Does `on_exit`, and stops, as far as that takes no more than a few seconds."""
        if not self._thread.is_alive():
            return  # of the process that this one was forked from
        self._is_at_exit = True
        try:
            self.call(self._on_exit, _EXIT_SECONDS)
        finally:
            self.stop(_EXIT_SECONDS)

    def _run(self) -> None:
        try:
            self._runner.run(self._until_stopped())
        finally:
            if self._is_at_exit:
                self.loop.close()  # the runner would wait for other threads in a new one, which can't be started now
            else:
                self._runner.close()

    async def _until_stopped(self) -> None:
        await self._stopped.wait()


_running: Final[set[LoopThread]] = set()


def _end_all() -> None:
    for thread in list(_running):
        try:
            thread.end_with_process()
        except Exception:
            continue  # the process is ending anyway


# Before the threads of executors are waited for, which may be in the middle of a file: that hook is registered by
# `concurrent.futures.thread`, and the last one comes first. `atexit` would be too late.
_register: Final[Callable[[Callable[[], None]], None] | None] = getattr(threading, "_register_atexit", None)
if _register is not None:
    _register(_end_all)
