"""Where a download can go: a path, or an asynchronous writer."""

import asyncio
import os
import re
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import xxhash

from shared.aio import run_blocking
from shared.errors import Changed, IntegrityError
from shared.files import disk
from shared.files.part import FileTarget, PartFile
from shared.protocol.digest import Digest
from shared.protocol.wire import FileInfo

__all__ = ["AsyncWriter", "PathSink", "Sink", "WriterSink"]

_SUFFIX: Final = ".rxpart"
_IDENTITY: Final = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{8})?\.rxpart")
_MAX_STEM_BYTES: Final = 200


@runtime_checkable
class AsyncWriter(Protocol):
    """What a download can be written to, beside a path: any object with this method."""

    def write(self, data: bytes, /) -> Awaitable[object]:
        """Takes the next bytes (`async def write(data)`); they count as durable when it has returned."""
        ...


class Sink(Protocol):
    """The receiving end of a download, over several attempts.

    Attributes:
        attempt: Held by the attempt that uses the sink; another one waits for its end.
        etag: Of the file that its bytes belong to; None if nothing is there yet, or it isn't known.
    """

    attempt: asyncio.Lock
    etag: str | None

    def __init__(self) -> None:
        self.attempt = asyncio.Lock()
        self.etag = None

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

    async def find_part(self, ask_info: Callable[[], Awaitable[FileInfo]]) -> None:
        """Takes over what another process left of this very file; `ask_info` asks which one that is."""

    @abstractmethod
    async def begin(self, info: FileInfo) -> None:
        """An attempt starts that will bring `info`'s bytes from `offset` on."""

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

    @abstractmethod
    async def finish(self) -> None:
        """Everything is there and verified; the next attempt is another download."""

    async def suspend(self) -> None:
        """The attempt is over; what is there is kept for the next one."""


class WriterSink(Sink):
    """Writes to the caller's AsyncWriter, which has `offset` bytes of the file, and can't take anything back."""

    def __init__(self, writer: AsyncWriter, offset: int, algorithm: str | None) -> None:
        super().__init__()
        self._writer = writer
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
            await self._writer.write(chunk)
            self._is_torn = False
            self._offset += len(chunk)
            if self._digest is not None:
                self._digest.update(chunk)

    async def restart(self) -> None:
        if self._offset != self._start:
            raise Changed("the file changed during the download, and what was written can't be taken back")
        self.etag = None

    async def finish(self) -> None:
        self._offset, self.etag = self._start, None
        self._digest = None if self._algorithm is None else Digest(self._algorithm)


class PathSink(Sink):
    """Writes beside a path, and moves the whole file there when it is verified; what was there stays until then.

    The part is called `.NAME.HASH.rxpart`, where HASH is of the server's name for the file and its etag, so that
    another process that downloads the same file resumes it, and one that downloads a changed file doesn't.
    """

    def __init__(self, path: Path, name: str, algorithm: str | None) -> None:
        super().__init__()
        self._path = path
        self._name = name
        self._is_verified = algorithm is not None
        self._file = PartFile(algorithm, full=f"no room for {path}", name=name)
        self._part: Path | None = None
        self._modified: float | None = None

    @property
    def offset(self) -> int:
        return self._file.digest.length

    @property
    def digest(self) -> Digest | None:
        return self._file.digest if self._is_verified else None

    def as_file(self) -> FileTarget:
        return self._file

    async def find_part(self, ask_info: Callable[[], Awaitable[FileInfo]]) -> None:
        """As `Sink.find_part`; a part is read once for its digest, and parts of other versions are removed."""
        if self._part is None and await run_blocking(None, lambda: list(self._parts())):
            info = await ask_info()
            if info.etag is not None:
                await run_blocking(None, self._find_part, info)

    async def begin(self, info: FileInfo) -> None:
        self._modified = info.modified
        await run_blocking(None, self._begin, info)

    async def append(self, chunks: Sequence[bytes]) -> None:
        await run_blocking(None, self._file.write_all, chunks)

    async def restart(self) -> None:
        await run_blocking(None, self._restart)

    async def discard(self) -> None:
        await self.restart()

    async def finish(self) -> None:
        await run_blocking(None, self._publish)

    async def suspend(self) -> None:
        await run_blocking(None, self._close)

    # In a thread

    def _part_of(self, info: FileInfo) -> Path:
        identity = xxhash.xxh3_64_hexdigest(f"{self._name}\0{info.etag}\0{info.size}".encode())
        return self._path.with_name(f"{self._prefix()}{identity}{_SUFFIX}")

    def _prefix(self) -> str:
        name = self._path.name
        # A file name has at most 255 bytes; what is cut off here is in the hash that follows.
        while len(name.encode()) > _MAX_STEM_BYTES:
            name = name[:-1]
        return f".{name}."

    def _parts(self) -> Iterator[Path]:
        prefix = self._prefix()
        for entry in os.listdir(self._path.parent):
            if entry.startswith(prefix) and _IDENTITY.fullmatch(entry[len(prefix) :]):
                yield self._path.with_name(entry)

    def _find_part(self, info: FileInfo) -> None:
        wanted = self._part_of(info)
        for part in self._parts():
            other = PartFile(None, full="", name="")
            if part != wanted and self._open(other, part):
                part.unlink(missing_ok=True)
                other.close()
        # If another transfer uses the part, this one starts a part of its own.
        if not wanted.exists() or not self._open(self._file, wanted):
            return
        try:
            while not self._file.catch_up(info.size):
                pass
        finally:
            self._file.close()
        self._part, self.etag = wanted, info.etag

    def _begin(self, info: FileInfo) -> None:
        part, offset = self._part or self._part_of(info), self.offset
        is_open = self._open(self._file, part)
        if not is_open or (self._part is None and os.stat(part).st_size):
            self._file.close()
            part = part.with_name(part.name.removesuffix(_SUFFIX) + f"-{os.urandom(4).hex()}{_SUFFIX}")
            is_open = self._open(self._file, part)
            assert is_open, "no other transfer knows a random name"
        self._part, self.etag = part, info.etag
        if self.offset != offset:
            raise IntegrityError(f"the part of {self._path} was replaced or cut short", name=self._name)
        self._file.truncate()

    @staticmethod
    def _open(file: PartFile, path: Path) -> bool:
        """Opens and locks a part, which is made if it isn't there; returns False if another transfer has it."""
        try:
            file.open(os.fspath(path), os.O_CREAT, mode=0o666, locked=True)
        except BlockingIOError:
            return False
        return True

    def _publish(self) -> None:
        assert self._part is not None, "`begin` comes first"
        if self._modified is not None:
            # What the file system can't have, or only the owner may set, is no reason to lose a download.
            with suppress(OSError, OverflowError, ValueError):
                disk.set_modified(os.fspath(self._part), self._modified)
        self._file.sync()
        self._file.close()
        os.replace(self._part, self._path)
        self._part = None
        self._forget()  # here, since the task that waits for this thread may be cancelled meanwhile
        disk.sync_folder(os.fspath(self._path.parent))

    def _close(self) -> None:
        self._file.close()
        if self._part is not None and not self.offset:
            self._part.unlink(missing_ok=True)
            self._part = None

    def _restart(self) -> None:
        self._forget()
        self._close()

    def _forget(self) -> None:
        self.etag = None
        self._file.reset()
