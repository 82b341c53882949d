"""Which connections may stay: counts each from its accept to its end, and evicts pending ones in favour of new ones.

A connection is pending while it is in its TLS handshake or has no accepted SETUP. Where there are too many, the one
that has been pending longest is evicted; only if none is pending the new one is refused. So a peer can't keep others
out by connecting and sending nothing.
"""

import asyncio
import logging
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Final

from rsocket.error_codes import ErrorCode

from shared.files import disk
from shared.transport.tcp import TcpTransport

from ..limits import Limits

__all__ = ["REJECTION", "Accepted", "Admission"]

REJECTION: Final = "server_full: too many connections; try again later"

_log = logging.getLogger(__name__)

# Rejected connections that may still read why, for a second. With more of them the oldest is aborted.
_MAX_REJECTED: Final = 64
# Pending connections may have a quarter of the descriptors beyond those that the process itself needs.
_OWN_DESCRIPTORS: Final = 64
_MIN_PENDING: Final = 8


@dataclass(eq=False, slots=True)
class Accepted:
    """One connection, from its accept to its end.

    Attributes:
        address: The peer's.
        sock: Its socket; `transport` closes it.
        transport: Its transport: from the end of the TLS handshake, if there is one, to the end of the connection.
        connecting: The task that makes the transport and, with TLS, the handshake.
    """

    address: str
    sock: socket.socket
    transport: TcpTransport | None = None
    connecting: asyncio.Task[object] | None = None

    def abort(self) -> None:
        """Ends the connection at once."""
        if self.connecting is not None:
            self.connecting.cancel()
        if self.transport is not None:
            self.transport.abort()


class Admission:
    """The accepted connections of one server.

    Attributes:
        admitted: Those that may stay.
        pending: Those of them that can be evicted, in the order of their accepts, until their SETUP is accepted.
        rejected: Those that are closed when their peer has read why, in the order of their rejections.
    """

    def __init__(self, limits: Limits) -> None:
        self.admitted: set[Accepted] = set()
        self.pending: dict[Accepted, None] = {}
        self.rejected: dict[Accepted, None] = {}
        self._limits = limits
        self._per_address: Counter[str] = Counter()
        self._max_pending, self._max_rejected = limits.max_connections, _MAX_REJECTED
        descriptors = disk.max_descriptors()
        if descriptors is not None:
            share = max(_MIN_PENDING, (descriptors - _OWN_DESCRIPTORS) // 4)
            self._max_pending = min(self._max_pending, share)
            self._max_rejected = min(self._max_rejected, share // 2)

    def connections(self) -> list[Accepted]:
        """All that haven't ended."""
        return [*self.admitted, *self.rejected]

    def admit(self, connection: Accepted) -> bool:
        """Admits the connection, as a pending one, if there is room or a pending one can be evicted."""
        limits, address = self._limits, connection.address
        most_here = limits.max_connections_per_address
        is_full_here = most_here is not None and self._per_address[address] >= most_here
        is_full = len(self.admitted) >= limits.max_connections or len(self.pending) >= self._max_pending
        if (is_full_here or is_full) and not self._evict(address if is_full_here else None):
            return False
        self.admitted.add(connection)
        self.pending[connection] = None
        self._per_address[address] += 1
        return True

    def reject(self, connection: Accepted) -> None:
        """Keeps the connection until its peer has read the reason; aborts the oldest of these if there are too many."""
        if len(self.rejected) >= self._max_rejected:
            self._abort(next(iter(self.rejected)))
        self.rejected[connection] = None

    def forget(self, connection: Accepted) -> None:
        """The connection has ended."""
        self.rejected.pop(connection, None)
        self.pending.pop(connection, None)
        if connection in self.admitted:
            self.admitted.remove(connection)
            self._per_address[connection.address] -= 1
            if not self._per_address[connection.address]:
                del self._per_address[connection.address]

    def abort_one(self) -> bool:
        """Aborts the oldest rejected connection, or else the one pending longest; False if there is neither."""
        connection = next(iter([*self.rejected, *self.pending]), None)
        if connection is None:
            return False
        self._abort(connection)
        return True

    def _abort(self, connection: Accepted) -> None:
        self.forget(connection)
        connection.abort()

    def _evict(self, address: str | None) -> bool:
        """Rejects the connection (from `address`, if given) that has been pending longest; False if none is pending."""
        connection = next((each for each in self.pending if address in (None, each.address)), None)
        if connection is None:
            return False
        _log.warning("too many connections: pending ones make room, %s first", connection.address)
        transport = connection.transport
        if transport is None or transport.failure is not None:
            self._abort(connection)
        else:
            self.forget(connection)
            transport.fail(ErrorCode.REJECTED_SETUP, REJECTION)
            self.reject(connection)
        return True
