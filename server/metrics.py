"""The statistics for Prometheus, over HTTP: counts only, without the names of users and files. An extra, `metrics`."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from shared.aio import run_blocking
from shared.protocol.stats import ServerStats

from .app import FileServer
from .stats import take_stats

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["metrics_of", "serve_metrics"]

# How long a scrape waits for the event loop and the store.
_SCRAPE_SECONDS: Final = 10.0


def metrics_of(stats: ServerStats) -> "Iterator[Metric]":
    """The metrics of a snapshot."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415 - an extra

    requests = CounterMetricFamily(
        "rxfiles_requests", "Requests that have ended.", labels=["route", "model", "outcome"]
    )
    active = GaugeMetricFamily("rxfiles_requests_active", "Requests under way.", labels=["route", "model"])
    for each in stats.requests:
        for outcome in ("completed", "failed", "cancelled"):
            requests.add_metric([each.route, each.model, outcome], getattr(each, outcome))
        active.add_metric([each.route, each.model], each.active)
    errors = CounterMetricFamily("rxfiles_errors", "Requests that have failed.", labels=["code"])
    for code, count in sorted(stats.errors.items()):
        errors.add_metric([code], count)
    content = CounterMetricFamily(
        "rxfiles_content_bytes", "Content that was received of uploads, and sent in answers.", labels=["direction"]
    )
    content.add_metric(["received"], stats.received_bytes)
    content.add_metric(["sent"], stats.sent_bytes)
    yield from (requests, active, errors, content)
    gauges = {
        "rxfiles_uptime_seconds": ("Seconds since the server's start.", stats.seconds),
        "rxfiles_connections": ("Open connections.", stats.connections),
        "rxfiles_transfers_active": ("Uploads and downloads in chunks that are under way.", stats.active_transfers),
        "rxfiles_unfinished_uploads": ("Uploads that aren't published.", stats.unfinished_uploads),
        "rxfiles_watched_files": ("Files that the consumers of watches know of.", stats.watched_files),
    }
    for name, (text, value) in gauges.items():
        if value is not None:
            yield GaugeMetricFamily(name, text, value=value)


class _Collector:
    """Takes a snapshot for each scrape, which comes in a thread of its own."""

    def __init__(self, server: FileServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop

    def collect(self) -> "Iterator[Metric]":
        server = self._server
        snapshot = asyncio.run_coroutine_threadsafe(take_stats(server.work, server.data.store), self._loop)
        try:
            yield from metrics_of(snapshot.result(_SCRAPE_SECONDS))
        finally:
            snapshot.cancel()


@asynccontextmanager
async def serve_metrics(server: FileServer, host: str, port: int) -> AsyncGenerator[int, None]:
    """Answers scrapes at `http://HOST:PORT/metrics` inside of the block.

    Args:
        server: The server, which runs as long.
        host: The address to listen on. Who reaches it needs no password.
        port: The TCP port; 0 picks a free one.

    Yields:
        The port.

    Raises:
        OSError: The address can't be bound.
        ImportError: prometheus-client isn't installed.
    """
    from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415 - an extra

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(server, asyncio.get_running_loop()))
    listening, thread = start_http_server(port, host, registry)
    try:
        yield listening.server_port
    finally:
        await run_blocking(None, listening.shutdown)
        listening.server_close()
        await run_blocking(None, thread.join)
