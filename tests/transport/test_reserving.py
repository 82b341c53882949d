"""The buffer that large payloads are received into."""

import gc
import random
import sys
import threading
import weakref

import pytest

from rx_client import FileClient
from server import ChatData, serve
from shared.frames import buffers as reserving
from shared.frames.buffers import ReservedBuffer

MIB = 1024 * 1024


@pytest.mark.parametrize("reserved", [1, 64 * 1024, 4 * MIB])
@pytest.mark.parametrize("size", [0, 1, 64 * 1024, MIB + 1, 6 * MIB])
def test_what_goes_in_comes_out(reserved: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserving, "_RESERVED_BYTES", reserved)
    content = random.Random(size).randbytes(size)
    buffer = ReservedBuffer()
    for offset in range(0, size, 100_000):
        buffer.write(memoryview(content)[offset : offset + 100_000])
    assert buffer.finish() == content


def test_without_address_space_it_grows_as_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserving, "_RESERVED_BYTES", 2**62)
    buffer = ReservedBuffer()
    buffer.write(b"content")
    assert buffer.finish() == b"content"


@pytest.mark.parametrize("reserved", [18 * MIB, 64 * MIB])
def test_room_is_made_before_it_is_needed(reserved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserving, "_RESERVED_BYTES", reserved)
    content = random.Random(reserved).randbytes(24 * MIB)
    buffer = ReservedBuffer()
    made = []
    for offset in range(0, len(content), MIB):
        buffer.write(memoryview(content)[offset : offset + MIB])
        if buffer.needs_room:
            made.append(offset + MIB)
            buffer.make_room()
            assert not buffer.needs_room
    assert buffer.finish() == content
    if sys.platform == "linux":
        # Where large pages begin, and wherever less than a MiB is left; not beyond what is reserved.
        assert made == [16 * MIB] if reserved == 18 * MIB else [16 * MIB, 20 * MIB, 24 * MIB]


def test_a_buffer_may_be_garbage_while_it_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an event loop that was dropped in the middle of a transfer. Python 3.13 reported it, 3.12.1 crashed."""
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    buffer = ReservedBuffer()
    memory = weakref.ref(buffer._buffer)
    cycle: list[object] = [buffer, buffer.lend(MIB)]
    cycle.append(cycle)
    del buffer, cycle
    gc.collect()
    assert not reported
    assert memory() is None


async def test_room_is_made_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop would be held for as long as a large page takes."""
    threads: list[int] = []
    inner = ReservedBuffer.make_room

    def make_room(buffer: ReservedBuffer) -> None:
        threads.append(threading.get_ident())
        inner(buffer)

    monkeypatch.setattr(ReservedBuffer, "make_room", make_room)
    content = random.Random(1).randbytes(24 * MIB)
    async with serve(data=ChatData()) as server, FileClient.connect(server.uri) as files:
        await files.upload("large", content)
        count = len(threads)
        assert await files.download("large") == content
    if sys.platform == "linux":
        assert 0 < count < len(threads), "both ends do it"
    assert threading.get_ident() not in threads
