"""A limit on bytes a second that any number of transfers share, in both directions, by withholding their credit."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable, SerialDisposable, SingleAssignmentDisposable

from shared.aio import wake
from shared.protocol.messages import CHUNK_BYTES, MIN_ITEM_BYTES

from ..rx.loops import call_on, disposable_on
from ..rx.observables import LoopObservable, report_raised

__all__ = ["RateLimit", "Share", "after_payment", "rate_limit"]

T = TypeVar("T")

# What an item of a limited transfer carries, so that the bytes come evenly; and what an idle limit saves up.
_ITEM_SECONDS: Final = 1 / 16
_BURST_SECONDS: Final = 1 / 8
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


def rate_limit(bytes_per_second: float | None, *, scheduler: abc.SchedulerBase | None = None) -> "RateLimit":
    """A limit for the `limit` argument of transfers: together they move no more than so many bytes a second.

    Uploads and downloads that share it, of any number of clients, take turns, an item at a time. The limit is of the
    content's bytes that this process sends and asks for: a server gets its credit later, so that nothing waits in
    memory. A transfer that has begun may be ahead by an item, of at most a sixteenth of a second or 4 KiB. The time
    that a transfer waits for its turn counts for its `deadline`, and for `stall_timeout`; whole-file verbs and listings
    aren't limited.

    Example::

        limit = rate_limit(2_000_000)
        await reactivex.merge(
            files.upload_from("a", "a", limit=limit), files.download_to("b", "b", limit=limit)
        )

    Args:
        bytes_per_second: More than 0; None or infinity for no limit. Assign another number to the result's attribute
            of this name at any time, in any thread; transfers that are under way follow.
        scheduler: Tells the time, and waits; by default the clock and the event loop of each transfer.

    Raises:
        ValueError: It isn't more than 0.
    """
    return RateLimit(bytes_per_second, scheduler)


class RateLimit:
    """See `rate_limit`, which makes one."""

    def __init__(self, bytes_per_second: float | None, scheduler: abc.SchedulerBase | None = None) -> None:
        self._rate = _checked(bytes_per_second)
        self._scheduler = scheduler
        # Guards what follows: transfers of several event loops may share the limit.
        self._lock = threading.Lock()
        self._level = 0.0  # bytes that may be moved; below 0, what was moved too early
        self._level_at = self._now()
        self._queue: deque[Share] = deque()
        self._is_granting = False

    def __repr__(self) -> str:
        return f"rate_limit({self._rate:g})" if self._rate is not None else "rate_limit(None)"

    @property
    def bytes_per_second(self) -> float | None:
        """The limit; None if there is none."""
        return self._rate

    @bytes_per_second.setter
    def bytes_per_second(self, value: float | None) -> None:
        rate = _checked(value)
        with self._lock:
            self._refill()
            self._rate = rate
        self._grant()

    def share(self, most: int = CHUNK_BYTES) -> "Share":
        """A share for a transfer that begins now, whose items carry `most` bytes at the most."""
        even = math.inf if self._rate is None else max(self._rate * _ITEM_SECONDS, MIN_ITEM_BYTES)
        return Share(self, int(min(even, most)), self._scheduler)

    # For the shares

    def enqueue(self, share: "Share") -> None:
        """`share` gets an item's credit when those before it have got theirs."""
        with self._lock:
            self._queue.append(share)
        self._grant()

    def leave(self, share: "Share") -> None:
        """`share` wants nothing any more."""
        with self._lock:
            if share in self._queue:
                self._queue.remove(share)
        self._grant()

    def give_back(self, nbytes: int) -> None:
        """Bytes that were paid for weren't moved; a negative number for more than were paid for."""
        with self._lock:
            self._refill()
            self._level += nbytes
        self._grant()

    def _grant(self) -> None:
        """Grants what may be granted now; the first share that has to wait does so in its own event loop."""
        with self._lock:
            if self._is_granting:
                return  # a share asks for its next item when it gets one: the loop below goes on
            self._is_granting = True
        while (share := self._next()) is not None:
            share.on_paid()

    def _next(self) -> "Share | None":
        with self._lock:
            self._refill()
            while self._queue:
                share = self._queue[0]
                # Less than a byte is as good as none: clocks aren't exact.
                if self._rate is not None and self._level <= -1 and not share.is_gone:
                    share.wait(-self._level / self._rate, self._grant)
                    break
                self._queue.popleft()
                if not share.is_gone:
                    self._level -= share.item_bytes
                    return share
            self._is_granting = False
            return None

    def _refill(self) -> None:
        now = self._now()
        elapsed, self._level_at = max(now - self._level_at, 0.0), now
        if self._rate is None:
            self._level = 0.0
        else:
            self._level = min(self._level + elapsed * self._rate, _BURST_SECONDS * self._rate)

    def _now(self) -> float:
        return time.monotonic() if self._scheduler is None else (self._scheduler.now - _EPOCH).total_seconds()


class Share:
    """One transfer's part of a limit: items of credit, each paid for before it is granted.

    Args:
        limit: The limit.
        item_bytes: What an item is expected to carry.

    Attributes:
        on_granted: Called in the event loop for each item that is paid for.
    """

    def __init__(self, limit: RateLimit, item_bytes: int, scheduler: abc.SchedulerBase | None = None) -> None:
        self.item_bytes: Final = item_bytes
        self.on_granted: Callable[[], None] = _ignore
        self._limit = limit
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._timer = SerialDisposable()
        self._wanted = self._paid = 0  # items
        self._correction = 0  # bytes that were given back for items that were moved
        self._is_queued = self._is_closed = False

    @property
    def is_waiting(self) -> bool:
        """Whether it is the limit that holds the transfer up."""
        return self._is_queued

    @property
    def is_gone(self) -> bool:
        """Whether its event loop has ended without closing it."""
        return self._loop.is_closed()

    def want(self, items: int) -> None:
        """Says how many items of credit are to be granted from now on."""
        self._wanted = items
        self._ask()

    def want_more(self, items: int) -> None:
        """Adds to them."""
        self.want(self._wanted + items)

    async def first(self) -> None:
        """Returns when an item is paid for."""
        paid = self._loop.create_future()
        self.on_granted = lambda: wake(paid)
        self.want(1)
        await paid

    def settle(self, items: int, nbytes: int) -> None:
        """Corrects the price of the items that were moved so far: the last is shorter, and a server's may differ."""
        correction = items * self.item_bytes - nbytes
        if correction != self._correction:
            self._limit.give_back(correction - self._correction)
            self._correction = correction

    def close(self, nbytes: int = 0) -> None:
        """The transfer is over, and has moved so many bytes; nothing is granted any more."""
        if self._is_closed:
            return
        self._is_closed = True
        self.on_granted = _ignore
        self._timer.dispose()
        if self._is_queued:
            self._limit.leave(self)
        self._limit.give_back(self._paid * self.item_bytes - nbytes - self._correction)

    # For the limit, in any thread

    def wait(self, seconds: float, then: Callable[[], None]) -> None:
        """Calls `then` later, in the event loop."""
        call_on(self._loop, self._wait, seconds, then)

    def on_paid(self) -> None:
        """The limit has granted an item."""
        call_on(self._loop, self._on_paid)

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        if self._scheduler is not None:
            self._timer.disposable = self._scheduler.schedule_relative(seconds, lambda _, __=None: then())
        else:
            self._timer.disposable = Disposable(self._loop.call_later(seconds, then).cancel)

    def _on_paid(self) -> None:
        self._is_queued = False
        if self._is_closed:
            self._limit.give_back(self.item_bytes)
            return
        self._paid += 1
        self._wanted -= 1
        report_raised(self.on_granted)  # what an observer raises must not keep the other transfers waiting
        self._ask()

    def _ask(self) -> None:
        if self._wanted > 0 and not self._is_queued and not self._is_closed:
            self._is_queued = True
            self._limit.enqueue(self)


def after_payment(
    limit: RateLimit, make: Callable[[Share], Observable[T]], loop: asyncio.AbstractEventLoop | None
) -> Observable[T]:
    """Subscribes to what `make` makes when an item is paid for; that closes the share when it ends."""

    def subscribe(observer: abc.ObserverBase[T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
        share, inner = limit.share(), SingleAssignmentDisposable()

        def begin() -> None:
            inner.disposable = make(share).subscribe(observer, scheduler=scheduler)

        share.on_granted = begin
        share.want(1)
        return CompositeDisposable(inner, disposable_on(asyncio.get_running_loop(), share.close))

    return LoopObservable(subscribe, loop, is_source=True)


def _checked(bytes_per_second: float | None) -> float | None:
    if bytes_per_second is None or bytes_per_second > 0:
        return None if bytes_per_second == math.inf else bytes_per_second
    raise ValueError(f"bytes_per_second must be more than 0, or None for no limit, not {bytes_per_second!r}")


def _ignore() -> None:
    """Nothing is waited for."""
