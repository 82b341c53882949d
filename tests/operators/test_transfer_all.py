"""`transfer_all`: what it emits, when it subscribes and disposes, and what it does with errors."""

import pytest
import reactivex
from reactivex import Observable
from reactivex import operators as ops
from reactivex.testing import ReactiveTest, TestScheduler

from rx_client.operators import transfer_all
from shared.errors import ConnectionLost

from .helpers import at_once

on_next, on_error, on_completed, subscribe = (
    ReactiveTest.on_next,
    ReactiveTest.on_error,
    ReactiveTest.on_completed,
    ReactiveTest.subscribe,
)
LOST = ConnectionLost("lost")


def test_a_few_at_a_time_in_order_of_arrival() -> None:
    scheduler = TestScheduler()
    a = scheduler.create_cold_observable(on_next(10, "a1"), on_next(60, "a2"), on_completed(100))
    b = scheduler.create_cold_observable(on_next(10, "b1"), on_completed(50))
    c = scheduler.create_cold_observable(on_next(10, "c1"), on_completed(50))
    d = scheduler.create_cold_observable(on_completed(200))
    source = scheduler.create_hot_observable(
        on_next(210, a), on_next(220, b), on_next(230, c), on_next(240, d), on_completed(250)
    )

    results = scheduler.start(lambda: source.pipe(transfer_all(2)))

    assert results.messages == [
        on_next(220, "a1"),
        on_next(230, "b1"),
        on_next(270, "a2"),
        on_next(280, "c1"),
        on_completed(510),
    ]
    assert source.subscriptions == [subscribe(200, 250)]
    assert a.subscriptions == [subscribe(210, 310)]
    assert b.subscriptions == [subscribe(220, 270)]
    assert c.subscriptions == [subscribe(270, 320)]
    assert d.subscriptions == [subscribe(310, 510)]


def test_completes_with_the_source_when_all_transfers_were_done_before() -> None:
    scheduler = TestScheduler()
    a = scheduler.create_cold_observable(on_completed(10))
    source = scheduler.create_hot_observable(on_next(210, a), on_completed(300))
    assert scheduler.start(lambda: source.pipe(transfer_all(2))).messages == [on_completed(300)]


def test_no_transfers_at_all() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(on_completed(300))
    assert scheduler.start(lambda: source.pipe(transfer_all(1))).messages == [on_completed(300)]


def test_the_first_error_disposes_of_the_others_and_no_other_starts() -> None:
    scheduler = TestScheduler()
    a = scheduler.create_cold_observable(on_next(10, "a1"), on_completed(500))
    b = scheduler.create_cold_observable(on_error(40, LOST))
    c = scheduler.create_cold_observable(on_next(10, "c1"))
    source = scheduler.create_hot_observable(on_next(210, a), on_next(220, b), on_next(230, c), on_next(300, c))

    results = scheduler.start(lambda: source.pipe(transfer_all(2)))

    assert results.messages == [on_next(220, "a1"), on_error(260, LOST)]
    assert source.subscriptions == [subscribe(200, 260)]
    assert a.subscriptions == [subscribe(210, 260)]
    assert b.subscriptions == [subscribe(220, 260)]
    assert c.subscriptions == []


def test_an_error_of_the_source_disposes_of_the_transfers() -> None:
    scheduler = TestScheduler()
    a = scheduler.create_cold_observable(on_completed(500))
    source = scheduler.create_hot_observable(on_next(210, a), on_next(220, a), on_error(260, LOST))
    results = scheduler.start(lambda: source.pipe(transfer_all(1)))
    assert results.messages == [on_error(260, LOST)]
    assert a.subscriptions == [subscribe(210, 260)]


def test_a_dispose_reaches_the_source_and_all_transfers() -> None:
    scheduler = TestScheduler()
    a = scheduler.create_cold_observable(on_completed(500))
    source = scheduler.create_hot_observable(on_next(210, a), on_next(220, a), on_next(230, a))
    results = scheduler.start(lambda: source.pipe(transfer_all(2)), disposed=300)
    assert results.messages == []
    assert source.subscriptions == [subscribe(200, 300)]
    assert a.subscriptions == [subscribe(210, 300), subscribe(220, 300)]


def test_a_dispose_inside_on_next() -> None:
    scheduler = TestScheduler()
    a = scheduler.create_cold_observable(on_next(10, "a1"), on_next(10, "a2"))
    source = scheduler.create_hot_observable(on_next(210, a), on_next(211, a))
    results = scheduler.start(lambda: source.pipe(transfer_all(1), ops.take(1)))
    assert results.messages == [on_next(220, "a1"), on_completed(220)]
    assert source.subscriptions == [subscribe(200, 220)]
    assert a.subscriptions == [subscribe(210, 220)]


def test_thousands_that_complete_inside_subscribe_need_no_deep_stack() -> None:
    items: list[int] = []
    ends: list[str] = []
    gate = reactivex.Subject[int]()
    transfers: list[Observable[int]] = [gate, *(at_once(number) for number in range(5000))]
    at_once(*transfers).pipe(transfer_all(1)).subscribe(items.append, on_completed=lambda: ends.append("completed"))
    assert items == []
    gate.on_completed()
    assert items == list(range(5000))
    assert ends == ["completed"]


def test_no_transfer_starts_after_one_that_failed_inside_subscribe() -> None:
    begun: list[str] = []

    def begin(name: str, transfer: Observable[str]) -> Observable[str]:
        return reactivex.defer(lambda _: begun.append(name) or transfer)

    errors: list[Exception] = []
    transfers = at_once(begin("a", at_once(error=LOST)), begin("b", at_once("b")), begin("c", at_once("c")))
    transfers.pipe(transfer_all(2)).subscribe(on_error=errors.append)
    assert errors == [LOST]
    assert begun == ["a"]


def test_each_subscription_runs_all_transfers() -> None:
    scheduler = TestScheduler()
    a = scheduler.create_cold_observable(on_next(10, "a"), on_completed(20))
    all_twice = at_once(a, a).pipe(transfer_all(1), ops.repeat(2))
    results = scheduler.start(lambda: all_twice)
    assert results.messages == [*(on_next(time, "a") for time in (210, 230, 250, 270)), on_completed(280)]


@pytest.mark.parametrize("max_concurrent", [0, -1])
def test_limits_out_of_range(max_concurrent: int) -> None:
    with pytest.raises(ValueError):
        transfer_all(max_concurrent)
