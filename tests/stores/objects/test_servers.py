"""Several servers on one bucket: an upload goes on at another one, and every byte of it is verified."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reactivex import operators as ops

from rx_client import Completed, Started
from rx_client.transfers import upload as client_upload
from server import FileServer
from shared.errors import AlreadyExists, ConnectionLost, NotFound, Superseded
from tests.faults import fault_proxy
from tests.stores.support import digest_of
from tests.transfers.helpers import QUICK, connected, content

from .conftest import OpenServer

PART = 8 * 1024 * 1024
SOURCES = ["path", pytest.param("bytes", marks=pytest.mark.objects_long)]


def source_of(kind: str, folder: Path, data: bytes) -> Path | bytes:
    if kind == "bytes":
        return data
    (folder / "source").write_bytes(data)
    return folder / "source"


async def interrupted(server: FileServer, source: Any, upload_id: str, cut_after: int = PART + 4_000_000) -> None:
    """Uploads the first part of a file and some more, until the connection is lost; the server lives."""
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as files:
        proxy.up.cut_after = cut_after
        with pytest.raises(ConnectionLost):
            await files.upload_from("n", source, upload_id=upload_id)


async def finished(server: FileServer, source: Any, upload_id: str, **options: Any) -> tuple[int, Completed]:
    """Uploads the rest; returns where that began, and the end."""
    async with connected(server.uri) as files:
        events = await files.upload_from("n", source, upload_id=upload_id, **options).pipe(ops.to_list())
    starts = [event.resumed_from for event in events if isinstance(event, Started)]
    end = events[-1]
    assert isinstance(end, Completed)
    return starts[-1], end


@pytest.mark.parametrize("kind", SOURCES)
async def test_an_upload_goes_on_at_another_server(open_server: OpenServer, tmp_path: Path, kind: str) -> None:
    data = content(PART + 6_000_000)
    source = source_of(kind, tmp_path, data)
    async with open_server() as third:
        async with open_server() as first:
            await interrupted(first, source, "u")
        start, end = await finished(third, source, "u")
        assert start > PART  # a server that is stopped keeps what doesn't fill a part, too
        assert end.info.digest == digest_of(data)
        async with connected(third.uri) as files:
            assert await files.download("n") == data
            assert (await files.stat("n")) == end.info
            assert await files.list_files().pipe(ops.to_list()) == ["n"]


@pytest.mark.objects_long
async def test_one_transfer_goes_on_at_server_after_server(open_server: OpenServer) -> None:
    """Nothing is read twice, but for less than an item, and each server's digest is compared with what was sent."""
    data = content(2 * PART + 5_000_000)
    offsets: list[int] = []

    def read_from(offset: int) -> Iterator[bytes]:
        offsets.append(offset)
        yield from (data[at : at + 100_000] for at in range(offset, len(data), 100_000))

    async with (
        open_server() as one,
        open_server() as two,
        open_server() as three,
        fault_proxy(one.uri) as proxy,
        connected(proxy.uri, QUICK) as files,
    ):
        upload = files.upload_from("n", read_from, size=len(data), upload_id="u")
        for server, following in ((one, two), (two, three)):
            proxy.up.cut_after = PART + 1_000_000
            with pytest.raises(ConnectionLost):
                await upload
            await settled(server)
            proxy.target = following.uri
        events = await upload.pipe(ops.to_list())
        (start,) = (event.resumed_from for event in events if isinstance(event, Started))
        assert start > 2 * PART
        assert 0 <= start - offsets[-1] < 512 * 1024
        assert offsets[0] == 0 < offsets[1] < offsets[2]
        assert await files.download("n") == data
        assert (await files.stat("n")).digest == digest_of(data)


@pytest.mark.objects_long
@pytest.mark.parametrize("kind", SOURCES)
async def test_a_source_that_is_another_one_starts_over(open_server: OpenServer, tmp_path: Path, kind: str) -> None:
    old, new = content(PART + 6_000_000), content(PART + 6_000_000)[::-1]
    async with open_server() as first, open_server() as second:
        await interrupted(first, source_of(kind, tmp_path, old), "u")
        start, end = await finished(second, source_of(kind, tmp_path, new), "u")
        assert start == 0
        assert end.info.digest == digest_of(new)
        async with connected(first.uri) as files:
            assert await files.download("n") == new


@pytest.mark.objects_long
async def test_a_client_that_compares_nothing_starts_over(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(PART + 6_000_000)
    async with open_server() as first, open_server() as second:
        await interrupted(first, data, "u")
        request = client_upload.UploadRequest
        monkeypatch.setattr(
            client_upload, "UploadRequest", lambda *args, **kwargs: request(*args, **{**kwargs, "compares": False})
        )
        start, end = await finished(second, data, "u")
        assert (start, end.info.digest) == (0, digest_of(data))


@pytest.mark.objects_long
async def test_without_a_digest_an_upload_goes_on_at_another_server(open_server: OpenServer, tmp_path: Path) -> None:
    data = content(PART + 6_000_000)
    (tmp_path / "source").write_bytes(data)
    async with open_server() as first, open_server() as second:
        async with fault_proxy(first.uri) as proxy, connected(proxy.uri, QUICK) as files:
            proxy.up.cut_after = PART + 4_000_000
            with pytest.raises(ConnectionLost):
                await files.upload_from("n", tmp_path / "source", upload_id="u", digest=None)
        await settled(first)
        start, end = await finished(second, tmp_path / "source", "u", digest=None)
        assert start >= PART
        assert end.info.digest is None
        async with connected(first.uri) as files:
            assert await files.download("n") == data


async def test_the_newest_attempt_wins_whatever_its_server(open_server: OpenServer) -> None:
    async with open_server() as first, open_server() as second:
        older = await first.data.store.begin("u", "n", size=2 * PART, algorithm="xxh3-128")
        await older.append([bytes(PART)])
        assert await older.flush() == PART
        newer = await second.data.store.begin("u", "n", size=2 * PART, algorithm="xxh3-128")
        assert newer.received == newer.durable == PART
        assert newer.links[0].digest == digest_of(bytes(PART))

        await older.append([bytes(PART)])
        with pytest.raises(Superseded):
            await older.flush()
        with pytest.raises(Superseded):
            await older.commit(None)
        await older.abort()
        await newer.append([b"x" * PART])
        data = bytes(PART) + b"x" * PART
        info = await newer.commit(digest_of(data), digest_of(b"x" * PART))
        assert await first.data.store.stat("n") == info
        async with connected(first.uri) as files:
            assert await files.download("n") == data


async def test_without_overwrite_one_of_several_servers_wins(open_server: OpenServer) -> None:
    async with open_server() as first, open_server() as second:
        stores = [first.data.store, second.data.store] * 3
        uploads = [
            await store.begin(f"u{number}", "n", size=None, algorithm="xxh3-128", overwrite=False)
            for number, store in enumerate(stores)
        ]
        for number, upload in enumerate(uploads):
            await upload.append([b"%d" % number * 100])
        results = await asyncio.gather(*(upload.commit(None) for upload in uploads), return_exceptions=True)
        assert sum(isinstance(result, AlreadyExists) for result in results) == 5
        (winner,) = (number for number, result in enumerate(results) if not isinstance(result, Exception))
        assert await second.data.store.whole("n", 1000) == b"%d" % winner * 100
        assert await first.data.store.sweep(-1) + await second.data.store.sweep(-1) == 5


async def test_any_number_of_servers_sweeps(open_server: OpenServer) -> None:
    async with open_server() as first, open_server() as second:
        stores = [first.data.store, second.data.store]
        for number in range(3):
            upload = await stores[number % 2].begin(f"u{number}", "n", size=None, algorithm=None)
            await upload.append([b"half"])
            await upload.suspend()
        assert [await store.sweep(3600) for store in stores] == [0, 0]
        assert sum(await asyncio.gather(*(store.sweep(-1) for store in stores))) == 3
        for number in range(3):
            with pytest.raises(NotFound):
                await stores[0].uploaded(f"u{number}", "n")


async def settled(server: FileServer) -> None:
    """Returns when no operation is under way there."""
    await asyncio.wait_for(server.work.idle.wait(), 10)
