"""rsocket's `Transport` over an asyncio connection: whole frames in, whole frames out, never more than asked for.

Unlike rsocket's `TransportTCP` it reads 64 KiB at a time, receives a large frame straight into its own buffer, joins
fragments itself (see `shared.frames`), stops reading while frames wait to be handled, and answers bytes that are no
frame with an ERROR and the end of the connection. What is in memory for one connection: one receive buffer, one large
frame, frames up to `_QUEUE_HIGH_BYTES`, the payloads under reassembly, and asyncio's write buffer (one frame and 64 KiB).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketTransportError
from rsocket.frame import CancelFrame, ErrorFrame, Frame, serialize_prefix_with_frame_size_header
from rsocket.transports.transport import Transport

from .frames import FrameError, Reassembler, parse_frame

__all__ = ["FrameTransport", "SkippedFrame"]

_log = logging.getLogger(__name__)

_RECEIVE_BUFFER_BYTES: Final = 64 * 1024
# Reading stops while more than this waits to be handled, and starts again at half of it.
_QUEUE_HIGH_BYTES: Final = 1024 * 1024
# What a queued frame costs beside its payload, so that a flood of tiny frames counts, too.
_FRAME_COST_BYTES: Final = 512
_LENGTH_BYTES: Final = 3
_MAX_FRAME_BYTES: Final = 0xFFFFFF
# How long `close` waits for a peer to take what was already sent before the connection is cut.
_CLOSE_SECONDS: Final = 1.0


class SkippedFrame(CancelFrame):
    """Stands in rsocket's send queue for a frame that was withdrawn; never written."""


class FrameTransport(Transport, asyncio.BufferedProtocol):
    """One connection; hand it to asyncio as the protocol and to rsocket as the transport.

    Args:
        on_connected: Called once, with this transport, when the connection is made.
        on_lost: Called once, with the reason or None, when the connection has ended.
    """

    def __init__(
        self,
        on_connected: Callable[["FrameTransport"], None] | None = None,
        on_lost: Callable[[Exception | None], None] | None = None,
    ) -> None:
        super().__init__()
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._lost = self._loop.create_future()
        self._failure: str | None = None

        self._buffer = bytearray(_RECEIVE_BUFFER_BYTES)
        self._filled = 0
        self._body: bytearray | None = None
        self._body_filled = 0

        self._reassembler = Reassembler()
        self._frames: deque[Frame] = deque()
        self._frames_bytes = 0
        self._reading_paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

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
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"

    # asyncio's side: what arrives

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._on_connected is not None:
            self._on_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return memoryview(self._body)[self._body_filled :]
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._body is not None:
                self._body_filled += nbytes
                if self._body_filled == len(self._body):
                    body, self._body = self._body, None
                    self._take(body, own=True)
            else:
                self._filled += nbytes
                self._split()
        except FrameError as error:
            self.fail(ErrorCode.CONNECTION_ERROR, f"invalid_frame: {error}")
        if self._frames_bytes > _QUEUE_HIGH_BYTES and not self._reading_paused and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._lost.done():
            self._lost.set_result(None)
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        if self._on_lost is not None:
            self._on_lost(exc)

    def pause_writing(self) -> None:
        if self._writer is None:
            self._writer = self._loop.create_future()

    def resume_writing(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_result(None)

    def _split(self) -> None:
        """Takes every whole frame out of the receive buffer, and starts a body for one that is larger than it."""
        start, view = 0, memoryview(self._buffer)
        while self._filled - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            length = int.from_bytes(view[start:begin], "big")
            if self._filled - begin >= length:
                self._take(view[begin : begin + length], own=False)
                start = begin + length
            elif length > _RECEIVE_BUFFER_BYTES - _LENGTH_BYTES:
                self._body = bytearray(length)
                self._body_filled = self._filled - begin
                self._body[: self._body_filled] = view[begin : self._filled]
                start = self._filled
            else:
                break
        rest = self._filled - start
        if start and rest:
            self._buffer[:rest] = bytes(view[start : self._filled])
        self._filled = rest

    def _take(self, buffer: bytearray | memoryview, *, own: bool) -> None:
        if self._failure is not None:
            return
        parsed = parse_frame(buffer, own=own)
        frame = self._reassembler.feed(parsed) if parsed is not None else None
        if frame is None:
            return
        self._frames.append(frame)
        self._frames_bytes += _cost(frame)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # rsocket's side

    async def next_frame_generator(self) -> Self | None:
        """This transport, which iterates over the frames that arrive; None when there will be no more."""
        return None if self._is_exhausted() else self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        while not self._frames:
            if self._is_exhausted():
                raise StopAsyncIteration
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        frame = self._frames.popleft()
        self._frames_bytes -= _cost(frame)
        if self._reading_paused and self._frames_bytes <= _QUEUE_HIGH_BYTES // 2:
            self._reading_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        return frame

    def _is_exhausted(self) -> bool:
        return not self._frames and (self.is_lost or self._failure is not None)

    async def send_frame(self, frame: Frame) -> None:
        """Writes one frame, and waits while the peer's window and asyncio's buffer are full.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        if isinstance(frame, SkippedFrame):
            return
        transport = self._transport
        if transport is None or self.is_lost or transport.is_closing():
            raise RSocketTransportError("the connection has ended")
        if isinstance(frame, CancelFrame):
            self._reassembler.abandon(frame.stream_id)
        prefix = serialize_prefix_with_frame_size_header(frame)
        assert frame.length <= _MAX_FRAME_BYTES, "rsocket fragments payloads above FRAGMENT_SIZE_BYTES"
        parts: list[bytes | bytearray | memoryview] = [prefix]
        frame.write_data_metadata(parts.append)
        transport.writelines(parts)
        writer = self._writer
        if writer is not None:
            await asyncio.shield(writer)
            if self.is_lost:
                raise RSocketTransportError("the connection has ended")

    def fail(self, error_code: ErrorCode, reason: str) -> None:
        """Ends the connection, and tells the peer why: nothing that arrives any more is looked at."""
        if self._failure is not None or self._transport is None:
            return
        self._failure = reason
        _log.info("closing the connection from %s: %s", self.peer, reason)
        frame = ErrorFrame()
        frame.error_code = error_code
        frame.data = reason.encode()
        self._transport.write(bytes(serialize_prefix_with_frame_size_header(frame)) + frame.data)
        self._transport.close()
        self._frames.clear()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def close(self) -> None:
        """Ends the connection; what was written already is sent first if the peer takes it within a second."""
        if self._transport is None or self.is_lost:
            return
        self._transport.close()
        await asyncio.wait([self._lost], timeout=_CLOSE_SECONDS)
        if not self.is_lost:
            self._transport.abort()
            await self._lost

    def requires_length_header(self) -> bool:
        return True


def _cost(frame: Frame) -> int:
    return len(frame.data or b"") + len(frame.metadata or b"") + _FRAME_COST_BYTES
