"""Waits that outlast a cancellation, and for descriptors."""

import asyncio
import gc
import os
import weakref
from pathlib import Path

import pytest

from shared.aio import until_ready, wait_uncancelled

from .support import HAS_UVLOOP, on_uvloop


async def test_a_cancelled_wait_for_a_thread_leaves_no_reference_cycle() -> None:
    """Its exception would lead to its frame, and so to whatever waits there, a connection for one."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Held:
        """What is in a frame that waits."""

    async def wait() -> None:
        held = Held()
        held_now.add(held)
        await wait_uncancelled(ended)

    held_now = weakref.WeakSet[Held]()
    gc.disable()
    try:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        ended.set_result(None)
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        del waiting
        await asyncio.sleep(0)
        assert not held_now
    finally:
        gc.enable()


async def waits_for_descriptors(folder: Path) -> None:
    os.mkfifo(fifo := folder / "fifo")
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    waiting = asyncio.create_task(until_ready(reading))
    await asyncio.sleep(0.05)
    assert not waiting.done(), "a FIFO without a writer"
    writing = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    await until_ready(writing, to_write=True)
    os.write(writing, b"x")
    await waiting
    os.read(reading, 1)
    waiting = asyncio.create_task(until_ready(reading))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    os.close(writing)
    await waiting  # the end
    os.close(reading)
    (folder / "file").touch()
    for path in ("/dev/null", "/proc/version", folder / "file"):
        descriptor = os.open(path, os.O_RDONLY)
        await until_ready(descriptor)
        os.close(descriptor)


async def test_waits_for_descriptors(tmp_path: Path) -> None:
    await waits_for_descriptors(tmp_path)


@pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop isn't installed")
async def test_waits_for_descriptors_on_uvloop(tmp_path: Path) -> None:
    await asyncio.to_thread(on_uvloop, waits_for_descriptors(tmp_path))
