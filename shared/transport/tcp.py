"""rsocket's `Transport` over an asyncio connection: whole frames in, whole frames out, never more than asked for.

Receiving is pulled: bytes become frames one at a time, when rsocket asks for the next, and reading stops while the
receive buffer is full. Sending waits for the socket. Bytes that are no frame are answered with an ERROR and the end of
the connection, and payloads over the limits with an ERROR on their stream.

What is in memory for one connection: a receive buffer of 64 KiB, the large frame that is arriving, the payloads under
reassembly, and of what is sent one frame or 16 KiB of small ones (with TLS, 64 KiB more).

On POSIX a frame goes to the socket with one vectored system call that asyncio knows nothing of; what the socket doesn't
take goes through asyncio's own buffer. TLS, and systems without `os.writev`, use asyncio's buffer for all of it.
"""

import asyncio
import logging
import os
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Final, Self, cast
from weakref import WeakKeyDictionary

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketTransportError
from rsocket.frame import (
    CancelFrame,
    ErrorFrame,
    Frame,
    FrameType,
    exception_to_error_frame,
)
from rsocket.frame_builders import to_cancel_frame
from rsocket.transports.transport import Transport

from ..aio import run_blocking
from ..errors import ServerError, TransferError, to_protocol_error
from ..files.lane import MOVES_FILES, Diversion, ItemsTurn, Pipe, finished, wait_for_socket
from ..frames.codec import MAX_FRAME_BYTES, FrameError, FrameHeader, serialize_prefix
from ..frames.reassembly import (
    PayloadRefused,
    Reassembler,
    ReassemblyBudget,
    ReassemblyLimits,
    SplitPayload,
    Spool,
    Spooler,
)
from .decoder import FrameReceiver

__all__ = ["FrameTransport", "ReassemblyBudget", "ReassemblyLimits", "SkippedFrame"]

_log = logging.getLogger(__name__)

if sys.platform == "linux":
    import fcntl
    import termios

_HAS_WRITEV: Final = hasattr(os, "writev")
# Small frames wait for each other, until nothing is left to send or this much is waiting.
_GATHER_BYTES: Final = 16 * 1024
# What the kernel may hold that isn't on its way yet. It can't be overtaken by a small frame; what is on its way isn't
# limited, so that long lines stay full. Over loopback less of it also means that more stays in the processor's cache.
_UNSENT_BYTES: Final = 128 * 1024
# After so many frames or bytes, or so long, the loop gets a turn. Handling a small frame takes 20 to 50 µs, that of an
# upload's begin 300; writing 256 KiB 100.
_FRAMES_PER_TURN: Final = 16
_FRAMES_PER_LOOK: Final = 4  # at the clock
_TURN_SECONDS: Final = 0.0005
_SENT_BYTES_PER_TURN: Final = 256 * 1024
# How many of the connections that have more than that go on in one turn of the loop.
_BUSY_PER_TURN: Final = 4
# How long a thread may receive for one connection before another one's turn comes.
_RECEIVE_SECONDS: Final = 0.05
# How long a peer has to take what was already sent before the connection is cut.
_CLOSE_SECONDS: Final = 1.0

_Bytes = bytes | bytearray | memoryview


class SkippedFrame(CancelFrame):
    """Stands in rsocket's send queue for a frame that was withdrawn; never written."""


class _Turns:
    """Lets few of the busy connections of a loop go on at a time, so that a turn is short however many there are."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Returns when it is the caller's turn: in the loop's next one, or later."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            loop.call_soon(self._next)
        await waiter

    def _next(self) -> None:
        for _ in range(min(_BUSY_PER_TURN, len(self._waiting))):
            _wake(self._waiting.popleft())
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)


_turns: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns]] = WeakKeyDictionary()


class FrameTransport(Transport, asyncio.BufferedProtocol):
    """One connection; hand it to asyncio as the protocol and to rsocket as the transport.

    Args:
        on_connected: Called once, with this transport, when the connection is made.
        on_lost: Called once, with the reason or None, when the connection has ended.
        limits: What the peer may make this side hold; None for no limits.
        budget: What all connections together may hold; None for no limit.
    """

    def __init__(
        self,
        on_connected: Callable[["FrameTransport"], None] | None = None,
        on_lost: Callable[[Exception | None], None] | None = None,
        *,
        limits: ReassemblyLimits | None = None,
        budget: ReassemblyBudget | None = None,
    ) -> None:
        super().__init__()
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._lost = self._loop.create_future()
        self._failure: str | None = None
        self._peer = "unknown"
        self._cut: asyncio.TimerHandle | None = None

        self._reassembler = Reassembler(limits, budget)
        self._reassembler.on_refused = self._on_refused
        self._receiver = FrameReceiver(self._reassembler)
        self._is_reading_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._received_this_turn = 0
        self._looked_at = 0.0
        self._turns = _turns.setdefault(self._loop, _Turns())
        self._received_at = self._loop.time()
        self._has_refused = False
        self._count_refusal: Callable[[], None] | None = None
        self._is_rest_wanted = True
        self._hold: asyncio.Future[None] | None = None

        # The socket, while frames may be written past asyncio.
        self._fd: int | None = None
        self._write_error: OSError | None = None
        self._writer: asyncio.Future[None] | None = None
        self._gathered: list[_Bytes] = []
        self._gathered_bytes = 0
        self._sent_this_turn = 0
        self._sent_bytes_this_turn = 0
        self._socket: socket.socket | None = None
        self._encrypted: asyncio.WriteTransport | None = None
        self._handed_bytes = 0
        self._blocked_taken: int | None = None
        self._blocked_since = 0.0

        # Threads: a descriptor of their own, which asyncio doesn't close while they use it.
        self._own: socket.socket | None = None
        self._threads = 0
        self._items: ItemsTurn | None = None
        self._items_sent: asyncio.Future[None] | None = None
        self._diversions: dict[int, Diversion] = {}
        self._receiving: asyncio.Future[None] | None = None
        self._is_receiving_wanted = False
        # Of the item whose bytes don't come into the process: where they go, and how many are missing.
        self._spliced: tuple[Diversion, int] | None = None
        self._pipe: Pipe | None = None

        self._farewell = ErrorFrame()
        self._has_said_farewell = False

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return self._lost.done()

    @property
    def failure(self) -> str | None:
        """Why this side ended the connection; None if it didn't."""
        return self._failure

    @property
    def peer(self) -> str:
        """The other end's address, for logs."""
        return self._peer

    @property
    def address(self) -> str:
        """The other end's address without its port."""
        return self.peer.rpartition(":")[0]

    @property
    def received_at(self) -> float:
        """The loop's time when bytes last arrived, or the connection was made; now while nothing is taken in."""
        return self._received_at if self._hold is None else self._loop.time()

    def received_of(self, stream_id: int) -> int:
        """Bytes that have arrived of a payload of this stream that isn't whole yet."""
        return self._reassembler.received_of(stream_id) + self._receiver.received_of(stream_id)

    def forget_rest(self) -> None:
        """Drops what was received and is still to be looked at, now that the connection has ended."""
        self._is_rest_wanted = False
        _wake(self._reader)
        self._free_buffer()

    def set_spooler(self, spooler: Spooler) -> None:
        """Sets who decides which split requests' data don't go to memory."""
        self._reassembler.spooler = spooler

    def set_stream_counter(self, count_streams: Callable[[], int]) -> None:
        """Sets who tells how many streams are open; requests that aren't whole yet count beside them."""
        self._reassembler.count_streams = count_streams

    def set_refusal_counter(self, count_refusal: Callable[[], None]) -> None:
        """Sets who is told before the peer is that a payload was refused, and may fail the connection instead."""
        self._count_refusal = count_refusal

    def set_payload_limit(self, most_of: Callable[[int], float]) -> None:
        """Sets who tells how large a stream's split payload may become, in bytes; 0 if nobody waits for one."""
        self._reassembler.most_of = most_of

    @property
    def pending_requests(self) -> int:
        """How many requests aren't whole yet."""
        return self._reassembler.pending_requests

    def check_payloads(self, seconds: float) -> None:
        """Refuses payloads that have stopped to grow for `seconds`. To be called about twice a second."""
        self._reassembler.check(seconds)

    def set_limits(self, limits: ReassemblyLimits) -> None:
        """Replaces the connection's limits, for what arrives from now on."""
        self._reassembler.set_limits(limits)

    @property
    def held_bytes(self) -> int:
        """What of payloads that aren't whole yet counts against the limits."""
        return self._reassembler.held_bytes

    @property
    def handed_bytes(self) -> int:
        """Bytes of all the frames that were handed to `send_frame` so far."""
        return self._handed_bytes + (0 if self._items is None else self._items.handed_bytes)

    @property
    def waiting_bytes(self) -> int:
        """What was sent and isn't known to have been taken by the peer's system.

        On Linux that is what it hasn't acknowledged; elsewhere what this side's socket hasn't taken.
        """
        if self.is_lost:
            return 0
        return self._gathered_bytes + self._buffered_bytes + _unacknowledged_bytes(self._socket)

    @property
    def taken_bytes(self) -> int:
        """How many of `handed_bytes`, from the first on, the peer has taken; a few bytes more or less with TLS."""
        return self.handed_bytes - self.waiting_bytes

    @property
    def write_blocked_since(self) -> float | None:
        """The loop's time since when the peer has taken nothing of what the socket has no room for; None if it has.

        A peer that takes something between two looks at this isn't blocked, so look at intervals shorter than the
        time that it is allowed.
        """
        if self.is_lost or not self._buffered_bytes:
            self._blocked_taken = None
            return None
        taken = self.taken_bytes
        if self._blocked_taken is None or taken > self._blocked_taken:
            self._blocked_taken = taken
            self._blocked_since = self._loop.time()
        return self._blocked_since

    @property
    def _buffered_bytes(self) -> int:
        """What is in asyncio's buffers, and what a thread is sending; uvloop doesn't tell what is encrypted already."""
        buffers = (self._transport, self._encrypted)
        nbytes = 0 if self._items is None else self._items.waiting_bytes
        return nbytes + sum(buffer.get_write_buffer_size() for buffer in buffers if buffer is not None)

    @property
    def moves_files(self) -> bool:
        """Whether `FileItems` may be sent, and items diverted: see `shared.direct`.

        It takes a descriptor if there is one; once it is True, it is until the connection has ended.
        """
        if MOVES_FILES and self._own is None and self._fd is not None:
            with suppress(OSError):  # the process has no more; then frames go as they always can
                self._own = socket.socket(fileno=os.dup(self._fd))
        return self._own is not None and not self.is_lost

    def divert(self, stream_id: int, diversion: Diversion) -> None:
        """Lets the plain items of a stream go elsewhere than to rsocket, those that aren't granted excepted."""
        assert self.moves_files, "ask `moves_files` first"
        self._diversions[stream_id] = diversion

    async def stop_diverting(self, stream_id: int) -> None:
        """Ends that; no thread has anything to do with it any more when this returns. Fine if it has ended already.

        A cancellation waits for the thread, too: what it writes to can't be closed before.
        """
        diversion = self._diversions.pop(stream_id, None)
        if diversion is None:
            return
        if self._receiving is not None:
            self._is_receiving_wanted = False
            _wake(self._reader)
            await finished(self._receiving)  # a later thread, for other streams, doesn't find this one any more
        diversion.tell()

    def hold(self, until: "asyncio.Future[None]") -> None:
        """Takes in no more frames, of whatever stream, until that is done or the connection has ended."""
        self._hold = until

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")  # kept, since TLS forgets it when the connection is lost
        self._peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"
        # `pause_writing` says that something waits, `resume_writing` that all of it is in the socket. Not `high=0`:
        # with it asyncio's TLS pauses when nothing waits, and never resumes.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._socket = sock = self._transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):  # not TCP
                # asyncio does this only for sockets that know their protocol's number, which accepted ones may not: a
                # small frame would wait for an acknowledgement, which the peer delays by 40 ms.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        # asyncio's TLS counts only what isn't encrypted yet, and puts a whole frame into the buffer below.
        below: object = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
        self._encrypted = below if isinstance(below, asyncio.WriteTransport) else None
        if _HAS_WRITEV and sock is not None and self._transport.get_extra_info("sslcontext") is None:
            self._fd = sock.fileno()
        if self._on_connected is not None:
            self._on_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._receiver.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._failure is not None:
            return  # read so that closing the socket doesn't reset it, and the peer gets to see the ERROR
        self._received_at = self._loop.time()
        self._receiver.received(nbytes)
        if self._receiver.is_ready:
            _wake(self._reader)
        if self._receiver.is_full:
            self._pause_reading()

    def eof_received(self) -> bool:
        self._cut_later()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._fd = None
        if self._own is not None:
            with suppress(OSError):  # it has ended already
                self._own.shutdown(socket.SHUT_RDWR)  # so that no thread waits for it
        if self._cut is not None:
            self._cut.cancel()
        if not self._lost.done():
            self._lost.set_result(None)
        self._free_own()
        self._reassembler.close()
        self._gathered.clear()
        _wake(self._reader)
        _wake(self._writer)
        self._free_buffer()
        # No circles: what a flood of connections took must not wait for the garbage collector.
        self._transport = self._encrypted = self._socket = None
        on_lost, self._on_lost, self._on_connected, self._count_refusal = self._on_lost, None, None, None
        if on_lost is not None:
            on_lost(exc if exc is not None else self._write_error)

    def pause_writing(self) -> None:
        if self._writer is None:
            self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        writer, self._writer = self._writer, None
        _wake(writer)

    # rsocket's side: receiving

    async def next_frame_generator(self) -> Self | None:
        """This transport, which iterates over the frames that arrive; None when there will be no more."""
        if not self._is_exhausted():
            return self
        self._free_buffer()
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        while True:
            count = self._received_this_turn
            if count and not count % _FRAMES_PER_LOOK and self._is_turn_over(count):
                self._received_this_turn = 0
                await self._turns.turn()
            if self._hold is not None:
                await asyncio.wait([self._hold, self._lost], return_when=asyncio.FIRST_COMPLETED)
                self._hold = None
            if self._is_exhausted():
                raise StopAsyncIteration
            if self._spliced is None and not self._receiver.is_ready:
                await self._wait_for_bytes()
                continue
            if (self._diversions or self._spliced is not None) and await self._receive_diverted():
                continue
            self._received_this_turn += 1
            try:
                frame = self._receiver.take()
            except FrameError as error:
                self.fail(ErrorCode.CONNECTION_ERROR, f"invalid_frame: {error}")
                continue
            except PayloadRefused as refused:
                frame = await self._refuse(refused)
            if isinstance(frame, SplitPayload):
                frame = await self._go_on(frame)
            if frame is not None:
                return frame

    async def _receive_diverted(self) -> bool:
        """Deals with what comes next if it is diverted; whether it did."""
        if self._spliced is not None:
            diversion, left = self._spliced
            if diversion in self._diversions.values():
                await self._receive_items(diversion)
            else:  # it was ended in the middle of an item
                self._receiver.skip_next(left)
                self._spliced = None
            return True
        found = None if self.is_lost else self._next_diverted()
        if found is None:
            return False
        await self._receive_items(found[1])
        # If the rest of an item is slow to come, it counts as any other frame that arrives.
        return not self._receiver.is_in_item

    def _next_diverted(self) -> tuple[FrameHeader, Diversion] | None:
        """The next frame's header, and where it goes, if it is an item that is diverted."""
        item = self._receiver.next_item(self._diversions)
        diversion = self._diversions.get(item.stream_id) if item is not None else None
        if item is None or diversion is None or not diversion.may_take(item.payload_bytes):
            return None
        # It may be the last fragment of an item, or follow something that was refused.
        return (item, diversion) if self._reassembler.expects_whole(item.stream_id) else None

    async def _receive_items(self, diversion: Diversion) -> None:
        """Receives diverted items in a thread until something else, or nothing, comes; asyncio doesn't read then."""
        self._pause_reading()
        self._is_receiving_wanted = True
        self._receiving = self._loop.create_future()
        try:
            with self._lent_socket() as connection:
                await run_blocking(diversion.executor, self._receive_some, connection)
                if self._spliced is not None and self._is_receiving_wanted:
                    await self._until_something(connection)
        except OSError as error:
            # The connection has ended, or has to: what follows in the middle of an item isn't the beginning of a frame.
            self._write_error = error.with_traceback(None)  # which leads back here
            self.abort()
        finally:
            for each in list(self._diversions.values()):
                each.tell()
            receiving, self._receiving = self._receiving, None
            receiving.set_result(None)
            if self._failure is not None:
                self._end_failed()

    def _receive_some(self, connection: socket.socket) -> None:
        """Blocks."""
        receiver, deadline = self._receiver, time.monotonic() + _RECEIVE_SECONDS
        # An item that has begun may end, unless it drips.
        late = deadline + _RECEIVE_SECONDS
        is_splicing = any(diversion.splices for diversion in list(self._diversions.values()))
        while self._is_receiving_wanted and time.monotonic() < (late if receiver.is_in_item else deadline):
            if self._spliced is not None:
                if not self._splice(connection, *self._spliced):
                    return
                continue
            found = self._next_diverted()
            if found is not None:
                item, diversion = found
                if diversion.splices and self._has_pipe():
                    here = receiver.begin_item(item)
                    nbytes = len(here)
                    diversion.take(here, is_whole=nbytes == item.payload_bytes)
                    here.release()
                    receiver.left_item(nbytes)
                    if nbytes < item.payload_bytes:
                        self._spliced = diversion, item.payload_bytes - nbytes
                    continue
                data = receiver.item_data(item)
                if data is not None:
                    diversion.take(data)
                    data.release()
                    receiver.pass_item(item)
                    continue
            elif receiver.is_ready:
                return  # something else
            buffer = receiver.get_buffer()
            if is_splicing and (missing := receiver.header_bytes_missing):
                buffer = buffer[:missing]  # what is behind the header stays in the system
            try:
                nbytes = os.readv(connection.fileno(), [buffer])
            except (BlockingIOError, InterruptedError):
                self._tell_soon()
                if not wait_for_socket(connection, select.POLLIN):
                    return
                continue
            if not nbytes:
                return  # asyncio hears of the end when it reads again
            self._received_at = self._loop.time()
            receiver.received(nbytes)

    def _tell_soon(self) -> None:
        for diversion in list(self._diversions.values()):
            diversion.tell_soon()

    def _splice(self, connection: socket.socket, diversion: Diversion, left: int) -> bool:
        """Moves some of an item from the socket to where it goes; whether there may be more. Blocks."""
        assert self._pipe is not None, "no item is begun without"
        try:
            nbytes = self._pipe.fill(connection, left)
        except (BlockingIOError, InterruptedError):
            self._tell_soon()
            return wait_for_socket(connection, select.POLLIN)
        if not nbytes:
            self._spliced = None
            return False  # asyncio hears of the end when it reads again
        self._received_at = self._loop.time()
        diversion.take_from(self._pipe, nbytes, is_whole=nbytes == left)
        self._spliced = (diversion, left - nbytes) if nbytes < left else None
        if diversion.has_failed:
            self._pipe.close()  # with what couldn't be written in it
            self._pipe = None
            if self._spliced is not None:
                self._receiver.skip_next(left - nbytes)
                self._spliced = None
        return True

    async def _until_something(self, connection: socket.socket) -> None:
        """Returns when the socket has something, or the connection has ended, or nobody wants it any more."""
        self._reader = self._loop.create_future()
        self._loop.add_reader(connection, _wake, self._reader)
        try:
            await self._reader
        finally:
            self._loop.remove_reader(connection)
            self._reader = None

    @contextmanager
    def _lent_socket(self) -> Generator[socket.socket, None, None]:
        """The socket, for a thread; it stays open while this is entered."""
        assert self._own is not None, "ask `moves_files` first"
        self._threads += 1
        try:
            yield self._own
        finally:
            self._threads -= 1
            self._free_own()

    def _has_pipe(self) -> bool:
        if self._pipe is None:
            with suppress(OSError):
                self._pipe = Pipe()
        return self._pipe is not None

    def _free_own(self) -> None:
        """Closes the threads' descriptor when the connection has ended and none uses it."""
        if self._own is not None and self.is_lost and not self._threads:
            self._own.close()
            self._own = None
            if self._pipe is not None:
                self._pipe.close()
                self._pipe = None

    def _free_buffer(self) -> None:
        """Frees the receive buffer if nothing is received any more, and nobody looks at what was."""
        if self.is_lost and self._is_exhausted() and self._receiving is None:
            self._receiver.close()

    def _pause_reading(self) -> None:
        if self._transport is not None and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()

    def _on_refused(self) -> None:
        """Payloads were refused between two frames: whoever waits for the next one tells the peer."""
        _wake(self._reader)

    def _is_turn_over(self, count: int) -> bool:
        """Whether it is the others' turn, after so many frames or so long."""
        if count >= _FRAMES_PER_TURN:
            return True
        now, then = time.monotonic(), self._looked_at
        self._looked_at = now
        return count > _FRAMES_PER_LOOK and now - then > _TURN_SECONDS

    def _is_exhausted(self) -> bool:
        is_over = not self._is_rest_wanted or not self._receiver.is_ready
        return self._failure is not None or (self.is_lost and is_over)

    async def _wait_for_bytes(self) -> None:
        if self._is_reading_paused and self._transport is not None and not self._transport.is_closing():
            self._is_reading_paused = False
            self._transport.resume_reading()
        self._received_this_turn = 0
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    async def _go_on(self, payload: SplitPayload) -> Frame | None:
        """Does what there is to do for a split payload; the frame that stands for it if it is whole."""
        if payload.spool is not None:
            return await self._spool(payload, payload.spool)
        if payload.is_whole:
            self._reassembler.release(payload)
            return payload.join()
        await run_blocking(None, payload.make_room)
        return None

    async def _spool(self, payload: SplitPayload, spool: Spool) -> Frame | None:
        """Passes on what arrived of a payload's data; nothing is received meanwhile, so that no more of it waits."""
        try:
            await spool.write(payload.take_data())
        except asyncio.CancelledError:
            spool.abandon()
            raise
        except Exception as error:  # whatever a disk raises; the peer hears what it may
            if not self._reassembler.is_wanted(payload):
                return None  # it was refused or cancelled meanwhile
            if not isinstance(error, TransferError):
                _log.exception("a payload from %s could not be stored", self.peer)
            known = error if isinstance(error, TransferError) else ServerError("the server failed to store the payload")
            self._reassembler.abandon(payload.first.stream_id)
            spool.abandon()
            return await self._refuse(PayloadRefused(payload.first.stream_id, payload.first.frame_type, known))
        finally:
            self._reassembler.release(payload)
        return payload.join() if payload.is_whole else None

    async def _refuse(self, refused: PayloadRefused) -> Frame | None:
        """Tells the peer that a payload is over a limit; gives what rsocket has to hear of it."""
        if not self._has_refused:
            self._has_refused = True  # logged once: a flood of them must not fill the disk
            _log.warning("refused a payload from %s: %s; more of it isn't logged", self.peer, refused)
        if self._count_refusal is not None:
            self._count_refusal()
        error = exception_to_error_frame(refused.stream_id, to_protocol_error(refused.error))
        # Waits for the socket, so that a peer that sends and doesn't read can't fill this side with answers.
        try:
            await self._writable()
            if refused.kind == FrameType.PAYLOAD:
                # Its stream may be this side's or the peer's: one is ended by CANCEL, the other by ERROR.
                self._write(_serialize(to_cancel_frame(refused.stream_id)))
            if refused.kind != FrameType.REQUEST_FNF:
                self._write(_serialize(error))
        except RSocketTransportError:
            return None
        return error if refused.kind == FrameType.PAYLOAD else None

    # rsocket's side: sending

    async def send_frame(self, frame: Frame) -> None:
        """Writes one frame, at the latest in `on_send_queue_empty`, and waits until the socket has taken it.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        kind = type(frame)  # not `isinstance`, which costs ten times as much where a class is an abstract one
        if kind is SkippedFrame:
            return
        if kind is ItemsTurn and isinstance(frame, ItemsTurn):
            await self._send_items(frame)
            return
        self._check_open()
        self._reassembler.on_sent(frame)
        self._gathered += _serialize(frame)
        self._gathered_bytes += frame.length
        self._handed_bytes += frame.length
        self._sent_this_turn += 1
        if self._gathered_bytes >= _GATHER_BYTES or self._sent_this_turn >= _FRAMES_PER_TURN:
            await self._flush()

    async def on_send_queue_empty(self) -> None:
        """Writes what waits to be sent.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        if self._gathered:
            await self._flush()

    async def _send_items(self, turn: ItemsTurn) -> None:
        if not turn.begin():
            return
        try:
            self._check_open()
            self._write_gathered()
            await self._writable()
            self._items, self._items_sent = turn, self._loop.create_future()
            self._handed_bytes -= turn.handed_bytes  # it is counted as long as this is `_items`
            with self._lent_socket() as connection:
                while not await run_blocking(turn.executor, turn.send_some, connection):
                    await self._until_taken(connection)
        except OSError as error:
            self._write_error = error.with_traceback(None)  # which leads back here
            self.abort()
            raise RSocketTransportError(f"the connection has ended: {error}") from error
        finally:
            if self._items is not None:
                self._handed_bytes += turn.handed_bytes
                self._items = None
            _wake(self._items_sent)
            turn.end()
            if not turn.is_between_frames:
                self.abort()  # half a frame was sent, and the rest never will be
            if self._failure is not None:
                self._end_failed()

    async def _until_taken(self, connection: socket.socket) -> None:
        """Returns when the socket takes something, or the connection has ended."""
        taken = self._loop.create_future()
        self._loop.add_writer(connection, _wake, taken)
        try:
            await taken
        finally:
            self._loop.remove_writer(connection)

    def fail(self, error_code: ErrorCode, reason: str) -> None:
        """Ends the connection, and tells the peer why: nothing that arrives any more is looked at."""
        if self._failure is not None or (self._transport is None and not self.is_lost):
            return
        _log.info("closing the connection from %s: %s", self.peer, reason)
        self._farewell.error_code = error_code
        self._farewell.data = reason.encode()
        self._failure = reason
        self._reassembler.close()
        self._is_receiving_wanted = False
        if self._items is not None:
            self._items.withdraw()
        _wake(self._reader)
        self._cut_later()
        self._end_failed()

    def _end_failed(self) -> None:
        """The rest of `fail`, once no thread uses the socket or the receive buffer."""
        transport = self._transport
        if transport is None or self._has_said_farewell or self._items is not None or self._receiving is not None:
            return
        self._has_said_farewell = True
        self._receiver.discard()
        if transport.is_closing():
            return
        with suppress(RSocketTransportError):  # it is lost already
            self._put(self._gathered + _serialize(self._farewell))
        if transport.is_closing():
            return
        # To close a socket with something unread in it resets the connection, and the peer might not see the ERROR: so
        # it is told that this is the end, and what it still sends is read and forgotten until it closes, too.
        if self._is_reading_paused:
            transport.resume_reading()
        if not transport.can_write_eof():
            transport.close()
            return
        try:
            transport.write_eof()
        except OSError:
            transport.abort()  # reset by the peer

    def abort(self) -> None:
        """Ends the connection at once; the peer isn't told why."""
        if self._transport is not None and not self.is_lost:  # which asyncio can't take twice
            self._transport.abort()

    async def close(self) -> None:
        """Ends the connection; what was written already is sent first if the peer takes it within a second."""
        transport = self._transport
        if transport is None or self.is_lost:
            return
        if self._failure is None and not transport.is_closing():
            with suppress(RSocketTransportError):  # it is lost already
                self._write_gathered()
            transport.close()
        self._cut_later()
        await asyncio.wait([self._lost])

    def requires_length_header(self) -> bool:
        return True

    def _check_open(self) -> None:
        if self._transport is None or self._failure is not None or self._transport.is_closing():
            raise RSocketTransportError("the connection has ended")

    async def _flush(self) -> None:
        self._sent_bytes_this_turn += self._gathered_bytes
        self._write_gathered()
        if self._writer is not None:
            await self._writable()
        elif self._sent_this_turn >= _FRAMES_PER_TURN or self._sent_bytes_this_turn >= _SENT_BYTES_PER_TURN:
            await asyncio.sleep(0)
        else:
            return
        self._sent_this_turn = self._sent_bytes_this_turn = 0

    async def _writable(self) -> None:
        """Returns when nothing waits to be sent.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        while (waiter := self._writer or self._items_sent) is not None and not waiter.done() and not self.is_lost:
            await asyncio.shield(waiter)
        self._check_open()

    def _write_gathered(self) -> None:
        parts, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if parts:
            self._write(parts)

    def _write(self, parts: list[_Bytes]) -> None:
        """Puts whole frames into the socket, and into asyncio's buffer what the socket doesn't take.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        self._check_open()
        self._put(parts)

    def _put(self, parts: list[_Bytes]) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._fd is None or transport.get_write_buffer_size():
            if sum(map(len, parts)) <= _GATHER_BYTES:
                transport.write(b"".join(parts))
            else:
                # Not `writelines`: it joins before Python 3.12, and doesn't pause in 3.12.0 to 3.12.7 and 3.13.0.
                for part in parts:
                    transport.write(part)
            return
        try:
            taken = os.writev(self._fd, parts)
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError as error:
            self._write_error = error.with_traceback(None)  # which leads back here
            transport.abort()
            raise RSocketTransportError(f"the connection has ended: {error}") from error
        for part in parts:
            if taken < len(part):
                transport.write(memoryview(part)[taken:])
            taken = max(taken - len(part), 0)

    def _cut_later(self) -> None:
        if self._cut is None and self._transport is not None and not self.is_lost:
            self._cut = self._loop.call_later(_CLOSE_SECONDS, self._transport.abort)


def _serialize(frame: Frame) -> list[_Bytes]:
    parts: list[_Bytes] = [serialize_prefix(frame)]
    assert frame.length <= MAX_FRAME_BYTES, "rsocket fragments payloads above FRAGMENT_SIZE_BYTES"
    frame.write_data_metadata(parts.append)
    return parts


def _unacknowledged_bytes(sock: socket.socket | None) -> int:
    """What the peer's system hasn't acknowledged of what is in the socket; 0 where that can't be asked."""
    if sys.platform != "linux" or sock is None or (fd := sock.fileno()) < 0:
        return 0
    try:
        return struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))[0]
    except OSError:  # not TCP
        return 0


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
