"""What an observable emits in its event loop, for a consumer in another thread."""

import asyncio
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import Final, Generic, TypeVar

from reactivex import Observable
from reactivex.disposable import SingleAssignmentDisposable
from reactivex.observer import Observer

from shared.errors import BackpressureOverflow

from ..chunks import hold
from ..events import Progress
from .demand import Hold
from .observables import on_loop

__all__ = ["ThreadInbox", "Waiting"]

T = TypeVar("T")

# Of a source that can't be slowed down. A tree's transfers can be: the next ones begin when events have been taken.
_MAX_WAITING: Final = 1024


class Waiting(Generic[T]):
    """An item that waits, and the credit that it holds until the consumer is done with it."""

    __slots__ = ("held", "item")

    def __init__(self, item: T, held: Hold) -> None:
        self.item = item
        self.held = held


class ThreadInbox(Generic[T]):
    """The items of one subscription that haven't been taken. All methods may be called from any thread.

    An item that holds a credit slows its source down while it waits. A Progress takes the place of the one before it
    that still waits: a consumer that is behind wants to know how far a transfer is, not how far it was. Of other items
    1,024 may wait; then the source is disposed of, and BackpressureOverflow follows them.

    Args:
        loop: Where the source is subscribed to.
        on_change: Called, in any thread, when an item, the end, or an error has come.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._on_change = on_change
        self._lock = Lock()
        self._items: deque[Waiting[T]] = deque()
        # The newest Progress of each file, as far as it waits and nothing but Progress has come since.
        self._progress: dict[object, Waiting[T]] = {}
        self._upstream = SingleAssignmentDisposable()
        self._is_done = self._is_closed = False
        self._error: Exception | None = None

    def open(self, source: Observable[T]) -> None:
        """Subscribes."""
        observer = Observer[T](self._on_next, self._end, self._end)
        self._upstream.disposable = on_loop(source, self._loop).subscribe_there(self._loop, observer)

    def take(self) -> Waiting[T] | None:
        """The next item, whose credit the caller releases; None if there is none just now."""
        with self._lock:
            if not self._items:
                return None
            waiting = self._items.popleft()
            if self._progress and self._progress.get(_progress_key(waiting.item)) is waiting:
                del self._progress[_progress_key(waiting.item)]
            return waiting

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take just now."""
        return not self._items

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows what can be taken."""
        return self._is_done

    def take_error(self) -> Exception | None:
        """The error that the source has ended with, once; None if it has completed."""
        error, self._error = self._error, None
        return error

    def close(self) -> None:
        """Disposes of the source, and releases what waits."""
        with self._lock:
            self._is_closed = self._is_done = True
            left = list(self._items)
            self._items.clear()
            self._progress.clear()
        self._upstream.dispose()
        for waiting in left:
            waiting.held.release()

    def _on_next(self, item: T) -> None:
        held = hold(item)
        key = _progress_key(item)
        replaced, is_full = held, False
        with self._lock:
            if not self._is_done:
                waiting = None if key is None else self._progress.get(key)
                if waiting is not None:
                    waiting.item, waiting.held, replaced = item, held, waiting.held
                elif not held and len(self._items) >= _MAX_WAITING:
                    is_full = True
                else:
                    waiting = Waiting(item, held)
                    self._items.append(waiting)
                    replaced = None
                    if key is None:
                        self._progress.clear()
                    else:
                        self._progress[key] = waiting
        if replaced is not None:
            replaced.release()
        if is_full:
            self._upstream.dispose()
            self._end(BackpressureOverflow(f"the source is more than {_MAX_WAITING} items ahead of its consumer"))
        else:
            self._on_change()

    def _end(self, error: Exception | None = None) -> None:
        with self._lock:
            if self._is_done:
                return
            self._is_done, self._error = True, error
        self._on_change()


def _progress_key(item: object) -> object:
    """What items have in common that take each other's place; None for an item that has to be taken."""
    if not isinstance(item, Progress):
        return None
    return item.name if type(item) is Progress else type(item)
