"""What can be uploaded: each kind of source, read a chunk at a time from any offset that it can go to."""

import asyncio
import io
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, ParamSpec, Protocol, cast

from reactivex import Observable
from reactivex.disposable import SingleAssignmentDisposable
from reactivex.scheduler.eventloop import AsyncIOScheduler

from shared.aio import run_blocking
from shared.errors import BackpressureOverflow, SourceExhausted

__all__ = ["OpenPath", "PathSource", "Source", "SourceLike", "to_source"]

P = ParamSpec("P")

Bytes = bytes | bytearray | memoryview
Items = Iterable[Bytes] | AsyncIterable[Bytes]
SourceLike = str | os.PathLike[str] | BinaryIO | Bytes | Items | Callable[[int], Items] | Observable[bytes]
"""A path (str or PathLike), a binary file object, the bytes themselves, an iterable or asynchronous iterable of bytes,
a function that makes one from an offset, or an observable of bytes."""

# Chunks that one hop to a thread reads: a hop for each costs more than the read.
_CHUNKS_PER_HOP: Final = 4
_SKIP_BYTES: Final = 1024 * 1024


class Source(Protocol):
    """Something to upload.

    Attributes:
        starts_over: Whether it can only be read from the start again. What it gives then may be something else, so that
            the digest has to be computed anew.
    """

    starts_over: bool

    async def version(self) -> object:
        """Tells two contents of the same source apart, as far as that can be told without reading them."""
        ...

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
        return PathSource(Path(cast("str | os.PathLike[str]", source)))
    if isinstance(source, Observable):
        return _ItemsSource(lambda: _pull(cast("Observable[bytes]", source), window), is_replayable=True)
    if isinstance(source, io.TextIOBase):
        raise TypeError("a source gives bytes; open the file in binary mode")
    if not isinstance(source, AsyncIterable) and (isinstance(source, io.IOBase) or hasattr(source, "read")):
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
    starts_over = False

    async def version(self) -> object:
        return None

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def size(self) -> int:
        return len(self._content)

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        _check_reachable(offset, len(self._content))
        for start in range(offset, len(self._content), chunk_bytes):
            yield self._content[start : start + chunk_bytes]


class OpenPath:
    """A file that is read from its beginning to its end in one piece, whatever comes to its path meanwhile.

    Attributes:
        size: Its length in bytes when it was opened.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def fileno(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def close(self) -> None:
        """Closes it."""
        self._file.close()

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """As `Source.read`."""
        await run_blocking(None, self._file.seek, offset)
        async with aclosing(_read_file(lambda nbytes: _read_exactly(self._file, nbytes), chunk_bytes)) as chunks:
            async for chunk in chunks:
                yield chunk


class PathSource:
    """A file by its path."""

    starts_over = False

    def __init__(self, path: Path) -> None:
        self._path = path

    async def version(self) -> object:
        status = await run_blocking(None, self._path.stat)
        return status.st_size, status.st_mtime_ns, status.st_ino

    async def size(self) -> int:
        return (await run_blocking(None, self._path.stat)).st_size

    @asynccontextmanager
    async def open(self, offset: int) -> AsyncGenerator[OpenPath, None]:
        """The file, open; SourceExhausted if it doesn't reach to `offset`."""
        opened: list[OpenPath] = []  # also if this is cancelled while a thread opens it
        try:
            await run_blocking(None, lambda: opened.append(OpenPath(self._path.open("rb", 0))))
            _check_reachable(offset, opened[0].size)
            yield opened[0]
        finally:
            for each in opened:
                await run_blocking(None, each.close)

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        async with self.open(offset) as opened, aclosing(opened.read(offset, chunk_bytes)) as chunks:
            async for chunk in chunks:
                yield chunk


class _FileSource:
    """A file object of the caller's, who closes it; its present position is the content's first byte."""

    starts_over = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_seekable = file.seekable()
        self._start = file.tell() if self._is_seekable else 0
        self._taken = 0
        self._size: int | None = None
        # Two attempts must not move the one position that the file has: the later waits for the end of the earlier.
        self._turn = asyncio.Lock()

    async def version(self) -> object:
        return None

    async def size(self) -> int | None:
        if self._is_seekable and self._size is None:
            async with self._turn:
                self._size = await run_blocking(None, self._file.seek, 0, os.SEEK_END) - self._start
        return self._size

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        async with self._turn:
            if self._is_seekable:
                await run_blocking(None, self._seek, offset)
            elif offset < self._taken:
                raise SourceExhausted("this file can't be read again; give a path, or a seekable file")
            elif await run_blocking(None, self._skip, offset - self._taken) < offset:
                raise SourceExhausted(f"the source ends before offset {offset}")
            async with aclosing(_read_file(self._read, chunk_bytes)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _seek(self, offset: int) -> None:
        _check_reachable(offset, self._file.seek(0, os.SEEK_END) - self._start)
        self._file.seek(self._start + offset)

    def _skip(self, nbytes: int) -> int:
        while nbytes and (data := self._read(min(nbytes, _SKIP_BYTES))):
            nbytes -= len(data)
        return self._taken

    def _read(self, nbytes: int) -> bytes:
        data = _read_exactly(self._file, nbytes)
        self._taken += len(data)
        return data


class _ItemsSource:
    """An iterable, asynchronous iterable or observable, made anew for each attempt where it can be."""

    starts_over = True

    async def version(self) -> object:
        return None

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
    starts_over = False

    async def version(self) -> object:
        return None

    def __init__(self, make: Callable[[int], Items]) -> None:
        self._make = make

    async def size(self) -> None:
        return None

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        async with aclosing(_chunks(self._make(offset), chunk_bytes, skip=0)) as chunks:
            async for chunk in chunks:
                yield chunk


async def _read_file(read: Callable[[int], bytes], chunk_bytes: int) -> AsyncGenerator[bytes, None]:
    """Chunks of what `read` gives, several a hop to a thread, until it gives less than was asked for."""

    def hop() -> list[bytes]:
        found: list[bytes] = []
        while len(found) < _CHUNKS_PER_HOP and (chunk := read(chunk_bytes)):
            found.append(chunk)
            if len(chunk) < chunk_bytes:
                break
        return found

    is_more = True
    while is_more:
        chunks = await run_blocking(None, hop)
        is_more = len(chunks) == _CHUNKS_PER_HOP and len(chunks[-1]) == chunk_bytes
        for chunk in chunks:
            yield chunk


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
