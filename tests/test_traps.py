"""The faults of rsocket and reactivex that `test_canaries.py` shows, by the same numbers: our users don't meet them.

Numbers that are missing have no counterpart that a user could see.
"""

import asyncio
import logging
import struct
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from reactivex import operators as ops
from rsocket.helpers import single_transport_provider
from rsocket.payload import Payload
from rsocket.rsocket_client import RSocketClient
from rsocket.transports.tcp import TransportTCP

from rx_client import Chunk, ColdReactiveXClient, Completed, FileClient, TransferEvent
from rx_client.connection.options import ConnectOptions
from server import ChatData, FileServer, serve
from shared import AlreadyExists, ConnectionFailed, ConnectionLost, FileInfo, NotFound, RemoteError, ServerError
from tests.support import (
    APPLICATION_ERROR,
    CANCEL,
    COMPLETE,
    COMPOSITE,
    ERROR,
    INVALID,
    METADATA_PUSH,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_N,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawFrame,
    RawPeer,
    eventually,
    frame,
    item,
    name_item,
    raw_peer,
    raw_server,
    request,
    request_n,
    route_item,
    server_stream_ids,
    setup,
    stream_ids,
)

SMALL = b"small"
LARGE = bytes(range(256)) * 80_000  # 20 MB: more than the sockets' buffers hold
LAST = NEXT | COMPLETE


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData({"small": SMALL, "large": LARGE})) as server:
        yield server
        await eventually(lambda: not server.work.active)
        await eventually(lambda: not server_stream_ids(server))


@pytest.fixture
async def files(server: FileServer) -> AsyncGenerator[FileClient, None]:
    async with FileClient.connect(server.uri) as files:
        yield files


@pytest.fixture
async def peer(server: FileServer) -> AsyncGenerator[RawPeer, None]:
    async with raw_peer(server.uri) as peer:
        yield peer


async def receive(peer: RawPeer) -> RawFrame:
    """The next frame but the connection's own."""
    while True:
        got = await peer.receive()
        assert got is not None, "the connection ended"
        if got.stream_id:
            return got


async def silent(peer: RawPeer) -> None:
    """Serves a connection, but no request."""
    while await peer.receive():
        pass


def rsocket_of(files: FileClient) -> Any:
    rsocket = files._connector.current()
    assert rsocket is not None
    return rsocket


@asynccontextmanager
async def plain_client(uri: str) -> AsyncGenerator[RSocketClient, None]:
    """A connection of the caller's own, without the fragment size that ours have."""
    host, port = uri.removeprefix("tcp://").split(":")
    transport = TransportTCP(*await asyncio.open_connection(host, int(port)))
    async with RSocketClient(single_transport_provider(transport), metadata_encoding=COMPOSITE) as rsocket:
        yield rsocket


class Failing(dict[str, Any]):
    """Files whose look-up raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(small=SMALL)
        self._error = error

    def __getitem__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        raise self._error


# Bytes are lost or corrupted, silently


async def test_trap_1_items_that_queue_up_arrive_as_they_were_sent(server: FileServer, files: FileClient) -> None:
    names = [f"{number:0>1000}" for number in range(2_000)]
    server.data.files.clear()
    server.data.files.update(dict.fromkeys(names, b""))
    assert await files.list_files(request_n=len(names)).pipe(ops.to_list()) == names


async def test_trap_2_a_file_of_2_to_the_24_bytes_is_stored_whole(server: FileServer) -> None:
    content = bytes(2**24)
    async with plain_client(server.uri) as rsocket:
        await FileClient(rsocket).upload("wraps", content)
    assert server.data.files["wraps"] == content


async def test_trap_3_a_cancelled_upload_is_not_stored(server: FileServer, files: FileClient) -> None:
    upload = files.upload("cancelled", LARGE).subscribe()
    await asyncio.sleep(0)
    upload.dispose()
    await eventually(lambda: rsocket_of(files).outbox.is_empty)
    assert await files.download("small") == SMALL  # what was sent has arrived by now
    assert "cancelled" not in server.data.files


async def test_trap_4_what_is_stored_and_what_is_uploaded_is_a_copy(server: FileServer, files: FileClient) -> None:
    content = bytearray(b"before")
    upload = files.upload("name", content)
    content[:] = b"after"
    await upload
    assert server.data.files["name"] == b"before"
    assert type(server.data.files["name"]) is bytes
    assert type(await files.download("name")) is bytes


async def test_trap_5_an_empty_file_arrives(files: FileClient) -> None:
    assert await files.upload("empty", b"").pipe(ops.to_list()) == [FileInfo(name="empty", size=0)]
    assert await files.download("empty").pipe(ops.to_list()) == [b""]


@pytest.mark.parametrize(
    "names", [item(b"chat/file-name", b"secret", length=10), name_item(b"a") + name_item(b"b"), name_item(b"a\0")]
)
async def test_trap_6_a_name_is_whole_single_and_printable(server: FileServer, peer: RawPeer, names: bytes) -> None:
    await peer.send(request(1, REQUEST_RESPONSE, route_item("file.upload") + names, b"content"))
    assert (await receive(peer)).error[0] == INVALID
    assert list(server.data.files) == ["small", "large"]


# Observables that are not what Rx users expect


async def test_trap_7_each_subscription_is_a_request_of_its_own(server: FileServer, files: FileClient) -> None:
    missing = files.download("missing")
    listing = files.list_files()
    assert server.work.started == 0
    with pytest.raises(NotFound):
        await missing.pipe(ops.retry(3))
    assert server.work.started == 3
    assert await listing.pipe(ops.repeat(2), ops.to_list()) == ["large", "small"] * 2
    assert server.work.started == 5


async def test_trap_7_disposing_one_subscription_leaves_the_other(files: FileClient) -> None:
    download = files.download("large")
    other = asyncio.ensure_future(download)
    await asyncio.sleep(0)
    download.subscribe().dispose()
    assert await other == LARGE


async def test_trap_7_a_dispose_in_the_same_iteration_leaves_no_stream(server: FileServer, files: FileClient) -> None:
    for observable in (files.upload("a", LARGE), files.download("large"), files.list_files()):
        observable.subscribe().dispose()
    await files.download("small")
    assert stream_ids(rsocket_of(files)) == []
    assert "a" not in server.data.files


async def test_trap_8_an_empty_answer_is_an_answer() -> None:
    async def serve_one(peer: RawPeer) -> None:
        while (got := await peer.receive()) is not None:
            if got.stream_id:
                await peer.send(frame(got.stream_id, PAYLOAD, COMPLETE))

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        assert await files.upload("name", b"12") == FileInfo(name="name", size=2)
        assert await files.download("name") == b""
        assert await files.list_files().pipe(ops.to_list()) == []
        assert await ColdReactiveXClient(rsocket_of(files)).request_response(Payload(b"x")) == Payload(b"", b"")


async def test_trap_9_credit_is_given_back_at_half_a_window_and_never_exceeds_it() -> None:
    asked: list[int] = []

    async def serve_one(peer: RawPeer) -> None:
        asked.append(struct.unpack_from(">I", (await receive(peer)).body)[0])
        for _ in range(3):
            await peer.send(frame(1, PAYLOAD, NEXT, b"a"), frame(1, PAYLOAD, NEXT, b"b"))
            got = await receive(peer)
            assert got.kind == REQUEST_N
            asked.append(struct.unpack_from(">I", got.body)[0])
        await peer.send(frame(1, PAYLOAD, COMPLETE))

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        assert await files.list_files(request_n=4).pipe(ops.count()) == 6
    assert asked == [4, 2, 2, 2]


async def test_trap_9_a_consumer_that_keeps_its_chunks_gets_no_more_than_a_window(files: FileClient) -> None:
    kept: list[Chunk] = []

    def keep(chunk: Chunk) -> None:
        chunk.retain()
        kept.append(chunk)

    download = files.download_chunks("large", window=3).subscribe(keep)
    await eventually(lambda: len(kept) == 3)
    await asyncio.sleep(0.05)
    assert len(kept) == 3
    kept.pop(0).release()
    kept.pop(0).release()
    await eventually(lambda: len(kept) == 3)
    download.dispose()


async def test_trap_10_a_listing_is_pulled_item_by_item_and_ends_with_its_cancel(
    server: FileServer, peer: RawPeer
) -> None:
    await peer.send(request(1, REQUEST_STREAM, route_item("files"), n=1))
    assert (await receive(peer)).data == b"large"
    await peer.silence(0.05)
    await peer.send(request_n(3, 5), frame(1, CANCEL))
    await eventually(lambda: server.work.cancelled == 1)


async def test_trap_11_an_observer_that_raises_ends_its_request_and_the_server_gets_a_cancel() -> None:
    heard: list[RawFrame] = []
    errors: list[Exception] = []

    async def serve_one(peer: RawPeer) -> None:
        await receive(peer)
        await peer.send(frame(1, PAYLOAD, NEXT, b"name"), frame(1, PAYLOAD, NEXT, b"another"))
        heard.append(await receive(peer))

    def on_next(name: str) -> None:
        raise ValueError(name)

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        files.list_files().subscribe(on_next, errors.append)
        await eventually(lambda: heard)
    assert [(got.kind, got.body) for got in heard] == [(CANCEL, b"")]
    assert [str(error) for error in errors] == ["name"]


async def test_trap_12_a_timeout_fires_in_the_loops_thread() -> None:
    fired: list[threading.Thread] = []

    async with raw_server(silent) as uri, FileClient.connect(uri) as files:
        timed = files.download("name").pipe(ops.timeout(0.001))
        timed.subscribe(on_error=lambda _: fired.append(threading.current_thread()))
        await eventually(lambda: fired)
    assert fired == [threading.main_thread()]


@pytest.mark.parametrize(
    "last", [frame(1, PAYLOAD, LAST, b"b"), frame(1, PAYLOAD, NEXT, b"b") + frame(1, PAYLOAD, COMPLETE)]
)
async def test_trap_13_a_listing_completes_with_its_last_item_or_after_it(last: bytes) -> None:
    async def serve_one(peer: RawPeer) -> None:
        await receive(peer)
        await peer.send(frame(1, PAYLOAD, NEXT, b"a") + last)

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        assert await files.list_files().pipe(ops.to_list()) == ["a", "b"]


# Hangs


async def test_trap_14_requests_on_a_lost_connection_fail_at_once() -> None:
    async def lose(peer: RawPeer) -> None:
        await receive(peer)

    async with raw_server(lose) as uri, FileClient.connect(uri) as files:
        for each in (files.download("under way"), files.download("a"), files.list_files(), files.upload("a", b"")):
            with pytest.raises(ConnectionLost):
                await each


async def test_trap_14_requests_on_a_lost_connection_of_the_callers_own_fail_at_once() -> None:
    async with serve() as server, plain_client(server.uri) as rsocket:
        files = FileClient(rsocket)
        await server.close()
        await eventually(lambda: rsocket._is_closing)
        for each in (files.download("a"), files.list_files(), files.upload("a", b"")):
            with pytest.raises(ConnectionLost):
                await each


async def test_trap_14_a_refused_connect_raises() -> None:
    async with serve() as server:
        uri = server.uri
    with pytest.raises(ConnectionFailed):
        async with FileClient.connect(uri):
            raise AssertionError("not reached")


async def test_trap_15_a_peer_that_falls_silent_is_a_lost_connection() -> None:
    async def fall_silent(peer: RawPeer) -> None:
        await receive(peer)
        await peer.reader.read()

    options = ConnectOptions(keepalive_period=0.05, keepalive_timeout=0.1)
    async with raw_server(fall_silent) as uri, FileClient.connect(uri, options=options) as files:
        for _ in range(2):
            with pytest.raises(ConnectionLost):
                await files.download("name")


@pytest.mark.parametrize("stored", [None, "text", 42.0])
async def test_trap_17_nonsense_in_the_store_is_an_error_of_its_request_alone(stored: Any) -> None:
    data = ChatData({"nonsense": stored, "small": SMALL})
    async with serve(data=data) as server, FileClient.connect(server.uri) as files:
        with pytest.raises(ServerError, match="its log says why"):
            await files.download("nonsense")
        assert await files.download("small") == SMALL


async def test_trap_17_a_cancellation_from_within_is_an_error_of_its_request_alone() -> None:
    data = ChatData(Failing(asyncio.CancelledError()))
    async with serve(data=data) as server, FileClient.connect(server.uri) as files:
        with pytest.raises(ServerError, match="its log says why"):
            await files.download("missing")
        assert await files.download("small") == SMALL


async def test_trap_18_a_rejected_setup_ends_the_connection(server: FileServer) -> None:
    download = request(1, REQUEST_RESPONSE, route_item("file.download") + name_item(b"small"))
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup(b"application/json"), download)
        refused = await peer.receive()
        assert refused is not None
        assert (refused.stream_id, refused.kind) == (0, ERROR)
        assert await peer.receive() is None
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(download)
        refused = await peer.receive()
        assert refused is not None
        assert (refused.stream_id, refused.kind) == (0, ERROR)
        assert await peer.receive() is None
    assert server.work.completed == 0


async def test_trap_19_a_large_transfer_lets_a_small_one_through(files: FileClient) -> None:
    large = asyncio.ensure_future(files.download("large"))
    await asyncio.sleep(0)
    assert await files.download("small") == SMALL
    assert not large.done()
    assert await large == LARGE


# Channels


class Source:
    """Chunks of an upload without end; counts them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.pulled = 0
        self.is_closed = False
        self._error = error

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            while self._error is None or self.pulled < 100:
                self.pulled += 1
                yield bytes(1_000)
                await asyncio.sleep(0)
            raise self._error
        finally:
            self.is_closed = True


async def test_trap_20_a_disposed_upload_stops_its_source_and_the_server(server: FileServer, files: FileClient) -> None:
    source = Source()
    upload = files.upload_from("name", source.chunks()).subscribe()
    await eventually(lambda: source.pulled > 100)
    upload.dispose()
    await eventually(lambda: source.is_closed and not server.work.active)
    assert server.work.cancelled == 1


async def test_trap_20_an_upload_stops_with_the_servers_error(files: FileClient) -> None:
    source = Source()
    with pytest.raises(AlreadyExists):
        await files.upload_from("small", source.chunks(), overwrite=False)
    assert source.pulled == 0


async def test_trap_20_an_error_of_the_uploads_source_is_reported(server: FileServer, files: FileClient) -> None:
    with pytest.raises(OSError, match="the disk"):
        await files.upload_from("name", Source(OSError("the disk")).chunks())
    assert "name" not in server.data.files


async def test_trap_20_a_refused_channel_is_cancelled(server: FileServer, peer: RawPeer) -> None:
    await peer.send(request(1, REQUEST_CHANNEL, route_item("no such route"), b"x", n=1))
    assert [(await receive(peer)).kind for _ in range(2)] == [ERROR, CANCEL]
    assert server_stream_ids(server) == []


async def test_trap_21_an_upload_ends_with_its_connection(server: FileServer, files: FileClient) -> None:
    source = Source()
    upload = asyncio.ensure_future(files.upload_from("name", source.chunks()))
    await eventually(lambda: source.pulled > 100)
    (transport,) = server._connections
    transport._transport.abort()
    with pytest.raises(ConnectionLost):
        await upload
    await eventually(lambda: not server.work.active)
    assert "name" not in server.data.files


async def test_trap_22_an_upload_is_complete_when_the_file_is_there(server: FileServer, files: FileClient) -> None:
    seen: list[Any] = []

    def look(event: TransferEvent) -> None:
        seen.append((type(event) is Completed, server.data.files.get("name") == LARGE))

    await files.upload_from("name", LARGE).pipe(ops.do_action(look))
    assert seen[-1] == (True, True)
    assert {completed for completed, _ in seen[:-1]} == {False}


async def test_trap_23_a_stream_cancelled_in_the_segment_of_its_request_leaves_nothing(
    server: FileServer, peer: RawPeer
) -> None:
    await peer.send(request(1, REQUEST_STREAM, route_item("files"), n=5) + frame(1, CANCEL))
    await eventually(lambda: server.work.cancelled == 1)
    await peer.silence(0.05)
    assert server_stream_ids(server) == []


# Memory and load


async def test_trap_24_a_listing_that_is_not_read_waits(server: FileServer, peer: RawPeer) -> None:
    server.data.files.update({f"{number:0>1000}": b"" for number in range(12_000)})
    await peer.send(request(1, REQUEST_STREAM, route_item("files"), n=0x7FFFFFFF))
    assert (await receive(peer)).kind == PAYLOAD
    (session,) = server._connections.values()
    held = 1_000_000 // (1000 + 4096)  # as many as the window holds, where each counts more than its name
    await eventually(lambda: len(session.outbox._entries) >= held - 1)
    await asyncio.sleep(0.05)
    assert len(session.outbox._entries) <= held + 1


# Smaller


@pytest.mark.parametrize("error", [OSError(5, "I/O error", "/srv/secret"), RuntimeError("/srv/secret")])
async def test_trap_26_the_text_of_an_exception_stays_in_the_server(error: Exception) -> None:
    async with serve(data=ChatData(Failing(error))) as server, FileClient.connect(server.uri) as files:
        with pytest.raises(ServerError) as raised:
            await files.download("missing")
    assert "secret" not in str(raised.value)


async def test_trap_26_a_missing_file_is_not_found_by_its_name(files: FileClient) -> None:
    with pytest.raises(NotFound, match="no file named 'missing'") as raised:
        await files.download("missing")
    assert raised.value.name == "missing"


@pytest.mark.parametrize(
    "error", [struct.pack(">I", 0x301) + b"text", struct.pack(">I", APPLICATION_ERROR) + b"\xff"], ids=["code", "text"]
)
async def test_trap_26_an_unusual_error_is_an_error(error: bytes) -> None:
    async def serve_one(peer: RawPeer) -> None:
        await peer.send(frame((await receive(peer)).stream_id, ERROR, 0, error))

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        with pytest.raises(RemoteError):
            await files.download("name")


async def test_trap_27_a_listing_does_not_mind_an_upload(server: FileServer, files: FileClient) -> None:
    def upload(_: str) -> None:
        server.data.files[f"another {len(server.data.files)}"] = b""

    assert await files.list_files(request_n=1).pipe(ops.do_action(upload), ops.to_list()) == ["large", "small"]


async def test_trap_28_what_has_no_route_is_an_error_or_ignored(peer: RawPeer) -> None:
    await peer.send(frame(0, METADATA_PUSH, 0x100, route_item("x")))
    await peer.send(request(1, REQUEST_STREAM, route_item("no such route")))
    assert (await receive(peer)).error == (
        APPLICATION_ERROR,
        "unknown_route: no route 'no such route' for request-stream",
    )


async def test_trap_30_a_server_closes_while_clients_are_connected() -> None:
    async with asyncio.timeout(5):
        async with serve() as server, FileClient.connect(server.uri):
            await eventually(lambda: server.connections)
            await server.close()


async def test_trap_31_cancels_and_disconnects_are_no_trouble_in_the_log(
    server: FileServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with FileClient.connect(server.uri) as files:
        for observable in (files.upload("a", LARGE), files.download("large"), files.list_files(request_n=1)):
            cancelled = observable.subscribe()
            await asyncio.sleep(0.005)
            cancelled.dispose()
        await files.download("small")
        files.download("large").subscribe(on_error=lambda _: None)
    async with raw_peer(server.uri) as peer:
        await peer.send(frame(1, CANCEL), request(3, REQUEST_STREAM, route_item("files")))
    await eventually(lambda: not server.connections)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
