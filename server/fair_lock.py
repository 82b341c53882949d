"""A lock that a flood of waiters from one address can't keep from the others."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from shared.aio import wake
from shared.errors import ServerFull

__all__ = ["FairLock"]


class FairLock:
    """A lock that goes round the addresses of its waiters, and at each address to the newest waiter.

    So the waiters of one address delay another address by one holder each round, and a newcomer at their own address
    by one holder; in a first-come queue it would be by all of them.

    Args:
        max_waiting: With more waiters than that, the address that has the most loses its oldest one.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._is_held = False
        self._waiters: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def hold(self, address: str) -> AsyncGenerator[None, None]:
        """Holds the lock during the block.

        Raises:
            ServerFull: Too many wait for it.
        """
        if self._is_held:
            await self._wait(address)
        self._is_held = True
        try:
            yield
        finally:
            self._release()

    async def _wait(self, address: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(address, deque()).append(waiter)
        if sum(map(len, self._waiters.values())) > self._max_waiting:
            self._refuse_one()
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:
                self._release()  # cancelled in the iteration in which it got the lock
            raise

    def _refuse_one(self) -> None:
        # Of addresses with equally many, the one that is served last.
        address = max(reversed(self._waiters), key=lambda address: len(self._waiters[address]))
        waiters = self._waiters[address]
        waiter = waiters.popleft()
        if not waiters:
            del self._waiters[address]
        if not waiter.done():
            waiter.set_exception(ServerFull("too many connections wait for authentication; try again later"))

    def _release(self) -> None:
        while self._waiters:
            address = next(iter(self._waiters))
            waiters = self._waiters.pop(address)
            waiter = waiters.pop()
            if waiters:
                self._waiters[address] = waiters  # behind the other addresses
            if not waiter.done():
                wake(waiter)
                return
        self._is_held = False
