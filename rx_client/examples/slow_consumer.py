"""An asynchronous consumer that takes its time for each chunk, and a server that waits for it.

`map_async` keeps a chunk's credit until the function is done with it, so the server is never more than the window of
chunks ahead: neither the client's memory nor the network's fills up, and the server's disk is read no faster than the
consumer consumes. How far ahead it is stands beside the progress.

What the server has produced is what it has read from its disk, counted there. It reads four chunks at a time to save on
threads' turns, so that is up to three chunks more than it may send. A server named with `--uri` can't be looked into;
there it is what has arrived here.
"""

import asyncio
import tempfile
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final

from reactivex import operators as ops

from server import ChatData, DirectoryStore, Reader, serve
from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES
from shared.protocol.wire import FileInfo

from .. import Chunk, FileClient
from ..operators import map_async
from .context import Context, check
from .real_files import add_file_option, digest_of, largest_of_python

__all__ = ["add_options", "run"]

add_options = add_file_option

_WINDOW: Final = 8
_READ_AHEAD: Final = 3
_CHUNK_SECONDS: Final = 0.005


@dataclass(frozen=True)
class _Consumed:
    """One more chunk was.

    Attributes:
        nbytes: Of the file, in all.
        ahead: Bytes that the server had produced beyond those, just before the consumer was done with the chunk.
    """

    nbytes: int
    ahead: int


async def run(context: Context) -> None:
    path: Path = context.options.file or await asyncio.to_thread(largest_of_python)
    name = f"slow-consumer-{uuid.uuid4().hex[:8]}/{path.name}"

    async with _server(context) as (uri, store), FileClient.connect(uri) as files:
        await files.upload_from(name, path)
        original = await asyncio.to_thread(digest_of, path)
        size = original.length
        context.say(f"{path.name!r}: {size:,} bytes, {1000 * _CHUNK_SECONDS:.0f} ms for each chunk of {CHUNK_BYTES:,}")

        arrived, consumed = 0, Digest()

        def arrive(chunk: Chunk) -> None:
            nonlocal arrived
            arrived += len(chunk)

        async def consume(chunk: Chunk) -> _Consumed:
            await asyncio.sleep(_CHUNK_SECONDS)  # an insert into a database, say
            # The distance only grows until `consumed` does, so this is the most that it was since the last time.
            ahead = (arrived if store is None else store.bytes_read) - consumed.length
            consumed.update(chunk.data)
            return _Consumed(consumed.length, ahead)

        furthest = await files.download_chunks(name, window=_WINDOW).pipe(
            ops.do_action(arrive),
            map_async(consume),
            ops.do_action(_shown(context, size)),
            ops.map(lambda step: step.ahead),
            ops.max(),
        )
        check(consumed.text() == original.text(), f"what was consumed isn't what {path} has")
        most = _WINDOW if store is None else _WINDOW + _READ_AHEAD
        check(
            furthest <= most * CHUNK_BYTES,
            f"the server was {furthest:,} bytes ahead of the consumer; {most} chunks are {most * CHUNK_BYTES:,}",
        )
        await files.delete(name)

    bound = f"a window of {_WINDOW}" + (f", and {_READ_AHEAD} that are read ahead" if store is not None else "")
    context.say(
        f"the server was never more than {furthest / CHUNK_BYTES:.1f} chunks ahead of the consumer, of {most} at most "
        f"({bound})"
    )


def _shown(context: Context, size: int) -> Callable[[_Consumed], None]:
    """Shows each chunk to somebody who watches, and every tenth of the file to a log."""
    shown = 0

    def show(step: _Consumed) -> None:
        nonlocal shown
        if context.is_terminal or step.nbytes == size or 10 * (step.nbytes - shown) >= size:
            shown = step.nbytes
            ahead = step.ahead / CHUNK_BYTES
            context.update(f"consumed {step.nbytes:,} of {size:,} bytes, the server is {ahead:.1f} chunks ahead")

    return show


@asynccontextmanager
async def _server(context: Context) -> AsyncGenerator[tuple[str, "_CountingStore | None"], None]:
    """The server to use, and its store if it can be looked into."""
    if context.server is None:
        yield context.uri, None
        return
    with tempfile.TemporaryDirectory() as folder:
        store = _CountingStore(folder)
        async with serve(data=ChatData(store)) as server:
            yield server.uri, store


class _CountingStore(DirectoryStore):
    """Counts what is read of its files."""

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path)
        self.bytes_read = 0

    async def open(self, name: str) -> Reader:
        return _CountingReader(self, await super().open(name))


class _CountingReader:
    def __init__(self, store: _CountingStore, reader: Reader) -> None:
        self._store = store
        self._reader = reader

    @property
    def info(self) -> FileInfo:
        return self._reader.info

    async def read(self, offset: int, length: int) -> bytes:
        data = await self._reader.read(offset, length)
        self._store.bytes_read += len(data)
        return data

    async def close(self) -> None:
        await self._reader.close()
