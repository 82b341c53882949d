"""`with_rate`: what it adds to progress, in virtual time."""

from typing import Any

import pytest
from reactivex import operators as ops
from reactivex.testing import ReactiveTest, TestScheduler

from rx_client.events import Completed, Failed, Progress, Retrying, Started, TotalProgress
from rx_client.operators import progress_every, total_progress, with_rate
from shared.errors import ConnectionLost
from shared.protocol.wire import FileInfo

on_next, on_error, on_completed = ReactiveTest.on_next, ReactiveTest.on_error, ReactiveTest.on_completed
LOST = ConnectionLost("lost")
START = 200.0  # when a TestScheduler subscribes
S = Started(None, 100, 0, name="a")
DONE = Completed(FileInfo(name="a", size=100))


def p(transferred: int, total: int | None = 100, name: str = "a") -> Progress:
    return Progress(transferred, total, name=name)


def rates(
    *events: tuple[float, object], window: float = 5.0, until: float = 100.0, operators: Any = ()
) -> list[tuple[float, int, float | None, float | None]]:
    """(time, transferred, bytes a second, seconds left) of each `Progress`; times are since the subscription."""
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(*(on_next(START + time, event) for time, event in events))
    results = scheduler.start(
        lambda: source.pipe(*operators, with_rate(window, scheduler=scheduler)), disposed=START + until
    )
    return [
        (message.time - START, item.transferred, item.bytes_per_second, item.seconds_left)
        for message in results.messages
        if isinstance(item := getattr(message.value, "value", None), Progress)
    ]


def test_a_steady_transfer() -> None:
    events = [(1, S), *((1 + second, p(10 * second)) for second in range(1, 10)), (10.5, DONE)]
    assert rates(*events, until=60) == [(1 + second, 10 * second, 10.0, 10.0 - second) for second in range(1, 10)]


def test_the_window_slides() -> None:
    events = [(1, S), (2, p(10)), (3, p(20)), (4, p(50)), (5, p(80))]
    assert [rate for _, _, rate, _ in rates(*events, window=2, until=5.5)] == [10, 10, 20, 30]


def test_other_items_and_ends_are_as_they_are() -> None:
    scheduler = TestScheduler()
    items = [S, Retrying(1, 2.0, LOST, name="a"), DONE, Failed("b", LOST), "something else", None]
    messages = [on_next(210 + number, item) for number, item in enumerate(items)]
    source = scheduler.create_hot_observable(*messages, on_error(230, LOST))
    assert scheduler.start(lambda: source.pipe(with_rate(scheduler=scheduler))).messages == [
        *messages,
        on_error(230, LOST),
    ]


def test_what_a_resumed_transfer_had_before_is_no_speed() -> None:
    assert rates((1, Started("id", 100, 70, name="a")), (2, p(80)), until=2.5) == [(2, 80, 10, 2)]


def test_no_rate_before_time_has_passed() -> None:
    assert rates((1, p(30)), (2, p(40)), until=2.5) == [(1, 30, None, None), (2, 40, 10, 6)]
    assert rates((1, S), (1, p(30)), until=1.5) == [(1, 30, None, None)]


def test_a_retry_at_a_lower_offset_makes_no_negative_rate() -> None:
    retry = [(3, Retrying(1, 1.0, LOST, name="a")), (4, Started(None, 100, 10, name="a"))]
    events = [(1, S), (2, p(60)), *retry, (5, p(20)), (6, p(30)), (7, p(40))]
    got = rates(*events, until=7.5)
    assert [(time, rate) for time, _, rate, _ in got] == [(2, 60), (5, 17.5), (6, 16), (7, 6)]


def test_progress_that_goes_back_by_itself_makes_no_negative_rate_either() -> None:
    assert [rate for _, _, rate, _ in rates((1, S), (2, p(50)), (3, p(10)), (4, p(10)), until=4.5)] == [50, 25, 50 / 3]


def test_an_unknown_total_leaves_the_time_unknown() -> None:
    assert rates((1, Started(None, None, 0, name="a")), (2, p(50, None)), until=2.5) == [(2, 50, 50, None)]


def test_more_than_the_total_is_no_negative_time() -> None:
    assert rates((1, S), (2, p(150)), until=2.5) == [(2, 150, 150, 0)]


def test_what_stands_still_is_shown_slower_until_it_has_stopped() -> None:
    assert rates((0.5, S), (1, p(20)), window=2) == [
        (1, 20, 40, 2),
        (2, 20, 20 / 1.5, 6),
        (3, 20, 0, None),
    ]


def test_progress_that_comes_sooner_is_not_repeated() -> None:
    events = [(1, S), *((1 + each / 10, p(each)) for each in range(1, 100)), (10.95, DONE)]
    assert len(rates(*events)) == 99


def test_nothing_is_repeated_while_a_retry_waits_or_after_the_end() -> None:
    assert len(rates((1, S), (2, p(20)), (2.5, Retrying(1, 30.0, LOST, name="a")))) == 1
    assert len(rates((1, S), (2, p(20)), (2.5, DONE))) == 1
    assert len(rates((1, S), (2, p(20)), (2.5, Failed("a", LOST)))) == 1


@pytest.mark.parametrize("end", [on_completed(START + 2.5), on_error(START + 2.5, LOST)])
def test_nothing_is_repeated_after_the_source_has_ended(end: Any) -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(on_next(START + 1, S), on_next(START + 2, p(20)), end)
    results = scheduler.start(lambda: source.pipe(with_rate(scheduler=scheduler)), disposed=300)
    assert len(results.messages) == 3
    assert results.messages[-1] == end


def test_merged_transfers_each_have_their_own_rate() -> None:
    other = Started(None, 100, 0, name="b")
    events = [(1, S), (1, other), (2, p(10)), (2, p(40, name="b")), (3, p(20)), (3, p(80, name="b"))]
    assert [(rate, left) for _, _, rate, left in rates(*events, until=3.5)] == [(10, 9), (40, 1.5), (10, 8), (40, 0.5)]


def test_the_rate_of_a_total() -> None:
    other = Started(None, 100, 90, name="b")
    events = [(1, S), (2, p(10)), (3, other), (4, p(100, name="b")), (4, p(30))]
    got = rates(*events, until=4.5, operators=[total_progress()])
    assert [(time, rate) for time, _, rate, _ in got] == [(1, None), (2, 10), (3, 5), (4, 20 / 3), (4, 40 / 3)]
    assert got[-1][3] == 70 / (40 / 3)


def test_totals_keep_what_else_they_say() -> None:
    scheduler = TestScheduler()
    total = TotalProgress(10, 100, name="a", moved=10, active=3, completed=1, failed=2, skipped=4)
    source = scheduler.create_hot_observable(on_next(210, total), on_completed(211))
    assert scheduler.start(lambda: source.pipe(with_rate(scheduler=scheduler))).messages[0] == on_next(210, total)


def test_before_progress_every() -> None:
    events = [(1, S), *((1 + each / 10, p(each)) for each in range(1, 50))]
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(*(on_next(START + time, event) for time, event in events))
    piped = source.pipe(
        with_rate(scheduler=scheduler),
        progress_every(1, scheduler=scheduler),
        ops.filter(lambda event: isinstance(event, Progress)),
        ops.map(lambda event: round(event.bytes_per_second or 0, 6)),
    )
    results = scheduler.start(lambda: piped, disposed=START + 5.5)
    assert [message.value.value for message in results.messages] == [10.0] * 5


def test_a_dispose_stops_the_repetition() -> None:
    assert len(rates((1, S), (2, p(20)), until=2.5)) == 1


@pytest.mark.parametrize("window", [0, -1, float("nan")])
def test_windows_out_of_range(window: float) -> None:
    with pytest.raises(ValueError):
        with_rate(window)
