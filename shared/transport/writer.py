"""Writes frames to a socket: small ones are gathered, large ones are never joined.

On POSIX, frames go to the socket with one vectored system call, without asyncio. What the socket doesn't take waits
here, and goes through asyncio's buffer, which is a copy, a part at a time. On systems without `os.writev`, all of it
does. With TLS a part is encrypted at a time.
"""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, cast

from rsocket.exceptions import RSocketTransportError

from ..aio import wake
from ..files.sockets import Bytes

__all__ = ["SocketWriter"]

if sys.platform != "win32":
    import fcntl
    import termios

_HAS_WRITEV: Final = hasattr(os, "writev")
# Small frames are gathered until nothing is left to send, or there is this much.
_GATHER_BYTES: Final = 16 * 1024
# What the kernel may hold that isn't in flight yet. A small frame can't overtake it; what is in flight isn't limited,
# so that long lines stay full. Over loopback a lower limit also means that more stays in the processor's cache.
_UNSENT_BYTES: Final = 128 * 1024
# What is encrypted, or goes into asyncio's buffer, at a time.
_ASYNCIO_BYTES: Final = 256 * 1024
# After so many frames or bytes other callbacks of the event loop run. Writing 256 KiB takes 100 µs.
_FRAMES_PER_SLICE: Final = 16
_BYTES_PER_SLICE: Final = 256 * 1024

Encrypt = Callable[[Sequence[Bytes]], bytes]


class SocketWriter:
    """The sending side of one connection.

    Args:
        transport: asyncio's.
        encrypt: Makes what is sent of some parts; None to send them as they are.

    Attributes:
        error: What ended the connection while something was written; None if nothing did.
        fd: The socket's descriptor if frames may be written to it without asyncio, else None.
        handed_bytes: Bytes of all the frames that were written so far.
    """

    def __init__(self, transport: asyncio.BaseTransport, encrypt: Encrypt | None = None) -> None:
        self.error: OSError | None = None
        self.fd: int | None = None
        self.handed_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = cast(asyncio.Transport, transport)
        self._encrypt = encrypt
        self._waiter: asyncio.Future[None] | None = None
        self._gathered: list[Bytes] = []
        self._gathered_bytes = 0
        self._rest: list[Bytes] = []  # of what is being flushed
        self._frames = 0
        self._slice_bytes = 0
        self._blocked_taken: int | None = None
        self._blocked_since = 0.0
        # `pause_writing` means that something waits, `resume_writing` that all of it is in the socket.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._socket: socket.socket | None = self._transport.get_extra_info("socket")
        if self._socket is not None:
            _tune(self._socket)
            if _HAS_WRITEV:
                self.fd = self._socket.fileno()

    @property
    def buffered_bytes(self) -> int:
        """What waits for the socket."""
        in_asyncio = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return in_asyncio + sum(map(len, self._rest))

    @property
    def waiting_bytes(self) -> int:
        """What was written, and isn't known to have reached the peer's system."""
        return self._gathered_bytes + self.buffered_bytes + _unacknowledged_bytes(self._socket)

    @property
    def is_idle(self) -> bool:
        """Whether all that was written is in the socket."""
        return not self._gathered and not self._rest and self._waiter is None

    @property
    def has_unread(self) -> bool:
        """Whether bytes of the peer's wait in the socket; False where that can't be asked."""
        return _asked(self._socket, termios.FIONREAD) > 0 if sys.platform != "win32" else False

    def blocked_since(self, taken_bytes: int, buffered_bytes: int) -> float | None:
        """See `Flow.blocked_since`.

        Args:
            taken_bytes: What the peer has taken so far.
            buffered_bytes: What waits in this process.
        """
        if not buffered_bytes:
            self._blocked_taken = None
            return None
        if self._blocked_taken is None or taken_bytes > self._blocked_taken:
            self._blocked_taken = taken_bytes
            self._blocked_since = self._loop.time()
        return self._blocked_since

    def add(self, parts: list[Bytes], nbytes: int) -> bool:
        """Gathers a frame, whose parts have so many bytes together; whether `flush` is due."""
        self._gathered += parts
        self._gathered_bytes += nbytes
        self.handed_bytes += nbytes
        self._frames += 1
        return self._gathered_bytes >= _GATHER_BYTES or self._frames >= _FRAMES_PER_SLICE

    async def flush(self) -> None:
        """Writes what was gathered, and returns when it is in the socket.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        if not self._gathered:
            return
        self._slice_bytes += self._gathered_bytes
        self._rest, self._gathered, self._gathered_bytes = self._gathered, [], 0
        self._write_some()
        if self._rest or self._waiter is not None:
            await self.drained()
            while self._rest:
                self._write_some()
                await self.drained()
        elif self._frames >= _FRAMES_PER_SLICE or self._slice_bytes >= _BYTES_PER_SLICE:
            await asyncio.sleep(0)
        else:
            return
        self._frames = self._slice_bytes = 0

    async def drained(self) -> None:
        """Returns when nothing waits in asyncio's buffers, or the connection has ended."""
        while (waiter := self._waiter) is not None and not waiter.done():
            await asyncio.shield(waiter)

    def write_gathered(self, *more: Bytes) -> None:
        """Writes what was gathered, and `more` behind it, which doesn't wait for the socket.

        Raises:
            RSocketTransportError: The connection has ended.
        """
        parts = [*self._rest, *self._gathered, *more]
        self.handed_bytes += sum(map(len, more))
        self._rest, self._gathered, self._gathered_bytes = [], [], 0
        transport = self._open_transport()
        parts = self._write_at_once(transport, self._encrypted(transport, parts))
        if sum(map(len, parts)) <= _GATHER_BYTES:
            parts = [b"".join(parts)] if parts else []
        # Not `writelines`: it joins before Python 3.12, and doesn't pause in 3.12.0 to 3.12.7 and 3.13.0.
        for part in parts:
            transport.write(part)

    def write_encrypted(self, output: bytes) -> None:
        """Writes what was encrypted already, if the connection hasn't ended."""
        if output:
            with suppress(RSocketTransportError):
                transport = self._open_transport()
                for part in self._write_at_once(transport, [output]):
                    transport.write(part)

    def pause(self) -> None:
        """Notes that something waits in asyncio's buffers."""
        if self._waiter is None:
            self._waiter = self._loop.create_future()

    def resume(self) -> None:
        """Notes that nothing waits there any more."""
        waiter, self._waiter = self._waiter, None
        wake(waiter)

    def close(self) -> None:
        """The connection has ended."""
        self.fd = None
        self._gathered.clear()
        self._rest.clear()
        self._gathered_bytes = 0
        self._transport = self._socket = None
        self.resume()

    def _open_transport(self) -> asyncio.Transport:
        if self._transport is None or self._transport.is_closing():
            raise RSocketTransportError("the connection has ended")
        return self._transport

    def _write_some(self) -> None:
        """Writes what is flushed, as far as the socket takes it, and a part of the rest into asyncio's buffer.

        With TLS that is one part, which is encrypted first.
        """
        transport, most = self._open_transport(), _ASYNCIO_BYTES
        if self._encrypt is None:
            self._rest = self._write_at_once(transport, self._rest)
        taken: list[Bytes] = []
        while self._rest and most > 0:
            part = self._rest.pop(0)
            if len(part) > most:
                part, rest = memoryview(part)[:most], memoryview(part)[most:]
                self._rest.insert(0, rest)
            most -= len(part)
            taken.append(part)
        if self._encrypt is not None:
            taken = self._write_at_once(transport, self._encrypted(transport, taken))
        if len(taken) > 1:
            transport.write(b"".join(taken))
        elif taken:
            transport.write(taken[0])

    def _encrypted(self, transport: asyncio.Transport, parts: list[Bytes]) -> list[Bytes]:
        if self._encrypt is None or not parts:
            return parts
        try:
            return [self._encrypt(parts)]
        except OSError as error:
            raise self._failed(transport, error) from error

    def _write_at_once(self, transport: asyncio.Transport, parts: list[Bytes]) -> list[Bytes]:
        """Writes to the socket without asyncio, if that may be; returns what isn't written."""
        if not parts or self.fd is None or transport.get_write_buffer_size():
            return parts
        try:
            taken = os.writev(self.fd, parts)
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError as error:
            raise self._failed(transport, error) from error
        if taken == sum(map(len, parts)):
            return []
        left: list[Bytes] = []
        for part in parts:
            if taken < len(part):
                left.append(memoryview(part)[taken:] if taken else part)
            taken = max(taken - len(part), 0)
        return left

    def _failed(self, transport: asyncio.Transport, error: OSError) -> RSocketTransportError:
        """Ends the connection, and returns what the caller is to raise."""
        self.error = error.with_traceback(None)  # which refers to this: a reference cycle
        transport.abort()
        return RSocketTransportError(f"the connection has ended: {error}")


def _tune(sock: socket.socket) -> None:
    try:
        # asyncio does this only for sockets that know their protocol's number, which accepted ones may not: a small
        # frame would wait for an acknowledgement, which the peer delays by 40 ms.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    except OSError:
        pass  # not TCP


def _unacknowledged_bytes(sock: socket.socket | None) -> int:
    """What the peer's system hasn't acknowledged of what is in the socket; 0 where that can't be asked."""
    return _asked(sock, termios.TIOCOUTQ) if sys.platform == "linux" else 0


def _asked(sock: socket.socket | None, question: int) -> int:
    """The number of bytes that the system answers with; 0 where it can't be asked."""
    if sys.platform == "win32" or sock is None or (fd := sock.fileno()) < 0:
        return 0
    try:
        return struct.unpack("i", fcntl.ioctl(fd, question, bytes(4)))[0]
    except OSError:  # not TCP
        return 0
