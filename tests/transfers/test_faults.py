"""What networks do to transfers: cuts, stalls, black holes, dribbling; and still the right bytes or a typed error."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from reactivex import operators as ops

from rx_client import Completed, FileClient, Progress, Retrying, Started
from rx_client.operators import retry_backoff, stall_timeout
from server import FileServer
from shared import ConnectionFailed, ConnectionLost, NotFound, Stalled, Superseded
from tests.faults import FaultProxy, fault_proxy
from tests.support import PATIENCE, client_stream_ids, eventually
from tests.transfers.helpers import (
    CHUNK,
    QUICK,
    Recorder,
    WatchedStore,
    check_story,
    connected,
    content,
    make_store,
    parts,
)

WINDOW = 4
# A connection's SETUP, requests and receipts; and what a frame has beside its bytes.
OVERHEAD = 5_000


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    """The one with a disk behind it."""
    return make_store("directory", tmp_path)


@pytest.fixture
async def proxy(server: FileServer) -> AsyncGenerator[FaultProxy, None]:
    async with fault_proxy(server.uri) as proxy:
        yield proxy


@pytest.fixture
async def files(proxy: FaultProxy) -> AsyncGenerator[FileClient, None]:
    async with connected(proxy.uri, QUICK) as files:
        yield files


async def cut_now_and_then(proxy: FaultProxy, ways: str, seed: int, between: tuple[int, int]) -> None:
    """Cuts the connection after random numbers of bytes, again and again."""
    chance = random.Random(seed)
    while True:
        way = proxy.up if chance.choice(ways) == "u" else proxy.down
        way.cut_after = chance.randint(*between)
        while way.cut_after is not None:
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("seed", range(6))
async def test_uploads_come_through_cuts_with_no_byte_sent_twice_beyond_a_window(
    store: WatchedStore, proxy: FaultProxy, files: FileClient, tmp_path: Path, seed: int
) -> None:
    data, chunk = content(3_000_000, seed), 50_000
    path = tmp_path / "source"
    path.write_bytes(data)
    cutting = asyncio.ensure_future(cut_now_and_then(proxy, "u", seed, (1, 1_000_000)))
    before = proxy.up.nbytes
    upload = files.upload_from("n", path, chunk_size=chunk, window=WINDOW)
    events = await upload.pipe(retry_backoff(20, base=0.001), ops.to_list())
    cutting.cancel()
    assert await store.content("n") == data
    losses = len([event for event in events if isinstance(event, Retrying)])
    assert losses
    assert proxy.up.nbytes - before <= len(data) + losses * (WINDOW * chunk) + (losses + 1) * OVERHEAD + 100 * 100
    assert store.appended == len(data)
    resumed = [event.resumed_from for event in events if isinstance(event, Started)]
    assert resumed == sorted(resumed)


@pytest.mark.parametrize("seed", range(6))
async def test_downloads_come_through_cuts_with_no_byte_sent_twice_beyond_a_window(
    store: WatchedStore, proxy: FaultProxy, files: FileClient, tmp_path: Path, seed: int
) -> None:
    data = content(20 * CHUNK + 77, seed)
    await store.put("n", data)
    cutting = asyncio.ensure_future(cut_now_and_then(proxy, "d", seed, (1, 6 * CHUNK)))
    before = proxy.down.nbytes
    download = files.download_to("n", tmp_path / "got", window=WINDOW)
    events = await download.pipe(retry_backoff(20, base=0.001), ops.to_list())
    cutting.cancel()
    assert (tmp_path / "got").read_bytes() == data
    assert parts(tmp_path) == []
    losses = len([event for event in events if isinstance(event, Retrying)])
    assert losses
    assert proxy.down.nbytes - before <= len(data) + losses * WINDOW * CHUNK + (losses + 1) * OVERHEAD
    resumed = [event.resumed_from for event in events if isinstance(event, Started)]
    assert resumed == sorted(resumed)
    assert resumed[-1] > 0


@pytest.mark.parametrize("seed", range(4))
async def test_cuts_of_either_direction_at_any_byte(
    store: WatchedStore, proxy: FaultProxy, files: FileClient, tmp_path: Path, seed: int
) -> None:
    """Small steps: in the SETUP, the request, a receipt, a frame's header, between the last item and its receipt."""
    data = content(30_000, seed)
    cutting = asyncio.ensure_future(cut_now_and_then(proxy, "ud", seed, (1, 8_000)))
    events = await files.upload_from("n", data, chunk_size=1000, window=WINDOW).pipe(
        retry_backoff(200, base=0.001), ops.to_list()
    )
    await files.download_to("n", tmp_path / "got").pipe(retry_backoff(200, base=0.001))
    cutting.cancel()
    assert isinstance(events[-1], Completed)
    assert await store.content("n") == (tmp_path / "got").read_bytes() == data


async def test_dribbling(store: WatchedStore, proxy: FaultProxy, files: FileClient, tmp_path: Path) -> None:
    proxy.up.dribble = proxy.down.dribble = 7
    data = content(20_000)
    check_story(await files.upload_from("n", data, chunk_size=1000).pipe(ops.to_list()), len(data), len(data))
    await files.download_to("n", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == data


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_stall_in_the_middle_ends_typed_within_the_deadline(
    server: FileServer, store: WatchedStore, proxy: FaultProxy, files: FileClient, tmp_path: Path, way: str
) -> None:
    await store.put("n", content(40 * CHUNK))
    stalled = proxy.up if way == "up" else proxy.down
    for transfer, gate in (
        (files.upload_from("m", content(10_000_000), window=WINDOW), store.before_append),
        (files.download_to("n", tmp_path / "got", window=WINDOW), store.before_read),
        (files.download_chunks("n", window=WINDOW), store.before_read),
    ):
        heard = Recorder()
        gate.close()
        transfer.subscribe(heard)
        await eventually(lambda gate=gate, heard=heard: gate.waiting or heard.error)
        assert heard.error is None
        stalled.stall()
        gate.open()
        await heard.ended()
        assert isinstance(heard.error, ConnectionLost)
        assert "silent" in str(heard.error)
        assert not client_stream_ids(files)
        proxy.cut()
        stalled.flow()
        await eventually(lambda: not proxy.connections)


async def test_a_stall_is_gone_on_from_on_a_new_connection(
    store: WatchedStore, proxy: FaultProxy, files: FileClient
) -> None:
    data = content(4_000_000)
    proxy.up.stall_after = 1_000_000
    heard = Recorder()
    upload = files.upload_from("n", data, chunk_size=50_000, window=WINDOW)
    upload.pipe(retry_backoff(20, base=0.01)).subscribe(heard)
    await heard.got(Retrying)
    proxy.up.flow()
    await heard.ended()
    assert heard.is_completed, heard.error
    assert await store.content("n") == data
    resumed = [event.resumed_from for event in heard.items if isinstance(event, Started)]
    assert resumed[-1] > 0
    assert store.appended == len(data)


async def test_a_half_dead_connection_is_superseded_when_it_comes_back(
    server: FileServer, store: WatchedStore, proxy: FaultProxy
) -> None:
    """The client's old connection hangs in the network, the server still believes in it; the new one takes over."""
    data = content(2_000_000)
    async with connected(proxy.uri, QUICK) as one, connected(server.uri) as other:
        proxy.up.stall_after = 500_000
        old = Recorder()
        one.upload_from("n", data, chunk_size=50_000, window=WINDOW, upload_id="one").subscribe(old)
        await eventually(lambda: proxy.up.is_stalled)
        events = await other.upload_from("n", data, chunk_size=50_000, upload_id="one").pipe(ops.to_list())
        await old.ended()
        assert old.error is not None
        assert isinstance(events[0], Started)
        assert events[0].resumed_from > 0
        proxy.up.flow()  # what was on its way arrives after all
    assert await store.content("n") == data
    assert store.appended == len(data)


@pytest.mark.parametrize("is_finished", [False, True])
async def test_a_request_that_was_held_up_on_its_way_supersedes_nothing_newer(
    server: FileServer, store: WatchedStore, proxy: FaultProxy, is_finished: bool
) -> None:
    data, patient = content(200_000), replace(QUICK, keepalive_timeout=PATIENCE)
    async with connected(proxy.uri, patient) as one, connected(server.uri) as other:
        proxy.up.stall()
        old, new = Recorder(), Recorder()
        one.upload_from("n", data, upload_id="one").subscribe(old)
        await eventually(lambda: client_stream_ids(one))  # it is sent
        store.before_commit.close()
        other.upload_from("n", data, upload_id="one").subscribe(new)
        await eventually(lambda: store.before_commit.waiting)
        if is_finished:
            store.before_commit.open()
            await new.ended()
        proxy.up.flow()
        await old.ended()
        assert isinstance(old.error, Superseded)
        store.before_commit.open()
        await new.ended()
        assert new.is_completed, new.error
    assert await store.content("n") == data
    assert store.appended == len(data)
    with pytest.raises(NotFound):
        await store.inner.uploaded("one", "n")


async def test_a_black_hole_is_no_connection(proxy: FaultProxy, tmp_path: Path) -> None:
    hasty = replace(QUICK, connect_timeout=0.2, reconnect_timeout=0.4)
    async with connected(proxy.uri, hasty) as files:
        proxy.is_black_hole = True
        proxy.cut()
        for transfer in (
            files.upload_from("n", b"x"),
            files.download_to("n", tmp_path / "got"),
            files.download_chunks("n"),
            files.stat("n"),
        ):
            with pytest.raises(ConnectionFailed):
                async with asyncio.timeout(PATIENCE):
                    await transfer
    assert list(tmp_path.glob("*got*")) == []


async def test_a_server_that_refuses_for_a_while(store: WatchedStore, proxy: FaultProxy, files: FileClient) -> None:
    data, target = content(2_000_000), proxy.target
    proxy.up.stall_after = 700_000
    heard = Recorder()
    upload = files.upload_from("n", data, chunk_size=50_000, window=WINDOW)
    upload.pipe(retry_backoff(50, base=0.02, cap=0.1)).subscribe(heard)
    await eventually(lambda: proxy.up.is_stalled)
    proxy.target = "tcp://127.0.0.1:1"
    proxy.cut()
    proxy.up.flow()
    await heard.got(Retrying)
    proxy.target = target
    await heard.ended()
    assert heard.is_completed, heard.error
    assert store.appended == len(data)


async def test_stall_timeout_ends_an_upload_that_the_store_holds_up(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    """The connection is alive, so no keepalive tells; `stall_timeout` does."""
    store.before_append.close()
    with pytest.raises(Stalled):
        await files.upload_from("n", content(1_000_000)).pipe(stall_timeout(0.3))
    await files.settle()
    assert not client_stream_ids(files)
    await eventually(lambda: not store.before_append.waiting)
    store.before_append.open()
    await files.upload_from("n", b"x").pipe(stall_timeout(5))


async def test_a_lost_connection_is_heard_by_all_that_is_under_way(
    store: WatchedStore, proxy: FaultProxy, files: FileClient, tmp_path: Path
) -> None:
    await store.put("n", content(40 * CHUNK))
    store.before_append.close()
    store.before_read.close()
    heard = [Recorder() for _ in range(3)]
    files.upload_from("m", content(1_000_000)).subscribe(heard[0])
    files.download_to("n", tmp_path / "got").subscribe(heard[1])
    files.download_chunks("n").subscribe(heard[2])
    await eventually(lambda: store.before_append.waiting and store.before_read.waiting == 2)
    proxy.cut()
    for each in heard:
        await each.ended()
        assert isinstance(each.error, ConnectionLost)
    store.before_append.open()
    store.before_read.open()


async def test_a_slow_network_is_no_stall(store: WatchedStore, proxy: FaultProxy, files: FileClient) -> None:
    """A source that takes its time: keepalives go on, so nothing is wrong."""

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(0.7)  # each longer than the keepalive's patience
            yield b"x" * 100

    events = await files.upload_from("n", slow(), chunk_size=100).pipe(ops.to_list())
    assert [event.transferred for event in events if isinstance(event, Progress)][-1] == 400
    assert proxy.accepted == 1


async def test_what_is_not_sent_when_an_upload_is_disposed_is_never_sent(
    server: FileServer, store: WatchedStore, proxy: FaultProxy, files: FileClient
) -> None:
    """A window of the largest chunks is more than the system's buffers hold; the rest of it is taken back."""
    window, chunk = 16, 960_000
    store.before_append.close()
    store.before_begin.close()
    subscription = files.upload_from("n", content(window * chunk), chunk_size=chunk, window=window).subscribe()
    await eventually(lambda: store.before_begin.waiting)
    proxy.up.stall()
    store.before_begin.open()
    rsocket = files._connector.current()
    await eventually(lambda: rsocket is not None and len(rsocket.outbox._entries) > 3)
    subscription.dispose()
    await files.settle()
    proxy.up.flow()
    await eventually(lambda: server.work.cancelled == 1)
    assert proxy.up.nbytes < (window - 2) * chunk
    store.before_append.open()
    await files.upload_from("n", b"x")  # the connection goes on
