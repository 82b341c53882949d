"""How often a busy connection lets others have the event loop."""

import asyncio
import time
from itertools import pairwise

import pytest

from shared.transport import pacing
from shared.transport.pacing import Pacer


async def test_a_pause_is_due_after_so_many_frames_or_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pacer = Pacer()

    def frames_until_due(most: int = 100) -> int:
        for count in range(1, most):
            pacer.add()
            if pacer.is_due():
                return count
        return most

    assert not pacer.is_due()
    assert frames_until_due() == 16
    await pacer.pause()
    assert not pacer.is_due()
    for _ in range(15):
        pacer.add()
        assert not pacer.is_due()
    pacer.restart()
    assert frames_until_due() == 16, "to wait for the peer is a pause"
    await pacer.pause()
    for _ in range(7):
        pacer.add()
        assert not pacer.is_due()
        now += 0.001
    pacer.add()
    assert pacer.is_due(), "frames that take long are fewer"


async def test_a_few_busy_connections_go_on_in_an_iteration() -> None:
    order: list[int] = []
    per_iteration: list[int] = []
    is_over = False
    loop = asyncio.get_running_loop()

    async def pause(number: int) -> None:
        await Pacer().pause()
        order.append(number)

    def note() -> None:
        per_iteration.append(len(order))
        if not is_over:
            loop.call_soon(note)

    tasks = [asyncio.create_task(pause(number)) for number in range(20)]
    await asyncio.sleep(0)
    note()
    await asyncio.gather(*tasks)
    is_over = True
    await asyncio.sleep(0)
    assert order == list(range(20)), "the one that has waited longest is first"
    most = max(after - before for before, after in pairwise(per_iteration))
    assert 1 <= most <= pacing._BUSY_PER_ITERATION


async def test_a_connection_that_is_given_up_while_it_pauses_delays_no_other() -> None:
    pauses = [asyncio.create_task(Pacer().pause()) for _ in range(9)]
    await asyncio.sleep(0)
    for each in pauses[:5]:
        each.cancel()
    await asyncio.wait(pauses, timeout=1)
    assert [each.cancelled() for each in pauses] == [True] * 5 + [False] * 4
