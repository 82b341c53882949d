"""A range of a file, as the items of a stream."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from rsocket.payload import Payload

from shared.aio import run_blocking
from shared.errors import Changed, InvalidRequest
from shared.files.sending import FileChanged, FileRange
from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES, ChunkHead, DownloadRequest, transfer_metadata

from ..stores.base import Reader, Store
from ..stores.failures import typed
from .pull import Items, PullStream
from .window import SendWindow

__all__ = ["read_range"]

# One thread handoff for several chunks: a handoff for each costs more than the read.
_READ_BYTES: Final = 4 * CHUNK_BYTES


async def read_range(store: Store, name: str, request: DownloadRequest, stream: PullStream) -> Items:
    """Yields the chunks of the range, each with whether it is the last; or sends them by the file lane.

    The first and the last carry a ChunkHead. An empty range is one empty chunk. The content is that of the moment when
    the generator starts, whatever happens to the file meanwhile.

    Raises:
        NotFound: There is no such file.
        Changed: Its etag isn't `request.if_match`, or another program has changed or truncated it.
        InvalidRequest: The range starts beyond the end.
    """
    reader = await store.open(name)
    try:
        info, offset, item_bytes = reader.info, request.offset, request.item_bytes
        if request.if_match is not None and request.if_match != info.etag:
            raise Changed(f"{name!r} is not the file that it was; its etag is {info.etag}", name=name)
        if offset > info.size:
            raise InvalidRequest(f"offset {offset} is beyond the end of {name!r}, at {info.size}")
        end = info.size if request.length is None else min(info.size, offset + request.length)
        head = ChunkHead(info, offset, end - offset)
        digest_from = offset if request.digest_from is None else request.digest_from
        is_whole = (digest_from, end) == (0, info.size)
        if is_whole and info.digest is not None and info.digest.startswith(f"{request.digest}:"):
            running, head = None, replace(head, range_digest=info.digest)  # the store knows it
        else:
            running = await _running_digest(reader, request, digest_from, stream.window.digesting)

        def last_head() -> bytes:
            if running is None:
                return transfer_metadata(head)
            text = running.text()
            return transfer_metadata(
                replace(head, range_digest=text, info=replace(info, digest=text) if is_whole else info)
            )

        file = reader.as_file() if stream.sends_files and offset < end else None
        if file is not None:
            content = FileRange(file.descriptor, offset, end, file.executor, file.is_same)
            with _reading(name):
                await stream.send_file(content, item_bytes, transfer_metadata(head), last_head, running)
            return
        ahead = _ReadAhead(reader, stream.window, item_bytes)

        def next_item() -> tuple[Payload, bool]:
            # A function of its own: the generator waits for the peer, and must not keep what it has given.
            nonlocal offset
            data = ahead.take()
            if not data and offset < end:
                raise FileChanged
            is_first, offset = offset == request.offset, offset + len(data)
            if running is not None:
                running.update(data)
            metadata = last_head() if offset == end else transfer_metadata(head) if is_first else None
            return Payload(data, metadata), offset == end

        try:
            while True:
                await ahead.fill(offset, end)
                yield next_item()
                if offset == end:
                    return
        finally:
            ahead.drop()
    except FileChanged:
        raise Changed(f"{name!r} was changed while it was sent", name=name) from None
    finally:
        await reader.close()


@contextmanager
def _reading(name: str) -> Generator[None, None, None]:
    """Raises what a disk raises as a typed error."""
    try:
        yield
    except OSError as error:
        failure = typed(error, name)
        if failure is None:
            raise
        raise failure from error


class _ReadAhead:
    """What was read of a file for the next items of a stream; it counts as what isn't sent."""

    def __init__(self, reader: Reader, window: SendWindow, item_bytes: int) -> None:
        self._reader = reader
        self._window = window
        self._item_bytes = item_bytes
        self._block = b""
        self._at = 0
        self._counted_bytes = 0

    async def fill(self, offset: int, end: int) -> None:
        """Reads on from `offset` if nothing is here."""
        if not self._block and offset < end:
            is_single = self._reader.is_streaming or self._window.is_crowded
            items = 1 if is_single else max(_READ_BYTES // self._item_bytes, 1)
            self._counted_bytes = self._window.room.take(min(items * self._item_bytes, end - offset))
            self._block = await self._reader.read(offset, self._counted_bytes)

    def take(self) -> bytes:
        """The next item's data; empty at the file's end."""
        data = self._block[self._at : self._at + self._item_bytes]
        self._at += len(data)
        if self._at == len(self._block):
            self.drop()
        return data

    def drop(self) -> None:
        """Drops what is here."""
        self._window.room.add(-self._counted_bytes)
        self._block, self._at, self._counted_bytes = b"", 0, 0


async def _running_digest(
    reader: Reader, request: DownloadRequest, digest_from: int, lock: asyncio.Lock
) -> Digest | None:
    """The digest that the range's bytes are to be added to; None if none was asked for."""
    if digest_from > request.offset:
        raise InvalidRequest(f"the digest can't start at {digest_from}, behind the range's start {request.offset}")
    if request.digest is None:
        return None
    digest = Digest(request.digest)
    # Read again for a peer that resumes a file which this store didn't receive itself, and knows no digest of. In a
    # thread: a megabyte may take milliseconds, and with content in memory nothing else lets other callbacks run.
    if digest_from < request.offset:
        async with lock:
            while (before := digest_from + digest.length) < request.offset:
                block = await reader.read(before, min(_READ_BYTES, request.offset - before))
                await run_blocking(None, digest.update, block)
    return digest
