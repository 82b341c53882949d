"""What is known of the values of a dictionary that others may change at any time, in the event loop's thread."""

import asyncio
import math
import time
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Final

from shared.aio import run_blocking
from shared.protocol.digest import Digest
from shared.protocol.wire import FileInfo

from .base import Reader

__all__ = ["FILES_A_SLICE", "Catalog", "Claim", "Known", "KnownReader", "cost_of"]

FILES_A_SLICE: Final = 256
"""Looking at that many files takes 0.1 to 0.2 milliseconds; then other event-loop callbacks run."""

# The default digest of a megabyte takes 20 to 100 microseconds, about as long as a thread handoff.
_INLINE_DIGEST_BYTES: Final = 1024 * 1024

# What a file or an unfinished upload takes beside its content and its name: what is known of it, here and elsewhere.
_ENTRY_BYTES: Final = 1024

# The most of the time that counting all files again may take.
_COUNTING_SHARE: Final = 0.1

# However few there are, they aren't counted more often: a `put` that needs no count is done at once.
_COUNTED_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one value: it holds for this very object, since `bytes` can't change."""

    content: bytes
    info: FileInfo
    upload_id: str | None

    @classmethod
    def of(
        cls, name: str, content: bytes, digest: str, upload_id: str | None = None, modified: float | None = None
    ) -> "Known":
        """A new value, stored now; its etag is its digest."""
        modified = time.time() if modified is None else modified
        return cls(content, FileInfo(name, len(content), digest, modified, digest), upload_id)


class KnownReader(Reader):
    """Holds the value that it was opened for."""

    def __init__(self, known: Known) -> None:
        self._known: Known | None = known
        self._info = known.info

    @property
    def info(self) -> FileInfo:
        return self._info

    async def read(self, offset: int, length: int) -> bytes:
        return b"" if self._known is None else self._known.content[offset : offset + length]

    async def close(self) -> None:
        self._known = None


@dataclass(slots=True, eq=False)
class Claim:
    """The room that a file which is still arriving will need.

    Attributes:
        name: The file's.
        cost: What the file will count, as far as it has arrived.
        reserved: What of that is reserved: what the file of that name, which it will replace, doesn't count already.
    """

    name: str
    cost: int = 0
    reserved: int = 0


class Catalog:
    """The digest and time of each value, and how many bytes all of them take beside what their store adds.

    What goes through the store is counted at once. What others do to the dictionary is found by counting all of it
    again now and then, so it may be over the limit for a while.

    Args:
        files: The dictionary.

    Attributes:
        used: Bytes that count against the limit: the files', and the unfinished uploads' that the store adds.
        reserved: Bytes that uploads under way, and files that are still arriving, are going to add.
        max_bytes: The limit; None for none.
    """

    def __init__(self, files: MutableMapping[str, bytes]) -> None:
        self.used = self.reserved = 0
        self.max_bytes: int | None = None
        self._files = files
        self._known: dict[str, Known] = {}
        # What each file counts, as it was last seen.
        self._counted: dict[str, int] = {}
        # Of each name, the claim that uses the room of the file there is: only one, or it would be used twice.
        self._replacing: dict[str, Claim] = {}
        self._counting = asyncio.Lock()
        self._counts = 0
        self._count_again_at = -math.inf

    def get(self, name: str) -> Known | None:
        """What is known of a file, if that takes no time; None if there is none, or its digest isn't known yet."""
        known = self._known.get(name)
        return known if known is not None and self._files.get(name) is known.content else None

    def add(self, name: str, known: Known) -> None:
        """Notes what is known of a value that is in the dictionary now."""
        self._known[name] = known
        self.see(name)

    async def know(self, name: str, content: bytes) -> Known:
        """What is known of a value that was just in the dictionary."""
        known = self._known.get(name)
        if known is not None and known.content is content:
            return known
        digest = Digest()
        if len(content) <= _INLINE_DIGEST_BYTES:
            digest.update(content)
            await asyncio.sleep(0)  # a listing may need many
        else:
            await run_blocking(None, digest.update, content)
        known = self._known.get(name)
        if known is not None and known.content is content:
            return known  # another call was quicker: there is one time
        known = Known.of(name, content, digest.text())
        if self._files.get(name) is content:
            self.add(name, known)
        return known

    def see(self, name: str) -> None:
        """Counts what the dictionary has under that name now, and frees a value that it hasn't any more."""
        content = self._files.get(name)
        cost = 0 if content is None else cost_of(name, len(content))
        self.used += cost - self._counted.get(name, 0)
        if cost:
            self._counted[name] = cost
        else:
            self._counted.pop(name, None)
        if name in self._replacing:
            self._settle(self._replacing[name])
        known = self._known.get(name)
        if known is not None and known.content is not content:
            del self._known[name]

    async def free(self) -> None:
        """Frees the values that the dictionary hasn't any more."""
        await self._see_all(self._known)

    def has_room(self, name: str, nbytes: int) -> bool:
        """Whether it is certain that a file of that size can be put; the caller does so at once."""
        return not self._must_count() and not self._lacks(self.growth(name, nbytes))

    def growth(self, name: str, nbytes: int) -> int:
        """How many more bytes count with a file of that size in place of the one of that name."""
        self.see(name)
        return cost_of(name, nbytes) - self._counted.get(name, 0)

    def missing(self, claim: Claim, cost: int) -> int:
        """How many more bytes count with a claim of that cost."""
        self.see(claim.name)
        is_replacing = self._replacing.get(claim.name, claim) is claim
        return cost - (self._counted.get(claim.name, 0) if is_replacing else 0) - claim.reserved

    def claim(self, claim: Claim, cost: int) -> None:
        """Raises what a claim counts; the caller has made sure of the room that is `missing`."""
        self._replacing.setdefault(claim.name, claim)
        claim.cost = cost
        self._settle(claim)

    def release(self, claim: Claim) -> None:
        """Ends a claim."""
        claim.cost = 0
        self._settle(claim)
        if self._replacing.get(claim.name) is claim:
            del self._replacing[claim.name]

    def _settle(self, claim: Claim) -> None:
        replaced = self._counted.get(claim.name, 0) if self._replacing.get(claim.name) is claim else 0
        self.reserved -= claim.reserved
        claim.reserved = max(claim.cost - replaced, 0)
        self.reserved += claim.reserved

    async def lacking(self, nbytes: int) -> int:
        """How many bytes there is no room for, 0 at least, if so many more are to be stored; before the next await."""
        if self._must_count() or (self._lacks(nbytes) and self._may_be_wrong()):
            await self._count()
        return self._lacks(nbytes)

    def _must_count(self) -> bool:
        return self.max_bytes is not None and time.monotonic() >= self._count_again_at

    def _lacks(self, nbytes: int) -> int:
        if self.max_bytes is None or nbytes <= 0:
            return 0
        return max(self.used + self.reserved + nbytes - self.max_bytes, 0)

    def _may_be_wrong(self) -> bool:
        """Whether to count again though it was done just now: others took files away, or it costs nothing."""
        count = len(self._files)
        return count != len(self._counted) or count <= FILES_A_SLICE

    async def _count(self) -> None:
        """Finds what others did to the dictionary."""
        counts = self._counts
        async with self._counting:
            if counts != self._counts:
                return  # it was done while this call waited
            began = time.monotonic()
            await self._see_all(self._counted)
            await self._see_all(self._files)
            self._counts += 1
            now = time.monotonic()
            self._count_again_at = now + max((now - began) / _COUNTING_SHARE, _COUNTED_SECONDS)

    async def _see_all(self, names: Iterable[str]) -> None:
        for index, name in enumerate(list(names), 1):
            self.see(name)
            if not index % FILES_A_SLICE:
                await asyncio.sleep(0)


def cost_of(name: str, nbytes: int) -> int:
    """The bytes that a file of that name and size, or an unfinished upload, counts."""
    return _ENTRY_BYTES + len(name if name.isascii() else name.encode("utf-8", "surrogatepass")) + nbytes
