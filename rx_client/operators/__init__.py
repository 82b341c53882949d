"""Operators for transfers and their chunks: plain RxPY operators, for `pipe`, that keep to the event loop.

They take their time from the scheduler given to them, else from the subscription's, else from the running loop; never
from a thread. Subscribe in the event loop's thread.

========================  ==========================================================================
`retry_backoff`           subscribes again after a failure that may pass, later and later
`stall_timeout`           fails when nothing has progressed for a while
`progress_every`          thins out `Progress`, and never drops the last
`transfer_all`            runs an observable of transfers, some at a time
`map_async`               an asynchronous function of each item, in order, with demand
`for_each_async`          an asynchronous action on each item, with demand
`to_async_iter`           `async for`, with demand
========================  ==========================================================================

The order in a pipe matters: `stall_timeout` before `retry_backoff` limits each attempt, and `progress_every`, which
withholds `Progress`, comes after both. All three are for one transfer, so they go inside a `transfer_all`::

    names.pipe(
        ops.map(lambda name: files.upload_from(name, folder / name).pipe(stall_timeout(10), retry_backoff())),
        transfer_all(4),
    )

The examples in the docstrings are for `python -m asyncio`, which can await::

    >>> import asyncio, reactivex
    >>> from reactivex import operators as ops
    >>> from rx_client.chunks import Chunk
    >>> from rx_client.events import Progress
    >>> from rx_client.operators import *
"""

from ._for_each_async import for_each_async
from ._map_async import map_async
from ._progress_every import progress_every
from ._retry_backoff import retry_backoff
from ._stall_timeout import stall_timeout
from ._to_async_iter import to_async_iter
from ._transfer_all import transfer_all

__all__ = [
    "for_each_async",
    "map_async",
    "progress_every",
    "retry_backoff",
    "stall_timeout",
    "to_async_iter",
    "transfer_all",
]
