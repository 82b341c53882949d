"""Chunks that the file lane moves at both ends, with a plain DirectoryStore: no wrapper that hides its files."""

import asyncio
import errno
import json
import os
import random
import ssl
import stat as stats
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reactivex import Observable
from reactivex import operators as ops

from rx_client import FileClient, Started, TransferEvent
from rx_client.connection.options import ConnectOptions
from rx_client.operators import retry_backoff
from server import ChatData, DirectoryStore, FileServer, Limits, serve
from server.routes.whole import UploadSpool
from shared.errors import ConnectionLost, IntegrityError, NotFound, SourceExhausted, StorageFull, Superseded
from shared.files.lane import FileLane
from shared.files.receiving import ReceiveJob
from shared.files.sending import SendJob
from shared.protocol.flow import DEFAULT_WINDOW
from shared.protocol.messages import FILE_CHUNK_BYTES
from tests.faults import fault_proxy
from tests.security.support import channel, chunks, stat
from tests.support import (
    APPLICATION_ERROR,
    CANCEL,
    COMPLETE,
    ERROR,
    FOLLOWS,
    HAS_UVLOOP,
    NEXT,
    PAYLOAD,
    REQUEST_N,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawFrame,
    RawPeer,
    client_stream_ids,
    eventually,
    frame,
    item,
    name_item,
    on_uvloop,
    payload,
    raw_peer,
    raw_server,
    request,
    route_item,
    server_stream_ids,
    transfer_item,
)
from tests.transfers.helpers import CHUNK, QUICK, Recorder, connected, content, digest_of, parts
from tests.transfers.test_faults import cut_now_and_then
from tests.transport.pairs import tls_contexts

ALGORITHMS = [None, "xxh3-128", "sha-256"]


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
    await eventually(lambda: not any(lane._receiver.jobs for lane in lanes_of(server)))
    assert not server.data.uploads._newest


def lanes_of(server: FileServer) -> list[FileLane]:
    """The lanes of a server's connections."""
    return [transport._lane for transport in server._connections if transport._lane is not None]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what the file lane does."""
    counted: Counter[str] = Counter()
    for owner, name in ((ReceiveJob, "take_here"), (ReceiveJob, "take_from"), (SendJob, "send_some")):
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


def received_by_lane(files: FileClient) -> Any:
    """The streams whose items go to a client's file lane, by their ids."""
    rsocket: Any = files._connector.current()
    lane = rsocket.transport._lane
    return {} if lane is None else lane._receiver.jobs


def streams_of(files: FileClient) -> list[Any]:
    """What a client has under way on its connection."""
    rsocket: Any = files._connector.current()
    return [] if rsocket is None else list(rsocket._stream_control._streams.values())


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
    assert used["take_here"]


@pytest.mark.parametrize("algorithm", [None, "xxh3-128"])
async def test_no_descriptor_for_a_thread(
    server: FileServer, tmp_path: Path, algorithm: str | None, used: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then items take the frame path, or at least aren't spliced."""
    data = content(200_000)

    def exhausted(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe", exhausted)
    for dup in (exhausted, os.dup):
        monkeypatch.setattr(os, "dup", dup)
        used.clear()
        async with raw_peer(server.uri) as peer:
            upload = await Sending.begin(peer, "n", digest=algorithm)
            await peer.send(plain(1, data)[:50_000])
            await asyncio.sleep(0.02)
            await peer.send(plain(1, data)[50_000:])
            await upload.committed(len(data))
            await peer.send(plain(1, data), last(1, b"", algorithm, stored=data * 2))
            await upload.published()
        assert (tmp_path / "store" / "n").read_bytes() == data * 2
        async with connected(server.uri) as files:
            await files.download_to("n", tmp_path / "got", digest=algorithm)
        assert (tmp_path / "got").read_bytes() == data * 2
        assert not used["take_from"]
        assert bool(used["take_here"]) == (dup is not exhausted)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have neither call")
@pytest.mark.parametrize("cannot", ["sendfile", "splice from the socket", "splice into the file"])
async def test_a_system_that_cannot_move_bytes_by_itself(
    server: FileServer, tmp_path: Path, cannot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems, and sandboxes, can't; only the call itself shows it."""
    data, refused = content(3_000_000), 0
    splice = os.splice

    def impossible(*_: object) -> int:
        nonlocal refused
        refused += 1
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def some_splice(source: int, target: int, nbytes: int, **how: Any) -> int:
        is_from_socket = stats.S_ISSOCK(os.fstat(source).st_mode)
        if is_from_socket == (cannot == "splice from the socket"):
            return impossible()
        return splice(source, target, nbytes, **how)

    if cannot == "sendfile":
        monkeypatch.setattr(os, "sendfile", impossible)
    else:
        monkeypatch.setattr(os, "splice", some_splice)
    source = tmp_path / "source"
    source.write_bytes(data)
    async with connected(server.uri) as files:
        await files.upload_from("n", source, digest=None)
        await files.download_to("n", tmp_path / "got", digest=None)
    assert (tmp_path / "store" / "n").read_bytes() == data
    assert (tmp_path / "got").read_bytes() == data
    assert refused


class Disk(threading.Event):
    """While it isn't set, all that writes a file waits for it.

    Attributes:
        waiting: How many writes do.
    """

    waiting = 0

    def pass_through(self) -> None:
        self.waiting += 1
        self.wait(10)
        self.waiting -= 1


@pytest.fixture
def blocked_disk(monkeypatch: pytest.MonkeyPatch) -> Generator[Disk, None, None]:
    """Set at first, and at the end."""
    free = Disk()
    free.set()
    pwritev, splice = os.pwritev, os.splice

    def slow_pwritev(fd: int, views: Any, offset: int) -> int:
        free.pass_through()
        return pwritev(fd, views, offset)

    def slow_splice(source: int, target: int, nbytes: int, **how: Any) -> int:
        if stats.S_ISREG(os.fstat(target).st_mode):
            free.pass_through()
        return splice(source, target, nbytes, **how)

    monkeypatch.setattr(os, "pwritev", slow_pwritev)
    monkeypatch.setattr(os, "splice", slow_splice)
    yield free
    free.set()


@pytest.mark.parametrize("vanishes", [False, True])
async def test_what_waits_for_a_slow_disk_is_bounded(tmp_path: Path, vanishes: bool, blocked_disk: Disk) -> None:
    """Of many streams together; else all that was requested on each of them would wait."""
    store, limits = DirectoryStore(tmp_path / "store"), Limits(max_unstored_bytes=1_500_000)
    data = content(200_000)
    flag, body = payload(item(b"some/thing", b""), data)
    async with serve(data=ChatData(store), limits=limits) as server, raw_peer(server.uri) as peer:
        uploads = [await Sending.begin(peer, f"n{stream_id}", stream_id) for stream_id in (1, 3, 5)]
        blocked_disk.clear()
        for _ in range(DEFAULT_WINDOW):
            peer.writer.writelines(frame(upload.stream_id, PAYLOAD, NEXT | flag, body) for upload in uploads)
        await eventually(lambda: server.work.unstored_bytes > 1_000_000)
        async with connected(server.uri) as files:
            with pytest.raises(NotFound):
                await files.stat("missing")
        assert server.work.unstored_bytes < 1_300_000, "two thirds, and one item"
        if vanishes:
            peer.writer.transport.abort()
        blocked_disk.set()
        while not vanishes and any(upload.receipts[-1]["committed"] < DEFAULT_WINDOW * len(data) for upload in uploads):
            got = await peer.receive(10)
            assert got is not None
            if got.kind == PAYLOAD:
                uploads[got.stream_id // 2].receipts.append(json.loads(got.metadata[got.metadata.index(b'{"') :]))
        await peer.close()
        await at_rest(server, store)
        assert not server.work.unstored_bytes


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
def failing_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Errors that the next writes to a file fail with, one each; 0 for one that succeeds."""
    errors: list[int] = []
    pwritev, splice = os.pwritev, os.splice

    def fail(fd: int) -> None:
        if errors and stats.S_ISREG(os.fstat(fd).st_mode) and (error := errors.pop(0)):
            raise OSError(error, os.strerror(error))

    def failing_pwritev(fd: int, views: Any, offset: int) -> int:
        fail(fd)
        return pwritev(fd, views, offset)

    def failing_splice(source: int, target: int, nbytes: int, **how: Any) -> int:
        fail(target)
        return splice(source, target, nbytes, **how)

    monkeypatch.setattr(os, "pwritev", failing_pwritev)
    monkeypatch.setattr(os, "splice", failing_splice)
    return errors


@pytest.mark.parametrize("algorithm", [None, "xxh3-128"])
async def test_a_newer_upload_waits_for_the_thread_of_the_oldest_also_when_the_one_between_has_gone(
    server: FileServer, tmp_path: Path, algorithm: str | None, blocked_disk: Disk
) -> None:
    data = content(100_000)
    async with raw_peer(server.uri) as first, raw_peer(server.uri) as third:
        await Sending.begin(first, "n", digest=algorithm)
        blocked_disk.clear()
        await first.send(plain(1, data))
        await eventually(lambda: blocked_disk.waiting)
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
        committed = upload.receipts[0]["committed"]  # of a zero-copy item it may be a part
        assert 0 < committed <= len(data)
        await third.send(last(1, data[committed:] + data, algorithm, stored=data + data))
        await upload.published()
    assert (tmp_path / "store" / "n").read_bytes() == data + data


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_an_upload_that_is_ended_twice_while_a_thread_writes_is_closed(
    server: FileServer, store: DirectoryStore, algorithm: str | None, blocked_disk: Disk
) -> None:
    """By the client's ERROR and then by the connection's end; a newer one may do the same."""
    async with raw_peer(server.uri) as peer:
        await Sending.begin(peer, "n", digest=algorithm)
        blocked_disk.clear()
        await peer.send(
            item_of("fragments", bytes(10_000))
        )  # which take the frame path, so that the connection goes on
        await eventually(lambda: blocked_disk.waiting)
        await peer.send(frame(1, ERROR, 0, APPLICATION_ERROR.to_bytes(4, "big")), stat(3, b"missing"))
        while (got := await peer.receive()) is not None and got.stream_id != 3:
            pass
    await eventually(lambda: not server.connections)
    assert store._open
    blocked_disk.set()
    await eventually(lambda: not store._open)


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
        assert got.error[1].partition(":")[0] == ("storage_full" if error == errno.ENOSPC else "storage_unavailable")
        await eventually(lambda: not store._open)
        assert part.digest.length == len(data)
        # The connection goes on, and so does the upload.
        again = await Sending.begin(peer, "m", 3)
        await peer.send(last(3, b"x", stored=b"x"))
        await again.published()


def head_of(data: bytes) -> bytes:
    """The metadata of a whole file's chunk."""
    info = {"name": "n", "size": len(data), "etag": "e", "modified": 0.0, "digest": None}
    return transfer_item(**info, offset=0, length=len(data), range_digest=digest_of(data))


async def first_chunk(peer: RawPeer, data: bytes, is_received_by_lane: Callable[[], object]) -> int | None:
    """Sends 1,000 bytes of a file that is asked for; the stream's id when the client's lane receives what follows.

    Returns None if the client has gone.
    """
    while (got := await peer.receive()) is not None:
        if got.kind == REQUEST_STREAM:
            flag, body = payload(head_of(data), data[:1000])
            await peer.send(frame(got.stream_id, PAYLOAD, NEXT | flag, body))
            await eventually(is_received_by_lane)
            return got.stream_id
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="splices")
async def test_no_room_for_one_chunk_of_a_download(tmp_path: Path, failing_disk: list[int]) -> None:
    """What follows isn't written behind the hole."""
    data = content(501_000)

    async def serve_one(peer: RawPeer) -> None:
        stream_id = await first_chunk(peer, data, lambda: received_by_lane(files))
        if stream_id is not None:
            items = (plain(stream_id, data[at : at + 100_000]) for at in range(1000, len(data), 100_000))
            await peer.send(*items, frame(stream_id, PAYLOAD, COMPLETE))
        while await peer.receive() is not None:
            pass

    async with raw_server(serve_one) as uri, connected(uri) as files:
        failing_disk += [0, errno.ENOSPC]
        with pytest.raises(StorageFull):
            await files.download_to("n", tmp_path / "got", digest=None)
        (part,) = parts(tmp_path)
        there = (tmp_path / part).read_bytes()
        assert 0 < len(there) < len(data)
        assert there == data[: len(there)]


@pytest.mark.parametrize("kind", ["plain", "metadata"])
@pytest.mark.parametrize("end", ["goes on", "disposed", "cut"])
async def test_no_more_than_16_chunks_of_a_download_wait_in_memory_for_a_slow_disk(
    tmp_path: Path, end: str, kind: str, blocked_disk: Disk
) -> None:
    nbytes, count = 300_000, 3 * DEFAULT_WINDOW
    data = content(1000 + count * nbytes)
    requested = DEFAULT_WINDOW - 1

    async def serve_one(peer: RawPeer) -> None:
        nonlocal requested
        stream_id = await first_chunk(peer, data, lambda: received_by_lane(files))
        if stream_id is None:
            return
        blocked_disk.clear()
        flag, head = payload(head_of(data)) if kind == "metadata" else (0, b"")
        for at in range(1000, len(data), nbytes):
            while not requested:
                got = await peer.receive()
                if got is None:
                    return
                requested += int.from_bytes(got.body, "big") if got.kind == REQUEST_N else 0
            requested -= 1
            peer.writer.write(frame(stream_id, PAYLOAD, NEXT | flag, head + data[at : at + nbytes]))
        peer.writer.write(frame(stream_id, PAYLOAD, COMPLETE))
        while await peer.receive() is not None:
            pass

    async with raw_server(serve_one) as uri, connected(uri) as files:
        heard = Recorder()
        subscription = files.download_to("n", tmp_path / "got").subscribe(heard)
        await eventually(lambda: not blocked_disk.is_set() and not requested)
        (stream,) = streams_of(files)
        demand, job = stream._demand, stream._job
        await eventually(lambda: not demand.outstanding)
        # The first chunk, which is written, is replenished with others; one is being written, and isn't in the job.
        assert demand.arrived - demand.consumed >= DEFAULT_WINDOW - 1
        # That nothing arrives is this side's doing: the download doesn't stall for it.
        assert not stream.awaits_server()
        await asyncio.sleep(0.2)
        assert not requested, "no more is requested meanwhile"
        assert demand.arrived - demand.consumed <= DEFAULT_WINDOW
        assert (DEFAULT_WINDOW - 2) * nbytes <= job.held_bytes <= DEFAULT_WINDOW * nbytes
        if end == "disposed":
            subscription.dispose()
        elif end == "cut":
            files._connector.current().transport.abort()
        blocked_disk.set()
        await eventually(lambda: heard.is_completed or heard.error or end == "disposed")
    assert isinstance(heard.error, ConnectionLost) == (end == "cut")
    assert heard.is_completed == (end == "goes on")
    assert not heard.is_completed or (tmp_path / "got").read_bytes() == data


@pytest.mark.parametrize("kind", ["plain", "metadata"])
async def test_no_more_than_16_chunks_of_an_upload_wait_in_memory_for_a_slow_disk(
    server: FileServer, tmp_path: Path, kind: str, blocked_disk: Disk
) -> None:
    """A peer that sends more than was requested is refused, and then nothing waits."""
    nbytes = 50_000
    async with raw_peer(server.uri) as peer:
        await Sending.begin(peer, "n", digest="xxh3-128")
        blocked_disk.clear()
        for number in range(DEFAULT_WINDOW):
            await peer.send(item_of(kind, content(nbytes, number)))
        # With plain items one is being written by the thread that has received it.
        await eventually(lambda: server.work.unstored_bytes >= (DEFAULT_WINDOW - 1) * nbytes)
        await peer.silence()
        assert server.work.unstored_bytes <= DEFAULT_WINDOW * nbytes
        await peer.send(item_of(kind, b"x" * nbytes))
        await eventually(lambda: not server.work.unstored_bytes)
        blocked_disk.set()
        while (got := await peer.receive()) is not None and got.kind != ERROR:
            pass
        assert got is not None
        assert got.error[1].startswith("invalid")


class SlowFile:
    """While it is blocked, the first file that is written to, or read by the lane, is stuck, and no other."""

    def __init__(self) -> None:
        self.waiting = 0
        self._free = threading.Event()
        self._free.set()
        self._file: tuple[int, int] | None = None

    def block(self) -> None:
        self._file = None
        self._free.clear()

    def free(self) -> None:
        self._free.set()

    def pass_through(self, fd: int) -> None:
        if self._free.is_set():
            return
        status = os.fstat(fd)
        file = status.st_dev, status.st_ino
        if self._file is None:
            self._file = file
        if file == self._file:
            self.waiting += 1
            self._free.wait(10)
            self.waiting -= 1


@pytest.fixture
def slow_file(monkeypatch: pytest.MonkeyPatch) -> Generator[SlowFile, None, None]:
    """Not blocked at first, nor at the end."""
    slow = SlowFile()
    pwritev, splice, preadv = os.pwritev, os.splice, os.preadv

    def slow_pwritev(fd: int, views: Any, offset: int) -> int:
        slow.pass_through(fd)
        return pwritev(fd, views, offset)

    def slow_splice(source: int, target: int, nbytes: int, **how: Any) -> int:
        if stats.S_ISREG(os.fstat(target).st_mode):
            slow.pass_through(target)
        return splice(source, target, nbytes, **how)

    def slow_preadv(fd: int, views: Any, offset: int) -> int:
        slow.pass_through(fd)
        return preadv(fd, views, offset)

    monkeypatch.setattr(os, "pwritev", slow_pwritev)
    monkeypatch.setattr(os, "splice", slow_splice)
    monkeypatch.setattr(os, "preadv", slow_preadv)
    yield slow
    slow.free()


async def the_others_go_on(files: FileClient, folder: Path, algorithm: str | None) -> None:
    """Asserts that other requests on a connection take less than a second each."""
    data = content(4 * CHUNK + 1, 7)
    (folder / "other source").write_bytes(data)
    async with asyncio.timeout(1):
        await files.upload("other", data)
    async with asyncio.timeout(1):
        assert (await files.stat("other")).size == len(data)
    async with asyncio.timeout(1):
        await files.upload_from("another", folder / "other source", digest=algorithm)
    async with asyncio.timeout(1):
        await files.download_to("another", folder / "another got", digest=algorithm)
    assert (folder / "store" / "another").read_bytes() == (folder / "another got").read_bytes() == data


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_slow_disk_of_the_server_holds_up_one_upload_alone(
    server: FileServer, tmp_path: Path, algorithm: str | None, slow_file: SlowFile
) -> None:
    """On one connection, with a digest; the others have one or have none."""
    data = content(60 * CHUNK + 1)
    (tmp_path / "source").write_bytes(data)
    async with connected(server.uri) as files:
        slow_file.block()
        heard = Recorder()
        files.upload_from("slow", tmp_path / "source").subscribe(heard)
        await eventually(lambda: slow_file.waiting)
        await the_others_go_on(files, tmp_path, algorithm)
        assert slow_file.waiting == 1
        assert server.work.unstored_bytes <= DEFAULT_WINDOW * FILE_CHUNK_BYTES
        slow_file.free()
        await heard.ended()
    assert heard.is_completed
    assert (tmp_path / "store" / "slow").read_bytes() == data


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_slow_disk_of_the_client_holds_up_one_download_alone(
    server: FileServer, store: DirectoryStore, tmp_path: Path, algorithm: str | None, slow_file: SlowFile
) -> None:
    data = content(60 * CHUNK + 1)
    await store.put("slow", data)
    async with connected(server.uri) as files:
        slow_file.block()
        heard = Recorder()
        files.download_to("slow", tmp_path / "slow got").subscribe(heard)
        await eventually(lambda: slow_file.waiting)
        (stream,) = streams_of(files)
        await the_others_go_on(files, tmp_path, algorithm)
        assert slow_file.waiting == 1
        assert stream._demand.arrived - stream._demand.consumed <= DEFAULT_WINDOW
        assert stream._job.held_bytes <= DEFAULT_WINDOW * FILE_CHUNK_BYTES
        slow_file.free()
        await heard.ended()
    assert heard.is_completed
    assert (tmp_path / "slow got").read_bytes() == data


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("end", ["goes on", "disposed"])
async def test_a_slow_disk_of_the_sender_holds_up_one_transfer_alone(
    server: FileServer, store: DirectoryStore, tmp_path: Path, way: str, end: str, slow_file: SlowFile
) -> None:
    data = content(60 * CHUNK + 1)
    await store.put("slow", data)
    (tmp_path / "source").write_bytes(data)
    heard = Recorder()
    async with connected(server.uri) as files:
        slow_file.block()
        if way == "up":
            subscription = files.upload_from("slow up", tmp_path / "source").subscribe(heard)
        else:
            subscription = files.download_to("slow", tmp_path / "slow got", digest="sha-256").subscribe(heard)
        await eventually(lambda: slow_file.waiting)
        await the_others_go_on(files, tmp_path, "xxh3-128")
        assert slow_file.waiting == 1
        if end == "disposed":
            subscription.dispose()
            await the_others_go_on(files, tmp_path, None)
        slow_file.free()
        if end == "goes on":
            await heard.ended()
    assert heard.is_completed == (end == "goes on")
    if end == "goes on":
        got = tmp_path / "store" / "slow up" if way == "up" else tmp_path / "slow got"
        assert got.read_bytes() == data


async def test_a_slow_disk_holds_up_one_transfer_alone_on_the_frame_path(
    store: DirectoryStore, tmp_path: Path, slow_file: SlowFile
) -> None:
    server_context, client_context = tls_contexts()
    data = content(30 * CHUNK + 1)
    (tmp_path / "source").write_bytes(data)
    async with serve(data=ChatData(store), tls=server_context) as server:
        await store.put("slow", data)
        uri = server.uri.replace("127.0.0.1", "localhost")
        for transfer in ("up", "down"):
            heard = Recorder()
            async with FileClient.connect(uri, tls=client_context) as files:
                slow_file.block()
                if transfer == "up":
                    files.upload_from("slow up", tmp_path / "source").subscribe(heard)
                else:
                    files.download_to("slow", tmp_path / "slow got").subscribe(heard)
                await eventually(lambda: slow_file.waiting)
                await the_others_go_on(files, tmp_path, "xxh3-128")
                assert slow_file.waiting == 1
                assert server.work.unstored_bytes <= DEFAULT_WINDOW * CHUNK
                slow_file.free()
                await heard.ended()
            assert heard.is_completed
        await at_rest(server, store)
    assert (tmp_path / "store" / "slow up").read_bytes() == (tmp_path / "slow got").read_bytes() == data


async def test_a_slow_disk_holds_up_one_upload_alone_also_with_the_last_piece_of_a_zero_copy_item(
    server: FileServer, store: DirectoryStore, tmp_path: Path, slow_file: SlowFile
) -> None:
    """Before the last piece the connection has to wait: the rest of the item stands in front of all else."""
    data = content(100_000)
    async with raw_peer(server.uri) as peer:
        upload = await Sending.begin(peer, "slow")
        (part,) = store._open.values()
        wire = plain(1, data)
        await peer.send(wire[:70_000])
        await eventually(lambda: part.digest.length > 60_000)
        slow_file.block()
        await peer.send(wire[70_000:], plain(1, data), stat(3, b"missing"))
        async with asyncio.timeout(2):
            while (await upload.hear()).stream_id != 3:
                pass
        assert slow_file.waiting
        slow_file.free()
        await upload.committed(2 * len(data))
        await peer.send(last(1, b"", stored=data + data))
        await upload.published()
    assert (tmp_path / "store" / "slow").read_bytes() == data + data


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
        received: set[FileLane] = set()  # not all at one moment: on a busy machine they have threads in turns

        def have_had_threads() -> bool:
            received.update(lane for lane in lanes_of(server) if lane.is_receiving)
            return len(received) > 8

        await eventually(have_had_threads)
        async with connected(server.uri) as files:
            assert await files.download("n", deadline=10) == b"x" * 100_000
        is_over = True
        await dripping


@pytest.mark.parametrize("digest", [None, "xxh3-128"])
async def test_some_of_a_chunk_is_progress(tmp_path: Path, digest: str | None, used: Counter[str]) -> None:
    data = content(300_000)

    async def serve_slowly(peer: RawPeer) -> None:
        stream_id = await first_chunk(peer, data, lambda: received_by_lane(files))
        if stream_id is not None:
            item = plain(stream_id, data[1000:])
            for start in range(0, len(item), 30_000):
                await peer.send(item[start : start + 30_000])
                await asyncio.sleep(0.15)
            await peer.send(frame(stream_id, PAYLOAD, COMPLETE))
        while await peer.receive() is not None:
            pass

    async with raw_server(serve_slowly) as uri, connected(uri, ConnectOptions(progress_timeout=0.5)) as files:
        await files.download_to("n", tmp_path / "got", digest=digest)
    assert (tmp_path / "got").read_bytes() == data
    assert used["take_from"] or digest is not None  # which doesn't wait for long


async def test_an_upload_expires_while_its_items_take_the_lane(server: FileServer, store: DirectoryStore) -> None:
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


async def round_trips(uri: str, folder: Path, tls: ssl.SSLContext | None = None) -> None:
    """Files whose sizes are around a multiple of a chunk's, up and down, several at a time on one connection."""
    sizes = [0, 1, *(chunks * CHUNK + more for chunks in (1, 2, 6) for more in (-1, 0, 1))]

    async def one(files: FileClient, size: int, algorithm: str | None, chunk: int) -> None:
        name = f"{size} {algorithm} {chunk}"
        source, got = folder / f"{name} source", folder / f"{name} got"
        source.write_bytes(content(size, size))
        await files.upload_from(name, source, chunk_size=chunk, digest=algorithm)
        events = await files.download_to(name, got, digest=algorithm).pipe(ops.to_list())
        assert events[-1].info.size == size
        assert got.read_bytes() == source.read_bytes()
        assert (folder / "store" / name).read_bytes() == source.read_bytes()

    async with FileClient.connect(uri, tls=tls) as files:
        for size in sizes:
            await asyncio.gather(*(one(files, size, algorithm, CHUNK) for algorithm in ALGORITHMS))
        # Chunks of other lengths; and the largest that there are.
        await asyncio.gather(*(one(files, 20_007, algorithm, 1000) for algorithm in ALGORITHMS))
        await asyncio.gather(*(one(files, 2_800_000, algorithm, 900_000) for algorithm in ALGORITHMS))
        await files.settle()
        await eventually(lambda: not client_stream_ids(files))
        await eventually(lambda: not received_by_lane(files))


async def test_round_trips(server: FileServer, tmp_path: Path, used: Counter[str]) -> None:
    await round_trips(server.uri, tmp_path)
    assert used["send_some"] > 30
    assert used["take_here"] > 20
    assert used["take_from"] > 3 or sys.platform != "linux"


@pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop isn't installed")
async def test_round_trips_on_uvloop(tmp_path: Path, used: Counter[str]) -> None:
    async def scenario() -> None:
        store = DirectoryStore(tmp_path / "store")
        async with serve(data=ChatData(store)) as server:
            await round_trips(server.uri, tmp_path)
            await at_rest(server, store)

    await asyncio.to_thread(on_uvloop, scenario())
    assert used["send_some"] > 30
    assert used["take_here"] > 20
    assert used["take_from"] > 3 or sys.platform != "linux"


@pytest.mark.parametrize(
    "runner",
    ["asyncio", pytest.param("uvloop", marks=pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop isn't installed"))],
)
async def test_round_trips_with_tls_take_the_lane_and_come_into_the_process(
    runner: str, tmp_path: Path, used: Counter[str]
) -> None:
    server_context, client_context = tls_contexts()

    async def scenario() -> None:
        store = DirectoryStore(tmp_path / "store")
        async with serve(data=ChatData(store), tls=server_context) as server:
            await round_trips(server.uri.replace("127.0.0.1", "localhost"), tmp_path, client_context)
            await at_rest(server, store)

    if runner == "asyncio":
        await scenario()
    else:
        await asyncio.to_thread(on_uvloop, scenario())
    assert used["send_some"] > 30
    assert used["take_here"] > 20
    assert not used["take_from"], "the system can't decrypt"


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_small_requests_beside_several_transfers(
    server: FileServer, store: DirectoryStore, tmp_path: Path, algorithm: str | None, used: Counter[str]
) -> None:
    data = content(40 * CHUNK + 1)
    await store.put("n", data)
    (tmp_path / "source").write_bytes(data)
    served = 0
    async with connected(server.uri) as files:

        async def ask() -> None:
            nonlocal served
            while not transfers.done():
                await asyncio.gather(files.upload(f"small {served % 7}", b"x" * served), files.stat("n"))
                served += 1

        transfers = asyncio.gather(
            *(files.upload_from(f"up {n}", tmp_path / "source", digest=algorithm) for n in range(3)),
            *(files.download_to("n", tmp_path / f"down {n}", digest=algorithm) for n in range(3)),
        )
        await ask()
        await transfers
        for n in range(3):
            assert (tmp_path / "store" / f"up {n}").read_bytes() == data
            assert (tmp_path / f"down {n}").read_bytes() == data
    assert served
    assert used["send_some"]
    assert used["take_here"]


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_disposed_at_many_points_and_gone_on_with(
    server: FileServer, store: DirectoryStore, tmp_path: Path, algorithm: str | None
) -> None:
    data = content(24 * CHUNK + 1)
    await store.put("n", data)
    (tmp_path / "source").write_bytes(data)
    chance = random.Random(algorithm)

    async def again_and_again(transfer: Observable[TransferEvent]) -> int:
        """Disposes it earlier or later, until it completes; how often that was."""
        disposed = 0
        while True:
            heard = Recorder()
            subscription = transfer.subscribe(heard)
            for _ in range(chance.randint(0, 12)):
                await asyncio.sleep(chance.choice([0, 0.001, 0.003]))
            if disposed == 15:
                await heard.ended()
            subscription.dispose()
            if heard.is_completed:
                return disposed
            assert heard.error is None
            disposed += 1

    async with connected(server.uri) as files:
        disposed = await asyncio.gather(
            *(again_and_again(files.upload_from(f"up {n}", tmp_path / "source", digest=algorithm)) for n in range(3)),
            *(again_and_again(files.download_to("n", tmp_path / f"down {n}", digest=algorithm)) for n in range(3)),
        )
        assert sum(disposed) > 6
        await files.settle()
        await eventually(lambda: not received_by_lane(files))
        for n in range(3):
            assert (tmp_path / "store" / f"up {n}").read_bytes() == data
            assert (tmp_path / f"down {n}").read_bytes() == data
    assert parts(tmp_path) == []


async def test_disposed_while_it_is_published(
    server: FileServer, store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread can't be stopped; the next subscription is another download."""
    data = content(4 * CHUNK + 1)
    await store.put("n", data)
    is_there, may_go_on, replace = threading.Event(), threading.Event(), os.replace

    def slow_replace(source: Any, target: Any) -> None:
        is_there.set()
        may_go_on.wait(10)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow_replace)
    async with connected(server.uri) as files:
        download = files.download_to("n", tmp_path / "got")
        subscription = download.subscribe(Recorder())
        await eventually(is_there.is_set)
        subscription.dispose()
        await asyncio.sleep(0)  # the cancellation reaches the attempt
        may_go_on.set()
        events = await download.pipe(ops.to_list())
        assert [event.resumed_from for event in events if isinstance(event, Started)] == [0]
    assert (tmp_path / "got").read_bytes() == data


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_cut_at_many_bytes_and_gone_on_with(
    server: FileServer, store: DirectoryStore, tmp_path: Path, algorithm: str | None, used: Counter[str]
) -> None:
    data = content(12 * CHUNK + 1)
    await store.put("n", data)
    (tmp_path / "source").write_bytes(data)

    async def cut(way: str, seed: int) -> None:
        async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as files:
            cutting = asyncio.ensure_future(cut_now_and_then(proxy, way, seed, (1, 4 * CHUNK)))
            if way == "u":
                upload = files.upload_from(f"{seed}", tmp_path / "source", digest=algorithm)
                await upload.pipe(retry_backoff(50, base=0.001))
            else:
                download = files.download_to("n", tmp_path / f"{seed}", window=8, digest=algorithm)
                await download.pipe(retry_backoff(50, base=0.001))
            cutting.cancel()
            assert ((tmp_path / "store" if way == "u" else tmp_path) / f"{seed}").read_bytes() == data

    await asyncio.gather(*(cut(way, seed) for seed, way in enumerate("uudd")))
    assert used["take_here"]


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_another_connection_takes_over(
    server: FileServer, tmp_path: Path, algorithm: str | None, used: Counter[str]
) -> None:
    data = content(30 * CHUNK + 1)
    (tmp_path / "source").write_bytes(data)
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri) as older, connected(server.uri) as newer:
        proxy.up.stall_after = 9 * CHUNK + 12_345  # half-dead, in the middle of an item
        heard = Recorder()
        older.upload_from("n", tmp_path / "source", upload_id="u", digest=algorithm).subscribe(heard)
        await eventually(lambda: proxy.up.is_stalled)
        await newer.upload_from("n", tmp_path / "source", upload_id="u", digest=algorithm)
        proxy.up.flow()
        await heard.ended()
        assert isinstance(heard.error, Superseded)
        assert (tmp_path / "store" / "n").read_bytes() == data
        await older.upload("m", b"x")
    assert used["take_here"]


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_full_disk_at_either_end(
    server: FileServer,
    store: DirectoryStore,
    tmp_path: Path,
    algorithm: str | None,
    small_files: Callable[[int], AbstractContextManager[None]],
) -> None:
    data = content(30 * CHUNK + 1)
    await store.put("n", data)
    (tmp_path / "source").write_bytes(data)
    async with connected(server.uri) as files:
        upload = files.upload_from("m", tmp_path / "source", digest=algorithm)
        download = files.download_to("n", tmp_path / "got", window=4, digest=algorithm)
        for transfer in (upload, download):
            with small_files(12 * CHUNK + 100), pytest.raises(StorageFull):
                await transfer
            await files.upload("small", b"x")
            events = await transfer.pipe(ops.to_list())
            (resumed,) = (event.resumed_from for event in events if isinstance(event, Started))
            assert 0 < resumed <= 12 * CHUNK + 100
        assert (tmp_path / "store" / "m").read_bytes() == (tmp_path / "got").read_bytes() == data


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_source_that_is_cut_short_or_replaced(
    server: FileServer, tmp_path: Path, algorithm: str | None
) -> None:
    data = content(40 * CHUNK + 1)

    async def upload(name: str, change: Callable[[Path], object]) -> Exception | None:
        source = tmp_path / name
        source.write_bytes(data)
        async with fault_proxy(server.uri) as proxy, connected(proxy.uri) as files:
            proxy.up.stall_after = 5 * CHUNK + 1234
            heard = Recorder()
            files.upload_from(name, source, digest=algorithm).subscribe(heard)
            await eventually(lambda: proxy.up.is_stalled)
            change(source)
            proxy.up.flow()
            await heard.ended()
            await files.upload("small", b"x")
        return heard.error

    def replace(source: Path) -> None:
        (tmp_path / "new").write_bytes(b"new")
        os.replace(tmp_path / "new", source)

    cut, replaced = await asyncio.gather(
        upload("cut", lambda source: os.truncate(source, 39 * CHUNK + 5)), upload("replaced", replace)
    )
    assert isinstance(cut, IntegrityError | ConnectionLost | SourceExhausted)
    assert not (tmp_path / "store" / "cut").exists()
    assert replaced is None
    assert (tmp_path / "store" / "replaced").read_bytes() == data


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_served_file_that_is_cut_short_or_written_to(
    server: FileServer, store: DirectoryStore, tmp_path: Path, algorithm: str | None
) -> None:
    """Typed, or the whole of what it is then; never some of both."""
    data = content(40 * CHUNK + 1)

    async def download(name: str, change: Callable[[Path], object], error: type[Exception] | tuple[()]) -> None:
        await store.put(name, data)
        served, got = tmp_path / "store" / name, tmp_path / name
        async with fault_proxy(server.uri) as proxy, connected(proxy.uri) as files:
            proxy.down.stall_after = 5 * CHUNK + 1234
            heard = Recorder()
            files.download_to(name, got, digest=algorithm).subscribe(heard)
            await eventually(lambda: proxy.down.is_stalled)
            change(served)
            proxy.down.flow()
            await heard.ended()
            if heard.error is None:
                assert got.read_bytes() == (data if name == "deleted" else served.read_bytes())
            else:
                assert isinstance(heard.error, error)
                assert not got.exists()
            await files.upload("small", b"x")

    def write(served: Path) -> None:
        with served.open("r+b") as file:
            file.seek(38 * CHUNK)
            file.write(b"changed")

    await asyncio.gather(
        download("cut", lambda served: os.truncate(served, 39 * CHUNK), ConnectionLost),
        download("changed", write, IntegrityError),
        download("deleted", os.unlink, ()),
    )


async def test_frozen_peers_hold_no_thread(server: FileServer, store: DirectoryStore) -> None:
    """There are more of them than threads, in the middle of an item of either direction."""
    await store.put("n", content(100 * CHUNK))
    async with AsyncExitStack() as stack:
        for number in range(20):
            peer = await stack.enter_async_context(raw_peer(server.uri))
            if number % 2:
                await peer.send(chunks(1, b"n", n=1000))
            else:
                algorithm = "xxh3-128" if number % 4 else None
                await Sending.begin(peer, f"{number}", digest=algorithm)
                await peer.send(plain(1, bytes(CHUNK)), plain(1, bytes(CHUNK))[:100_000])
        await eventually(
            lambda: sum(transport.flow.blocked_since is not None for transport in server._connections) == 10
        )
        async with connected(server.uri) as files:
            for _ in range(10):
                assert await files.download_chunks("n", length=10, deadline=10).pipe(ops.count()) == 1
                await files.upload("small", b"x", deadline=10)


async def test_a_peer_that_takes_nothing_is_cut(store: DirectoryStore) -> None:
    async with serve(data=ChatData(store), limits=Limits(blocked_seconds=0.5)) as server:
        await store.put("n", content(100 * CHUNK))
        async with raw_peer(server.uri) as peer:
            await peer.send(chunks(1, b"n", n=1000))
            await eventually(lambda: server.connections == 1)
            await eventually(lambda: server.connections == 0)
        await at_rest(server, store)


async def test_a_peer_that_vanishes_at_any_moment_of_a_download_is_no_error(
    server: FileServer, store: DirectoryStore
) -> None:
    await store.put("n", content(100 * CHUNK))
    for _ in range(20):
        async with raw_peer(server.uri) as peer:
            await peer.send(*(chunks(stream_id, b"n", n=1000) for stream_id in (1, 3, 5)))
            await peer.receive()
            await asyncio.sleep(random.random() / 50)
            peer.writer.transport.abort()
    await at_rest(server, store)
    assert (server.work.cancelled, server.work.failed) == (60, 0)


async def test_a_download_of_a_lost_connection_is_cancelled_also_while_the_connection_stores_something(
    server: FileServer, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def write(*_: object) -> None:
        begun.set()
        await gate.wait()

    monkeypatch.setattr(UploadSpool, "write", write)
    await store.put("n", content(100 * CHUNK))
    async with raw_peer(server.uri) as peer:
        upload = request(
            3, REQUEST_RESPONSE, route_item("file.upload") + name_item(b"u"), bytes(900_000), flags=FOLLOWS
        )
        await peer.send(chunks(1, b"n", n=1000), upload)
        await peer.receive()
        await asyncio.wait_for(begun.wait(), 5)
        peer.writer.transport.abort()
        await eventually(lambda: not server.work.active)
        gate.set()
    assert (server.work.cancelled, server.work.failed) == (1, 0)
    await at_rest(server, store)


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_server_that_stops_in_the_middle(tmp_path: Path, algorithm: str | None) -> None:
    data = content(60 * CHUNK + 1)
    (tmp_path / "source").write_bytes(data)
    store = DirectoryStore(tmp_path / "store")
    async with serve(data=ChatData(store)) as server:
        await store.put("n", data)
        async with (
            fault_proxy(server.uri) as up,
            fault_proxy(server.uri) as down,
            FileClient.connect(up.uri, options=QUICK) as uploader,
            FileClient.connect(down.uri, options=QUICK) as downloader,
        ):
            up.up.stall_after = down.down.stall_after = 5 * CHUNK + 1234
            upload, download = Recorder(), Recorder()
            uploader.upload_from("m", tmp_path / "source", digest=algorithm, upload_id="u").subscribe(upload)
            downloader.download_to("n", tmp_path / "got", digest=algorithm).subscribe(download)
            await eventually(lambda: up.up.is_stalled and down.down.is_stalled)
            async with asyncio.timeout(10):
                await server.close(grace_seconds=0.1)
            up.cut()
            down.cut()
            await upload.ended()
            await download.ended()
    async with serve(data=ChatData(store)) as server, connected(server.uri) as files:
        await files.upload_from("m", tmp_path / "source", digest=algorithm, upload_id="u")
        await files.download_to("n", tmp_path / "got", digest=algorithm)
        await at_rest(server, store)
    assert (tmp_path / "store" / "m").read_bytes() == (tmp_path / "got").read_bytes() == data


_items = st.lists(
    st.tuples(
        st.sampled_from(["plain", "metadata", "fragments"]), st.sampled_from([1, 100, 65_519, 65_520, 70_000, 270_000])
    ),
    min_size=1,
    max_size=24,
)


@pytest.mark.usefixtures("steady_windows")
@settings(deadline=None, max_examples=40)
@given(_items, st.sampled_from(ALGORITHMS[:2]), st.lists(st.integers(1, 150_000), max_size=8), st.booleans())
def test_items_of_all_kinds_in_any_order(
    kinds: list[tuple[str, int]], algorithm: str | None, cuts: list[int], knows_size: bool
) -> None:
    """What is stored is what was sent, in its order; credit and receipts are right."""
    items = [content(nbytes, index) for index, (_, nbytes) in enumerate(kinds)]
    data = b"".join(items)

    async def scenario(folder: str) -> None:
        store = DirectoryStore(folder)
        async with serve(data=ChatData(store)) as server, raw_peer(server.uri) as peer:
            size = len(data) if knows_size else None
            upload = await Sending.begin(peer, "n", digest=algorithm, size=size)
            pieces = list(cuts)
            for (kind, _), each in zip(kinds, items, strict=True):
                while not upload.credit:
                    await upload.hear()
                upload.credit -= 1
                wire = item_of(kind, each)
                while pieces and pieces[-1] < len(wire):
                    cut = pieces.pop()
                    await peer.send(wire[:cut])
                    await asyncio.sleep(0)
                    wire = wire[cut:]
                await peer.send(wire)
            await upload.committed(len(data))
            while not upload.credit:
                await upload.hear()
            assert upload.credit <= DEFAULT_WINDOW
            await peer.send(last(1, b"", algorithm, stored=data))
            await upload.published()
            assert upload.receipts[-1]["committed"] == len(data)
            await at_rest(server, store)
        assert (Path(folder) / "n").read_bytes() == data

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(folder))


def item_of(kind: str, data: bytes) -> bytes:
    """The frames of a `plain` item, one with `metadata`, or one in `fragments`."""
    if kind == "plain":
        return plain(1, data)
    if kind == "metadata":
        flag, body = payload(item(b"application/octet-stream", b"other"), data)
        return frame(1, PAYLOAD, NEXT | flag, body)
    half = len(data) // 2
    return frame(1, PAYLOAD, NEXT | FOLLOWS, data[:half]) + plain(1, data[half:])


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_more_than_was_announced(server: FileServer, algorithm: str | None) -> None:
    async with raw_peer(server.uri) as peer:
        await Sending.begin(peer, "n", digest=algorithm, size=1000)
        await peer.send(*(plain(1, bytes(100)) for _ in range(11)))
        while (got := await peer.receive()) is not None and got.kind != ERROR:
            pass
        assert got is not None
        assert got.error[1].startswith("integrity")
        await peer.send(stat(3, b"missing"))
        while (got := await peer.receive()) is not None and got.stream_id != 3:
            pass
        assert got is not None
