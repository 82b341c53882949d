"""The sources of uploads: each kind is read a chunk at a time, from any offset that it can seek or skip to."""

import asyncio
import io
import os
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol, TypeVar, cast

from reactivex import Observable

from shared.aio import run_blocking
from shared.errors import SourceExhausted
from shared.files.sending import FileChanged

from ..operators import to_async_iter

__all__ = ["OpenPath", "PathSource", "Source", "SourceLike", "to_source"]

Bytes = bytes | bytearray | memoryview
T = TypeVar("T", bound=Bytes)
Items = Iterable[Bytes] | AsyncIterable[Bytes]
SourceLike = str | os.PathLike[str] | BinaryIO | Bytes | Items | Callable[[int], Items] | Observable[bytes]
"""A path (str or PathLike), a binary file object, the bytes themselves, an iterable or asynchronous iterable of bytes,
a function that makes one from an offset, or an observable of bytes."""

# Chunks that one thread handoff reads: a handoff for each chunk costs more than its read.
_CHUNKS_PER_HANDOFF: Final = 4
_SKIP_BYTES: Final = 1024 * 1024


class Source(Protocol):
    """The content of an upload.

    Attributes:
        starts_over: Whether it can only be read from its start again. It may give other bytes then, so that the digest
            has to be computed anew.
    """

    starts_over: bool = False

    async def stat(self) -> tuple[int | None, object]:
        """The whole content's length in bytes, None if it isn't known beforehand; and a version.

        The version differs between two contents of the same source, as far as that shows without reading them.

        Raises:
            OSError: The disk failed, or there is no such file.
        """
        return None, None

    def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """The content from `offset` in chunks of `chunk_bytes`, the last one shorter; closing it frees what it holds.

        Raises:
            SourceExhausted: It can't go back to `offset`, or ends before it.
            OSError: The disk failed.
        """
        ...


def to_source(source: SourceLike, window: int) -> "Source | PathSource":
    """The source that `source` stands for, else a TypeError; at most `window` items of an observable wait."""
    if isinstance(source, bytes | bytearray | memoryview):
        return _BytesSource(bytes(source))
    if isinstance(source, str | os.PathLike):
        return PathSource(Path(cast("str | os.PathLike[str]", source)))
    if isinstance(source, Observable):
        # `to_async_iter` slows it down or bounds its items, and takes them from any thread.
        return _ItemsSource(lambda: to_async_iter(window)(cast("Observable[bytes]", source)), is_replayable=True)
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


class _BytesSource(Source):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def stat(self) -> tuple[int, object]:
        return len(self._content), None

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        _check_reachable(offset, len(self._content))
        for start in range(offset, len(self._content), chunk_bytes):
            yield self._content[start : start + chunk_bytes]


class OpenPath:
    """A path's file, open: it stays the same file, of which `size` bytes are read, even when the path is replaced."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.fileno = file.fileno
        self.size = size

    def close(self) -> None:
        """Closes it."""
        self._file.close()

    def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """As `Source.read`; raises FileChanged if the file became shorter.

        What the system itself makes, in /proc for example, seems to be empty, and is read to its end.
        """
        self._file.seek(offset)  # sets a number; nothing is read

        def read(nbytes: int) -> bytes:
            wanted = min(nbytes, self.size - self._file.tell()) if self.size else nbytes
            if len(data := _read_exactly(self._file, wanted)) < wanted and self.size:
                raise FileChanged
            return data

        return _file_chunks(read, chunk_bytes)


class PathSource:
    """A file by its path: a source that is opened once for an attempt, and may then be sent by the file lane."""

    starts_over = False

    def __init__(self, path: Path) -> None:
        self._path = path

    async def stat(self) -> tuple[int, object]:
        """As `Source.stat`."""
        status = await run_blocking(None, self._path.stat)
        return status.st_size, (status.st_size, status.st_mtime_ns, status.st_ino)

    @asynccontextmanager
    async def open(self, offset: int, size: int) -> AsyncGenerator[OpenPath, None]:
        """The file, open, to be read as it was when it had `size` bytes; fails as `Source.read` does."""
        opened: list[OpenPath] = []  # a list, for a cancel while a thread opens the file
        try:
            await run_blocking(None, lambda: opened.append(OpenPath(self._path.open("rb", 0), size)))
            _check_reachable(offset, size)
            yield opened[0]
        finally:
            for each in opened:
                await run_blocking(None, each.close)


class _FileSource(Source):
    """The caller's file object, which the caller closes; its present position is the content's first byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_seekable = file.seekable()
        self._start = file.tell() if self._is_seekable else 0
        self._taken = 0
        self._size: int | None = None
        # The file has one position, which two attempts must not move: a later one waits for the end of an earlier.
        self._lock = asyncio.Lock()

    async def stat(self) -> tuple[int | None, object]:
        if self._is_seekable and self._size is None:
            async with self._lock:
                self._size = await run_blocking(None, self._file.seek, 0, os.SEEK_END) - self._start
        return self._size, None

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        async with self._lock:
            await run_blocking(None, self._go_to, offset)
            async with aclosing(_file_chunks(self._read, chunk_bytes)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def _go_to(self, offset: int) -> None:
        if self._is_seekable:
            _check_reachable(offset, self._file.seek(0, os.SEEK_END) - self._start)
            self._file.seek(self._start + offset)
            return
        if offset < self._taken:
            raise SourceExhausted("this file can't be read again; give a path, or a seekable file")
        while self._taken < offset and self._read(min(offset - self._taken, _SKIP_BYTES)):
            pass
        _check_reachable(offset, self._taken)

    def _read(self, nbytes: int) -> bytes:
        data = _read_exactly(self._file, nbytes)
        self._taken += len(data)
        return data


class _ItemsSource(Source):
    """An iterable, asynchronous iterable or observable; each attempt iterates from its start, if it can."""

    starts_over = True

    def __init__(self, make: Callable[[], Items], *, is_replayable: bool) -> None:
        self._make = make
        self._is_replayable = is_replayable
        self._is_used = False

    def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        if self._is_used and not self._is_replayable:
            raise SourceExhausted(
                "this source can be read only once; give a function from an offset to an iterable, so that it can be "
                "read again"
            )
        self._is_used = True
        return _chunks(self._make(), chunk_bytes, skip=offset)


class _CallableSource(Source):
    """A function from an offset to the items from there on."""

    def __init__(self, make: Callable[[int], Items]) -> None:
        self._make = make

    def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        return _chunks(self._make(offset), chunk_bytes, skip=0)


def _file_chunks(read: Callable[[int], bytes], chunk_bytes: int) -> AsyncGenerator[bytes, None]:
    """Chunks from `read`, until it returns fewer bytes than requested."""

    def chunks() -> Iterator[bytes]:
        while chunk := read(chunk_bytes):
            yield chunk
            if len(chunk) < chunk_bytes:
                return

    return _in_batches(chunks(), _CHUNKS_PER_HANDOFF * chunk_bytes)


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


async def _each(items: Items, batch_bytes: int) -> AsyncGenerator[Bytes, None]:
    """The items one by one; their iterator is closed at the end."""
    if isinstance(items, list | tuple):
        for item in items:
            yield _check_item(item)
    elif isinstance(items, AsyncIterable):
        iterator = aiter(items)
        try:
            async for item in iterator:
                yield _check_item(item)
        finally:
            if (close := getattr(iterator, "aclose", None)) is not None:
                await close()
    else:
        iterator = iter(items)
        try:
            async with aclosing(_in_batches(iterator, batch_bytes)) as batched:
                async for item in batched:
                    yield item
        finally:
            if (close := getattr(iterator, "close", None)) is not None:
                await run_blocking(None, close)


async def _in_batches(items: Iterator[T], batch_bytes: int) -> AsyncGenerator[T, None]:
    """The items one by one, taken in a thread, as a generator may read a disk: `batch_bytes` or more a handoff."""

    def take() -> tuple[list[T], bool]:
        batch: list[T] = []
        nbytes = 0
        for item in items:
            batch.append(_check_item(item))
            nbytes += len(item)
            if nbytes >= batch_bytes:
                return batch, True
        return batch, False

    is_more = True
    while is_more:
        batch, is_more = await run_blocking(None, take)
        for item in batch:
            yield item


def _check_item(item: T) -> T:
    if not isinstance(item, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a source's items must be bytes, not {type(item).__name__}")
    return item


def _check_reachable(offset: int, size: int) -> None:
    if offset > size:
        raise SourceExhausted(f"the source has {size} bytes; it can't go on from {offset}")
