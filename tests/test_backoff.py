"""The delays between attempts to connect, at explicit times."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rx_client.connection.backoff import Backoff

BASE, CAP = 0.1, 2.0


def gaps(lives: list[float], *, jitter: float = 1.0) -> list[float]:
    """Seconds between attempts, if each follows at once the loss of a connection that lived for so long."""
    backoff, now, gaps = Backoff(BASE, CAP, lambda: jitter), 1000.0, list[float]()
    for life in lives:
        began = now = now + backoff.wait(now)
        backoff.begin(now)
        now += life
        backoff.lost(now)
        gaps.append(now + backoff.wait(now) - began)
    return gaps


def test_the_first_attempt_is_immediate() -> None:
    assert Backoff(BASE, CAP).wait(0.0) == 0.0


def test_delays_double_up_to_the_cap() -> None:
    assert gaps([0.0] * 8) == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])


def test_one_delay_is_at_least_half_of_what_it_may_be() -> None:
    assert gaps([0.0] * 6, jitter=0.5) == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0])
    backoff = Backoff(BASE, CAP)
    backoff.begin(0.0)
    assert BASE / 2 <= backoff.wait(0.0) <= BASE


def test_the_loss_of_a_connection_that_lived_is_made_good_at_once_and_further_losses_soon() -> None:
    assert gaps([60.0, 60.0, 0.0, 0.0, 60.0, 1.0, 0.0]) == pytest.approx([60.0, 60.0, 0.1, 0.2, 60.0, 1.0, 0.2])


def test_failed_attempts_count_as_those_that_made_a_connection() -> None:
    backoff, began = Backoff(BASE, CAP, lambda: 1.0), list[float]()
    now = 0.0
    for _ in range(4):
        now += backoff.wait(now)
        backoff.begin(now)
        began.append(now)
    assert began == pytest.approx([0.0, 0.1, 0.3, 0.7])


def test_a_late_attempt_does_not_wait() -> None:
    backoff = Backoff(BASE, CAP)
    for now in (0.0, 10.0, 20.0):
        assert backoff.wait(now) == 0.0
        backoff.begin(now)


@given(
    st.lists(st.floats(0.0, 5.0) | st.just(0.0) | st.just(CAP - 0.01), min_size=1, max_size=60),
    st.floats(0.01, 3.0),
    st.floats(0.01, 5.0),
    st.randoms(use_true_random=False),
)
def test_there_is_never_a_storm(lives: list[float], base: float, cap: float, chance: random.Random) -> None:
    """Within `cap` seconds there are no more attempts than doublings, and a few: the delays can't begin anew there."""
    backoff, now, began = Backoff(base, cap, lambda: chance.uniform(0.5, 1.0)), 0.0, list[float]()
    for life in lives:
        assert 0.0 <= backoff.wait(now) <= cap + 1e-9
        now += backoff.wait(now)
        backoff.begin(now)
        began.append(now)
        now += life
        backoff.lost(now)
    doublings = 0
    while base * 2**doublings < cap:
        doublings += 1
    for at, first in enumerate(began):
        within = [time for time in began[at:] if time < first + cap - 1e-9]
        assert len(within) <= doublings + 3
