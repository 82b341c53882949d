"""Where a download can go: a path, or an asynchronous writer."""

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol, cast, runtime_checkable

import xxhash

from shared.aio import run_blocking
from shared.errors import Changed, IntegrityError, StorageFull
from shared.files.lane import move_from
from shared.protocol.digest import Digest
from shared.protocol.wire import FileInfo

__all__ = ["AsyncWriter", "PathSink", "Sink", "WriterSink"]

try:
    import fcntl
except ImportError:  # not on Windows, where an open file can't be removed or replaced anyway
    fcntl = None

_SUFFIX: Final = ".rxpart"
_IDENTITY: Final = re.compile(r"[0-9a-f]{16}(-[0-9a-f]{8})?\.rxpart")
_MAX_STEM_BYTES: Final = 200
_READ_BYTES: Final = 1024 * 1024
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@runtime_checkable
class AsyncWriter(Protocol):
    """What a download can be written to, beside a path: whatever has this method."""

    def write(self, data: bytes, /) -> Awaitable[object]:
        """Takes the next bytes (`async def write(data)`); they count as durable when it has returned."""
        ...


class Sink(Protocol):
    """The receiving end of a download, over several attempts.

    Attributes:
        turn: Held by the attempt that uses the sink; another one waits for its end.
    """

    turn: asyncio.Lock

    @property
    def offset(self) -> int:
        """Bytes that are there already."""
        ...

    @property
    def etag(self) -> str | None:
        """Which file they are of; None if nothing is there yet, or it isn't known."""
        ...

    @property
    def digest(self) -> Digest | None:
        """The running digest of those bytes; None if the download is not verified."""
        ...

    async def begin(self, info: FileInfo) -> None:
        """An attempt starts that will bring `info`'s bytes from `offset` on."""
        ...

    async def write(self, chunks: Sequence[bytes]) -> None:
        """Adds to the end, and to the digest."""
        ...

    async def restart(self) -> None:
        """Forgets what is there, since it is of another file.

        Raises:
            Changed: What was written can't be taken back.
        """
        ...

    async def finish(self) -> None:
        """Everything is there and verified; the next attempt is another download."""
        ...

    async def suspend(self) -> None:
        """The attempt is over; what is there is kept for the next one."""
        ...


class WriterSink:
    """Writes to the caller's AsyncWriter, which can't take anything back.

    Args:
        writer: Gets the bytes.
        offset: How many of the file's first bytes it has already; they aren't verified again.
        digest: Of the bytes to come; None to do without.
    """

    def __init__(self, writer: AsyncWriter, offset: int, digest: Digest | None) -> None:
        self.turn = asyncio.Lock()
        self._writer = writer
        self._start = offset
        self._algorithm = None if digest is None else digest.algorithm
        self._is_torn = False
        self.offset = offset
        self.etag: str | None = None
        self.digest = digest

    async def begin(self, info: FileInfo) -> None:
        if self._is_torn:
            raise IntegrityError("the writer was stopped in the middle of a write; nobody knows where to go on")
        self.etag = info.etag

    async def write(self, chunks: Sequence[bytes]) -> None:
        for chunk in chunks:
            self._is_torn = True  # until the write has returned, nobody knows whether the writer has the chunk
            await self._writer.write(chunk)
            self._is_torn = False
            self.offset += len(chunk)
            if self.digest is not None:
                self.digest.update(chunk)

    async def restart(self) -> None:
        if self.offset != self._start:
            raise Changed("the file changed during the download, and what was written can't be taken back")
        self.etag = None

    async def finish(self) -> None:
        self.offset, self.etag = self._start, None
        self.digest = None if self._algorithm is None else Digest(self._algorithm)

    async def suspend(self) -> None:
        """Nothing: the writer keeps what it has."""


class PathSink:
    """Writes beside a path, and moves the whole file there when it is verified; what was there stays until then.

    The part is called `.NAME.HASH.rxpart`, where HASH is of the server's name for the file and its etag, so that
    another process that downloads the same file goes on with it, and one that downloads a changed file doesn't.

    Args:
        path: Where the file is wanted; its folder must exist.
        name: The server's name for it.
        algorithm: Of the digest; None to do without.
    """

    def __init__(self, path: Path, name: str, algorithm: str | None) -> None:
        self.turn = asyncio.Lock()
        self._path = path
        self._name = name
        self._algorithm = algorithm
        self._file: BinaryIO | None = None
        self._part: Path | None = None
        self.offset = 0
        self.etag: str | None = None
        self.digest = None if algorithm is None else Digest(algorithm)

    async def has_parts(self) -> bool:
        """Whether another process may have left a part for `find_part`."""
        return self._part is None and bool(await run_blocking(None, self._parts))

    async def find_part(self, info: FileInfo) -> None:
        """Takes over what another process left of this very file, read once for its digest; drops what is of others."""
        if info.etag is not None:
            await run_blocking(None, self._find_part, info)

    async def begin(self, info: FileInfo) -> None:
        await run_blocking(None, self._open, info)

    async def write(self, chunks: Sequence[bytes]) -> None:
        await run_blocking(None, self._write, chunks)

    async def restart(self) -> None:
        await run_blocking(None, self._drop)

    async def finish(self) -> None:
        await run_blocking(None, self._publish)

    async def suspend(self) -> None:
        await run_blocking(None, self._close)

    # In a thread

    def write_through(self, data: memoryview) -> None:
        """As `write`, for a thread that has the bytes just now."""
        self._write([data])

    def write_from(self, pipe: int, nbytes: int) -> None:
        """Adds what a pipe has; for a download without a digest, since nobody sees the bytes."""
        assert self._file is not None, "`begin` comes first"
        assert self.digest is None, "the digest must see the bytes"
        with self._no_room_is_typed():
            try:
                while nbytes:
                    moved = move_from(pipe, self._file.fileno(), nbytes, self.offset)
                    self.offset += moved
                    nbytes -= moved
            finally:
                self._file.seek(self.offset)

    def _part_of(self, info: FileInfo) -> Path:
        identity = xxhash.xxh3_64_hexdigest(f"{self._name}\0{info.etag}\0{info.size}".encode())
        return self._path.with_name(f"{self._prefix()}{identity}{_SUFFIX}")

    def _prefix(self) -> str:
        name = self._path.name
        # A file name has at most 255 bytes; what is cut off here is in the hash that follows.
        while len(name.encode()) > _MAX_STEM_BYTES:
            name = name[:-1]
        return f".{name}."

    def _parts(self) -> list[Path]:
        prefix = self._prefix()
        return [
            self._path.with_name(entry)
            for entry in os.listdir(self._path.parent)
            if entry.startswith(prefix) and _IDENTITY.fullmatch(entry[len(prefix) :])
        ]

    def _find_part(self, info: FileInfo) -> None:
        wanted = self._part_of(info)
        for part in self._parts():
            if part != wanted:
                _remove_unless_locked(part)
        if not wanted.exists():
            return
        file = _open_locked(wanted)
        if file is None:
            return  # another transfer is at it; this one starts a part of its own
        try:
            while self.offset < info.size and (data := file.read(_READ_BYTES)):
                self._count(data)
        finally:
            file.close()
        self._part, self.etag = wanted, info.etag

    def _open(self, info: FileInfo) -> None:
        part = self._part or self._part_of(info)
        file = _open_locked(part)
        if file is None or (self._part is None and os.fstat(file.fileno()).st_size):
            if file is not None:
                file.close()
            part = part.with_name(part.name.removesuffix(_SUFFIX) + f"-{os.urandom(4).hex()}{_SUFFIX}")
            file = _open_locked(part)
            assert file is not None, "nobody else knows a random name"
        self._file, self._part, self.etag = file, part, info.etag
        if os.fstat(file.fileno()).st_size < self.offset:
            raise IntegrityError(f"the part of {self._path} was cut short by somebody else", name=self._name)
        file.seek(self.offset)
        file.truncate()

    def _write(self, chunks: Sequence[bytes | memoryview]) -> None:
        assert self._file is not None, "`begin` comes first"
        with self._no_room_is_typed():
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    written = self._file.write(view)
                    self._count(view[:written])
                    view = view[written:]

    @contextmanager
    def _no_room_is_typed(self) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise StorageFull(f"no room for {self._path}: {os.strerror(error.errno)}", name=self._name) from error
            raise

    def _count(self, data: bytes | memoryview) -> None:
        self.offset += len(data)
        if self.digest is not None:
            self.digest.update(data)

    def _publish(self) -> None:
        assert self._file is not None, "`begin` comes first"
        assert self._part is not None, "`begin` comes first"
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)
        self._file = self._part = None
        self._forget()  # here, since whoever waits for this may be cancelled meanwhile
        if os.name == "posix":
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._part is not None and not self.offset:
            self._part.unlink(missing_ok=True)
            self._part = None

    def _drop(self) -> None:
        self._forget()
        self._close()

    def _forget(self) -> None:
        self.offset = 0
        self.etag = None
        self.digest = None if self._algorithm is None else Digest(self._algorithm)


def _open_locked(part: Path) -> BinaryIO | None:
    """The part, opened for this transfer alone; None if another one has it."""
    file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b", buffering=0)
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return None
    return cast(BinaryIO, file)


def _remove_unless_locked(part: Path) -> None:
    file = _open_locked(part)
    if file is not None:
        part.unlink(missing_ok=True)
        file.close()
