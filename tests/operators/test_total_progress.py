"""`total_progress`: sums over merged transfers, whatever becomes of each."""

import pytest
import reactivex
from reactivex import operators as ops
from reactivex.testing import ReactiveTest, TestScheduler

from rx_client.events import Completed, Failed, Progress, Retrying, Skipped, Started, TotalProgress
from rx_client.operators import progress_every, total_progress
from shared.errors import ConnectionLost
from shared.protocol.wire import FileInfo

from .helpers import at_once

on_next, on_error, on_completed = ReactiveTest.on_next, ReactiveTest.on_error, ReactiveTest.on_completed
LOST = ConnectionLost("lost")


def totals(*events: object, total: int | None = None) -> list[TotalProgress]:
    got: list[object] = []
    at_once(*events).pipe(total_progress(total)).subscribe(got.append)
    return [item for item in got if isinstance(item, TotalProgress)]


def started(name: str, total: int | None = 100, at: int = 0) -> Started:
    return Started(None, total, at, name=name)


def progress(name: str, transferred: int, total: int | None = 100) -> Progress:
    return Progress(transferred, total, name=name)


def done(name: str, size: int = 100) -> Completed:
    return Completed(FileInfo(name=name, size=size))


def test_the_sums_and_what_is_passed_on() -> None:
    got: list[object] = []
    failed, skipped, retrying = Failed("c", LOST), Skipped("d", "why not"), Retrying(1, 2.0, LOST, name="b")
    events = [started("a"), progress("a", 40), started("b", 50, at=10), retrying, done("a"), failed, skipped, "else"]
    at_once(*events).pipe(total_progress()).subscribe(got.append)
    assert got == [
        TotalProgress(0, 100, name="a", active=1),
        TotalProgress(40, 100, name="a", moved=40, active=1),
        TotalProgress(50, 150, name="b", moved=40, active=2),
        retrying,
        done("a"),
        TotalProgress(110, 150, name="a", moved=100, active=1, completed=1),
        failed,
        TotalProgress(110, 150, name="c", moved=100, active=1, completed=1, failed=1),
        skipped,
        TotalProgress(110, 150, name="d", moved=100, active=1, completed=1, failed=1, skipped=1),
        "else",
    ]


def test_an_attempt_that_goes_back_counts_what_it_moves_again() -> None:
    events = [started("a"), progress("a", 60), started("a", at=20), progress("a", 70)]
    assert [(each.transferred, each.moved) for each in totals(*events)] == [(0, 0), (60, 60), (20, 60), (70, 110)]


def test_one_unknown_total_makes_the_sum_unknown_until_it_has_ended() -> None:
    events = [started("a"), started("b", None), progress("b", 7, None), done("b", 9)]
    assert [each.total for each in totals(*events)] == [100, None, None, 109]


def test_what_has_failed_counts_no_more() -> None:
    last = totals(started("a"), progress("a", 60), started("b"), Failed("a", LOST), done("b"))[-1]
    assert (last.transferred, last.total, last.moved, last.active) == (100, 100, 160, 0)


def test_a_total_that_is_known_beforehand() -> None:
    assert [each.total for each in totals(started("a"), done("a"), total=500)] == [500, 500]


def test_events_without_a_start() -> None:
    """As of an operator in between that drops some."""
    assert [(each.transferred, each.moved) for each in totals(progress("a", 5), done("a", 9), done("b", 1))] == [
        (5, 5),
        (9, 9),
        (10, 9),
    ]


def test_it_ends_with_its_source() -> None:
    ends: list[object] = []
    at_once(started("a"), error=LOST).pipe(total_progress()).subscribe(on_error=ends.append)
    at_once(done("a")).pipe(total_progress()).subscribe(on_completed=lambda: ends.append("completed"))
    assert ends == [LOST, "completed"]


def test_each_subscription_sums_for_itself() -> None:
    got: list[object] = []
    at_once(done("a")).pipe(total_progress(), ops.repeat(2)).subscribe(got.append)
    assert got[1] == got[3] == TotalProgress(100, 100, name="a", completed=1)


def test_its_totals_are_progress_for_the_operators_after_it() -> None:
    scheduler = TestScheduler()
    source = scheduler.create_hot_observable(
        on_next(210, started("a")), *(on_next(220 + each, progress("a", each)) for each in range(50)), on_completed(400)
    )
    results = scheduler.start(lambda: source.pipe(total_progress(), progress_every(100, scheduler=scheduler)))
    assert [(message.time, getattr(message.value, "value", None)) for message in results.messages] == [
        (210, TotalProgress(0, 100, name="a", active=1)),
        (310, TotalProgress(49, 100, name="a", moved=49, active=1)),
        (400, None),
    ]


def test_many_files_leave_nothing_behind() -> None:
    last = TotalProgress(0, 0)

    def keep(item: object) -> None:
        nonlocal last
        assert not isinstance(item, TotalProgress) or item.active <= 1
        last = item if isinstance(item, TotalProgress) else last

    events = (event for number in range(1000) for event in (started(f"{number}", 7), done(f"{number}", 7)))
    reactivex.from_iterable(events).pipe(total_progress()).subscribe(keep)
    assert last == TotalProgress(7000, 7000, name="999", moved=7000, completed=1000)


def test_a_pattern_of_progress_matches_totals_too() -> None:
    match TotalProgress(1, 2, moved=1):
        case Progress(transferred, total):
            assert (transferred, total) == (1, 2)
        case _:  # pyright: ignore[reportUnnecessaryComparison]
            pytest.fail("no match")
