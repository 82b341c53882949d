"""Removes uploads that no client goes on with, by any number of servers at once.

An upload is as old as its state: by the service's clock, and by how long this server has seen it unchanged. No clock of
a server counts, since they may be set. Owners change the states of their uploads now and then to keep them young.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from .bucket import Bucket, Object
from .facts import Facts
from .failures import Missing
from .keys import Keys
from .state import StateObject, Taken, remove_upload

__all__ = ["Sweeper"]

# What is kept of files in parts is looked at this many at a time, since each takes two requests.
_FACTS_A_SWEEP: Final = 100


class Sweeper:
    """See above."""

    def __init__(self, bucket: Bucket, keys: Keys, facts: Facts) -> None:
        self._bucket = bucket
        self._keys = keys
        self._facts = facts
        # Of each state that was there at the last sweep: its ETag, and since when it has had that.
        self._seen: Mapping[str, tuple[str, float]] = {}
        self._facts_after = ""

    async def sweep(self, max_age_seconds: float, is_owned: Callable[[str], bool]) -> int:
        """Removes what is older; returns how many uploads that were. `is_owned` says which keys this server has."""
        bucket, seen, dropped = self._bucket, dict[str, tuple[str, float]](), 0
        token: str | None = ""
        states, pieces = set[str](), list[str]()
        while token is not None:
            page = await bucket.list(self._keys.uploads, token=token or None)
            for found in page.objects:
                etag, since = self._seen.get(found.key, ("", 0.0))
                now = time.monotonic()
                seen[found.key] = (found.etag, since if etag == found.etag else now)
                age = max(now - seen[found.key][1], 0.0 if page.time is None else page.time - found.modified)
                is_state = found.key.endswith(".json")
                if is_state:
                    states.add(found.key)
                if age <= max_age_seconds or is_owned(found.key):
                    continue
                if is_state:
                    dropped += await self._drop(found)
                else:
                    pieces.append(found.key)
            token = page.token
        self._seen = seen
        for piece in pieces:
            if f"{piece.rpartition('/')[0]}.json" not in states:
                await bucket.delete(piece)  # a server was killed before its upload's state had it
        await self._sweep_facts(max_age_seconds)
        return dropped

    async def _drop(self, found: Object) -> bool:
        state = await StateObject.at(self._bucket, found.key)
        if state is None:
            return False
        if state.etag != found.etag:
            return False  # it has gone on
        was_dropped = state.value.is_dropped  # by another server, which counts it
        with suppress(Taken):
            await remove_upload(self._bucket, self._keys, state)
            return not was_dropped
        return False

    async def _sweep_facts(self, max_age_seconds: float) -> None:
        after = self._facts_after
        page = await self._bucket.list(self._keys.facts, after=after, limit=_FACTS_A_SWEEP)
        self._facts_after = page.objects[-1].key if page.token is not None and page.objects else ""
        for found in page.objects:
            age = 0.0 if page.time is None else page.time - found.modified
            if age > max(max_age_seconds, 0.0) and await self._facts.is_orphan(found.key):
                with suppress(Missing):
                    await self._bucket.delete(found.key)
