"""The statistics of a server: one snapshot, for the route `server.stats` and for Prometheus."""

import itertools
import time
from typing import Final

from shared.errors import TransferError
from shared.protocol.stats import RouteStats, ServerStats, TransferStats

from .stores.base import Store
from .work import Operation, RouteCounts, Work

__all__ = ["take_stats"]

# A snapshot is an item of a stream, and has to fit one frame.
_MOST_TRANSFERS: Final = 100


async def take_stats(work: Work, store: Store) -> ServerStats:
    """What the server has done, and does."""
    try:
        unfinished = await store.count_unfinished()
    except TransferError:
        unfinished = None  # the store can't be reached
    now = time.monotonic()
    received, sent = work.received_bytes, work.sent_bytes
    for operation in work.transfers:
        if operation.stream is not None and operation.stream.is_upload:
            received += operation.stream.moved_bytes
        elif operation.stream is not None:
            sent += operation.stream.moved_bytes
    return ServerStats(
        seconds=now - work.began_at,
        connections=work.connections,
        received_bytes=received,
        sent_bytes=sent,
        unfinished_uploads=unfinished,
        watched_files=store.changes.known,
        requests=[_route(label, counts) for label, counts in sorted(work.routes.items())],
        errors=dict(work.errors),
        transfers=[
            transfer
            for operation in itertools.islice(work.transfers, _MOST_TRANSFERS)
            if (transfer := _transfer(operation, now)) is not None
        ],
        active_transfers=len(work.transfers),
    )


def _route(label: str, counts: RouteCounts) -> RouteStats:
    route, _, model = label.rpartition(" ") if " " in label else (label, "", "")
    ended = counts.completed + counts.failed + counts.cancelled
    return RouteStats(route, model, counts.started - ended, counts.completed, counts.failed, counts.cancelled)


def _transfer(operation: Operation, now: float) -> TransferStats | None:
    transfer, stream = operation.transfer, operation.stream
    if transfer is None or stream is None:
        return None
    route, name, user, peer = transfer
    return TransferStats(route, name, user, peer, now - operation.started_at, stream.moved_bytes, stream.demand)
