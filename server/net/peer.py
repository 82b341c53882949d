"""How long one peer has kept its connection waiting, judged by the time during which the server ran."""

from rsocket.error_codes import ErrorCode

from shared.presence import Standstill
from shared.transport.base import Transport

from ..limits import Limits

__all__ = ["PeerWatch"]


class PeerWatch:
    """Ends a connection whose peer doesn't set it up, is silent, or takes nothing, for too long.

    Every method takes the time of the server's `RunClock`.

    Attributes:
        idle_seconds: How long the peer may be silent.
    """

    __slots__ = ("_blocked", "_limits", "_pending", "_silent", "_transport", "_unread", "idle_seconds")

    def __init__(self, transport: Transport, limits: Limits) -> None:
        self.idle_seconds = limits.idle_seconds
        self._transport = transport
        self._limits = limits
        self._pending, self._silent, self._blocked = Standstill(), Standstill(), Standstill()
        self._unread = 0

    def check(self, now: float, *, is_set_up: bool) -> bool:
        """Looks at everything; whether the connection goes on. To be called about twice a second."""
        limits, transport, flow = self._limits, self._transport, self._transport.flow
        self._unread += transport.has_unread
        pending_for = self._pending.look(now, is_set_up)
        silent_for = self._silent_for(now, flow.received_at)
        blocked_for = self._blocked.look(now, flow.blocked_since)
        if not is_set_up and pending_for > limits.setup_seconds:
            transport.fail(ErrorCode.INVALID_SETUP, "timeout: there was no SETUP in time")
        elif is_set_up and silent_for > self.idle_seconds:
            transport.fail(ErrorCode.CONNECTION_ERROR, "timeout: the connection was silent for too long")
        elif flow.blocked_since is not None and blocked_for > limits.blocked_seconds:
            transport.fail(ErrorCode.CONNECTION_ERROR, "timeout: the peer takes nothing of what it asked for")
        else:
            return True
        return False

    def is_silent(self, now: float) -> bool:
        """Whether the peer may have been silent for too long: a tenth of the time that `check` takes."""
        return self._silent_for(now, self._transport.received_at) > self.idle_seconds

    def _silent_for(self, now: float, received_at: float) -> float:
        return self._silent.look(now, (received_at, self._unread))
