"""What unfinished transfers leave at either end can be dropped: uploads at the server, parts beside a path."""

import asyncio
import sys
from pathlib import Path

import pytest
from reactivex import operators as ops

from rx_client import Completed, FileClient, Progress, Started, rate_limit
from rx_client.operators import retry_backoff
from server import FileServer
from shared.errors import ConnectionLost, IntegrityError, NotFound, Superseded
from tests.faults import fault_proxy
from tests.support import eventually

from .helpers import CHUNK, QUICK, WITHOUT_LANE, Recorder, WatchedStore, at_rest, connected, content, parts

DATA = content(50 * CHUNK)


async def test_an_upload_is_discarded(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    upload = files.upload_from("n", DATA, upload_id="mine", window=2)
    await upload.pipe(ops.take_while(lambda event: not isinstance(event, Progress), inclusive=True))
    await at_rest(server, store)
    dropped = await files.discard("mine")
    assert 0 < dropped < len(DATA)
    with pytest.raises(NotFound, match="no unfinished upload 'mine'"):
        await files.discard("mine")
    events = await upload.pipe(ops.to_list())
    assert isinstance(events[0], Started)
    assert events[0].resumed_from == 0
    assert await files.download("n") == DATA
    with pytest.raises(NotFound):
        await files.discard("mine")


async def test_an_upload_under_way_is_discarded(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    events = Recorder()
    upload = files.upload_from("n", DATA, upload_id="mine", limit=rate_limit(1_000_000)).pipe(retry_backoff())
    upload.subscribe(events)
    await events.got(Progress)
    async with connected(server.uri, QUICK) as other:
        assert await other.discard("mine", deadline=30) > 0
    await events.ended()
    assert isinstance(events.error, Superseded)
    await at_rest(server, store)
    assert await store.names() == []


@pytest.mark.parametrize("upload_id", ["", ".x", "a/b", "x" * 129])
async def test_an_id_that_can_not_be_one_is_refused_at_the_call(files: FileClient, upload_id: str) -> None:
    with pytest.raises(ValueError, match="upload_id"):
        files.discard(upload_id)


async def test_no_part_is_kept_after_a_dispose(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "got").write_bytes(b"what was there")
    await files.upload_from("n", DATA)
    download = files.download_to("n", folder / "got", window=2, keep_part=False)
    for _ in range(2):
        events = await download.pipe(
            ops.take_while(lambda event: not isinstance(event, Progress), inclusive=True), ops.to_list()
        )
        await files.settle()
        assert isinstance(events[0], Started)
        assert events[0].resumed_from == 0
        assert [path.name for path in folder.iterdir()] == ["got"]
        assert (folder / "got").read_bytes() == b"what was there"
    await at_rest(server, store)
    assert isinstance(await download, Completed)
    assert [path.name for path in folder.iterdir()] == ["got"]
    assert (folder / "got").read_bytes() == DATA


async def test_a_part_that_another_download_has_left_is_resumed_and_not_kept(files: FileClient, tmp_path: Path) -> None:
    await files.upload_from("n", DATA)
    kept = files.download_to("n", tmp_path / "got", window=2)
    await kept.pipe(ops.take_while(lambda event: not isinstance(event, Progress), inclusive=True))
    await files.settle()
    assert len(parts(tmp_path)) == 1
    events = Recorder()
    files.download_to("n", tmp_path / "got", keep_part=False, limit=rate_limit(1_000_000)).subscribe(events).dispose()
    await files.settle()
    subscription = files.download_to("n", tmp_path / "got", keep_part=False, limit=rate_limit(1_000_000)).subscribe(
        events
    )
    await events.got(Progress)
    assert events.items[0].resumed_from > 0
    subscription.dispose()
    await files.settle()
    assert parts(tmp_path) == []


@WITHOUT_LANE
async def test_no_part_is_kept_after_a_failure(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    await files.upload_from("n", DATA)
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as other:
        events = Recorder()
        other.download_to("n", tmp_path / "got", keep_part=False, limit=rate_limit(1_000_000)).subscribe(events)
        await events.got(Progress)
        proxy.cut()
        await events.ended()
        assert isinstance(events.error, ConnectionLost)
        await other.settle()
        assert parts(tmp_path) == []
    store.is_rotten = True
    with pytest.raises(IntegrityError):
        await files.download_to("n", tmp_path / "got", keep_part=False)
    assert parts(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="a part is locked")
async def test_two_downloads_to_one_path_keep_apart_though_one_keeps_nothing(files: FileClient, tmp_path: Path) -> None:
    await files.upload_from("n", DATA)
    slow, events = files.download_to("n", tmp_path / "got", keep_part=False, limit=rate_limit(1_000_000)), Recorder()
    subscription = slow.subscribe(events)
    await events.got(Progress)
    await files.download_to("n", tmp_path / "got", keep_part=False)
    assert (tmp_path / "got").read_bytes() == DATA
    subscription.dispose()
    await files.settle()
    await eventually(lambda: parts(tmp_path) == [])
    assert (tmp_path / "got").read_bytes() == DATA


async def test_only_a_path_has_a_part(files: FileClient) -> None:
    class Writer:
        async def write(self, data: bytes) -> None:
            await asyncio.sleep(0)

    with pytest.raises(ValueError, match="keep_part is for paths"):
        files.download_to("n", Writer(), keep_part=False)
