"""The threads that use one connection's socket beside the event loop."""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final, ParamSpec, TypeVar

from ..aio import wake
from .sockets import LaneSocket
from .threads import SocketTurn

__all__ = ["Crew"]

P = ParamSpec("P")
T = TypeVar("T")

# How often the event loop looks whether a disk holds a thread up.
_LOOK_SECONDS: Final = 0.05


class Crew:
    """Runs functions in threads, and closes the socket when the connection has ended and no thread uses it.

    Args:
        connection: A descriptor of its own for the connection's socket.

    Attributes:
        count: How many threads are running.
    """

    def __init__(self, connection: LaneSocket) -> None:
        self.connection: Final = connection
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._is_over = False
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def is_closed(self) -> bool:
        """Whether the socket is closed: the connection has ended, and no thread is left."""
        return self._is_over and not self.count

    def run(
        self, executor: Executor | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> "asyncio.Future[T]":
        """Calls a function in a thread of `executor`, or of the event loop's default one if None."""
        self.count += 1
        thread = self._loop.run_in_executor(executor, lambda: function(*args, **kwargs))
        thread.add_done_callback(self._on_thread_ended)
        return thread

    async def watch(self, thread: "asyncio.Future[Any]", turn: SocketTurn, interrupt: Callable[[], None]) -> None:
        """Returns when the thread has ended, or when a disk has held it up and it has lost the socket.

        A cancellation calls `interrupt`, and waits for that, too: the socket and the receive buffer can't be freed
        before. What the thread uses beside them (a file, an item's buffer, a pipe) can't be freed before it has ended.
        """
        cancelled: asyncio.CancelledError | None = None
        while not thread.done() and not turn.revoke_if_held_up():
            try:
                await asyncio.wait([thread], timeout=_LOOK_SECONDS)
            except asyncio.CancelledError as error:
                cancelled = error
                interrupt()
        try:
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled  # whose traceback refers to this frame: a reference cycle otherwise

    async def until_readable(self, waiter: "asyncio.Future[None]") -> None:
        """Returns when the socket has something, the connection has ended, or `waiter` is done."""
        if self._is_over:
            return  # the socket may be closed already; a callback for it would stay with the event loop
        self._loop.add_reader(self.connection, wake, waiter)
        try:
            await self._until(waiter)
        finally:
            if not self._is_over:
                self._loop.remove_reader(self.connection)

    async def until_writable(self) -> None:
        """Returns when the socket takes something, or the connection has ended."""
        if self._is_over:
            return  # as above
        waiter = self._loop.create_future()
        self._loop.add_writer(self.connection, wake, waiter)
        try:
            await self._until(waiter)
        finally:
            if not self._is_over:
                self._loop.remove_writer(self.connection)

    async def _until(self, waiter: "asyncio.Future[None]") -> None:
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def close(self) -> None:
        """The connection has ended: no thread waits for it any more, and the socket is closed behind the last."""
        if not self._is_over:
            self._is_over = True
            # Before the socket is closed: nothing happens at it any more, and its number may be another one's.
            self._loop.remove_reader(self.connection)
            self._loop.remove_writer(self.connection)
            for waiter in self._waiters:
                wake(waiter)
            with suppress(OSError):  # it has ended already
                self.connection.shutdown(socket.SHUT_RDWR)
            self._free()

    def _on_thread_ended(self, thread: "asyncio.Future[Any]") -> None:
        self.count -= 1
        if not thread.cancelled():
            thread.exception()  # retrieved: where the turn was revoked, nothing else does that
        self._free()

    def _free(self) -> None:
        if self.is_closed:
            self.connection.close()
