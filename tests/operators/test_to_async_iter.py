"""`to_async_iter`: what it emits, when it subscribes and disposes, and what it does with errors."""

import asyncio
import gc
import threading
import weakref

import pytest
import reactivex
from reactivex import Subject
from reactivex import operators as ops

from rx_client.chunks import Chunk
from rx_client.operators import map_async, to_async_iter
from shared.errors import BackpressureOverflow, ConnectionLost
from tests.support import eventually

from .helpers import ChunkSource, at_once, ticks

LOST = ConnectionLost("lost")


async def test_iterates_over_all_items() -> None:
    assert [item async for item in reactivex.of(1, 2, 3).pipe(to_async_iter())] == [1, 2, 3]
    assert [item async for item in at_once(1, 2, 3).pipe(to_async_iter())] == [1, 2, 3]
    assert [item async for item in reactivex.empty().pipe(to_async_iter())] == []


async def test_subscribes_when_the_first_item_is_asked_for() -> None:
    subscribed = 0

    def subscribe(_: object) -> reactivex.Observable[str]:
        nonlocal subscribed
        subscribed += 1
        return reactivex.just("item")

    observable = reactivex.defer(subscribe)
    items = observable.pipe(to_async_iter())
    await ticks()
    assert subscribed == 0
    assert await anext(items) == "item"
    assert subscribed == 1
    assert [item async for item in observable.pipe(to_async_iter())] == ["item"]
    assert subscribed == 2


async def test_a_chunks_credit_comes_back_when_the_next_is_asked_for() -> None:
    source = ChunkSource(window=3)
    items = source.observable.pipe(to_async_iter())
    assert (await anext(items)).offset == 0
    await ticks()
    assert (source.produced, source.released) == (3, [])
    assert (await anext(items)).offset == 1
    await ticks()
    assert (source.produced, source.released) == (4, [0])
    await items.aclose()
    assert source.is_disposed
    assert sorted(source.released) == [0, 1, 2, 3]


async def test_the_sender_is_never_more_than_its_window_ahead() -> None:
    source = ChunkSource(window=4, total=100)
    taken = 0
    async with source.observable.pipe(to_async_iter()) as items:
        async for chunk in items:
            assert chunk.offset == taken
            taken += 1
            await asyncio.sleep(0)
            assert source.produced - taken < 4
    assert taken == 100
    assert source.held == 0


async def test_the_window_does_not_limit_chunks() -> None:
    source = ChunkSource(window=20, total=50)
    assert len([chunk async for chunk in source.observable.pipe(to_async_iter(1))]) == 50


async def test_an_error_comes_after_the_items_before_it_and_once() -> None:
    items = at_once(1, 2, error=LOST).pipe(to_async_iter())
    assert [await anext(items), await anext(items)] == [1, 2]
    with pytest.raises(ConnectionLost) as caught:
        await anext(items)
    assert caught.value is LOST
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_items_without_credit_overflow() -> None:
    source = Subject[int]()
    items = source.pipe(to_async_iter(2))
    first = asyncio.create_task(anext(items))
    await ticks()
    source.on_next(0)
    await first
    source.on_next(1)
    source.on_next(2)
    assert source.observers
    source.on_next(3)
    assert source.observers == []
    assert [await anext(items), await anext(items)] == [1, 2]
    with pytest.raises(BackpressureOverflow):
        await anext(items)


async def test_chunks_after_the_overflow_are_not_retained() -> None:
    released: list[str] = []
    late = Chunk(0, b"late", lambda: released.append("late"))
    items = at_once(0, 1, 2, late).pipe(to_async_iter(2))
    assert [await anext(items), await anext(items)] == [0, 1]
    late.release()
    assert released == ["late"]
    with pytest.raises(BackpressureOverflow):
        await anext(items)


async def test_closing_drops_the_error() -> None:
    items = at_once(1, 2, error=LOST).pipe(to_async_iter())
    await anext(items)
    await items.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(items)


async def test_the_end_of_the_block_disposes_of_the_source() -> None:
    source = ChunkSource(window=3)
    async with source.observable.pipe(to_async_iter()) as items:
        async for _ in items:
            break
        assert not source.is_disposed
    assert source.is_disposed
    assert source.held == 0
    assert [chunk async for chunk in items] == []


async def test_a_break_disposes_of_the_source_soon() -> None:
    source = ChunkSource(window=3)
    async for _ in source.observable.pipe(to_async_iter()):
        break
    await eventually(lambda: source.is_disposed)
    assert source.held == 0


async def test_an_error_of_the_loops_body_disposes_of_the_source() -> None:
    source = ChunkSource(window=3)

    async def consume() -> None:
        async with source.observable.pipe(to_async_iter()) as items:
            async for _ in items:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await consume()
    assert source.is_disposed
    assert source.held == 0


async def test_garbage_collection_in_another_thread() -> None:
    source = ChunkSource(window=3)
    disposed_in: list[threading.Thread] = []
    items = source.observable.pipe(
        ops.finally_action(lambda: disposed_in.append(threading.current_thread())), to_async_iter()
    )
    await anext(items)
    in_a_cycle: list[object] = [items]
    in_a_cycle.append(in_a_cycle)
    is_gone = weakref.ref(items)
    del items, in_a_cycle
    assert is_gone() is not None
    await asyncio.to_thread(gc.collect)
    assert is_gone() is None
    await eventually(lambda: disposed_in)
    assert disposed_in == [threading.current_thread()]
    assert source.held == 0


def test_garbage_collection_after_the_loop_has_closed() -> None:
    async def take_one() -> object:
        items = reactivex.never().pipe(ops.start_with("item"), to_async_iter())
        assert await anext(items) == "item"
        return items

    items = asyncio.run(take_one())
    del items
    gc.collect()


async def test_never_iterated() -> None:
    subscribed: list[object] = []
    items = reactivex.defer(lambda _: subscribed.append("subscribed") or reactivex.never()).pipe(to_async_iter())
    await items.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    assert subscribed == []


async def test_closing_ends_a_wait_in_another_task() -> None:
    source = Subject[int]()
    items = source.pipe(to_async_iter())

    async def collect() -> list[int]:
        return [item async for item in items]

    collecting = asyncio.create_task(collect())
    await ticks()
    source.on_next(1)
    await ticks()
    await items.aclose()
    assert await collecting == [1]
    assert source.observers == []
    await items.aclose()


async def test_a_wait_that_times_out_loses_nothing() -> None:
    source = Subject[int]()
    items = source.pipe(to_async_iter())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(items)
    source.on_next(1)
    assert await anext(items) == 1
    await items.aclose()


async def test_a_cancelled_task_holds_nothing() -> None:
    source = ChunkSource(window=3)

    async def consume() -> None:
        async with source.observable.pipe(to_async_iter()) as items:
            async for _ in items:
                await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(consume())
    await eventually(lambda: source.produced == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.is_disposed
    assert source.held == 0


async def test_a_source_may_emit_in_another_thread() -> None:
    source = Subject[int]()
    items = source.pipe(to_async_iter())
    first = asyncio.create_task(anext(items))
    await ticks()

    def emit() -> None:
        for number in range(10):
            source.on_next(number)
        source.on_completed()

    await asyncio.to_thread(emit)
    assert [await first, *[item async for item in items]] == list(range(10))


async def test_a_second_wait_at_the_same_time_is_an_error() -> None:
    items = reactivex.never().pipe(to_async_iter())
    first = asyncio.create_task(anext(items))
    await ticks()
    with pytest.raises(RuntimeError):
        await anext(items)
    await items.aclose()
    with pytest.raises(StopAsyncIteration):
        await first


async def test_timers_of_the_source_run_on_the_loop() -> None:
    threads: set[threading.Thread] = set()
    source = reactivex.interval(0.001).pipe(ops.do_action(lambda _: threads.add(threading.current_thread())))
    async with source.pipe(to_async_iter(1000)) as items:
        assert [await anext(items) for _ in range(3)] == [0, 1, 2]
    assert threads == {threading.current_thread()}


async def test_after_an_asynchronous_stage() -> None:
    source = ChunkSource(window=4, total=30)

    async def shout(chunk: Chunk) -> Chunk:
        await asyncio.sleep(0)
        return chunk.replace(chunk.data + b"!")

    got = [chunk.data async for chunk in source.observable.pipe(map_async(shout, 2), to_async_iter())]
    assert got == [b"%d!" % number for number in range(30)]
    assert source.held == 0


@pytest.mark.parametrize("window", [0, -1])
def test_windows_out_of_range(window: int) -> None:
    with pytest.raises(ValueError):
        to_async_iter(window)
