"""A server's statistics as text for a person."""

from collections.abc import Iterator
from typing import Final

from .happenings import Statistics
from .words import show_bytes, show_rate, show_seconds

__all__ = ["show_statistics"]

_MOST_TRANSFERS: Final = 20


def show_statistics(statistics: Statistics) -> str:
    """The lines, without an end of the last one."""
    return "\n".join(_lines(statistics))


def _lines(statistics: Statistics) -> Iterator[str]:
    stats, before = statistics.stats, statistics.before
    yield f"up {show_seconds(stats.seconds)}, {stats.connections} connections, {stats.active_transfers} transfers"
    received, sent = show_bytes(stats.received_bytes), show_bytes(stats.sent_bytes)
    if before is not None and stats.seconds > before.seconds:
        seconds = stats.seconds - before.seconds
        received += f" ({show_rate(max(stats.received_bytes - before.received_bytes, 0) / seconds)})"
        sent += f" ({show_rate(max(stats.sent_bytes - before.sent_bytes, 0) / seconds)})"
    unfinished = "" if stats.unfinished_uploads is None else f", {stats.unfinished_uploads} unfinished uploads"
    yield f"received {received}, sent {sent}{unfinished}, {stats.watched_files} watched files"
    yield f"{'ROUTE':<38}{'ACTIVE':>8}{'COMPLETED':>12}{'FAILED':>10}{'CANCELLED':>11}"
    for each in stats.requests:
        label = f"{each.route} {each.model}"
        yield f"{label:<38}{each.active:>8}{each.completed:>12}{each.failed:>10}{each.cancelled:>11}"
    if stats.errors:
        yield "errors: " + ", ".join(f"{count} {code}" for code, count in sorted(stats.errors.items()))
    if stats.transfers:
        yield f"{'TRANSFER':<15}{'BYTES':>10}{'SECONDS':>9}{'DEMAND':>12}  USER@PEER, FILE"
    for each in stats.transfers[:_MOST_TRANSFERS]:
        whose = f"{each.user}@{each.peer}" if each.user else each.peer
        moved = show_bytes(each.moved_bytes)
        yield f"{each.route:<15}{moved:>10}{each.seconds:>9.0f}{each.demand:>12}  {whose} {each.name}"
