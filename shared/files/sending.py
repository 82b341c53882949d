"""A range of a file on its way out, as the items of one stream: one object for all of them, without a copy of any.

A chunk that goes through the event loop costs some 100 µs of Python at each end beside the system calls, several times
what those take, and a thread handoff for its disk work. Here one handoff moves many chunks.
"""

import asyncio
import os
import select
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from rsocket.frame import FrameType

from ..aio import wake
from ..frames.outbox import TurnTaker
from ..frames.room import SendRoom
from ..protocol.digest import Digest
from ..protocol.flow import Credit
from .pipes import SPLICES, is_unsupported
from .sockets import Bytes, LaneSocket
from .threads import SocketTurn, SpareBuffers, wait_for_socket, yield_cpu

__all__ = ["FileChanged", "FileRange", "SendJob", "Sent"]

_HEADER: Final = struct.Struct(">IH")
_METADATA, _COMPLETE, _NEXT = 0x100, 0x40, 0x20
_buffers: Final = SpareBuffers(4, 1024 * 1024)


class FileChanged(Exception):
    """A file is shorter than it was, or has other content, in the middle of a transfer."""


class Sent(Enum):
    """How a job's turn at the socket ended."""

    ALL = auto()
    """Nothing more may be sent in it."""
    SOME = auto()
    """The socket takes no more just now; the frame may be half in it."""
    NOTHING = auto()
    """The disk held the thread up for so long that it has lost the socket; the item waits for the next turn."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """What is sent.

    Attributes:
        descriptor: The file's; it stays open until the job is finished.
        offset: Where the range begins.
        end: Where it ends, beyond `offset`.
        executor: Whose threads read it; the event loop's default executor if None.
        is_same: Asked after each read whether the file still has the content that it had; None to do without. Blocks.
    """

    descriptor: int
    offset: int
    end: int
    executor: Executor | None = None
    is_same: Callable[[], bool] | None = None


class SendJob(TurnTaker):
    """The items of one stream that are a file's bytes; each is sent when there is credit for it.

    The job waits in the connection's outbox while it has something to send, and shares the turns there with what others
    send. Without a digest the bytes never come into the process, where the system can move them by itself.

    Args:
        stream_id: The stream.
        file: What is sent.
        item_bytes: What each item carries, the last one excepted.
        credit: The transfer's ledger.
        queue: Puts the job into the outbox.
        first: The first item's metadata, unless it is also the last one; empty for none.
        last: Makes the last item's metadata when all bytes have passed; that item completes the stream.
        digest: Gets the bytes while they pass; None to do without.
        on_item: Called in the thread after each item was read.
        room: Where what is read counts until it is sent; items are smaller while it is short. None to do without.

    Attributes:
        failure: Why the rest can't be sent: what the disk raised, or FileChanged; None if nothing is wrong.
        frame_bytes: Bytes of the frames that were sent, or begun.
        has_last: Whether the last item is on its way, or sent.
        is_torn: Whether half a frame is in the socket.
        is_stopped: Whether no more of it is to be sent than that frame.
        finished: Done when no thread has anything to do with the file any more: all is sent, or it failed, or stopped.
    """

    def __init__(
        self,
        stream_id: int,
        file: FileRange,
        item_bytes: int,
        credit: Credit,
        queue: "Callable[[SendJob], None]",
        *,
        first: bytes = b"",
        last: Callable[[], bytes],
        digest: Digest | None = None,
        on_item: Callable[[], None] | None = None,
        room: SendRoom | None = None,
    ) -> None:
        self.stream_id: Final = stream_id
        self.file: Final = file
        self.failure: Exception | None = None
        self.frame_bytes = 0
        self.has_last = False
        self.is_torn = self.is_stopped = False
        self.finished: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        self._item_bytes = item_bytes
        self._credit = credit
        self._queue: Callable[[SendJob], None] | None = queue
        self._first = first
        self._last: Callable[[], bytes] | None = last
        self._digest = digest
        self._on_item = on_item
        self._offset = file.offset
        self._reads = digest is not None or not SPLICES
        self._room = room
        self._buffer: bytearray | None = None
        self._counted_bytes = 0
        # The item that is on its way: what the socket hasn't taken of it, in memory and in the file.
        self._parts: list[Bytes] = []
        self._unread = 0
        self._is_cut_short = False  # the file ended behind the header of the item that is on its way
        self._is_queued = False
        self._is_running = False

    @property
    def executor(self) -> Executor | None:
        return self.file.executor

    @property
    def nbytes(self) -> int:
        """Bytes of the file that were sent, the item that is on its way included."""
        return self._offset - self.file.offset + self._unread

    @property
    def waiting_bytes(self) -> int:
        """What of the item that is on its way isn't in the socket."""
        return sum(map(len, self._parts)) + self._unread

    @property
    def is_all_sent(self) -> bool:
        """Whether the last item is in the socket."""
        return self._offset == self.file.end and not self._parts and not self._unread

    @property
    def is_ended(self) -> bool:
        """Whether nothing of it will be sent any more."""
        return self.failure is not None or self.is_all_sent or (self.is_stopped and not self.is_torn)

    @property
    def is_ready(self) -> bool:
        """Whether something of it may be sent now."""
        if self._parts or self._unread:
            return True
        return not self.is_stopped and self.failure is None and self._offset < self.file.end and self._has_credit

    @property
    def is_queued(self) -> bool:
        """Whether it waits for a turn, or has one."""
        return self._is_queued or self._is_running

    def resume(self) -> None:
        """Queues the job if it may send something; to be called whenever credit has come."""
        if self._queue is not None and self.is_ready and not self.is_queued:
            self._is_queued = True
            self._queue(self)

    def stop(self) -> None:
        """Sends no more of it than the frame that is half in the socket."""
        self.is_stopped = True
        if not self._is_running and not self.is_torn:
            self._finish()

    # For the outbox and the file lane, in the event loop

    def begin_turn(self) -> bool:
        """The job leaves the outbox for a turn at the socket; False if it has nothing to send."""
        self._is_queued = False
        self._is_running = self.is_ready and not self.finished.done()
        return self._is_running

    def end_turn(self) -> None:
        """No thread has anything to do with the job until its next turn."""
        self._is_running = False
        if not self._parts:
            self._give_back_buffer()
        if self.is_ended:
            self._finish()
        else:
            self.resume()

    def abandon(self) -> None:
        """The connection ends with half a frame in the socket: the rest will never be sent."""
        self.is_stopped, self.is_torn = True, False

    # For the file lane's thread

    def send_some(
        self,
        connection: LaneSocket,
        prefix: Callable[[int], bytes],
        turn: SocketTurn,
        may_go_on: Callable[[int], bool],
    ) -> Sent:
        """Sends items while there is credit. Blocks.

        Args:
            connection: The socket, which doesn't block.
            prefix: What the transport puts before a frame of so many bytes.
            turn: The thread's right to use the socket.
            may_go_on: Whether another item may follow so many.

        Raises:
            OSError: The connection has ended.
        """
        sent = 0
        self._reads = self._reads or not connection.moves_files
        while True:
            if not self._parts and not self._unread and not self.is_torn:
                if not may_go_on(sent) or not self.is_ready:
                    return Sent.ALL
                if not self._read(prefix, turn):
                    return Sent.NOTHING if turn.is_revoked else Sent.ALL
            if not self._write(connection):
                return Sent.SOME
            sent += 1

    @property
    def _has_credit(self) -> bool:
        return self._credit.available > 0

    def _read(self, prefix: Callable[[int], bytes], turn: SocketTurn) -> bool:
        """Makes the next item; whether it is to be sent now."""
        yield_cpu()
        turn.enter_disk()
        try:
            self._make_item(prefix)
        except Exception as error:  # whatever a disk, or a store that was closed, raises
            self.failure = error
            self._parts, self._unread = [], 0
        if self._parts and self._on_item is not None:
            self._on_item()
        return turn.leave_disk() and bool(self._parts)

    def _make_item(self, prefix: Callable[[int], bytes]) -> None:
        begin = self._offset
        nbytes = min(self._item_bytes, self.file.end - begin)
        if self._reads and self._room is not None:
            if self._buffer is None:
                self._counted_bytes = self._room.take(nbytes)
            nbytes = min(nbytes, self._counted_bytes)
        is_last = begin + nbytes == self.file.end
        view: memoryview | None = None
        # The last item completes the stream: it must be whole before its header is sent.
        if self._reads or is_last:
            view = self._read_here(nbytes)
        is_there = os.fstat(self.file.descriptor).st_size >= begin + nbytes if view is None else len(view) == nbytes
        if not is_there or (self.file.is_same is not None and not self.file.is_same()):
            self._offset = begin
            raise FileChanged
        if view is not None and self._digest is not None:
            self._digest.update(view)
        metadata = self._first if begin == self.file.offset else b""
        flags = _NEXT
        if is_last and self._last is not None:
            metadata, flags = self._last(), _NEXT | _COMPLETE
            self.has_last = True
        head = b""
        if metadata:
            flags |= _METADATA
            head = len(metadata).to_bytes(3, "big") + metadata
        head = _HEADER.pack(self.stream_id, FrameType.PAYLOAD << 10 | flags) + head
        self._parts = [prefix(len(head) + nbytes) + head]
        if view is None:
            self._unread = nbytes
        else:
            self._parts.append(view)
        self._credit.take(nbytes)

    def _write(self, connection: LaneSocket) -> bool:
        """Puts the item into the socket; False if that takes no more just now."""
        if not self.is_torn:
            self.is_torn = True
            self.frame_bytes += self.waiting_bytes
        while self._parts or self._unread or connection.unsent_bytes:
            try:
                if self._unread and not self._parts:
                    self._send_file(connection)
                    continue
                if self._unread:  # the header goes out with what follows
                    taken = connection.send(self._parts[0], socket.MSG_MORE)
                else:
                    taken = connection.write(self._parts)
            except (BlockingIOError, InterruptedError):
                if not wait_for_socket(connection, select.POLLOUT):
                    return False
                continue
            while self._parts and taken >= len(self._parts[0]):
                taken -= len(self._parts.pop(0))
            if self._parts and taken:
                self._parts[0] = memoryview(self._parts[0])[taken:]
        self.is_torn = False
        if self._is_cut_short:
            self.failure = FileChanged()
        return True

    def _send_file(self, connection: LaneSocket) -> None:
        try:
            moved = os.sendfile(connection.fileno(), self.file.descriptor, self._offset, self._unread)
        except OSError as error:
            if not is_unsupported(error):
                raise
            self._reads = True
            view = self._read_here(self._unread)
            moved = len(view) if len(view) == self._unread else 0
            self._parts = [view]
        else:
            self._offset += moved
        if not moved:
            # The frame is begun, and other streams' frames follow: it is filled up, and its stream fails behind it.
            self._is_cut_short = True
            self._parts.append(bytes(self._unread))
            moved = self._unread
        self._unread -= moved

    def _read_here(self, nbytes: int) -> memoryview:
        """The file's next bytes, fewer at its end; good until the next ones are read."""
        if self._buffer is None:
            self._buffer = _buffers.borrow(self._item_bytes if self._room is None else nbytes)
        view = memoryview(self._buffer)[:nbytes]
        filled = 0
        while filled < nbytes and (more := os.preadv(self.file.descriptor, [view[filled:]], self._offset)):
            filled += more
            self._offset += more
        return view[:filled]

    def _give_back_buffer(self) -> None:
        if self._buffer is not None:
            _buffers.give_back(self._buffer)
            self._buffer = None
        if self._room is not None and self._counted_bytes:
            self._room.add(-self._counted_bytes)
            self._counted_bytes = 0

    def _finish(self) -> None:
        self._parts, self._unread = [], 0
        self._give_back_buffer()
        self._queue = self._last = self._on_item = None  # which lead back to the transfer, in a reference cycle
        wake(self.finished)
