"""`progress_every`: what it emits, when it subscribes and disposes, and what it does with errors."""

import threading
from itertools import pairwise

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from reactivex import operators as ops
from reactivex.testing import ReactiveTest, Recorded, TestScheduler

from rx_client.events import Completed, Progress, Retrying, Started, TotalProgress
from rx_client.operators import progress_every
from shared.errors import ConnectionLost
from shared.protocol.wire import FileInfo

from .helpers import at_once

on_next, on_error, on_completed, subscribe = (
    ReactiveTest.on_next,
    ReactiveTest.on_error,
    ReactiveTest.on_completed,
    ReactiveTest.subscribe,
)
LOST = ConnectionLost("lost")
DONE = Completed(FileInfo(name="a", size=9))
STARTED = Started(None, 9, 0)
P = [Progress(done, 9) for done in range(10)]


def test_the_first_passes_then_the_latest_of_each_period() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(
        on_next(210, STARTED),
        on_next(220, P[1]),
        on_next(230, P[2]),
        on_next(240, P[3]),
        on_next(350, P[4]),
        on_next(500, P[5]),
        on_next(510, P[6]),
        on_completed(900),
    )
    results = scheduler.start(lambda: source.pipe(progress_every(100)))
    assert results.messages == [
        on_next(210, STARTED),
        on_next(220, P[1]),
        on_next(320, P[3]),
        on_next(420, P[4]),
        on_next(520, P[6]),
        on_completed(900),
    ]
    assert source.subscriptions == [subscribe(200, 900)]


def test_after_a_quiet_period_the_next_passes_at_once() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(on_next(210, P[1]), on_next(350, P[2]), on_next(360, P[3]))
    results = scheduler.start(lambda: source.pipe(progress_every(100)))
    assert results.messages == [on_next(210, P[1]), on_next(350, P[2]), on_next(450, P[3])]


@pytest.mark.parametrize("end", [on_completed(230), on_error(230, LOST)], ids=["completed", "error"])
def test_held_back_progress_comes_before_the_end(end: Recorded[object]) -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(on_next(210, P[1]), on_next(220, P[2]), end)
    results = scheduler.start(lambda: source.pipe(progress_every(100)))
    assert results.messages == [on_next(210, P[1]), on_next(230, P[2]), end]
    assert source.subscriptions == [subscribe(200, 230)]


def test_a_total_is_held_for_the_whole_period_whatever_comes() -> None:
    scheduler = TestScheduler()
    totals = [TotalProgress(done, 9) for done in range(4)]
    source = scheduler.create_hot_observable(
        on_next(210, totals[0]), on_next(220, totals[1]), on_next(230, DONE), on_next(240, totals[2]), on_completed(350)
    )
    results = scheduler.start(lambda: source.pipe(progress_every(100, scheduler=scheduler)))
    assert results.messages == [
        on_next(210, totals[0]),
        on_next(230, DONE),
        on_next(310, totals[2]),
        on_completed(350),
    ]


@pytest.mark.parametrize("event", [STARTED, Retrying(1, 2.0, LOST), DONE, "something else", None])
def test_held_back_progress_comes_before_any_other_item(event: object) -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(
        on_next(210, P[1]), on_next(220, P[2]), on_next(230, event), on_next(240, P[3])
    )
    results = scheduler.start(lambda: source.pipe(progress_every(100)))
    assert results.messages == [on_next(210, P[1]), on_next(230, P[2]), on_next(230, event), on_next(330, P[3])]


def test_a_dispose_drops_held_back_progress_and_its_timer() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(on_next(210, P[1]), on_next(220, P[2]))
    results = scheduler.start(lambda: source.pipe(progress_every(100)), disposed=250)
    assert results.messages == [on_next(210, P[1])]
    assert source.subscriptions == [subscribe(200, 250)]


@pytest.mark.parametrize("count", [1, 2])
def test_a_dispose_inside_on_next(count: int) -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(on_next(210, P[1]), on_next(220, P[2]), on_next(230, DONE))
    results = scheduler.start(lambda: source.pipe(progress_every(100), ops.take(count)))
    assert [message.value.kind for message in results.messages] == ["N"] * count + ["C"]
    assert source.subscriptions == [subscribe(200, 210 if count == 1 else 230)]


def test_a_source_that_emits_everything_inside_subscribe() -> None:
    scheduler = TestScheduler()
    results = scheduler.start(lambda: at_once(STARTED, *P, DONE).pipe(progress_every(100)))
    assert results.messages == [
        on_next(200, STARTED),
        on_next(200, P[0]),
        on_next(200, P[9]),
        on_next(200, DONE),
        on_completed(200),
    ]


def test_two_subscriptions_are_independent() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_next(10, P[1]), on_next(20, P[2]), on_completed(30))
    thinned = source.pipe(progress_every(100))
    results = scheduler.start(lambda: reactivex.merge(thinned, thinned))
    assert results.messages == [
        *[on_next(210, P[1])] * 2,
        *[on_next(230, P[2])] * 2,
        on_completed(230),
    ]


@pytest.mark.parametrize("at", ["the timer", "the flush before the end"])
def test_an_observer_that_raises_gets_its_own_error(at: str) -> None:
    scheduler = TestScheduler()
    end = on_completed(400 if at == "the timer" else 230)
    source = scheduler.create_hot_observable(on_next(210, P[1]), on_next(220, P[2]), end)
    calls: list[object] = []

    def raising(event: object) -> None:
        calls.append(event)
        if event is P[2]:
            raise ZeroDivisionError

    source.pipe(progress_every(100)).subscribe(raising, lambda error: calls.append(type(error)), scheduler=scheduler)
    scheduler.start()
    assert calls == [P[1], P[2], ZeroDivisionError]
    assert source.subscriptions == [subscribe(0, 310 if at == "the timer" else 230)]


PERIOD = 100
STEP = st.tuples(st.integers(1, 250), st.sampled_from(["progress"] * 5 + ["other"]))
OTHERS = (STARTED, Retrying(1, 2.0, LOST), DONE)


@given(
    # Without a minimum size the lists are short: five on average.
    steps=st.lists(STEP, max_size=3) | st.lists(STEP, min_size=15, max_size=40),
    end=st.sampled_from(["completed", "error", "none"]),
)
def test_never_drops_the_last_and_emits_one_a_period_at_most(steps: list[tuple[int, str]], end: str) -> None:
    scheduler = TestScheduler()
    time = 200
    messages: list[Recorded[object]] = []
    for number, (gap, kind) in enumerate(steps):
        time += gap
        messages.append(on_next(time, Progress(number, None) if kind == "progress" else OTHERS[number % 3]))
    time += 7
    ends = {"completed": [on_completed(time)], "error": [on_error(time, LOST)], "none": []}[end]

    source = scheduler.create_hot_observable(*messages, *ends)
    results = scheduler.start(lambda: source.pipe(progress_every(PERIOD)), disposed=time + 2 * PERIOD).messages

    def is_progress(message: Recorded[object]) -> bool:
        return isinstance(getattr(message.value, "value", None), Progress)

    source_messages = [*messages, *ends]
    others = [one for one in source_messages if not is_progress(one)]
    passed = [one for one in results if is_progress(one)]
    # Every other item is emitted at once, and the order is kept.
    assert [one for one in results if not is_progress(one)] == others
    values = [one.value for one in source_messages]
    assert [values.index(one.value) for one in passed] == sorted({values.index(one.value) for one in passed})
    # The last progress before another item, or before silence, is never dropped.
    for one, following in pairwise([*source_messages, None]):
        if is_progress(one) and not (following and is_progress(following)):
            assert one.value in [result.value for result in results]
            assert following is None or [r.value for r in results if r.time <= following.time].count(one.value) == 1
    # At most one progress a period, except those that another item flushed.
    for one, following in pairwise(passed):
        assert following.time - one.time >= PERIOD or following.time in {other.time for other in others}
    # No progress is reported later than after a period.
    for one in filter(is_progress, messages):
        emitted = [result.value.value for result in passed if one.time <= result.time <= one.time + PERIOD]
        assert any(progress.transferred >= one.value.value.transferred for progress in emitted)


async def test_the_running_loop_is_the_default_scheduler() -> None:
    threads: set[threading.Thread] = set()
    source = reactivex.concat(reactivex.of(P[1], P[2]), reactivex.never())
    thinned = source.pipe(
        progress_every(0.01), ops.do_action(lambda _: threads.add(threading.current_thread())), ops.take(2)
    )
    assert await thinned.pipe(ops.to_list()) == [P[1], P[2]]
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_periods_out_of_range(seconds: float) -> None:
    with pytest.raises(ValueError):
        progress_every(seconds)
