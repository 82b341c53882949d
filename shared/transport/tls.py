"""TLS on TCP, in a way that the file lane's threads can use, too.

asyncio's own TLS belongs to its event loop. Here the connection is a plain one for asyncio, and whichever thread has a
direction of its socket encrypts or decrypts what it moves: the event loop's frames as well as the lane's items.

What is in memory for one connection, beside that of TCP: 128 KiB that are to be decrypted, and what is sent once more.
"""

import asyncio
import os
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, cast

from ..aio import wake
from ..files.sockets import Bytes, LaneSocket
from ..frames.reassembly import Reassembler
from .base import State
from .tcp import TcpTransport
from .writer import SocketWriter

__all__ = ["Tls", "TlsTransport"]

# What is received in one call, and the most ciphertext of a connection that waits in memory to be decrypted.
_RECEIVE_BYTES: Final = 128 * 1024
# What is encrypted before it is sent: more would leave the processor's cache. A frame's last bytes go with the rest.
_ENCRYPT_BYTES: Final = 128 * 1024
_REST_BYTES: Final = 4 * 1024


class Tls:
    """One end of a connection. Its methods may be called by any thread, but only one at a time sends what they return.

    Args:
        context: Of the server or the client.
        hostname: What the client calls the server; None for the server itself.
        session: Of an earlier connection to the same server, which saves the client most of the handshake.

    Attributes:
        is_at_end: Whether the peer has said that it sends no more.
    """

    def __init__(
        self, context: ssl.SSLContext, hostname: str | None = None, session: ssl.SSLSession | None = None
    ) -> None:
        self.is_at_end = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=hostname is None, server_hostname=hostname, session=session
        )
        # OpenSSL's objects aren't safe for two threads, of which one receives and the other sends.
        self._lock = threading.Lock()
        self._failure: ssl.SSLError | None = None

    @property
    def session(self) -> ssl.SSLSession | None:
        """For a later connection, once something was received; None if the server gave none."""
        return self._tls.session

    def shake_hands(self) -> bool:
        """Goes on with the handshake; whether it is done.

        Raises:
            ssl.SSLError: It has failed. `output` has an alert for the peer.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def feed(self, received: memoryview) -> None:
        """Takes what the socket has received."""
        with self._lock:
            self._incoming.write(received)

    @property
    def has_unread(self) -> bool:
        """Whether something waits to be decrypted, or for the rest of its record."""
        return self._incoming.pending > 0

    def decrypt(self, buffer: memoryview) -> int:
        """Decrypts into `buffer`, and returns how many bytes; 0 if more has to be received first, or at the end.

        Raises:
            ssl.SSLError: What was received isn't what the peer has sent. `output` has an alert for the peer.
        """
        filled = 0
        with self._lock:
            if self._failure is not None:
                raise self._failure
            try:
                while filled < len(buffer) and not self.is_at_end:
                    # Its stub wants a bytearray; any buffer will do.
                    nbytes = self._tls.read(len(buffer) - filled, cast(bytearray, buffer[filled:]))
                    self.is_at_end = not nbytes
                    filled += cast(int, nbytes)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                self._failure = error.with_traceback(None)
                if not filled:
                    raise
        return filled

    def encrypt(self, parts: Sequence[Bytes]) -> bytes:
        """What is to be sent for `parts`, behind what TLS itself has to send."""
        with self._lock:
            for part in parts:
                if len(part):
                    self._tls.write(part)
            return self._outgoing.read()

    def output(self) -> bytes:
        """What TLS itself has to send; empty for nothing."""
        with self._lock:
            return self._outgoing.read()

    def end(self) -> bytes:
        """What tells the peer that nothing more is sent; empty if it can't be told."""
        with self._lock:
            with suppress(ssl.SSLError):  # the peer hasn't said the same yet, or TLS has failed
                self._tls.unwrap()
            return self._outgoing.read()


class _TlsSocket(LaneSocket):
    """A descriptor of its own for a connection's socket, with the connection's TLS.

    Args:
        fileno: The descriptor, which this closes.
        tls: The connection's.
    """

    moves_files = False

    def __init__(self, fileno: int, tls: Tls) -> None:
        super().__init__(fileno=fileno)
        self._tls = tls
        self._unsent = memoryview(b"")

    @property
    def unsent_bytes(self) -> int:
        return len(self._unsent)

    def receive(self, buffer: memoryview) -> int:
        while not (nbytes := self._tls.decrypt(buffer)) and not self._tls.is_at_end:
            received = _received.buffer
            received = received[: os.readv(self.fileno(), [received])]
            if not received:
                return 0
            self._tls.feed(received)
        return nbytes

    def write(self, parts: Sequence[Bytes]) -> int:
        taken = 0
        if not self._unsent:
            total, chunks = sum(map(len, parts)), list[Bytes]()
            taken = room = total if total <= _ENCRYPT_BYTES + _REST_BYTES else _ENCRYPT_BYTES
            for part in parts:
                chunks.append(memoryview(part)[:room])
                room -= len(chunks[-1])
            self._unsent = memoryview(self._tls.encrypt(chunks))
        try:
            self._unsent = self._unsent[self.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            if not taken:
                raise
        return taken


class _Received(threading.local):
    """A thread's buffer for what it receives; what is in it has to be taken before anything else is received."""

    def __init__(self) -> None:
        self.buffer: Final = memoryview(bytearray(_RECEIVE_BYTES))


_received: Final = _Received()


class TlsTransport(TcpTransport):
    """One encrypted connection, which is made when its handshake is done.

    Args:
        on_connected: As of `TcpTransport`.
        on_lost: The same.
        tls: What encrypts it.
    """

    def __init__(
        self,
        on_connected: Callable[[TcpTransport], Reassembler],
        on_lost: Callable[[Exception | None], None] | None,
        tls: Tls,
    ) -> None:
        super().__init__(on_connected, on_lost)
        self._tls = tls
        self._opened: asyncio.Future[None] = self._loop.create_future()

    async def opened(self) -> None:
        """As `TcpTransport.opened`; raises ssl.SSLError if the handshake has failed."""
        try:
            await self._opened
        except asyncio.CancelledError:
            self.abort()
            raise

    def _make_writer(self, transport: asyncio.BaseTransport) -> SocketWriter:
        return SocketWriter(transport, self._tls.encrypt)

    def _lane_socket(self, fd: int) -> LaneSocket:
        return _TlsSocket(fd, self._tls)

    def _begin(self) -> None:
        try:
            is_done = self._tls.shake_hands()
        except ssl.SSLError as error:
            self._on_failed(error)
            return
        self._writer.write_encrypted(self._tls.output())
        if is_done:
            super()._begin()
            wake(self._opened)
            self._decrypt()

    def connection_lost(self, exc: Exception | None) -> None:
        error = exc or self._writer.error or ConnectionResetError("the peer ended the TLS handshake")
        super().connection_lost(exc)
        if not self._opened.done():
            self._opened.set_exception(error)
            self._opened.exception()  # retrieved: the caller may have been cancelled

    @property
    def has_unread(self) -> bool:
        return super().has_unread or (self._is_reading_paused and self._tls.has_unread)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _received.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_shut_down or self.state not in (State.CONNECTING, State.OPEN):
            return
        self._tls.feed(_received.buffer[:nbytes])
        if self.state is State.CONNECTING:
            self._begin()
        else:
            self._decrypt()
            self._on_bytes()

    def _is_ready(self) -> bool:
        if not self.reader.is_ready:
            self._decrypt()
        return self.reader.is_ready

    def _decrypt(self) -> None:
        """Decrypts what was received, as far as there is room for it. Not while a thread does."""
        decoder, tls = self.reader, self._tls
        try:
            while not decoder.is_full and (nbytes := tls.decrypt(decoder.get_buffer())):
                decoder.received(nbytes)
        except ssl.SSLError as error:
            self._on_failed(error)
            return
        if self._lane is None or not self._lane.is_sending:  # else it goes out with what the thread sends
            self._writer.write_encrypted(tls.output())
        if tls.is_at_end and self._transport is not None and not self._transport.is_closing():
            self._cut_later()
            # As where TCP ends: what came before the end is handled first.
            self._loop.call_soon(self._close, self._transport)

    def _on_failed(self, error: ssl.SSLError) -> None:
        self._writer.write_encrypted(self._tls.output())  # an alert says why
        self.on_lane_failed(error)

    def _close(self, transport: asyncio.Transport) -> None:
        if self._lane is not None and self._lane.is_active:
            transport.close()
        else:
            self._shut_down(transport)  # the peer's session tickets may be unread

    def _shut_down(self, transport: asyncio.Transport) -> None:
        if not transport.is_closing() and not self._is_shut_down:
            self._writer.write_encrypted(self._tls.end())
        super()._shut_down(transport)
