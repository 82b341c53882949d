"""The wire of chunked transfers, spoken frame by frame by peers that know nothing of our code, and keep to no rule."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from reactivex import operators as ops

from rx_client import Chunk, Completed, Progress, Started
from server import FileServer
from shared import Changed, IntegrityError, InvalidRequest, NotFound, ProtocolError, RemoteError, Superseded, TooLarge
from tests.support import (
    APPLICATION_ERROR,
    CANCEL,
    COMPLETE,
    ERROR,
    INVALID,
    KEEPALIVE,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_N,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    SETUP,
    RawFrame,
    RawPeer,
    eventually,
    frame,
    item,
    name_item,
    payload,
    raw_peer,
    raw_server,
    request,
    request_n,
    route_item,
    transfer_item,
)
from tests.transfers.helpers import CHUNK, Recorder, WatchedStore, connected, content, digest_of, make_store, parts

SERVER_WINDOW = 16


@pytest.fixture(params=["memory", "lane"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> WatchedStore:
    """One for each way that items take: what is on the wire isn't the store's."""
    return make_store(request.param, tmp_path)


@pytest.fixture
async def peer(server: FileServer) -> AsyncGenerator[RawPeer, None]:
    async with raw_peer(server.uri) as peer:
        yield peer


def down(stream_id: int, name: str, *, n: int = 2**31 - 1, raw: bytes | None = None, **said: object) -> bytes:
    transfer = transfer_item(**said) if raw is None else raw
    metadata = route_item("file.download") + name_item(name.encode()) + transfer
    return request(stream_id, REQUEST_STREAM, metadata, n=n)


def up(
    stream_id: int,
    name: str,
    data: bytes = b"",
    *,
    n: int = 1000,
    raw: bytes | None = None,
    flags: int = 0,
    **said: Any,
) -> bytes:
    transfer = transfer_item(**{"upload_id": "one", **said}) if raw is None else raw
    metadata = route_item("file.upload") + name_item(name.encode()) + transfer
    return request(stream_id, REQUEST_CHANNEL, metadata, data, n=n, flags=flags)


def chunk(stream_id: int, data: bytes, *, flags: int = 0) -> bytes:
    return frame(stream_id, PAYLOAD, NEXT | flags, data)


def last(stream_id: int, data: bytes = b"", *, flags: int = COMPLETE, **said: object) -> bytes:
    flag, body = payload(transfer_item(**said), data)
    return frame(stream_id, PAYLOAD, NEXT | flag | flags, body)


def said_in(got: RawFrame | None) -> dict[str, Any]:
    """What a frame's one metadata item says."""
    assert got is not None
    kind, rest = got.metadata[1 : got.metadata[0] + 2], got.metadata[got.metadata[0] + 2 :]
    assert kind == b"chat/file-transfer"
    assert int.from_bytes(rest[:3], "big") == len(rest) - 3
    return json.loads(rest[3:])


async def until_error(peer: RawPeer, stream_id: int) -> tuple[int, str]:
    """The ERROR of a stream, whatever comes before it."""
    while True:
        got = await peer.receive()
        assert got is not None, "the connection was closed"
        assert not (got.stream_id == stream_id and got.flags & COMPLETE), "completed"
        if got.kind == ERROR:
            assert got.stream_id == stream_id
            return got.error


async def all_items(peer: RawPeer, stream_id: int) -> list[RawFrame]:
    items: list[RawFrame] = []
    while True:
        got = await peer.receive()
        assert got is not None
        assert got.stream_id == stream_id
        assert got.kind == PAYLOAD, got
        if got.flags & NEXT:
            items.append(got)
        if got.flags & COMPLETE:
            return items


# The download's stream, of a server of ours


@pytest.mark.parametrize("size", [0, 1, CHUNK, 3 * CHUNK + 1])
async def test_a_downloads_first_and_last_item_say_what_it_is(store: WatchedStore, peer: RawPeer, size: int) -> None:
    data = content(size)
    await store.put("n", data)
    for stream_id, (digest, algorithm) in enumerate([({}, "xxh3-128"), ({"digest": "sha-256"}, "sha-256")]):
        await peer.send(down(2 * stream_id + 1, "n", **digest))
        items = await all_items(peer, 2 * stream_id + 1)
        assert b"".join(got.data for got in items) == data
        head, tail = said_in(items[0]), said_in(items[-1])
        assert (head["name"], head["size"], head["offset"], head["length"]) == ("n", size, 0, size)
        assert {"etag", "modified", "digest"} <= head.keys()
        assert tail["range_digest"] == digest_of(data, algorithm)
        assert tail["etag"] == head["etag"]
        assert not any(got.metadata for got in items[1:-1])


async def test_a_download_honours_request_n_one_by_one(store: WatchedStore, peer: RawPeer) -> None:
    await store.put("n", content(5 * CHUNK))
    await peer.send(down(1, "n", n=1))
    for _ in range(4):
        got = await peer.receive()
        assert got is not None
        assert got.flags & NEXT
        await peer.silence(0.05)
        assert store.produced <= 5 * CHUNK
        await peer.send(request_n(1, 1))
    assert len(await all_items(peer, 1)) == 1


@pytest.mark.parametrize(
    ("said", "code", "word"),
    [
        ({"offset": -1}, INVALID, "invalid_request"),
        ({"offset": 11}, INVALID, "invalid_request"),
        ({"offset": 2**63 - 1}, INVALID, "invalid_request"),
        ({"offset": 2**63}, INVALID, "invalid_request"),
        ({"offset": 10**400}, INVALID, "invalid_request"),
        ({"offset": 1.5}, INVALID, "invalid_request"),
        ({"offset": True}, INVALID, "invalid_request"),
        ({"length": -1}, INVALID, "invalid_request"),
        ({"length": "all"}, INVALID, "invalid_request"),
        ({"digest": "md5"}, INVALID, "invalid_request"),
        ({"digest": 5}, INVALID, "invalid_request"),
        ({"offset": 3, "digest_from": 4}, INVALID, "invalid_request"),
        ({"digest_from": -1}, INVALID, "invalid_request"),
        ({"if_match": "other"}, APPLICATION_ERROR, "changed"),
        ({"if_match": 5}, INVALID, "invalid_request"),
    ],
)
async def test_a_download_that_makes_no_sense(
    store: WatchedStore, peer: RawPeer, said: dict[str, Any], code: int, word: str
) -> None:
    await store.put("n", bytes(10))
    await peer.send(down(1, "n", **said))
    error = await until_error(peer, 1)
    assert error[0] == code
    assert error[1].startswith(f"{word}: ")
    await peer.send(down(3, "n"))
    assert len(await all_items(peer, 3)) == 1


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"1", b"[" * 15_000])
@pytest.mark.parametrize("make", [down, up])
async def test_garbage_instead_of_json(peer: RawPeer, make: Callable[..., bytes], raw: bytes) -> None:
    await peer.send(make(1, "n", raw=item(b"chat/file-transfer", raw)))
    assert (await until_error(peer, 1))[1].startswith("invalid_request: ")


@pytest.mark.parametrize("make", [down, up])
async def test_two_transfer_items(peer: RawPeer, make: Callable[..., bytes]) -> None:
    await peer.send(make(1, "n", raw=transfer_item(upload_id="one") + transfer_item(upload_id="one")))
    code, text = await until_error(peer, 1)
    assert code == INVALID
    assert "more than one" in text


async def test_a_range_with_its_digest_from_the_start(store: WatchedStore, peer: RawPeer) -> None:
    data = content(3 * CHUNK)
    await store.put("n", data)
    await peer.send(down(1, "n", offset=2 * CHUNK, length=100, digest_from=7))
    (got,) = await all_items(peer, 1)
    assert said_in(got)["range_digest"] == digest_of(data[7 : 2 * CHUNK + 100])
    assert got.data == data[2 * CHUNK :][:100]


async def test_without_a_digest_none_is_sent(store: WatchedStore, peer: RawPeer) -> None:
    await store.put("n", bytes(10))
    await peer.send(down(1, "n", digest=None, offset=1))
    (got,) = await all_items(peer, 1)
    assert "range_digest" not in said_in(got)


# The upload's channel, of a server of ours


async def begun(peer: RawPeer, stream_id: int, committed: int, asked: int = SERVER_WINDOW) -> None:
    """The server's first receipt, and its demand, in either order."""
    seen: set[int] = set()
    while seen != {PAYLOAD, REQUEST_N}:
        got = await peer.receive()
        assert got is not None
        assert got.stream_id == stream_id
        seen.add(got.kind)
        if got.kind == PAYLOAD:
            assert said_in(got) == {"committed": committed}
        else:
            assert got.kind == REQUEST_N, got
            assert int.from_bytes(got.body, "big") == asked


async def final(peer: RawPeer, stream_id: int) -> dict[str, Any]:
    """The final receipt; those before it never go back."""
    committed = 0
    while True:
        got = await peer.receive()
        assert got is not None
        assert got.kind in (PAYLOAD, REQUEST_N, CANCEL), got
        if got.kind == PAYLOAD and got.flags & NEXT:
            said = said_in(got)
            assert said["committed"] >= committed
            committed = said["committed"]
            if "name" in said:
                return said


async def test_an_upload_by_hand(store: WatchedStore, peer: RawPeer) -> None:
    data = content(100_000)
    await peer.send(up(1, "n", size=len(data)))
    await begun(peer, 1, 0)
    await peer.send(chunk(1, data[:60_000]), last(1, data[60_000:], size=len(data), digest=digest_of(data)))
    receipt = await final(peer, 1)
    assert receipt["committed"] == receipt["size"] == len(data)
    assert (receipt["name"], receipt["digest"]) == ("n", digest_of(data))
    assert await store.content("n") == data


@pytest.mark.parametrize("is_complete", [True, False])
async def test_the_end_may_come_in_a_frame_of_its_own(store: WatchedStore, peer: RawPeer, is_complete: bool) -> None:
    await peer.send(up(1, "n"))
    await begun(peer, 1, 0)
    await peer.send(chunk(1, b"abc"), last(1, flags=0, size=3, digest=digest_of(b"abc")))
    if is_complete:
        await peer.send(frame(1, PAYLOAD, COMPLETE))
    assert (await final(peer, 1))["size"] == 3


async def test_a_client_that_takes_one_receipt_at_a_time(store: WatchedStore, peer: RawPeer) -> None:
    """Receipts that weren't requested are left out, but the last isn't."""
    await peer.send(up(1, "n", n=1))
    await begun(peer, 1, 0)
    for _ in range(10):
        await peer.send(chunk(1, b"x" * 10))
    await peer.send(last(1, size=100, digest=digest_of(b"x" * 100)))
    await eventually(lambda: store.began and not store.writers)
    while True:  # a second REQUEST_N, perhaps, and no receipt
        try:
            got = await peer.receive(0.1)
        except TimeoutError:
            break
        assert got is not None
        assert got.kind != PAYLOAD
    await peer.send(request_n(1, 1))
    got = await peer.receive()
    assert said_in(got)["size"] == 100


async def test_the_first_bytes_may_come_with_the_request(store: WatchedStore, peer: RawPeer) -> None:
    data = content(50_000)
    await peer.send(up(1, "n", data[:20_000]))
    seen: list[int] = []
    while True:
        got = await peer.receive()
        assert got is not None
        if got.kind == REQUEST_N:
            assert int.from_bytes(got.body, "big") <= SERVER_WINDOW
            break
        seen.append(said_in(got)["committed"])
    assert seen == sorted(seen)
    await peer.send(chunk(1, data[20_000:]), last(1, size=len(data), digest=digest_of(data)))
    assert (await final(peer, 1))["digest"] == digest_of(data)
    assert await store.content("n") == data


async def test_the_first_bytes_are_refused_where_the_upload_goes_on(store: WatchedStore, peer: RawPeer) -> None:
    await peer.send(up(1, "n"))
    await begun(peer, 1, 0)
    await peer.send(chunk(1, b"abc"))
    await eventually(lambda: store.appended == 3)
    await peer.send(up(3, "n", b"abc"))
    errors: dict[int, str] = {}
    while len(errors) < 2:
        got = await peer.receive()
        assert got is not None
        if got.kind == ERROR:
            errors[got.stream_id] = got.error[1].partition(":")[0]
    assert errors == {1: "superseded", 3: "invalid_request"}


@pytest.mark.parametrize("store", ["memory"], indirect=True)
async def test_items_beyond_the_credit_are_refused_and_bounded(store: WatchedStore, peer: RawPeer) -> None:
    store.before_append.close()
    await peer.send(up(1, "n"))
    await begun(peer, 1, 0)
    await peer.send(*[chunk(1, b"x" * 1000) for _ in range(SERVER_WINDOW + 1)])
    store.before_append.open()
    await until_error(peer, 1)
    assert await store.names() == []


async def test_a_second_items_end_and_what_follows_it(store: WatchedStore, peer: RawPeer) -> None:
    store.before_commit.close()
    await peer.send(up(1, "n"))
    await begun(peer, 1, 0)
    await peer.send(last(1, b"abc", flags=0, size=3, digest=digest_of(b"abc")), chunk(1, b"more"))
    store.before_commit.open()
    # Either the end was acted on already, or what follows it is refused; never more than the end said.
    while True:
        got = await peer.receive()
        assert got is not None
        if got.kind == ERROR:
            assert got.error[1].startswith("invalid_request: ")
            break
        if got.kind == PAYLOAD and "name" in said_in(got):
            assert said_in(got)["size"] == 3
            break


@pytest.mark.parametrize(
    ("frames", "word"),
    [
        ([chunk(1, b"abc"), frame(1, PAYLOAD, COMPLETE)], "integrity_error"),
        ([frame(1, PAYLOAD, COMPLETE)], "integrity_error"),
        ([chunk(1, b"abc", flags=COMPLETE)], "integrity_error"),
        ([last(1, b"abc", size=3, digest=digest_of(b"abd"))], "integrity_error"),
        ([last(1, b"abc", size=4, digest=digest_of(b"abc"))], "integrity_error"),
        ([last(1, b"abc", size=2, digest=digest_of(b"abc"))], "integrity_error"),
        ([last(1, b"abc", size=4)], "integrity_error"),
        ([last(1, b"abc", size=2, digest="sha-256:00")], "integrity_error"),
        ([last(1, b"abc", size=3)], "invalid_request"),  # no digest, which the request promised
        ([last(1, b"abc", size=3, digest=None)], "invalid_request"),
        ([last(1, b"abc", size=3, digest="sha-256:00")], "invalid_request"),
        ([last(1, b"abc", size=3, digest="md5:00")], "invalid_request"),
        ([last(1, b"abc", size=3, digest="nonsense")], "invalid_request"),
        ([last(1, b"abc", size=-3, digest=digest_of(b"abc"))], "invalid_request"),
        ([last(1, b"abc", size=2**64, digest=digest_of(b"abc"))], "invalid_request"),
        ([last(1, b"abc", digest=digest_of(b"abc"))], "invalid_request"),
        ([frame(1, PAYLOAD, NEXT | 0x100, b"\0\0\x05\xff\xff\xff\xff\xff")], "invalid_request"),
    ],
)
async def test_an_upload_that_ends_wrongly_publishes_nothing(
    store: WatchedStore, peer: RawPeer, frames: list[bytes], word: str
) -> None:
    await store.put("n", b"what was there")
    await peer.send(up(1, "n"))
    await begun(peer, 1, 0)
    await peer.send(*frames)
    assert (await until_error(peer, 1))[1].startswith(f"{word}: ")
    assert await store.content("n") == b"what was there"
    await eventually(lambda: not store.writers)
    if word == "integrity_error":  # what is wrong isn't resumed
        with pytest.raises(NotFound):
            await store.inner.uploaded("one", "n")
    await peer.send(up(3, "other", b"x", upload_id="other"))  # and the connection goes on
    while (got := await peer.receive()) is not None and got.stream_id != 3:
        pass


@pytest.mark.parametrize("metadata", [None, item(b"some/thing", b"")])
async def test_an_item_without_bytes_is_refused_unless_it_is_the_last(
    store: WatchedStore, peer: RawPeer, metadata: bytes | None
) -> None:
    flag, body = payload(metadata)
    await peer.send(up(1, "n"))
    await begun(peer, 1, 0)
    await peer.send(chunk(1, b"abc"), frame(1, PAYLOAD, NEXT | flag, body))
    assert (await until_error(peer, 1))[1].startswith("invalid_request: ")


async def test_more_bytes_than_the_request_announced(store: WatchedStore, peer: RawPeer) -> None:
    await peer.send(up(1, "n", size=5))
    await begun(peer, 1, 0)
    await peer.send(chunk(1, b"abc"), chunk(1, b"def"))
    assert (await until_error(peer, 1))[1].startswith("integrity_error: ")
    assert await store.names() == []


@pytest.mark.parametrize(
    "said",
    [
        {"upload_id": None},
        {"upload_id": ""},
        {"upload_id": "../x"},
        {"upload_id": "a" * 129},
        {"upload_id": 5},
        {"size": -1},
        {"size": 2**63},
        {"size": 1.0},
        {"digest": "md5"},
        {"digest": 5},
        {"overwrite": 1},
        {"sent_all": "no"},
        {"client": 5},
        {"client": "a" * 129},
        {"attempt": -1},
        {"attempt": "1"},
    ],
)
async def test_an_upload_request_that_makes_no_sense(peer: RawPeer, said: dict[str, Any]) -> None:
    await peer.send(up(1, "n", **said))
    code, text = await until_error(peer, 1)
    assert (code, text.partition(":")[0]) == (INVALID, "invalid_request")


async def test_an_upload_without_a_transfer_item_or_a_name(peer: RawPeer) -> None:
    await peer.send(request(1, REQUEST_CHANNEL, route_item("file.upload") + name_item(b"n"), n=1))
    assert (await until_error(peer, 1))[1].startswith("invalid_request: ")
    await peer.send(request(3, REQUEST_CHANNEL, route_item("file.upload") + transfer_item(upload_id="one"), n=1))
    assert (await until_error(peer, 3))[1].startswith("invalid_request: ")


@pytest.mark.parametrize("how", ["cancel", "error", "close"])
async def test_an_upload_that_is_given_up_keeps_its_durable_part(
    server: FileServer, store: WatchedStore, how: str
) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(up(1, "n"))
        await begun(peer, 1, 0)
        await peer.send(chunk(1, b"abc"))
        await eventually(lambda: store.appended == 3)
        if how == "cancel":
            # CANCEL ends the receipts; the client's own half it ends by completing or failing.
            await peer.send(frame(1, CANCEL))
        elif how == "error":
            await peer.send(frame(1, ERROR, 0, b"\0\0\x02\x01gave up"))
        else:
            await peer.close()
        await eventually(lambda: server.work.cancelled == 1)
        await eventually(lambda: not store.writers)
    async with raw_peer(server.uri) as other:
        metadata = route_item("file.upload.status") + name_item(b"n") + transfer_item(upload_id="one")
        await other.send(request(1, REQUEST_RESPONSE, metadata))
        assert said_in(await other.receive()) == {"committed": 3}
        await other.send(up(3, "n"))
        await begun(other, 3, 3)
        await other.send(last(3, b"def", size=6, digest=digest_of(b"abcdef")))
        assert (await final(other, 3))["size"] == 6
    assert await store.content("n") == b"abcdef"


async def test_the_status_of_what_there_is_not(store: WatchedStore, peer: RawPeer) -> None:
    for said, word in (({"upload_id": "nope"}, "not_found"), ({}, "invalid_request"), ({"upload_id": 1}, "invalid_")):
        metadata = route_item("file.upload.status") + name_item(b"n") + transfer_item(**said)
        await peer.send(request(1, REQUEST_RESPONSE, metadata))
        assert (await until_error(peer, 1))[1].startswith(word)


async def test_a_channel_of_a_newer_connection_takes_over(server: FileServer, store: WatchedStore) -> None:
    async with raw_peer(server.uri) as old, raw_peer(server.uri) as new:
        await old.send(up(1, "n"))
        await begun(old, 1, 0)
        await old.send(chunk(1, b"abc"))
        await eventually(lambda: store.appended == 3)
        await new.send(up(1, "n"))
        await begun(new, 1, 3)
        assert (await until_error(old, 1))[1].startswith("superseded: ")
        await old.send(chunk(1, b"late"))  # of an upload that was taken over
        await new.send(last(1, b"def", size=6, digest=digest_of(b"abcdef")))
        assert (await final(new, 1))["size"] == 6
    assert await store.content("n") == b"abcdef"


async def test_an_upload_is_discarded(server: FileServer, store: WatchedStore) -> None:
    discard = request(3, REQUEST_RESPONSE, route_item("file.upload.discard") + transfer_item(upload_id="one"))
    async with raw_peer(server.uri) as old, raw_peer(server.uri) as new:
        await old.send(up(1, "n"))
        await begun(old, 1, 0)
        await old.send(chunk(1, b"abc"))
        await eventually(lambda: store.appended == 3)
        await new.send(discard)
        assert (await until_error(old, 1)) == (APPLICATION_ERROR, "superseded: the upload was discarded")
        assert said_in(await new.receive()) == {"committed": 3}
        await new.send(discard)
        assert (await until_error(new, 3))[1] == "not_found: no unfinished upload 'one'"
        await new.send(up(5, "n"))
        await begun(new, 5, 0)
        await new.send(last(5, b"def", size=3, digest=digest_of(b"def")))
        assert (await final(new, 5))["size"] == 3
    assert await store.content("n") == b"def"


async def superseded(peer: RawPeer, stream_id: int) -> None:
    """The ERROR of an upload, and the CANCEL that ends the client's half."""
    assert (await until_error(peer, stream_id))[1].startswith("superseded: ")
    got = await peer.receive()
    assert got is not None
    assert (got.stream_id, got.kind) == (stream_id, CANCEL)


async def test_an_attempt_that_arrives_after_a_newer_one_of_its_client_is_superseded(
    server: FileServer, store: WatchedStore
) -> None:
    """What a lost connection had sent is read late: while the newer attempt is under way, and when it has finished."""
    async with raw_peer(server.uri) as old, raw_peer(server.uri) as new:
        await new.send(up(1, "n", client="me", attempt=2))
        await begun(new, 1, 0)
        await new.send(chunk(1, b"abc"))
        await eventually(lambda: store.appended == 3)
        await old.send(up(1, "n", b"first", client="me", attempt=1))
        await superseded(old, 1)
        await new.send(last(1, b"def", size=6, digest=digest_of(b"abcdef")))
        assert (await final(new, 1))["size"] == 6
        for stream_id, sent_all in (3, False), (5, True):
            await old.send(up(stream_id, "n", b"again", client="me", attempt=1, sent_all=sent_all))
            await superseded(old, stream_id)
        metadata = route_item("file.upload.status") + name_item(b"n") + transfer_item(upload_id="one")
        await old.send(request(7, REQUEST_RESPONSE, metadata))
        assert (await until_error(old, 7))[1].startswith("not_found: ")
        assert await store.content("n") == b"abcdef"
        assert store.appended == 6
    async with raw_peer(server.uri) as newest:
        await newest.send(up(1, "n", client="me", attempt=3))  # the same id is a new upload
        await begun(newest, 1, 0)


@pytest.mark.parametrize("said", [{}, {"client": "other", "attempt": 1}, {"client": "me"}, {"attempt": 1}])
async def test_attempts_of_different_clients_have_no_order_but_that_of_their_arrival(
    server: FileServer, said: dict[str, Any]
) -> None:
    async with raw_peer(server.uri) as first, raw_peer(server.uri) as second:
        await first.send(up(1, "n", client="me", attempt=2))
        await begun(first, 1, 0)
        await second.send(up(1, "n", **said))
        await begun(second, 1, 0)
        await superseded(first, 1)
        await first.send(up(3, "n", client="me", attempt=1))  # older than one of its own
        await superseded(first, 3)
        await first.send(up(5, "n", client="me", attempt=3))
        await begun(first, 5, 0)
        await superseded(second, 1)


# Servers of others, and a client of ours

Answer = Callable[[RawPeer, RawFrame], Awaitable[None]]


def foreign(answer: Answer) -> Any:
    """A server that accepts, answers keepalives, and gives each request to `answer`."""

    async def serve_one(peer: RawPeer) -> None:
        while (got := await peer.receive(30)) is not None:
            if got.kind == SETUP:
                await peer.send(frame(0, KEEPALIVE, 0, bytes(8)))
            elif got.kind in (REQUEST_STREAM, REQUEST_CHANNEL, REQUEST_RESPONSE):
                await answer(peer, got)

    return raw_server(serve_one)


def head(stream_id: int, data: bytes, *, flags: int = 0, **said: object) -> bytes:
    known = {"name": "n", "size": 6, "etag": "e", "offset": 0, "length": 6, **said}
    flag, body = payload(transfer_item(**{key: value for key, value in known.items() if value is not ...}), data)
    return frame(stream_id, PAYLOAD, NEXT | flag | flags, body)


WHOLE = digest_of(b"abcdef")
WRONG_DOWNLOADS: dict[str, tuple[list[bytes], type[Exception]]] = {
    "no head": ([chunk(1, b"abcdef", flags=COMPLETE)], ProtocolError),
    "no item": ([frame(1, PAYLOAD, COMPLETE)], ProtocolError),
    "no digest": ([head(1, b"abcdef", flags=COMPLETE)], ProtocolError),
    "wrong digest": ([head(1, b"abcdeF", flags=COMPLETE, range_digest=WHOLE)], IntegrityError),
    "digest of another kind": (
        [head(1, b"abcdef", flags=COMPLETE, range_digest=digest_of(b"abcdef", "sha-256"))],
        IntegrityError,
    ),
    "too early": ([head(1, b"abc", flags=COMPLETE, range_digest=digest_of(b"abc"))], IntegrityError),
    "too much": ([head(1, b"abcdef", range_digest=WHOLE), chunk(1, b"g")], IntegrityError),
    "another name": ([head(1, b"abcdef", flags=COMPLETE, range_digest=WHOLE, name="m")], ProtocolError),
    "another range": ([head(1, b"abcdef", flags=COMPLETE, range_digest=WHOLE, offset=1)], ProtocolError),
    "another length": ([head(1, b"abcdef", flags=COMPLETE, range_digest=WHOLE, length=5)], ProtocolError),
    "two files": (
        [head(1, b"abc"), head(1, b"def", flags=COMPLETE, range_digest=WHOLE, etag="f")],
        ProtocolError,
    ),
    "a head without a size": ([head(1, b"abcdef", flags=COMPLETE, size=...)], InvalidRequest),
    "garbage": (
        [frame(1, PAYLOAD, NEXT | 0x100, b"\0\0\x04" + b"\xff" * 4 + b"abcdef")],
        InvalidRequest,
    ),
    "a foreign error": ([frame(1, ERROR, 0, b"\0\0\x02\x01what?")], RemoteError),
    "an error of ours": ([frame(1, ERROR, 0, b"\0\0\x02\x01changed: it has")], Changed),
}


@pytest.mark.parametrize("case", WRONG_DOWNLOADS)
async def test_a_server_that_sends_wrong_downloads(tmp_path: Path, case: str) -> None:
    frames, error = WRONG_DOWNLOADS[case]
    streams: list[int] = []

    async def answer(peer: RawPeer, got: RawFrame) -> None:
        streams.append(got.stream_id)
        await peer.send(*[got.stream_id.to_bytes(4, "big").join((one[:3], one[7:])) for one in frames])

    got = tmp_path / "got"
    got.write_bytes(b"what was there")
    async with foreign(answer) as uri, connected(uri) as files:
        for download in (files.download_chunks("n", window=3), files.download_to("n", got, window=3)):
            with pytest.raises(error) as caught:
                await download
            assert caught.value.name == "n"  # type: ignore[attr-defined]
    assert len(streams) == 2
    assert got.read_bytes() == b"what was there"
    if error is IntegrityError:
        assert parts(tmp_path) == []  # what is wrong isn't continued


async def test_a_server_that_sends_more_than_was_asked_for() -> None:
    async def answer(peer: RawPeer, got: RawFrame) -> None:
        await peer.send(head(got.stream_id, b"a"), *[chunk(got.stream_id, b"b")] * 3)

    class Stuck:
        async def write(self, data: bytes, /) -> None:
            await heard.ended()

    async with foreign(answer) as uri, connected(uri) as files:
        heard, held = Recorder(), list[Chunk]()

        def hold(chunk: Chunk) -> None:
            chunk.retain()
            held.append(chunk)

        files.download_chunks("n", window=3).subscribe(hold, heard.on_error, heard.on_completed)
        await heard.ended()
        assert isinstance(heard.error, ProtocolError)
        assert len(held) == 3
        with pytest.raises(ProtocolError):
            await files.download_to("n", Stuck(), window=3)


async def test_a_server_whose_download_is_right(tmp_path: Path) -> None:
    async def answer(peer: RawPeer, got: RawFrame) -> None:
        await peer.send(head(got.stream_id, b"abc"), chunk(got.stream_id, b""), chunk(got.stream_id, b"de"))
        await peer.send(head(got.stream_id, b"f", range_digest=WHOLE), frame(got.stream_id, PAYLOAD, COMPLETE))

    async with foreign(answer) as uri, connected(uri) as files:
        await files.download_to("n", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"abcdef"


@pytest.mark.parametrize("is_path", [False, True])
async def test_a_server_whose_items_have_too_much_metadata(tmp_path: Path, is_path: bool) -> None:
    """It would be parsed in the event loop."""

    async def answer(peer: RawPeer, got: RawFrame) -> None:
        await peer.send(head(got.stream_id, b"abc"))
        await started.wait()
        await peer.send(head(got.stream_id, b"def", flags=COMPLETE, range_digest=WHOLE, junk="x" * 20_000))

    class Writer:
        async def write(self, data: bytes, /) -> None: ...

    started = asyncio.Event()
    async with foreign(answer) as uri, connected(uri) as files:
        download = files.download_to("n", tmp_path / "got" if is_path else Writer())
        with pytest.raises(TooLarge, match="metadata"):
            await download.pipe(ops.do_action(lambda event: isinstance(event, Progress) and started.set()))


def receipt(stream_id: int, *, flags: int = 0, **said: object) -> bytes:
    flag, body = payload(transfer_item(**said))
    return frame(stream_id, PAYLOAD, NEXT | flag | flags, body)


PUBLISHED = {"committed": 6, "name": "n", "size": 6, "etag": "e", "modified": 1, "digest": WHOLE}
WRONG_UPLOADS: dict[str, tuple[list[bytes], type[Exception]]] = {
    "completed without a word": ([frame(1, PAYLOAD, COMPLETE)], ProtocolError),
    "completed without the final receipt": (
        [receipt(1, committed=0), request_n(1, 9), frame(1, PAYLOAD, COMPLETE)],
        ProtocolError,
    ),
    "more than was sent": ([receipt(1, committed=0), receipt(1, committed=100)], ProtocolError),
    "back again": ([receipt(1, committed=3), receipt(1, committed=2)], ProtocolError),
    "beyond the source": ([receipt(1, committed=100), request_n(1, 9)], Exception),
    "negative": ([receipt(1, committed=-1)], InvalidRequest),
    "nothing": ([frame(1, PAYLOAD, NEXT, b"x")], ProtocolError),
    "garbage": ([frame(1, PAYLOAD, NEXT | 0x100, b"\0\0\x04" + b"\xff" * 4)], InvalidRequest),
    "cancelled": ([receipt(1, committed=0), frame(1, CANCEL)], ProtocolError),
    "superseded": ([frame(1, ERROR, 0, b"\0\0\x02\x01superseded: by another")], Superseded),
    "not found": ([frame(1, ERROR, 0, b"\0\0\x02\x01not_found: what?")], NotFound),
}


@pytest.mark.parametrize("case", WRONG_UPLOADS)
async def test_a_server_that_answers_uploads_wrongly(case: str) -> None:
    frames, error = WRONG_UPLOADS[case]

    async def answer(peer: RawPeer, got: RawFrame) -> None:
        await peer.send(*[got.stream_id.to_bytes(4, "big").join((one[:3], one[7:])) for one in frames])

    async with foreign(answer) as uri, connected(uri) as files:
        with pytest.raises(error) as caught:
            await files.upload_from("n", b"abcdef")
        assert caught.value.name == "n"  # type: ignore[attr-defined]


async def test_a_client_sends_no_more_than_the_server_asks_for() -> None:
    """A foreign server that asks for three, acknowledges them, and then for one at a time."""
    asked: list[int] = []

    async def answer(peer: RawPeer, got: RawFrame) -> None:
        one = got.stream_id
        await peer.send(receipt(one, committed=0), request_n(one, 3))
        data, credit = b"", 3
        while True:
            if not credit:
                await peer.silence(0.05)
                await peer.send(receipt(one, committed=len(data)), request_n(one, 1))
                credit = 1
            sent = await peer.receive()
            assert sent is not None
            assert sent.kind == PAYLOAD
            credit -= 1
            data += sent.data
            asked.append(len(sent.data))
            if sent.metadata:
                assert said_in(sent) == {"size": 6, "digest": WHOLE}
                break
        assert data == b"abcdef"
        await peer.send(receipt(one, **PUBLISHED), frame(one, PAYLOAD, COMPLETE))

    async with foreign(answer) as uri, connected(uri) as files:
        events = await files.upload_from("n", b"abcdef", chunk_size=1).pipe(ops.to_list())
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Completed)
    assert asked == [1] * 6 + [0]


async def test_a_cancel_and_no_more_items_are_what_a_server_hears_of_a_dispose() -> None:
    heard: list[int] = []

    async def answer(peer: RawPeer, got: RawFrame) -> None:
        await peer.send(receipt(got.stream_id, committed=0), request_n(got.stream_id, 2))
        while (sent := await peer.receive()) is not None:
            assert sent.stream_id == got.stream_id
            heard.append(sent.kind)
            if sent.kind != PAYLOAD:
                return

    async with foreign(answer) as uri, connected(uri) as files:
        subscription = files.upload_from("n", bytes(100), chunk_size=1).subscribe()
        await eventually(lambda: len(heard) == 2)
        subscription.dispose()
        await eventually(lambda: len(heard) == 3)
    assert heard == [PAYLOAD, PAYLOAD, CANCEL]


async def test_a_failing_source_is_an_error_without_its_text_to_the_server() -> None:
    heard: list[RawFrame] = []

    async def answer(peer: RawPeer, got: RawFrame) -> None:
        await peer.send(receipt(got.stream_id, committed=0), request_n(got.stream_id, 16))
        while (sent := await peer.receive()) is not None:
            heard.append(sent)
            if sent.kind != PAYLOAD:
                return

    def source() -> Any:
        yield b"x"
        raise RuntimeError("secret path")

    async with foreign(answer) as uri, connected(uri) as files:
        with pytest.raises(RuntimeError, match="secret path"):
            await files.upload_from("n", source(), chunk_size=1)
        await eventually(lambda: heard and heard[-1].kind == ERROR)
    assert b"secret" not in heard[-1].body
