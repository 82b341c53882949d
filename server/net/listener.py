"""Who is let in: accepts connections, counts each from its accept to its end, and lets strangers make room for others.

A stranger is whoever is still in the TLS handshake, or has no accepted SETUP. Where there are too many connections, the
stranger who has waited longest goes; only if there is none the newcomer is refused. So nobody keeps others out by
connecting and saying nothing.

asyncio's own listener tells nobody of a connection before its handshake is over, and is silent for a second whenever
the system has no descriptor left; hence this one.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from rsocket.error_codes import ErrorCode

from shared.files import disk
from shared.frames.reassembly import ReassemblyBudget
from shared.transport.tcp import FrameTransport

from ..limits import Limits

__all__ = ["Listener"]

_log = logging.getLogger(__name__)

_BACKLOG: Final = 1024
# How often another free port is tried, if the first isn't free at all addresses of the host.
_PORTS: Final = 16

# Out of descriptors, the process's or the system's; or out of the kernel's memory.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Until the next try then: what was closed meanwhile is free by then.
_PAUSE_SECONDS: Final = 0.02
_WARN_SECONDS: Final = 60.0

# Those who were told why they have to go, and may still read it for a second. With more of them the first are cut.
_MAX_LEAVING: Final = 64
# Strangers may have a quarter of the descriptors beyond those that the process itself needs.
_OWN_DESCRIPTORS: Final = 64
_MIN_STRANGERS: Final = 8

_FULL: Final = "server_full: too many connections; try again later"


class _ListeningSocket(socket.socket):
    """Remembers whom it has accepted until somebody takes note: a task that waits for it may be cancelled just then."""

    unseen: socket.socket | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        self.unseen, address = super().accept()
        return self.unseen, address


class _Guest:
    """One connection, from its accept to its end."""

    def __init__(self, address: str) -> None:
        self.address: Final = address
        self.transport: FrameTransport | None = None
        self.is_connected = False
        self.arriving: asyncio.Task[Any] | None = None

    def cut(self) -> None:
        """Ends the connection at once."""
        if self.arriving is not None:
            self.arriving.cancel()
        if self.is_connected and self.transport is not None:
            self.transport.abort()


class Listener:
    """Listens from `open` to `stop`; what it accepted is its own until `close`.

    Args:
        limits: How many connections there may be, and how long a TLS handshake may take.
        tls: How to encrypt; None for not at all.
        budget: What all connections together may hold.
        on_connected: Called with each connection that is let in, and with what to call when its SETUP was accepted.
        on_lost: Called with it when it has ended.
    """

    def __init__(
        self,
        limits: Limits,
        tls: ssl.SSLContext | None,
        budget: ReassemblyBudget,
        on_connected: Callable[[FrameTransport, Callable[[], None]], None],
        on_lost: Callable[[FrameTransport], None],
    ) -> None:
        self._limits = limits
        self._tls = tls
        self._budget = budget
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._sockets: list[_ListeningSocket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._guests: set[_Guest] = set()
        self._addresses: Counter[str] = Counter()
        # In the order of their coming.
        self._strangers: dict[_Guest, None] = {}
        self._leaving: dict[_Guest, None] = {}
        descriptors = disk.max_descriptors()
        self._max_strangers = limits.max_connections
        self._max_leaving = _MAX_LEAVING
        if descriptors is not None:
            share = max(_MIN_STRANGERS, (descriptors - _OWN_DESCRIPTORS) // 4)
            self._max_strangers = min(self._max_strangers, share)
            self._max_leaving = min(self._max_leaving, share // 2)
        # A descriptor to accept with when there is no other.
        self._spare: int | None = None
        self._quiet_until: dict[str, float] = {}

    @property
    def address(self) -> tuple[str, int]:
        """The host's first address, and the port."""
        host, port = self._sockets[0].getsockname()[:2]
        return host, port

    async def open(self, host: str, port: int) -> None:
        """Listens on all addresses of `host`; on all of the machine if it is empty.

        Raises:
            OSError: An address can't be bound.
        """
        self._sockets = await _bind(host, port)
        self._accepting = [asyncio.create_task(self._accept(listening)) for listening in self._sockets]

    async def stop(self) -> None:
        """Lets nobody in any more; TLS handshakes end."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
            if listening.unseen is not None:
                listening.unseen.close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        arriving = [guest.arriving for guest in self._known() if guest.arriving is not None]
        for task in arriving:
            task.cancel()
        await asyncio.gather(*arriving, return_exceptions=True)

    async def close(self) -> None:
        """Closes every connection."""
        await asyncio.gather(*(guest.transport.close() for guest in self._known() if guest.transport is not None))

    def _known(self) -> list[_Guest]:
        return [*self._guests, *self._leaving]

    async def _accept(self, listening: _ListeningSocket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._spare is None:
                self._keep_spare()
            try:
                accepted, address = await loop.sock_accept(listening)
            except ConnectionError:
                pass  # they have left already
            except OSError as error:
                self._warn("connections can't be accepted: %s", error.strerror)
                if error.errno in _EXHAUSTED:
                    self._squeeze_in(listening)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                listening.unseen = None
                self._receive(accepted, address[0])
            await asyncio.sleep(0)  # one a turn: with others waiting, accepting another wouldn't give anybody a turn

    def _receive(self, accepted: socket.socket, address: str) -> None:
        guest = _Guest(address)
        if self._make_room(address):
            self._guests.add(guest)
            self._strangers[guest] = None
            self._addresses[address] += 1
        else:
            self._warn("refused a connection from %s: too many", address)
            if self._tls is not None:
                accepted.close()
                return
            self._leave(guest)

        def connected(transport: FrameTransport) -> None:
            guest.is_connected = True
            if guest in self._guests:
                self._on_connected(transport, lambda: self._strangers.pop(guest, None))
            elif guest in self._leaving:
                transport.fail(ErrorCode.REJECTED_SETUP, _FULL)
            else:
                transport.abort()

        def lost(_: Exception | None) -> None:
            self._forget(guest)
            made, guest.transport = guest.transport, None  # neither waits for the garbage collector
            if made is not None:
                self._on_lost(made)

        def transport() -> FrameTransport:
            guest.transport = FrameTransport(on_connected=connected, on_lost=lost, budget=self._budget)
            return guest.transport

        def arrived(task: asyncio.Task[Any]) -> None:
            guest.arriving = None
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.debug("no connection with %s: %s", address, error)
                error.__traceback__ = None  # leads to all that the attempt had, and back to the error
            if guest.transport is None:
                accepted.close()  # the task was cancelled before it began
            elif not guest.is_connected:
                guest.transport.connection_lost(None)  # nobody else tells it
            if not guest.is_connected:
                self._forget(guest)

        seconds = None if self._tls is None else self._limits.setup_seconds
        loop = asyncio.get_running_loop()
        guest.arriving = loop.create_task(
            loop.connect_accepted_socket(transport, accepted, ssl=self._tls, ssl_handshake_timeout=seconds)
        )
        guest.arriving.add_done_callback(arrived)

    def _make_room(self, address: str) -> bool:
        """Whether one more from that address may stay; if need be, a stranger goes."""
        limits = self._limits
        most_here = limits.max_connections_per_address
        if most_here is not None and self._addresses[address] >= most_here:
            return self._evict(address)
        if len(self._guests) >= limits.max_connections or len(self._strangers) >= self._max_strangers:
            return self._evict()
        return True

    def _evict(self, address: str | None = None) -> bool:
        """Ends the connection of the stranger (from that address) who has waited longest; False if there is none."""
        guest = next((stranger for stranger in self._strangers if address in (None, stranger.address)), None)
        if guest is None:
            return False
        self._warn("too many connections: strangers make room, %s first", guest.address)
        self._forget(guest)
        transport = guest.transport
        if transport is None or not guest.is_connected or transport.failure is not None:
            guest.cut()
        else:
            transport.fail(ErrorCode.REJECTED_SETUP, _FULL)
            self._leave(guest)
        return True

    def _leave(self, guest: _Guest) -> None:
        """Bounds how many are on their way out; `guest` is, too, from now on."""
        if len(self._leaving) >= self._max_leaving:
            first = next(iter(self._leaving))
            del self._leaving[first]
            first.cut()
        self._leaving[guest] = None

    def _forget(self, guest: _Guest) -> None:
        self._leaving.pop(guest, None)
        self._strangers.pop(guest, None)
        if guest in self._guests:
            self._guests.remove(guest)
            self._addresses[guest.address] -= 1
            if not self._addresses[guest.address]:
                del self._addresses[guest.address]

    def _squeeze_in(self, listening: _ListeningSocket) -> None:
        """There is no descriptor to accept with: the spare one is used, and whoever can do without gives one up.

        Linux says so even if nobody waits to be accepted.
        """
        found: tuple[socket.socket, Any] | None = None
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
            try:
                found = listening.accept()
            except OSError:  # nobody waits; or another thread took the descriptor
                self._keep_spare()
                return
        guest = next(iter([*self._leaving, *self._strangers]), None)
        if guest is not None:
            self._forget(guest)
            guest.cut()
        if found is None:
            return
        accepted, address = found
        listening.unseen = None
        if guest is not None:
            accepted.setblocking(False)
            self._receive(accepted, address[0])
        else:
            accepted.close()
            self._keep_spare()

    def _keep_spare(self) -> None:
        with suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def _warn(self, message: str, about: str | None) -> None:
        """Logs this, but not more than once a minute."""
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until.get(message, now):
            self._quiet_until[message] = now + _WARN_SECONDS
            _log.warning(message + "; more of it isn't logged for a minute", about)


async def _bind(host: str, port: int) -> list[_ListeningSocket]:
    """A listening socket for each address of the host, all with one port.

    Raises:
        OSError: One can't be bound.
    """
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


def _bind_all(addresses: list[tuple[socket.AddressFamily, Any]], port: int) -> list[_ListeningSocket]:
    bound: list[_ListeningSocket] = []
    failure: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listening = _ListeningSocket(family, socket.SOCK_STREAM)
            except OSError as error:  # the machine has no IPv6, say
                failure = error
                continue
            try:
                _listen(listening, (address[0], port, *address[2:]))
            except OSError as error:
                listening.close()
                failure = OSError(error.errno, f"can't listen on {address[:2]}: {str(error.strerror).lower()}")
                if error.errno != errno.EADDRNOTAVAIL:
                    raise failure from None
                continue
            bound.append(listening)
            port = listening.getsockname()[1]
    except BaseException:
        for listening in bound:
            listening.close()
        raise
    if not bound:
        raise failure if failure is not None else OSError("the host has no address")
    return bound


def _listen(listening: socket.socket, address: tuple[Any, ...]) -> None:
    listening.setblocking(False)
    if os.name == "posix" and sys.platform != "cygwin":  # elsewhere it lets two servers have one port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listening.family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listening.bind(address)
    listening.listen(_BACKLOG)
