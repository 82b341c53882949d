"""Listings in the order of the names' bytes, page by page, also where a service has another order.

S3 lists keys in the order of their bytes. A service that keeps them in folders, such as SeaweedFS, has `a/b` before
`a-b`, since the folder `a` comes before the file, and can't go on behind a key that is a folder, too. There each folder
is listed by itself, and put where it belongs.
"""

from bisect import insort
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from heapq import merge
from typing import Final

from shared.protocol.wire import FileInfo

from ..base import Page
from .bucket import Bucket, Listing, Object
from .keys import Keys

__all__ = ["Lister"]

# A request for more keys than are wanted takes longer; one for fewer is made again.
_MOST_KEYS: Final = 1000


class Lister:
    """Lists the files of a store.

    Attributes:
        is_in_folders: Whether the service has an order of its own.
    """

    def __init__(self, bucket: Bucket, keys: Keys) -> None:
        self.is_in_folders = False
        self._bucket = bucket
        self._keys = keys

    async def page(self, prefix: str, after: str, limit: int) -> Page:
        """As `Store.list`."""
        first, last = f"{self._keys.prefix}{prefix}", f"{self._keys.prefix}{after}" if after else ""
        if self.is_in_folders:
            return await self._walked(first, last, limit)
        limit = min(limit, _MOST_KEYS)
        page = await self._bucket.list(first, after=self._beyond_reserved(last), limit=limit)
        while page.token is not None and not page.objects:
            page = await self._bucket.list(first, limit=limit, token=page.token)
        files = [info for found in page.objects if (info := self._file(found)) is not None]
        if page.token is None:
            return Page(files, None)
        # Also where nothing of it is a file: the next page goes on behind it.
        return Page(files, page.objects[-1].key.removeprefix(self._keys.prefix))

    def _file(self, found: Object) -> FileInfo | None:
        name = self._keys.name(found.key)
        return None if name is None else FileInfo(name, found.size, found.etag, found.modified)

    def _beyond_reserved(self, after: str) -> str:
        """Where to begin, so that what is the store's own is left out as a whole."""
        reserved = self._keys.reserved
        return f"{reserved}\U0010ffff" if after.startswith(reserved) else after

    async def _walked(self, first: str, after: str, limit: int) -> Page:
        files: list[FileInfo] = []
        folder = first[: first.rfind("/") + 1]
        async with aclosing(self._walk(folder, first, after, limit + 1)) as objects:
            async for found in objects:
                if (info := self._file(found)) is None:
                    continue
                if len(files) == limit:
                    return Page(files, files[-1].name)
                files.append(info)
        return Page(files, None)

    async def _walk(self, folder: str, first: str, after: str, limit: int) -> AsyncGenerator[Object, None]:
        """The objects below a folder that begin with `first` and come after `after`, in the order of their bytes."""
        folders: list[str] = []  # that come later than the keys that the service names behind them
        begin = ""
        if after.startswith(folder):
            begin = after[len(folder) :].partition("/")[0]
            # Their names come before `begin`, but some keys in them come after `after`.
            shorter = (begin[:length] for length in range(1, len(begin)) if begin[length] < "/")
            found = (f"{folder}{name}/" for name in (*shorter, begin) if name)
            folders = sorted(name for name in found if name.startswith(first) or first.startswith(name))
        token: str | None = ""
        while token is not None:
            page = await self._bucket.list(
                max(first, folder, key=len),
                after=f"{folder}{begin}" if begin else "",
                limit=min(limit, _MOST_KEYS),
                delimiter="/",
                token=token or None,
            )
            token = page.token
            for key, found in _entries(page):
                while folders and folders[0] < key:
                    async with aclosing(self._walk(folders.pop(0), first, after, limit)) as inside:
                        async for each in inside:
                            yield each
                if found is not None:
                    if key > after:
                        yield found
                elif key != self._keys.reserved and key not in folders and (key > after or after.startswith(key)):
                    insort(folders, key)
        for each_folder in folders:
            async with aclosing(self._walk(each_folder, first, after, limit)) as inside:
                async for each in inside:
                    yield each


def _entries(page: Listing) -> Iterator[tuple[str, Object | None]]:
    """The objects and the folders of a page, in the service's own order: that of the names in the folder."""
    objects = ((found.key, 0, found.key, found) for found in sorted(page.objects, key=lambda found: found.key))
    folders = ((name[:-1], 1, name, None) for name in sorted(page.folders))
    for _, _, key, found in merge(objects, folders, key=lambda entry: entry[:2]):
        yield key, found
