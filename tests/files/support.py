"""Sockets, files and slow disks for the tests of the file lane and its jobs."""

import asyncio
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from shared.aio import wake
from shared.files.lane import FileLane
from shared.files.port import ItemReader
from shared.files.sending import FileRange, SendJob, Sent
from shared.files.sockets import LaneSocket
from shared.files.threads import SocketTurn
from shared.protocol.digest import Digest
from shared.protocol.flow import Credit
from tests.support import PATIENCE

ITEM_HEAD_BYTES = 9
"""What stands before an item's data, if it has no metadata: the frame's length and header."""


def socket_pair() -> tuple[LaneSocket, socket.socket]:
    """One that doesn't block, as a connection's, and one for the test."""
    left, right = socket.socketpair()
    left.setblocking(False)
    right.settimeout(5)
    return LaneSocket(fileno=left.detach()), right


def receive_all(right: socket.socket, nbytes: int) -> bytes:
    """The next `nbytes`; fewer at the end. Blocks."""
    received = b""
    while len(received) < nbytes and (piece := right.recv(nbytes - len(received))):
        received += piece
    return received


def length_of(nbytes: int) -> bytes:
    """What TCP puts before a frame."""
    return nbytes.to_bytes(3, "big")


class Gate:
    """Where a thread is held up while it is closed.

    Attributes:
        waiting: Threads that are held up.
        passed: How often a thread has passed.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._event.set()
        self.waiting = self.passed = 0

    def close(self) -> None:
        self._event.clear()

    def open(self) -> None:
        self._event.set()

    def pass_through(self) -> None:
        """Blocks."""
        self.waiting += 1
        is_open = self._event.wait(PATIENCE)
        self.waiting -= 1
        self.passed += 1
        assert is_open, "a test forgot to open the gate"


class Target:
    """A `FileTarget` in memory.

    Args:
        fail_at: How much is written before one write fails.
        seconds: How long each write takes.

    Attributes:
        data: What was written.
        gate: Each write passes it.
        threads: Those that wrote.
    """

    write_from: Callable[[int, int], None] | None = None

    def __init__(self, fail_at: int | None = None, seconds: float = 0, executor: Executor | None = None) -> None:
        self.data = b""
        self.gate = Gate()
        self.threads: set[int] = set()
        self.executor: Executor | None = executor
        self._fail_at = fail_at
        self._seconds = seconds

    def write(self, data: memoryview) -> None:
        self.threads.add(threading.get_ident())
        self.gate.pass_through()
        if self._fail_at is not None and len(self.data) >= self._fail_at:
            self._fail_at = None
            raise OSError(errno.ENOSPC, "full")
        time.sleep(self._seconds)
        self.data += data

    async def append(self, chunks: Sequence[bytes]) -> None:
        """Stores items of the frame path in a thread; a cancellation waits for it, as in the stores."""

        def store() -> None:
            for chunk in chunks:
                self.write(memoryview(chunk))

        running = asyncio.get_running_loop().run_in_executor(self.executor, store)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise


class ZeroCopyTarget(Target):
    """The same, whose bytes come out of a pipe."""

    @property
    def write_from(self) -> Callable[[int, int], None]:
        return self._write_from

    def _write_from(self, pipe: int, nbytes: int) -> None:
        self.write(memoryview(os.read(pipe, nbytes)))


class Port:
    """What a transport lends to its lane, without a transport: only to send."""

    def __init__(self) -> None:
        self.is_lost = False
        self.failure: OSError | None = None
        self.idle = 0

    @property
    def reader(self) -> ItemReader:
        raise AssertionError("nothing is received here")

    def prefix(self, nbytes: int) -> bytes:
        return length_of(nbytes)

    def pause_reading(self) -> None: ...
    async def drained(self) -> None: ...
    def on_received(self) -> None: ...
    def on_lane_idle(self) -> None:
        self.idle += 1

    def on_lane_failed(self, error: OSError) -> None:
        self.failure = error


@contextmanager
def sending_lane(connection: socket.socket) -> Generator[tuple[FileLane, Port], None, None]:
    """A lane that sends to this socket."""
    port = Port()
    lane = FileLane(LaneSocket(fileno=os.dup(connection.fileno())), port)
    try:
        yield lane, port
    finally:
        lane.close()


def nobody_waits() -> int:
    return 0


class Queue(list[SendJob]):
    """Where jobs wait for a turn."""

    def __call__(self, job: SendJob) -> None:
        self.append(job)


def send_job(
    stream_id: int,
    file: FileRange,
    item_bytes: int,
    *,
    granted: int = 1000,
    queue: Callable[[SendJob], None] | None = None,
    digest: Digest | None = None,
    **options: Any,
) -> SendJob:
    """A job with credit."""
    credit = Credit()
    credit.grant(granted)
    options.setdefault("last", lambda: b"")
    return SendJob(stream_id, file, item_bytes, credit, Queue() if queue is None else queue, digest=digest, **options)


def send_turn(job: SendJob, connection: LaneSocket) -> Sent:
    """What a thread does in one turn. Blocks."""
    while True:
        outcome = job.send_some(connection, length_of, SocketTurn(), lambda _: True)
        if outcome is not Sent.SOME:
            return outcome
        select.select([], [connection], [], 5)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


class Wakes:
    """Counts what a job reports."""

    def __init__(self) -> None:
        self.count = 0
        self.held = 0
        self.most_held = 0
        self._waiter: asyncio.Future[None] | None = None

    def on_progress(self) -> None:
        self.count += 1
        wake(self._waiter)

    def on_held(self, change: int) -> None:
        self.held += change
        self.most_held = max(self.most_held, self.held)


async def promptly(awaitable: Awaitable[Any], seconds: float = 1.0) -> Any:
    """What an awaitable gives, which must not wait for a disk that is held up."""
    async with asyncio.timeout(seconds):
        return await awaitable
