"""A slow link is neither a dead peer nor a stalled transfer, on either side, at any size of what is under way."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from rx_client import Connected, ConnectionState, ConnectOptions, FileClient
from server import ChatData, FileServer, serve
from server.limits import Limits
from tests.faults import FaultProxy, fault_proxy
from tests.transfers.helpers import content

# One fragment of a whole file takes over three seconds, all times below are a fraction of that.
RATE = 300_000
BUFFER_BYTES = 16 * 1024
OPTIONS = ConnectOptions(keepalive_period=0.2, keepalive_timeout=0.9, progress_timeout=1.0)
LIMITS = Limits(idle_seconds=1.5, blocked_seconds=1.0)
DATA = content(1_500_000)


@asynccontextmanager
async def slow_link(options: ConnectOptions = OPTIONS) -> AsyncGenerator[tuple[FileServer, FaultProxy, FileClient]]:
    """A client of a server behind a slow link, and of that alone: any other connection fails the test."""
    async with (
        serve(data=ChatData({"a": DATA}), limits=LIMITS) as server,
        fault_proxy(server.uri, BUFFER_BYTES) as proxy,
        FileClient.connect(proxy.uri, options=options) as files,
    ):
        proxy.up.rate = proxy.down.rate = RATE
        states: list[ConnectionState] = []
        files.connection_state().subscribe(states.append)
        yield server, proxy, files
        assert states == [Connected()]


async def test_a_whole_upload() -> None:
    async with slow_link() as (server, _, files):
        await files.upload("b", DATA)
        assert server.data.files["b"] == DATA


async def test_a_whole_download() -> None:
    async with slow_link() as (_, _, files):
        assert await files.download("a") == DATA


async def test_large_chunks_up() -> None:
    async with slow_link() as (server, _, files):
        await files.upload_from("b", DATA, chunk_size=900_000)
        assert server.data.files["b"] == DATA


async def test_chunks_down(tmp_path: Path) -> None:
    async with slow_link() as (_, proxy, files):
        proxy.down.rate = RATE / 2  # a chunk takes longer than the progress timeout
        await files.download_to("a", tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == DATA


async def test_several_at_once_each_waiting_for_the_others_fragments(tmp_path: Path) -> None:
    async with slow_link() as (server, _, files):
        await asyncio.gather(*(files.upload(name, DATA[:1_100_000]) for name in "bcd"))
        assert {server.data.files[name] for name in "bcd"} == {DATA[:1_100_000]}
