"""What can be uploaded: each kind of source, read a chunk at a time from any offset that it can go to."""

import asyncio
import io
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO, Final, ParamSpec, Protocol, cast

from reactivex import Observable
from reactivex.disposable import SingleAssignmentDisposable
from reactivex.scheduler.eventloop import AsyncIOScheduler

from shared.blocking import run_blocking
from shared.errors import BackpressureOverflow, SourceExhausted

__all__ = ["Source", "SourceLike", "to_source"]

P = ParamSpec("P")

Bytes = bytes | bytearray | memoryview
Items = Iterable[Bytes] | AsyncIterable[Bytes]
SourceLike = str | os.PathLike[str] | BinaryIO | Bytes | Items | Callable[[int], Items] | Observable[bytes]
"""A path (str or PathLike), a binary file object, the bytes themselves, an iterable or asynchronous iterable of bytes,
a function that makes one from an offset, or an observable of bytes."""

# Chunks that one hop to a thread reads: a hop for each costs more than the read.
_CHUNKS_PER_HOP: Final = 4


class Source(Protocol):
    """Something to upload."""

    async def size(self) -> int | None:
        """The whole content's length in bytes; None if it isn't known beforehand.

        Raises:
            OSError: The disk failed, or there is no such file.
        """
        ...

    def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """The content from `offset` in chunks of `chunk_bytes`, the last one shorter; closing it frees what it holds.

        Raises:
            SourceExhausted: It can't go back to `offset`, or ends before it.
            OSError: The disk failed.
        """
        ...


def to_source(source: SourceLike, window: int) -> Source:
    """The Source that `source` stands for.

    Args:
        source: See `SourceLike`.
        window: For an observable, how many of its items may wait to be sent.

    Raises:
        TypeError: It is none of those.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return _BytesSource(bytes(source))
    if isinstance(source, str | os.PathLike):
        return _PathSource(Path(cast("str | os.PathLike[str]", source)))
    if isinstance(source, Observable):
        return _ItemsSource(lambda: _pull(cast("Observable[bytes]", source), window), is_replayable=True)
    if isinstance(source, io.IOBase) or hasattr(source, "read"):
        return _FileSource(cast(BinaryIO, source))
    if isinstance(source, Iterable | AsyncIterable):
        items = cast(Items, source)
        return _ItemsSource(lambda: items, is_replayable=not isinstance(items, Iterator | AsyncIterator))
    if callable(source):
        return _CallableSource(source)
    raise TypeError(
        "a source is a path, a binary file, bytes, an iterable or asynchronous iterable of bytes, a function from an "
        f"offset to one, or an Observable of bytes, not {type(source).__name__}"
    )


class _BytesSource:
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def size(self) -> int:
        return len(self._content)

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        _check_reachable(offset, len(self._content))
        for start in range(offset, len(self._content), chunk_bytes):
            yield self._content[start : start + chunk_bytes]


class _PathSource:
    def __init__(self, path: Path) -> None:
        self._path = path

    async def size(self) -> int:
        return (await run_blocking(None, self._path.stat)).st_size

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        file = await run_blocking(None, self._path.open, "rb", 0)
        try:
            async for chunk in _read_file(file, offset, chunk_bytes):
                yield chunk
        finally:
            await run_blocking(None, file.close)


class _FileSource:
    """A file object of the caller's, who closes it; its present position is the content's first byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_seekable = file.seekable()
        self._start = file.tell() if self._is_seekable else 0
        self._position = 0

    async def size(self) -> int | None:
        if not self._is_seekable:
            return None
        return await run_blocking(None, self._file.seek, 0, os.SEEK_END) - self._start

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        if not self._is_seekable and offset < self._position:
            raise SourceExhausted("this file can't be read again; give a path, or a seekable file")
        skip = 0 if self._is_seekable else offset - self._position
        start = self._start + offset if self._is_seekable else None
        async for chunk in _read_file(self._file, start, chunk_bytes, skip=skip):
            self._position += len(chunk)
            yield chunk


class _ItemsSource:
    """An iterable, asynchronous iterable or observable, made anew for each attempt where it can be."""

    def __init__(self, make: Callable[[], Items], *, is_replayable: bool) -> None:
        self._make = make
        self._is_replayable = is_replayable
        self._is_used = False

    async def size(self) -> None:
        return None

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        if self._is_used and not self._is_replayable:
            raise SourceExhausted(
                "this source can be read only once; give a function from an offset to an iterable, so that it can be "
                "read again"
            )
        self._is_used = True
        async with aclosing(_chunks(self._make(), chunk_bytes, skip=offset)) as chunks:
            async for chunk in chunks:
                yield chunk


class _CallableSource:
    def __init__(self, make: Callable[[int], Items]) -> None:
        self._make = make

    async def size(self) -> None:
        return None

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        async with aclosing(_chunks(self._make(offset), chunk_bytes, skip=0)) as chunks:
            async for chunk in chunks:
                yield chunk


async def _read_file(
    file: BinaryIO, offset: int | None, chunk_bytes: int, *, skip: int = 0
) -> AsyncGenerator[bytes, None]:
    """Chunks from `offset` (None: from where the file is, less `skip` bytes), several a hop to a thread."""

    def hop(is_first: bool) -> list[bytes]:
        if is_first and offset is not None:
            _check_reachable(offset, file.seek(0, os.SEEK_END))
            file.seek(offset)
        if is_first and skip and len(_read_exactly(file, skip)) < skip:
            raise SourceExhausted(f"the source ends before offset {skip}")
        found: list[bytes] = []
        for _ in range(_CHUNKS_PER_HOP):
            chunk = _read_exactly(file, chunk_bytes)
            if chunk:
                found.append(chunk)
            if len(chunk) < chunk_bytes:
                break
        return found

    is_first = True
    while True:
        chunks = await run_blocking(None, hop, is_first)
        for chunk in chunks:
            yield chunk
        if len(chunks) < _CHUNKS_PER_HOP or len(chunks[-1]) < chunk_bytes:
            return
        is_first = False


def _read_exactly(file: BinaryIO, nbytes: int) -> bytes:
    """`nbytes` bytes, fewer only at the end: an unbuffered file or a pipe may give them in pieces."""
    data = file.read(nbytes) or b""
    while data and len(data) < nbytes and (more := file.read(nbytes - len(data))):
        data += more
    return data


async def _chunks(items: Items, chunk_bytes: int, *, skip: int) -> AsyncGenerator[bytes, None]:
    """Cuts and joins items of any size into chunks, without the first `skip` bytes."""
    buffer = bytearray()
    async with aclosing(_each(items, chunk_bytes)) as each:
        async for item in each:
            if skip >= len(item):
                skip -= len(item)
                continue
            if not buffer and not skip and len(item) == chunk_bytes:
                yield bytes(item)
                continue
            buffer += memoryview(item)[skip:]
            skip = 0
            while len(buffer) >= chunk_bytes:
                yield bytes(buffer[:chunk_bytes])
                del buffer[:chunk_bytes]
    if skip:
        raise SourceExhausted(f"the source ends {skip} bytes before the offset to go on from")
    if buffer:
        yield bytes(buffer)


async def _each(items: Items, hop_bytes: int) -> AsyncGenerator[Bytes, None]:
    """The items one by one; what makes them is closed at the end."""
    if isinstance(items, AsyncIterable):
        iterator = aiter(items)
        try:
            async for item in iterator:
                yield _check_item(item)
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                await close()
        return
    if isinstance(items, list | tuple):
        for item in items:
            yield _check_item(item)
        return
    # A generator may read a disk; it runs in a thread, for about a chunk at a time.
    iterator_ = iter(items)

    def hop() -> tuple[list[Bytes], bool]:
        found: list[Bytes] = []
        nbytes = 0
        for item in iterator_:
            found.append(_check_item(item))
            nbytes += len(item)
            if nbytes >= hop_bytes:
                return found, True
        return found, False

    try:
        is_more = True
        while is_more:
            found, is_more = await run_blocking(None, hop)
            for item in found:
                yield item
    finally:
        close = getattr(iterator_, "close", None)
        if close is not None:
            await run_blocking(None, close)


async def _pull(source: Observable[bytes], window: int) -> AsyncGenerator[bytes, None]:
    """What `source` emits. It can't be slowed down, so no more than `window` of its items may wait."""
    loop = asyncio.get_running_loop()
    thread = threading.get_ident()
    waiting: deque[bytes] = deque()
    wake = asyncio.Event()
    failures: list[Exception] = []
    subscription = SingleAssignmentDisposable()
    is_done = False

    def end(error: Exception | None = None) -> None:
        nonlocal is_done
        is_done = True
        if error is not None:
            failures.append(error)
        wake.set()

    def take(item: bytes) -> None:
        if is_done:
            return
        if len(waiting) >= window:
            end(BackpressureOverflow(f"the source is more than {window} items ahead of the connection"))
            subscription.dispose()
            return
        waiting.append(item)
        wake.set()

    def here(call: Callable[P, None]) -> Callable[P, None]:
        def forward(*args: P.args, **kwargs: P.kwargs) -> None:
            if threading.get_ident() == thread:
                call(*args, **kwargs)
            elif not loop.is_closed():
                loop.call_soon_threadsafe(lambda: call(*args, **kwargs))

        return forward

    subscription.disposable = source.subscribe(here(take), here(end), here(end), scheduler=AsyncIOScheduler(loop))
    try:
        while True:
            while waiting and not failures:
                yield waiting.popleft()
            if failures:
                raise failures[0]
            if is_done:
                return
            wake.clear()
            await wake.wait()
    finally:
        subscription.dispose()


def _check_item(item: Bytes) -> Bytes:
    if not isinstance(item, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a source's items must be bytes, not {type(item).__name__}")
    return item


def _check_reachable(offset: int, size: int) -> None:
    if offset > size:
        raise SourceExhausted(f"the source has {size} bytes; it can't go on from {offset}")
