"""The route of the server's statistics: a snapshot now, and then one every so many seconds, without end."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from rsocket.payload import Payload

from shared.errors import InvalidRequest
from shared.protocol.stats import StatsRequest
from shared.protocol.wire import Route as Name

from ..stats import take_stats
from ..users import Right
from .pull import Items, PullStream
from .table import Model, Request, Route

__all__ = ["STATS"]

_LEAST_SECONDS: Final = 0.1
_MOST_SECONDS: Final = 24 * 60 * 60.0


def _stats(request: Request[StatsRequest]) -> Callable[[PullStream], Items]:
    if not _LEAST_SECONDS <= request.message.every <= _MOST_SECONDS:
        raise InvalidRequest(f"statistics come every {_LEAST_SECONDS} seconds to a day, not {request.message.every}")
    request.operation.set_endless()
    return partial(_snapshots, request)


async def _snapshots(request: Request[StatsRequest], stream: PullStream) -> Items:
    session = request.session
    while True:
        stats = await take_stats(session.connection.work, session.store)
        yield Payload(stats.to_bytes())
        stream.wait_without_room()
        await asyncio.sleep(request.message.every)


STATS: Final[tuple[Route[Any], ...]] = (
    Route(Name.STATS, Model.REQUEST_STREAM, _stats, right=Right.MONITOR, message=StatsRequest),
)
