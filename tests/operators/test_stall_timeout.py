"""`stall_timeout`: what it emits, when it subscribes and disposes, and what it does with errors."""

import threading
from typing import Any

import pytest
import reactivex
from reactivex import abc
from reactivex import operators as ops
from reactivex.testing import ReactiveTest, Recorded, TestScheduler

from rx_client.events import Completed, Progress, Retrying, Started
from rx_client.operators import stall_timeout
from shared.errors import ConnectionLost, Stalled
from shared.protocol.wire import FileInfo

from .helpers import at_once

on_next, on_error, on_completed, subscribe = (
    ReactiveTest.on_next,
    ReactiveTest.on_error,
    ReactiveTest.on_completed,
    ReactiveTest.subscribe,
)
LOST = ConnectionLost("lost")


def on_stalled(time: int) -> Recorded[object]:
    return on_error(time, Stalled("no progress for 100 s"))


def test_a_source_without_items() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable()
    results = scheduler.start(lambda: source.pipe(stall_timeout(100)))
    assert results.messages == [on_stalled(300)]
    assert isinstance(results.messages[0].value.exception, Stalled)
    assert source.subscriptions == [subscribe(200, 300)]


def test_any_item_that_is_no_event_starts_the_time_again() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(on_next(290, "a"), on_next(380, "a"), on_next(500, "too late"))
    results = scheduler.start(lambda: source.pipe(stall_timeout(100)))
    assert results.messages == [on_next(290, "a"), on_next(380, "a"), on_stalled(480)]
    assert source.subscriptions == [subscribe(200, 480)]


def test_progress_counts_only_when_it_is_more() -> None:
    scheduler = TestScheduler()
    items = [
        on_next(250, Started("id", 9, 2)),
        on_next(300, Progress(2, 9)),
        on_next(340, Progress(3, 9)),
        on_next(360, Progress(3, 9)),
        on_next(400, Progress(1, 9)),
    ]
    source = scheduler.create_hot_observable(*items, on_next(445, Progress(4, 9)))
    results = scheduler.start(lambda: source.pipe(stall_timeout(100)))
    assert results.messages == [*items, on_stalled(440)]
    assert source.subscriptions == [subscribe(200, 440)]


def test_the_count_may_go_back_with_started() -> None:
    scheduler = TestScheduler()
    items = [
        on_next(250, Progress(5, 9)),
        on_next(300, Started("id", 9, 0)),
        on_next(390, Progress(1, 9)),
        on_next(480, Completed(FileInfo(name="a", size=9))),
    ]
    source = scheduler.create_hot_observable(*items, on_completed(570))
    results = scheduler.start(lambda: source.pipe(stall_timeout(100)))
    assert results.messages == [*items, on_completed(570)]
    assert source.subscriptions == [subscribe(200, 570)]


def test_an_announced_delay_is_no_stall() -> None:
    scheduler = TestScheduler()
    retrying = on_next(250, Retrying(1, 300.0, LOST))
    source = scheduler.create_hot_observable(retrying)
    results = scheduler.start(lambda: source.pipe(stall_timeout(100)))
    assert results.messages == [retrying, on_stalled(650)]


class CountingScheduler(TestScheduler):
    """Counts the timers that ran because they weren't disposed of."""

    timers_run = 0

    def schedule_relative(self, duetime: Any, action: abc.ScheduledAction[Any], state: Any = None) -> Any:
        def counted(scheduler: abc.SchedulerBase, state: Any = None) -> Any:
            self.timers_run += 1
            return action(scheduler, state)

        return super().schedule_relative(duetime, counted, state)


@pytest.mark.parametrize("end", [on_completed(250), on_error(250, LOST)], ids=["completed", "error"])
def test_an_end_in_time_stops_the_timer(end: Recorded[object]) -> None:
    scheduler = CountingScheduler()
    source = scheduler.create_hot_observable(end)
    results = scheduler.start(lambda: source.pipe(stall_timeout(100)))
    assert results.messages == [end]
    assert source.subscriptions == [subscribe(200, 250)]
    assert scheduler.timers_run == 0


def test_a_dispose_stops_the_timer() -> None:
    scheduler = CountingScheduler()
    source = scheduler.create_hot_observable()
    results = scheduler.start(lambda: source.pipe(stall_timeout(100)), disposed=250)
    assert results.messages == []
    assert source.subscriptions == [subscribe(200, 250)]
    assert scheduler.timers_run == 0


def test_a_dispose_inside_on_next() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(on_next(210, 1))
    results = scheduler.start(lambda: source.pipe(stall_timeout(100), ops.take(1)))
    assert results.messages == [on_next(210, 1), on_completed(210)]
    assert source.subscriptions == [subscribe(200, 210)]


def test_the_source_is_disposed_of_before_the_error_is_emitted() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable()
    seen: list[object] = []
    source.pipe(stall_timeout(100)).subscribe(on_error=lambda _: seen.extend(source.subscriptions), scheduler=scheduler)
    scheduler.start()
    assert seen == [subscribe(0, 100)]


@pytest.mark.parametrize("source", [at_once(1), at_once(1, error=LOST), at_once(1, is_completed=False)])
def test_a_source_that_emits_everything_inside_subscribe(source: reactivex.Observable[int]) -> None:
    scheduler = TestScheduler()
    results = scheduler.start(lambda: source.pipe(stall_timeout(100)))
    times = [(message.time, message.value.kind) for message in results.messages]
    assert times in ([(200, "N"), (200, "C")], [(200, "N"), (200, "E")], [(200, "N"), (300, "E")])
    assert len(times) == 2


def test_each_subscription_has_a_timer_of_its_own() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_next(50, "a"))
    limited = source.pipe(stall_timeout(100))
    results = scheduler.start(lambda: limited.pipe(ops.catch(lambda _, __: limited)))
    assert results.messages == [on_next(250, "a"), on_next(400, "a"), on_stalled(500)]
    assert source.subscriptions == [subscribe(200, 350), subscribe(350, 500)]


async def test_the_running_loop_is_the_default_scheduler() -> None:
    threads: set[threading.Thread] = set()

    def handler(error: Exception, _: object) -> reactivex.Observable[str]:
        threads.add(threading.current_thread())
        return reactivex.just(str(error))

    assert await reactivex.never().pipe(stall_timeout(0.01), ops.catch(handler)) == "no progress for 0.01 s"
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_times_out_of_range(seconds: float) -> None:
    with pytest.raises(ValueError):
        stall_timeout(seconds)
