"""Bytes that come in pieces of any size, whenever their source has some: how they are taken, and cut into chunks."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, suppress
from typing import Final

from shared.errors import SourceExhausted

from .caller_thread import PATIENCE_SECONDS, CallerThread

__all__ = ["LINGER_SECONDS", "as_bytes", "in_chunks", "in_thread", "listed"]

LINGER_SECONDS: Final = 1.0
"""How long bytes may wait for more of their chunk; then they are sent without."""

# One thread handoff takes pieces for as long as that, or a chunk, since many are small.
_HANDOFF_SECONDS: Final = 0.05
# How often the event loop looks what a thread has taken that is held up.
_LOOK_SECONDS: Final = 0.2


def as_bytes(piece: object) -> bytes:
    """A piece's bytes; copied, unless it is immutable, as a source may use its buffer again.

    Raises:
        TypeError: It has none.
    """
    if type(piece) is bytes:
        return piece
    if not isinstance(piece, str):
        with suppress(TypeError):
            return bytes(memoryview(piece))  # pyright: ignore[reportArgumentType]
    raise TypeError(f"a source's items must be bytes, not {type(piece).__name__}")


async def listed(items: Iterable[object]) -> AsyncGenerator[bytes, None]:
    """The items of what doesn't block."""
    for item in items:
        yield as_bytes(item)


async def in_thread(items: Iterator[object], batch_bytes: int) -> AsyncGenerator[bytes, None]:
    """The items of an iterator that may block, which is closed at the end: `batch_bytes` or more a thread handoff."""
    thread = CallerThread()
    taken: deque[bytes] = deque()
    is_wanted = True

    def take() -> bool:
        nbytes, until = 0, time.monotonic() + _HANDOFF_SECONDS
        for item in items:
            taken.append(as_bytes(item))
            nbytes += len(taken[-1])
            if nbytes >= batch_bytes or time.monotonic() > until or not is_wanted:
                return True
        return False

    try:
        is_more = True
        while is_more:
            call = thread.call(take)
            while not call.done():
                await asyncio.wait([call], timeout=_LOOK_SECONDS)
                while taken:
                    yield taken.popleft()
            is_more = call.result()
    finally:
        is_wanted = False
        if (close := getattr(items, "close", None)) is not None:
            closing = thread.call(close)
            thread.close()
            # The iterator may be in the middle of a call that takes long; it is closed when that has returned.
            await asyncio.wait([closing], timeout=PATIENCE_SECONDS)
            if closing.done():
                closing.result()
        thread.close()


async def in_chunks(pieces: AsyncIterator[object], chunk_bytes: int, *, skip: int = 0) -> AsyncGenerator[bytes, None]:
    """Cuts and joins pieces into chunks, without the first `skip` bytes.

    A chunk is shorter than `chunk_bytes` at the end, or when the rest doesn't come within `LINGER_SECONDS`: what a slow
    source gives is sent, and not held back until a chunk is full.

    Raises:
        SourceExhausted: There are fewer than `skip` bytes.
    """
    buffer = bytearray()
    async with aclosing(_in_batches(pieces, chunk_bytes)) as batches:
        async for batch in batches:
            for piece in batch:
                if skip >= len(piece):
                    skip -= len(piece)
                elif len(piece) == chunk_bytes and not buffer and not skip:
                    yield piece
                else:
                    buffer += memoryview(piece)[skip:]
                    skip = 0
                    while len(buffer) >= chunk_bytes:
                        with memoryview(buffer) as view:
                            chunk = bytes(view[:chunk_bytes])
                        yield chunk
                        del buffer[:chunk_bytes]
            if buffer and sum(map(len, batch)) < chunk_bytes:
                yield bytes(buffer)
                buffer.clear()
    if skip:
        raise SourceExhausted(f"the source ends {skip} bytes before the offset to go on from")
    if buffer:
        yield bytes(buffer)


async def _in_batches(pieces: AsyncIterator[object], batch_bytes: int) -> AsyncGenerator[list[bytes], None]:
    """The pieces, `batch_bytes` or more at a time: fewer at the end, or if no more come within `LINGER_SECONDS`.

    A task of their own takes them, as waiting for a piece can't be given up without cancelling the source. It takes no
    more than is asked for.
    """
    taken: list[bytes] = []
    nbytes = 0
    may_take, is_due = asyncio.Event(), asyncio.Event()

    async def take() -> None:
        nonlocal nbytes
        try:
            async for piece in pieces:
                taken.append(as_bytes(piece))
                nbytes += len(taken[-1])
                if nbytes >= batch_bytes:
                    may_take.clear()
                    is_due.set()
                    await may_take.wait()
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                await close()

    taking = asyncio.get_running_loop().create_task(take())
    taking.add_done_callback(lambda _: is_due.set())
    try:
        is_over = False
        while not is_over:
            may_take.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await is_due.wait()
            is_due.clear()
            is_over = taking.done()
            batch = taken.copy()
            taken.clear()
            nbytes = 0
            yield batch
        taking.result()
    finally:
        taking.cancel()
        await asyncio.wait([taking])
        if not taking.cancelled():
            taking.exception()
