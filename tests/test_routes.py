"""An app's own routes beside ours: rights, limits, counting, logging and errors are the server's business."""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import reactivex
from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import DefaultSubscriber, Subscriber
from reactivex import operators as ops
from rsocket.helpers import DefaultPublisherSubscription
from rsocket.payload import Payload

from rx_client import FileClient
from server import ChatData, Limits, Model, Request, Right, Route, serve
from shared.errors import AlreadyExists, ConnectionLost, InvalidRequest
from shared.protocol.messages import Json
from shared.protocol.metadata import build_simple
from shared.protocol.wire import request_metadata
from tests.security.support import setup_frame, user_line, users
from tests.support import (
    APPLICATION_ERROR,
    CANCEL,
    COMPLETE,
    ERROR,
    FOLLOWS,
    NEXT,
    PATIENCE,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawFrame,
    RawPeer,
    client_stream_ids,
    eventually,
    frame,
    name_item,
    raw_peer,
    request,
    request_n,
    route_item,
    server_stream_ids,
    transfer_item,
)

INTERNAL = (APPLICATION_ERROR, "internal: the server failed to serve this request; its log says why")


async def expect(peer: RawPeer) -> RawFrame:
    got = await peer.receive()
    assert got is not None, "the server closed the connection"
    return got


def response(name: str, stream_id: int = 1, metadata: bytes = b"", data: bytes = b"") -> bytes:
    return request(stream_id, REQUEST_RESPONSE, route_item(name) + metadata, data)


async def shout(request: Request[None]) -> Payload:
    return Payload(bytes(request.payload.data or b"").upper(), b"")


async def size(request: Request[None]) -> Payload:
    return Payload(b"%d" % (await request.session.store.stat(request.name)).size)


# Rights, counts and the log


async def test_a_route_is_a_row_and_a_function_and_is_refused_without_its_right(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    row = Route("size", Model.REQUEST_RESPONSE, size, right=Right.READ, is_about_file=True)
    known = users(user_line("u", "p", "r@mine/ wd@theirs/"))
    data = ChatData({"mine/1": b"12345", "theirs/1": b"1"})
    async with serve(data=data, users=known, routes=[row]) as server, raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup_frame(build_simple("u", "p")), response("size", 1, name_item(b"mine/1")))
        assert (await expect(peer)).data == b"5"
        await peer.send(response("size", 3, name_item(b"theirs/1")))
        assert (await expect(peer)).error == (APPLICATION_ERROR, "permission_denied: you may not read 'theirs/1'")
        await peer.send(response("size", 5))
        assert (await expect(peer)).error[1].startswith("invalid_request: this request needs exactly one")
        assert (server.work.started, server.work.completed, server.work.failed) == (3, 1, 2)
    lines = [record.getMessage() for record in caplog.records]
    for said in (r"size 'mine/1': 1 bytes in .* s, completed", r"size 'theirs/1': .*, failed: permission_denied"):
        assert len([line for line in lines if re.search(rf"127\.0\.0\.1:\d+ {said}", line)]) == 1, lines


@pytest.mark.parametrize("grants", ["r@", "rwd@mine/"])
async def test_a_right_without_a_file_is_one_to_all_files(grants: str) -> None:
    known = users(user_line("u", "p", grants))
    rows = [Route("shout", model, shout, right=Right.READ) for model in Model]
    async with serve(users=known, routes=rows) as server, raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup_frame(build_simple("u", "p")), response("shout", data=b"hello"))
        answer = await expect(peer)
        if grants == "r@":
            assert answer.data == b"HELLO"
            return
        refused = (APPLICATION_ERROR, "permission_denied: you may not read all files")
        assert answer.error == refused
        await peer.send(request(3, REQUEST_STREAM, route_item("shout")))
        assert (await expect(peer)).error == refused
        await peer.send(request(5, REQUEST_CHANNEL, route_item("shout")))
        assert (await expect(peer)).error == refused
        assert (await expect(peer)).kind == CANCEL
        await peer.send(request(7, REQUEST_FNF, route_item("shout")))
        await eventually(lambda: server.work.failed == 4)
        assert not server_stream_ids(server)


def test_a_right_is_not_forgotten() -> None:
    with pytest.raises(TypeError, match="right"):
        Route("shout", Model.REQUEST_RESPONSE, shout)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["file.stat", "twice", "", "a\nb", "x" * 256])
def test_a_table_with_a_route_that_can_not_be_is_refused_at_once(name: str) -> None:
    row = Route(name, Model.REQUEST_RESPONSE, shout, right=None)
    with pytest.raises(ValueError, match="route"):
        serve(routes=[row, row])


def test_a_name_can_have_a_route_for_each_model() -> None:
    serve(routes=[Route("files", Model.REQUEST_RESPONSE, shout, right=None)])


# Messages and errors


@dataclass(frozen=True)
class Greeting:
    """What an app's route wants to know."""

    who: str = "nobody"

    @classmethod
    def from_json(cls, said: Mapping[str, object]) -> "Greeting":
        who = said.get("who", "nobody")
        if not isinstance(who, str):
            raise InvalidRequest("'who' must be a string")
        return cls(who)


async def greet(request: Request[Greeting]) -> Payload:
    if request.message.who == "twice":
        raise AlreadyExists("you were here")
    return Payload(f"hello {request.message.who}".encode(), None)


async def fails(_: Request[None]) -> Payload:
    raise OSError(5, "I/O error", "/srv/secret")


async def is_cancelled(_: Request[None]) -> Payload:
    raise asyncio.CancelledError


async def says_nothing(_: Request[None]) -> None:
    return None


def is_not_asynchronous(_: Request[None]) -> AsyncGenerator[Payload, None]:
    return payloads(1)


async def test_a_message_is_parsed_before_its_handler_runs() -> None:
    row = Route("greet", Model.REQUEST_RESPONSE, greet, right=None, message=Greeting)
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(response("greet", 1, transfer_item(who="you")), response("greet", 3))
        assert {(await expect(peer)).data for _ in range(2)} == {b"hello you", b"hello nobody"}
        await peer.send(response("greet", 5, transfer_item(who=5)))
        assert (await expect(peer)).error[1] == "invalid_request: 'who' must be a string"
        await peer.send(response("greet", 7, transfer_item(who="twice")))
        assert (await expect(peer)).error == (APPLICATION_ERROR, "already_exists: you were here")


@pytest.mark.parametrize("handle", [fails, is_cancelled, says_nothing, is_not_asynchronous])
async def test_a_handler_that_fails_is_logged_and_says_nothing_of_itself(
    handle: object, caplog: pytest.LogCaptureFixture
) -> None:
    row = Route("fails", Model.REQUEST_RESPONSE, handle, right=None)  # type: ignore[arg-type]
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(response("fails"))
        assert (await expect(peer)).error == INTERNAL
        await peer.send(response("file.download", 3, name_item(b"missing")))
        assert (await expect(peer)).stream_id == 3
        assert server.work.failed == 2
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info


# Streams


async def payloads(count: int, *, nbytes: int = 10) -> AsyncGenerator[Payload, None]:
    for number in range(count):
        yield Payload(b"%d" % number + bytes(nbytes))


async def test_a_stream_is_pulled_and_its_generator_closed() -> None:
    made, closed = 0, asyncio.Event()

    async def count(_: Request[None]) -> AsyncGenerator[Payload, None]:
        nonlocal made
        try:
            while True:
                made += 1
                yield Payload(b"%d" % made)
        finally:
            closed.set()

    row = Route("count", Model.REQUEST_STREAM, count, right=None)
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(request(1, REQUEST_STREAM, route_item("count"), n=2))
        assert [(await expect(peer)).data for _ in range(2)] == [b"1", b"2"]
        await peer.silence(0.05)
        assert made <= 3
        await peer.send(request_n(1, 1))
        assert (await expect(peer)).data == b"3"
        await peer.send(frame(1, CANCEL))
        await asyncio.wait_for(closed.wait(), 5)
        await eventually(lambda: server.work.cancelled == 1)


@pytest.mark.parametrize(("nbytes", "is_sent"), [(999_900, True), (1_000_000, False), (-1, False)])
async def test_an_item_fits_one_frame_and_is_not_empty(nbytes: int, is_sent: bool) -> None:
    async def items(_: Request[None]) -> AsyncGenerator[Payload, None]:
        yield Payload(bytes(max(nbytes, 0)), b"" if nbytes else None)

    row = Route("items", Model.REQUEST_STREAM, items, right=None)
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(request(1, REQUEST_STREAM, route_item("items"), n=5))
        answer = await expect(peer)
        if is_sent:
            assert len(answer.data) == nbytes
            assert (await expect(peer)).flags & COMPLETE
        else:
            assert answer.error == INTERNAL
        await eventually(lambda: not server.work.active and not server_stream_ids(server))
        assert server.work.failed == (not is_sent)


async def text(_: Request[None]) -> AsyncGenerator[Payload, None]:
    yield Payload("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "handle"),
    [(Model.REQUEST_STREAM, text), (Model.REQUEST_STREAM, says_nothing), (Model.REQUEST_CHANNEL, says_nothing)],
)
async def test_a_wrong_answer_of_a_stream_ends_that_stream_alone(model: Model, handle: Any) -> None:
    async with serve(routes=[Route("wrong", model, handle, right=None)]) as server, raw_peer(server.uri) as peer:
        await peer.send(request(1, int(model), route_item("wrong"), n=5))
        assert (await expect(peer)).error == INTERNAL
        await eventually(lambda: server.work.failed == 1 and not server_stream_ids(server))
        await peer.send(response("file.stat", 3, name_item(b"a")))
        while (answer := await expect(peer)).stream_id != 3:
            assert answer.kind == CANCEL
        assert answer.error[1].startswith("not_found: ")


@pytest.mark.parametrize("is_parsed", [True, False])
async def test_what_a_route_raises_for_a_split_request_does_not_end_its_connection(is_parsed: bool) -> None:
    class Unparsed:
        @staticmethod
        def from_json(said: Json) -> "Unparsed":
            if not is_parsed:
                raise ValueError("internal text")
            return Unparsed()

    async def count(request: Request[Unparsed]) -> Payload:
        return Payload(b"%d" % len(request.payload.data or b""))

    def spool(_: Request[Unparsed]) -> None:
        raise ValueError("internal text")

    row = Route("count", Model.REQUEST_RESPONSE, count, right=None, message=Unparsed, spool=spool)
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(
            request(1, REQUEST_RESPONSE, route_item("count"), b"one", flags=FOLLOWS),
            frame(1, PAYLOAD, NEXT | COMPLETE, b"two"),
        )
        answer = await expect(peer)
        if is_parsed:
            assert answer.data == b"6"
        else:
            assert answer.error == INTERNAL


# Channels, and requests that want no answer


@dataclass
class Echo(Publisher, DefaultSubscriber):
    """Sends back what it gets."""

    asked: Request[None]
    outbound: Subscriber = field(default_factory=DefaultSubscriber)

    def subscribe(self, subscriber: Subscriber) -> None:
        self.outbound = subscriber
        subscriber.on_subscribe(self)

    def on_subscribe(self, subscription: object) -> None:
        self.inbound = subscription

    def request(self, n: int) -> None:
        self.inbound.request(n)  # type: ignore[attr-defined]

    def cancel(self) -> None:
        self.asked.operation.end(asyncio.CancelledError())

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        self.outbound.on_next(Payload(value.data))
        if is_complete:
            self.outbound.on_complete()
            self.asked.operation.end(None)


async def test_a_channel_of_an_app() -> None:
    def echo(request: Request[None]) -> tuple[Publisher, Subscriber]:
        channel = Echo(request)
        return channel, channel

    row = Route("echo", Model.REQUEST_CHANNEL, echo, right=None)
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(request(1, REQUEST_CHANNEL, route_item("echo"), n=3))
        assert (await expect(peer)).kind == 0x08
        await peer.send(frame(1, PAYLOAD, NEXT, b"one"))
        assert (await expect(peer)).data == b"one"
        await peer.send(frame(1, PAYLOAD, NEXT | COMPLETE, b"two"))
        assert (await expect(peer)).data == b"two"
        await eventually(lambda: server.work.completed == 1 and not server_stream_ids(server))


class One(DefaultPublisherSubscription):
    """Publishes one item."""

    def request(self, n: int) -> None:
        self._subscriber.on_next(Payload(b"one", b""))
        self._subscriber.on_complete()


async def neither_later(_: Request[None]) -> tuple[None, None]:
    return None, None


def neither(_: Request[None]) -> tuple[None, None]:
    return None, None


def publisher_alone(request: Request[None]) -> tuple[Publisher, None]:
    request.operation.end(None)
    return One(), None


@pytest.mark.parametrize(("handle", "items"), [(neither, []), (neither_later, []), (publisher_alone, [b"one"])])
@pytest.mark.parametrize("is_sending", [False, True])
async def test_a_channel_without_a_half_ends(handle: Any, items: list[bytes], is_sending: bool) -> None:
    row = Route("part", Model.REQUEST_CHANNEL, handle, right=None)
    sent: reactivex.Observable[Payload] | None = reactivex.never() if is_sending else None
    async with serve(routes=[row]) as server, FileClient.connect(server.uri) as files:
        asked = files.requests.request_channel(Payload(None, request_metadata("part")), observable=sent)
        got: list[Payload] = await asked.pipe(ops.timeout(PATIENCE), ops.to_list())
        assert [payload.data for payload in got] == items
        assert (server.work.completed, server.work.active) == (1, 0)
        await eventually(lambda: not server_stream_ids(server) and not client_stream_ids(files))


@pytest.mark.parametrize("is_complete", [False, True])
async def test_a_peer_is_cancelled_if_a_channel_takes_nothing_and_it_has_not_completed(is_complete: bool) -> None:
    row = Route("part", Model.REQUEST_CHANNEL, neither, right=None)
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(request(1, REQUEST_CHANNEL, route_item("part"), n=3, flags=COMPLETE * is_complete))
        got = await expect(peer)
        assert (got.kind, got.flags & COMPLETE) == (PAYLOAD, COMPLETE)
        if not is_complete:
            assert (await expect(peer)).kind == CANCEL
        await peer.send(frame(1, PAYLOAD, NEXT, b"item"))
        await peer.silence(0.05)
        assert not server_stream_ids(server)


async def test_fire_and_forget_is_counted_and_limited() -> None:
    gate, ran = asyncio.Event(), 0

    async def wait(request: Request[None]) -> None:
        nonlocal ran
        ran += 1
        await gate.wait()
        if request.payload.data == b"fail":
            raise AlreadyExists("said to no peer")

    row = Route("wait", Model.FIRE_AND_FORGET, wait, right=None)
    async with serve(routes=[row], limits=Limits(max_streams=3)) as server, raw_peer(server.uri) as peer:
        await peer.send(*(request(id_, REQUEST_FNF, route_item("wait"), b"fail") for id_ in range(1, 21, 2)))
        await eventually(lambda: ran == 3)
        await peer.send(response("file.stat", 21, name_item(b"a")))
        assert (await expect(peer)).error[1].startswith("too_many_streams: ")
        assert (server.work.started, server.work.active) == (3, 3)
        gate.set()
        await eventually(lambda: server.work.failed == 3)
        await peer.send(request(23, REQUEST_FNF, route_item("wait")), request(25, REQUEST_FNF, route_item("none")))
        await eventually(lambda: server.work.completed == 1 and server.work.failed == 4)
        await peer.silence(0.05)


# Errors of streams


async def test_an_error_of_a_stream_is_typed() -> None:
    async def fails(_: Request[None]) -> AsyncGenerator[Payload, None]:
        yield Payload(b"one")
        raise AlreadyExists("twice")

    row = Route("fails", Model.REQUEST_STREAM, fails, right=None)
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(request(1, REQUEST_STREAM, route_item("fails"), n=2))
        assert (await expect(peer)).data == b"one"
        error = await expect(peer)
        assert (error.kind, error.error) == (ERROR, (APPLICATION_ERROR, "already_exists: twice"))


async def test_what_the_log_is_to_say_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def asks_another_server(_: Request[None]) -> Payload:
        raise ConnectionLost("of another server")

    row = Route("asks", Model.REQUEST_RESPONSE, asks_another_server, right=None)
    async with serve(routes=[row]) as server, raw_peer(server.uri) as peer:
        await peer.send(response("asks"))
        assert (await expect(peer)).error == INTERNAL
        await eventually(lambda: server.work.failed == 1)
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info
