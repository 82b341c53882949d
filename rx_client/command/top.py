"""`rxfiles top`: what a server does, again and again."""

from typing import Annotated

import typer
from reactivex import Observable
from reactivex import operators as ops

from ..stats import ServerStats
from .happenings import Statistics
from .run import Run

__all__ = ["top"]

Every = Annotated[float, typer.Option(min=0.1, max=86_400, metavar="SECONDS", help="How often.")]
Count = Annotated[int | None, typer.Option("--count", "-n", min=1, metavar="N", help="End after so many times.")]


def top(run: Run, every: Every = 2.0, count: Count = None) -> Observable[Statistics]:
    """Shows what the server does, until it is interrupted.

    Its connections, requests, errors, and the transfers that are under way. Where the server has users, the user needs
    the right s@.
    """
    before: ServerStats | None = None

    def with_last(stats: ServerStats) -> Statistics:
        nonlocal before
        last, before = before, stats
        return Statistics(stats, last)

    snapshots = run.files.server_stats(every).pipe(ops.map(with_last))
    return snapshots if count is None else snapshots.pipe(ops.take(count))
