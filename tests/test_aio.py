"""Waits that outlast a cancellation."""

import asyncio
import gc
import weakref

from shared.aio import wait_uncancelled


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
