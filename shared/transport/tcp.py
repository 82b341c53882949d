"""TCP: whole frames out of an asyncio connection and into it, never more than asked for.

Frames are pulled: they are parsed one at a time, when the connection asks for the next, and reading stops while the
receive buffer is full. Sending waits for the socket. Bytes that are no frame are answered with an ERROR and the end of
the connection.

What is in memory for one connection: a receive buffer while something is in it, the large frame that is arriving, the
payloads under reassembly, and of what is sent one frame or 16 KiB of small ones.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketTransportError
from rsocket.frame import ErrorFrame, Frame

from ..aio import wake
from ..errors import TlsFailed
from ..files.lane import MOVES_FILES, FileLane
from ..files.sockets import LaneSocket
from ..frames.codec import FrameError
from ..frames.fragments import SplitPayload
from ..frames.outbox import SkippedFrame
from ..frames.reassembly import Reassembler
from ..frames.rules import PayloadRules
from .base import Flow, State, Transport
from .decoder import FrameDecoder
from .framing import LENGTH_BYTES, PREFIXED_KEEPALIVE, PREFIXED_KEEPALIVE_ANSWER, prefix, serialize
from .pacing import Pacer
from .plain import TlsError
from .writer import SocketWriter

__all__ = ["TcpTransport"]

_log = logging.getLogger(__name__)

_CLOSE_SECONDS: Final = 1.0  # that a peer has to take what was already sent before the connection is cut


class TcpTransport(Transport, asyncio.BufferedProtocol):
    """One connection: asyncio's protocol, and rsocket's transport.

    Args:
        on_connected: Called once, when the connection is made; returns what checks and joins the peer's payloads.
        on_lost: Called once, with the reason or None, when a connection that was made has ended.
    """

    _writer: SocketWriter  # since the connection was made

    def __init__(
        self,
        on_connected: "Callable[[TcpTransport], Reassembler]",
        on_lost: Callable[[Exception | None], None] | None = None,
    ) -> None:
        super().__init__()
        self._on_connected: Callable[[TcpTransport], Reassembler] | None = on_connected
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._farewell: bytes | None = None
        self._transport: asyncio.Transport | None = None
        self._ended = self._loop.create_future()
        self._cut: asyncio.TimerHandle | None = None
        self._is_shut_down = False
        self._reassembler: Reassembler | None = None
        self._decoder: FrameDecoder | None = None
        self._pacer = Pacer()
        self._is_reading_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._is_rest_wanted = True
        self._received_at = self._loop.time()
        self._quiet_for: PayloadRules | None = None  # is notified when the quiet ends
        self._lane: FileLane | None = None

    @property
    def lane(self) -> FileLane | None:
        fd = self._writer.fd
        if self._lane is None and MOVES_FILES and fd is not None and not self.is_lost:
            with suppress(OSError):  # the process has no more descriptors; then items take the frame path
                # A descriptor of its own, which asyncio doesn't close while a thread uses it.
                self._lane = FileLane(self._lane_socket(os.dup(fd)), self)
        return self._lane if not self.is_lost else None

    def _lane_socket(self, fd: int) -> LaneSocket:
        return LaneSocket(fileno=fd)

    @property
    def flow(self) -> Flow:
        writer, lane = self._writer, self._lane
        handed, in_lane = (0, 0) if lane is None else (lane.handed_bytes, lane.waiting_bytes)
        handed, waiting = writer.handed_bytes + handed, writer.waiting_bytes + in_lane
        blocked_since = writer.blocked_since(handed - waiting, writer.buffered_bytes + in_lane)
        return Flow(self._received_at, handed, waiting, blocked_since)

    @property
    def received_at(self) -> float:
        return self._received_at

    def become_quiet(self) -> bool:
        self._quiet_for = self._reassembler.rules if self._reassembler is not None and self._is_at_rest() else None
        return self._quiet_for is not None

    def _is_at_rest(self) -> bool:
        """Whether the peer is waited for, and all that was sent is in the socket."""
        is_sending = not self._writer.is_idle or (self._lane is not None and self._lane.is_sending)
        return self._waiter is not None and not self._waiter.done() and not is_sending

    @property
    def has_unread(self) -> bool:
        return self._writer.has_unread

    def arrived_of(self, stream_id: int) -> int:
        return 0 if self._decoder is None else self._decoder.received_of(stream_id)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")  # TLS forgets it when the connection is lost
        if isinstance(name, tuple):
            self.peer = f"{name[0]}:{name[1]}"
        self._writer = self._make_writer(transport)
        self._begin()

    def _make_writer(self, transport: asyncio.BaseTransport) -> SocketWriter:
        return SocketWriter(transport)

    def _begin(self) -> None:
        """Frames may be exchanged from now on."""
        self.state = State.OPEN
        on_connected, self._on_connected = self._on_connected, None
        assert on_connected is not None, "asyncio connects a protocol once"
        self._reassembler = on_connected(self)
        self._decoder = FrameDecoder(self._reassembler)

    async def opened(self) -> None:
        """Returns when frames may be exchanged; if that is cancelled, the connection is aborted.

        Raises:
            OSError: It was lost before.
        """

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self.state is State.OPEN and not self._is_shut_down:  # see `_shut_down`
            self.reader.received(nbytes)
            self._on_bytes()

    def _on_bytes(self) -> None:
        """The decoder has got more."""
        self.on_received()
        decoder = self.reader
        if (rules := self._quiet_for) is not None:
            if self._takes_keepalive(decoder):
                return
            self._quiet_for = None
            rules.on_active()
        if decoder.is_ready:
            wake(self._waiter)
        if decoder.is_full:
            self.pause_reading()

    def _takes_keepalive(self, decoder: FrameDecoder) -> bool:
        """Takes a keepalive, or the answer to one, that came alone; whether it was one."""
        if not self._is_at_rest():
            return False
        if decoder.take_only(PREFIXED_KEEPALIVE):
            with suppress(RSocketTransportError):  # it is lost already
                self._writer.write_gathered(PREFIXED_KEEPALIVE_ANSWER)
        elif not decoder.take_only(PREFIXED_KEEPALIVE_ANSWER):
            return False
        decoder.release()
        return True

    def eof_received(self) -> bool:
        self._cut_later()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._writer.close()
        error = exc or self._writer.error
        self.state = State.LOST
        if self._lane is not None:
            self._lane.close()
        if self._cut is not None:
            self._cut.cancel()
        wake(self._ended)
        if self._reassembler is not None:
            self._reassembler.close()
        wake(self._waiter)
        self._free_buffer()
        # No reference cycles: what a flood of connections took must not wait for the garbage collector.
        self._transport = self._reassembler = self._quiet_for = None
        on_lost = self._on_lost if self._on_connected is None else None
        self._on_lost = self._on_connected = None
        if on_lost is not None:
            on_lost(error)

    def pause_writing(self) -> None:
        self._writer.pause()

    def resume_writing(self) -> None:
        self._writer.resume()

    # Receiving

    async def next_frame(self) -> Frame | SplitPayload | None:
        decoder = self.reader
        while True:
            if self._pacer.is_due():
                await self._pacer.pause()
            if self._is_exhausted():
                self._free_buffer()
                return None
            lane = self._lane
            is_for_lane = lane is not None and not self.is_lost and (lane.is_in_item or self._is_ready())
            if lane is not None and is_for_lane and lane.wants_next():
                try:
                    frame = await lane.receive_some()
                except FrameError as error:
                    self._fail_frame(error)
                    continue
                if frame is None and lane.is_holding:
                    return SkippedFrame()  # the connection decides whether more may wait for the disk
                if frame is not None:
                    return frame
                if not decoder.is_in_item:
                    continue
                # The rest of an item is slow to arrive: it counts in the limits, and may stall, as any other frame.
            elif not self._is_ready():
                await self._wait_for_bytes()
                continue
            self._pacer.add()
            try:
                received = decoder.take()
            except FrameError as error:
                self._fail_frame(error)
                continue
            if received is not None:
                return received

    def _fail_frame(self, error: FrameError) -> None:
        code = ErrorCode.CONNECTION_ERROR if self._reassembler is None else self._reassembler.failure_code
        word = "invalid_frame" if code == ErrorCode.CONNECTION_ERROR else code.name.lower()
        self.fail(code, f"{TlsFailed.code if isinstance(error, TlsError) else word}: {error}")

    def forget_rest(self) -> None:
        self._is_rest_wanted = False
        wake(self._waiter)
        self._free_buffer()

    def _is_exhausted(self) -> bool:
        is_over = not self._is_rest_wanted or self._decoder is None or not self._is_ready()
        return self.failure is not None or (self.is_lost and is_over)

    def _is_ready(self) -> bool:
        """Whether there is something to take."""
        return self.reader.is_ready

    async def _wait_for_bytes(self) -> None:
        if self._is_reading_paused and self._transport is not None and not self._transport.is_closing():
            self._is_reading_paused = False
            self._transport.resume_reading()
        self._pacer.restart()
        self.reader.release()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _free_buffer(self) -> None:
        """Frees the receive buffer if nothing is received any more, and no frame is left in it or wanted."""
        is_used = self._lane is not None and self._lane.is_receiving
        if self.is_lost and self._decoder is not None and not is_used and self._is_exhausted():
            self._decoder.close()

    # What the file lane uses: see `shared.files.lane.LanePort`

    @property
    def reader(self) -> FrameDecoder:
        assert self._decoder is not None, "there is one since the connection was made"
        return self._decoder

    prefix = staticmethod(prefix)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()

    async def drained(self) -> None:
        self._check_open()
        self._writer.write_gathered()
        await self._writer.drained()
        self._check_open()

    def on_received(self) -> None:
        self._received_at = self._loop.time()

    def on_lane_idle(self) -> None:
        if self.failure is not None:
            self._say_farewell()
        self._free_buffer()

    def on_lane_failed(self, error: OSError) -> None:
        if self._writer.error is None:
            self._writer.error = error.with_traceback(None)  # which refers to this: a reference cycle
        self.abort()

    # Sending

    async def send(self, frame: Frame) -> None:
        self._check_open()
        if self._writer.add(serialize(frame), LENGTH_BYTES + frame.length):
            await self._writer.flush()
            self._check_open()

    async def flush(self) -> None:
        await self._writer.flush()

    def _check_open(self) -> None:
        is_ending = self._is_shut_down or self._transport is None or self._transport.is_closing()
        if self.state is not State.OPEN or is_ending:
            raise RSocketTransportError("the connection has ended")

    # The end

    def fail(self, error_code: ErrorCode, reason: str) -> None:
        if self.state is not State.OPEN and not (self.is_lost and self.failure is None):
            return
        _log.info("closing the connection from %s: %s", self.peer, reason)
        farewell = ErrorFrame()
        farewell.error_code, farewell.data = error_code, reason.encode()
        self._farewell = b"".join(serialize(farewell))
        self.failure = reason
        if not self.is_lost:
            self.state = State.FAILED
        if self._reassembler is not None:
            self._reassembler.close()
        if self._lane is not None:
            self._lane.interrupt()
        wake(self._waiter)
        self._cut_later()
        self._say_farewell()

    def _say_farewell(self) -> None:
        """Completes `fail`, once no thread uses the socket or the receive buffer."""
        transport = self._transport
        if transport is None or self._farewell is None or (self._lane is not None and self._lane.is_active):
            return
        farewell, self._farewell = self._farewell, None
        if self._decoder is not None:
            self._decoder.discard()
        with suppress(RSocketTransportError):  # it is lost already
            self._writer.write_gathered(farewell)
        self._shut_down(transport)

    def _shut_down(self, transport: asyncio.Transport) -> None:
        """Ends the sending side; what the peer still sends is read and dropped until it closes, too.

        Closing a socket with unread bytes would reset the connection, and the peer might not receive all that was sent.
        """
        if transport.is_closing() or self._is_shut_down:
            return
        self._is_shut_down = True
        if self._is_reading_paused:
            transport.resume_reading()
        try:
            transport.write_eof()
        except OSError:
            transport.abort()  # reset by the peer

    def abort(self) -> None:
        if self._transport is not None and not self.is_lost:  # asyncio can't do it twice
            self._transport.abort()

    async def close(self) -> None:
        transport = self._transport
        if transport is None or self.is_lost:
            return
        if self.failure is None and not transport.is_closing():
            with suppress(RSocketTransportError):  # it is lost already
                self._writer.write_gathered()
            self._close(transport)
        self._cut_later()
        await asyncio.wait([self._ended])

    def _close(self, transport: asyncio.Transport) -> None:
        transport.close()

    def _cut_later(self) -> None:
        if self._cut is None and self._transport is not None and not self.is_lost:
            self._cut = self._loop.call_later(_CLOSE_SECONDS, self._transport.abort)
