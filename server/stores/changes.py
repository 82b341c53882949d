"""What may have changed in a store: names for its watchers to look at, and nothing else, so that no queue grows.

The store that notes a name needn't know what has become of it: a watcher looks, and compares with what its consumer
knows. So it does no harm to note a name twice, or for nothing; but a change that is noted before it can be seen is
lost.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Final

from shared.aio import wake

__all__ = ["Changes", "Interest", "Watchable"]

# Beyond that many, everything is listed again: that takes no more time, and no memory.
_MOST_NOTED: Final = 4096


class Interest:
    """What one watcher has to look at again.

    Args:
        prefixes: What the names start with that it watches.
    """

    def __init__(self, prefixes: Sequence[str]) -> None:
        self.prefixes: Final = tuple(prefixes)
        self._names: dict[str, None] = {}
        self._below: dict[str, None] = {}
        self._waiter: asyncio.Future[None] | None = None

    def note(self, name: str) -> None:
        """The file of that name may have changed."""
        if name.startswith(self.prefixes):
            self._add(self._names, name)

    def note_below(self, prefix: str) -> None:
        """All files whose names start with `prefix` may have changed."""
        if prefix.startswith(self.prefixes):
            self._add(self._below, prefix)
            return
        for own in self.prefixes:
            if own.startswith(prefix):
                self._add(self._below, own)

    def take(self) -> tuple[Sequence[str], Sequence[str]]:
        """The names, and the prefixes, that were noted since the last call."""
        names, below = tuple(self._names), tuple(self._below)
        self._names.clear()
        self._below.clear()
        return names, below

    async def wait(self) -> None:
        """Returns when something is noted."""
        while not (self._names or self._below):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _add(self, noted: dict[str, None], what: str) -> None:
        if len(noted) == _MOST_NOTED and what not in noted:
            self._names.clear()
            self._below = dict.fromkeys(self.prefixes)
        else:
            noted[what] = None
        if self._waiter is not None:
            wake(self._waiter)


class Changes:
    """What the watchers of one store hear, in the event loop's thread. A store notes what it changes.

    Attributes:
        watchers: Of the store, at present: where there are none, nothing needs to be noted.
        max_known: How many files all watchers together may know of.
        known: How many they do.
    """

    def __init__(self) -> None:
        self.watchers: Final[set[Interest]] = set()
        self.max_known = 1_000_000
        self.known = 0
        self._observer: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def note(self, name: str) -> None:
        """The file of that name was published, replaced or removed; to be called when that can be seen."""
        for each in self.watchers:
            each.note(name)

    def note_below(self, prefix: str) -> None:
        """The same, of any files whose names start with `prefix`."""
        for each in self.watchers:
            each.note_below(prefix)

    def prefixes(self) -> list[str]:
        """What is watched; none of them starts with another one."""
        found: list[str] = []
        for prefix in sorted({prefix for each in self.watchers for prefix in each.prefixes}):
            if not (found and prefix.startswith(found[-1])):
                found.append(prefix)
        return found

    def add(self, interest: Interest, observe: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A watcher has come; for the first one, `observe()` begins to note what others change in the store."""
        self.watchers.add(interest)
        if self._observer is None:
            self._observer = asyncio.get_running_loop().create_task(observe())

    def remove(self, interest: Interest) -> None:
        """A watcher has gone; with the last one, what `add` began is cancelled."""
        self.watchers.discard(interest)
        if not self.watchers and self._observer is not None:
            task, self._observer = self._observer, None
            task.cancel()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Returns when nothing is observed any more; the watchers have gone."""
        while self._ending:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(self._ending)


class Watchable:
    """What a store has for those that look on: its watchers, and the statistics.

    Attributes:
        relist_seconds: How often what is watched is listed, to find what others have changed and `observe` hasn't
            noted; less often where that takes long.
    """

    relist_seconds: float = 2.0

    @cached_property
    def changes(self) -> Changes:
        """Where the store notes the names of files that it has published, replaced or removed."""
        return Changes()

    async def observe(self) -> None:
        """Notes in `changes` what others change, as it happens, until it is cancelled; there are watchers meanwhile.

        Returns at once, as by default, where the store can't hear of that.
        """
        return

    async def count_unfinished(self) -> int | None:
        """How many uploads there are that aren't published; None, as by default, where that takes too long."""
        return None
