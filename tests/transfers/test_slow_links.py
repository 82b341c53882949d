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
from tests.transport.pairs import tls_contexts

# One fragment of a whole file takes over two seconds, all times below are a fraction of that.
RATE = 450_000
BUFFER_BYTES = 16 * 1024
OPTIONS = ConnectOptions(keepalive_period=0.2, keepalive_timeout=0.9, progress_timeout=1.0)
LIMITS = Limits(idle_seconds=1.5, blocked_seconds=1.0)
DATA = content(1_100_000)


@asynccontextmanager
async def slow_link(*, tls: bool = False) -> AsyncGenerator[tuple[FileServer, FaultProxy, FileClient], None]:
    """A client of a server behind a slow link, and of that alone: any other connection fails the test."""
    server_context, client_context = tls_contexts() if tls else (None, None)
    async with (
        serve(data=ChatData({"a": DATA}), limits=LIMITS, tls=server_context) as server,
        fault_proxy(server.uri.replace("tcps:", "tcp:"), BUFFER_BYTES) as proxy,
        FileClient.connect(
            proxy.uri.replace("tcp://127.0.0.1", "tcps://localhost") if tls else proxy.uri,
            options=OPTIONS,
            tls=client_context,
        ) as files,
    ):
        proxy.up.rate = proxy.down.rate = RATE
        states: list[ConnectionState] = []
        files.connection_state().subscribe(states.append)
        yield server, proxy, files
        assert states == [Connected()]


async def whole_upload(folder: Path) -> None:
    async with slow_link() as (server, _, files):
        await files.upload("b", DATA)
        assert server.data.files["b"] == DATA


async def whole_upload_with_tls(folder: Path) -> None:
    async with slow_link(tls=True) as (server, _, files):
        await files.upload("b", DATA)
        assert server.data.files["b"] == DATA


async def whole_download_with_tls(folder: Path) -> None:
    async with slow_link(tls=True) as (_, _, files):
        assert await files.download("a") == DATA


async def whole_download(folder: Path) -> None:
    async with slow_link() as (_, _, files):
        assert await files.download("a") == DATA


async def large_chunks_up(folder: Path) -> None:
    async with slow_link() as (server, _, files):
        await files.upload_from("b", DATA, chunk_size=900_000)
        assert server.data.files["b"] == DATA


async def chunks_down(folder: Path) -> None:
    async with slow_link() as (_, proxy, files):
        proxy.down.rate = RATE / 2  # a chunk takes longer than the progress timeout
        await files.download_to("a", folder / "a")
        assert (folder / "a").read_bytes() == DATA


async def uploads_that_wait_for_each_others_fragments(folder: Path) -> None:
    async with slow_link() as (server, _, files):
        await asyncio.gather(*(files.upload(name, DATA) for name in "bc"))
        assert {server.data.files[name] for name in "bc"} == {DATA}


async def test_a_slow_link_is_not_taken_for_a_dead_one(tmp_path: Path) -> None:
    """All at the same time, each over a link of its own."""
    await asyncio.gather(
        *(
            transfer(tmp_path)
            for transfer in (
                whole_upload,
                whole_download,
                whole_upload_with_tls,
                whole_download_with_tls,
                large_chunks_up,
                chunks_down,
                uploads_that_wait_for_each_others_fragments,
            )
        )
    )
