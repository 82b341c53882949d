"""Items of a stream between a socket and a file, in a thread: without an object, a copy or a turn of the loop for each.

A chunk that goes through the event loop costs some 100 µs of Python at each end beside the system calls, several times
what those take, and a hop to a thread for its disk work. Here one hop moves many chunks, on both ends in the same way:

- `FileItems` stand in rsocket's send queue for several items. When it is their turn, `FrameTransport` calls `send_some`
  in a thread: it reads a chunk, adds it to the digest, and writes it, with its header, to the socket.
- `Diversion` is where a stream's incoming items go as they are received, instead of to rsocket. `FrameTransport` calls
  `take` in a thread for each.

Where no digest is wanted, the bytes don't come into the process at all, on Linux: `sendfile` and `splice` move them.

Items with metadata, so the first and the last of a transfer, and all that isn't an item of such a stream, goes the way
of all frames. Needs a plain socket of a POSIX system; with TLS, and elsewhere, every item goes that way.
"""

import asyncio
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final

from rsocket.frame import Frame, FrameType

from .digest import Digest

try:
    import fcntl
except ImportError:  # not on Windows, where none of this is used
    fcntl = None

__all__ = ["MOVES_FILES", "Diversion", "FileItems", "Pipe", "finished", "wait_for_socket"]

MOVES_FILES: Final = hasattr(os, "writev") and hasattr(os, "preadv") and hasattr(select, "poll")
"""Whether this system has what is needed here."""

_SPLICES: Final = sys.platform == "linux" and hasattr(os, "splice")
# What a pipe between a socket and a file holds: more than an item.
_PIPE_BYTES: Final = 1024 * 1024
_F_SETPIPE_SZ: Final = 1031

_HEADER: Final = struct.Struct(">BHIH")
_NEXT: Final = 0x20
_HEADER_BYTES: Final = 6
# How long a thread waits for a socket that takes or has nothing, before it goes back to where somebody else needs it.
_PATIENCE_MS: Final = 10
# Buffers that nobody sends from just now; each transfer that is sending has one.
_MAX_SPARES: Final = 4
_spares: list[bytearray] = []


class FileItems(Frame):
    """Several items of one stream, each with so many bytes of a file.

    Args:
        stream_id: The stream.
        source: The file's descriptor; it stays open until `finished` is done.
        offset: Where in the file the first item begins.
        count: How many items there are.
        item_bytes: What each of them carries.
        digest: Gets the bytes while they pass; None to do without, so that they needn't come into the process.
        executor: Whose threads do it; the loop's default executor if None.
        is_same: Tells, after each read, whether the file still has the content that it had; None if nobody asks.
        on_item: Called in the thread after each item was read.

    Attributes:
        sent: Items that are in the socket, the one that is on its way included.
        failure: What kept the rest from being sent; None if nothing did, or the file only ended too early.
        finished: Done when no thread has anything to do with it any more, and never will.
    """

    def __init__(
        self,
        stream_id: int,
        source: int,
        offset: int,
        count: int,
        item_bytes: int,
        *,
        digest: Digest | None = None,
        executor: Executor | None = None,
        is_same: Callable[[], bool] | None = None,
        on_item: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(FrameType.PAYLOAD)
        self.stream_id = stream_id
        self.flags_next = True  # for rsocket's log
        self.executor = executor
        self.sent = 0
        self.failure: Exception | None = None
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._source = source
        self._offset = offset
        self._count = count
        self._item_bytes = item_bytes
        self._digest = digest
        self._is_same = is_same
        self._on_item = on_item
        self._header = _HEADER.pack(*_split(_HEADER_BYTES + item_bytes), stream_id, FrameType.PAYLOAD << 10 | _NEXT)
        self._buffer: bytearray | None = None
        self._parts: list[bytes | memoryview] = []
        self._unread = 0
        self._is_begun = False
        self._is_withdrawn = False

    def parse(self, buffer: bytes | bytearray, offset: int) -> None:
        """Never called: these are only sent."""

    @property
    def is_sent(self) -> bool:
        """Whether nothing is left to be sent of them, or to be withdrawn."""
        return self.finished.done()

    @property
    def is_between_frames(self) -> bool:
        """Whether no frame is half in the socket."""
        return not self._parts and not self._unread

    @property
    def sent_bytes(self) -> int:
        """The bytes of the items that are counted in `sent`."""
        return self.sent * self._item_bytes

    @property
    def left_bytes(self) -> int:
        """What isn't in the socket yet."""
        frame_bytes = len(self._header) + self._item_bytes
        return sum(map(len, self._parts)) + self._unread + (self._count - self.sent) * frame_bytes

    def begin(self) -> bool:
        """It is their turn; False if they were withdrawn before."""
        self._is_begun = not self.finished.done()
        return self._is_begun

    def end(self) -> None:
        """No thread will have anything to do with them any more."""
        if self._buffer is not None and len(_spares) < _MAX_SPARES:
            _spares.append(self._buffer)
        self._buffer = None
        if not self.finished.done():
            self.finished.set_result(None)

    def withdraw(self) -> None:
        """Sends no more of them than the item that is on its way."""
        self._is_withdrawn = True
        if not self._is_begun:
            self.end()

    def send_some(self, connection: socket.socket) -> bool:
        """Sends as many as the socket takes; whether there are no more to send. Blocks.

        Raises:
            OSError: The connection has ended, or has to end, since a file was cut short behind its frame's header.
        """
        while self._parts or self._unread or self._read():
            try:
                if not self._parts:
                    self._send_file(connection)
                    continue
                if self._unread:  # the header, which is to go out with what follows
                    taken = connection.send(self._parts[0], socket.MSG_MORE)
                else:
                    taken = os.writev(connection.fileno(), self._parts)
            except (BlockingIOError, InterruptedError):
                if not wait_for_socket(connection, select.POLLOUT):
                    return False
                continue
            while self._parts and taken >= len(self._parts[0]):
                taken -= len(self._parts.pop(0))
            if self._parts and taken:
                self._parts[0] = memoryview(self._parts[0])[taken:]
        return True

    def _send_file(self, connection: socket.socket) -> None:
        moved = os.sendfile(connection.fileno(), self._source, self._offset, self._unread)
        if not moved:
            raise OSError("a file was cut short while it was sent")
        self._offset += moved
        self._unread -= moved

    def _read(self) -> bool:
        """Makes the next item; whether there is one."""
        if self.sent == self._count or self._is_withdrawn:
            return False
        if _SPLICES and self._digest is None:
            return self._look()
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = _borrow(self._item_bytes)
        view = memoryview(buffer)[: self._item_bytes]
        try:
            filled = 0
            while filled < len(view) and (nbytes := os.preadv(self._source, [view[filled:]], self._offset + filled)):
                filled += nbytes
            if filled < len(view) or (self._is_same is not None and not self._is_same()):
                return False
        except Exception as error:  # whatever a disk, or a store that was closed, raises
            self.failure = error
            return False
        if self._digest is not None:
            self._digest.update(view)
        self._offset += len(view)
        self._parts = [self._header, view]  # before it counts, since `left_bytes` must never be too small
        self.sent += 1
        if self._on_item is not None:
            self._on_item()
        return True

    def _look(self) -> bool:
        """As `_read`, for an item whose bytes stay in the system."""
        try:
            is_there = os.fstat(self._source).st_size >= self._offset + self._item_bytes
            if not is_there or (self._is_same is not None and not self._is_same()):
                return False
        except Exception as error:  # whatever a disk, or a store that was closed, raises
            self.failure = error
            return False
        self._parts = [self._header]
        self._unread = self._item_bytes
        self.sent += 1
        return True


class Pipe:
    """A pipe of a thread's, between a socket and a file."""

    def __init__(self) -> None:
        self.end, self._begin = os.pipe()
        if fcntl is not None:
            with suppress(OSError):  # over a quota; then it takes more steps
                fcntl.fcntl(self._begin, _F_SETPIPE_SZ, _PIPE_BYTES)

    def fill(self, connection: socket.socket, nbytes: int) -> int:
        """Moves up to so many bytes in; how many, 0 at the connection's end.

        Raises:
            BlockingIOError: There are none just now.
        """
        return os.splice(connection.fileno(), self._begin, nbytes, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)

    def close(self) -> None:
        """Closes both ends."""
        os.close(self.end)
        os.close(self._begin)


class Diversion:
    """Where the items of one incoming stream go, past rsocket: to a function that writes them.

    Args:
        write: Takes an item's bytes, in a thread; the view is only good until it returns.
        on_written: Told, soon and in the loop, how many items and bytes were written since it was last told.
        on_failed: Told, in the loop, what `write` raised; nothing more is diverted then.
        executor: Whose threads do it; the loop's default executor if None.
        write_from: Takes so many bytes from a pipe, in a thread; None if they have to be seen.

    Attributes:
        is_closed: Whether nothing comes this way any more.
    """

    def __init__(
        self,
        write: Callable[[memoryview], None],
        on_written: Callable[[int, int], None],
        on_failed: Callable[[Exception], None],
        executor: Executor | None = None,
        write_from: Callable[[int, int], None] | None = None,
    ) -> None:
        self.executor = executor
        self._write = write
        self._write_from = write_from if _SPLICES else None
        self._on_written = on_written
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        # Each pair is counted by one side alone, the first by the loop and the second by the thread, without a lock.
        self._granted_items = self._taken_items = 0
        self._granted_bytes = self._taken_bytes = 0
        self._told_items = self._told_bytes = 0
        self._failure: Exception | None = None
        self.is_closed = False
        self._is_telling = False

    def grant(self, items: int, nbytes: int) -> None:
        """Lets so many more items and bytes come this way; what goes beyond comes the way of all frames."""
        self._granted_items += items
        self._granted_bytes += nbytes

    def close(self) -> None:
        """Lets no more come this way."""
        self.is_closed = True

    def may_take(self, nbytes: int) -> bool:
        """Whether an item of that length is to be taken."""
        return (
            not self.is_closed
            and self._failure is None
            and nbytes > 0
            and self._taken_items < self._granted_items
            and self._taken_bytes + nbytes <= self._granted_bytes
        )

    @property
    def splices(self) -> bool:
        """Whether `take_from` may be called."""
        return self._write_from is not None

    def take(self, data: memoryview, *, is_whole: bool = True) -> None:
        """Writes an item, or some of it; `is_whole` says that nothing of it follows. Blocks."""
        self._take(lambda: self._write(data), len(data), is_whole)

    def take_from(self, pipe: Pipe, nbytes: int, *, is_whole: bool) -> None:
        """Writes some of an item, which `pipe` has. Blocks."""
        write_from = self._write_from
        assert write_from is not None, "ask `splices` first"
        self._take(lambda: write_from(pipe.end, nbytes), nbytes, is_whole)

    @property
    def has_failed(self) -> bool:
        """Whether something couldn't be written."""
        return self._failure is not None

    def _take(self, write: Callable[[], None], nbytes: int, is_whole: bool) -> None:
        if self._failure is not None:
            return  # the rest of what couldn't be written: there would be a hole
        try:
            if nbytes:
                write()
        except Exception as error:  # whatever a disk raises
            self._failure = error
        else:
            self._taken_items += is_whole
            self._taken_bytes += nbytes
        if not self._is_telling:
            self._is_telling = True
            self._loop.call_soon_threadsafe(self.tell)

    def tell(self) -> None:
        """Tells what happened since the last time. In the loop's thread."""
        self._is_telling = False  # first: what the thread adds from now on is told once more
        items, nbytes = self._taken_items - self._told_items, self._taken_bytes - self._told_bytes
        self._told_items += items
        self._told_bytes += nbytes
        if items or nbytes:
            self._on_written(items, nbytes)
        failure, on_failed = self._failure, self._on_failed
        if failure is not None:
            self._on_failed = _ignore
            on_failed(failure)


def wait_for_socket(connection: socket.socket, event: int) -> bool:
    """Waits a little until a socket takes or has something; whether it does. Blocks."""
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(_PATIENCE_MS))


async def finished(future: "asyncio.Future[None]") -> None:
    """Waits for `future`; a cancellation waits, too: the descriptor that a thread uses can't be closed before."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _split(length: int) -> tuple[int, int]:
    return length >> 16, length & 0xFFFF


def _borrow(nbytes: int) -> bytearray:
    try:
        buffer = _spares.pop()
    except IndexError:  # not looked at beforehand, as another thread may come between
        buffer = None
    return buffer if buffer is not None and len(buffer) >= nbytes else bytearray(nbytes)


def _ignore(_: Exception) -> None:
    """A failure is told once."""
