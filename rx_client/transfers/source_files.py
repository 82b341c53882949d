"""Files as sources: by their paths, open, mapped into memory, or as objects that only have a file's methods."""

import codecs
import errno
import io
import mmap
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from shared.aio import run_blocking
from shared.errors import SourceChanged, SourceExhausted
from shared.protocol.digest import Digest

from .content import Content, FileContent, Source, check_reachable, limited_size, stored_size
from .file_objects import AsyncFile, BlockingFile, FileObjectContent, os_file

__all__ = ["MmapSource", "PathSource", "async_file", "blocking_file"]

# How a path is opened that may be a FIFO without a writer, or a terminal that mustn't become this process's.
_WAITS_FOR_NOTHING: Final[int] = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
_OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0) | _WAITS_FOR_NOTHING


def blocking_file(file: BinaryIO) -> Source:
    """The source that a file object with blocking methods is; TypeError if it is none."""
    text = io.TextIOBase | codecs.StreamReader | codecs.StreamReaderWriter
    if isinstance(file, text) or isinstance(getattr(file, "file", None), text):
        raise TypeError("a source gives bytes; open the file in binary mode")
    if isinstance(file, io.IOBase) and not file.readable():
        raise TypeError("a source is read, and this file is only open for writing")
    can_seek = bool(getattr(file, "seekable", lambda: False)())
    inner = os_file(file)
    if inner is not None:
        if stored_size(inner.fileno()) is not None:
            return _OpenFileSource(inner)
        can_seek = False  # what /proc has says that it can, and doesn't know its end
    return _FileObjectSource(
        FileObjectContent(BlockingFile(file, can_seek=can_seek), file.tell() if can_seek else None)
    )


def async_file(file: object) -> Source:
    """The source that an asynchronous file object is."""
    return _FileObjectSource(FileObjectContent(AsyncFile(file)))


class PathSource(Source):
    """A file by its path, opened for each attempt; or what a device, FIFO or file of the system's gives."""

    is_file = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_used_up = False

    async def size(self) -> int | None:
        return await run_blocking(None, self._size)

    @asynccontextmanager
    async def open(self, size: int | None) -> AsyncGenerator[Content, None]:
        opened: list[FileContent | io.FileIO] = []  # a list, for a cancel while a thread opens the file
        try:
            await run_blocking(None, lambda: opened.append(self._open(size)))
            (content,) = opened
            if isinstance(content, FileContent):
                yield content
            else:
                reader = BlockingFile(cast(BinaryIO, content), can_seek=False)
                stream = FileObjectContent(reader)
                try:
                    yield _StreamContent(stream)
                finally:
                    reader.close()
                    # The system makes the content of a file in /proc again, and that of a FIFO never.
                    is_made = stat.S_ISREG(os.fstat(content.fileno()).st_mode)
                    self._is_used_up = stream.has_taken and not is_made
        finally:
            for each in opened:
                await run_blocking(None, each.close)

    # In a thread

    def _size(self) -> int | None:
        status = os.stat(self._path)
        size = self._stored_size(status)
        self.modified = None if size is None else status.st_mtime
        return size

    def _stored_size(self, status: os.stat_result) -> int | None:
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(self._path))
        if not stat.S_ISREG(status.st_mode):
            return None  # opening a FIFO would be seen by its writer
        if status.st_size and getattr(status, "st_blocks", 1):
            return status.st_size
        descriptor = os.open(self._path, _OPEN_FLAGS)
        try:
            return stored_size(descriptor)
        finally:
            os.close(descriptor)

    def _open(self, size: int | None) -> FileContent | io.FileIO:
        if self._is_used_up:
            raise SourceExhausted(f"{self._path} can't be read again")
        descriptor = os.open(self._path, _OPEN_FLAGS)
        try:
            found = stored_size(descriptor)
            if found is not None:
                return FileContent(descriptor, 0, limited_size(found, size))
            return io.FileIO(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


class _OpenFileSource(Source):
    """The caller's open file, from its present position on, which stays where it is."""

    is_file = True

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = file.tell()

    async def size(self) -> int:
        return await run_blocking(None, self._size)

    @asynccontextmanager
    async def open(self, size: int | None) -> AsyncGenerator[Content, None]:
        opened: list[FileContent] = []
        try:
            await run_blocking(None, lambda: opened.append(self._open(size)))
            yield opened[0]
        finally:
            for each in opened:
                await run_blocking(None, each.close)

    # In a thread

    def _size(self) -> int:
        if self._file.writable():
            self._file.flush()
        return max(os.fstat(self._file.fileno()).st_size - self._start, 0)

    def _open(self, size: int | None) -> FileContent:
        found = limited_size(self._size(), size)
        return FileContent(os.dup(self._file.fileno()), self._start, found)


class MmapSource(Source):
    """A mapped file or memory, from its present position on."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._mapped = mapped
        self._start = mapped.tell()

    async def size(self) -> int:
        return len(self._mapped) - self._start

    @asynccontextmanager
    async def open(self, size: int | None) -> AsyncGenerator[Content, None]:
        yield _MmapContent(self._mapped, self._start, len(self._mapped) - self._start)


class _MmapContent(Content):
    """What is mapped. Others can write to it without a trace, so it is read twice where there is a digest."""

    starts_over = True

    def __init__(self, mapped: mmap.mmap, start: int, size: int) -> None:
        self._mapped = mapped
        self._start = start
        self._size = size

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        check_reachable(offset, self._size)
        while offset < self._size:
            chunk = await run_blocking(None, self._read, offset, min(chunk_bytes, self._size - offset))
            yield chunk
            offset += len(chunk)

    async def check(self, digest: Digest | None) -> None:
        if digest is None:
            return
        again = Digest(digest.algorithm)
        async with aclosing(self.read(0, 1024 * 1024)) as chunks:
            async for chunk in chunks:
                await run_blocking(None, again.update, chunk)
        if again.text() != digest.text():
            raise SourceChanged("the source changed while it was read")

    def _read(self, offset: int, nbytes: int) -> bytes:
        # Where the file has ended meanwhile, the system would end the process.
        if len(self._mapped) - self._start < self._size or self._mapped.size() < self._start + offset + nbytes:
            raise SourceChanged("the source became shorter while it was read")
        begin = self._start + offset
        return self._mapped[begin : begin + nbytes]


class _FileObjectSource(Source):
    """A file object that is read by its methods."""

    def __init__(self, content: FileObjectContent) -> None:
        self._content = content

    async def size(self) -> int | None:
        lock = self._content.lock
        if lock.locked() and self._content.last_size is not None:
            return self._content.last_size  # an older attempt moves the file; this one is going to take over
        async with lock:
            return await self._content.size()

    @asynccontextmanager
    async def open(self, size: int | None) -> AsyncGenerator[Content, None]:
        async with self._content.lock:
            try:
                found = await self._content.size()
                await self._content.open(None if found is None else limited_size(found, size))
                yield self._content
            finally:
                self._content.close()


class _StreamContent(Content):
    """What comes out of a path whose content isn't stored: always from its start, as it may be another each time."""

    starts_over = True

    def __init__(self, stream: FileObjectContent) -> None:
        self._stream = stream

    def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        return self._stream.read(offset, chunk_bytes)
