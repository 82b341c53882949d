"""Where files live: the Protocol that the routes speak to. Its implementations are in modules of their own.

Every method is a coroutine that may wait for a disk but never holds the event loop for more than about a millisecond.
Names have passed `shared.wire.check_name`; a store takes any such name and gives it back as it was. All errors are
`shared.errors.TransferError`; anything else is a defect and becomes `internal` on the wire. Any method may raise
ServerFull where the system has nothing left to open a file with.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shared.protocol.wire import FileInfo

__all__ = ["FileReader", "FileUpload", "FileWriter", "OpenFile", "Reader", "Store", "Upload"]


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that threads may read past the event loop, as long as its reader is open.

    Attributes:
        descriptor: The file's.
        executor: Whose threads are for it.
        is_same: Whether it still has the content that it had when it was opened, as far as can be told. Blocks.
    """

    descriptor: int
    executor: Executor
    is_same: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class FileWriter:
    """The end of an unfinished upload, for a thread to write to past the event loop.

    Attributes:
        write: Adds to the end and to the running digest. Blocks; may raise StorageFull, and Superseded as `append`.
        room: Bytes that may be added.
        executor: Whose threads are for it.
        write_from: Adds so many bytes that a pipe has; None where the bytes have to be seen. Blocks.
    """

    write: Callable[[memoryview], None]
    room: int
    executor: Executor
    write_from: Callable[[int, int], None] | None = None


class Reader(Protocol):
    """One file as it was when it was opened: an overwrite or a delete doesn't change what it reads."""

    @property
    def info(self) -> FileInfo:
        """The file's; its digest is None where the store doesn't know it without reading the content."""
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file.

        Raises:
            Changed: The file was written to in place, or cut short, behind the store's back.
        """
        ...

    async def close(self) -> None:
        """Frees what it holds; closing twice is fine."""
        ...


@runtime_checkable
class FileReader(Protocol):
    """What a Reader has, too, if its content is in a file."""

    def file(self) -> OpenFile:
        """The file; it stays open until `close`."""
        ...


@runtime_checkable
class FileUpload(Protocol):
    """What an Upload has, too, if its content goes to a file."""

    def writer(self) -> FileWriter | None:
        """A way to add to the file; whoever has it calls nothing else until no thread is in it any more.

        Returns:
            The way; None if the upload has another owner by now.
        """
        ...


class Upload(Protocol):
    """An unfinished upload that this process has open.

    It has one owner at a time: the newest `begin` with its id takes it over, after the call under way, if any. From
    then on `append` and `commit` of the older raise Superseded, and its `suspend` and `abort` do nothing. The same
    holds for one that `sweep` has dropped.
    """

    @property
    def offset(self) -> int:
        """Bytes that survive this process: the next one belongs here."""
        ...

    async def append(self, chunks: Sequence[bytes]) -> int:
        """Adds to the end and to the running digest, and returns the new offset: the bytes are durable then.

        Raises:
            StorageFull: No room; what was durable before still is, and `offset` says how much.
            TooLarge: More than the size that `begin` was told, or than the store's limit; nothing was added.
            Superseded: It has another owner by now.
        """
        ...

    async def commit(self, digest: str | None) -> FileInfo:
        """Verifies, makes durable (fsync of file and folder where there is a disk) and publishes, in this order.

        It closes the upload, however it ends.

        Args:
            digest: The whole content's, as `algorithm:hex`; None if the sender didn't compute one.

        Raises:
            IntegrityError: The digest or the size isn't what was announced. The part is dropped, nothing is published.
            AlreadyExists: `overwrite` was False and the name has come into use. The part is kept.
            StorageFull: No room for what is to be kept beside the content. The part is kept.
            InvalidRequest: The digest isn't of the algorithm that `begin` was told; the upload stays open.
            Superseded: It has another owner by now.
        """
        ...

    async def suspend(self) -> None:
        """Closes it, and keeps the durable part for a later `begin` with the same id. Fine after `commit`, too."""
        ...

    async def abort(self) -> None:
        """Closes it, and drops the durable part. Fine after `commit`, too."""
        ...


class Store(Protocol):
    """Files by name, used between its `start` and its `close`."""

    async def start(self) -> None:
        """Makes it ready for use.

        Raises:
            OSError: It can't be used: another process does, or its folder can't be made, read or written.
        """
        ...

    async def close(self) -> None:
        """Frees what it holds; unfinished uploads are suspended. Closing twice is fine."""
        ...

    async def stat(self, name: str) -> FileInfo:
        """What is known of a file.

        Raises:
            NotFound: There is none of that name.
        """
        ...

    async def list(self, prefix: str = "") -> Sequence[FileInfo]:
        """The files at this moment whose name starts with `prefix`; unfinished uploads aren't files."""
        ...

    async def open(self, name: str) -> Reader:
        """A snapshot of the file to read from.

        Raises:
            NotFound: There is none of that name.
        """
        ...

    async def begin(
        self, upload_id: str, name: str, *, size: int | None, algorithm: str | None, overwrite: bool = True
    ) -> Upload:
        """Starts the upload `upload_id`, or opens it where it stopped, or takes it over from whoever has it open.

        Where another process has left the part, it is read again here, for the digest; that takes its time.

        Args:
            upload_id: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with a dot; the caller has checked.
            name: What the file will be called.
            size: The content's length in bytes, if the sender knows it.
            algorithm: Of the digest that `commit` will get, see `shared.digest`; None if it will get none. A store may
                compute one all the same.
            overwrite: Whether a file of that name may be replaced.

        Raises:
            InvalidRequest: There is such an upload, of another name, size or algorithm; or the algorithm is unknown.
            AlreadyExists: `overwrite` is False and there is such a file.
            TooLarge: `size` is over the store's limit.
            StorageFull: There is no room even to begin.
        """
        ...

    async def put(self, name: str, content: bytes) -> None:
        """Publishes a whole file in one step, in place of what has that name.

        Raises:
            StorageFull: There is no room.
            TooLarge: It is over the store's limit.
        """
        ...

    async def published(self, upload_id: str, name: str) -> FileInfo | None:
        """The file of that name, if it is the one that this upload published; else None.

        For a client that sent everything and lost the connection before it heard what became of it.
        """
        ...

    async def uploaded(self, upload_id: str, name: str) -> int:
        """The durable bytes of an unfinished upload.

        Raises:
            NotFound: There is none of that id, or it is of another name.
        """
        ...

    async def delete(self, name: str, if_match: str | None = None) -> FileInfo:
        """Removes a file, and says what it was.

        Raises:
            NotFound: There is none of that name.
            Changed: Its etag isn't `if_match`.
        """
        ...

    async def sweep(self, max_age_seconds: float) -> int:
        """Drops the unfinished uploads that nobody has added to for that long; how many there were."""
        ...
