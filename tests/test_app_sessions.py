"""Sessions of an app's own, in our server and in rsocket's; and a table in rsocket's."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from reactivestreams.publisher import Publisher
from reactivex import operators as ops
from rsocket.extensions.helpers import composite, route
from rsocket.helpers import create_response
from rsocket.payload import Payload
from rsocket.routing.request_router import RequestRouter
from rsocket.streams.stream_from_generator import StreamFromGenerator

from rx_client import ColdReactiveXClient
from server import ChatData, ChatUserSession, ConnectionContext, FileServer, Model, Request, Right, Route, serve
from shared.errors import InvalidRequest, PermissionDenied, ServerError, UnknownRoute
from shared.protocol.metadata import build_simple
from tests.security.support import setup_frame, user_line, users
from tests.support import (
    eventually,
    name_item,
    raw_peer,
)
from tests.test_routes import Greeting, expect, greet, payloads, response, size
from tests.test_tutorial import about, plain_client, plain_server


class Greeter(ChatUserSession):
    """Adds its routes as the tutorial does."""

    def router_factory(self) -> RequestRouter:
        router = super().router_factory()

        @router.response("hello")
        async def hello(payload: Payload) -> object:
            return create_response(b"hello " + bytes(payload.data or b""))

        @router.response("fails")
        async def fails() -> object:
            raise OSError(5, "I/O error", "/srv/secret")

        @router.stream("numbers")
        async def numbers() -> Publisher:
            return StreamFromGenerator(lambda: ((Payload(b"%d" % number), number == 2) for number in range(3)))

        return router


async def uses_the_greeter(client: ColdReactiveXClient) -> None:
    def ask(name: str, data: bytes = b"") -> Payload:
        return Payload(data, composite(route(name)))

    answer = await client.request_response(ask("hello", b"you"))
    assert answer.data == b"hello you"
    numbers = client.request_stream(ask("numbers"), request_limit=1)
    assert await numbers.pipe(ops.map(lambda item: bytes(item.data)), ops.to_list()) == [b"0", b"1", b"2"]
    stored = await client.request_response(Payload(b"content", about("file.upload", "a")))
    assert not stored.data
    names = client.request_stream(ask("files"))
    assert await names.pipe(ops.map(lambda item: bytes(item.data)), ops.to_list()) == [b"a"]


async def test_a_session_of_an_app() -> None:
    async with serve(routes=Greeter) as server, plain_client(server.uri) as rsocket:
        client = ColdReactiveXClient(rsocket)
        await uses_the_greeter(client)
        with pytest.raises(ServerError, match="its log says why"):
            await client.request_response(Payload(None, composite(route("fails"))))
        with pytest.raises(UnknownRoute, match="no route 'nope' for request-response"):
            await client.request_response(Payload(None, composite(route("nope"))))
        assert (server.work.started, server.work.completed, server.work.failed) == (6, 4, 2)


async def test_a_session_of_an_app_inside_rsockets_own_server() -> None:
    data = ChatData()
    async with plain_server(lambda: Greeter(data).router_factory()) as uri, plain_client(uri) as rsocket:
        await uses_the_greeter(ColdReactiveXClient(rsocket))


async def test_a_table_inside_rsockets_own_server() -> None:
    ran = asyncio.Event()

    async def run(_: Request[None]) -> None:
        ran.set()

    async def three(_: Request[None]) -> AsyncGenerator[Payload, None]:
        async for payload in payloads(3):
            yield payload

    table = [
        Route("greet", Model.REQUEST_RESPONSE, greet, right=None, message=Greeting),
        Route("size", Model.REQUEST_RESPONSE, size, right=Right.READ, is_about_file=True),
        Route("three", Model.REQUEST_STREAM, three, right=None),
        Route("run", Model.FIRE_AND_FORGET, run, right=None),
    ]
    session = ChatUserSession(ChatData({"a": b"123"}), routes=table)
    async with plain_server(session.router_factory) as uri, plain_client(uri) as rsocket:
        client = ColdReactiveXClient(rsocket)
        assert (await client.request_response(Payload(None, composite(route("greet"))))).data == b"hello nobody"
        assert (await client.request_response(Payload(None, about("size", "a")))).data == b"3"
        assert await client.request_stream(Payload(None, composite(route("three")))).pipe(ops.count()) == 3
        await rsocket.fire_and_forget(Payload(None, composite(route("run"))))
        await asyncio.wait_for(ran.wait(), 5)
        with pytest.raises(InvalidRequest):
            await client.request_response(Payload(None, composite(route("size"))))
        session.user = users(user_line("u", "p", "r@mine/"))._users["u"]
        with pytest.raises(PermissionDenied):
            await client.request_response(Payload(None, about("size", "a")))
        work = session.connection.work
        await eventually(lambda: (work.started, work.completed, work.failed) == (6, 4, 2))


async def test_an_app_knows_its_connection() -> None:
    seen: list[str] = []

    async def who(request: Request[None]) -> Payload:
        seen.append(request.session.connection.peer)
        return Payload(json.dumps(request.session.user.name).encode())

    row = Route("who", Model.REQUEST_RESPONSE, who, right=None)
    async with a_server(row) as server, raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup_frame(build_simple("u", "p")), response("who"))
        assert (await expect(peer)).data == b'"u"'
    assert seen[0].startswith("127.0.0.1:")


def a_server(row: Route[None]) -> FileServer:
    return serve(users=users(user_line("u", "p")), routes=[row])


async def test_a_session_that_can_not_be_made_ends_its_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    is_broken = True

    def make(data: ChatData, connection: ConnectionContext) -> ChatUserSession:
        if is_broken:
            raise OSError("/srv/secret")
        return ChatUserSession(data, connection)

    async with serve(routes=make) as server:
        async with raw_peer(server.uri) as peer:
            assert await peer.receive() is None
        await eventually(lambda: not server.connections)
        is_broken = False
        async with raw_peer(server.uri) as peer:
            await peer.send(response("file.stat", 1, name_item(b"a")))
            assert (await expect(peer)).error[1].startswith("not_found: ")
    assert "could not be served" in caplog.text
