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
        block, at = b"", 0
        while True:
            if at == len(block) and offset < end:
                ahead = 1 if stream.window.is_crowded else max(_READ_BYTES // item_bytes, 1)
                block, at = await reader.read(offset, min(ahead * item_bytes, end - offset)), 0
            data = block[at : at + item_bytes]
            if not data and offset < end:
                raise FileChanged
            is_first, offset, at = offset == request.offset, offset + len(data), at + len(data)
            if running is not None:
                running.update(data)
            metadata = last_head() if offset == end else transfer_metadata(head) if is_first else None
            yield Payload(data, metadata), offset == end
            if offset == end:
                return
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
