"""Whole files on the tutorial's wire: written, or counted, as fragments arrive; read as they are sent."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from uuid import uuid4

from rsocket.payload import Payload

from shared.errors import ConnectionLost
from shared.protocol.digest import DEFAULT_ALGORITHM

from ..stores.base import Reader, Reservation, Store, Upload
from ..work import Work

__all__ = ["FilePayload", "ReservedUpload", "UploadSpool", "WholeUpload"]


class WholeUpload(ABC):
    """Stands for the data of one `file.upload` request that came in fragments. It is no file before `commit`."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    async def commit(self) -> None:
        """Publishes the whole content; raises as `Upload.commit` or `Store.put`."""

    @abstractmethod
    def abandon(self) -> None:
        """Drops what was stored; does nothing after `commit`."""


class ReservedUpload(WholeUpload):
    """A `shared.frames.fragments.Reservation`: the content is in memory, and counts in its store as it arrives."""

    def __init__(self, reservation: Reservation) -> None:
        self._reservation = reservation
        self._content = b""

    def __len__(self) -> int:
        return len(self._content)

    async def grow(self, nbytes: int) -> None:
        await self._reservation.grow(nbytes)

    def fill(self, data: bytes) -> None:
        self._content = data

    async def commit(self) -> None:
        self._reservation.put(self._content)

    def abandon(self) -> None:
        self._reservation.release()


class UploadSpool(WholeUpload):
    """A `shared.frames.fragments.Spool`: stores the content of one `file.upload` request as it arrives.

    `work` cleans up after a request that is never whole.
    """

    def __init__(self, store: Store, name: str, work: Work) -> None:
        self._store = store
        self._name = name
        self._work = work
        self._upload: Upload | None = None
        self._is_over = False

    def __len__(self) -> int:
        return 0 if self._upload is None else self._upload.received

    async def write(self, chunks: Sequence[bytes]) -> None:
        upload = await self._begun()
        await upload.append(chunks)
        await upload.flush()

    async def commit(self) -> None:
        try:
            await (await self._begun()).commit(None)
        except BaseException:
            self.abandon()
            raise
        self._is_over = True

    def abandon(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._upload is not None:
                self._work.clean_up(self._upload.abort)

    async def _begun(self) -> Upload:
        if self._upload is None:
            upload_id = f"whole-{uuid4().hex}"
            upload = await self._store.begin(upload_id, self._name, size=None, algorithm=DEFAULT_ALGORITHM)
            if self._is_over:
                await upload.abort()
                raise ConnectionLost("the connection ended before the upload did")
            self._upload = upload
        return self._upload


class FilePayload(Payload):
    """An answer whose data is a file's content, read as it is sent.

    Whatever sends it closes the reader, and calls `on_over`, when the last of it is read.
    """

    __slots__ = ("on_over", "reader")

    def __init__(self, reader: Reader, metadata: bytes, on_over: Callable[[], None]) -> None:
        super().__init__(b"", metadata)
        self.reader = reader
        self.on_over = on_over
