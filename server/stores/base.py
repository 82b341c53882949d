"""Where files live: the interface that the routes use. Each store has a module or a package of its own.

Every method is a coroutine that may wait for a disk or a network, but never holds the event loop for more than about a
millisecond. Names have passed `shared.protocol.wire.check_name`; a store takes any such name and gives it back
unchanged. All errors are `shared.errors.TransferError`; any other exception is a defect and becomes `internal` on the
wire. Any method may raise ServerFull where the system has no more file descriptors, StorageUnavailable where the files
can't be reached, and Forbidden where the system, or the store's configuration, doesn't allow what it does.

A new store derives from `Store`, `Reader` and `Upload`, and overrides the defaults of what it can do beyond the
abstract methods; `server.stores.parts` has what all uploads share. `tests/stores/test_contract.py` checks it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from shared.errors import UnknownRoute
from shared.files.part import FileTarget
from shared.protocol.digest import DigestLink
from shared.protocol.wire import FileInfo

from .at_once import AtOnceStore
from .changes import Watchable

__all__ = ["PAGE_FILES", "AtOnceStore", "OpenFile", "Page", "Reader", "Reservation", "Store", "Upload"]

PAGE_FILES: Final = 64
"""The files of a page by default: what a listing that isn't read holds, in a directory store some 20 KiB."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a listing.

    Attributes:
        files: In the order of their names; may be empty even if there are more.
        after: Where the listing goes on: for `Store.list`. None at its end.
    """

    files: Sequence[FileInfo]
    after: str | None


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that threads may read off-loop while its reader is open.

    Attributes:
        descriptor: The file's.
        executor: The threads to read it with.
        is_same: Whether it still has the content that it was opened with, as far as can be detected. Blocks.
    """

    descriptor: int
    executor: Executor
    is_same: Callable[[], bool]


class Reader(ABC):
    """One file as it was when it was opened: an overwrite or a delete doesn't change what it reads.

    It is never a mixture; but not every store can go on with the old content (`Store.keeps_opened`).

    Attributes:
        is_streaming: Whether the next bytes are on their way, so that few can be read at a time.
    """

    is_streaming: bool = False

    @property
    @abstractmethod
    def info(self) -> FileInfo:
        """The file's; its digest is None where the store doesn't know it without reading the content."""

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file.

        Raises:
            Changed: The file was overwritten in place, or truncated, by another program; or see `Store.keeps_opened`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Frees its resources; closing twice is fine."""

    def as_file(self) -> OpenFile | None:
        """The file that the content is in, open until `close`; None if it isn't in one."""
        return None


class Upload(ABC):
    """An unfinished upload that this process has open.

    What was received may be ahead of what is durable, since a store may only be able to keep parts of a certain size.

    It has one owner at a time: the newest `Store.begin` with its id takes it over once the call under way, if any, has
    returned. From then on `append`, `flush` and `commit` of the older one raise Superseded, and its `suspend` and
    `abort` do nothing. The same holds for an upload that the store has dropped.

    Attributes:
        window_bytes: How many bytes beyond the durable ones a sender must be able to send for the store to make
            progress; None where every `flush` makes everything durable.
        links: Where another process has received the durable bytes, what it knew of them: the digests of ranges that
            follow each other from the start on. This process can't go on with them: the sender compares each with its
            own content, and `commit` gets the digest of the rest. Empty where this process knows the whole digest.
    """

    window_bytes: int | None = None
    links: Sequence[DigestLink] = ()

    @property
    @abstractmethod
    def received(self) -> int:
        """Bytes taken so far: the next byte belongs here. Equal to `durable` when the upload begins or goes on."""

    @property
    @abstractmethod
    def durable(self) -> int:
        """Bytes that survive this upload and, where the store's files do, this process."""

    @abstractmethod
    async def append(self, chunks: Sequence[bytes]) -> None:
        """Adds to the end and to the running digest.

        Raises:
            StorageFull: No room; `received` and `durable` say what was taken and kept all the same.
            TooLarge: More than the size that `begin` got, or than the store's limit; nothing was added.
            Superseded: It has another owner by now.
        """

    @abstractmethod
    async def flush(self) -> int:
        """Makes as much of what was received durable as the store can, and returns `durable`.

        Raises:
            StorageFull: No room; `durable` says what is kept.
            Superseded: It has another owner by now.
        """

    @abstractmethod
    async def commit(self, digest: str | None, rest_digest: str | None = None) -> FileInfo:
        """Verifies, makes durable (fsync of file and folder where there is a disk) and publishes, in this order.

        It closes the upload, however it ends.

        Args:
            digest: The whole content's, as `algorithm:hex`; None if the sender didn't compute one.
            rest_digest: That of the bytes behind the last of `links`; only given if there are any.

        Raises:
            IntegrityError: The digest or the size isn't the announced one. The part is dropped, nothing is published.
            AlreadyExists: `overwrite` was False and the name has come into use. The part is kept.
            StorageFull: No room for what is to be kept beside the content. The part is kept.
            InvalidRequest: A digest isn't of the algorithm that `begin` got, or is missing; the upload stays open.
            Superseded: It has another owner by now.
        """

    @abstractmethod
    async def suspend(self) -> None:
        """Closes it, and keeps the durable bytes for a later `begin` with the same id. Fine after `commit`, too.

        Where the last call found no room, the bytes are dropped instead: others need what they take.
        """

    @abstractmethod
    async def abort(self) -> None:
        """Closes it, and drops the durable bytes. Fine after `commit`, too."""

    def as_file(self) -> FileTarget | None:
        """The file that the content goes to, for a thread to write to off-loop; None if it doesn't go to one.

        Its writes raise as `append` does. No other method is called until no thread uses it any more.
        """
        return None


class Reservation(ABC):
    """Room for a whole file that arrives elsewhere in memory, and is put when it is there."""

    @abstractmethod
    async def grow(self, nbytes: int) -> None:
        """Reserves so many bytes more; does nothing after `release`.

        Raises:
            StorageFull: There is no room.
            TooLarge: The file would be over the store's limit.
        """

    @abstractmethod
    def put(self, content: bytes) -> None:
        """As `Store.put`, in the reserved room, which ends the reservation; `content` is no larger than that."""

    @abstractmethod
    def release(self) -> None:
        """Gives the room back. Fine after `put`, too."""


class Store(Watchable, ABC):
    """Files by name, used between its `start` and its `close`.

    Attributes:
        spools: Whether a whole-file request is written to it while its fragments arrive, and a large answer read from
            it while it is sent; else both are handed over as one `bytes` object.
        queues_calls: Whether one connection may only have a few calls under way, so that others get a share of the
            store's threads or connections.
        keeps_opened: Whether a reader reads on what it was opened for, though the file was overwritten or deleted; else
            it raises Changed.
        lists_all: Whether a page has all that is known of a file; else not its digest, and as its time when it was
            published.
        page_files: The files of a page of its listings.
    """

    spools: bool = True
    queues_calls: bool = True
    keeps_opened: bool = True
    lists_all: bool = True
    page_files: int = PAGE_FILES

    @property
    def is_short_of_files(self) -> bool:
        """Whether few more readers and uploads may be open, so that they are for connections that have few."""
        return False

    @property
    def at_once(self) -> AtOnceStore | None:
        """What answers requests for small files without a task; None if the store always needs time."""
        return None

    def apply_limits(self, max_bytes: int | None, max_file_bytes: int | None) -> None:
        """Limits all files together, and each one; None for no limit. The server calls it with its own limits.
        It does nothing by default: a store on a disk is limited by that, and by its own options.
        """
        return

    @abstractmethod
    async def start(self) -> None:
        """Makes it ready for use.

        Raises:
            OSError: It can't be used: another process does, or its folder can't be made, read or written.
        """

    @abstractmethod
    async def close(self) -> None:
        """Frees its resources; unfinished uploads are suspended. Closing twice is fine."""

    @abstractmethod
    async def stat(self, name: str) -> FileInfo:
        """What is known of a file.

        Raises:
            NotFound: There is none of that name.
        """

    @abstractmethod
    async def list(self, prefix: str = "", after: str = "", limit: int = PAGE_FILES) -> Page:
        """The next files whose name starts with `prefix`, as they are now; unfinished uploads aren't files.

        A listing begins with an `after` of `""`, and goes on with that of each page, however much later; between two
        calls the store holds nothing for it. So a listing isn't a snapshot: it has each file that is there all the time
        exactly once, and others once or not at all. All stores have the same order, that of the names' UTF-8 bytes,
        which is that of `str` and of S3's ListObjectsV2 (whose StartAfter `after` may be).

        Args:
            prefix: What the names start with.
            after: Only names beyond this one, which needn't be a file's.
            limit: The most files of the page, at least one. There may be fewer, so that a call doesn't take long.
        """

    @abstractmethod
    async def open(self, name: str) -> Reader:
        """A snapshot of the file to read from.

        Raises:
            NotFound: There is none of that name.
        """

    async def whole(self, name: str, most_bytes: int) -> bytes | None:
        """A whole file; None if it has more than `most_bytes`.

        Raises:
            NotFound: There is none of that name.
            Changed: Another program is just writing to it.
        """
        reader = await self.open(name)
        try:
            return await reader.read(0, reader.info.size) if reader.info.size <= most_bytes else None
        finally:
            await reader.close()

    @abstractmethod
    async def begin(
        self,
        upload_id: str,
        name: str,
        *,
        size: int | None,
        algorithm: str | None,
        overwrite: bool = True,
        modified: float | None = None,
    ) -> Upload:
        """Starts the upload `upload_id`, reopens it after its durable bytes, or takes it over from its present owner.

        What uploads under way have announced is reserved for them. Where room is short, here, in `put` and wherever an
        upload grows, uploads without an owner are dropped, the oldest first; one that goes on later begins anew.

        Where another process has left the part, its content is read here for the running digest, which may take long;
        or it isn't, and the sender has to compare (`Upload.links`).

        Args:
            upload_id: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with a dot; the caller has checked.
            name: What the file will be called.
            size: The content's length in bytes, if the sender knows it.
            algorithm: Of the digest that `commit` will get, see `shared.protocol.digest`; None if it will get none. A
                store may compute one all the same.
            overwrite: Whether a file of that name may be replaced.
            modified: The file's time, in seconds since the epoch, in the years 1 to 9999; None for when it is
                published. That of the newest `begin` counts.

        Raises:
            InvalidRequest: There is such an upload, of another name, size or algorithm; or the algorithm is unknown.
            AlreadyExists: `overwrite` is False and there is such a file.
            TooLarge: `size` is over the store's limit.
            StorageFull: There is no room for `size`, or even to begin.
        """

    @abstractmethod
    async def put(self, name: str, content: bytes) -> None:
        """Publishes a whole file in one step, in place of the one of that name.

        Raises:
            StorageFull: There is no room.
            TooLarge: It is over the store's limit.
        """

    def reserve(self, name: str) -> Reservation | None:
        """Room for a file that will be put under that name; None if the store has no room that could be reserved.

        What the file will replace is used for it, but only once, however many are to replace it.
        """
        return None

    @abstractmethod
    async def published(self, upload_id: str, name: str) -> FileInfo | None:
        """The file of that name, if it is the one that this upload published; else None.

        For a client that sent everything and lost the connection before the last receipt.
        """

    @abstractmethod
    async def uploaded(self, upload_id: str, name: str) -> int:
        """The durable bytes of an unfinished upload.

        Raises:
            NotFound: There is none of that id, or it is of another name.
        """

    async def discard(self, upload_id: str) -> int:
        """Drops an unfinished upload, also one that has an owner; returns its durable bytes. By default none can be.

        Raises:
            NotFound: There is none of that id.
            UnknownRoute: The store can't do it.
        """
        raise UnknownRoute("this server's store can't discard uploads; those that don't go on are dropped in time")

    @abstractmethod
    async def delete(self, name: str, if_match: str | None = None) -> FileInfo:
        """Removes a file, and returns what was known of it.

        Raises:
            NotFound: There is none of that name.
            Changed: Its etag isn't `if_match`.
        """

    async def move(self, source: str, target: str, *, overwrite: bool = True, if_match: str | None = None) -> FileInfo:
        """Renames a file in one step, and returns what is known of it then: all but its name is as before.

        A process that is killed meanwhile leaves the file under one of the names, or both, whole. To move a file to its
        own name does nothing. By default no file can be moved: to copy it wouldn't be one step.

        Raises:
            NotFound: There is no file `source`.
            Changed: Its etag isn't `if_match`.
            AlreadyExists: `overwrite` is False and there is a file `target`.
            StorageFull: There is no room for what is to be kept beside the content.
            UnknownRoute: The store can't do it.
        """
        raise UnknownRoute("this server's store can't move files; upload it anew, and delete it")

    @abstractmethod
    async def sweep(self, max_age_seconds: float) -> int:
        """Drops the unfinished uploads that have had no owner for that long, and returns how many there were.

        An age is no difference of the wall clock, which may be set meanwhile. An upload with an owner has none: it is
        only dropped where even 0 seconds are too old.
        """
