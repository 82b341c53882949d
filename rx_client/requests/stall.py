"""When a request has stalled: nothing moved for it for too long, though keepalives may go to and fro."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from shared.engine import RSocketEngine

__all__ = ["ProgressWatch", "Watched"]

_CHECKS_PER_TIMEOUT: Final = 8
# Most requests have ended by the first check, which asks the system.
_FIRST_CHECK_SECONDS: Final = 0.25


class Watched(Protocol):
    """What the watch reads of a `Request`."""

    arrived: int

    @property
    def id(self) -> int: ...
    @property
    def engine(self) -> RSocketEngine | None: ...
    def handed_over(self) -> tuple[int, bool]: ...
    def is_owed(self) -> bool: ...


class ProgressWatch:
    """Calls `on_stalled` once nothing has moved for `timeout` seconds.

    Args:
        request: What is watched.
        timeout: Seconds.
        on_stalled: Called with the text of the error.
    """

    __slots__ = ("_handed_until", "_moved_at", "_on_stalled", "_request", "_seen", "_timeout", "_timer")

    def __init__(self, request: Watched, timeout: float, on_stalled: Callable[[str], None]) -> None:
        loop = asyncio.get_running_loop()
        self._request = request
        self._timeout = timeout
        self._on_stalled = on_stalled
        self._moved_at = 0.0  # the first check sets it
        # What had moved at the last check: arrived, arrived of an unfinished payload, frames handed over, bytes taken.
        self._seen = (-1, 0, 0, 0)
        self._handed_until = 0
        self._timer = loop.call_later(min(timeout / _CHECKS_PER_TIMEOUT, _FIRST_CHECK_SECONDS), self._check)

    def stop(self) -> None:
        """The request has ended."""
        self._timer.cancel()

    def _check(self) -> None:
        request, timeout, loop = self._request, self._timeout, asyncio.get_running_loop()
        engine = request.engine
        handed, is_all = request.handed_over()
        received, (*_, handed_before, taken) = 0, self._seen
        if engine is not None:
            flow = engine.transport.flow
            received = engine.reassembler.received_of(request.id) + flow.arrived_of(request.id)
            # What the peer takes of everything up to this request's last frame is progress; what it takes of later
            # frames, such as keepalives, isn't. As long as the request has more to send, other streams' frames may
            # stand before it.
            if handed != handed_before or not is_all:
                self._handed_until = flow.handed_bytes
            taken = max(taken, min(flow.taken_bytes, self._handed_until))
        seen = (request.arrived, received, handed, taken)
        if seen != self._seen or not request.is_owed():
            self._seen, self._moved_at = seen, loop.time()
        elif loop.time() - self._moved_at >= timeout:
            self._on_stalled(f"nothing moved for {timeout:g} s")
            return
        self._timer = loop.call_later(timeout / _CHECKS_PER_TIMEOUT, self._check)
