"""What an upload reads in one attempt, and how to tell that it isn't what it was."""

import errno
import os
import select
import stat
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, cast

from shared.aio import run_blocking
from shared.errors import SourceChanged, SourceExhausted
from shared.files import disk
from shared.files.sending import FileRange
from shared.protocol.digest import Digest

__all__ = [
    "Content",
    "FileContent",
    "Source",
    "Version",
    "add_expected",
    "check_reachable",
    "limited_size",
    "stored_size",
]

# Chunks that one thread handoff reads: a handoff for each chunk costs more than its read.
_CHUNKS_PER_HANDOFF: Final = 4
_CHECKED_BYTES: Final = 1024 * 1024
# What the system makes when it is read claims no length, or that of a memory page, and takes no room on a disk.
_PAGE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Version:
    """What the system says of a file's content. Equal ones are of equal contents, as far as the system can tell.

    `status_changed` is left out of the comparison: renaming a file or changing its bits changes it, too.
    """

    device: int
    inode: int
    nbytes: int
    modified: int
    status_changed: int = field(compare=False)

    @classmethod
    def of(cls, descriptor: int) -> "Version":
        """That of an open file. Blocks."""
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_surely(self, earlier: "Version") -> bool:
        """Whether not even the status was changed: what hides a change of the content changes that."""
        return self == earlier and self.status_changed == earlier.status_changed

    def may_begin_with(self, earlier: "Version") -> bool:
        """Whether the content is the earlier one, or that with more behind it, if the file was only appended to."""
        is_longer = (self.device, self.inode) == (earlier.device, earlier.inode) and self.nbytes > earlier.nbytes
        return self == earlier or is_longer


class Content(ABC):
    """A source's content, open for one attempt.

    Attributes:
        starts_over: Whether it can only be read from its start again; it may give other bytes then.
        version: None if the system has none.
    """

    starts_over: bool = False
    version: Version | None = None

    @abstractmethod
    def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        """The content from `offset` in chunks of `chunk_bytes`; shorter ones at the end, or where a source is slow.

        Raises:
            SourceExhausted: It can't go back to `offset`, or ends before it.
            SourceChanged: It is shorter than it was.
            OSError: The disk failed.
        """

    async def check(self, digest: Digest | None) -> None:
        """Called before the last item is sent.

        Args:
            digest: Of all that was read; None if there is none.

        Raises:
            SourceChanged: The content has changed since it was opened, and what was read may be a mixture.
        """
        return


class Source(ABC):
    """The content of an upload, over several attempts.

    Attributes:
        is_file: Whether it is in a file, which the file lane may send.
        is_lasting: Whether it is something that may change, and is uploaded as it is then. What just gives items may
            give others the next time, which are neither the rest of the first ones nor all there is.
        modified: When the content was last changed, in seconds since the epoch, as `size` has found; None if it isn't
            known.
    """

    is_file: bool = False
    is_lasting: bool = True
    modified: float | None = None

    async def size(self) -> int | None:
        """The content's length in bytes, None if that isn't known beforehand.

        Raises:
            OSError: The disk failed, or there is no such file.
        """
        return None

    @asynccontextmanager
    @abstractmethod
    async def open(self, size: int | None) -> AsyncGenerator[Content, None]:
        """The content, open for an attempt; of what is longer than `size` bytes, those only.

        Raises:
            SourceChanged: It is shorter than `size`.
            SourceExhausted: It can't be read again.
            OSError: The disk failed.
        """
        yield cast(Content, None)

    def on_completed(self) -> None:
        """The upload is published; the next attempt is another one."""
        return


class FileContent(Content):
    """The `size` bytes of an open file from `begin` on; `close` closes the descriptor."""

    def __init__(self, descriptor: int, begin: int, size: int) -> None:
        self._descriptor = descriptor
        self._begin = begin
        self.size = size
        self.version = self._opened = Version.of(descriptor)

    def close(self) -> None:
        """Closes it."""
        os.close(self._descriptor)

    async def read(self, offset: int, chunk_bytes: int) -> AsyncGenerator[bytes, None]:
        check_reachable(offset, self.size)
        while offset < self.size:
            batch = await run_blocking(None, self._read, offset, chunk_bytes)
            for chunk in batch:
                yield chunk
                offset += len(chunk)

    def as_range(self, start: int) -> FileRange:
        """The same from `start` on, for the file lane."""
        return FileRange(self._descriptor, self._begin + start, self._begin + self.size)

    async def check(self, digest: Digest | None) -> None:
        await run_blocking(None, self.check_here, digest)

    def check_here(self, digest: Digest | None) -> None:
        """As `check`; blocks.

        A file that another program appends to, or that was renamed meanwhile, is told from one whose content is another
        by reading again what was sent, which usually is in memory still. Without a digest that can't be, and what
        became longer is taken for appended to.
        """
        now = Version.of(self._descriptor)
        if now.is_surely(self._opened):
            return
        if digest is None:
            if now.may_begin_with(self._opened):
                return
            raise SourceChanged("the source changed while it was read")
        again = Digest(digest.algorithm)
        while data := disk.read_at(
            self._descriptor, min(_CHECKED_BYTES, digest.length - again.length), self._begin + again.length
        ):
            again.update(data)
        if again.length != digest.length or again.text() != digest.text():
            raise SourceChanged("the source changed while it was read")

    def _read(self, offset: int, chunk_bytes: int) -> list[bytes]:
        chunks: list[bytes] = []
        while offset < self.size and len(chunks) < _CHUNKS_PER_HANDOFF:
            wanted = min(chunk_bytes, self.size - offset)
            chunk = disk.read_at(self._descriptor, wanted, self._begin + offset)
            if len(chunk) < wanted:
                raise SourceChanged("the source became shorter while it was read")
            chunks.append(chunk)
            offset += wanted
        return chunks


def stored_size(descriptor: int) -> int | None:
    """The length of an open file whose content is stored somewhere, and can be read at any offset. Blocks.

    None for what gives its content as it comes (FIFOs, sockets, terminals), and for what the system makes when it is
    read, as in /proc, whose length is only known at its end.

    Raises:
        IsADirectoryError: It is a folder.
    """
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        return None
    size = status.st_size
    if size <= _PAGE_BYTES and not (size and getattr(status, "st_blocks", 1)):
        try:
            if not _is_readable(descriptor):
                return None  # the kernel's log, say
            is_made = len(disk.read_at(descriptor, _PAGE_BYTES + 1, 0)) != size
        except OSError:
            return None
        return None if is_made else size
    return size


def add_expected(digest: Digest, data: memoryview, expected: Digest | None) -> Digest | None:
    """Adds data to a running digest, and returns `expected`, or None once that is reached.

    Raises:
        SourceChanged: It is reached, and another.
    """
    if expected is not None and expected.length <= digest.length + len(data):
        until = expected.length - digest.length
        digest.update(data[:until])
        if digest.text() != expected.text():
            raise SourceChanged("the source isn't what it was before any more")
        data, expected = data[until:], None
    digest.update(data)
    return expected


def _is_readable(descriptor: int) -> bool:
    """Whether a read wouldn't block, as far as the system says."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def check_reachable(offset: int, size: int) -> None:
    """Raises SourceExhausted if there is nothing at `offset`."""
    if offset > size:
        raise SourceExhausted(f"the source has {size} bytes; it can't go on from {offset}")


def limited_size(found: int, size: int | None) -> int:
    """How much of `found` bytes is read where `size` are announced."""
    if size is None:
        return found
    if found < size:
        raise SourceChanged(f"the source became shorter: it has {found} bytes, and had {size}")
    return size
