"""`for_each_async`: what it emits, when it subscribes and disposes, and what it does with errors."""

import asyncio

import pytest
import reactivex
from reactivex import operators as ops

from rx_client.chunks import Chunk
from rx_client.operators import for_each_async
from shared.errors import BackpressureOverflow, ConnectionLost

from .helpers import ChunkSource, at_once, ticks


@pytest.mark.parametrize("count", [0, 1, 20])
async def test_emits_exactly_the_number_of_items(count: int) -> None:
    handled: list[int] = []

    async def handle(number: int) -> None:
        await asyncio.sleep(0)
        handled.append(number)

    assert await at_once(*range(count)).pipe(for_each_async(handle), ops.to_list()) == [count]
    assert handled == list(range(count))


async def test_one_call_at_a_time_by_default() -> None:
    under_way = most = 0

    async def handle(_: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    await at_once(*range(20)).pipe(for_each_async(handle))
    assert most == 1
    await at_once(*range(20)).pipe(for_each_async(handle, concurrency=3))
    assert most == 3


async def test_carries_demand() -> None:
    source = ChunkSource(window=4, total=100)
    ahead: list[int] = []

    async def handle(chunk: Chunk) -> None:
        await asyncio.sleep(0)
        ahead.append(source.produced - chunk.offset)

    assert await source.observable.pipe(for_each_async(handle)) == 100
    assert max(ahead) == 4
    assert source.held == 0


async def test_an_error_is_passed_on_without_a_number() -> None:
    lost = ConnectionLost("lost")

    async def handle(number: int) -> None:
        if number == 2:
            raise lost

    ends: list[object] = []
    at_once(0, 1, 2, 3).pipe(for_each_async(handle)).subscribe(ends.append, ends.append)
    await ticks(20)
    assert ends == [lost]


async def test_max_pending() -> None:
    async def handle(_: int) -> None:
        pass

    with pytest.raises(BackpressureOverflow):
        await at_once(*range(10)).pipe(for_each_async(handle, max_pending=5))


async def test_a_dispose_cancels_the_call_under_way() -> None:
    cancelled: list[str] = []

    async def handle(item: str) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.append(item)

    subscription = reactivex.just("a").pipe(for_each_async(handle)).subscribe()
    await ticks()
    subscription.dispose()
    await ticks()
    assert cancelled == ["a"]


def test_arguments_are_checked_when_they_are_given() -> None:
    with pytest.raises(ValueError):
        for_each_async(asyncio.sleep, concurrency=0)
