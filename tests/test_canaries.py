"""Canaries: rsocket 0.4.20 and reactivex 6, used in the obvious way and without our code, still have their faults.

A canary that fails is good news: a release has fixed something, and the remedy that its docstring names can go. The
numbers are those of `test_traps.py`, which shows that our users don't meet these faults. Where the fault is that
nothing happens, a canary waits for `A_MOMENT`: a slow machine can hide a fix, but never makes a canary fail.

What the product uses of rsocket's private side is in `shared/engine.py` alone, whose docstring gives the reasons; the
first tests notice when a release changes it.
"""

import ast
import asyncio
import importlib
import inspect
import logging
import re
import struct
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import reactivex
from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import DefaultSubscriber, Subscriber
from reactivex import Observable, Subject
from reactivex import operators as ops
from reactivex.internal.exceptions import SequenceContainsNoElementsError
from reactivex.testing import TestScheduler
from rsocket.exceptions import RSocketTransportError
from rsocket.extensions.composite_metadata import CompositeMetadata
from rsocket.frame import (
    FrameFragmentMixin,
    FrameType,
    PayloadFrame,
    RequestResponseFrame,
    serialize_prefix_with_frame_size_header,
)
from rsocket.frame_builders import to_cancel_frame, to_payload_frame, to_request_response_frame
from rsocket.frame_fragment_cache import FrameFragmentCache
from rsocket.helpers import DefaultPublisherSubscription, create_future, single_transport_provider
from rsocket.payload import Payload
from rsocket.reactivex.back_pressure_publisher import observable_to_publisher
from rsocket.reactivex.reactivex_channel import ReactivexChannel
from rsocket.reactivex.reactivex_client import ReactiveXClient
from rsocket.reactivex.reactivex_handler import BaseReactivexHandler
from rsocket.reactivex.reactivex_handler_adapter import ReactivexHandlerAdapter
from rsocket.request_handler import BaseRequestHandler
from rsocket.routing.request_router import RequestRouter
from rsocket.rsocket_base import RSocketBase
from rsocket.rsocket_client import RSocketClient
from rsocket.rsocket_server import RSocketServer
from rsocket.stream_control import StreamControl
from rsocket.streams.stream_from_generator import StreamFromGenerator
from rsocket.streams.stream_handler import StreamHandler
from rsocket.transports.tcp import TransportTCP

from tests.support import (
    APPLICATION_ERROR,
    CANCEL,
    COMPLETE,
    ERROR,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawPeer,
    eventually,
    frame,
    item,
    raw_peer,
    raw_server,
    request,
    stream_ids,
)

ROOT = Path(__file__).parents[1]
SMALLEST_FRAGMENTS = 64
A_MOMENT = 0.03


class Handler(BaseRequestHandler):
    """Answers request-responses with `respond`, streams with `publish`, channels with `connect`."""

    def __init__(
        self,
        respond: Callable[[bytes], Any] | None = None,
        publish: Callable[[], Publisher] | None = None,
        connect: Callable[[], tuple[Publisher | None, Subscriber | None]] | None = None,
    ) -> None:
        self._respond = respond
        self._publish = publish
        self._connect = connect

    async def request_response(self, payload: Payload) -> Any:
        assert self._respond is not None
        answer = self._respond(payload.data)
        if inspect.iscoroutine(answer):
            answer = await answer
        return answer if isinstance(answer, asyncio.Future) else create_future(answer)

    async def request_stream(self, payload: Payload) -> Publisher:
        assert self._publish is not None
        return self._publish()

    async def request_channel(self, payload: Payload) -> tuple[Publisher | None, Subscriber | None]:
        assert self._connect is not None
        return self._connect()


@asynccontextmanager
async def plain_server(
    handler: BaseRequestHandler, **options: Any
) -> AsyncGenerator[tuple[str, list[RSocketServer]], None]:
    """A server as in rsocket's examples; yields its URI and its sessions."""
    sessions: list[RSocketServer] = []

    def accept(*connection: Any) -> None:
        sessions.append(RSocketServer(TransportTCP(*connection), handler_factory=lambda: handler, **options))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()[:2]
    try:
        yield f"tcp://{host}:{port}", sessions
    finally:
        listener.close()
        for session in sessions:
            await session.close()
        await listener.wait_closed()


@asynccontextmanager
async def plain_client(uri: str, **options: Any) -> AsyncGenerator[RSocketClient, None]:
    """A client as in rsocket's examples."""
    host, port = uri.removeprefix("tcp://").split(":")
    transport = TransportTCP(*await asyncio.open_connection(host, int(port)))
    async with RSocketClient(single_transport_provider(transport), **options) as client:
        yield client


@asynccontextmanager
async def plain_pair(
    handler: BaseRequestHandler, fragment_size_bytes: int | None = None
) -> AsyncGenerator[tuple[RSocketClient, RSocketServer], None]:
    """A client and the server's end of its connection."""
    async with (
        plain_server(handler, fragment_size_bytes=fragment_size_bytes) as (uri, sessions),
        plain_client(uri, fragment_size_bytes=fragment_size_bytes) as client,
    ):
        await eventually(lambda: sessions)
        yield client, sessions[0]


class AtOnce(DefaultPublisherSubscription):
    """Publishes all its items on the first request; the last one completes the stream."""

    def __init__(self, *items: Payload) -> None:
        self._items = items

    def request(self, n: int) -> None:
        items, self._items = self._items, ()
        for index, each in enumerate(items, 1):
            self._subscriber.on_next(each, is_complete=index == len(items))


class Silent(DefaultPublisherSubscription):
    """Never publishes anything."""


class Collector(DefaultSubscriber):
    """Requests one item at a time, and records them."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[bytes] = []
        self.calls: list[str] = []

    def on_subscribe(self, subscription: Any) -> None:
        super().on_subscribe(subscription)
        subscription.request(1)

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        self.items.append(bytes(value.data or b""))
        self.calls.append("on_next")
        if not is_complete:
            self.subscription.request(1)

    def on_error(self, exception: Exception) -> None:
        self.calls.append("on_error")

    def on_complete(self) -> None:
        self.calls.append("on_complete")


async def assert_hangs(future: Awaitable[Any]) -> None:
    """Asserts that `future` isn't done after `A_MOMENT`, and cancels it."""
    waiting = asyncio.ensure_future(future)
    done, _ = await asyncio.wait([waiting], timeout=A_MOMENT)
    assert not done, "it ended"
    waiting.cancel()
    await asyncio.wait([waiting])


@contextmanager
def errors_of_the_loop() -> Iterator[list[dict[str, Any]]]:
    """Collects the errors that reach the event loop's exception handler."""
    loop = asyncio.get_running_loop()
    before, seen = loop.get_exception_handler(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: seen.append(context))
    try:
        yield seen
    finally:
        loop.set_exception_handler(before)


def echo(data: bytes) -> Payload:
    return Payload(data)


# What our code relies on


def test_the_versions_are_those_that_were_examined() -> None:
    """This module, `tests/typings` and all comments on rsocket are about these versions."""
    assert metadata.version("rsocket") == "0.4.20"
    assert metadata.version("reactivex") == "6.1.0"


def test_the_methods_that_we_override_or_call_have_the_parameters_that_we_expect() -> None:
    """The private ones are for `shared/engine.py`, the public ones also for `server/net` and `rx_client`."""

    def parameters(function: Callable[..., Any]) -> list[str]:
        return list(inspect.signature(function).parameters)

    for name in (
        *("_reset_internals", "_sender", "_before_sender", "_finally_sender", "_setup_internals"),
        *("is_server_alive", "get_fragment_size_bytes"),
    ):
        assert parameters(getattr(RSocketBase, name)) == ["self"]
    for name in ("_handle_next_frame", "_handle_frame_by_type"):
        assert parameters(getattr(RSocketBase, name)) == ["self", "frame", "async_frame_handler_by_type"]
    for name in ("handle_setup", "handle_request_response", "handle_error", "handle_resume", "handle_keep_alive"):
        assert parameters(getattr(RSocketBase, name)) == ["self", "frame"]
    for name in ("send_frame", "send_priority_frame", "send_request"):
        assert parameters(getattr(RSocketBase, name)) == ["self", "frame"]
    assert parameters(RSocketBase._register_stream) == ["self", "stream_id", "handler"]
    assert parameters(RSocketBase.register_new_stream) == ["self", "handler"]
    assert parameters(RSocketBase.finish_stream) == ["self", "stream_id"]
    assert parameters(RSocketBase.stop_all_streams) == ["self", "error_code", "data"]
    assert parameters(RSocketBase.send_payload) == ["self", "stream_id", "payload", "complete", "is_next"]
    assert parameters(RSocketBase.send_error) == ["self", "stream_id", "exception"]
    assert parameters(RSocketClient._keepalive_timeout_task) == ["self"]
    assert parameters(StreamHandler._finish_stream) == ["self"]  # for classes that inherit: our requests and replies
    assert parameters(FrameFragmentMixin.get_next_fragment) == ["self", "requires_length_header"]


async def test_a_connection_has_the_private_state_that_we_read() -> None:
    """`shared/engine.py` reads `_is_closing`, `_receiver_task` and `_stream_control._streams`."""
    handler = Handler(respond=lambda _: asyncio.get_running_loop().create_future())
    async with plain_pair(handler) as (client, server):
        assert client._is_closing is False
        assert isinstance(server._receiver_task, asyncio.Task)
        asking = client.request_response(Payload(b"x"))
        await eventually(lambda: server._stream_control._streams)
        assert list(client._stream_control._streams) == list(server._stream_control._streams) == [1]
        asking.cancel()
    assert client._is_closing is True


def private_names(*classes: type) -> set[str]:
    """The private methods and attributes that these classes' own code defines or uses on `self`."""
    names = set[str]()
    for each in classes:
        for node in ast.walk(ast.parse(inspect.getsource(each))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                names.add(node.attr)
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


@cache
def private_names_of_connections() -> set[str]:
    return private_names(RSocketBase, RSocketClient, RSocketServer, StreamControl)


def private_uses(path: Path) -> set[str]:
    """The private names of rsocket's connection that a product file reads, calls or overrides."""
    connection = private_names_of_connections()
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    tree, found = ast.parse(path.read_text()), set[str]()
    for node in ast.walk(tree):
        is_private = isinstance(node, ast.Attribute) and node.attr in connection
        if is_private and ast.unparse(node.value) not in ("self", "cls"):
            found.add(node.attr)
    for definition in tree.body:
        cls = getattr(module, definition.name) if isinstance(definition, ast.ClassDef) else object
        if issubclass(cls, RSocketBase):
            found |= private_names(cls) & connection
    return found


PRODUCT = [path for package in ("shared", "server", "rx_client") for path in sorted((ROOT / package).rglob("*.py"))]


def test_only_the_engine_uses_the_private_side_of_rsockets_connection() -> None:
    users = {path.relative_to(ROOT).as_posix(): used for path in PRODUCT if (used := private_uses(path))}
    assert set(users) == {"shared/engine.py"}


def test_the_engine_says_why_it_uses_each_private_name() -> None:
    engine = ROOT / "shared" / "engine.py"
    reasons = ast.get_docstring(ast.parse(engine.read_text()))
    assert reasons is not None
    assert private_uses(engine) == set(re.findall(r"\b_[a-z]\w*", reasons))


async def test_the_sender_asks_a_queued_frame_for_fragments_and_once_more_after_the_last() -> None:
    """`OutgoingFrame` in `shared/frames/outgoing.py` is such a frame, on an application's own rsocket, too."""

    class Queued(FrameFragmentMixin):
        def __init__(self) -> None:
            self.answers = [to_payload_frame(1, Payload(b"first")), to_cancel_frame(1), None]
            self.answers[0].flags_follows = True
            self.asked: list[bool] = []

        def get_next_fragment(self, requires_length_header: bool = True) -> Any:
            self.asked.append(requires_length_header)
            return self.answers.pop(0)

    async with plain_pair(Handler()) as (client, _):
        queued = Queued()
        client.send_request(queued)
        await eventually(lambda: len(queued.asked) == 3)
        assert queued.asked == [True, True, True]


# Bytes are silently lost or corrupted


async def test_trap_1_fragments_of_one_streams_items_interleave() -> None:
    """Remedy: `ServerConnection.send_payload` in `server/net/connection.py` and `UploadChannel.send_chunk` in
    `rx_client/transfers/channel.py` only send items that fit one frame.
    """
    items = [b"a" * 100, b"b" * 100]
    handler = Handler(publish=lambda: AtOnce(*map(Payload, items)))
    async with plain_pair(handler, SMALLEST_FRAGMENTS) as (client, _):
        got = await ReactiveXClient(client).request_stream(Payload(b"x")).pipe(ops.to_list())
    assert [bytes(each.data) for each in got] != items
    assert b"ab" in bytes(got[0].data)


def test_trap_2_the_length_of_a_large_frame_wraps() -> None:
    """Remedy: `Request.send` in `rx_client/requests/base.py` always has a fragment size, and `TcpTransport.send` in
    `shared/transport/tcp.py` an assertion.
    """
    upload = to_request_response_frame(1, Payload(bytes(2**24)), fragment_size_bytes=None).get_next_fragment()
    assert int.from_bytes(serialize_prefix_with_frame_size_header(upload)[:3], "big") == 6


async def test_trap_3_a_cancelled_request_is_sent_and_served() -> None:
    """Remedy: `OutgoingFrame.withdraw` in `shared/frames/outgoing.py` holds back what isn't sent; `Reassembler` in
    `shared/frames/reassembly.py` drops what was.
    """
    served: list[bytes] = []
    handler = Handler(respond=lambda data: served.append(bytes(data)) or Payload(b"ok"))
    async with plain_pair(handler, SMALLEST_FRAGMENTS) as (client, _):
        asking = client.request_response(Payload(bytes(500)))
        await asyncio.sleep(0)
        asking.cancel()
        await eventually(lambda: served)
    assert served == [bytes(500)]


async def test_trap_4_payloads_are_mutable_and_not_copied() -> None:
    """Remedy: `bytes(...)` in `rx_client/client.py` and in `server/routes/tutorial.py`; `checked` in
    `rx_client/requests/base.py`.
    """
    content = bytearray(b"content")
    assert to_payload_frame(1, Payload(content)).get_next_fragment().data is content

    types: list[type] = []
    async with plain_pair(Handler(respond=lambda data: types.append(type(data)) or Payload(data))) as (client, _):
        types.append(type((await client.request_response(Payload(b"x"))).data))
    assert types == [bytearray, bytearray]


async def test_trap_5_an_item_that_is_empty_in_both_vanishes() -> None:
    """Remedy: the check in `PullStream` in `server/routes/pull.py`; the name in the reply of `_upload` in
    `server/routes/tutorial.py`.
    """
    items = [Payload(b"a"), Payload(b"", b""), Payload(b"c")]
    async with plain_pair(Handler(publish=lambda: AtOnce(*items)), SMALLEST_FRAGMENTS) as (client, _):
        got = await ReactiveXClient(client).request_stream(Payload(b"x")).pipe(ops.to_list())
    assert [bytes(each.data) for each in got] == [b"a", b"c"]


def test_trap_6_truncated_metadata_is_a_shorter_name() -> None:
    """Remedy: `parse_metadata` in `shared/protocol/metadata.py`."""
    found = CompositeMetadata().parse(item(b"chat/file-name", b"secret", length=len(b"secret.txt"))).items
    assert [each.content for each in found] == [b"secret"]


# Observables that behave otherwise than Rx users expect


async def test_trap_7_a_request_is_sent_at_the_call_and_only_then() -> None:
    """Remedy: `ColdReactiveXClient.cold` in `rx_client/requests/cold.py`."""
    served: list[bytes] = []

    def respond(data: bytes) -> Payload:
        served.append(data)
        raise ValueError("no")

    async with plain_pair(Handler(respond=respond)) as (client, _):
        hot = ReactiveXClient(client).request_response(Payload(b"x"))
        await eventually(lambda: served)
        with pytest.raises(RuntimeError):
            await hot.pipe(ops.retry(5))
    assert len(served) == 1


async def test_trap_7_disposing_one_subscription_ends_the_other() -> None:
    """Remedy: `ColdReactiveXClient.cold` in `rx_client/requests/cold.py`."""
    errors: list[BaseException] = []
    answer = asyncio.get_running_loop().create_future()
    async with plain_pair(Handler(respond=lambda _: answer)) as (client, _):
        hot = ReactiveXClient(client).request_response(Payload(b"x"))
        one = hot.subscribe()
        hot.subscribe(on_error=errors.append)
        one.dispose()
        await eventually(lambda: errors)
    assert isinstance(errors[0], asyncio.CancelledError)


async def test_trap_7_a_second_subscription_to_a_stream_hangs() -> None:
    """Remedy: `ColdReactiveXClient.cold` in `rx_client/requests/cold.py`."""
    async with plain_pair(Handler(publish=lambda: AtOnce(Payload(b"a")))) as (client, _):
        once = ReactiveXClient(client).request_stream(Payload(b"x"))
        await once
        await assert_hangs(once)


async def test_trap_7_a_stream_disposed_in_the_same_iteration_leaks() -> None:
    """Remedy: `Request.send` in `rx_client/requests/base.py` opens the stream at once, and `Request.cancel` ends it."""
    async with plain_pair(Handler(respond=echo)) as (client, _):
        ReactiveXClient(client).request_stream(Payload(b"x")).subscribe().dispose()
        await client.request_response(Payload(b"a round trip later"))
        assert stream_ids(client) == [1]


async def test_trap_8_an_empty_response_is_no_response() -> None:
    """Remedy: `ResponseRequest` in `rx_client/requests/response.py` emits it."""
    async with plain_pair(Handler(respond=lambda _: Payload())) as (client, _):
        with pytest.raises(SequenceContainsNoElementsError):
            await ReactiveXClient(client).request_response(Payload(b"x"))


async def test_trap_9_a_slow_consumer_does_not_slow_the_producer() -> None:
    """Remedy: `Chunk` in `rx_client/chunks.py`: the credit of a chunk returns when the consumer is done with it."""
    produced = 0

    def items() -> Iterator[tuple[Payload, bool]]:
        nonlocal produced
        for produced in range(1, 101):
            yield Payload(b"%d" % produced), produced == 100

    async with plain_pair(Handler(publish=lambda: StreamFromGenerator(items))) as (client, _):
        stream = ReactiveXClient(client).request_stream(Payload(b"x"), request_limit=2)
        consuming = stream.pipe(ops.map(lambda _: reactivex.never()), ops.merge(max_concurrent=1)).subscribe()
        await eventually(lambda: produced == 100)
        await eventually(lambda: not stream_ids(client))
        consuming.dispose()


async def test_trap_10_an_observable_is_pulled_without_limit_and_never_disposed() -> None:
    """Remedy: `PullStream` in `server/routes/pull.py`."""
    pulled: list[int] = []
    subject = Subject[Payload]()
    many = reactivex.from_iterable(range(1_000)).pipe(ops.do_action(pulled.append), ops.map(lambda _: Payload(b"x")))
    publisher = observable_to_publisher(many.pipe(ops.concat(subject)))
    subscriber = DefaultSubscriber()
    publisher.subscribe(subscriber)
    subscriber.subscription.request(1)
    await eventually(lambda: len(pulled) == 1_000)

    subscriber.subscription.cancel()
    await asyncio.sleep(A_MOMENT)
    assert subject.observers


async def test_trap_11_what_an_observer_raises_is_sent_to_the_server_and_the_stream_goes_on() -> None:
    """Remedy: `Request.frame_received` in `rx_client/requests/base.py`."""
    errors: list[str] = []

    async def serve_one(peer: RawPeer) -> None:
        await peer.receive()  # SETUP
        await peer.receive()  # the request
        for _ in range(2):
            await peer.send(frame(1, PAYLOAD, NEXT, b"item"))
            answer = await peer.receive()
            assert answer is not None
            assert answer.kind == ERROR
            errors.append(answer.error[1])

    def on_next(_: Payload) -> None:
        raise ValueError("a secret of the application")

    async with raw_server(serve_one) as uri, plain_client(uri) as client:
        ReactiveXClient(client).request_stream(Payload(b"x")).subscribe(on_next, lambda _: None)
        await eventually(lambda: errors == ["a secret of the application"] * 2)


async def test_trap_12_a_timeout_fires_on_a_foreign_thread() -> None:
    """Remedy: `LoopObservable` in `rx_client/rx/observables.py`."""
    fired: list[threading.Thread] = []
    reactivex.never().pipe(ops.timeout(0.001)).subscribe(on_error=lambda _: fired.append(threading.current_thread()))
    await eventually(lambda: fired)
    assert fired != [threading.main_thread()]


async def test_trap_13_the_last_item_completes_without_on_complete() -> None:
    """Remedy: `StreamRequest` in `rx_client/requests/response.py` reads the frame's flags."""
    collector = Collector()
    async with plain_pair(Handler(publish=lambda: AtOnce(Payload(b"only")))) as (client, _):
        client.request_stream(Payload(b"x")).subscribe(collector)
        await eventually(lambda: collector.items and not stream_ids(client))
    assert collector.calls == ["on_next"]


# Hangs


async def test_trap_14_a_request_on_a_lost_connection_hangs() -> None:
    """Remedy: `is_usable` in `shared/engine.py`, asked by `GivenConnection.current` in
    `rx_client/connection/connector.py`; a managed connection ends its requests by itself.
    """
    async with plain_pair(Handler(respond=echo)) as (client, server):
        await server.close()
        await eventually(lambda: client._is_closing)
        await assert_hangs(client.request_response(Payload(b"x")))


async def test_trap_14_a_refused_connect_does_not_raise_until_the_close() -> None:
    """Remedy: `dial_tcp` in `rx_client/connection/dial.py` opens the socket, not rsocket."""

    async def refused() -> AsyncGenerator[TransportTCP, None]:
        raise ConnectionRefusedError
        yield

    async with asyncio.timeout(5):
        client = RSocketClient(refused())
        assert await client.connect() is None
        await assert_hangs(client.request_response(Payload(b"x")))
        with pytest.raises(RSocketTransportError):
            await client.close()


async def test_trap_15_a_keepalive_timeout_ends_nothing() -> None:
    """Remedy: `ClientSession.watch_peer` in `rx_client/connection/session.py`."""
    noticed = asyncio.Event()

    class Noticing(BaseRequestHandler):
        async def on_keepalive_timeout(self, time_since_last_keepalive: timedelta, rsocket: RSocketBase) -> None:
            await super().on_keepalive_timeout(time_since_last_keepalive, rsocket)
            noticed.set()

    async def silent(peer: RawPeer) -> None:
        await peer.reader.read()

    quick = timedelta(milliseconds=20)
    async with (
        raw_server(silent) as uri,
        plain_client(uri, handler_factory=Noticing, keep_alive_period=quick, max_lifetime_period=quick) as client,
    ):
        asking = client.request_response(Payload(b"x"))
        await noticed.wait()
        await assert_hangs(asking)


@pytest.mark.parametrize("answer", [None, b"bytes"])
async def test_trap_17_an_answer_that_is_no_payload_hangs_the_client(answer: object) -> None:
    """Remedy: `call` in `server/routes/dispatch.py` checks what a handler gives."""
    with errors_of_the_loop() as errors:
        async with plain_pair(Handler(respond=lambda _: answer)) as (client, _):
            await assert_hangs(client.request_response(Payload(b"x")))
            await eventually(lambda: errors)
    assert isinstance(errors[0]["exception"], AttributeError)


async def test_trap_17_a_text_as_data_silences_the_connection() -> None:
    """Remedy: `call` in `server/routes/dispatch.py`, and `checked` in `rx_client/requests/base.py`."""
    async with plain_pair(Handler(respond=lambda data: Payload("text" if data == b"text" else data))) as (client, _):
        await assert_hangs(client.request_response(Payload(b"text")))
        await assert_hangs(client.request_response(Payload(b"another")))
        assert not client._is_closing


async def test_trap_17_a_handler_that_is_cancelled_silences_the_connection() -> None:
    """Remedy: `call` in `server/routes/dispatch.py` makes an error of it."""

    async def respond(data: bytes) -> Payload:
        if data == b"cancel":
            raise asyncio.CancelledError
        return Payload(data)

    async with plain_pair(Handler(respond=respond)) as (client, _):
        await assert_hangs(client.request_response(Payload(b"cancel")))
        await assert_hangs(client.request_response(Payload(b"another")))
        assert not client._is_closing


async def test_trap_17_a_cancelled_fire_and_forget_silences_the_connection() -> None:
    """Remedy: `FireAndForgetRequest` in `rx_client/requests/response.py` has no future that could be cancelled."""
    with errors_of_the_loop():
        async with plain_pair(Handler(respond=echo)) as (client, _):
            client.fire_and_forget(Payload(b"x")).cancel()
            await assert_hangs(client.request_response(Payload(b"another")))
            assert not client._is_closing


async def test_trap_18_a_rejected_setup_changes_nothing() -> None:
    """Remedy: `ServerConnection.handle_setup` in `server/net/connection.py` ends the connection."""

    class Rejecting(Handler):
        async def on_setup(self, data_encoding: bytes, metadata_encoding: bytes, payload: Payload) -> None:
            raise PermissionError("go away")

    async with plain_pair(Rejecting(respond=echo)) as (client, _):
        assert (await client.request_response(Payload(b"secret"))).data == b"secret"


async def test_trap_19_a_slow_handler_holds_up_the_connection() -> None:
    """Remedy: `_run` in `server/routes/dispatch.py` calls it in a task, as `Reply` in `server/net/replies.py` does."""
    seen: list[bytes] = []
    release = asyncio.Event()

    async def respond(data: bytes) -> Payload:
        seen.append(bytes(data))
        await release.wait()
        return Payload(data)

    async with plain_pair(Handler(respond=respond)) as (client, _):
        slow, other = (client.request_response(Payload(data)) for data in (b"slow", b"other"))
        await asyncio.sleep(A_MOMENT)
        assert seen == [b"slow"]
        release.set()
        await asyncio.gather(slow, other)


# Channels


def numbers(count: int) -> Observable[Payload]:
    return reactivex.from_iterable(range(count)).pipe(ops.map(lambda number: Payload(b"%d" % number)))


async def test_trap_20_a_disposed_upload_goes_on() -> None:
    """Remedy: `UploadTransfer.attempt` in `rx_client/transfers/upload.py` and `ExchangeRequest` in
    `rx_client/requests/exchange.py` stop the source.
    """
    collector = Collector()
    async with plain_pair(Handler(connect=lambda: (Silent(), collector))) as (client, _):
        upload = ReactiveXClient(client).request_channel(Payload(b"x"), observable=numbers(100)).subscribe()
        await eventually(lambda: collector.items)
        upload.dispose()
        await eventually(lambda: len(collector.items) == 100)


async def test_trap_20_an_upload_goes_on_after_the_servers_error() -> None:
    """Remedy: `UploadChannel` in `server/routes/upload.py` and `_Refusal` in `server/routes/dispatch.py` send a CANCEL
    as well.
    """

    class Failing(DefaultPublisherSubscription):
        def request(self, n: int) -> None:
            self._subscriber.on_error(ValueError("no"))

    collector = Collector()
    errors: list[Exception] = []
    async with plain_pair(Handler(connect=lambda: (Failing(), collector))) as (client, _):
        channel = ReactiveXClient(client).request_channel(Payload(b"x"), observable=numbers(100))
        channel.subscribe(on_error=errors.append)
        await eventually(lambda: errors)
        await eventually(lambda: len(collector.items) == 100)


async def test_trap_20_an_error_of_the_uploads_source_is_not_reported() -> None:
    """Remedy: `UploadChannel.while_open` in `rx_client/transfers/channel.py` and `ExchangeRequest` in
    `rx_client/requests/exchange.py` report it.
    """
    collector = Collector()
    async with plain_pair(Handler(connect=lambda: (Silent(), collector))) as (client, _):
        failing = reactivex.throw(OSError("the disk"))
        await assert_hangs(ReactiveXClient(client).request_channel(Payload(b"x"), observable=failing))
        await eventually(lambda: collector.calls == ["on_error"])


async def test_trap_21_the_subscriber_of_an_upload_is_not_notified_of_a_lost_connection() -> None:
    """Remedy: `UploadChannel` in `server/routes/upload.py` is the publisher as well, which is cancelled."""
    collector = Collector()
    cancelled = asyncio.Event()

    class Cancelled(DefaultPublisherSubscription):
        def cancel(self) -> None:
            cancelled.set()

    async with plain_server(Handler(connect=lambda: (Cancelled(), collector))) as (uri, _):
        async with raw_peer(uri) as peer:
            await peer.send(request(1, REQUEST_CHANNEL, None, b"x"), frame(1, PAYLOAD, NEXT, b"item"))
            await eventually(lambda: collector.items)
        await cancelled.wait()
    assert collector.calls == ["on_next"]


async def test_trap_22_without_a_publisher_the_client_completes_before_the_upload() -> None:
    """Remedy: `UploadChannel` in `server/routes/upload.py` publishes a receipt after the commit."""
    collector = Collector()
    received: list[int] = []
    async with plain_pair(Handler(connect=lambda: (None, collector))) as (client, _):
        upload = ReactiveXClient(client).request_channel(Payload(b"x"), observable=numbers(100))
        upload.subscribe(on_completed=lambda: received.append(len(collector.items)))
        await eventually(lambda: len(collector.items) == 100)
    assert received[0] < 100


async def test_trap_23_a_stream_cancelled_in_the_segment_of_its_request_leaks() -> None:
    """Remedy: `PullStream.cancel` in `server/routes/pull.py` works before the first request, too."""
    handler = Handler(respond=echo, publish=lambda: StreamFromGenerator(lambda: iter(())))
    async with plain_server(handler) as (uri, sessions), raw_peer(uri) as peer:
        await peer.send(request(1, REQUEST_STREAM, None, b"x") + frame(1, CANCEL))
        answer = await peer.receive()
        assert answer is not None
        assert answer.error == (APPLICATION_ERROR, "'StreamFromGenerator' object has no attribute '_generator'")
        assert stream_ids(sessions[0]) == [1]
        sessions[0]._stream_control._streams.clear()  # it would make the connection's end fail as well


# Memory and load


def test_trap_24_what_an_unauthenticated_peer_has_the_server_reassemble_is_unlimited() -> None:
    """Remedy: `Reassembler` in `shared/frames/reassembly.py` has limits; rsocket's cache gets only whole frames."""
    cache = FrameFragmentCache()
    for _ in range(20):
        fragment = RequestResponseFrame() if not cache._frames_by_stream_id else PayloadFrame()
        fragment.stream_id, fragment.flags_follows, fragment.data = 1, True, bytearray(1_000_000)
        assert cache.append(fragment) is None
    assert len(cache._frames_by_stream_id[1].data) == 20_000_000


async def test_trap_24_the_send_queue_is_unlimited() -> None:
    """Remedy: `SendWindow` in `server/routes/window.py`, and `Outbox.control_bytes` in `shared/frames/outbox.py`."""
    async with plain_pair(Handler()) as (_, server):
        assert server._send_queue.maxsize == 0


def test_trap_25_the_socket_is_read_in_small_pieces() -> None:
    """Remedy: `FrameDecoder` in `shared/transport/decoder.py` receives 64 KiB, or the rest of a large frame."""
    assert inspect.signature(TransportTCP).parameters["read_buffer_size"].default == 1024


# Smaller


async def test_trap_26_an_exceptions_text_reaches_the_client() -> None:
    """Remedy: `to_protocol_error` in `shared/errors.py`."""

    async def respond(data: bytes) -> Payload:
        raise FileNotFoundError(2, "No such file or directory", "/srv/secret") if data == b"path" else KeyError("nope")

    async with plain_pair(Handler(respond=respond)) as (client, _):
        with pytest.raises(RuntimeError, match="/srv/secret"):
            await client.request_response(Payload(b"path"))
        with pytest.raises(RuntimeError, match=r"^'nope'$"):
            await client.request_response(Payload(b"x"))


@pytest.mark.parametrize(
    "error", [struct.pack(">I", 0x301) + b"text", struct.pack(">I", APPLICATION_ERROR) + b"\xff"], ids=["code", "text"]
)
async def test_trap_26_an_unusual_error_hangs_the_client(error: bytes) -> None:
    """Remedy: `_parse_error` in `shared/frames/codec.py` and `from_error_frame` in `shared/errors.py`."""

    async def serve_one(peer: RawPeer) -> None:
        while (got := await peer.receive()) is not None:
            if got.kind == REQUEST_RESPONSE:
                usual = frame(got.stream_id, PAYLOAD, NEXT | COMPLETE, b"usual")
                await peer.send(frame(got.stream_id, ERROR, 0, error) if got.stream_id == 1 else usual)

    async with raw_server(serve_one) as uri, plain_client(uri) as client:
        asking = client.request_response(Payload(b"x"))
        assert (await client.request_response(Payload(b"x"))).data == b"usual"
        await assert_hangs(asking)


async def test_trap_27_a_listing_fails_when_a_file_is_uploaded_meanwhile() -> None:
    """Remedy: the snapshot in `_list` in `server/routes/tutorial.py`."""
    stored = {b"a": b"", b"b": b""}
    names = ((Payload(name), False) for name in stored)
    async with plain_pair(Handler(publish=lambda: StreamFromGenerator(lambda: names))) as (client, _):
        listing = ReactiveXClient(client).request_stream(Payload(b"x"), request_limit=1)
        with pytest.raises(RuntimeError, match="dictionary changed size during iteration"):
            await listing.pipe(ops.do_action(lambda _: stored.update({b"c": b""})))


async def test_trap_28_the_reactivex_handler_has_holes() -> None:
    """Remedy: `Dispatcher` in `server/routes/dispatch.py` is a handler of rsocket's own kind, and
    `ColdReactiveXClient.request_channel` in `rx_client/requests/cold.py` makes its own channels.
    """
    with pytest.raises(RecursionError):
        await ReactivexHandlerAdapter(BaseReactivexHandler()).on_metadata_push(Payload())
    assert list(inspect.signature(ReactivexChannel).parameters) == ["observable", "observer", "limit_rate"]


async def test_trap_29_the_router_goes_by_names_and_unquoted_annotations() -> None:
    """Remedy: `TableRouter.route` in `server/routes/dispatch.py` calls the table's handlers itself."""
    seen: list[object] = []
    router = RequestRouter(payload_deserializer=lambda cls, _: f"deserialised as {cls}")

    @router.response("named otherwise")
    async def takes_metadata(metadata: CompositeMetadata) -> None:
        seen.append(metadata)

    @router.response("quoted")
    async def takes_payload(payload: "Payload") -> None:
        seen.append(payload)

    for name in ("named otherwise", "quoted"):
        await router.route(FrameType.REQUEST_RESPONSE, name, Payload(b"x"), CompositeMetadata())
    assert seen == [f"deserialised as {CompositeMetadata}", "deserialised as Payload"]


def test_trap_29_the_command_of_rsocket_is_not_installed() -> None:
    """Remedy: none; the README doesn't mention it."""
    assert not metadata.entry_points(group="console_scripts", name="rsocket-py")


async def test_trap_31_normal_cancels_and_disconnects_are_logged_as_warnings(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Remedy: `quiet_rsocket` in `shared/logs.py`."""
    monkeypatch.setattr(logging.getLogger("pyrsocket"), "filters", [])
    async with plain_pair(Handler(respond=echo)) as (client, server):
        await client.request_response(Payload(b"x"))
        client.send_frame(to_cancel_frame(1))  # as a cancel that crosses its answer
        await client.request_response(Payload(b"x"))
        await client.close()
        await server.close()
    logged = [record.msg for record in caplog.records if record.levelno >= logging.WARNING]
    assert "%s: Dropping frame from unknown stream %d" in logged
    assert "Runtime error canceling task: %s" in logged


def test_trap_32_retries_are_immediate_and_observables_are_not_iterated() -> None:
    """Remedy: `retry_backoff` in `rx_client/operators/_retry_backoff.py` and `to_async_iter` in
    `rx_client/operators/_to_async_iter.py`.
    """
    assert not hasattr(ops, "retry_when")
    assert list(inspect.signature(ops.retry).parameters) == ["retry_count"]
    assert not hasattr(Observable, "__aiter__")


def test_trap_32_a_timeout_is_a_bare_exception() -> None:
    """Remedy: `is_transient` in `rx_client/errors.py`."""
    errors: list[Exception] = []
    scheduler = TestScheduler()
    reactivex.never().pipe(ops.timeout(1)).subscribe(on_error=errors.append, scheduler=scheduler)
    scheduler.start()
    assert [(type(error), error.args) for error in errors] == [(Exception, ("Timeout",))]


def test_trap_32_merge_queues_without_bound() -> None:
    """Remedy: none; so `merge` may carry transfers, never chunks."""
    pulled: list[int] = []
    source = reactivex.from_iterable(range(1_000)).pipe(ops.do_action(pulled.append))
    source.pipe(ops.map(lambda _: reactivex.never()), ops.merge(max_concurrent=1)).subscribe().dispose()
    assert len(pulled) == 1_000


# The remedies

CANARIES = [test for name, test in list(globals().items()) if name.startswith("test_trap_")]


@pytest.mark.parametrize("canary", CANARIES)
def test_every_remedy_is_where_its_canary_says(canary: Callable[..., object]) -> None:
    remedy = " ".join((canary.__doc__ or "").split())
    assert remedy.startswith("Remedy: ")
    places = re.findall(r"`([\w.]+)` (?:and `([\w.]+)` )?in `([\w/]+\.py)`", remedy)
    assert places or remedy.startswith(("Remedy: none;", "Remedy: `bytes(...)`"))
    for *names, path in places:
        code = (ROOT / path).read_text()
        for part in ".".join(filter(None, names)).split("."):
            assert re.search(rf"\b(class |def |self\.){part}\b", code), (path, part)
    assert all((ROOT / path).exists() for path in re.findall(r"`([\w/]+\.py)`", remedy))
