"""From what may have changed in a store to what has: comparing what a watcher knows with what is there."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Final, NamedTuple

from shared.errors import Forbidden, InvalidName, NotFound, ServerFull, TransferError
from shared.protocol.changes import ChangeKind
from shared.protocol.wire import FileInfo

from .base import Store
from .changes import Changes, Interest

__all__ = ["Change", "KnownFiles", "watched"]

_log = logging.getLogger(__name__)

# The most of the time that listings may take which look for what others have changed.
_LISTING_SHARE: Final = 0.1
# How long it may take until a store's new `relist_seconds` are heeded.
_LOOK_SECONDS: Final = 0.25
_NAMES_A_SLICE: Final = 2048
# Beyond that many prefixes, to list everything takes less.
_MOST_PREFIXES: Final = 64


class Change(NamedTuple):
    """One difference; `info` is None for a file that was removed."""

    kind: ChangeKind
    name: str
    info: FileInfo | None


class KnownFiles:
    """What a consumer knows: a number for the version of each file, some 200 bytes with the name. Used by one task.

    Args:
        store: Where the files are.
        prefixes: What the names of the files start with; none of them starts with another one.
        budget: Where the files are counted; None not to count them.
    """

    def __init__(self, store: Store, prefixes: Sequence[str], budget: Changes | None = None) -> None:
        self._store = store
        self._prefixes = prefixes
        self._budget = budget
        self._versions: dict[str, int] = {}

    def close(self) -> None:
        """Knows nothing any more."""
        self._count(-len(self._versions))
        self._versions.clear()

    async def look(self, interest: Interest) -> AsyncGenerator[Change, None]:
        """What differs of all that was noted. What isn't looked at, since this ends early, is noted again.

        Raises:
            TransferError: As of `Store.stat` and `Store.list`.
            ServerFull: The watchers know of too many files.
        """
        names, prefixes = interest.take()
        names, below = list(reversed(names)), dict.fromkeys(prefixes)  # the last one comes first
        try:
            while names:
                name = names[-1]
                # A file is no folder: nothing below it has gone with it.
                if name in self._versions:
                    below.pop(f"{name}/", None)
                change = await self._compare_one(name)
                names.pop()
                if change is not None:
                    yield change
            if len(below) > _MOST_PREFIXES:
                below = dict.fromkeys(self._prefixes)
            while below:
                prefix = next(iter(below))
                async with aclosing(self.compare(prefix)) as changes:
                    async for change in changes:
                        yield change
                del below[prefix]
        finally:
            for name in reversed(names):
                interest.note(name)
            for prefix in below:
                interest.note_below(prefix)

    async def compare(self, prefix: str) -> AsyncGenerator[Change, None]:
        """Lists the files with that prefix, and emits each difference as soon as it is found; see `look`."""
        rest = await self._take(prefix)
        try:
            after: str | None = ""
            while after is not None:
                page = await self._store.list(prefix, after)
                after = page.after
                for info in page.files:
                    change = self._see(info.name, info, rest.pop(info.name, None))
                    if change is not None:
                        yield change
            # A listing may miss what comes while it goes on.
            while rest:
                name, version = rest.popitem()
                try:
                    info = await self._find(name)
                except BaseException:
                    rest[name] = version
                    raise
                if (change := self._see(name, info, version)) is not None:
                    yield change
        finally:
            self._versions.update(rest)

    async def _compare_one(self, name: str) -> Change | None:
        info = await self._find(name)
        return self._see(name, info, self._versions.pop(name, None))

    def _see(self, name: str, info: FileInfo | None, before: int | None) -> Change | None:
        """Notes the version that is there now, in place of the one before, which isn't kept any more."""
        if info is None:
            if before is None:
                return None
            self._count(-1)
            return Change(ChangeKind.REMOVED, name, None)
        version = hash((info.etag, info.size, info.modified))
        if before is None:
            self._count(1)
        self._versions[name] = version
        if version == before:
            return None
        return Change(ChangeKind.ADDED if before is None else ChangeKind.CHANGED, name, info)

    def _count(self, files: int) -> None:
        if (budget := self._budget) is None:
            return
        if files > 0 and budget.known + files > budget.max_known:
            raise ServerFull(
                f"the watches of this server may know of {budget.max_known} files; watch a longer prefix, or fewer ones"
            )
        budget.known += files

    async def _find(self, name: str) -> FileInfo | None:
        try:
            return await self._store.stat(name)
        except (NotFound, InvalidName, Forbidden):  # none of them is listed
            return None

    async def _take(self, prefix: str) -> dict[str, int]:
        """What is known with that prefix, which isn't kept here any more."""
        if tuple(self._prefixes) == (prefix,):
            taken, self._versions = self._versions, {}
            return taken
        names: list[str] = []
        for index, name in enumerate(self._versions, 1):
            if name.startswith(prefix):
                names.append(name)
            if not index % _NAMES_A_SLICE:
                await asyncio.sleep(0)
        return {name: self._versions.pop(name) for name in names}


@contextmanager
def watched(store: Store, prefixes: Sequence[str]) -> Generator[Interest, None, None]:
    """What may change of the files with these prefixes, by any writer, while the block lasts."""
    interest, changes = Interest(prefixes), store.changes
    changes.add(interest, partial(_observe, store))
    try:
        yield interest
    finally:
        changes.remove(interest)


async def _observe(store: Store) -> None:
    """Notes what others change: as the store hears of it, and by listings."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(store.observe())
            group.create_task(_relist(store))
    except Exception:
        _log.exception("changes of the files by others aren't noticed any more")


async def _relist(store: Store) -> None:
    """Compares listings of what is watched, now and then: all watchers share these."""
    known: dict[str, KnownFiles] = {}
    began = -float("inf")
    took = 0.0
    while True:
        while time.monotonic() < began + max(store.relist_seconds, took / _LISTING_SHARE):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        began, changes = time.monotonic(), store.changes
        prefixes = changes.prefixes()
        known = {prefix: files for prefix, files in known.items() if prefix in prefixes}
        has_new = any(prefix not in known for prefix in prefixes)
        for prefix in prefixes:
            is_first = prefix not in known
            files = known.setdefault(prefix, KnownFiles(store, [prefix]))
            try:
                async with aclosing(files.compare(prefix)) as differences:
                    async for change in differences:
                        if not is_first:
                            changes.note(change.name)
            except TransferError:
                is_first = True  # the watchers get the error, too
            if is_first:
                # They began before this listing, and may have missed what changed meanwhile.
                changes.note_below(prefix)
        took = 0.0 if has_new else time.monotonic() - began  # the watchers list as well at their start
