"""A range of a file, as the items of a stream."""

import asyncio
from dataclasses import replace
from typing import Final

from rsocket.payload import Payload

from shared.aio import run_blocking
from shared.errors import Changed, InvalidRequest
from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES, ChunkHead, DownloadRequest, transfer_metadata

from ..net.stream import Items, PullStream
from ..stores.base import FileReader, OpenFile, Reader, Store

__all__ = ["read_range"]

# One hop to a thread for several chunks: a hop for each costs more than the read.
_READ_BYTES: Final = 4 * CHUNK_BYTES


async def read_range(store: Store, name: str, request: DownloadRequest, stream: PullStream) -> Items:
    """Yields the chunks of the range, each with whether it is the last; those of a file but the first and last go past.

    The first and the last carry a ChunkHead. An empty range is one empty chunk. The content is that of the moment when
    the generator starts, whatever happens to the file meanwhile.

    Raises:
        NotFound: There is no such file.
        Changed: Its etag isn't `request.if_match`, or it was cut short behind the store's back.
        InvalidRequest: The range starts beyond the end.
    """
    reader = await store.open(name)
    try:
        info = reader.info
        if request.if_match is not None and request.if_match != info.etag:
            raise Changed(f"{name!r} is not the file that it was; its etag is {info.etag}", name=name)
        if request.offset > info.size:
            raise InvalidRequest(f"offset {request.offset} is beyond the end of {name!r}, at {info.size}")
        end = info.size if request.length is None else min(info.size, request.offset + request.length)
        head = ChunkHead(info, request.offset, end - request.offset)
        digest_from = request.offset if request.digest_from is None else request.digest_from
        is_whole = (digest_from, end) == (0, info.size)
        if is_whole and info.digest is not None and info.digest.startswith(f"{request.digest}:"):
            running, head = None, replace(head, range_digest=info.digest)  # the store knows it
        else:
            running = await _running_digest(reader, request, digest_from, stream.digesting)

        file = reader.file() if stream.sends_files and isinstance(reader, FileReader) else None
        offset, block, at, item_bytes = request.offset, b"", 0, request.item_bytes
        while True:
            if file is not None and offset > request.offset:
                offset = await _send_past(stream, file, name, offset, end, item_bytes, running)
            if at == len(block) and offset < end:
                ahead = max(_READ_BYTES // item_bytes, 1) if file is None and not stream.is_crowded else 1
                block, at = await reader.read(offset, min(ahead * item_bytes, end - offset)), 0
            data = block[at : at + item_bytes]
            if not data and offset < end:
                raise Changed(f"{name!r} was cut short while it was sent", name=name)
            is_first, offset, at = offset == request.offset, offset + len(data), at + len(data)
            if running is not None:
                running.update(data)
            is_last = offset == end
            if is_last and running is not None:
                text = running.text()
                head = replace(head, range_digest=text, info=replace(info, digest=text) if is_whole else info)
            yield Payload(data, transfer_metadata(head) if is_first or is_last else None), is_last
            if is_last:
                return
    finally:
        await reader.close()


async def _send_past(
    stream: PullStream, file: OpenFile, name: str, offset: int, end: int, item_bytes: int, digest: Digest | None
) -> int:
    """Sends all chunks but the last, which says how it ended, past the event loop; where that begins."""
    count = (end - offset - 1) // item_bytes
    if count:
        sent = await stream.send_items(file, offset, count, item_bytes, digest)
        if sent < count:
            raise Changed(f"{name!r} was changed while it was sent", name=name)
        await stream.demanded()
    return offset + count * item_bytes


async def _running_digest(
    reader: Reader, request: DownloadRequest, digest_from: int, turn: asyncio.Lock
) -> Digest | None:
    """The digest that the range's bytes are to be added to; None if none was asked for."""
    if digest_from > request.offset:
        raise InvalidRequest(f"the digest can't start at {digest_from}, behind the range's start {request.offset}")
    if request.digest is None:
        return None
    digest = Digest(request.digest)
    # Read again for somebody who goes on with a file that this store didn't receive itself, and knows no digest of.
    # In a thread: a megabyte may take milliseconds, and where the content is in memory nothing else gives others a
    # turn.
    if digest_from < request.offset:
        async with turn:
            while (before := digest_from + digest.length) < request.offset:
                block = await reader.read(before, min(_READ_BYTES, request.offset - before))
                await run_blocking(None, digest.update, block)
    return digest
