"""The window of a transfer in chunks, seen by a raw peer: 16 items, whichever way they go, unless the line is long."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from reactivex import operators as ops

import shared.files.threads
from rx_client import Progress, Started
from server import ChatData, DirectoryStore, MemoryStore, Store, serve
from shared.errors import ConnectionLost
from shared.protocol.flow import DEFAULT_WINDOW, MAX_WINDOW_BYTES, WIDEST_WINDOW
from shared.protocol.messages import CHUNK_BYTES, FILE_CHUNK_BYTES, MAX_CHUNK_BYTES
from tests.faults import fault_proxy
from tests.security.test_phases import asked, receipt
from tests.stores.partwise import PART_BYTES, PartwiseStore
from tests.support import (
    COMPLETE,
    METADATA,
    NEXT,
    PAYLOAD,
    REQUEST_N,
    RawPeer,
    eventually,
    frame,
    payload,
    raw_peer,
    raw_server,
    request_n,
)
from tests.transfers.helpers import CHUNK, QUICK, Recorder, connected, content, digest_of
from tests.transfers.test_lane import ALGORITHMS, Sending, head_of, item_of, last, plain

SMALL = 100


# Uploads, at the server


class Crediting:
    """A raw peer's upload that never sends more than it was asked for.

    Attributes:
        most: Items that it might have sent and didn't, at the most.
    """

    def __init__(self, upload: Sending) -> None:
        self.upload = upload
        self.most = upload.credit
        self.sent = b""

    async def send(self, kind: str) -> None:
        while not self.upload.credit:
            await self.hear()
        self.upload.credit -= 1
        data = content(SMALL, len(self.sent))
        self.sent += data
        await self.upload.peer.send(item_of(kind, data))

    async def hear(self) -> None:
        await self.upload.hear()
        self.most = max(self.most, self.upload.credit)

    async def committed(self) -> None:
        """Returns when all is stored."""
        while self.upload.receipts[-1]["committed"] < len(self.sent):
            await self.hear()

    async def finish(self, algorithm: str | None) -> None:
        while not self.upload.credit:
            await self.hear()
        await self.upload.peer.send(last(1, b"", algorithm, stored=self.sent))
        await self.upload.published()


@asynccontextmanager
async def crediting(store: Store, algorithm: str | None) -> AsyncIterator[Crediting]:
    async with serve(data=ChatData(store)) as server, raw_peer(server.uri) as peer:
        yield Crediting(await Sending.begin(peer, "n", digest=algorithm))


@pytest.mark.usefixtures("steady_windows")
@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_server_asks_for_no_more_than_16_of_any_kinds(tmp_path: Path, algorithm: str | None) -> None:
    async with crediting(DirectoryStore(tmp_path / "store"), algorithm) as upload:
        assert upload.most == DEFAULT_WINDOW
        chance = random.Random(algorithm)
        for number in range(300):
            await upload.send(chance.choice(["plain"] * 6 + ["metadata", "fragments"]))
            if number % 50 == 0:
                await upload.committed()
        await upload.committed()
        while upload.upload.credit <= DEFAULT_WINDOW // 2:
            await upload.hear()
        assert upload.most == DEFAULT_WINDOW
        await upload.finish(algorithm)
    assert (tmp_path / "store" / "n").read_bytes() == upload.sent


@pytest.mark.usefixtures("steady_windows")
async def test_a_memory_server_asks_for_no_more_than_16() -> None:
    async with crediting(MemoryStore({}), None) as upload:
        for _ in range(100):
            await upload.send("plain")
        await upload.committed()
        assert upload.most == DEFAULT_WINDOW
        await upload.finish(None)


# Downloads, at the client


class Writer:
    """Takes a download."""

    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        self.data += data


class Serving:
    """A raw server's download, which never sends more than it was asked for.

    Args:
        kinds: Of its items: `plain`, or `head` for one with metadata.

    Attributes:
        data: The file.
        credit: Items that it may send.
        first: The same at the start.
        most: The same at the most.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = kinds
        self.data = content(len(kinds) * SMALL)
        self.credit = self.first = self.most = 0

    async def __call__(self, peer: RawPeer) -> None:
        request = await asked(peer)
        stream_id = request.stream_id
        self.credit = self.first = self.most = int.from_bytes(request.body[:4], "big")
        head = head_of(self.data)
        for number, kind in enumerate(self.kinds):
            while not self.credit:
                await self._hear(peer)
            self.credit -= 1
            data = self.data[number * SMALL : (number + 1) * SMALL]
            if kind == "plain":
                await peer.send(plain(stream_id, data))
            else:
                flag, body = payload(head, data)
                await peer.send(frame(stream_id, PAYLOAD, NEXT | flag, body))
        await peer.send(frame(stream_id, PAYLOAD, COMPLETE))
        while await self._hear(peer):
            pass

    async def _hear(self, peer: RawPeer) -> bool:
        got = await peer.receive()
        if got is not None and got.kind == REQUEST_N:
            self.credit += int.from_bytes(got.body, "big")
            self.most = max(self.most, self.credit)
        return got is not None


@pytest.mark.usefixtures("steady_windows")
@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
@pytest.mark.parametrize(("window", "most"), [(None, DEFAULT_WINDOW), (4, 4), (40, 40)])
async def test_a_client_asks_for_no_more_than_its_window(
    tmp_path: Path, algorithm: str | None, window: int | None, most: int
) -> None:
    chance = random.Random(most)
    mixed = [chance.choice(["plain"] * 6 + ["head"]) for _ in range(200)]
    serving = Serving(["head"] * 50 + ["plain"] * 50 + mixed)
    async with raw_server(serving) as uri, connected(uri) as files:
        await files.download_to("n", tmp_path / "got", window=window, digest=algorithm)
    assert (tmp_path / "got").read_bytes() == serving.data
    assert serving.first == serving.most == most


@pytest.mark.usefixtures("steady_windows")
async def test_a_client_asks_for_no_more_than_16_for_a_writer() -> None:
    serving, writer = Serving(["head"] + ["plain"] * 99), Writer()
    async with raw_server(serving) as uri, connected(uri) as files:
        await files.download_to("n", writer)
    assert writer.data == serving.data
    assert serving.first == serving.most == DEFAULT_WINDOW


# Uploads, at the client


Source = Path | bytes | list[bytes]


def make_source(kind: str, folder: Path, data: bytes, item_bytes: int) -> Source:
    """`data` as a `path`, `bytes`, or an `iterable`."""
    if kind == "path":
        path = folder / "source"
        path.write_bytes(data)
        return path
    return data if kind == "bytes" else [data[at : at + item_bytes] for at in range(0, len(data), item_bytes)]


class Taking:
    """A raw server's side of an upload: more is asked for than there is, and nothing confirmed of its own accord."""

    def __init__(self, peer: RawPeer, stream_id: int, item_bytes: int) -> None:
        self._peer = peer
        self._stream_id = stream_id
        self._item_bytes = item_bytes
        self._received = self._confirmed = 0

    async def takes(self, count: int) -> None:
        """Asserts that so many more items come now, and no more."""
        for _ in range(count):
            got = await self._peer.receive()
            assert got is not None
            assert (got.kind, got.flags, len(got.data)) == (PAYLOAD, NEXT, self._item_bytes)
        self._received += count
        await self._peer.silence(0.05)

    async def end(self) -> dict[str, Any]:
        """What the last item says, which comes now."""
        got = await self._peer.receive()
        assert got is not None
        assert (got.kind, got.flags) == (PAYLOAD, NEXT | COMPLETE | METADATA)
        return json.loads(got.metadata[got.metadata.index(b'{"') :])

    async def confirms(self, count: int) -> None:
        """Says that so many more items are durable."""
        self._confirmed += count
        await self._peer.send(receipt(self._confirmed * self._item_bytes)(self._stream_id))


@asynccontextmanager
async def taking(
    source: Source, item_bytes: int, *, announced: int | None = None, **options: Any
) -> AsyncIterator[Taking]:
    """The server's side of an upload that has begun, and is disposed in the end.

    Args:
        source: What is uploaded.
        item_bytes: What each item is to carry.
        announced: The window in bytes that the first receipt announces, if any.
        options: Of the upload.
    """
    begun: asyncio.Future[Taking] = asyncio.get_running_loop().create_future()
    is_over = asyncio.Event()

    async def serve_one(peer: RawPeer) -> None:
        request = await asked(peer)
        await peer.send(receipt(0, window=announced)(request.stream_id), request_n(request.stream_id, 10_000))
        begun.set_result(Taking(peer, request.stream_id, item_bytes))
        await is_over.wait()

    async with raw_server(serve_one) as uri, connected(uri) as files:
        subscription = files.upload_from("n", source, **options).subscribe(Recorder())
        try:
            yield await begun
        finally:
            subscription.dispose()
            is_over.set()


def file_of(path: Path, nbytes: int) -> Path:
    """A sparse file."""
    with path.open("wb") as file:
        file.truncate(nbytes)
    return path


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
@pytest.mark.parametrize(("window", "most"), [(None, WIDEST_WINDOW), (4, 4), (40, 40)])
async def test_a_client_sends_no_more_items_of_a_path_than_its_window(
    tmp_path: Path, algorithm: str | None, window: int | None, most: int
) -> None:
    source = file_of(tmp_path / "source", 200 * SMALL)
    async with taking(source, SMALL, chunk_size=SMALL, window=window, digest=algorithm) as upload:
        await upload.takes(most)
        await upload.confirms(3)
        await upload.takes(3)


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
@pytest.mark.parametrize(
    ("window", "most", "item_bytes"), [(None, WIDEST_WINDOW, FILE_CHUNK_BYTES), (4, 4, CHUNK_BYTES)]
)
async def test_a_client_sends_a_path_in_larger_items_unless_its_window_is_given(
    tmp_path: Path, algorithm: str | None, window: int | None, most: int, item_bytes: int
) -> None:
    source = file_of(tmp_path / "source", 2 * WIDEST_WINDOW * FILE_CHUNK_BYTES)
    async with taking(source, item_bytes, window=window, digest=algorithm) as upload:
        await upload.takes(most)
        await upload.confirms(1)
        await upload.takes(1)


@pytest.mark.parametrize("kind", ["bytes", "iterable"])
async def test_a_client_sends_chunks_that_are_in_its_memory_as_the_server_asks_for_them(kind: str) -> None:
    data = bytes(200 * SMALL)
    source = data if kind == "bytes" else [data[at : at + SMALL] for at in range(0, len(data), SMALL)]
    async with taking(source, SMALL, chunk_size=SMALL) as upload:
        await upload.takes(WIDEST_WINDOW)
        await upload.confirms(3)
        await upload.takes(3)


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_file_that_grows_while_it_is_uploaded_is_sent_as_it_was(tmp_path: Path, algorithm: str | None) -> None:
    source, data = tmp_path / "source", content(60 * SMALL)
    source.write_bytes(data)
    async with taking(source, SMALL, chunk_size=SMALL, digest=algorithm, window=DEFAULT_WINDOW) as upload:
        await upload.takes(DEFAULT_WINDOW)
        source.write_bytes(data + b"more" * SMALL)
        for _ in range(43):
            await upload.confirms(1)
            await upload.takes(1)
        await upload.confirms(1)
        end = await upload.end()
        assert end["size"] == len(data)
        assert end["digest"] == (None if algorithm is None else digest_of(data, algorithm))


# A window that the server announces


@pytest.mark.parametrize("kind", ["path", "bytes", "iterable"])
@pytest.mark.parametrize(("announced", "most"), [(40 * SMALL, 40), (40 * SMALL + 1, 41), (3 * SMALL, DEFAULT_WINDOW)])
async def test_a_client_sends_as_much_as_the_server_announces(
    tmp_path: Path, kind: str, announced: int, most: int
) -> None:
    source = make_source(kind, tmp_path, bytes(200 * SMALL), SMALL)
    async with taking(source, SMALL, announced=announced, chunk_size=SMALL, window=DEFAULT_WINDOW) as upload:
        await upload.takes(most)
        await upload.confirms(3)
        await upload.takes(3)


@pytest.mark.parametrize("kind", ["path", "bytes", "iterable"])
async def test_a_client_sends_no_more_than_the_bound_whatever_the_server_announces(tmp_path: Path, kind: str) -> None:
    """So the memory that a server can make it use is bounded."""
    items = MAX_WINDOW_BYTES // MAX_CHUNK_BYTES + 1
    data = bytes((items + 5) * MAX_CHUNK_BYTES)
    source = make_source(kind, tmp_path, data, MAX_CHUNK_BYTES)
    async with taking(source, MAX_CHUNK_BYTES, announced=2**40, chunk_size=MAX_CHUNK_BYTES) as upload:
        await upload.takes(items)
        await upload.confirms(2)
        await upload.takes(2)


@pytest.mark.parametrize("kind", ["bytes", "iterable"])
async def test_what_a_server_announces_and_does_not_take_is_bounded_in_memory(tmp_path: Path, kind: str) -> None:
    """It asks for everything, and reads nothing: no more than 16 items wait for the socket."""
    data = bytes(100 * MAX_CHUNK_BYTES)
    begun, is_over = asyncio.Event(), asyncio.Event()

    async def serve_one(peer: RawPeer) -> None:
        request = await asked(peer)
        await peer.send(receipt(0, window=2**40)(request.stream_id), request_n(request.stream_id, 2**31 - 1))
        begun.set()
        await is_over.wait()

    async with raw_server(serve_one) as uri, connected(uri) as files:
        source = make_source(kind, tmp_path, data, MAX_CHUNK_BYTES)
        subscription = files.upload_from("n", source, chunk_size=MAX_CHUNK_BYTES).subscribe(Recorder())
        await begun.wait()
        outbox: Any = files._connector.current().outbox  # pyright: ignore[reportOptionalMemberAccess]
        await eventually(lambda: len(outbox._entries) > DEFAULT_WINDOW // 2)
        await asyncio.sleep(0.2)
        assert len(outbox._entries) <= DEFAULT_WINDOW
        subscription.dispose()
        is_over.set()


@pytest.mark.parametrize("kind", ["path", "bytes", "iterable"])
@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_an_upload_to_a_store_that_makes_large_parts_durable(
    tmp_path: Path, kind: str, algorithm: str | None
) -> None:
    """8 MiB at a time, which is more than 16 chunks of 256 KiB: without the announcement, both sides would wait."""
    data = content(30_000_000)
    store = PartwiseStore()
    async with serve(data=ChatData(store)) as server, connected(server.uri) as files:
        source = make_source(kind, tmp_path, data, 100_000)
        events = await files.upload_from("n", source, digest=algorithm).pipe(ops.to_list())
        durable = {event.transferred for event in events if isinstance(event, Progress)}
        assert durable <= {PART_BYTES, 2 * PART_BYTES, 3 * PART_BYTES, len(data)}
        assert await files.download("n") == data


async def test_an_upload_to_such_a_store_continues_where_the_last_part_ends(tmp_path: Path) -> None:
    data = content(30_000_000)
    (tmp_path / "source").write_bytes(data)
    async with (
        serve(data=ChatData(PartwiseStore())) as server,
        fault_proxy(server.uri) as proxy,
        connected(proxy.uri, QUICK) as files,
    ):
        proxy.up.cut_after = 20_000_000
        upload = files.upload_from("n", tmp_path / "source", upload_id="u")
        with pytest.raises(ConnectionLost):
            await upload
        events = await upload.pipe(ops.to_list())
        (resumed,) = (event.resumed_from for event in events if isinstance(event, Started))
        assert resumed in (PART_BYTES, 2 * PART_BYTES)
        assert await files.download("n") == data


# Where a thread can't yield the CPU


async def test_a_system_whose_threads_cannot_yield_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.files.threads, "_sched_yield", None)
    source, data = tmp_path / "source", content(5 * CHUNK + 1)
    source.write_bytes(data)
    async with serve(data=ChatData(DirectoryStore(tmp_path / "store"))) as server, connected(server.uri) as files:
        await files.upload_from("n", source)
        await files.download_to("n", tmp_path / "got")
    assert (tmp_path / "store" / "n").read_bytes() == (tmp_path / "got").read_bytes() == data
