"""Transfers to and from a store in a bucket: those of `test_upload.py` and `test_download.py` that fit any store."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from reactivex import operators as ops

from rx_client import Completed, FileClient, Progress, Started
from rx_client.operators import for_each_async, retry_backoff
from server import ChatData, FileServer, serve
from server.stores.objects import ObjectStore
from shared.errors import AlreadyExists, Changed, ConnectionLost, IntegrityError, NotFound
from tests.faults import fault_proxy
from tests.stores.objects.service import BUCKET, CREDENTIALS, client, new_prefix, shared_service

from .helpers import QUICK, connected, content, digest_of

PART = 8 * 1024 * 1024


@pytest.fixture(scope="session")
def object_service(tmp_path_factory: pytest.TempPathFactory, worker_id: str):
    base = tmp_path_factory.getbasetemp()
    with shared_service((base if worker_id == "master" else base.parent) / "object-store") as endpoint:
        yield endpoint


@pytest.fixture
def prefix() -> str:
    return new_prefix()


@pytest.fixture
async def bucket_server(object_service: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FileServer]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    async with serve(data=ChatData(ObjectStore(BUCKET, prefix, endpoint=object_service))) as server:
        yield server


@pytest.fixture
async def files(bucket_server: FileServer) -> AsyncIterator[FileClient]:
    async with connected(bucket_server.uri) as files:
        yield files


@pytest.mark.parametrize("size", [0, 300_000, pytest.param(2 * PART, marks=pytest.mark.objects_long)])
async def test_a_file_there_and_back(files: FileClient, tmp_path: Path, size: int) -> None:
    data = content(size)
    (tmp_path / "source").write_bytes(data)
    events = await files.upload_from("docs/n", tmp_path / "source").pipe(ops.to_list())
    assert isinstance(events[-1], Completed)
    info = events[-1].info
    assert (info.size, info.digest) == (size, digest_of(data))
    assert await files.stat("docs/n") == info
    await files.download_to("docs/n", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == await files.download("docs/n") == data
    assert await files.list_files(prefix="docs/").pipe(ops.to_list()) == ["docs/n"]
    assert await files.move("docs/n", "moved")
    with pytest.raises(NotFound):
        await files.download("docs/n")
    assert (await files.delete("moved")).size == size


async def test_a_retry_resumes_both_ways(bucket_server: FileServer, tmp_path: Path) -> None:
    data = content(PART + 6_000_000)
    (tmp_path / "source").write_bytes(data)
    async with fault_proxy(bucket_server.uri) as proxy, connected(proxy.uri, QUICK) as files:
        proxy.up.cut_after = PART + 4_000_000
        events = await files.upload_from("n", tmp_path / "source").pipe(retry_backoff(attempts=5), ops.to_list())
        starts = [event.resumed_from for event in events if isinstance(event, Started)]
        assert starts[0] == 0
        assert starts[1] >= PART
        assert any(isinstance(event, Progress) for event in events)
        proxy.down.cut_after = 5_000_000
        events = await files.download_to("n", tmp_path / "target").pipe(retry_backoff(attempts=5), ops.to_list())
        starts = [event.resumed_from for event in events if isinstance(event, Started)]
        assert starts[0] == 0 < starts[-1]
    assert (tmp_path / "target").read_bytes() == data


@pytest.mark.objects_long
async def test_a_slow_consumer_holds_the_store_up(files: FileClient) -> None:
    data = content(3_000_000)
    await files.upload("n", data)
    got: list[bytes] = []

    async def consume(chunk: object) -> None:
        got.append(bytes(chunk.data))  # type: ignore[attr-defined]
        await asyncio.sleep(random.uniform(0, 0.01))

    await files.download_chunks("n", window=2).pipe(for_each_async(consume))
    assert b"".join(got) == data


async def test_what_another_tool_wrote_is_served(files: FileClient, object_service: str, prefix: str) -> None:
    async with client(object_service) as s3:
        await s3.put_object(Bucket=BUCKET, Key=f"{prefix}other/tool.txt", Body=b"by another tool")
        await files.upload("mine", b"by the server")
        info = await files.stat("other/tool.txt")
        assert (info.size, info.digest) == (15, None)
        assert info.etag
        assert info.modified
        assert await files.download("other/tool.txt") == b"by another tool"
        assert await files.list_files().pipe(ops.to_list()) == ["mine", "other/tool.txt"]
        answer = await s3.get_object(Bucket=BUCKET, Key=f"{prefix}mine")
        assert await answer["Body"].read() == b"by the server"
        # Its metadata doesn't survive, or must not count for another content.
        metadata = answer["Metadata"]
        await s3.put_object(Bucket=BUCKET, Key=f"{prefix}mine", Body=b"overwritten", Metadata=metadata)
        assert (await files.stat("mine")).digest is None
        assert await files.download("mine") == b"overwritten"


async def test_an_overwritten_file_is_never_a_mixture(
    bucket_server: FileServer, files: FileClient, tmp_path: Path
) -> None:
    old, new = content(5_000_000), content(5_000_000)[::-1]
    await files.upload("n", old)
    etag = (await files.stat("n")).etag
    async with fault_proxy(bucket_server.uri) as proxy, connected(proxy.uri, QUICK) as others:
        proxy.down.cut_after = 2_000_000
        with pytest.raises(ConnectionLost):
            await others.download_to("n", tmp_path / "target")
        await files.upload("n", new)
        await others.download_to("n", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == new
    with pytest.raises(Changed):
        await files.delete("n", if_match=etag)


async def test_without_overwrite_and_with_a_wrong_digest(files: FileClient, bucket_server: FileServer) -> None:
    await files.upload_from("n", b"first", overwrite=False)
    with pytest.raises(AlreadyExists):
        await files.upload_from("n", b"second", overwrite=False)
    upload = await bucket_server.data.store.begin("u", "n", size=3, algorithm="xxh3-128")
    await upload.append([b"bad"])
    with pytest.raises(IntegrityError):
        await upload.commit(digest_of(b"other"))
    assert await files.download("n") == b"first"
