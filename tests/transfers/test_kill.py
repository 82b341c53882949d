"""`kill -9` of either end, a round of each kind; `python -m tests.transfers.kill` does many."""

from tests.transfers import kill


async def test_killed_at_random_moments_nothing_is_lost_or_doubled() -> None:
    tally = await kill.run(len(kill.KINDS), seed=7, nbytes=8_000_000, is_quiet=True)
    assert tally.rounds == len(kill.KINDS)
    assert tally.resumed > 0
