"""The receiving end of a download, and those ends that are written to as the bytes come: writers and file objects."""

import asyncio
import inspect
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, cast, runtime_checkable

from shared.aio import until_ready
from shared.errors import Changed, IntegrityError
from shared.files import disk
from shared.files.part import FileTarget
from shared.protocol.digest import Digest
from shared.protocol.wire import FileInfo

from .caller_thread import CallerThread

__all__ = ["AsyncWriter", "DescriptorWriter", "FileObjectSink", "Sink", "StreamWriterAdapter", "Writer", "WriterSink"]

# A file object that takes nothing just now is asked again after so many seconds.
_ASK_AGAIN_SECONDS: Final = 0.02


@runtime_checkable
class AsyncWriter(Protocol):
    """What a download can be written to, beside a path: any object with this method."""

    def write(self, data: bytes, /) -> Awaitable[object]:
        """Takes the next bytes (`async def write(data)`); they count as durable when it has returned."""
        ...


class Writer(Protocol):
    """The same, whose `write` blocks: a binary file object. It is called in a thread."""

    def write(self, data: bytes, /) -> object:
        """Takes the next bytes."""
        ...


class Sink(ABC):
    """The receiving end of a download, over several attempts.

    Attributes:
        attempt: Held by the attempt that uses the sink; another one waits for its end.
        etag: Of the file that its bytes belong to; None if nothing is there yet, or it isn't known.
    """

    def __init__(self) -> None:
        self.attempt: Final = asyncio.Lock()
        self.etag: str | None = None

    @property
    @abstractmethod
    def offset(self) -> int:
        """Bytes that are there already."""

    @property
    @abstractmethod
    def digest(self) -> Digest | None:
        """The running digest of those bytes; None if the download is not verified."""

    def as_file(self) -> FileTarget | None:
        """The file that the bytes go to, for a thread to write to after `begin`; None if they don't go to one."""
        return None

    async def look(self) -> "Sink":
        """Begins an attempt, before anything is fetched; returns the sink to write to, which may be another one.

        Raises:
            OSError: Nothing can be written there.
        """
        return self

    @abstractmethod
    async def begin(self, info: FileInfo) -> None:
        """What follows is `info`'s bytes from `offset` on."""

    @abstractmethod
    async def append(self, chunks: Sequence[bytes]) -> None:
        """Adds to the end, and to the digest."""

    @abstractmethod
    async def restart(self) -> None:
        """Drops what is there, since it is of another file.

        Raises:
            Changed: What was written can't be taken back.
        """

    async def discard(self) -> None:
        """Drops what is there, where that is possible, since it failed verification."""
        return

    @abstractmethod
    async def finish(self) -> None:
        """Everything is there and verified; the next attempt is another download."""

    async def suspend(self) -> None:
        """The attempt is over; what is there is kept for the next one."""
        return


class WriterSink(Sink):
    """Writes to the caller's AsyncWriter, which has `offset` bytes of the file, and can't take anything back."""

    def __init__(self, writer: object, offset: int, algorithm: str | None) -> None:
        super().__init__()
        self._writer: Any = writer
        self._start = self._offset = offset
        self._algorithm = algorithm
        self._digest = None if algorithm is None else Digest(algorithm)
        self._is_torn = False

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def digest(self) -> Digest | None:
        return self._digest

    async def begin(self, info: FileInfo) -> None:
        if self._is_torn:
            raise IntegrityError("the writer was stopped in the middle of a write; its position isn't known")
        self.etag = info.etag

    async def append(self, chunks: Sequence[bytes]) -> None:
        for chunk in chunks:
            self._is_torn = True  # until the write has returned, it isn't known whether the writer has the chunk
            await self._write(chunk)
            self._is_torn = False
            self._offset += len(chunk)
            if self._digest is not None:
                self._digest.update(chunk)

    async def restart(self) -> None:
        if self._offset != self._start:
            raise Changed("the file changed during the download, and what was written can't be taken back")
        self.etag = None

    async def finish(self) -> None:
        await self._flush()
        self._forget()

    async def _write(self, chunk: bytes) -> None:
        await self._writer.write(chunk)

    async def _flush(self) -> None:
        if inspect.iscoroutinefunction(flush := getattr(self._writer, "flush", None)):
            await flush()  # an asynchronous file object's

    def _forget(self) -> None:
        """The next byte is the first one after those that the writer had at the start."""
        self._offset, self.etag, self._is_torn = self._start, None, False
        self._digest = None if self._algorithm is None else Digest(self._algorithm)


class FileObjectSink(WriterSink):
    """Writes to a binary file object of the caller's, in a thread, from its present position on; it stays open.

    One that can seek goes back where it has to: after a write that was cancelled, and for another download.
    """

    def __init__(self, file: object, offset: int, algorithm: str | None) -> None:
        super().__init__(file, offset, algorithm)
        self._thread = CallerThread()
        self._begin = cast(int, self._writer.tell()) if getattr(file, "seekable", bool)() else None
        self._most = offset  # the largest `offset` ever, beyond which is nothing that this sink has written

    async def begin(self, info: FileInfo) -> None:
        if self._begin is not None:
            await self._thread.run(self._go_to, self._begin + self._offset - self._start)
            self._is_torn = False
        await super().begin(info)

    async def restart(self) -> None:
        if self._begin is not None and self._offset != self._start:
            try:
                await self._thread.run(self._cut, self._begin)
            except (OSError, ValueError):  # one that compresses, say
                return await super().restart()
            self._forget()
        await super().restart()
        return None

    async def discard(self) -> None:
        with suppress(Changed):
            await self.restart()

    async def suspend(self) -> None:
        self._thread.close()

    async def _write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            written, answer = await self._thread.run(self._write_some, view)
            if inspect.isawaitable(answer):
                await answer
            view = view[written:]
            self._most = max(self._most, self._offset + len(chunk) - len(view))
            if not written:
                await asyncio.sleep(_ASK_AGAIN_SECONDS)

    async def _flush(self) -> None:
        if self._begin is not None and self._most > self._offset:  # an earlier download was longer
            await self._thread.run(self._cut, self._begin + self._offset - self._start)
        if (flush := getattr(self._writer, "flush", None)) is not None:
            await self._thread.run(flush)

    # In the thread

    def _write_some(self, view: memoryview) -> tuple[int, object]:
        """Writes; returns how many bytes were taken, and what the method returned."""
        try:
            answer: object = self._writer.write(bytes(view))
        except BlockingIOError as error:
            return error.characters_written if hasattr(error, "characters_written") else 0, None
        # Only an unbuffered file may take less than all of it.
        taken = answer if isinstance(self._writer, io.RawIOBase) else len(view)
        return (taken if isinstance(taken, int) else 0), answer

    def _go_to(self, position: int) -> None:
        if self._writer.tell() != position:
            self._writer.seek(position)

    def _cut(self, position: int) -> None:
        self._writer.seek(position)
        self._writer.truncate()


class StreamWriterAdapter:
    """An AsyncWriter that is an asyncio.StreamWriter, whose own `write` belongs to the event loop, and never waits."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, data: bytes, /) -> None:
        """Takes the next bytes, when the ones before are on their way."""
        self._writer.write(data)
        await self._writer.drain()


class DescriptorWriter:
    """An AsyncWriter that is an open FIFO or device, in non-blocking mode."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None

    def open(self) -> None:
        """Opens it. Blocks no longer than a device takes; raises ENXIO for a FIFO that has no reader."""
        # Behind what an open file has: a shell's `>>` is one.
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
        self._descriptor = os.open(self._path, flags)

    def close(self) -> None:
        """Closes it; closing twice is fine."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    async def write(self, data: bytes, /) -> None:
        """Takes the next bytes, when the ones before have left room."""
        assert self._descriptor is not None, "`open` comes first"
        view = memoryview(data)
        while view:
            try:
                with disk.full_disk_is_typed(f"no room for {self._path}"):
                    view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                await until_ready(self._descriptor, to_write=True)
