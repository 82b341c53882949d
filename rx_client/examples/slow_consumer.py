"""An asynchronous consumer that takes its time for each chunk, and a server that waits for it.

`map_async` keeps a chunk's credit until the function is done with it, so the server is never more than the window of
chunks ahead: neither the client's memory nor the network's buffers fill up, and the server's disk is read no faster
than the consumer consumes. The distance is shown beside the progress.

It is measured at the server's disk, which reads four chunks in one thread handoff: up to three chunks more than the
server may send. At a server named with `--uri` that can't be counted; there it is the bytes that have arrived here.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from reactivex import operators as ops

from server import ChatData, DirectoryStore, Reader, serve
from shared import FileInfo
from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES

from .. import Chunk, FileClient
from ..operators import map_async
from .context import Context, check
from .real_files import chosen_file, digest_of

_WINDOW: Final = 8
_READ_AHEAD: Final = 3
_CHUNK_SECONDS: Final = 0.005


async def run(context: Context) -> None:
    path, name = await chosen_file(context, "slow-consumer")

    async with _server(context) as (uri, store), FileClient.connect(uri) as files:
        await files.upload_from(name, path)
        original = await digest_of(path)
        size = original.length
        context.say(f"{path.name!r}: {size:,} bytes, {1000 * _CHUNK_SECONDS:.0f} ms for each chunk of {CHUNK_BYTES:,}")

        consumed = Digest()
        arrived = shown = 0

        def count(chunk: Chunk) -> None:
            nonlocal arrived
            arrived += len(chunk)

        async def consume(chunk: Chunk) -> int:
            await asyncio.sleep(_CHUNK_SECONDS)  # an insert into a database, say
            # The distance only grows until `consumed` does, so this is its maximum since the last chunk.
            ahead = (arrived if store is None else store.bytes_read) - consumed.length
            consumed.update(chunk.data)
            return ahead

        def show(ahead: int) -> None:
            nonlocal shown
            # Each chunk on a terminal, each tenth of the file in a log.
            if context.is_terminal or consumed.length == size or 10 * (consumed.length - shown) >= size:
                shown = consumed.length
                distance = f"the server is {ahead / CHUNK_BYTES:.1f} chunks ahead"
                context.update(f"consumed {shown:,} of {size:,} bytes, {distance}")

        furthest = await files.download_chunks(name, window=_WINDOW).pipe(
            ops.do_action(count),
            map_async(consume),
            ops.do_action(show),
            ops.max(),
        )
        check(consumed.text() == original.text(), f"what was consumed isn't what {path} has")
        most, bound = _WINDOW, f"a window of {_WINDOW}"
        if store is not None:
            most, bound = _WINDOW + _READ_AHEAD, f"{bound}, and {_READ_AHEAD} that are read ahead"
        limit = f"{most} chunks are {most * CHUNK_BYTES:,}"
        check(furthest <= most * CHUNK_BYTES, f"the server was {furthest:,} bytes ahead of the consumer; {limit}")
        await files.delete(name)

    distance = f"{furthest / CHUNK_BYTES:.1f} chunks ahead of the consumer, of {most} at most ({bound})"
    context.say(f"the server was never more than {distance}")


@asynccontextmanager
async def _server(context: Context) -> AsyncGenerator[tuple[str, "_CountingStore | None"], None]:
    """The server to use, and its store unless the server is the user's."""
    if context.server is None:
        yield context.uri, None
        return
    with tempfile.TemporaryDirectory() as folder:
        store = _CountingStore(folder)
        async with serve(data=ChatData(store)) as server:
            yield server.uri, store


class _CountingStore(DirectoryStore):
    """Counts the bytes that are read from its files."""

    bytes_read = 0

    async def open(self, name: str) -> Reader:
        return _CountingReader(self, await super().open(name))


class _CountingReader(Reader):
    def __init__(self, store: _CountingStore, reader: Reader) -> None:
        self._store = store
        self._reader = reader

    @property
    def info(self) -> FileInfo:
        return self._reader.info

    async def close(self) -> None:
        await self._reader.close()

    async def read(self, offset: int, length: int) -> bytes:
        data = await self._reader.read(offset, length)
        self._store.bytes_read += len(data)
        return data
