"""Items of a stream between a socket and a file, in a thread: without an object, a copy or a turn of the loop for each.

A chunk that goes through the event loop costs some 100 µs of Python at each end beside the system calls, several times
what those take, and a hop to a thread for its disk work. Here one hop moves many chunks, on both ends in the same way:

- `FileItems` stand in rsocket's send queue for the items that a peer has asked for. When it is their turn,
  `FrameTransport` calls `send_some` in a thread: it reads a chunk, adds it to the digest, and writes it, with its
  header, to the socket, again and again while the peer asks for more and nobody else waits.
- `Diversion` is where a stream's incoming items go as they are received, instead of to rsocket. `FrameTransport` calls
  `take` in a thread for each.

Where no digest is wanted, the bytes don't come into the process at all, on Linux: `sendfile` and `splice` move them.

Items with metadata, so the first and the last of a transfer, and all that isn't an item of such a stream, goes the way
of all frames. Needs a plain socket of a POSIX system; with TLS, and elsewhere, every item goes that way.
"""

import asyncio
import errno
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final

from rsocket.frame import Frame, FrameFragmentMixin, FrameType

from ..protocol.digest import Digest

try:
    import fcntl
except ImportError:  # not on Windows, where none of this is used
    fcntl = None

__all__ = [
    "MOVES_FILES",
    "Diversion",
    "FileItems",
    "ItemsTurn",
    "Pipe",
    "finished",
    "is_impossible",
    "move_from",
    "wait_for_socket",
]

MOVES_FILES: Final = hasattr(os, "writev") and hasattr(os, "preadv") and hasattr(select, "poll")
"""Whether this system has what is needed here."""

_SPLICES: Final = sys.platform == "linux" and hasattr(os, "splice")
# What a file system, or a sandbox, says that can't do it.
_IMPOSSIBLE: Final = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
# What a pipe between a socket and a file holds: more than an item.
_PIPE_BYTES: Final = 1024 * 1024
_F_SETPIPE_SZ: Final = 1031

_sched_yield: Final[Callable[[], None] | None] = getattr(os, "sched_yield", None)

_HEADER: Final = struct.Struct(">BHIH")
_NEXT: Final = 0x20
_HEADER_BYTES: Final = 6
# How often the loop hears of what was written while a window of items comes: when its credit is replenished.
_TELLINGS: Final = 2
# And how long it waits for that at the most, where the disk is slow.
_TELL_SECONDS: Final = 0.02
# A thread that gave way and has the processor back after this was held up by a loop; if it takes longer, by somebody
# who works for long, and it keeps the processor for so many times as long then.
_SOON_SECONDS: Final = 0.001
_KEPT_TIMES: Final = 8
# How long a thread waits for a socket that takes or has nothing, before it goes back to where somebody else needs it.
_PATIENCE_MS: Final = 10
# Items that may be sent in a turn while another one waits; while two wait, one.
_TURN_ITEMS: Final = 2
# Streams whose items may share a turn.
_MAX_SHARING: Final = 64
# Buffers that nobody sends from just now; each transfer that is sending has one.
_MAX_SPARES: Final = 4
_spares: list[bytearray] = []


class _Courtesy(threading.local):
    """When a thread gives way the next time."""

    next_at = 0.0


_courtesy: Final = _Courtesy()


class FileItems(FrameFragmentMixin):
    """The items of one stream that are a file's bytes: one object for all of them, each sent when it is granted.

    rsocket's sender takes it for a payload in fragments: it stands in the send queue while something is granted, and
    has its turns between what others send. Each turn is one hop to a thread, which goes on for as long as something is
    granted and nobody waits.

    Args:
        stream_id: The stream.
        source: The file's descriptor; it stays open until `finished` is done.
        offset: Where in the file the first item begins.
        count: How many items there are, granted or not.
        item_bytes: What each of them carries.
        queue: Puts this into the send queue.
        digest: Gets the bytes while they pass; None to do without, so that they needn't come into the process.
        executor: Whose threads do it; the loop's default executor if None.
        is_same: Tells, after each read, whether the file still has the content that it had; None if nobody asks.
        on_item: Called in the thread after each item was read.

    Attributes:
        sent: Items that are in the socket, the one that is on its way included.
        granted: Items that may be sent.
        failure: What kept the rest from being sent; None if nothing did, or the file only ended too early.
        finished: Done when no thread has anything to do with it any more, and never will: all are sent, or no more
            can be, or it was withdrawn.
    """

    def __init__(
        self,
        stream_id: int,
        source: int,
        offset: int,
        count: int,
        item_bytes: int,
        *,
        queue: "Callable[[FileItems], None]",
        digest: Digest | None = None,
        executor: Executor | None = None,
        is_same: Callable[[], bool] | None = None,
        on_item: Callable[[], None] | None = None,
    ) -> None:
        self.stream_id: Final = stream_id
        self.executor: Final = executor
        self.sent = self.granted = 0
        self.failure: Exception | None = None
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._source = source
        self._offset = offset
        self._count = count
        self._item_bytes = item_bytes
        self._queue = queue
        self._digest = digest
        self._is_same = is_same
        self._on_item = on_item
        self._header = _HEADER.pack(*_split(_HEADER_BYTES + item_bytes), stream_id, FrameType.PAYLOAD << 10 | _NEXT)
        self._buffer: bytearray | None = None
        self._parts: list[bytes | memoryview] = []
        self._unread = 0
        # Whether the bytes come into the process.
        self._reads = not _SPLICES or digest is not None
        self._is_queued = False
        self._has_turn = False
        self._is_cut = False  # short, failed or withdrawn: nothing more is to be sent

    @property
    def is_sent(self) -> bool:
        """Whether nothing is left to be sent of them, or to be withdrawn."""
        return self.finished.done()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be sent just now."""
        return not self._is_queued and not self._has_turn

    @property
    def ungranted(self) -> int:
        """Items that may be granted yet."""
        return 0 if self._is_cut else self._count - self.granted

    @property
    def sent_bytes(self) -> int:
        """The bytes of the items that are counted in `sent`."""
        return self.sent * self._item_bytes

    @property
    def handed_bytes(self) -> int:
        """The same with the frames' headers."""
        return self.sent * (len(self._header) + self._item_bytes)

    @property
    def waiting_bytes(self) -> int:
        """What of them isn't in the socket yet."""
        return sum(map(len, self._parts)) + self._unread

    @property
    def is_between_frames(self) -> bool:
        """Whether no frame is half in the socket."""
        return not self._parts and not self._unread

    def grant(self, items: int) -> None:
        """Lets so many more be sent."""
        self.granted += items
        assert self.granted <= self._count, "ask `ungranted` first"
        if not self._is_queued and not self.finished.done():
            self._is_queued = True
            self._queue(self)

    def withdraw(self) -> None:
        """Sends no more of them than the item that is on its way."""
        self._is_cut = True
        if not self._has_turn:
            self._finish()

    def get_next_fragment(self, requires_length_header: bool = True) -> "ItemsTurn":
        """The next turn; the last one if nothing may be sent. Called by rsocket's sender."""
        self._is_queued = self.has_next
        return ItemsTurn(self, is_last=not self._is_queued)

    # For the transport

    @property
    def has_next(self) -> bool:
        """Whether one more may be sent."""
        return not self._is_cut and self.sent < self.granted

    @property
    def is_over(self) -> bool:
        """Whether no more will be sent than the one that is on its way."""
        return self._is_cut or self.sent == self._count

    def begin(self) -> bool:
        """A turn begins; False if there is nothing to do in it."""
        self._has_turn = self.has_next
        return self._has_turn

    def end(self) -> None:
        """The turn is over: no thread has anything to do with them until the next one."""
        self._has_turn = False
        self._give_back_buffer()
        if self.is_over:
            self._finish()

    def send_some(self, connection: socket.socket, waiting: Callable[[], int]) -> bool:
        """Sends what is granted and the socket takes; False if that has to wait for the socket. Blocks.

        Args:
            connection: The socket.
            waiting: How many others wait for their turn; for them it stops early.

        Raises:
            OSError: The connection has ended, or has to end, since a file was cut short behind its frame's header.
        """
        first = self.sent
        while self._parts or self._unread or self._read(self.sent - first, waiting):
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
        self._give_back_buffer()
        return True

    def _give_back_buffer(self) -> None:
        if self._buffer is not None and len(_spares) < _MAX_SPARES:
            _spares.append(self._buffer)
        self._buffer = None

    def _send_file(self, connection: socket.socket) -> None:
        try:
            moved = os.sendfile(connection.fileno(), self._source, self._offset, self._unread)
        except OSError as error:
            if not is_impossible(error):
                raise
            self._reads = True
            view = self._read_here(self._unread)
            moved = len(view) if len(view) == self._unread else 0
            self._parts = [view]
        else:
            self._offset += moved
        if not moved:
            raise OSError("a file was cut short while it was sent")
        self._unread -= moved

    def _read(self, sent: int, waiting: Callable[[], int]) -> bool:
        """Makes the next item; whether there is one in this turn, in which `sent` were sent."""
        if self._is_cut or self.sent == self.granted or sent * waiting() >= _TURN_ITEMS:
            return False
        give_way()
        try:
            is_there = self._fill() if self._reads else self._look()
        except Exception as error:  # whatever a disk, or a store that was closed, raises
            self.failure, is_there = error, False
        if not is_there:
            self._is_cut = True
            return False
        self.sent += 1
        if self._on_item is not None:
            self._on_item()
        return True

    def _fill(self) -> bool:
        """Reads an item; whether it is whole."""
        view = self._read_here(self._item_bytes)
        if len(view) < self._item_bytes or (self._is_same is not None and not self._is_same()):
            return False
        if self._digest is not None:
            self._digest.update(view)
        self._parts = [self._header, view]
        return True

    def _read_here(self, nbytes: int) -> memoryview:
        """The file's next bytes, fewer at its end; good until the next ones are read."""
        if self._buffer is None:
            self._buffer = _borrow(self._item_bytes)
        view = memoryview(self._buffer)[:nbytes]
        filled = 0
        while filled < nbytes and (more := os.preadv(self._source, [view[filled:]], self._offset)):
            filled += more
            self._offset += more
        return view[:filled]

    def _look(self) -> bool:
        """As `_fill`, for an item whose bytes stay in the system."""
        is_there = os.fstat(self._source).st_size >= self._offset + self._item_bytes
        if not is_there or (self._is_same is not None and not self._is_same()):
            return False
        self._parts = [self._header]
        self._unread = self._item_bytes
        return True

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


class ItemsTurn(Frame):
    """A turn of `FileItems` in the send queue, as rsocket's sender sees it; others' may share it.

    Attributes:
        executor: Whose threads do it.
        waiting: How many others wait for theirs; told by a sender that knows.
    """

    def __init__(self, items: FileItems, *, is_last: bool) -> None:
        super().__init__(FrameType.PAYLOAD)
        self.executor: Final = items.executor
        self.waiting: Callable[[], int] = _somebody
        self.stream_id = items.stream_id
        self.flags_next = True
        self.flags_follows = not is_last
        self._all = [items]
        self._at = 0
        self._sent = 0

    def share(self, items: FileItems) -> bool:
        """Lets other items have the same turn, one after another with those that have it; False if that can't be."""
        if items in self._all or items.executor is not self.executor or len(self._all) == _MAX_SHARING:
            return False
        self._all.append(items)
        return True

    def begin(self) -> bool:
        """It begins; False if there is nothing to do in it."""
        self._all = [items for items in self._all if items.begin()]
        self._sent = self._count_sent()
        return bool(self._all)

    def end(self) -> None:
        """It is over: no thread has anything to do with the items until their next one."""
        for items in self._all:
            items.end()

    def withdraw(self) -> None:
        """Sends no more than the item that is on its way."""
        for items in self._all:
            items.withdraw()

    @property
    def handed_bytes(self) -> int:
        """See `FileItems`; of all of them together."""
        return sum(items.handed_bytes for items in self._all)

    @property
    def waiting_bytes(self) -> int:
        """See `FileItems`."""
        return self._all[self._at].waiting_bytes

    @property
    def is_between_frames(self) -> bool:
        """See `FileItems`."""
        return self._all[self._at].is_between_frames

    def send_some(self, connection: socket.socket) -> bool:
        """Sends what is granted and the socket takes; False if that has to wait for the socket. Blocks.

        Where several share the turn each sends an item and is followed by the next. It is over for all of them when one
        has no more to send, so that whoever waits for that hears of it.

        Raises:
            OSError: See `FileItems`.
        """
        if len(self._all) == 1:
            return self._all[0].send_some(connection, self.waiting)
        while self._all[self._at].send_some(connection, _one_by_one):
            if any(items.is_over for items in self._all):
                return True
            if (self._count_sent() - self._sent) * self.waiting() >= _TURN_ITEMS:
                return True
            order = range(self._at + 1, self._at + 1 + len(self._all))
            following = (at % len(self._all) for at in order)
            at = next((at for at in following if self._all[at].has_next), None)
            if at is None:
                return True
            self._at = at
        return False

    def _count_sent(self) -> int:
        return sum(items.sent for items in self._all)

    def parse(self, buffer: bytes | bytearray, offset: int) -> None:
        """Never called: these are only sent."""


class Pipe:
    """A pipe of a thread's, between a socket and a file."""

    def __init__(self) -> None:
        self.end, self._begin = os.pipe()
        self._nbytes = 4096  # it has that at the least
        if fcntl is not None:
            with suppress(OSError):  # over a quota; then it takes more steps
                fcntl.fcntl(self._begin, _F_SETPIPE_SZ, _PIPE_BYTES)
                self._nbytes = _PIPE_BYTES

    def fill(self, connection: socket.socket, nbytes: int) -> int:
        """Moves up to so many bytes in, once all that it had is taken out; how many, 0 at the connection's end.

        Raises:
            BlockingIOError: There are none just now.
        """
        try:
            return os.splice(connection.fileno(), self._begin, nbytes, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
        except OSError as error:
            if not is_impossible(error):
                raise
        # It is empty, so that this doesn't block: what was put in before was taken out.
        return os.write(self._begin, connection.recv(min(nbytes, self._nbytes)))

    def close(self) -> None:
        """Closes both ends."""
        os.close(self.end)
        os.close(self._begin)


class Diversion:
    """Where the items of one incoming stream go, past rsocket: to a function that writes them.

    Args:
        write: Takes an item's bytes, in a thread; the view is only good until it returns.
        on_written: Told, in the loop, how many items and bytes were written since it was last told: when half of the
            most that was granted at a time was, or it wasn't told for a while, or nothing more comes for now.
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
        self._told_at = 0.0
        self._tell_items = 1
        self._failure: Exception | None = None
        self.is_closed = False
        self._is_telling = False

    def grant(self, items: int, nbytes: int) -> None:
        """Lets so many more items and bytes come this way; what goes beyond comes the way of all frames."""
        self._granted_items += items
        self._granted_bytes += nbytes
        self._tell_items = max(self._tell_items, (self._granted_items - self._taken_items) // _TELLINGS)

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
        if self._failure is not None or self._taken_items - self._told_items >= self._tell_items or self._is_late():
            self.tell_soon()
        if is_whole:
            give_way()

    def _is_late(self) -> bool:
        return time.monotonic() - self._told_at > _TELL_SECONDS

    def tell_soon(self) -> None:
        """Sees to it that the loop is told of what it doesn't know. In the thread, when it is going to wait."""
        if not self._is_telling and (self._taken_bytes > self._told_bytes or self._failure is not None):
            self._is_telling = True
            self._loop.call_soon_threadsafe(self.tell)

    def tell(self) -> None:
        """Tells what happened since the last time. In the loop's thread."""
        self._is_telling = False  # first: what the thread adds from now on is told once more
        self._told_at = time.monotonic()
        items, nbytes = self._taken_items - self._told_items, self._taken_bytes - self._told_bytes
        self._told_items += items
        self._told_bytes += nbytes
        if items or nbytes:
            self._on_written(items, nbytes)
        failure, on_failed = self._failure, self._on_failed
        if failure is not None:
            self._on_failed = _ignore
            on_failed(failure)


def is_impossible(error: OSError) -> bool:
    """Whether this is a system's way to say that it can't move bytes by itself between these two."""
    return error.errno in _IMPOSSIBLE


def move_from(pipe: int, file: int, nbytes: int, offset: int) -> int:
    """Moves up to so many bytes from a pipe to a file, in any case all that are taken out; how many. Blocks."""
    try:
        return os.splice(pipe, file, nbytes, offset_dst=offset)
    except OSError as error:
        if not is_impossible(error):
            raise
    view = memoryview(os.read(pipe, nbytes))
    written = 0
    while written < len(view):
        written += os.pwrite(file, view[written:], offset + written)
    return written


def give_way() -> None:
    """Lets whoever else is ready have the processor, in a thread that has kept it for an item.

    A system that shares a processor between threads lets one go on for some milliseconds, though an event loop was
    woken meanwhile; then a small request waits for that at each of its hops. A loop is soon done; somebody else may
    keep the processor for as long as the system lets him, and isn't given way again for some times as long.
    """
    now = time.monotonic()
    if _sched_yield is not None and now >= _courtesy.next_at:
        _sched_yield()
        after = time.monotonic()
        if after - now > _SOON_SECONDS:
            _courtesy.next_at = after + (after - now) * _KEPT_TIMES


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
    try:
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled  # which leads to this frame, in a circle


def _somebody() -> int:
    """For a sender that doesn't know how many wait."""
    return 1


def _one_by_one() -> int:
    """As many wait as let a stream send one item."""
    return _TURN_ITEMS


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
