"""Listening sockets: accepts connections and makes their transports; `Admission` decides which of them may stay.

asyncio's own server doesn't report a connection before its TLS handshake is over, and accepts nothing for a second
whenever no descriptor is left; hence this one.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from rsocket.error_codes import ErrorCode

from shared.errors import TlsFailed
from shared.frames.budget import ReassemblyLimits
from shared.frames.reassembly import Reassembler
from shared.presence import TimeoutWhileRunning
from shared.transport.base import Transport
from shared.transport.tcp import TcpTransport
from shared.transport.tls import Tls, TlsTransport

from ..limits import Limits
from .admission import REJECTION, Accepted, Admission

__all__ = ["Listener"]

_log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
# How many free ports are tried, until one is free at all addresses of the host.
_PORTS: Final = 16

# The process or the system is out of descriptors, or the kernel is out of memory.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# After an accept that has failed: time for others to close something.
_PAUSE_SECONDS: Final = 0.02
# The machine doesn't have the address, or the protocol (IPv6, say) at all.
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


_TLS_HANDSHAKE: Final = b"\x16"
_NOT_ENCRYPTED: Final = f"{TlsFailed.code}: this port is encrypted: use tcps://"


class _ListeningSocket(socket.socket):
    """Keeps what it has accepted until the caller takes it: a task in `sock_accept` may be cancelled just then."""

    unclaimed: socket.socket | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        self.unclaimed, address = super().accept()
        return self.unclaimed, address


class _PeekingSocket(socket.socket):
    """What is received stays in the socket."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return super().recv(bufsize, flags | socket.MSG_PEEK)


class Listener:
    """Listens from `open` to `stop`, and owns the accepted connections until `close`.

    Args:
        limits: How many connections there may be, and how long a TLS handshake may take.
        tls: How to encrypt new connections; None for not at all.
        on_connected: Called with each admitted connection, and with what to call when its SETUP was accepted; returns
            what judges its payloads.
        on_lost: Called with the connection when it has ended.
    """

    def __init__(
        self,
        limits: Limits,
        tls: ssl.SSLContext | None,
        on_connected: Callable[[Transport, Callable[[], None]], Reassembler],
        on_lost: Callable[[Transport], None],
    ) -> None:
        self._handshake_seconds = limits.setup_seconds
        self.tls = tls
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._admission = Admission(limits)
        self._sockets: list[_ListeningSocket] = []
        self._accepting: list[asyncio.Task[None]] = []
        # A descriptor that is closed to accept with when no other is left.
        self._spare: int | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The host's first address, and the port."""
        return self._sockets[0].getsockname()[:2]

    async def open(self, host: str, port: int) -> None:
        """Listens on all addresses of `host` (empty: of the machine); raises OSError if one can't be bound."""
        self._sockets = await _bind(host, port)
        self._accepting = [asyncio.create_task(self._accept(listening)) for listening in self._sockets]

    async def stop(self) -> None:
        """Accepts no more connections, and ends TLS handshakes."""
        await _cancel(self._accepting)
        for listening in self._sockets:
            listening.close()
            if listening.unclaimed is not None:
                listening.unclaimed.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        await _cancel([each.connecting for each in self._admission.connections() if each.connecting is not None])

    async def close(self) -> None:
        """Closes every connection."""
        transports = [connection.transport for connection in self._admission.connections()]
        await asyncio.gather(*(transport.close() for transport in transports if transport is not None))

    async def _accept(self, listening: _ListeningSocket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._spare is None:
                self._open_spare()
            try:
                accepted, address = await loop.sock_accept(listening)
            except ConnectionError:
                pass  # the peer has disconnected already
            except OSError as error:
                _log.warning("connections can't be accepted: %s", error.strerror)
                if error.errno in _EXHAUSTED:
                    self._accept_with_spare(listening)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                listening.unclaimed = None
                self._connect(accepted, *address[:2])
            await asyncio.sleep(0)  # `sock_accept` doesn't suspend while connections wait: one an iteration

    def _connect(self, accepted: socket.socket, address: str, port: int) -> None:
        connection = Accepted(address, accepted)
        if not self._admission.admit(connection):
            _log.warning("refused a connection from %s: too many", address)
            if self.tls is not None:
                accepted.close()
                return
            self._admission.reject(connection)
        else:
            _log.info("accepted a connection from %s:%d", address, port)

        is_begun = False

        def make_transport(tls: ssl.SSLContext | None) -> TcpTransport:
            nonlocal is_begun
            is_begun = True
            return TcpTransport(on_connected, on_lost) if tls is None else TlsTransport(on_connected, on_lost, Tls(tls))

        def on_connected(transport: TcpTransport) -> Reassembler:
            connection.transport = transport
            if connection in self._admission.admitted:
                return self._on_connected(transport, lambda: self._admission.pending.pop(connection, None))
            if connection in self._admission.rejected:
                transport.fail(ErrorCode.REJECTED_SETUP, REJECTION if self.tls is None else _NOT_ENCRYPTED)
            else:
                transport.abort()
            return Reassembler(ReassemblyLimits(0, 0))

        def on_lost(_: Exception | None) -> None:
            self._admission.forget(connection)
            transport, connection.transport = connection.transport, None  # no reference cycle is left
            if transport is not None:
                self._on_lost(transport)

        def on_attempted(task: asyncio.Task[object]) -> None:
            connection.connecting = None
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.info("no connection with %s:%d: %s", address, port, str(error) or type(error).__name__)
                error.__traceback__ = None  # refers to all that the attempt had, and so to the error
            if not is_begun:
                connection.sock.close()  # the task was cancelled before
            if connection.transport is None:
                self._admission.forget(connection)

        connecting = self._make_connection(connection, make_transport, f"{address}:{port}")
        connection.connecting = asyncio.get_running_loop().create_task(connecting)
        connection.connecting.add_done_callback(on_attempted)

    async def _make_connection(
        self, connection: Accepted, make_transport: Callable[[ssl.SSLContext | None], TcpTransport], peer: str
    ) -> None:
        loop, tls = asyncio.get_running_loop(), self.tls
        if tls is not None:
            async with TimeoutWhileRunning(self._handshake_seconds):
                if await _speaks_tls(connection):
                    _, transport = await loop.connect_accepted_socket(lambda: make_transport(tls), connection.sock)
                    await transport.opened()
                    return
            _log.info("refused the connection from %s: it isn't encrypted, and this port is", peer)
            self._admission.forget(connection)
            self._admission.reject(connection)
        await loop.connect_accepted_socket(lambda: make_transport(None), connection.sock)

    def _accept_with_spare(self, listening: _ListeningSocket) -> None:
        """No descriptor is left to accept with: uses the spare one, and aborts a connection that can make room.

        Linux reports this even if no connection waits; then nothing happens.
        """
        if self._spare is None:
            self._admission.abort_one()
            return
        os.close(self._spare)
        self._spare = None
        try:
            accepted, address = listening.accept()
        except OSError:  # none waits, or another thread took the descriptor
            self._open_spare()
            return
        listening.unclaimed = None
        if self._admission.abort_one():
            accepted.setblocking(False)
            self._connect(accepted, *address[:2])
        else:
            accepted.close()
            self._open_spare()

    def _open_spare(self) -> None:
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)


async def _speaks_tls(connection: Accepted) -> bool:
    """Whether the peer begins a TLS handshake, whose bytes stay in the socket; if not, it can be sent an error."""
    if sys.platform == "win32":  # whose event loop doesn't receive with `recv`
        return True
    peeking = _PeekingSocket(fileno=connection.sock.detach())
    peeking.setblocking(False)
    try:
        begin = await asyncio.get_running_loop().sock_recv(peeking, 1)
    finally:
        connection.sock = socket.socket(fileno=peeking.detach())
        connection.sock.setblocking(False)
    return begin in (b"", _TLS_HANDSHAKE)


async def _cancel(tasks: "list[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _bind(host: str, port: int) -> list[_ListeningSocket]:
    """A listening socket for each address of the host, all with one port; raises OSError if one can't be bound."""
    infos = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in infos))
    for left in reversed(range(_PORTS)):
        try:
            return _bind_all(addresses, port)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE or not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def _show(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind_all(addresses: list[tuple[socket.AddressFamily, Any]], port: int) -> list[_ListeningSocket]:
    bound: list[_ListeningSocket] = []
    failure = OSError("the host has no address")
    for family, address in addresses:
        try:
            made = socket.create_server((address[0], port, *address[2:]), family=family, backlog=_BACKLOG)
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            failure = OSError(error.errno, f"can't listen on {_show(address[0], port)}: {reason}")
            if error.errno in _NOT_HERE:
                continue
            for listening in bound:
                listening.close()
            raise failure from None
        bound.append(_ListeningSocket(fileno=made.detach()))
        bound[-1].setblocking(False)
        port = bound[-1].getsockname()[1]
    if not bound:
        raise failure
    return bound
