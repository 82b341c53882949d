"""Chunks that go past the event loop at both ends, with a plain DirectoryStore: no wrapper that hides its files."""

import asyncio
import errno
import json
import os
import stat
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from rx_client.connection import ConnectOptions
from server import ChatData, DirectoryStore, FileServer, serve
from shared.direct import Diversion, FileItems
from shared.errors import StorageFull
from tests.security.support import channel
from tests.support import (
    CANCEL,
    COMPLETE,
    ERROR,
    FOLLOWS,
    NEXT,
    PAYLOAD,
    REQUEST_N,
    REQUEST_STREAM,
    RawFrame,
    RawPeer,
    eventually,
    frame,
    payload,
    raw_peer,
    raw_server,
    server_stream_ids,
    transfer_item,
)
from tests.transfers.helpers import CHUNK, connected, content, digest_of, parts


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
async def server(store: DirectoryStore) -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData(store)) as server:
        yield server
        await at_rest(server, store)


async def at_rest(server: FileServer, store: DirectoryStore) -> None:
    """Asserts that soon nothing is under way at the server."""
    await eventually(lambda: not server.work.active)
    await eventually(lambda: not server_stream_ids(server))
    await eventually(lambda: not store._readers and not store._open)
    await eventually(lambda: not any(transport._diversions for transport in server._connections))
    assert not server.data.uploads._newest


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what goes past the event loop."""
    counted: Counter[str] = Counter()
    for owner, name in ((Diversion, "take"), (Diversion, "take_from"), (FileItems, "send_some")):
        inner = getattr(owner, name)

        def counting(*args: Any, inner: Any = inner, name: str = name, **kwargs: Any) -> Any:
            counted[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)
    return counted


def plain(stream_id: int, data: bytes) -> bytes:
    """An item that is nothing but bytes."""
    return frame(stream_id, PAYLOAD, NEXT, data)


def last(stream_id: int, data: bytes, algorithm: str | None = None, *, stored: bytes) -> bytes:
    """The item that ends an upload of `stored`."""
    digest = None if algorithm is None else digest_of(stored, algorithm)
    flag, body = payload(transfer_item(size=len(stored), digest=digest), data)
    return frame(stream_id, PAYLOAD, NEXT | flag, body)


class Sending:
    """An upload of a raw peer's."""

    def __init__(self, peer: RawPeer, stream_id: int) -> None:
        self.peer = peer
        self.stream_id = stream_id
        self.credit = 0
        self.receipts: list[dict[str, Any]] = []

    @classmethod
    async def begin(cls, peer: RawPeer, name: str, stream_id: int = 1, **said: object) -> "Sending":
        """Returns when the server has asked for items."""
        upload = cls(peer, stream_id)
        said = {"upload_id": name, "digest": None, **said}
        await peer.send(channel(stream_id, name.encode(), json.dumps(said).encode(), n=0x7FFFFFFF))
        while not upload.credit:
            await upload.hear()
        return upload

    async def hear(self) -> RawFrame:
        """Takes the server's next frame, which mustn't be an error."""
        got = await self.peer.receive(10)
        assert got is not None, "the server closed the connection"
        if got.stream_id != self.stream_id:
            pass  # of one that has ended
        elif got.kind == REQUEST_N:
            self.credit += int.from_bytes(got.body, "big")
        elif got.kind == PAYLOAD:
            receipt = json.loads(got.metadata[got.metadata.index(b'{"') :])
            assert not self.receipts or receipt["committed"] >= self.receipts[-1]["committed"]
            self.receipts.append(receipt)
        else:
            assert got.kind == CANCEL, got
        return got

    async def committed(self, nbytes: int) -> None:
        """Returns when the server has stored that much."""
        while self.receipts[-1]["committed"] < nbytes:
            await self.hear()

    async def published(self) -> None:
        """Returns when the server has published the file."""
        while "name" not in self.receipts[-1]:
            await self.hear()


@pytest.mark.parametrize("algorithm", [None, "xxh3-128"])
async def test_an_item_in_fragments_is_not_overtaken_by_its_last_one(
    server: FileServer, tmp_path: Path, algorithm: str | None, used: Counter[str]
) -> None:
    """The last fragment looks as a plain item does."""
    a, b, c = (content(size, size) for size in (1000, 3000, 500))
    async with raw_peer(server.uri) as peer:
        upload = await Sending.begin(peer, "n", digest=algorithm)
        await peer.send(
            plain(1, a),
            frame(1, PAYLOAD, NEXT | FOLLOWS, b[:1000]),
            frame(1, PAYLOAD, NEXT | FOLLOWS, b[1000:2000]),
            plain(1, b[2000:]),
            plain(1, c),
        )
        await upload.committed(4500)
        await peer.send(plain(1, c), last(1, b"", algorithm, stored=a + b + c + c))
        await upload.published()
    assert (tmp_path / "store" / "n").read_bytes() == a + b + c + c
    assert used["take"]


@pytest.mark.parametrize("algorithm", [None, "xxh3-128"])
async def test_no_descriptor_for_a_thread(
    server: FileServer, tmp_path: Path, algorithm: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then items go the slow way, and the loop isn't held."""
    data = content(200_000)

    def exhausted(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with raw_peer(server.uri) as peer:
        upload = await Sending.begin(peer, "n", digest=algorithm)
        with monkeypatch.context() as patch:
            for call in ("dup", "pipe"):
                patch.setattr(os, call, exhausted)
            await peer.send(plain(1, data))
            await upload.committed(len(data))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pipe", exhausted)
            await peer.send(plain(1, data)[:50_000])
            await asyncio.sleep(0.02)
            await peer.send(plain(1, data)[50_000:], plain(1, data), last(1, b"", algorithm, stored=data * 3))
            await upload.published()
    assert (tmp_path / "store" / "n").read_bytes() == data * 3


async def test_a_stream_ends_while_another_ones_item_is_stuck(server: FileServer, store: DirectoryStore) -> None:
    async with raw_peer(server.uri) as peer, raw_peer(server.uri) as other:
        await Sending.begin(peer, "ends", 1)
        await Sending.begin(peer, "stuck", 3)
        await peer.send(plain(3, bytes(100_000))[:50_000])
        (part,) = (part for part in store._open.values() if part.spec.name == "stuck")
        await eventually(lambda: part.digest.length > 40_000)
        newer = await Sending.begin(other, "ends", 1)  # takes over
        await other.send(last(1, b"x", stored=b"x"))
        await newer.published()
        await peer.send(plain(3, bytes(100_000))[50_000:])
        await eventually(lambda: part.digest.length == 100_000)


@pytest.fixture
def blocked_disk(monkeypatch: pytest.MonkeyPatch) -> Generator[threading.Event, None, None]:
    """Not set: whoever writes a file waits for it. Set at first, and at the end."""
    free = threading.Event()
    free.set()
    writev, splice = os.writev, os.splice

    def slow_writev(fd: int, views: Any) -> int:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            free.wait(10)
        return writev(fd, views)

    def slow_splice(source: int, target: int, nbytes: int, **how: Any) -> int:
        if stat.S_ISREG(os.fstat(target).st_mode):
            free.wait(10)
        return splice(source, target, nbytes, **how)

    monkeypatch.setattr(os, "writev", slow_writev)
    monkeypatch.setattr(os, "splice", slow_splice)
    yield free
    free.set()


@pytest.fixture
def failing_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Errors that the next writes to a file fail with, one each; 0 for one that succeeds."""
    errors: list[int] = []
    writev, splice = os.writev, os.splice

    def fail(fd: int) -> None:
        if errors and stat.S_ISREG(os.fstat(fd).st_mode) and (error := errors.pop(0)):
            raise OSError(error, os.strerror(error))

    def failing_writev(fd: int, views: Any) -> int:
        fail(fd)
        return writev(fd, views)

    def failing_splice(source: int, target: int, nbytes: int, **how: Any) -> int:
        fail(target)
        return splice(source, target, nbytes, **how)

    monkeypatch.setattr(os, "writev", failing_writev)
    monkeypatch.setattr(os, "splice", failing_splice)
    return errors


@pytest.mark.parametrize("algorithm", [None, "xxh3-128"])
async def test_who_takes_over_waits_for_the_thread_of_an_older_one_also_when_the_one_between_has_gone(
    server: FileServer, tmp_path: Path, algorithm: str | None, blocked_disk: threading.Event
) -> None:
    data = content(100_000)
    async with raw_peer(server.uri) as first, raw_peer(server.uri) as third:
        await Sending.begin(first, "n", digest=algorithm)
        blocked_disk.clear()
        await first.send(plain(1, data))
        (transport,) = (transport for transport in server._connections if transport._diversions)
        await eventually(lambda: transport._receiving is not None)
        async with raw_peer(server.uri) as second:
            started = server.work.started
            await second.send(channel(1, b"n", json.dumps({"upload_id": "n", "digest": algorithm}).encode()))
            await eventually(lambda: server.work.started > started)
        await eventually(lambda: server.connections == 2)
        beginning = asyncio.ensure_future(Sending.begin(third, "n", digest=algorithm))
        await eventually(lambda: server.work.started == started + 2)
        await asyncio.sleep(0.1)
        assert not beginning.done()
        blocked_disk.set()
        upload = await beginning
        committed = upload.receipts[0]["committed"]  # of an item whose bytes weren't seen it may be some
        assert 0 < committed <= len(data)
        await third.send(last(1, data[committed:] + data, algorithm, stored=data + data))
        await upload.published()
    assert (tmp_path / "store" / "n").read_bytes() == data + data


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("algorithm", [None, "xxh3-128"])
async def test_nothing_is_written_behind_what_could_not_be(
    server: FileServer, store: DirectoryStore, algorithm: str | None, error: int, failing_disk: list[int]
) -> None:
    data = content(200_000)
    async with raw_peer(server.uri) as peer:
        upload = await Sending.begin(peer, "n", digest=algorithm)
        (part,) = store._open.values()
        await peer.send(plain(1, data))
        await upload.committed(len(data))
        # The head of the item comes with its header, the rest another way; and then the next.
        failing_disk.append(error)
        item = plain(1, data)
        await peer.send(item[:40_000])
        await asyncio.sleep(0.02)
        await peer.send(item[40_000:], item)
        while (got := await peer.receive()) is not None and got.kind != ERROR:
            pass
        assert got is not None
        assert got.error[1].partition(":")[0] == ("storage_full" if error == errno.ENOSPC else "internal")
        await eventually(lambda: not store._open)
        assert part.digest.length == len(data)
        # The connection goes on, and so does the upload.
        again = await Sending.begin(peer, "m", 3)
        await peer.send(last(3, b"x", stored=b"x"))
        await again.published()


@pytest.mark.parametrize("digest", [None, "xxh3-128"])
async def test_no_room_for_one_chunk_of_a_download(
    server: FileServer, store: DirectoryStore, tmp_path: Path, digest: str | None, failing_disk: list[int]
) -> None:
    """What follows isn't written behind the hole."""
    data = content(20 * CHUNK + 5)
    await store.put("n", data)
    async with connected(server.uri) as files:
        failing_disk += [0] * 3 + [errno.ENOSPC]
        download = files.download_to("n", tmp_path / "got", window=3, digest=digest)
        if digest is None:
            with pytest.raises(StorageFull):
                await download
            (part,) = parts(tmp_path)
            there = (tmp_path / part).read_bytes()
            assert there == data[: len(there)]
        await download
    assert (tmp_path / "got").read_bytes() == data


async def test_peers_that_drip_do_not_keep_the_threads(server: FileServer, store: DirectoryStore) -> None:
    """There are more of them than threads."""
    await store.put("n", b"x" * 100_000)
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer(server.uri)) for _ in range(12)]
        is_over = False

        async def drip(number: int, peer: RawPeer) -> None:
            upload = await Sending.begin(peer, f"{number}", digest="xxh3-128")
            await peer.send(plain(1, bytes(200_000))[:70_000])
            while not is_over:
                await peer.send(b"x")
                await asyncio.sleep(0.001)
            assert upload.credit

        dripping = asyncio.gather(*(drip(number, peer) for number, peer in enumerate(peers)))
        await eventually(lambda: sum(transport._receiving is not None for transport in server._connections) >= 8)
        async with connected(server.uri) as files:
            assert await files.download("n", deadline=10) == b"x" * 100_000
        is_over = True
        await dripping


@pytest.mark.parametrize("digest", [None, "xxh3-128"])
async def test_some_of_a_chunk_is_progress(tmp_path: Path, digest: str | None, used: Counter[str]) -> None:
    data = content(300_000)
    info = {"name": "n", "size": len(data), "etag": "e", "modified": 0.0, "digest": None}
    head = {**info, "offset": 0, "length": len(data), "range_digest": digest_of(data)}

    async def serve_slowly(peer: RawPeer) -> None:
        while (got := await peer.receive()) is not None:
            if got.kind != REQUEST_STREAM:
                continue
            flag, body = payload(transfer_item(**head), data[:1000])
            await peer.send(frame(got.stream_id, PAYLOAD, NEXT | flag, body))
            transport = files._connector.current()._file_transport  # type: ignore
            await eventually(lambda: transport._diversions)
            item = plain(got.stream_id, data[1000:])
            for start in range(0, len(item), 30_000):
                await peer.send(item[start : start + 30_000])
                await asyncio.sleep(0.15)
            await peer.send(frame(got.stream_id, PAYLOAD, COMPLETE))

    async with raw_server(serve_slowly) as uri, connected(uri, ConnectOptions(progress_timeout=0.5)) as files:
        await files.download_to("n", tmp_path / "got", digest=digest)
    assert (tmp_path / "got").read_bytes() == data
    assert used["take_from"] or digest is not None  # which doesn't wait for long


async def test_an_upload_expires_while_it_is_diverted(server: FileServer, store: DirectoryStore) -> None:
    async with raw_peer(server.uri) as peer:
        upload = await Sending.begin(peer, "n")
        await peer.send(plain(1, b"x"))
        await upload.committed(1)
        assert await store.sweep(-60) == 1
        await peer.send(plain(1, b"x"))
        while (got := await peer.receive()) is not None and got.kind != ERROR:
            pass
        assert got is not None
        assert got.error[1].startswith("superseded:")
