"""A file is downloaded, compressed and uploaded again, chunk by chunk, in constant memory, whatever its size.

zlib compresses each chunk in a thread; the result is `chunk.replace(...)`, which holds the chunk's credit. The upload
takes the chunks with `async for`, which gives the credit back, and takes at most its own window more than is durable at
the server: so a slow disk there slows down the disk that is read from, at the other end of the pipeline.

`Gzipped` can be iterated over more than once, so `retry_backoff` works here, too: after a loss the file is compressed
again, and the bytes that the server has already are skipped.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Final

from reactivex import operators as ops

from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES

from .. import Chunk, FileClient, Progress, Started, TransferEvent
from ..operators import for_each_async, map_async, progress_every, retry_backoff, to_async_iter
from .context import Context, WrongResult, check
from .real_files import chosen_file, digest_of

_WINDOW: Final = 8
_PROGRESS_SECONDS: Final = 0.25
_GZIP: Final = 31  # zlib's `wbits` for the gzip format, with the largest window

# Beyond its window the upload holds the last item that it took, and the rest of the one before. An item is the result
# for one chunk, and may be a little larger than the chunk.
_MAX_BYTES_UP: Final = (_WINDOW + 3) * CHUNK_BYTES


async def run(context: Context) -> None:
    path, name = await chosen_file(context, "pipeline")
    gzip_name = f"{name}.gz"

    async with FileClient.connect(context.uri) as files:
        await files.upload_from(name, path)
        context.say(f"the server has {path.name!r}: {(await files.stat(name)).size:,} bytes")

        gzipped = Gzipped(files, name)

        def show(event: TransferEvent) -> None:
            if isinstance(event, Progress):
                context.update(f"compressed and stored {event.transferred:,} bytes")

        await files.upload_from(gzip_name, gzipped, window=_WINDOW).pipe(
            retry_backoff(),
            ops.do_action(gzipped.on_event),
            progress_every(_PROGRESS_SECONDS),
            ops.do_action(show),
        )
        context.say(f"the server has {path.name + '.gz'!r}: {(await files.stat(gzip_name)).size:,} bytes")

        gunzipped = await _gunzip(files, gzip_name)
        check(gunzipped.text() == (await digest_of(path)).text(), f"{gzip_name!r} doesn't gunzip to what {path} has")
        context.say(f"it gunzips to the original: {gunzipped.length:,} bytes, {gunzipped.text()}")
        chunks, nbytes = gzipped.most_chunks, gzipped.most_bytes
        context.say(f"never more than {chunks} chunks on their way down, {nbytes:,} bytes on their way up")
        check(chunks <= _WINDOW, f"{chunks} chunks were here at a time; the window is {_WINDOW}")
        check(nbytes <= _MAX_BYTES_UP, f"{nbytes:,} bytes waited to be stored; it should be {_MAX_BYTES_UP:,} at most")
        await files.delete(name)
        await files.delete(gzip_name)


class Gzipped(AsyncIterable[bytes]):
    """A file of the server in the gzip format, compressed anew for each iteration.

    Attributes:
        most_chunks: The most chunks at a time that had arrived, and whose credit hadn't gone back.
        most_bytes: The most compressed bytes at a time that were taken, and not durable according to `on_event`.
    """

    def __init__(self, files: FileClient, name: str) -> None:
        self.most_chunks = self.most_bytes = 0
        self._files = files
        self._name = name
        self._chunks = self._taken = self._durable = 0

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        self._chunks = self._taken = 0
        compressor = zlib.compressobj(wbits=_GZIP)

        async def compress(chunk: Chunk) -> Chunk:
            return chunk.replace(await asyncio.to_thread(compressor.compress, chunk.data))

        pipeline = self._files.download_chunks(self._name, window=_WINDOW).pipe(
            ops.do_action(self._on_arrived),
            map_async(compress),
            to_async_iter(),
        )
        async with pipeline as chunks:
            async for chunk in chunks:
                yield self._take(chunk.data)
                self._chunks -= 1
        yield self._take(await asyncio.to_thread(compressor.flush))

    def on_event(self, event: TransferEvent) -> None:
        """Takes each event of the upload."""
        match event:
            case Started(resumed_from=durable) | Progress(transferred=durable):
                self._durable = durable
            case _:
                pass

    def _on_arrived(self, _: Chunk) -> None:
        self._chunks += 1
        self.most_chunks = max(self.most_chunks, self._chunks)

    def _take(self, data: bytes) -> bytes:
        self._taken += len(data)
        self.most_bytes = max(self.most_bytes, self._taken - self._durable)
        return data


async def _gunzip(files: FileClient, name: str) -> Digest:
    """The digest of a file's uncompressed content, which is never in memory as a whole."""
    decompressor, digest = zlib.decompressobj(wbits=_GZIP), Digest()

    def expand(data: bytes) -> None:
        # In pieces, because a chunk may expand to a thousand times its size.
        while data:
            digest.update(decompressor.decompress(data, CHUNK_BYTES))
            data = decompressor.unconsumed_tail

    try:
        await files.download_chunks(name, window=_WINDOW).pipe(
            for_each_async(lambda chunk: asyncio.to_thread(expand, chunk.data))
        )
    except zlib.error as error:
        raise WrongResult(f"{name!r} isn't what zlib made: {error}") from error
    check(decompressor.eof, f"{name!r} ends too early")
    return digest
