"""The windows of a transfer in chunks, seen by a raw peer: 16 while chunks go through the event loop, 64 past it."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import shared.files.lane
from server import ChatData, DirectoryStore, MemoryStore, Store, serve
from shared.protocol.flow import DEFAULT_WINDOW, DIRECT_WINDOW, unseen_window
from shared.protocol.messages import UNSEEN_CHUNK_BYTES
from tests.security.test_phases import asked, receipt
from tests.support import (
    COMPLETE,
    NEXT,
    PAYLOAD,
    REQUEST_N,
    RawPeer,
    frame,
    payload,
    raw_peer,
    raw_server,
    request_n,
)
from tests.transfers.helpers import CHUNK, Recorder, connected, content
from tests.transfers.test_direct import ALGORITHMS, Sending, diverted, first_chunk, head_of, item_of, last, plain

pytestmark = pytest.mark.skipif(not shared.files.lane.MOVES_FILES, reason="nothing goes past the loop")

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


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_server_asks_for_64_once_an_item_went_past_the_loop(tmp_path: Path, algorithm: str | None) -> None:
    async with crediting(DirectoryStore(tmp_path / "store"), algorithm) as upload:
        assert upload.most == DEFAULT_WINDOW
        await upload.send("plain")
        await upload.hear()
        while upload.upload.credit < DEFAULT_WINDOW:
            await upload.hear()
        assert upload.upload.credit == DIRECT_WINDOW - 1, "the item that was stored is owed, until there are 32"
        await upload.finish(algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_server_asks_for_no_more_than_64_of_any_kinds(tmp_path: Path, algorithm: str | None) -> None:
    async with crediting(DirectoryStore(tmp_path / "store"), algorithm) as upload:
        for number in range(50):
            await upload.send("metadata")
            if number % 7 == 0:
                await upload.committed()
        await upload.committed()
        assert upload.most == DEFAULT_WINDOW
        chance = random.Random(algorithm)
        for _ in range(300):
            await upload.send(chance.choice(["plain"] * 6 + ["metadata", "fragments"]))
        await upload.committed()
        while upload.upload.credit <= DIRECT_WINDOW // 2:
            await upload.hear()
        assert upload.most <= DIRECT_WINDOW
        await upload.finish(algorithm)
    assert (tmp_path / "store" / "n").read_bytes() == upload.sent


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
        most_before: The same before the first plain item.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = kinds
        self.data = content(len(kinds) * SMALL)
        self.credit = self.first = self.most = self.most_before = 0

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
                if "plain" not in self.kinds[:number]:
                    self.most_before = self.most
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


@pytest.mark.parametrize(
    ("algorithm", "window", "first", "most"),
    [
        ("xxh3-128", None, DEFAULT_WINDOW, DIRECT_WINDOW),
        (None, None, unseen_window(DEFAULT_WINDOW), unseen_window(DIRECT_WINDOW)),
        ("xxh3-128", 4, 4, 4),
        (None, 6, 2, 2),
    ],
)
async def test_a_client_asks_for_more_once_a_chunk_went_past_the_loop(
    tmp_path: Path, algorithm: str | None, window: int | None, first: int, most: int
) -> None:
    chance = random.Random(first)
    mixed = [chance.choice(["plain"] * 6 + ["head"]) for _ in range(200)]
    serving = Serving(["head"] * 50 + ["plain"] * 150 + mixed)
    async with raw_server(serving) as uri, connected(uri) as files:
        await files.download_to("n", tmp_path / "got", window=window, digest=algorithm)
    assert (tmp_path / "got").read_bytes() == serving.data
    assert (serving.first, serving.most_before) == (first, first)
    assert serving.most <= most
    assert serving.most > most // 2 or most == first


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        ("xxh3-128", DIRECT_WINDOW - DEFAULT_WINDOW),
        (None, unseen_window(DIRECT_WINDOW) - unseen_window(DEFAULT_WINDOW)),
    ],
)
async def test_a_client_asks_for_them_at_the_first_chunk(tmp_path: Path, algorithm: str | None, more: int) -> None:
    data = content(3000)
    asked_for: list[int] = []

    async def serve_one(peer: RawPeer) -> None:
        stream_id = await first_chunk(peer, data, lambda: diverted(files))
        if stream_id is None:
            return
        await peer.send(plain(stream_id, data[1000:2000]))
        while (got := await peer.receive()) is not None:
            asked_for.append(int.from_bytes(got.body, "big"))
            await peer.send(plain(stream_id, data[2000:]), frame(stream_id, PAYLOAD, COMPLETE))

    async with raw_server(serve_one) as uri, connected(uri) as files:
        await files.download_to("n", tmp_path / "got", digest=algorithm)
    assert asked_for == [more]


async def test_a_client_asks_for_no_more_than_16_for_a_writer() -> None:
    serving, writer = Serving(["head"] + ["plain"] * 99), Writer()
    async with raw_server(serving) as uri, connected(uri) as files:
        await files.download_to("n", writer)
    assert writer.data == serving.data
    assert serving.first == serving.most == DEFAULT_WINDOW


# Uploads, at the client


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

    async def confirms(self, count: int) -> None:
        """Says that so many more items are durable."""
        self._confirmed += count
        await self._peer.send(receipt(self._confirmed * self._item_bytes)(self._stream_id))


@asynccontextmanager
async def taking(source: Path | bytes, item_bytes: int, **options: Any) -> AsyncIterator[Taking]:
    """The server's side of an upload that has begun, and is disposed in the end."""
    begun: asyncio.Future[Taking] = asyncio.get_running_loop().create_future()
    is_over = asyncio.Event()

    async def serve_one(peer: RawPeer) -> None:
        request = await asked(peer)
        await peer.send(receipt(0)(request.stream_id), request_n(request.stream_id, 10_000))
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
@pytest.mark.parametrize(("window", "most"), [(None, DIRECT_WINDOW), (4, 4)])
async def test_a_client_sends_64_chunks_of_a_path_that_are_not_durable(
    tmp_path: Path, algorithm: str | None, window: int | None, most: int
) -> None:
    source = file_of(tmp_path / "source", 200 * SMALL)
    async with taking(source, SMALL, chunk_size=SMALL, window=window, digest=algorithm) as upload:
        await upload.takes(most)
        await upload.confirms(3)
        await upload.takes(3)


@pytest.mark.parametrize(("window", "most"), [(None, unseen_window(DIRECT_WINDOW)), (4, unseen_window(4))])
async def test_a_client_sends_as_many_bytes_that_nobody_sees(tmp_path: Path, window: int | None, most: int) -> None:
    source = file_of(tmp_path / "source", 30 * UNSEEN_CHUNK_BYTES)
    async with taking(source, UNSEEN_CHUNK_BYTES, window=window, digest=None) as upload:
        await upload.takes(most)
        await upload.confirms(1)
        await upload.takes(1)


async def test_a_client_sends_16_chunks_that_are_in_its_memory() -> None:
    async with taking(bytes(200 * SMALL), SMALL, chunk_size=SMALL) as upload:
        await upload.takes(DEFAULT_WINDOW)
        await upload.confirms(3)
        await upload.takes(3)


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
async def test_a_client_sends_16_chunks_of_what_a_file_has_grown_by(tmp_path: Path, algorithm: str | None) -> None:
    """They go through the event loop, and wait in memory."""
    source = file_of(tmp_path / "source", 100 * SMALL)
    async with taking(source, SMALL, chunk_size=SMALL, digest=algorithm) as upload:
        await upload.takes(DIRECT_WINDOW)
        file_of(source, 200 * SMALL)
        await upload.confirms(10)
        await upload.takes(10)
        await upload.confirms(20)
        await upload.takes(20)
        # Of the 99 that go past the loop 94 were sent, and 64 of those aren't durable.
        await upload.confirms(48 + 5)
        await upload.takes(5)
        await upload.confirms(1)
        await upload.takes(1)


# Where nobody can give way


async def test_a_system_whose_threads_cannot_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.files.lane, "_sched_yield", None)
    source, data = tmp_path / "source", content(5 * CHUNK + 1)
    source.write_bytes(data)
    async with serve(data=ChatData(DirectoryStore(tmp_path / "store"))) as server, connected(server.uri) as files:
        await files.upload_from("n", source)
        await files.download_to("n", tmp_path / "got")
    assert (tmp_path / "store" / "n").read_bytes() == (tmp_path / "got").read_bytes() == data
