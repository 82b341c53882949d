"""Interoperability with the tutorial: its client, in plain rsocket, with our server, and our client with its server."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from reactivestreams.publisher import Publisher
from reactivex import operators as ops
from rsocket.awaitable.awaitable_rsocket import AwaitableRSocket
from rsocket.extensions.composite_metadata import CompositeMetadata
from rsocket.extensions.helpers import composite, metadata_item, route
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.frame_helpers import ensure_bytes
from rsocket.helpers import create_response, single_transport_provider, utf8_decode
from rsocket.payload import Payload
from rsocket.routing.request_router import RequestRouter
from rsocket.routing.routing_request_handler import RoutingRequestHandler
from rsocket.rsocket_client import RSocketClient
from rsocket.rsocket_server import RSocketServer
from rsocket.streams.stream_from_generator import StreamFromGenerator
from rsocket.transports.tcp import TransportTCP

from rx_client import FileClient
from server import ChatData, ChatUserSession, get_file_name, serve
from shared import FileInfo, InvalidName, InvalidRequest, NotFound, chat_filename_mimetype
from tests.support import eventually

SIZES = [0, 1, 999_990, 1_000_000, 1_000_001, 17_000_000]


@asynccontextmanager
async def plain_client(uri: str) -> AsyncGenerator[RSocketClient, None]:
    host, port = uri.removeprefix("tcp://").split(":")
    connection = await asyncio.open_connection(host, int(port))
    async with RSocketClient(
        single_transport_provider(TransportTCP(*connection, read_buffer_size=65536)),
        metadata_encoding=WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA,
        fragment_size_bytes=1_000_000,
    ) as client:
        yield client


def about(path: str, name: str) -> bytes:
    return composite(route(path), metadata_item(ensure_bytes(name), chat_filename_mimetype))


@pytest.mark.parametrize("size", SIZES)
async def test_the_tutorials_client_against_our_server(size: int) -> None:
    content = bytes(size)
    async with serve() as server, plain_client(server.uri) as client:
        stored = await client.request_response(Payload(content, about("file.upload", "a.txt")))
        assert not stored.data
        names = await AwaitableRSocket(client).request_stream(Payload(metadata=composite(route("files"))))
        assert [utf8_decode(item.data) for item in names] == ["a.txt"]
        answer = await client.request_response(Payload(metadata=about("file.download", "a.txt")))
        assert bytes(answer.data) == content
        found = CompositeMetadata().parse(answer.metadata).find_by_mimetype(chat_filename_mimetype)
        assert [utf8_decode(item.content) for item in found] == ["a.txt"]


async def test_the_tutorials_client_gets_our_errors() -> None:
    async with serve() as server, plain_client(server.uri) as client:
        with pytest.raises(RuntimeError, match="not_found: no file named 'nope'"):
            await client.request_response(Payload(metadata=about("file.download", "nope")))
        await client.request_response(Payload(b"x", about("file.upload", "a")))
        assert server.data.files == {"a": b"x"}


# The tutorial's server, as published


@asynccontextmanager
async def plain_server(router_factory: Callable[[], RequestRouter]) -> AsyncGenerator[str, None]:
    sessions: list[RSocketServer] = []

    def session(*connection: Any) -> None:
        sessions.append(
            RSocketServer(
                TransportTCP(*connection, read_buffer_size=65536),
                handler_factory=lambda: RoutingRequestHandler(router_factory()),
                fragment_size_bytes=1_000_000,
            )
        )

    async with await asyncio.start_server(session, "127.0.0.1", 0) as listener:
        host, port = listener.sockets[0].getsockname()[:2]
        try:
            yield f"tcp://{host}:{port}"
        finally:
            for each in sessions:
                await each.close()


def tutorial_router(files: dict[str, bytes]) -> RequestRouter:
    router = RequestRouter()

    def file_name(composite_metadata: CompositeMetadata) -> str:
        return utf8_decode(composite_metadata.find_by_mimetype(chat_filename_mimetype)[0].content)

    @router.response("file.upload")
    async def upload_file(payload: Payload, composite_metadata: CompositeMetadata) -> Awaitable[Payload]:
        files[file_name(composite_metadata)] = payload.data
        return create_response()

    @router.response("file.download")
    async def download_file(composite_metadata: CompositeMetadata) -> Awaitable[Payload]:
        name = file_name(composite_metadata)
        return create_response(files[name], composite(metadata_item(ensure_bytes(name), chat_filename_mimetype)))

    @router.stream("files")
    async def get_file_names() -> Publisher:
        count = len(files)
        generator = ((Payload(ensure_bytes(name)), index == count) for (index, name) in enumerate(files.keys(), 1))
        return StreamFromGenerator(lambda: generator)

    return router


@pytest.mark.parametrize("size", SIZES)
async def test_our_client_against_the_tutorials_server(size: int) -> None:
    stored: dict[str, bytes] = {}
    content = bytes(size)
    async with plain_server(lambda: tutorial_router(stored)) as uri, FileClient.connect(uri) as files:
        assert await files.upload("a.txt", content) == FileInfo(name="a.txt", size=size)
        await files.upload("b.txt", b"b")
        assert await files.list_files().pipe(ops.to_list()) == ["a.txt", "b.txt"]
        assert await files.list_files(request_n=1).pipe(ops.take(1), ops.to_list()) == ["a.txt"]
        assert await files.download("a.txt").pipe(ops.to_list()) == [content]
        with pytest.raises(NotFound, match="no file named 'nope'"):
            await files.download("nope")


# Our session in the tutorial's server


async def test_our_session_inside_rsockets_own_handler_and_transport() -> None:
    data = ChatData()
    async with plain_server(lambda: ChatUserSession(data).router_factory()) as uri, FileClient.connect(uri) as files:
        await files.upload("a", b"x" * 3_000_000)
        await files.upload("b", b"")
        assert await files.list_files(request_n=1).pipe(ops.to_list()) == ["a", "b"]
        assert await files.download("a") == b"x" * 3_000_000
        with pytest.raises(NotFound):
            await files.download("nope")


async def test_sessions_may_share_nothing() -> None:
    async with (
        plain_server(lambda: ChatUserSession().router_factory()) as uri,
        FileClient.connect(uri) as one,
        FileClient.connect(uri) as other,
    ):
        await one.upload("a", b"x")
        assert await other.list_files().pipe(ops.to_list()) == []


def test_get_file_name_reads_the_one_name() -> None:
    def parsed(*names: bytes) -> CompositeMetadata:
        items = [metadata_item(name, chat_filename_mimetype) for name in names]
        return CompositeMetadata().parse(composite(route("x"), *items))

    assert get_file_name(parsed("naïve.txt".encode())) == "naïve.txt"
    with pytest.raises(InvalidRequest, match="not 0"):
        get_file_name(parsed())
    with pytest.raises(InvalidRequest, match="not 2"):
        get_file_name(parsed(b"a", b"b"))
    with pytest.raises(InvalidName):
        get_file_name(parsed(b"a\0"))


async def test_hundreds_of_abrupt_disconnects_leave_nothing_behind() -> None:
    async with serve(data=ChatData({"a": bytes(3_000_000)})) as server:
        for _ in range(300):
            async with plain_client(server.uri) as client:
                asking = asyncio.ensure_future(client.request_response(Payload(metadata=about("file.download", "a"))))
                await asyncio.sleep(0)
                (await client._current_transport())._writer.transport.abort()
                await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: not server.connections)
        await eventually(lambda: not server.work.active)
