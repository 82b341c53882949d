"""`retry_backoff`: what it emits, when it subscribes and disposes, and what it does with errors."""

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import reactivex
from hypothesis import given
from hypothesis import strategies as st
from reactivex import Observable
from reactivex import operators as ops
from reactivex.testing import ReactiveTest, TestScheduler

from rx_client import is_transient
from rx_client.events import Completed, Progress, Retrying, Started
from rx_client.operators import progress_every, retry_backoff, stall_timeout
from shared.errors import ClientClosed, ConnectionLost, DeadlineExceeded, NotFound, Stalled, WrongLoop
from shared.protocol.wire import FileInfo

from .helpers import at_once, one_after_the_other, transfer

on_next, on_error, on_completed, subscribe = (
    ReactiveTest.on_next,
    ReactiveTest.on_error,
    ReactiveTest.on_completed,
    ReactiveTest.subscribe,
)
Operator = Callable[[Observable[Any]], Observable[Any]]
LOST = ConnectionLost("lost")
DONE = Completed(FileInfo(name="a", size=9))


def test_waits_longer_each_time_then_passes_the_last_error_on_unchanged() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_next(5, "item"), on_error(10, LOST))

    results = scheduler.start(lambda: source.pipe(retry_backoff(4, base=10, cap=35, jitter=0)))

    items = [on_next(time, "item") for time in (205, 225, 255, 300, 345)]
    assert results.messages == [*items, on_error(350, LOST)]
    assert results.messages[-1].value.exception is LOST
    assert source.subscriptions == [
        subscribe(200, 210),
        subscribe(220, 230),
        subscribe(250, 260),
        subscribe(295, 305),
        subscribe(340, 350),
    ]


def test_completes_with_the_source() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_next(5, "item"), on_completed(10))
    results = scheduler.start(lambda: source.pipe(retry_backoff()))
    assert results.messages == [on_next(205, "item"), on_completed(210)]
    assert source.subscriptions == [subscribe(200, 210)]


@pytest.mark.parametrize("error", [NotFound("no"), ClientClosed("closed"), ValueError("ours")])
def test_a_permanent_error_is_passed_on_at_once(error: Exception) -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_error(10, error))
    results = scheduler.start(lambda: source.pipe(retry_backoff()))
    assert results.messages == [on_error(210, error)]
    assert source.subscriptions == [subscribe(200, 210)]


@pytest.mark.parametrize("times_out", [ops.timeout(50), ops.timeout_with_mapper(reactivex.timer(50))])
def test_an_attempt_that_takes_too_long_for_rxpy_is_retried(times_out: Operator) -> None:
    scheduler = TestScheduler()
    attempts = [
        scheduler.create_cold_observable(),
        scheduler.create_cold_observable(on_next(5, "item"), on_completed(10)),
    ]
    results = scheduler.start(lambda: one_after_the_other(*attempts).pipe(times_out, retry_backoff(base=10, jitter=0)))
    assert results.messages == [on_next(265, "item"), on_completed(270)]
    assert [attempt.subscriptions for attempt in attempts] == [[subscribe(200, 250)], [subscribe(260, 270)]]


def test_what_only_looks_like_the_timeout_of_rxpy_is_passed_on() -> None:
    class OfTheApps(Exception):
        pass

    assert is_transient(LOST)
    for error in (
        OfTheApps("Timeout"),
        Exception("Timeout of mine"),
        Exception(),
        TimeoutError(),
        DeadlineExceeded(""),
    ):
        assert not is_transient(error)


def test_when_decides() -> None:
    scheduler = TestScheduler()
    first, second = ValueError("may pass"), KeyError("may not")
    attempts = [scheduler.create_cold_observable(on_error(10, error)) for error in (first, second)]
    may_pass = retry_backoff(base=10, jitter=0, when=lambda error: error is first)
    results = scheduler.start(lambda: one_after_the_other(*attempts).pipe(may_pass))
    assert results.messages == [on_error(230, second)]


def test_a_transfer_emits_retrying_before_each_wait() -> None:
    scheduler = TestScheduler()
    refused, lost = ConnectionLost("refused"), ConnectionLost("lost")
    attempts = [
        scheduler.create_cold_observable(on_error(10, refused)),
        scheduler.create_cold_observable(on_next(5, Started("id", 9, 0)), on_error(10, lost)),
        scheduler.create_cold_observable(on_next(5, Started("id", 9, 0)), on_next(8, DONE), on_completed(9)),
    ]
    retried = transfer(one_after_the_other(*attempts)).pipe(retry_backoff(base=10, jitter=0))

    results = scheduler.start(lambda: retried)

    assert results.messages == [
        on_next(210, Retrying(1, 10, refused)),
        on_next(225, Started("id", 9, 0)),
        on_next(230, Retrying(2, 20, lost)),
        on_next(255, Started("id", 9, 0)),
        on_next(258, DONE),
        on_completed(259),
    ]


@pytest.mark.parametrize("operator", [progress_every(1), stall_timeout(100), retry_backoff(0)])
def test_a_transfer_is_recognized_behind_the_other_operators(operator: object) -> None:
    scheduler = TestScheduler()
    source = transfer(scheduler.create_cold_observable(on_error(10, LOST)))
    results = scheduler.start(lambda: source.pipe(operator, retry_backoff(1, base=10, jitter=0)))
    assert results.messages == [on_next(210, Retrying(1, 10, LOST)), on_error(230, LOST)]


def test_a_plain_source_that_emitted_a_transfer_event_is_a_transfer() -> None:
    scheduler = TestScheduler()
    attempts = [
        scheduler.create_cold_observable(on_next(5, Started(None, 9, 0)), on_error(10, LOST)),
        scheduler.create_cold_observable(on_error(10, LOST)),
    ]
    results = scheduler.start(lambda: one_after_the_other(*attempts).pipe(retry_backoff(1, base=10, jitter=0)))
    assert results.messages == [
        on_next(205, Started(None, 9, 0)),
        on_next(210, Retrying(1, 10, LOST)),
        on_error(230, LOST),
    ]


def test_the_count_starts_again_after_an_attempt_that_got_further() -> None:
    scheduler = TestScheduler()
    further = [(Progress(done, 9),) for done in (1, 2, 3)]
    after_a_lost_receipt = (Started("id", 9, 4),)
    no_further = (Started("id", 9, 4), Progress(4, 9))
    started_over = (Started("id", 9, 0), Progress(1, 9))
    attempts = [
        scheduler.create_cold_observable(*(on_next(1, event) for event in events), on_error(10, LOST))
        for events in (*further, after_a_lost_receipt, no_further, started_over, further[0])
    ]

    retried = one_after_the_other(*attempts).pipe(retry_backoff(2, base=10, jitter=0))
    results = scheduler.start(lambda: retried, disposed=2000)

    events = [message.value for message in results.messages]
    numbers = [event.value.attempt for event in events if isinstance(getattr(event, "value", None), Retrying)]
    assert numbers == [1, 1, 1, 1, 2]
    assert events[-1].exception is LOST
    assert [len(attempt.subscriptions) for attempt in attempts] == [1, 1, 1, 1, 1, 1, 0]


def test_items_of_other_sources_do_not_start_the_count_again() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_next(1, 1), on_next(2, 2), on_error(10, LOST))
    scheduler.start(lambda: source.pipe(retry_backoff(3, base=1, jitter=0)))
    assert len(source.subscriptions) == 4


def test_each_subscription_has_a_count_of_its_own() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_error(10, LOST))
    retried = source.pipe(retry_backoff(1, base=10, jitter=0))
    results = scheduler.start(lambda: retried.pipe(ops.catch(lambda _, __: retried)))
    assert results.messages == [on_error(260, LOST)]
    assert len(source.subscriptions) == 4


def test_a_dispose_ends_the_wait() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_error(10, LOST))
    results = scheduler.start(lambda: source.pipe(retry_backoff(base=10, jitter=0)), disposed=215)
    assert results.messages == []
    assert source.subscriptions == [subscribe(200, 210)]


def test_a_dispose_ends_the_attempt() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_error(10, LOST))
    scheduler.start(lambda: source.pipe(retry_backoff(base=10, jitter=0)), disposed=225)
    assert source.subscriptions == [subscribe(200, 210), subscribe(220, 225)]


def test_a_dispose_inside_retrying_ends_it() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_error(10, LOST))
    results = scheduler.start(lambda: transfer(source).pipe(retry_backoff(base=10, jitter=0), ops.take(1)))
    assert results.messages == [on_next(210, Retrying(1, 10, LOST)), on_completed(210)]
    assert source.subscriptions == [subscribe(200, 210)]


def test_a_source_that_fails_inside_subscribe() -> None:
    scheduler = TestScheduler()
    attempts = [at_once("item", error=LOST), at_once("item", error=LOST), at_once("last")]
    results = scheduler.start(lambda: one_after_the_other(*attempts).pipe(retry_backoff(base=10, jitter=0)))
    assert results.messages == [
        on_next(200, "item"),
        on_next(210, "item"),
        on_next(230, "last"),
        on_completed(230),
    ]


@pytest.mark.parametrize("where", ["when", "random"])
def test_errors_of_the_callers_functions_are_passed_on(where: str) -> None:
    def broken(*_: object) -> float:
        raise ZeroDivisionError("broken")

    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_error(10, LOST))
    results = scheduler.start(lambda: source.pipe(retry_backoff(**{where: broken})))
    assert len(results.messages) == 1
    assert isinstance(results.messages[0].value.exception, ZeroDivisionError)


def test_an_observer_that_raises_on_retrying_gets_its_own_error() -> None:
    scheduler = TestScheduler()
    source = transfer(scheduler.create_cold_observable(on_error(10, LOST)))
    errors: list[Exception] = []

    def raising(event: object) -> None:
        raise ZeroDivisionError(event)

    source.pipe(retry_backoff(base=10)).subscribe(raising, errors.append, scheduler=scheduler)
    scheduler.start()
    assert [type(error) for error in errors] == [ZeroDivisionError]


@given(
    attempts=st.integers(1, 12),
    base=st.floats(0, 1e3),
    cap=st.floats(0, 1e3),
    jitter=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_every_delay_is_within_its_bounds(attempts: int, base: float, cap: float, jitter: float, seed: int) -> None:
    scheduler = TestScheduler()
    delays: list[float] = []
    retried = transfer(at_once(error=LOST)).pipe(
        retry_backoff(attempts, base=base, cap=cap, jitter=jitter, random=random.Random(seed).random)
    )
    retried.subscribe(lambda event: delays.append(event.delay), lambda _: None, scheduler=scheduler)
    scheduler.start()
    assert len(delays) == attempts
    for n, delay in enumerate(delays, 1):
        longest = min(cap, base * 2 ** (n - 1))
        assert longest * (1 - jitter) <= delay <= longest


def test_the_jitter_is_the_whole_delay_by_default() -> None:
    def delay_with(drawn: float) -> float:
        events: list[Retrying] = []
        retried = transfer(at_once(error=LOST)).pipe(retry_backoff(1, base=8, random=lambda: drawn))
        scheduler = TestScheduler()
        retried.subscribe(events.append, lambda _: None, scheduler=scheduler)
        scheduler.start()
        return events[0].delay

    assert [delay_with(drawn) for drawn in (0.0, 0.25, 1.0)] == [8.0, 6.0, 0.0]


def test_thousands_of_failures_in_a_row_do_not_overflow_a_float() -> None:
    scheduler = TestScheduler()
    source = at_once(error=LOST)
    results = scheduler.start(
        lambda: source.pipe(retry_backoff(3000, base=0.001, cap=0.01, random=lambda: 0)), disposed=9e9
    )
    assert [message.value.exception for message in results.messages] == [LOST]


@pytest.mark.parametrize(
    "arguments", [{"attempts": -1}, {"base": -1}, {"cap": -0.1}, {"jitter": 1.1}, {"jitter": float("nan")}]
)
def test_arguments_out_of_range(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        retry_backoff(**arguments)


async def test_the_running_loop_is_the_default_scheduler() -> None:
    threads: set[threading.Thread] = set()
    attempts = [at_once(error=LOST), at_once("item")]
    retried = one_after_the_other(*attempts).pipe(
        retry_backoff(base=0.001), ops.do_action(lambda _: threads.add(threading.current_thread()))
    )
    assert await retried == "item"
    assert threads == {threading.current_thread()}


async def test_the_operators_scheduler_has_precedence_over_the_subscriptions() -> None:
    scheduler = TestScheduler()
    items: list[str] = []
    attempts = [at_once(error=LOST), at_once("item")]
    one_after_the_other(*attempts).pipe(retry_backoff(base=10, scheduler=scheduler)).subscribe(items.append)
    assert items == []
    scheduler.start()
    assert items == ["item"]


def test_without_any_scheduler_it_is_an_error_and_not_a_thread() -> None:
    errors: list[Exception] = []
    reactivex.never().pipe(retry_backoff()).subscribe(on_error=errors.append)
    assert [type(error) for error in errors] == [WrongLoop]


def test_after_a_stall_the_next_attempt_begins_when_the_last_has_ended() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_cold_observable(on_next(5, Started(None, 9, 0)))
    results = scheduler.start(
        lambda: transfer(source).pipe(stall_timeout(50), retry_backoff(1, base=10, jitter=0)), disposed=900
    )
    assert source.subscriptions == [subscribe(200, 255), subscribe(265, 320)]
    assert isinstance(results.messages[-1].value.exception, Stalled)
