"""Whole files on the tutorial's wire, without holding them: written as fragments arrive, read as they are sent."""

import asyncio
import struct
from collections.abc import AsyncGenerator, Sequence
from typing import Final
from uuid import uuid4

from rsocket.frame import Frame, FrameType
from rsocket.payload import Payload

from shared.errors import Changed, ConnectionLost
from shared.protocol.digest import DEFAULT_ALGORITHM
from shared.protocol.wire import FRAGMENT_SIZE_BYTES, FileInfo

from ..stores.base import Reader, Store, Upload
from ..work import Work
from .window import SendWindow

__all__ = ["FilePayload", "FragmentFrame", "UploadSpool", "fragments"]

# What a frame and its metadata's length field take beside the payload: 3 + 6 + 3 bytes.
_OVERHEAD_BYTES: Final = 12
_METADATA, _FOLLOWS, _COMPLETE, _NEXT = 0x100, 0x80, 0x40, 0x20


class UploadSpool:
    """A `shared.frames.fragments.Spool`: the content of one `file.upload` request, in the store as it arrives.

    Args:
        store: Where it goes; nobody sees it before `commit`.
        name: What the file will be called.
        work: Cleans up after a request that is never whole.
    """

    def __init__(self, store: Store, name: str, work: Work) -> None:
        self._store = store
        self._name = name
        self._work = work
        self._upload: Upload | None = None
        self._nbytes = 0
        self._is_over = False

    def __len__(self) -> int:
        return self._nbytes

    async def write(self, chunks: Sequence[bytes]) -> None:
        self._nbytes += sum(map(len, chunks))
        upload = await self._begun()
        await upload.append(chunks)
        await upload.flush()

    async def commit(self) -> FileInfo:
        """Publishes the whole content.

        Raises:
            StorageFull: There is no room.
            TooLarge: It is over the store's limit.
        """
        try:
            info = await (await self._begun()).commit(None)
        except BaseException:
            self.abandon()
            raise
        self._is_over = True
        return info

    def abandon(self) -> None:
        """Drops what was stored; does nothing after `commit`."""
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

    Args:
        reader: The file; whoever sends this closes it.
        metadata: As in any payload.
    """

    __slots__ = ("reader",)

    def __init__(self, reader: Reader, metadata: bytes) -> None:
        super().__init__(b"", metadata)
        self.reader = reader


class FragmentFrame(Frame):
    """One fragment of an answer, made by hand: rsocket would want the whole to split it."""

    def __init__(self, stream_id: int, data: bytes, metadata: bytes, *, is_last: bool) -> None:
        super().__init__(FrameType.PAYLOAD)
        self.stream_id = stream_id
        self.data = data
        self.metadata = metadata
        self.flags_next = True
        self.flags_complete = is_last
        self.flags_follows = not is_last
        self.sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent_future = self.sent  # rsocket sets its result

    def parse(self, buffer: bytes | bytearray, offset: int) -> None:
        """Never called: these are only sent."""

    def serialize_frame_prefix(self, middle: bytes = b"", flags: int = 0) -> bytes:
        flags = _NEXT | (_COMPLETE if self.flags_complete else _FOLLOWS) | (_METADATA if self.metadata else 0)
        head = struct.pack(">IH", self.stream_id, FrameType.PAYLOAD << 10 | flags)
        if self.metadata:
            head += len(self.metadata).to_bytes(3, "big")
        self.length = len(head) + len(self.metadata or b"") + len(self.data or b"")
        return head


async def fragments(payload: FilePayload, stream_id: int, window: SendWindow) -> AsyncGenerator[FragmentFrame, None]:
    """The frames that answer with a file, each read when `window` has room; the reader is closed with the generator.

    Raises:
        Changed: The file was cut short behind the store's back.
    """
    reader, metadata = payload.reader, bytes(payload.metadata or b"")
    try:
        offset, size = 0, reader.info.size
        while True:
            await window.ready()
            try:
                room = FRAGMENT_SIZE_BYTES - _OVERHEAD_BYTES - len(metadata)
                data = await reader.read(offset, min(room, size - offset)) if offset < size else b""
                offset += len(data)
                if not data and offset < size:
                    raise Changed(f"{reader.info.name!r} was cut short while it was sent", name=reader.info.name)
                yield FragmentFrame(stream_id, data, metadata, is_last=offset == size)
            finally:
                window.settle()
            if offset == size:
                return
            metadata = b""
    finally:
        await reader.close()
