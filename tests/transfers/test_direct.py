"""Chunks that go past the event loop at both ends, with a plain DirectoryStore: no wrapper that hides its files."""

import asyncio
import errno
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from server import ChatData, DirectoryStore, FileServer, serve
from shared.direct import Diversion, FileItems
from tests.security.support import channel, serves
from tests.support import (
    CANCEL,
    FOLLOWS,
    NEXT,
    PAYLOAD,
    REQUEST_N,
    RawFrame,
    RawPeer,
    eventually,
    frame,
    payload,
    raw_peer,
    server_stream_ids,
    transfer_item,
)
from tests.transfers.helpers import content, digest_of


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
        assert got.stream_id == self.stream_id
        if got.kind == REQUEST_N:
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
