"""The server as seen on the wire, by a client that sends and receives raw frames."""

import asyncio
import socket
import struct
from collections.abc import AsyncGenerator

import pytest

from server import ChatData, FileServer, MemoryStore, serve
from shared.transport.tcp import TcpTransport
from tests.support import (
    APPLICATION_ERROR,
    CANCEL,
    COMPLETE,
    ERROR,
    FOLLOWS,
    INVALID,
    KEEPALIVE,
    METADATA,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawFrame,
    RawPeer,
    eventually,
    frame,
    item,
    name_item,
    payload,
    raw_peer,
    request,
    request_n,
    route_item,
    server_stream_ids,
    setup,
)


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    async with serve() as server:
        yield server
        await eventually(lambda: not server.work.active)
        await eventually(lambda: not server_stream_ids(server))


@pytest.fixture
async def peer(server: FileServer) -> AsyncGenerator[RawPeer, None]:
    async with raw_peer(server.uri) as peer:
        yield peer


def upload(stream_id: int, name: bytes, content: bytes, *, flags: int = 0) -> bytes:
    return request(stream_id, REQUEST_RESPONSE, route_item("file.upload") + name_item(name), content, flags=flags)


def download(stream_id: int, name: bytes) -> bytes:
    return request(stream_id, REQUEST_RESPONSE, route_item("file.download") + name_item(name))


def listing(stream_id: int, n: int) -> bytes:
    return request(stream_id, REQUEST_STREAM, route_item("files"), n=n)


def fragment(stream_id: int, data: bytes, *, metadata: bytes | None = None, follows: bool) -> bytes:
    flag, body = payload(metadata, data)
    return frame(stream_id, PAYLOAD, flag | NEXT | (FOLLOWS if follows else 0), body)


async def expect(peer: RawPeer) -> RawFrame:
    got = await peer.receive()
    assert got is not None, "the server closed the connection"
    return got


# The tutorial's routes


@pytest.mark.parametrize("data", [{"a": b"content"}, MemoryStore({})])
def test_data_that_is_no_chat_data_is_a_type_error_at_the_call(data: object) -> None:
    with pytest.raises(TypeError, match="must be a ChatData"):
        serve(data=data)  # type: ignore[arg-type]  # pyright: ignore


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_small_frames_do_not_wait_for_each_other(host: str) -> None:
    async with serve(host) as server, raw_peer(server.uri.replace("[::1]", "localhost")):
        await eventually(lambda: server._connections)
        for transport in server._connections:
            own = transport._transport.get_extra_info("socket")
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_upload_answers_with_the_name_and_no_data(server: FileServer, peer: RawPeer) -> None:
    await peer.send(upload(1, b"a.txt", b"hello"))
    answer = await expect(peer)
    assert (answer.stream_id, answer.kind, answer.flags) == (1, PAYLOAD, METADATA | NEXT | COMPLETE)
    assert (answer.metadata, answer.data) == (name_item(b"a.txt"), b"")
    assert server.data.files == {"a.txt": b"hello"}
    assert type(server.data.files["a.txt"]) is bytes


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 12_345])
async def test_download_answers_with_content_and_name(server: FileServer, peer: RawPeer, content: bytes) -> None:
    server.data.files["a.bin"] = content
    await peer.send(download(1, b"a.bin"))
    data, metadata = b"", b""
    while True:
        answer = await expect(peer)
        assert len(answer.body) + 9 <= 1_000_003  # rsocket doesn't count the metadata's length field
        data, metadata = data + answer.data, metadata + answer.metadata
        if not answer.flags & FOLLOWS:
            break
    assert answer.flags & COMPLETE
    assert answer.flags & NEXT
    assert (data, metadata) == (content, name_item(b"a.bin"))


async def test_a_listing_completes_after_the_last_name_without_more_credit(server: FileServer, peer: RawPeer) -> None:
    server.data.files.update({"a": b"", "ü": b"", "../x": b""})
    await peer.send(listing(1, 3))
    assert [(await expect(peer)).data for _ in range(3)] == [b"../x", b"a", "ü".encode()]
    end = await expect(peer)
    assert (end.kind, end.flags, end.body) == (PAYLOAD, COMPLETE, b"")


async def test_an_empty_listing_completes(peer: RawPeer) -> None:
    await peer.send(listing(1, 1))
    assert (await expect(peer)).flags == COMPLETE


async def test_a_listing_honours_request_n_one_by_one(server: FileServer, peer: RawPeer) -> None:
    server.data.files.update({f"{number:02}": b"" for number in range(20)})
    await peer.send(listing(1, 1))
    for number in range(20):
        assert (await expect(peer)).data == b"%02d" % number
        if number < 19:
            if number % 5 == 0:
                await peer.silence(0.05)
            await peer.send(request_n(1, 1))
    assert (await expect(peer)).flags == COMPLETE


async def test_a_cancelled_listing_stops(server: FileServer, peer: RawPeer) -> None:
    server.data.files.update({f"{number}": b"" for number in range(100)})
    await peer.send(listing(1, 2))
    await expect(peer)
    await expect(peer)
    await peer.send(frame(1, CANCEL))
    await eventually(lambda: not server_stream_ids(server))
    await peer.send(request_n(1, 50))
    await peer.silence()
    assert server.work.cancelled == 1


async def test_a_page_of_a_listing_is_a_snapshot(server: FileServer, peer: RawPeer) -> None:
    server.data.files.update({"a": b"", "b": b""})
    await peer.send(listing(1, 1))
    assert (await expect(peer)).data == b"a"
    server.data.files["c"] = b""
    del server.data.files["b"]
    await peer.send(request_n(1, 10))
    assert (await expect(peer)).data == b"b"
    assert (await expect(peer)).flags == COMPLETE


async def test_a_listing_that_is_not_read_is_not_buffered(server: FileServer) -> None:
    server.data.files.update({f"{number:0>1000}": b"" for number in range(50_000)})
    async with raw_peer(server.uri) as peer:
        await peer.send(listing(1, 0x7FFFFFFF))
        await expect(peer)
        await asyncio.sleep(0.3)
        queues = [len(connection.outbox._entries) for connection in server._connections.values()]
        assert 1 <= max(queues) <= 1_001
    await eventually(lambda: server.work.cancelled == 1)


@pytest.mark.parametrize("n", [0, 0x80000000])
async def test_a_request_for_no_items_is_refused(server: FileServer, peer: RawPeer, n: int) -> None:
    server.data.files["a"] = b""
    await peer.send(listing(1, n))
    error = await expect(peer)
    assert error.kind == ERROR
    assert error.error == (INVALID, "invalid_request: request-n must be 1 or more, not 0")


# Fragments


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_a_request_may_come_in_pieces_of_any_size(server: FileServer, peer: RawPeer, size: int) -> None:
    metadata, content = route_item("file.upload") + name_item(b"pieces"), bytes(range(200))
    pieces = [metadata[at : at + size] for at in range(0, len(metadata), size)]
    await peer.send(request(1, REQUEST_RESPONSE, pieces[0], flags=FOLLOWS))
    for piece in pieces[1:]:
        await peer.send(fragment(1, b"", metadata=piece, follows=True))
    for at in range(0, len(content), size):
        await peer.send(fragment(1, content[at : at + size], follows=True))
        await peer.send(fragment(1, b"", follows=True))
    assert server.data.files == {}
    await peer.send(fragment(1, b"", follows=False))
    assert (await expect(peer)).metadata == name_item(b"pieces")
    assert server.data.files == {"pieces": content}


async def test_fragments_of_several_streams_may_interleave(server: FileServer, peer: RawPeer) -> None:
    for stream_id in (1, 3, 5):
        await peer.send(upload(stream_id, b"%d" % stream_id, b"%d:" % stream_id, flags=FOLLOWS))
    for round_number in range(10):
        for stream_id in (5, 1, 3):
            await peer.send(fragment(stream_id, b"%d" % stream_id, follows=round_number < 9))
    assert {(await expect(peer)).stream_id for _ in range(3)} == {1, 3, 5}
    assert server.data.files == {"1": b"1:1111111111", "3": b"3:3333333333", "5": b"5:5555555555"}


async def test_the_segments_of_tcp_do_not_matter(server: FileServer, peer: RawPeer) -> None:
    for byte in upload(1, b"slow", b"0123456789"):
        peer.writer.write(bytes([byte]))
        await peer.writer.drain()
        await asyncio.sleep(0)
    await expect(peer)
    assert server.data.files == {"slow": b"0123456789"}


async def test_a_large_unfragmented_upload_is_stored_whole(server: FileServer, peer: RawPeer) -> None:
    content = bytes(range(256)) * 60_000  # 15,360,000 bytes: within the 24-bit length
    await peer.send(upload(1, b"large", content))
    await expect(peer)
    assert server.data.files["large"] == content


async def test_an_upload_cancelled_before_its_last_fragment_is_never_stored(server: FileServer, peer: RawPeer) -> None:
    await peer.send(upload(1, b"cancelled", b"part", flags=FOLLOWS))
    await peer.send(fragment(1, b"more", follows=True))
    await peer.send(frame(1, CANCEL), fragment(1, b"late", follows=True), fragment(1, b"last", follows=False))
    await peer.send(upload(3, b"next", b"whole"))
    assert (await expect(peer)).stream_id == 3
    assert server.data.files == {"next": b"whole"}


async def test_an_upload_cancelled_in_the_same_segment_is_never_stored(server: FileServer, peer: RawPeer) -> None:
    await peer.send(upload(1, b"cancelled", b"whole") + frame(1, CANCEL))
    await peer.send(upload(3, b"next", b"whole"))
    assert (await expect(peer)).stream_id == 3
    assert server.data.files == {"next": b"whole"}


async def test_an_upload_whose_connection_dies_is_never_stored(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(upload(1, b"dead", b"part", flags=FOLLOWS), fragment(1, b"more", follows=True))
    await eventually(lambda: not server.connections)
    assert server.data.files == {}


async def test_a_cancelled_download_is_not_sent_to_its_end(server: FileServer, peer: RawPeer) -> None:
    server.data.files["large"] = bytes(100_000_000)
    await peer.send(download(1, b"large"))
    await expect(peer)
    await peer.send(frame(1, CANCEL))
    await eventually(lambda: server.work.cancelled == 1)
    await eventually(lambda: not server_stream_ids(server))
    await peer.send(download(3, b"nope"))
    received = 0
    while (got := await expect(peer)).stream_id == 1:
        received += len(got.data)
    assert got.kind == ERROR
    assert received < 50_000_000  # what the socket buffers hold


async def test_a_download_gets_the_content_that_was_there_when_it_began(server: FileServer, peer: RawPeer) -> None:
    server.data.files["a"] = b"old" * 5_000_000
    await peer.send(download(1, b"a"))
    first = await expect(peer)
    async with raw_peer(server.uri) as other:
        await other.send(upload(1, b"a", b"new"))
        await expect(other)
    content = first.data
    while (got := await expect(peer)).flags & FOLLOWS:
        content += got.data
    assert content + got.data == b"old" * 5_000_000
    assert server.data.files["a"] == b"new"


# A request neither delays nor ends the connection


async def test_a_slow_request_does_not_delay_others() -> None:
    class SlowFiles(dict[str, bytes]):
        pass

    gate = asyncio.Event()
    started = asyncio.Event()
    async with serve(data=ChatData(SlowFiles(a=b"x"))) as server, raw_peer(server.uri) as peer:
        await eventually(lambda: server.connections == 1)
        (connection,) = server._connections.values()
        router = connection._handler._router

        @router.response("slow")
        async def slow() -> asyncio.Task[None]:
            async def wait() -> None:
                started.set()
                await gate.wait()

            return server.work.spawn(wait)

        await peer.send(request(1, REQUEST_RESPONSE, route_item("slow")))
        await started.wait()
        await peer.send(download(3, b"a"))
        assert (await expect(peer)).stream_id == 3
        await peer.send(frame(0, KEEPALIVE, 0x80, bytes(8) + b"ping"))
        length = int.from_bytes(await peer.reader.readexactly(3), "big")
        assert (await peer.reader.readexactly(length)).endswith(b"ping")
        await peer.send(frame(1, CANCEL))
        await eventually(lambda: server.work.cancelled == 1)
        assert not gate.is_set()


@pytest.mark.parametrize("answer", [None, b"bytes", "text", 42])
async def test_a_route_that_answers_with_nonsense_gives_an_error(answer: object) -> None:
    async with serve() as server, raw_peer(server.uri) as peer:
        await eventually(lambda: server.connections == 1)
        (connection,) = server._connections.values()

        @connection._handler._router.response("nonsense")
        async def nonsense() -> object:
            return answer

        await peer.send(request(1, REQUEST_RESPONSE, route_item("nonsense")))
        error = await expect(peer)
        assert error.error == (APPLICATION_ERROR, "internal: the server failed to serve this request; its log says why")
        await peer.send(download(3, b"nope"))
        assert (await expect(peer)).stream_id == 3


BAD_REQUESTS = [
    (REQUEST_RESPONSE, route_item("file.download"), INVALID, "invalid_request: this request needs exactly one"),
    (
        REQUEST_RESPONSE,
        route_item("file.download") + name_item(b"a") * 2,
        INVALID,
        "invalid_request: this request needs",
    ),
    (
        REQUEST_RESPONSE,
        route_item("file.download") + name_item(b""),
        INVALID,
        "invalid_name: a file name must not be em",
    ),
    (
        REQUEST_RESPONSE,
        route_item("file.upload") + name_item(b"\xff"),
        INVALID,
        "invalid_name: a file name must be UTF-8",
    ),
    (
        REQUEST_RESPONSE,
        route_item("file.upload") + name_item(b"a\0"),
        INVALID,
        "invalid_name: a file name must not con",
    ),
    (REQUEST_RESPONSE, route_item("file.upload") + name_item(b"x" * 1025), INVALID, "invalid_name: a file name has at"),
    (
        REQUEST_RESPONSE,
        route_item("file.upload") + item(b"chat/file-name", b"a.txt", length=9),
        INVALID,
        "invalid_request: the metadata ends in the middle of an item: 4 bytes are missing",
    ),
    (REQUEST_RESPONSE, None, INVALID, "invalid_request: a request has exactly one"),
    (REQUEST_RESPONSE, name_item(b"a"), INVALID, "invalid_request: a request has exactly one"),
    (
        REQUEST_RESPONSE,
        route_item("file.download") + name_item(b"nope"),
        APPLICATION_ERROR,
        "not_found: no file named 'n",
    ),
    (REQUEST_RESPONSE, route_item("nope"), APPLICATION_ERROR, "unknown_route: no route 'nope' for request-response"),
    (REQUEST_RESPONSE, route_item("files"), APPLICATION_ERROR, "unknown_route: no route 'files' for request-response"),
    (REQUEST_STREAM, route_item("nope"), APPLICATION_ERROR, "unknown_route: no route 'nope' for request-stream"),
    (REQUEST_CHANNEL, route_item("files"), APPLICATION_ERROR, "unknown_route: no route 'files' for request-channel"),
    (REQUEST_CHANNEL, b"\x05", INVALID, "invalid_request: the metadata ends in the middle"),
]


@pytest.mark.parametrize(("kind", "metadata", "code", "text"), BAD_REQUESTS)
async def test_a_bad_request_gets_a_typed_error_and_the_connection_lives(
    server: FileServer, peer: RawPeer, kind: int, metadata: bytes | None, code: int, text: str
) -> None:
    await peer.send(request(1, kind, metadata))
    error = await expect(peer)
    assert (error.stream_id, error.kind) == (1, ERROR)
    assert error.error[0] == code
    assert error.error[1].startswith(text)
    if kind == REQUEST_CHANNEL:  # both halves end
        assert (await expect(peer)).kind == CANCEL
    await peer.send(upload(3, b"after", b"fine"))
    assert (await expect(peer)).metadata == name_item(b"after")
    assert server.data.files == {"after": b"fine"}


async def test_what_needs_no_answer_gets_none(server: FileServer, peer: RawPeer) -> None:
    await peer.send(request(1, REQUEST_FNF, route_item("file.upload") + name_item(b"a"), b"x"))
    await peer.send(frame(0, 0x0C, METADATA, b"whatever"))  # METADATA_PUSH
    await peer.silence()
    assert server.data.files == {}


async def test_a_stores_exception_is_not_disclosed() -> None:
    class BrokenFiles(dict[str, bytes]):
        def __getitem__(self, name: str) -> bytes:
            raise OSError(5, "Input/output error", f"/srv/secret/{name}")

    async with serve(data=ChatData(BrokenFiles())) as server, raw_peer(server.uri) as peer:
        await peer.send(download(1, b"a"))
        error = await expect(peer)
        assert error.error == (APPLICATION_ERROR, "internal: the server failed to serve this request; its log says why")


# Frames of stream 0


async def test_a_setup_without_composite_metadata_ends_the_connection(server: FileServer) -> None:
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup(b"application/json"), download(1, b"a"))
        error = await expect(peer)
        assert (error.stream_id, error.error[0]) == (0, 0x003)
        assert await peer.receive() is None


async def test_a_connection_must_begin_with_a_setup(server: FileServer) -> None:
    for first in (upload(1, b"a", b"x"), listing(1, 1), frame(0, KEEPALIVE, 0x80, bytes(8)), request_n(1, 1)):
        async with raw_peer(server.uri, set_up=False) as peer:
            await peer.send(first, upload(3, b"b", b"y"))
            error = await expect(peer)
            assert (error.stream_id, error.error[0]) == (0, 0x001)
            assert await peer.receive() is None
    assert server.data.files == {}


@pytest.mark.parametrize("version", [(0, 0), (0, 2), (2, 0), (65535, 65535)])
async def test_another_version_ends_the_connection(server: FileServer, version: tuple[int, int]) -> None:
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup(version=version))
        error = await expect(peer)
        assert (error.stream_id, error.error[0]) == (0, 0x002)
        assert error.error[1].startswith("unsupported_setup: ")
        assert await peer.receive() is None


async def test_an_id_that_is_in_use_or_the_servers_is_ignored(server: FileServer) -> None:
    server.data.files.update({"a": b"", "b": b""})
    for second in (listing(1, 1), listing(2, 1)):
        async with raw_peer(server.uri) as peer:
            await peer.send(listing(1, 1))
            assert (await expect(peer)).data == b"a"
            await peer.send(second, request_n(1, 1))
            got = await expect(peer)
            assert (got.stream_id, got.data) == (1, b"b")


@pytest.mark.parametrize(
    "garbage",
    [
        frame(1, 0x3F),  # unknown type
        b"\x00\x00\x00",  # empty frame
        b"\x00\x00\x01\x00",
        frame(1, REQUEST_RESPONSE, METADATA, b"\xff\xff\xff"),  # metadata beyond the frame
        frame(1, REQUEST_STREAM, 0, b"\x00"),  # no room for request-n
        frame(1, 0x0B, 0, b""),  # an ERROR without a code
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_a_malformed_frame_ends_the_connection_with_an_error(peer: RawPeer, garbage: bytes) -> None:
    await peer.send(garbage)
    error = await expect(peer)
    assert (error.stream_id, error.kind, error.error[0]) == (0, ERROR, 0x101)
    assert error.error[1].startswith("invalid_frame: ")
    assert await peer.receive() is None


async def test_an_unknown_frame_that_may_be_ignored_is_ignored(peer: RawPeer) -> None:
    await peer.send(frame(0, 0x3F, 0x200, b"extension"), download(1, b"a"))
    assert (await expect(peer)).stream_id == 1


async def test_frames_of_unknown_streams_are_ignored(peer: RawPeer) -> None:
    await peer.send(
        frame(9, CANCEL), request_n(9, 5), frame(9, PAYLOAD, NEXT, b"x"), frame(9, 0x0B, 0, struct.pack(">I", 1))
    )
    await peer.send(download(11, b"a"))
    assert (await expect(peer)).stream_id == 11


# Start and end


async def test_a_server_can_be_closed_with_clients_connected_and_busy() -> None:
    async with serve(data=ChatData({"large": bytes(50_000_000)})) as server:
        stack = [await RawPeer.connect(server.uri) for _ in range(5)]
        for peer in stack:
            await peer.send(setup())
        await stack[0].send(download(1, b"large"))
        await stack[1].send(listing(1, 1))
        await eventually(lambda: server.work.started == 2)
        await server.close(grace_seconds=0.1)
        assert server.connections == 0
        assert server.work.active == 0
    for peer in stack:
        await peer.close()


async def test_closing_waits_for_operations_under_way() -> None:
    content = bytes(range(256)) * 40_000
    async with serve(data=ChatData({"large": content})) as server, raw_peer(server.uri) as peer:
        await peer.send(download(1, b"large"))
        first = await expect(peer)
        closing = asyncio.create_task(server.close())
        data = first.data
        while (got := await expect(peer)).flags & FOLLOWS:
            data += got.data
        assert data + got.data == content
        await closing
        assert await peer.receive() is None


@pytest.mark.parametrize("seconds", [1e-9, 0.0])
async def test_uploads_that_expire_at_once_are_swept_periodically(seconds: float) -> None:
    class Counted(MemoryStore):
        sweeps = 0

        async def sweep(self, max_age_seconds: float) -> int:
            self.sweeps += 1
            return await super().sweep(max_age_seconds)

    store = Counted({})
    async with serve(data=ChatData(store), upload_expiry_seconds=seconds):
        await asyncio.sleep(0.1)
    assert 1 <= store.sweeps <= 3


async def test_a_server_outside_its_block_has_no_uri() -> None:
    server = serve()
    with pytest.raises(RuntimeError, match="async with"):
        _ = server.uri


async def test_chat_data_is_frozen_and_starts_empty() -> None:
    data = ChatData()
    assert data.files == {}
    with pytest.raises(AttributeError):
        data.files = {}  # type: ignore[misc]


async def test_another_listeners_connections_are_served_inside_of_the_block_alone() -> None:
    server = serve(data=ChatData({"a": b"content"}))

    def transport() -> TcpTransport:
        made = TcpTransport(server.on_connected, lambda _: server.on_lost(made))
        return made

    async def is_served() -> bool:
        peer = await RawPeer.connect(uri)
        try:
            await peer.send(setup(), request(1, REQUEST_RESPONSE, route_item("file.download") + name_item(b"a")))
            got = await peer.receive()
        except ConnectionError:
            return False
        finally:
            await peer.close()
        return got is not None and got.data == b"content"

    listener = await asyncio.get_running_loop().create_server(transport, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    uri = f"tcp://{host}:{port}"
    assert not await is_served()
    async with server:
        assert await is_served()
    assert not await is_served()
    await eventually(lambda: not server.connections)
    listener.close()
