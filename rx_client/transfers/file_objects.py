"""File objects of the caller's as sources: blocking and asynchronous ones, those that can't seek, those of pipes."""

import asyncio
import inspect
import io
import os
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, BinaryIO, Final, cast

from shared.aio import until_ready
from shared.errors import SourceChanged, SourceExhausted
from shared.protocol.digest import Digest

from .caller_thread import CallerThread
from .content import Content, FileContent, check_reachable
from .pieces import as_bytes, in_chunks

__all__ = ["AsyncFile", "BlockingFile", "CallersFile", "FileObjectContent", "os_file"]

# A file object that has nothing just now, and no descriptor to wait for, is asked again after so many seconds.
_ASK_AGAIN_SECONDS: Final = 0.02
_SKIP_BYTES: Final = 1024 * 1024


def os_file(file: object) -> BinaryIO | None:
    """The open file of the system's that `file` is, and adds nothing to, as one that decompresses does; else None."""
    inner = file
    if isinstance(file, tempfile._TemporaryFileWrapper):  # pyright: ignore[reportPrivateUsage]
        inner = cast("tempfile._TemporaryFileWrapper[bytes]", file).file  # pyright: ignore[reportPrivateUsage]
    if type(inner) is io.FileIO:
        return cast(BinaryIO, inner)
    if type(inner) in (io.BufferedReader, io.BufferedRandom):
        return cast(BinaryIO, inner) if type(cast(io.BufferedReader, inner).raw) is io.FileIO else None
    return None


def _call_fileno(file: object) -> object:
    try:
        return getattr(file, "fileno", bool)()
    except (OSError, ValueError):  # it has none, or is closed
        return None


def _number_of(answer: object) -> int | None:
    return answer if type(answer) is int else None


class CallersFile(ABC):
    """A file object that is read in one way, whichever kind it is.

    Attributes:
        is_torn: Whether bytes may be lost that a cancelled read has taken.
        is_reading: Whether a read is under way, or was cancelled.
    """

    is_torn = False

    @property
    @abstractmethod
    def is_reading(self) -> bool:
        """See above."""

    @abstractmethod
    async def read(self, nbytes: int) -> bytes | None:
        """The next bytes, `nbytes` at the most; none at the end; None if there is nothing just now."""

    @abstractmethod
    async def descriptor(self) -> int | None:
        """That of the open file below it, if there is one."""

    @abstractmethod
    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int | None:
        """Moves, and returns the new position; None if it can't."""

    def close(self) -> None:
        """Frees what reading it took; the file stays open."""
        return


class BlockingFile(CallersFile):
    """One whose methods block: they are called in a thread, those of a pipe or terminal when it has something to read.

    Args:
        file: The file object.
        can_seek: Whether it can.
    """

    def __init__(self, file: BinaryIO, *, can_seek: bool) -> None:
        self._file = file
        self._can_seek = can_seek
        self._thread = CallerThread()
        self._reading: asyncio.Future[bytes | None] | None = None
        inner = os_file(file)
        self._descriptor = None if inner is None or can_seek else inner.fileno()
        # Of a stream, what is there; of a file, as much as was asked for.
        self._read_some: Callable[[int], object] = file.read if can_seek else getattr(file, "read1", file.read)

    @property
    def is_reading(self) -> bool:
        return self._reading is not None

    async def read(self, nbytes: int) -> bytes | None:
        # A read that was under way when an attempt was cancelled is the next one's: nothing is lost.
        if self._reading is None:
            if self._descriptor is not None:
                await until_ready(self._descriptor)
            self._reading = self._thread.call(self._read, nbytes)
        reading = self._reading
        await self._thread.wait(reading)
        self._reading = None
        return reading.result()

    async def descriptor(self) -> int | None:
        return _number_of(await self._thread.run(_call_fileno, self._file)) if self._can_seek else None

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int | None:
        if not self._can_seek:
            return None
        self._reading = None
        return await self._thread.run(self._seek, offset, whence)

    def close(self) -> None:
        self._thread.close()

    def _read(self, nbytes: int) -> bytes | None:
        try:
            data = self._read_some(nbytes)
            if data is not None and not data and self._may_have_more():
                data = self._file.read(nbytes)
        except BlockingIOError:
            return None
        return None if data is None else as_bytes(data)

    def _may_have_more(self) -> bool:
        """Whether `read1` has returned no bytes although it isn't the end: in non-blocking mode, it can't say."""
        if self._read_some == self._file.read:
            return False
        return self._descriptor is None or not os.get_blocking(self._descriptor)

    def _seek(self, offset: int, whence: int) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()


class AsyncFile(CallersFile):
    """One whose `read` is a coroutine function, as of anyio, aiofiles, or asyncio's StreamReader."""

    def __init__(self, file: object) -> None:
        self._file: Any = file

    @property
    def is_reading(self) -> bool:
        return self.is_torn

    async def read(self, nbytes: int) -> bytes | None:
        # In a thread of another library's, what a cancelled read has taken is lost; not so in the event loop.
        self.is_torn = not isinstance(self._file, asyncio.StreamReader)
        data: object = await self._file.read(nbytes)
        self.is_torn = False
        return None if data is None else as_bytes(data)

    async def descriptor(self) -> int | None:
        try:
            number = _call_fileno(self._file)
            return _number_of(await number if inspect.isawaitable(number) else number)
        except (OSError, ValueError):
            return None

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int | None:
        seek: Callable[[int, int], Awaitable[object]] | None = getattr(self._file, "seek", None)
        if seek is None or not inspect.iscoroutinefunction(seek):
            return None
        try:
            position = await seek(offset, whence)
            if position is None:
                position = await self._file.tell()
        except (OSError, TypeError, AttributeError):  # a pipe, or a `seek` that knows no `whence`
            return None
        return position if isinstance(position, int) else None


class FileObjectContent(Content):
    """What a file object has from its position at the first attempt on.

    Its position, which two attempts must not move, belongs to the attempt that has the source open. What can't seek is
    read once; an offset ahead is reached by reading.

    Args:
        file: The file object.
        start: Its position; None to ask for it at the first attempt.

    Attributes:
        lock: For the attempt.
        last_size: As `size`, when it was asked for last.
    """

    def __init__(self, file: CallersFile, start: int | None = None) -> None:
        self.lock = asyncio.Lock()
        self._file = file
        self._start = start
        self._is_measured = start is not None
        self._taken = 0
        self._limit: int | None = None
        self.last_size: int | None = None
        # The open file below it, to see whether that changes.
        self._below: FileContent | None = None

    @property
    def has_taken(self) -> bool:
        """Whether bytes were read, or may have been."""
        return self._taken > 0 or self._file.is_reading

    async def size(self) -> int | None:
        """How many bytes it has; None if it can't seek."""
        if not self._is_measured:
            self._start = await self._file.seek(0, os.SEEK_CUR)
            self._is_measured = True
        if self._start is None:
            return None
        end = await self._file.seek(0, os.SEEK_END)
        self.last_size = None if end is None else max(end - self._start, 0)
        return self.last_size

    async def open(self, limit: int | None) -> None:
        """An attempt begins, which reads no more than `limit` bytes of the content."""
        self._limit = None if self._start is None else limit
        descriptor = None if self._limit is None else await self._file.descriptor()
        if descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode):
            self._below = FileContent(os.dup(descriptor), self._start or 0, self._limit or 0)
            self.version = self._below.version

    def close(self) -> None:
        """The attempt is over."""
        self._file.close()
        if self._below is not None:
            self._below.close()
            self._below = None

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        await self._go_to(offset)
        async with aclosing(in_chunks(self._pieces(offset, chunk_bytes), chunk_bytes)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def check(self, digest: Digest | None) -> None:
        if self._below is not None:
            await self._below.check(digest)
            return
        size = await self.size()
        if self._limit is not None and size is not None and size < self._limit:
            raise SourceChanged("the source became shorter while it was read")

    async def _go_to(self, offset: int) -> None:
        if self._start is not None:
            if self._limit is not None:
                check_reachable(offset, self._limit)
            await self._file.seek(self._start + offset)
            return
        if offset < self._taken or self._file.is_torn:
            raise SourceExhausted("this source can't be read again; give a path, or a seekable file")
        while self._taken < offset and await self._read(min(offset - self._taken, _SKIP_BYTES)):
            pass
        check_reachable(offset, self._taken)
        if self._taken > offset:
            raise SourceExhausted("this source gave more than it was asked for")

    async def _pieces(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        left = None if self._limit is None else self._limit - offset
        while left is None or left:
            piece = await self._read(chunk_bytes if left is None else min(chunk_bytes, left))
            if not piece:
                break
            if left is not None:
                piece = piece[:left]
                left -= len(piece)
            yield piece
        if left:
            raise SourceChanged("the source became shorter while it was read")

    async def _read(self, nbytes: int) -> bytes:
        """Bytes; none at the end."""
        data = await self._file.read(nbytes)
        while data is None:
            await asyncio.sleep(_ASK_AGAIN_SECONDS)
            data = await self._file.read(nbytes)
        self._taken += len(data)
        return data
