"""The names of a dictionary that others may change at any time, in order."""

import asyncio
import math
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator
from heapq import merge
from typing import Final

__all__ = ["SortedNames"]

# Sorting as many takes less than a millisecond; then other event-loop callbacks run.
_RUN_NAMES: Final = 2048

# The most of the time that pages of listings under way may spend on looking for new names.
_LOOKING_SHARE: Final = 0.1


class SortedNames:
    """A snapshot that all listings share: eight bytes a name, and the names that the dictionary hasn't any more.

    Args:
        names: The dictionary.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._source = names
        self._lock = asyncio.Lock()
        self.free()

    def free(self) -> None:
        """Drops the snapshot; the next page takes another one."""
        # As they were in the dictionary, and in sorted runs: to merge them at once would take long.
        self._names: list[str] | None = None
        self._runs: list[list[str]] = []
        self._look_again_at = -math.inf

    async def look(self, *, anew: bool) -> bool:
        """Takes another snapshot if the dictionary has other names by now, and returns whether it did.

        Args:
            anew: Whether to look in any case: a new listing has what is there when it begins. One that goes on may miss
                what has come meanwhile.
        """
        async with self._lock:
            began = time.monotonic()
            if not anew and began < self._look_again_at:
                return False
            names = list(self._source)
            has_changed = names != self._names  # quick, since they are the same objects
            if has_changed:
                runs: list[list[str]] = []
                for start in range(0, len(names), _RUN_NAMES):
                    runs.append(sorted(names[start : start + _RUN_NAMES]))
                    await asyncio.sleep(0)
                self._names, self._runs = names, runs
            now = time.monotonic()
            self._look_again_at = now + (now - began) / _LOOKING_SHARE
            return has_changed

    def since(self, first: str) -> Iterator[str]:
        """The snapshot's names from `first` on, in order."""
        return merge(*(_since(run, first) for run in self._runs))


def _since(run: list[str], first: str) -> Iterator[str]:
    for index in range(bisect_left(run, first), len(run)):
        yield run[index]
