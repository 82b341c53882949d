"""Operators for transfers and their chunks: RxPY operators, for `pipe`, that run on the event loop.

Their timers run on the scheduler that they are given, else on the subscription's, else on the running loop; never in a
thread of RxPY's.

========================  ==========================================================================
`retry_backoff`           subscribes again after a transient failure, with growing delays
`stall_timeout`           fails when there was no progress for a time
`progress_every`          limits the rate of `Progress`, and never drops the last
`with_rate`               adds bytes a second and the time that is left
`total_progress`          the progress of many transfers together
`transfer_all`            runs an observable of transfers, with at most so many at a time
`map_async`               an asynchronous function of each item, in order, with demand
`for_each_async`          an asynchronous action on each item, with demand
`to_async_iter`           `async for`, with demand
`from_async_iter`         the way back: an observable of what `async for` would get
========================  ==========================================================================

The order in a pipe matters: `stall_timeout` before `retry_backoff` limits each attempt; `progress_every`, which holds
`Progress` back, comes after both, and after `with_rate`. The first two are for one transfer, so they go inside a
`transfer_all`; what is for a display, after it::

    names.pipe(
        ops.map(lambda name: files.upload_from(name, folder / name).pipe(stall_timeout(10), retry_backoff())),
        transfer_all(4),
        total_progress(),
        with_rate(),
        progress_every(0.5),
    )

The examples in the docstrings run in `python -m asyncio`, where `await` works, after::

    >>> import asyncio, reactivex
    >>> from reactivex import operators as ops
    >>> from rx_client.chunks import Chunk
    >>> from rx_client.events import Progress, Started
    >>> from rx_client.operators import *
"""

from ._for_each_async import for_each_async
from ._from_async_iter import from_async_iter
from ._map_async import map_async
from ._progress_every import progress_every
from ._retry_backoff import retry_backoff
from ._stall_timeout import stall_timeout
from ._to_async_iter import to_async_iter
from ._total_progress import total_progress
from ._transfer_all import transfer_all
from ._with_rate import with_rate

__all__ = [
    "for_each_async",
    "from_async_iter",
    "map_async",
    "progress_every",
    "retry_backoff",
    "stall_timeout",
    "to_async_iter",
    "total_progress",
    "transfer_all",
    "with_rate",
]
