"""An application's own routes: every interaction model, through `FileClient.requests`, at a server of rsocket's."""

import asyncio
import gc
import math
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import reactivex
from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import DefaultSubscriber, Subscriber
from reactivestreams.subscription import Subscription
from reactivex import Observable, Subject
from reactivex import operators as ops
from reactivex.disposable import Disposable
from rsocket.exceptions import RSocketProtocolError
from rsocket.helpers import create_future, single_transport_provider
from rsocket.payload import Payload
from rsocket.routing.request_router import RequestRouter
from rsocket.routing.routing_request_handler import RoutingRequestHandler
from rsocket.rsocket_client import RSocketClient
from rsocket.rsocket_server import RSocketServer
from rsocket.streams.stream_from_generator import StreamFromGenerator
from rsocket.transports.tcp import TransportTCP

from rx_client import ColdReactiveXClient, ConnectOptions, FileClient
from rx_client.operators import for_each_async, from_async_iter, map_async
from server import serve
from shared import (
    BackpressureOverflow,
    ClientClosed,
    ConnectionLost,
    FileInfo,
    InvalidRequest,
    RemoteError,
    ServerError,
    Stalled,
)
from shared.protocol.messages import (
    Receipt,
    UploadEnd,
    UploadRequest,
    find_transfer,
    transfer_metadata,
    transfer_request,
)
from shared.protocol.metadata import build_metadata, build_routing
from shared.protocol.wire import Route
from tests.support import (
    CANCEL,
    COMPLETE,
    COMPOSITE,
    ERROR,
    FOLLOWS,
    METADATA_PUSH,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_FNF,
    RawFrame,
    RawPeer,
    client_stream_ids,
    eventually,
    frame,
    raw_server,
    request_n,
    stream_ids,
)


class Inbox(DefaultSubscriber):
    """The server's end of a channel: asks for items by hand, and remembers what happens."""

    def __init__(self, initial: int = 0) -> None:
        super().__init__()
        self.items: list[bytes] = []
        self.ends: list[object] = []
        self._initial = initial

    def on_subscribe(self, subscription: Subscription) -> None:
        self.subscription: Any = subscription
        if self._initial:
            subscription.request(self._initial)

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        self.items.append(bytes(value.data or b""))
        if is_complete:
            self.ends.append(None)

    def on_complete(self) -> None:
        self.ends.append(None)

    def on_error(self, exception: Exception) -> None:
        self.ends.append(exception)


class Outbox(Publisher, Subscription):
    """A publisher whose items are emitted by hand; remembers what is requested of it."""

    def __init__(self) -> None:
        self.requested: list[int] = []
        self.is_cancelled = False
        self.subscriber: Any = None

    def subscribe(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        subscriber.on_subscribe(self)

    def request(self, n: int) -> None:
        self.requested.append(n)

    def cancel(self) -> None:
        self.is_cancelled = True


class Service:
    """What the test's server does, and what it has heard."""

    def __init__(self) -> None:
        self.router = RequestRouter()
        self.sessions: list[RSocketServer] = []
        self.asked = 0
        self.heard: list[bytes] = []
        self.inbox = Inbox()
        self.outbox: Publisher | None = None
        router = self.router

        @router.response("double")
        async def double(payload: Payload) -> Any:
            self.asked += 1
            return create_future(Payload(bytes(payload.data or b"") * 2, None))

        @router.response("fail")
        async def fail() -> Any:
            self.asked += 1
            raise RuntimeError("no such luck")

        @router.response("typed")
        async def typed() -> Any:
            raise RSocketProtocolError(0x201, data="internal: try again")

        @router.stream("count")
        async def count(payload: Payload) -> Any:
            self.asked += 1
            last = int(bytes(payload.data or b""))
            return StreamFromGenerator(lambda: ((Payload(b"%d" % n), n == last) for n in range(1, last + 1)))

        @router.stream("quiet")
        async def quiet() -> Any:
            return Outbox()

        @router.channel("talk")
        async def talk() -> Any:
            self.asked += 1
            return self.outbox, self.inbox

        @router.fire_and_forget("note")
        async def note(payload: Payload) -> None:
            self.heard.append(bytes(payload.data or b""))

        @router.metadata_push("push")
        async def push() -> None:
            self.heard.append(b"pushed")

    @property
    def streams(self) -> list[int]:
        return [stream for session in self.sessions for stream in stream_ids(session)]

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[str, None]:
        def accept(*connection: Any) -> None:
            transport = TransportTCP(*connection)
            self.sessions.append(RSocketServer(transport, handler_factory=lambda: RoutingRequestHandler(self.router)))

        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield "tcp://{}:{}".format(*listener.sockets[0].getsockname()[:2])
        finally:
            listener.close()
            for session in self.sessions:
                await session.close()


def to(route: str, data: bytes = b"") -> Payload:
    return Payload(data, build_metadata([build_routing(route)]))


def talk(requests: ColdReactiveXClient, outgoing: Any = None, **options: Any) -> Observable[bytes]:
    return requests.request_channel(to("talk"), observable=outgoing, **options).pipe(ops.map(lambda item: item.data))


def items(*data: bytes) -> Observable[Payload]:
    return reactivex.of(*(Payload(each) for each in data))


class Heard:
    """Subscribes, and remembers what comes."""

    def __init__(self, observable: Observable[Any]) -> None:
        self.items: list[Any] = []
        self.errors: list[Exception] = []
        self.is_completed = False
        self.subscription = observable.subscribe(self.items.append, self.errors.append, self._on_completed)

    def _on_completed(self) -> None:
        self.is_completed = True


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
async def uri(service: Service) -> AsyncGenerator[str, None]:
    async with service.serve() as uri:
        yield uri


@pytest.fixture(params=["managed", "given"])
async def requests(
    request: pytest.FixtureRequest, uri: str, service: Service
) -> AsyncGenerator[ColdReactiveXClient, None]:
    """Requests over a connection of the client's own, and over an rsocket of the caller's with rsocket's transport."""
    if request.param == "managed":
        async with FileClient.connect(uri) as files:
            yield files.requests
            await eventually(lambda: not client_stream_ids(files))
            await eventually(lambda: not service.streams)
    else:
        host, port = uri.removeprefix("tcp://").split(":")
        transport = TransportTCP(*await asyncio.open_connection(host, int(port)))
        async with RSocketClient(single_transport_provider(transport), metadata_encoding=COMPOSITE) as rsocket:
            yield ColdReactiveXClient(rsocket)
            await eventually(lambda: not stream_ids(rsocket))
            await eventually(lambda: not service.streams)


# Responses and streams


async def test_a_response_is_cold_and_repeats(service: Service, requests: ColdReactiveXClient) -> None:
    double = requests.request_response(to("double", b"ab"))
    await asyncio.sleep(0.01)
    assert service.asked == 0
    answers = await double.pipe(ops.repeat(3), ops.map(lambda answer: answer.data), ops.to_list())
    assert answers == [b"abab"] * 3
    assert service.asked == 3


async def test_a_foreign_error_is_remote_and_one_of_ours_is_typed(
    service: Service, requests: ColdReactiveXClient
) -> None:
    with pytest.raises(RemoteError, match="no such luck"):
        await requests.request_response(to("fail")).pipe(ops.retry(3))
    assert service.asked == 3
    with pytest.raises(ServerError, match="try again"):
        await requests.request_response(to("typed"))


async def test_a_stream_comes_with_demand(requests: ColdReactiveXClient) -> None:
    counted = requests.request_stream(to("count", b"100"), 7).pipe(ops.map(lambda item: int(item.data)), ops.to_list())
    assert await counted == list(range(1, 101))
    assert await requests.request_stream(to("count", b"100"), 7).pipe(ops.take(3), ops.count()) == 3


async def test_a_stream_may_be_silent_for_as_long_as_it_is_allowed_to(uri: str) -> None:
    async with FileClient.connect(uri, options=ConnectOptions(progress_timeout=0.2)) as files:
        silent = Heard(files.requests.request_stream(to("quiet"), progress_timeout=math.inf))
        with pytest.raises(Stalled):
            await files.requests.request_stream(to("quiet"))
        with pytest.raises(Stalled, match=r"0\.3 s"):
            await files.requests.request_stream(to("quiet"), progress_timeout=0.3)
        assert not silent.errors
        silent.subscription.dispose()


# One way


async def test_fire_and_forget_is_cold_and_completes_when_it_has_left(
    service: Service, requests: ColdReactiveXClient
) -> None:
    note = requests.fire_and_forget(to("note", b"n"))
    await asyncio.sleep(0.01)
    assert service.heard == []
    assert await note.pipe(ops.repeat(2), ops.to_list()) == [None, None]
    await eventually(lambda: service.heard == [b"n", b"n"])
    await requests.fire_and_forget(to("note", bytes(3_000_000)))  # in fragments
    await eventually(lambda: len(service.heard) == 3)
    assert len(service.heard[2]) == 3_000_000


async def test_metadata_push_arrives(service: Service, requests: ColdReactiveXClient) -> None:
    push = requests.metadata_push(build_metadata([build_routing("push")]))
    assert await push.pipe(ops.repeat(2), ops.to_list()) == [None, None]
    await eventually(lambda: service.heard == [b"pushed"] * 2)
    with pytest.raises(ValueError, match="999936 bytes"):
        requests.metadata_push(bytes(1_000_000))


async def test_what_is_disposed_before_it_is_sent_is_not_sent() -> None:
    seen: list[RawFrame] = []

    async def serve_one(peer: RawPeer) -> None:
        while (got := await peer.receive(10)) is not None:
            seen.append(got)

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        files.requests.fire_and_forget(Payload(b"secret")).subscribe().dispose()
        files.requests.request_channel(Payload(b"secret"), observable=items(b"secret")).subscribe().dispose()
        await files.requests.metadata_push(b"m")
        await eventually(lambda: METADATA_PUSH in [got.kind for got in seen])
    assert {REQUEST_FNF, REQUEST_CHANNEL} & {got.kind for got in seen} == set()
    assert not any(b"secret" in got.body for got in seen)


async def test_one_way_observers_that_raise_get_their_error_and_the_connection_goes_on(
    requests: ColdReactiveXClient,
) -> None:
    failures: list[Exception] = []

    def fail(_: None) -> None:
        raise ValueError("private")

    requests.fire_and_forget(to("note")).subscribe(fail, failures.append)
    requests.metadata_push(b"m").subscribe(fail, failures.append)
    await eventually(lambda: len(failures) == 2)
    assert (await requests.request_response(to("double", b"a"))).data == b"aa"


# Channels


async def test_a_channel_sends_and_receives_and_completes_with_both(
    service: Service, requests: ColdReactiveXClient
) -> None:
    outbox = service.outbox = Outbox()
    service.inbox = Inbox(10)
    sending_done = asyncio.Event()
    heard = Heard(talk(requests, items(b"a", b"", b"c"), sending_done=sending_done))
    await sending_done.wait()
    await eventually(lambda: service.inbox.ends == [None])
    assert service.inbox.items == [b"a", b"", b"c"]
    await eventually(lambda: outbox.requested)
    outbox.subscriber.on_next(Payload(b"A"))
    outbox.subscriber.on_next(Payload(b"B"), is_complete=True)
    await eventually(lambda: heard.is_completed)
    assert (heard.items, heard.errors) == ([b"A", b"B"], [])


async def test_the_server_may_complete_first(service: Service, requests: ColdReactiveXClient) -> None:
    outbox = service.outbox = Outbox()
    source: Subject[Payload] = Subject()
    heard = Heard(talk(requests, source))
    await eventually(lambda: outbox.requested)
    outbox.subscriber.on_next(Payload(b"A"))
    outbox.subscriber.on_complete()
    await eventually(lambda: heard.items)
    await asyncio.sleep(0.02)
    assert not heard.is_completed
    source.on_next(Payload(b"late"))
    source.on_completed()
    await asyncio.sleep(0.02)
    assert not heard.is_completed
    service.inbox.subscription.request(5)
    await eventually(lambda: heard.is_completed)
    await eventually(lambda: service.inbox.ends == [None])
    assert service.inbox.items == [b"late"]


async def test_a_channel_without_a_source_is_a_stream(service: Service, requests: ColdReactiveXClient) -> None:
    service.outbox = StreamFromGenerator(lambda: ((Payload(b"%d" % n), n == 2) for n in range(3)))
    assert await talk(requests).pipe(ops.to_list()) == [b"0", b"1", b"2"]
    await eventually(lambda: service.inbox.ends == [None])


async def test_each_subscription_is_a_channel_that_subscribes_to_the_source(
    service: Service, requests: ColdReactiveXClient
) -> None:
    service.inbox = Inbox(100)
    subscribed = 0

    def emit(_: Any) -> Observable[Payload]:
        nonlocal subscribed
        subscribed += 1
        return items(b"%d" % subscribed)

    channel = talk(requests, reactivex.defer(emit))
    assert subscribed == 0
    assert await channel.pipe(ops.repeat(3), ops.to_list()) == []
    await eventually(lambda: service.inbox.items == [b"1", b"2", b"3"])
    assert service.asked == 3


async def test_retry_makes_another_channel(service: Service, requests: ColdReactiveXClient) -> None:
    attempts = 0

    def emit(_: Any) -> Observable[Payload]:
        nonlocal attempts
        attempts += 1
        return items(b"a") if attempts == 3 else reactivex.throw(ValueError("not yet"))

    service.inbox = Inbox(100)
    assert await talk(requests, reactivex.defer(emit)).pipe(ops.retry(5), ops.to_list()) == []
    await eventually(lambda: service.inbox.items == [b"a"])


async def test_a_publisher_is_asked_for_what_the_server_asks_for(
    service: Service, requests: ColdReactiveXClient
) -> None:
    outgoing = Outbox()
    heard = Heard(talk(requests, outgoing))
    await eventually(lambda: service.asked)
    assert outgoing.requested == []
    service.inbox.subscription.request(3)
    await eventually(lambda: outgoing.requested == [3])
    for n in range(2):
        outgoing.subscriber.on_next(Payload(b"%d" % n))
    service.inbox.subscription.request(2)
    await eventually(lambda: outgoing.requested == [3, 2])
    outgoing.subscriber.on_next(Payload(b"last"), is_complete=True)
    outgoing.subscriber.on_complete()  # as some do
    await eventually(lambda: heard.is_completed)
    await eventually(lambda: service.inbox.items == [b"0", b"1", b"last"])
    assert not outgoing.is_cancelled


async def test_a_publisher_is_no_more_than_16_items_ahead_of_the_connection(
    service: Service, requests: ColdReactiveXClient
) -> None:
    service.inbox = Inbox(0x7FFFFFFF)
    made = most = 0

    def make() -> Any:
        nonlocal made, most
        for made in range(1, 1001):
            most = max(most, made - len(service.inbox.items))
            yield Payload(b"x" * 100), made == 1000

    assert await talk(requests, StreamFromGenerator(make)).pipe(ops.to_list()) == []
    await eventually(lambda: len(service.inbox.items) == 1000)
    assert most < 500  # the sockets hold some


async def test_a_function_of_the_demand_is_asked_as_a_publisher(
    service: Service, requests: ColdReactiveXClient
) -> None:
    asked: list[int] = []
    numbers = iter(range(1000))

    def make(demand: Subject[int]) -> Observable[Payload]:
        return demand.pipe(
            ops.do_action(asked.append),
            ops.flat_map(lambda n: reactivex.of(*(Payload(b"%d" % next(numbers)) for _ in range(n)))),
            ops.take(5),
        )

    heard = Heard(talk(requests, make))
    await eventually(lambda: service.asked)
    service.inbox.subscription.request(2)
    await eventually(lambda: len(service.inbox.items) == 2)
    service.inbox.subscription.request(4)
    await eventually(lambda: heard.is_completed)
    await eventually(lambda: service.inbox.items == [b"0", b"1", b"2", b"3", b"4"])
    assert asked == [2, 4]


async def test_the_demand_of_an_asynchronous_consumer_reaches_the_server(
    service: Service, requests: ColdReactiveXClient
) -> None:
    """Through RxPY's operators, and for as long as it takes: a consumer that is slow isn't the server's fault."""
    service.outbox = outbox = Outbox()
    gate = asyncio.Event()
    options: dict[str, Any] = {"request_limit": 4, "progress_timeout": 1.0}
    consumed = talk(requests, **options).pipe(ops.map(bytes.decode), for_each_async(lambda _: gate.wait()))
    heard = Heard(consumed)
    await eventually(lambda: outbox.requested == [4])
    for number in range(4):
        outbox.subscriber.on_next(Payload(b"%d" % number))
    await asyncio.sleep(1.5)
    assert outbox.requested == [4]
    assert not heard.errors
    gate.set()
    await eventually(lambda: sum(outbox.requested) == 8)
    outbox.subscriber.on_complete()
    await eventually(lambda: heard.is_completed)
    assert heard.items == [4]


async def test_a_stream_without_a_limit_has_no_credit_to_hold(requests: ColdReactiveXClient) -> None:
    """Else a slow consumer's items would wait in memory without any bound."""
    unlimited = requests.request_stream(to("count", b"1000"))
    with pytest.raises(BackpressureOverflow):
        await unlimited.pipe(map_async(lambda _: asyncio.sleep(0.05), max_pending=10))
    assert (
        await requests.request_stream(to("count", b"1000"), 8).pipe(map_async(lambda _: asyncio.sleep(0)), ops.count())
        == 1000
    )


async def test_the_demand_of_a_channel_reaches_an_asynchronous_iterator(
    service: Service, requests: ColdReactiveXClient
) -> None:
    made = 0

    async def make() -> AsyncGenerator[int, None]:
        nonlocal made
        while True:
            made += 1
            yield made

    outgoing = from_async_iter(make, 5).pipe(ops.map(lambda number: Payload(b"%d" % number)))
    heard = Heard(talk(requests, outgoing, max_buffered=1))
    await eventually(lambda: made == 5)
    service.inbox.subscription.request(3)
    await eventually(lambda: made == 8)
    await eventually(lambda: service.inbox.items == [b"1", b"2", b"3"])
    heard.subscription.dispose()


async def test_an_observable_that_runs_ahead_overflows(service: Service, requests: ColdReactiveXClient) -> None:
    source: Subject[Payload] = Subject()
    heard = Heard(talk(requests, source, max_buffered=3))
    await eventually(lambda: service.asked)
    for _ in range(3):
        source.on_next(Payload(b"waits"))
    assert not heard.errors
    source.on_next(Payload(b"too many"))
    assert [type(error) for error in heard.errors] == [BackpressureOverflow]
    assert not source.observers
    await eventually(lambda: len(service.inbox.ends) == 1)
    assert "internal: the client gave up" in str(service.inbox.ends[0])


async def test_a_publisher_that_ignores_demand_overflows(service: Service, requests: ColdReactiveXClient) -> None:
    outgoing = Outbox()
    heard = Heard(talk(requests, outgoing))
    await eventually(lambda: service.asked)
    outgoing.subscriber.on_next(Payload(b"unasked"))
    assert [type(error) for error in heard.errors] == [BackpressureOverflow]
    assert outgoing.is_cancelled


@pytest.mark.parametrize(
    ("item", "expected"),
    [(Payload(bytes(999_000), bytes(1_000)), InvalidRequest), (b"bytes", TypeError), (Payload("text"), TypeError)],
)
async def test_an_item_that_cannot_be_sent_ends_the_channel_before_it_is(
    service: Service, requests: ColdReactiveXClient, item: Any, expected: type[Exception]
) -> None:
    service.inbox = Inbox(10)
    heard = Heard(talk(requests, reactivex.of(Payload(b"a"), item, Payload(b"b")).pipe(ops.concat(reactivex.never()))))
    await eventually(lambda: heard.errors)
    assert type(heard.errors[0]) is expected
    await eventually(lambda: service.inbox.ends)
    assert b"b" not in service.inbox.items
    service.inbox = Inbox(10)
    largest = Payload(bytes(999_936))
    assert await talk(requests, reactivex.of(largest)).pipe(ops.to_list()) == []
    await eventually(lambda: service.inbox.items == [bytes(999_936)])


@pytest.mark.parametrize("failure", [ValueError("private"), InvalidRequest("no such room")])
async def test_an_error_of_the_source_reaches_both_sides(
    service: Service, requests: ColdReactiveXClient, failure: Exception
) -> None:
    source: Subject[Payload] = Subject()
    heard = Heard(talk(requests, source))
    await eventually(lambda: service.asked)
    source.on_error(failure)
    assert heard.errors == [failure]
    await eventually(lambda: service.inbox.ends)
    expected = "no such room" if isinstance(failure, InvalidRequest) else "internal: the client gave up"
    assert expected in str(service.inbox.ends[0])
    assert "private" not in str(service.inbox.ends[0])


async def test_an_error_of_the_server_stops_the_source(service: Service, requests: ColdReactiveXClient) -> None:
    outbox = service.outbox = Outbox()
    source: Subject[Payload] = Subject()
    heard = Heard(talk(requests, source))
    await eventually(lambda: outbox.requested)
    outbox.subscriber.on_error(RSocketProtocolError(0x201, data="internal: broken"))
    await eventually(lambda: heard.errors)
    assert type(heard.errors[0]) is ServerError
    assert not source.observers
    for session in service.sessions:
        session.stop_all_streams()  # rsocket's own server waits for this side's completion


async def test_a_server_that_wants_no_more_stops_the_source_and_goes_on(
    service: Service, requests: ColdReactiveXClient
) -> None:
    outbox = service.outbox = Outbox()
    source: Subject[Payload] = Subject()
    sending_done = asyncio.Event()
    heard = Heard(talk(requests, source, sending_done=sending_done))
    await eventually(lambda: outbox.requested)
    service.inbox.subscription.cancel()
    await sending_done.wait()
    assert not source.observers
    outbox.subscriber.on_next(Payload(b"still"), is_complete=True)
    await eventually(lambda: heard.is_completed)
    assert heard.items == [b"still"]


async def test_a_dispose_stops_the_source_and_both_halves_at_the_server(
    service: Service, requests: ColdReactiveXClient
) -> None:
    outbox = service.outbox = Outbox()
    disposed: list[bool] = []
    source = reactivex.create(lambda _, __: Disposable(lambda: disposed.append(True)))
    heard = Heard(talk(requests, source))
    await eventually(lambda: outbox.requested)
    heard.subscription.dispose()
    assert disposed == [True]
    await eventually(lambda: outbox.is_cancelled and service.inbox.ends)
    assert not heard.errors


async def test_take_ends_a_channel(service: Service, requests: ColdReactiveXClient) -> None:
    service.outbox = StreamFromGenerator(lambda: ((Payload(b"x"), False) for _ in range(10_000_000)))
    source: Subject[Payload] = Subject()
    assert await talk(requests, source, request_limit=4).pipe(ops.take(3), ops.count()) == 3
    assert not source.observers


async def test_an_observer_of_a_channel_that_raises_gets_its_own_error(
    service: Service, requests: ColdReactiveXClient
) -> None:
    outbox = service.outbox = Outbox()
    source: Subject[Payload] = Subject()
    failures: list[Exception] = []

    def fail(_: bytes) -> None:
        raise ValueError("private")

    talk(requests, source).subscribe(fail, failures.append)
    await eventually(lambda: outbox.requested)
    outbox.subscriber.on_next(Payload(b"A"))
    await eventually(lambda: failures)
    assert [str(error) for error in failures] == ["private"]
    assert not source.observers
    await eventually(lambda: outbox.is_cancelled)
    assert not any("private" in str(end) for end in service.inbox.ends)


@pytest.mark.parametrize("when", ["at subscribe", "at request"])
async def test_a_source_that_raises_fails_its_channel_alone(
    service: Service, requests: ColdReactiveXClient, when: str
) -> None:
    class Raising(Outbox):
        def subscribe(self, subscriber: Subscriber) -> None:
            if when == "at subscribe":
                raise ValueError("private")
            super().subscribe(subscriber)

        def request(self, n: int) -> None:
            raise ValueError("private")

    service.inbox = Inbox(1)
    heard = Heard(talk(requests, Raising()))
    await eventually(lambda: heard.errors)
    assert str(heard.errors[0]) == "private"
    assert (await requests.request_response(to("double", b"a"))).data == b"aa"


async def test_a_source_may_emit_in_another_thread(service: Service, requests: ColdReactiveXClient) -> None:
    service.inbox = Inbox(100)
    source: Subject[Payload] = Subject()
    heard = Heard(talk(requests, source))

    def emit() -> None:
        for n in range(10):
            source.on_next(Payload(b"%d" % n))
        source.on_completed()

    await asyncio.to_thread(emit)
    await eventually(lambda: heard.is_completed)
    await eventually(lambda: service.inbox.items == [b"%d" % n for n in range(10)])


@pytest.mark.parametrize("bad", [Payload("text"), Payload(b"", "text"), Payload(5), b"bytes", None])
async def test_what_is_not_of_bytes_is_a_type_error_at_the_call(requests: ColdReactiveXClient, bad: Any) -> None:
    calls = [requests.request_response, requests.request_stream, requests.request_channel, requests.fire_and_forget]
    for call in calls:
        with pytest.raises(TypeError, match="not "):
            call(bad)
    assert (await requests.request_response(to("double", b"a"))).data == b"aa"


async def test_mutable_payloads_are_copied(service: Service, requests: ColdReactiveXClient) -> None:
    service.inbox = Inbox(10)
    content = bytearray(b"before")
    double = requests.request_response(Payload(content, to("double").metadata))
    sent = Heard(talk(requests, reactivex.of(Payload(memoryview(b"abcdef")[::2]))))
    content[:] = b"after!"
    assert (await double).data == b"beforebefore"
    await eventually(lambda: service.inbox.items == [b"ace"])
    assert not sent.errors


async def test_the_connection_is_closed_by_the_requests_too(uri: str) -> None:
    async with FileClient.connect(uri) as files:
        async with files.requests as requests:
            assert (await requests.request_response(to("double", b"a"))).data == b"aa"
        with pytest.raises(ClientClosed):
            await requests.request_response(to("double", b"a"))


@pytest.mark.parametrize("options", [{"request_limit": 0}, {"request_limit": 2**31}, {"max_buffered": 0}])
async def test_numbers_out_of_range_are_a_value_error_at_the_call(options: dict[str, int]) -> None:
    requests = ColdReactiveXClient(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="1 "):
        requests.request_channel(to("talk"), **options)  # pyright: ignore[reportArgumentType]


async def test_a_channel_stalls_only_while_the_server_is_waited_for(service: Service, uri: str) -> None:
    async with FileClient.connect(uri, options=ConnectOptions(progress_timeout=0.2)) as files:
        service.inbox = Inbox(1)
        source: Subject[Payload] = Subject()
        heard = Heard(talk(files.requests, source))
        await asyncio.sleep(0.6)  # the source has nothing to send
        assert not heard.errors
        source.on_next(Payload(b"a"))
        source.on_next(Payload(b"b"))  # which the server doesn't ask for
        await eventually(lambda: heard.errors)
        assert type(heard.errors[0]) is Stalled


# The connection


async def test_requests_of_a_client_are_made_again_over_a_new_connection(service: Service, uri: str) -> None:
    async with FileClient.connect(uri) as files:
        source: Subject[Payload] = Subject()
        cut = Heard(talk(files.requests, source))
        await eventually(lambda: service.asked)
        await service.sessions[0].close()
        await eventually(lambda: cut.errors)
        assert type(cut.errors[0]) is ConnectionLost
        assert not source.observers
        assert (await files.requests.request_response(to("double", b"a"))).data == b"aa"
        assert await files.requests.connect() is files._connector.current()
        assert len(service.sessions) == 2
        under_way = Heard(talk(files.requests, source))
    assert [type(error) for error in under_way.errors] == [ClientClosed]
    for late in (
        files.requests.request_response(to("double")),
        files.requests.fire_and_forget(to("note")),
        files.requests.metadata_push(b"m"),
        talk(files.requests),
    ):
        with pytest.raises(ClientClosed):
            await late


async def test_a_deadline_of_rxpys_ends_a_request_of_the_applications_own(uri: str) -> None:
    async with FileClient.connect(uri) as files:
        with pytest.raises(Exception, match="Timeout"):
            await files.requests.request_stream(to("quiet")).pipe(ops.timeout(0.05))


@pytest.mark.parametrize("end", ["completed", "disposed", "failed", "refused"])
async def test_an_ended_channel_is_freed_without_the_garbage_collector(service: Service, uri: str, end: str) -> None:
    async with FileClient.connect(uri) as files:
        outbox = service.outbox = Outbox()
        service.inbox = Inbox(100)
        source: Subject[Payload] = Subject()
        heard = Heard(talk(files.requests, source))
        await eventually(lambda: outbox.requested)
        (request,) = files._connector.current()._stream_control._streams.values()
        freed = weakref.ref(request)
        del request
        gc.disable()
        try:
            if end == "completed":
                source.on_next(Payload(b"a"))
                source.on_completed()
                outbox.subscriber.on_complete()
                await eventually(lambda: heard.is_completed)
            elif end == "disposed":
                heard.subscription.dispose()
            elif end == "failed":
                source.on_error(ValueError())
            else:
                outbox.subscriber.on_error(ValueError("refused"))
                await eventually(lambda: heard.errors)
            heard.errors.clear()
            heard.subscription.dispose()
            await asyncio.sleep(0.02)
            assert freed() is None
        finally:
            gc.enable()


# Our server


async def test_an_upload_by_hand_through_a_channel() -> None:
    async with serve() as server, FileClient.connect(server.uri) as files:
        request = UploadRequest("by-hand", 6, None, True, False)
        payload = Payload(b"", transfer_request(Route.UPLOAD, "n", request))
        end = transfer_metadata(UploadEnd(6, None))
        chunks = reactivex.of(Payload(b"abc"), Payload(b"def"), Payload(b"", end))
        receipts = files.requests.request_channel(payload, observable=chunks).pipe(
            ops.map(lambda item: Receipt.from_json(find_transfer(item.metadata) or {}))
        )
        last = await receipts
        assert last.committed == 6
        assert isinstance(last.info, FileInfo)
        assert server.data.files["n"] == b"abcdef"
        assert await files.download("n") == b"abcdef"
        await eventually(lambda: not client_stream_ids(files))


async def test_a_disposed_upload_by_hand_ends_at_our_server_and_the_connection_goes_on() -> None:
    async with serve() as server, FileClient.connect(server.uri) as files:
        payload = Payload(b"", transfer_request(Route.UPLOAD, "n", UploadRequest("by-hand", 6, None, True, False)))
        source: Subject[Payload] = Subject()
        heard = Heard(files.requests.request_channel(payload, observable=source))
        await eventually(lambda: heard.items)
        source.on_next(Payload(b"abc"))
        await asyncio.sleep(0.01)
        heard.subscription.dispose()
        await eventually(lambda: server.work.cancelled == 1)
        await files.upload("m", b"x")
        assert list(server.data.files) == ["m"]
        assert server.connections == 1


async def test_a_channel_that_our_server_refuses_is_a_typed_error() -> None:
    async with serve() as server, FileClient.connect(server.uri) as files:
        source: Subject[Payload] = Subject()
        heard = Heard(files.requests.request_channel(to("no such route"), observable=source))
        await eventually(lambda: heard.errors)
        assert "no route" in str(heard.errors[0])
        assert not source.observers


# Frame by frame


async def test_a_disposed_channel_sends_cancel_and_an_error_for_its_own_half() -> None:
    seen: list[RawFrame] = []

    async def serve_one(peer: RawPeer) -> None:
        while (got := await peer.receive(10)) is not None:
            seen.append(got)
            if got.kind == REQUEST_CHANNEL:
                await peer.send(request_n(1, 2), frame(1, PAYLOAD, NEXT, b"hello"))

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        source: Subject[Payload] = Subject()
        heard = Heard(files.requests.request_channel(Payload(b"x"), 5, source))
        await eventually(lambda: heard.items)
        source.on_next(Payload(b"a"))
        await eventually(lambda: seen[-1].kind == PAYLOAD)
        heard.subscription.dispose()
        await eventually(lambda: seen[-1].kind == ERROR)
    kinds = [(got.kind, got.flags & (NEXT | COMPLETE)) for got in seen if got.stream_id]
    assert kinds == [(REQUEST_CHANNEL, 0), (PAYLOAD, NEXT), (CANCEL, 0), (ERROR, 0)]
    assert seen[-1].error == (0x203, "cancelled by the client")


async def test_a_source_that_ends_at_once_does_not_end_a_request_in_several_frames() -> None:
    """Its completion would be taken for the request's last fragment, and the request be cut short."""
    seen: list[RawFrame] = []

    async def serve_one(peer: RawPeer) -> None:
        while (got := await peer.receive(10)) is not None:
            seen.append(got)
            if got.stream_id and not got.flags & FOLLOWS and got.kind == PAYLOAD and got.flags & COMPLETE:
                await peer.send(frame(1, PAYLOAD, COMPLETE))

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        heard = Heard(files.requests.request_channel(Payload(bytes(2_500_000)), 5, reactivex.empty()))
        await eventually(lambda: heard.is_completed)
        assert not client_stream_ids(files)
    flags = [got.flags & (FOLLOWS | NEXT | COMPLETE) for got in seen if got.stream_id]
    assert flags == [FOLLOWS, FOLLOWS | NEXT, NEXT, COMPLETE]
    assert sum(len(got.data) for got in seen if got.stream_id) == 2_500_000 + 4  # the first one has its request-n
