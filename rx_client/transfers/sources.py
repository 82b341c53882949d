"""The sources of uploads: what an application can give, and how each kind is opened for an attempt."""

import inspect
import mmap
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from reactivex import Observable
from reactivex import operators as ops

from shared.errors import SourceChanged, SourceExhausted
from shared.protocol.digest import Digest

from ..operators import to_async_iter
from .content import Content, Source, add_expected, check_reachable
from .pieces import as_bytes, in_chunks, in_thread, listed
from .source_files import MmapSource, PathSource, async_file, blocking_file

__all__ = ["AsyncReader", "Reader", "SourceLike", "to_source"]

Bytes = bytes | bytearray | memoryview
Items = Iterable[Bytes] | AsyncIterable[Bytes]
_Check = Callable[[AsyncIterator[object]], AsyncGenerator[bytes, None]]


class Reader(Protocol):
    """A binary file object, whose `read` blocks."""

    def read(self, nbytes: int, /) -> bytes | None:
        """The next bytes, `nbytes` at the most; none at the end; None if there is nothing just now."""
        ...


class AsyncReader(Protocol):
    """An asynchronous file object, of anyio or aiofiles for example, or an `asyncio.StreamReader`."""

    async def read(self, nbytes: int, /) -> bytes:
        """The next bytes, `nbytes` at the most; none at the end."""
        ...


SourceLike = (
    str
    | os.PathLike[str]
    | Reader
    | AsyncReader
    | mmap.mmap
    | Bytes
    | Items
    | Callable[[int], Items]
    | Observable[bytes]
)
"""A path (str or PathLike), a binary file object, blocking or asynchronous, an mmap, the bytes themselves, an iterable
or asynchronous iterable of bytes, a function that makes one from an offset, or an observable of bytes."""


def to_source(source: SourceLike, window: int) -> Source:
    """The source that `source` stands for, else a TypeError; at most `window` items of an observable wait."""
    if isinstance(source, str | os.PathLike):
        return PathSource(Path(os.fsdecode(cast("str | os.PathLike[str]", source))))
    if isinstance(source, Observable):
        # `to_async_iter` slows it down or bounds its items, and takes them from any thread.
        owned = cast("Observable[object]", source).pipe(ops.map(as_bytes))
        return _ItemsSource(lambda: to_async_iter(window)(owned), is_replayable=True)
    if isinstance(source, mmap.mmap):
        return MmapSource(source)
    if not isinstance(source, type) and callable(read := getattr(source, "read", None)):
        if inspect.iscoroutinefunction(read):
            return async_file(source)
        return blocking_file(cast(BinaryIO, source))
    if not isinstance(source, str | list | tuple) and _is_buffer(source):
        return _BytesSource(as_bytes(source))
    if isinstance(source, Mapping | Set | range):
        raise TypeError("a source's items are bytes in an order, unlike those of a set, mapping or range")
    if isinstance(source, list | tuple):
        items = cast("list[object]", source)
        pieces = [as_bytes(item) for item in items]
        return _ItemsSource(lambda: pieces, is_replayable=True)
    if isinstance(source, Iterable | AsyncIterable):
        given = cast(Items, source)
        return _ItemsSource(lambda: given, is_replayable=not isinstance(given, Iterator | AsyncIterator))
    if inspect.iscoroutinefunction(source):
        raise TypeError("a source's function returns an iterable; it may be an asynchronous generator, not a coroutine")
    if callable(source):
        return _CallableSource(cast("Callable[[int], Items]", source))
    raise TypeError(
        "a source is a path, a binary file, bytes, an iterable or asynchronous iterable of bytes, a function from an "
        f"offset to one, or an Observable of bytes, not {type(source).__name__}"
    )


def _is_buffer(source: object) -> bool:
    try:
        memoryview(source).release()  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False
    return True


class _BytesSource(Source):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def size(self) -> int:
        return len(self._content)

    @asynccontextmanager
    async def open(self, size: int | None) -> AsyncGenerator[Content, None]:
        yield _BytesContent(self._content)


class _BytesContent(Content):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        check_reachable(offset, len(self._content))
        for start in range(offset, len(self._content), chunk_bytes):
            yield self._content[start : start + chunk_bytes]


class _ItemsSource(Source):
    """An iterable, asynchronous iterable or observable; each attempt iterates from its start, if it can."""

    is_lasting = False

    def __init__(self, make: Callable[[], Items], *, is_replayable: bool) -> None:
        self._make = make
        self._is_replayable = is_replayable
        self._is_used = False
        # Of all that the longest iteration has given.
        self._given = Digest()

    @asynccontextmanager
    async def open(self, size: int | None) -> AsyncGenerator[Content, None]:
        if self._is_used and not self._is_replayable:
            raise SourceExhausted(
                "this source can be read only once; give a function from an offset to an iterable, so that it can be "
                "read again"
            )
        self._is_used = True
        yield _ItemsContent(lambda _: self._make(), self._check)

    def on_completed(self) -> None:
        self._given = Digest()

    async def _check(self, pieces: AsyncIterator[object]) -> AsyncGenerator[bytes, None]:
        """Passes on the pieces, which must begin with what was given before.

        A hot observable doesn't begin again, nor does an iterable that takes from a queue: what it gives now isn't what
        it gave before, whether the server has that or not.

        Raises:
            SourceChanged: They don't.
        """
        expected, digest = self._given.copy() if self._given.length else None, Digest()
        try:
            async for piece in pieces:
                data = as_bytes(piece)
                expected = add_expected(digest, memoryview(data), expected)
                if expected is None:
                    self._given = digest
                yield data
            if expected is not None:
                raise SourceChanged("the source ends before the end of what it gave before")
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                await close()


class _CallableSource(Source):
    """A function from an offset to the items from there on."""

    def __init__(self, make: Callable[[int], Items]) -> None:
        self._make = make

    @asynccontextmanager
    async def open(self, size: int | None) -> AsyncGenerator[Content, None]:
        yield _ItemsContent(self._make, None)


class _ItemsContent(Content):
    """The items of one attempt."""

    def __init__(self, make: Callable[[int], Items], check: _Check | None) -> None:
        self._make = make
        self._check = check

    def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        items = self._make(offset)
        if not isinstance(items, Iterable | AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a source's function makes an iterable of bytes, not {type(items).__name__}")
        pieces: AsyncIterator[object]
        if isinstance(items, AsyncIterable):
            pieces = aiter(items)
        elif isinstance(items, list):
            pieces = listed(items)
        else:
            pieces = in_thread(iter(items), chunk_bytes)
        if self._check is None:
            return in_chunks(pieces, chunk_bytes)
        return in_chunks(self._check(pieces), chunk_bytes, skip=offset)
