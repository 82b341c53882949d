"""`from_async_iter`: what it emits, when it asks its iterator, and that it always closes it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
from reactivex import Observable, Subject, abc
from reactivex import operators as ops
from reactivex.disposable import Disposable

from rx_client.chunks import Chunk
from rx_client.operators import for_each_async, from_async_iter, map_async, to_async_iter, transfer_all
from shared.errors import ConnectionLost
from tests.support import eventually

from .helpers import ChunkSource, at_once, ticks

LOST = ConnectionLost("lost")


class Numbers:
    """An asynchronous generator function that counts what was asked of it.

    Attributes:
        made: Iterators that were made.
        produced: Items that they yielded, or are about to.
        closed: Iterators that have run their cleanup, which takes several iterations of the event loop.
    """

    def __init__(self, total: int | None = None, *, error: Exception | None = None) -> None:
        self.made = self.produced = self.closed = 0
        self._total = total
        self._error = error

    async def __call__(self) -> AsyncGenerator[int, None]:
        self.made += 1
        number = 0
        try:
            while number != self._total:
                self.produced += 1
                yield number
                number += 1
            if self._error is not None:
                raise self._error
        finally:
            await ticks()
            self.closed += 1


async def test_emits_all_items_and_completes() -> None:
    numbers = Numbers(3)
    assert await from_async_iter(numbers).pipe(ops.to_list()) == [0, 1, 2]
    assert await from_async_iter(Numbers(0)).pipe(ops.to_list()) == []
    assert numbers.closed == 1


async def test_each_subscription_makes_an_iterator() -> None:
    numbers = Numbers(2)
    twice = from_async_iter(numbers).pipe(ops.repeat(2), ops.to_list())
    assert numbers.made == 0
    assert await twice == [0, 1, 0, 1]
    assert (numbers.made, numbers.closed) == (2, 2)


async def test_its_error_comes_after_the_items_and_a_retry_starts_over() -> None:
    numbers = Numbers(2, error=LOST)
    got: list[int] = []
    with pytest.raises(ConnectionLost) as caught:
        await from_async_iter(numbers).pipe(ops.do_action(got.append), ops.retry(2))
    assert caught.value is LOST
    assert got == [0, 1, 0, 1]
    assert numbers.closed == 2


async def test_a_synchronous_consumer_is_never_overtaken() -> None:
    numbers = Numbers(100)
    consumed = 0

    def consume(_: int) -> None:
        nonlocal consumed
        consumed += 1
        assert numbers.produced == consumed

    await from_async_iter(numbers, 1).pipe(ops.map(str), ops.map(int), ops.do_action(consume))
    assert consumed == 100


def slow(most: list[int], numbers: Numbers) -> Callable[[Any], Any]:
    """An asynchronous function that notes how far the iterator is ahead of it."""
    done = 0

    async def fn(item: Any) -> Any:
        nonlocal done
        await ticks(3)
        most.append(numbers.produced - done)
        done += 1
        return item

    return fn


@pytest.mark.parametrize("window", [1, 4])
async def test_an_asynchronous_consumer_holds_no_more_than_the_window(window: int) -> None:
    """Through operators of RxPY that know nothing of demand, and many times more items than may wait without credit."""
    numbers, ahead = Numbers(3000), list[int]()
    piped = from_async_iter(numbers, window).pipe(
        ops.map(str), ops.pairwise(), ops.do_action(lambda _: None), for_each_async(slow(ahead, numbers), max_pending=0)
    )
    assert await piped == 2999
    assert numbers.closed == 1
    assert max(ahead) == window + 1  # and the item that `pairwise` still has


async def test_two_asynchronous_stages_pass_the_demand_on() -> None:
    numbers, ahead = Numbers(300), list[int]()

    async def fast(number: int) -> int:
        return number

    piped = from_async_iter(numbers, 4).pipe(map_async(fast), map_async(slow(ahead, numbers)), ops.count())
    assert await piped == 300
    assert max(ahead) <= 5


async def test_calls_run_at_the_same_time_up_to_the_window() -> None:
    under_way = most = 0

    async def fn(_: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await ticks(20)
        under_way -= 1

    await from_async_iter(Numbers(40), 3).pipe(map_async(fn, 8))
    assert most == 3


async def test_a_loop_that_iterates_over_it_is_never_more_than_the_window_behind() -> None:
    numbers = Numbers(500)
    taken = 0
    async with from_async_iter(numbers, 2).pipe(ops.map(str), to_async_iter(1)) as items:
        async for _ in items:
            taken += 1
            await ticks(3)
            assert numbers.produced - taken <= 2
    assert taken == 500


async def test_transfers_that_wait_hold_their_credit() -> None:
    numbers = Numbers()
    gates: list[Subject[str]] = []

    def transfer(_: int) -> Observable[str]:
        gates.append(Subject[str]())
        return gates[-1]

    subscription = from_async_iter(numbers, 3).pipe(ops.map(transfer), transfer_all(2)).subscribe()
    await ticks(50)
    assert len([gate for gate in gates if gate.observers]) == 2
    assert numbers.produced == 5
    gates[0].on_completed()
    await ticks(50)
    assert numbers.produced == 6
    subscription.dispose()
    await eventually(lambda: numbers.closed == 1)
    assert not any(gate.observers for gate in gates)


async def test_chunks_hold_their_own_credit_and_the_iterators() -> None:
    source = ChunkSource(window=4, total=50)

    async def chunks() -> AsyncIterator[Chunk]:
        async with source.observable.pipe(to_async_iter()) as items:
            async for chunk in items:
                yield chunk

    held: list[int] = []

    async def fn(chunk: Chunk) -> None:
        await ticks(3)
        assert chunk.offset not in source.released
        held.append(source.held)

    await from_async_iter(chunks, 2).pipe(map_async(fn, 2))
    assert len(held) == 50
    assert source.held == 0


@pytest.mark.parametrize("at", ["on_next", "waiting for the iterator", "waiting for the consumer", "once made"])
async def test_a_dispose_closes_the_iterator(at: str) -> None:
    closed: list[str] = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 0
            if at == "waiting for the iterator":
                await asyncio.get_running_loop().create_future()
            yield 1
            yield 2
        finally:
            await ticks()
            closed.append("closed")

    source = from_async_iter(items, 1)
    if at == "on_next":
        assert await source.pipe(ops.take(1)) == 0
    elif at == "waiting for the iterator":
        subscription = source.subscribe()
        await ticks()
        subscription.dispose()
    elif at == "waiting for the consumer":
        subscription = source.pipe(map_async(lambda _: asyncio.get_running_loop().create_future())).subscribe()
        await ticks()
        subscription.dispose()
    else:
        source.subscribe().dispose()
        await ticks()
        assert closed == []
        return
    await eventually(lambda: closed == ["closed"])


async def test_a_dispose_by_the_iterator_itself() -> None:
    closed: list[str] = []
    stop = Subject[None]()

    async def items() -> AsyncIterator[int]:
        try:
            yield 0
            stop.on_next(None)
            await asyncio.get_running_loop().create_future()
        finally:
            await ticks()
            closed.append("closed")

    assert await from_async_iter(items).pipe(ops.take_until(stop)) == 0
    await eventually(lambda: closed)


async def test_a_dispose_from_another_thread() -> None:
    numbers = Numbers()
    subscription = from_async_iter(numbers).subscribe()
    await ticks()
    await asyncio.to_thread(subscription.dispose)
    await eventually(lambda: numbers.closed == 1)


async def test_an_iterator_that_goes_on_after_its_cancellation_is_closed_all_the_same() -> None:
    closed: list[str] = []
    got: list[int] = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 0
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                yield 1
        finally:
            closed.append("closed")

    subscription = from_async_iter(items).subscribe(got.append)
    await ticks()
    subscription.dispose()
    await eventually(lambda: closed)
    assert got == [0]


async def test_an_observer_that_raises_gets_its_error_and_the_iterator_is_closed() -> None:
    numbers, errors = Numbers(), list[Exception]()

    def consume(_: int) -> None:
        raise LOST

    from_async_iter(numbers).subscribe(consume, errors.append)
    await eventually(lambda: errors)
    assert errors == [LOST]
    assert numbers.closed == 1


async def test_what_closing_raises_after_a_dispose_is_reported_to_the_loop() -> None:
    async def items() -> AsyncIterator[int]:
        try:
            yield 0
        finally:
            raise LOST

    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    try:
        assert await from_async_iter(items).pipe(ops.take(1)) == 0
        await eventually(lambda: reported)
    finally:
        loop.set_exception_handler(before)
    assert reported[0]["exception"] is LOST


async def test_an_iterator_that_never_waits_does_not_keep_others_waiting() -> None:
    subscription = from_async_iter(Numbers()).subscribe()
    await ticks(10)
    subscription.dispose()


async def test_an_iterator_without_aclose() -> None:
    class Three:
        def __init__(self) -> None:
            self._next = 0

        def __aiter__(self) -> "Three":
            return self

        async def __anext__(self) -> int:
            self._next += 1
            if self._next > 3:
                raise StopAsyncIteration
            return self._next

    assert await from_async_iter(Three).pipe(ops.to_list()) == [1, 2, 3]


async def test_what_make_does_wrong_is_emitted() -> None:
    def broken() -> AsyncIterator[int]:
        raise LOST

    with pytest.raises(ConnectionLost):
        await from_async_iter(broken)
    with pytest.raises(TypeError, match="must return an asynchronous iterable, not list"):
        await from_async_iter(lambda: [1, 2])  # type: ignore[arg-type,return-value]  # pyright: ignore


async def test_the_demand_reaches_an_iterator_in_another_thread() -> None:
    numbers = Numbers(300)
    ready: asyncio.Future[asyncio.AbstractEventLoop] = asyncio.get_running_loop().create_future()
    here = asyncio.get_running_loop()

    async def run_there() -> None:
        here.call_soon_threadsafe(ready.set_result, asyncio.get_running_loop())
        await eventually(lambda: numbers.closed)

    thread = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(run_there())))
    there = await ready

    def subscribe(observer: abc.ObserverBase[int], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
        there.call_soon_threadsafe(lambda: from_async_iter(numbers, 4).subscribe(observer))
        return Disposable()

    taken = 0
    async with Observable(subscribe).pipe(ops.map(str), to_async_iter(1)) as items:
        async for _ in items:
            taken += 1
            await asyncio.sleep(0)
            assert numbers.produced - taken <= 4
    assert taken == 300
    await thread


async def test_there_and_back() -> None:
    there = from_async_iter(lambda: at_once(1, 2, 3).pipe(to_async_iter()))
    assert [item async for item in there.pipe(to_async_iter())] == [1, 2, 3]


def test_arguments_out_of_their_range() -> None:
    with pytest.raises(TypeError, match="a function that returns"):
        from_async_iter(Numbers(1)())  # type: ignore[arg-type]  # pyright: ignore
    with pytest.raises(ValueError, match="window"):
        from_async_iter(Numbers(1), 0)
