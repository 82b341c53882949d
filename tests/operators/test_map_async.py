"""`map_async`: what it emits, when it subscribes and disposes, and what it does with errors."""

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import reactivex
from hypothesis import given, settings
from hypothesis import strategies as st
from reactivex import Subject
from reactivex import operators as ops

from rx_client.chunks import Chunk
from rx_client.operators import map_async
from shared.errors import BackpressureOverflow, ConnectionLost, WrongLoop
from tests.support import eventually

from .helpers import ChunkSource, at_once, numbers, ticks

LOST = ConnectionLost("lost")


class Calls:
    """An asynchronous function whose calls end under the test's control."""

    def __init__(self) -> None:
        self.under_way: dict[Any, asyncio.Future[Any]] = {}
        self.begun: list[Any] = []
        self.cancelled: list[Any] = []
        self.most = 0

    async def __call__(self, item: Any) -> Any:
        key = item.offset if isinstance(item, Chunk) else item
        self.begun.append(key)
        future = self.under_way[key] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.under_way))
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        finally:
            del self.under_way[key]


class Recorder:
    """An observer that records its items and its end."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.ends: list[object] = []

    def on_next(self, item: Any) -> None:
        self.items.append(item)

    def on_error(self, error: Exception) -> None:
        self.ends.append(error)

    def on_completed(self) -> None:
        self.ends.append("completed")


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return number * 2


@pytest.mark.parametrize("concurrency", [1, 2, 100])
async def test_maps_in_order(concurrency: int) -> None:
    mapped = reactivex.from_iterable(range(50)).pipe(map_async(double, concurrency), ops.to_list())
    assert await mapped == list(range(0, 100, 2))


async def test_a_result_waits_for_earlier_ones_and_counts_as_a_call_meanwhile() -> None:
    calls, recorded, source = Calls(), Recorder(), Subject[str]()
    source.pipe(map_async(calls, 2)).subscribe(recorded)
    for item in "abc":
        source.on_next(item)
    await ticks()
    calls.under_way["b"].set_result("B")
    await ticks()
    assert recorded.items == []
    assert calls.begun == ["a", "b"]
    calls.under_way["a"].set_result("A")
    await ticks()
    assert recorded.items == ["A", "B"]
    assert calls.begun == ["a", "b", "c"]
    calls.under_way["c"].set_result("C")
    source.on_completed()
    assert recorded.ends == []
    await ticks()
    assert recorded.items == ["A", "B", "C"]
    assert recorded.ends == ["completed"]


async def test_an_empty_source() -> None:
    assert await reactivex.empty().pipe(map_async(double), ops.to_list()) == []


async def test_a_source_that_emits_everything_inside_subscribe() -> None:
    assert await at_once(1, 2, 3).pipe(map_async(double), ops.to_list()) == [2, 4, 6]


async def test_each_subscription_has_calls_of_its_own() -> None:
    mapped = at_once(1, 2).pipe(map_async(double))
    assert await mapped.pipe(ops.repeat(2), ops.to_list()) == [2, 4, 2, 4]


async def test_the_function_may_return_any_awaitable() -> None:
    assert await at_once("a", "b").pipe(map_async(reactivex.just), ops.to_list()) == ["a", "b"]


async def test_a_chunk_is_kept_until_its_result_was_emitted() -> None:
    source, calls, recorded = ChunkSource(window=3), Calls(), Recorder()
    released_before: list[list[int]] = []
    mapped = source.observable.pipe(
        map_async(calls, 2), ops.do_action(lambda _: released_before.append([*source.released]))
    )
    subscription = mapped.subscribe(recorded)
    await ticks()
    assert (source.produced, source.released) == (3, [])
    calls.under_way[1].set_result("one")
    await ticks()
    assert (source.produced, source.released) == (3, [])
    calls.under_way[0].set_result("zero")
    await ticks()
    assert recorded.items == ["zero", "one"]
    assert released_before == [[], [0]]
    assert (source.produced, source.released) == (5, [0, 1])
    subscription.dispose()
    await ticks()
    assert source.released == [0, 1, 2, 3, 4]


async def test_a_replaced_chunk_hands_its_credit_to_the_next_stage() -> None:
    source, calls, recorded = ChunkSource(window=4), Calls(), Recorder()

    async def shout(chunk: Chunk) -> Chunk:
        return chunk.replace(chunk.data + b"!")

    subscription = source.observable.pipe(map_async(shout, 4), map_async(calls)).subscribe(recorded)
    await ticks(10)
    assert (source.produced, source.released) == (4, [])
    calls.under_way[0].set_result("done")
    await ticks(10)
    assert source.produced == 5
    assert source.released == [0]
    subscription.dispose()
    await ticks()
    assert source.held == 0


async def test_the_sender_is_never_more_than_its_window_ahead() -> None:
    source = ChunkSource(window=8, total=200)
    handled = 0
    ahead: list[int] = []

    async def slow(chunk: Chunk) -> int:
        nonlocal handled
        await asyncio.sleep(0)
        handled += 1
        ahead.append(source.produced - handled)
        return chunk.offset

    assert await source.observable.pipe(map_async(slow), ops.to_list()) == list(range(200))
    assert max(ahead) <= 8
    assert source.released == list(range(200))


@pytest.mark.parametrize("how", ["at once", "later"])
async def test_an_error_of_the_function_cancels_the_other_calls(how: str) -> None:
    source, calls, recorded = ChunkSource(window=4), Calls(), Recorder()

    def fn(chunk: Chunk) -> Any:
        if how == "at once" and chunk.offset == 1:
            raise LOST
        return calls(chunk)

    source.observable.pipe(map_async(fn, 3)).subscribe(recorded)
    await ticks()
    if how == "later":
        calls.under_way[1].set_exception(LOST)
        await ticks()
    assert recorded.items == []
    assert recorded.ends == [LOST]
    assert source.is_disposed
    assert sorted(source.released) == [0, 1, 2, 3]
    assert calls.cancelled == [0, 2] if how == "later" else calls.cancelled in ([0], [0, 2])
    assert calls.under_way == {}


async def test_an_error_of_the_source_cancels_the_calls() -> None:
    calls, recorded, source = Calls(), Recorder(), Subject[str]()
    source.pipe(map_async(calls)).subscribe(recorded)
    source.on_next("a")
    source.on_next("b")
    await ticks()
    source.on_error(LOST)
    assert recorded.ends == [LOST]
    await ticks()
    assert calls.begun == calls.cancelled == ["a"]


async def test_a_dispose_cancels_the_calls_and_releases_everything_at_once() -> None:
    source, calls, recorded = ChunkSource(window=4), Calls(), Recorder()
    subscription = source.observable.pipe(map_async(calls, 2)).subscribe(recorded)
    await ticks()
    subscription.dispose()
    assert source.is_disposed
    assert sorted(source.released) == [0, 1, 2, 3]
    await ticks()
    assert calls.begun == calls.cancelled == [0, 1]
    assert (recorded.items, recorded.ends) == ([], [])


async def test_a_dispose_before_the_calls_begin() -> None:
    calls = Calls()
    at_once(1, 2, is_completed=False).pipe(map_async(calls, 2)).subscribe().dispose()
    await ticks()
    assert calls.begun == []


async def test_a_dispose_inside_on_next() -> None:
    source, recorded = ChunkSource(window=4), Recorder()
    source.observable.pipe(map_async(lambda chunk: double(chunk.offset), 3), ops.take(2)).subscribe(recorded)
    await eventually(lambda: recorded.ends)
    assert recorded.items == [0, 2]
    assert recorded.ends == ["completed"]
    assert source.is_disposed
    assert source.held == 0


async def test_a_source_that_completes_inside_on_next_while_others_wait() -> None:
    source, got, ends = Subject[int](), list[int](), list[str]()

    def on_next(number: int) -> None:
        got.append(number)
        source.on_completed()

    source.pipe(map_async(double)).subscribe(on_next, on_completed=lambda: ends.append("completed"))
    for number in range(3):
        source.on_next(number)
    await eventually(lambda: ends)
    assert got == [0, 2, 4]


async def test_a_dispose_inside_the_function() -> None:
    source, recorded = ChunkSource(window=4), Recorder()

    async def fn(chunk: Chunk) -> None:
        subscription.dispose()

    subscription = source.observable.pipe(map_async(fn, 2)).subscribe(recorded)
    await ticks()
    assert (recorded.items, recorded.ends) == ([], [])
    assert source.held == 0


async def test_a_dispose_from_another_thread() -> None:
    source, calls = ChunkSource(window=2), Calls()
    subscription = source.observable.pipe(map_async(calls)).subscribe()
    await ticks()
    thread = threading.Thread(target=subscription.dispose)
    thread.start()
    await eventually(lambda: calls.cancelled == [0])
    thread.join()
    assert source.held == 0


async def test_an_error_of_a_cancelled_call_is_dropped() -> None:
    calls = Calls()

    async def fn(item: str) -> None:
        try:
            await calls(item)
        finally:
            raise ZeroDivisionError

    subscription = at_once("a", is_completed=False).pipe(map_async(fn)).subscribe()
    await ticks()
    subscription.dispose()
    await ticks()
    # The suite's fixture fails if asyncio reports an exception that was never retrieved.
    assert calls.cancelled == ["a"]


async def test_a_call_cancelled_from_outside_is_an_error_and_not_a_hang() -> None:
    calls, recorded = Calls(), Recorder()
    at_once("a").pipe(map_async(calls)).subscribe(recorded)
    await ticks()
    calls.under_way["a"].cancel()
    await ticks()
    assert [type(end) for end in recorded.ends] == [RuntimeError]


async def test_a_call_cancelled_in_the_iteration_in_which_another_returns() -> None:
    calls, recorded = Calls(), Recorder()
    at_once("a", "b").pipe(map_async(calls, 2)).subscribe(recorded)
    await ticks()
    calls.under_way["a"].set_result("A")
    calls.under_way["b"].cancel()
    await ticks()
    assert recorded.items == ["A"]
    assert [type(end) for end in recorded.ends] == [RuntimeError]


async def test_an_observer_that_raises_gets_its_own_error() -> None:
    source, errors = ChunkSource(window=4), list[Exception]()

    def raising(_: int) -> None:
        raise ZeroDivisionError

    source.observable.pipe(map_async(lambda chunk: double(chunk.offset), 2)).subscribe(raising, errors.append)
    await eventually(lambda: errors)
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert source.is_disposed
    assert source.held == 0


async def test_items_without_credit_overflow() -> None:
    calls, recorded, source = Calls(), Recorder(), Subject[int]()
    source.pipe(map_async(calls, 2, max_pending=3)).subscribe(recorded)
    for number in range(5):
        source.on_next(number)
    await ticks()
    assert recorded.ends == []
    source.on_next(5)
    assert [type(end) for end in recorded.ends] == [BackpressureOverflow]
    assert source.observers == []
    await ticks()
    assert calls.cancelled == [0, 1]


async def test_an_overflow_while_the_source_is_subscribed_to() -> None:
    with pytest.raises(BackpressureOverflow):
        await at_once(*range(100)).pipe(map_async(double, max_pending=10))


async def test_chunks_after_the_end_are_not_retained() -> None:
    released: list[str] = []
    chunk = Chunk(0, b"late", lambda: released.append("late"))
    recorded = Recorder()
    at_once(1, 2, chunk).pipe(map_async(asyncio.sleep, max_pending=0)).subscribe(recorded)
    chunk.release()
    assert [type(end) for end in recorded.ends] == [BackpressureOverflow]
    assert released == ["late"]


async def test_max_pending_does_not_limit_chunks() -> None:
    source = ChunkSource(window=20, total=50)
    mapped = source.observable.pipe(map_async(lambda chunk: double(chunk.offset), max_pending=0))
    assert await mapped.pipe(ops.count()) == 50


@pytest.mark.parametrize("arguments", [{"concurrency": 0}, {"max_pending": -1}])
def test_arguments_out_of_range(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        map_async(double, **arguments)


def test_without_a_loop_it_is_an_error() -> None:
    recorded = Recorder()
    at_once(1).pipe(map_async(double)).subscribe(recorded)
    assert [type(end) for end in recorded.ends] == [WrongLoop]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks() -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        source, again = Subject[int](), list[int]()

        async def fn(number: int) -> int:
            if number == 0:
                source.on_next(1)
            return number * 10

        source.pipe(map_async(fn, 2)).subscribe(again.append)
        source.on_next(0)
        await ticks()
        assert again == [0, 10]

        chunks = ChunkSource(window=3)

        async def disposing(_: Chunk) -> None:
            subscription.dispose()
            await asyncio.get_running_loop().create_future()

        subscription = chunks.observable.pipe(map_async(disposing, 2)).subscribe()
        await ticks()
        assert chunks.held == 0
    finally:
        loop.set_task_factory(None)


class Interleaving:
    """A subscription to `map_async` and everything that may happen to it; checks its invariants.

    Args:
        concurrency: Of the operator.
        retains: Whether the observer retains its chunks.
        at: Number of a chunk -> what the observer does when it gets that chunk.
    """

    def __init__(self, concurrency: int, *, retains: bool, at: dict[int, str]) -> None:
        self.calls = Calls()
        self.released: list[int] = []
        self.emitted = 0
        self._is_source_done = False
        self._expected = 0
        self._has_raised = False
        self.recorded: list[Chunk] = []
        self.ends: list[object] = []
        self.is_disposed = False
        self._concurrency = concurrency
        self._retains = retains
        self._at = at
        self._retained: list[Chunk] = []
        self._source = Subject[Chunk]()
        self._subscription = self._source.pipe(map_async(self._fn, concurrency)).subscribe(
            self._on_next, self.ends.append, self._on_completed
        )

    async def _fn(self, chunk: Chunk) -> Chunk:
        await self.calls(chunk)
        return chunk.replace(b"other bytes")

    def _on_next(self, chunk: Chunk) -> None:
        assert not self.is_disposed
        assert not self.ends
        assert chunk.offset not in self.released, "its credit is held while it's emitted"
        self.recorded.append(chunk)
        if self._retains:
            chunk.retain()
            self._retained.append(chunk)
        match self._at.get(chunk.offset):
            case "raise":
                self._has_raised = True
                raise ZeroDivisionError
            case str(name):
                getattr(self, name)(0)
            case None:
                pass

    def _on_completed(self) -> None:
        assert len(self.recorded) == self._expected, "every item's result was emitted before"
        self.ends.append("completed")

    def check(self) -> None:
        assert self.calls.most <= self._concurrency
        assert numbers(self.recorded) == list(range(len(self.recorded))), "order is kept"
        assert len(self.released) == len(set(self.released)), "no credit goes back twice"
        assert len(self.ends) <= 1

    # The steps; `index` picks a call.

    def emit(self, _: int) -> None:
        number = self.emitted
        self.emitted += 1
        self._expected += not self._is_source_done
        chunk = Chunk(number, b"bytes", lambda: self.released.append(number))
        self._source.on_next(chunk)
        chunk.release()

    def call_returns(self, index: int) -> None:
        if future := self._under_way(index):
            future.set_result(None)

    def call_raises(self, index: int) -> None:
        if future := self._under_way(index):
            future.set_exception(LOST)

    def call_is_cancelled(self, index: int) -> None:
        if future := self._under_way(index):
            future.cancel()

    def complete(self, _: int) -> None:
        self._is_source_done = True
        self._source.on_completed()

    def fail(self, _: int) -> None:
        self._source.on_error(LOST)

    def dispose(self, _: int) -> None:
        self.is_disposed = True
        self._subscription.dispose()

    def downstream_is_done(self, _: int) -> None:
        if self._retained:
            self._retained.pop(0).release()

    def _under_way(self, index: int) -> "asyncio.Future[Any] | None":
        futures = [future for future in self.calls.under_way.values() if not future.done()]
        return futures[index % len(futures)] if futures else None

    async def finish(self) -> None:
        """Ends everything, and checks that all credit has gone back."""
        await ticks()
        if self.ends or self.is_disposed:
            assert not self.calls.under_way, "the calls are cancelled"
            assert not self._source.observers, "the source is disposed of"
        while self.calls.under_way:
            self.call_returns(0)
            await ticks()
        if not self.is_disposed:
            self.complete(0)
            assert len(self.ends) == 1, "it does end"
            assert isinstance(self.ends[0], ZeroDivisionError) == self._has_raised
        while self._retained:
            self.downstream_is_done(0)
        self.check()
        assert sorted(self.released) == list(range(self.emitted)), "all credit went back"


# Ordinary steps and ends, drawn separately, so that most runs have many steps before their end.
GOING_ON = ["emit", "emit", "call_returns", "call_returns", "ticks", "ticks", "downstream_is_done"]
ENDS = ["call_raises", "call_is_cancelled", "complete", "fail", "dispose"]


@settings(max_examples=200, deadline=None)
@given(
    # Without a minimum size the lists are short: five on average.
    steps=st.lists(st.tuples(st.sampled_from(GOING_ON), st.integers(0, 4)), min_size=20, max_size=60),
    ends=st.dictionaries(st.integers(0, 40), st.tuples(st.sampled_from(ENDS), st.integers(0, 4)), max_size=2),
    concurrency=st.integers(1, 4),
    retains=st.booleans(),
    at=st.dictionaries(
        st.integers(0, 5), st.sampled_from(["emit", "raise", "complete", "fail", "dispose"]), max_size=2
    ),
)
async def test_any_interleaving(
    steps: list[tuple[str, int]], ends: dict[int, tuple[str, int]], concurrency: int, retains: bool, at: dict[int, str]
) -> None:
    run = Interleaving(concurrency, retains=retains, at=at)
    for position in sorted(ends, reverse=True):
        steps.insert(position, ends[position])
    for name, index in steps:
        if name == "ticks":
            await ticks(index)
        else:
            getattr(run, name)(index)
        run.check()
    await run.finish()


async def test_the_result_type_is_that_of_the_function() -> None:
    length: Callable[[reactivex.Observable[bytes]], reactivex.Observable[int]] = map_async(length_of)
    assert await reactivex.just(b"four").pipe(length) == 4


async def length_of(data: bytes) -> int:
    return len(data)
