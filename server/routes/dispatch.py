"""From a request to its route's handler: parsed, checked, counted and answered with typed errors in one place."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from inspect import isawaitable
from typing import Any, cast

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import DefaultSubscriber, Subscriber
from reactivestreams.subscription import Subscription
from rsocket.exceptions import RSocketProtocolError, RSocketUnknownRoute
from rsocket.extensions.composite_metadata import CompositeMetadata
from rsocket.extensions.composite_metadata_item import CompositeMetadataItem
from rsocket.frame import FragmentableFrame, FrameType, RequestResponseFrame
from rsocket.helpers import DefaultPublisherSubscription
from rsocket.payload import Payload
from rsocket.request_handler import BaseRequestHandler
from rsocket.routing.request_router import RequestRouter

from shared.errors import TransferError, UnknownRoute, to_protocol_error
from shared.protocol.messages import chat_transfer_mimetype
from shared.protocol.metadata import build_routing, parse_metadata, parse_routing
from shared.protocol.wire import chat_filename_mimetype

from ..data import find_items
from ..work import OTHER
from .context import Session
from .pull import Items, PullStream
from .table import Model, Request, Route
from .whole import ReservedUpload, UploadSpool

__all__ = ["Dispatcher", "TableRouter", "call", "is_part"]


class TableRouter(RequestRouter):
    """rsocket's router, with the routes of a table for one session; others can be added in rsocket's way.

    Raises:
        ValueError: Two routes have the same name and interaction model, or a name isn't one.
    """

    def __init__(self, session: Session, table: Iterable[Route[Any]]) -> None:
        super().__init__()
        self._session = session
        self.routes: dict[tuple[int, str], Route[Any]] = {}
        for route in table:
            build_routing(route.name)
            if not route.name.isprintable() or (route.model, route.name) in self.routes:
                raise ValueError(f"a table can't have the route {route.name!r} for {route.model}, or not twice")
            self.routes[route.model, route.name] = route

    async def route(
        self, frame_type: FrameType, route: str, payload: Payload, composite_metadata: CompositeMetadata
    ) -> Any:
        """As rsocket's own handler calls it, which sends the text of any exception to the peer."""
        row = self.routes.get((frame_type, route))
        if row is None:
            return await super().route(frame_type, route, payload, composite_metadata)
        try:
            items = find_items(composite_metadata, chat_filename_mimetype, chat_transfer_mimetype)
            request = Request(self._session, row, items, payload)
            request.admit()
            is_call = row.model in (Model.REQUEST_RESPONSE, Model.FIRE_AND_FORGET)
            return _run(request) if is_call else await _publish(request)
        except Exception as error:
            raise to_protocol_error(error) from None


class Dispatcher(BaseRequestHandler):
    """Takes one connection's requests to their handlers.

    rsocket's own `RoutingRequestHandler` accepts truncated metadata, sends the text of every exception to the client,
    and leaves the stream of a refused channel open.

    Attributes:
        unanswered: The fire-and-forgets that are under way; they have no stream.
    """

    def __init__(self, session: Session, router: RequestRouter) -> None:
        self._session = session
        self._router = router
        self._routes = router.routes if isinstance(router, TableRouter) else {}
        self.unanswered: set[asyncio.Task[Any]] = set()

    def admit(self, model: Model, payload: Payload) -> Request[Any]:
        """The request, counted as started, if it can be served.

        Raises:
            TransferError: It can't; it is counted as failed.
        """
        connection = self._session.connection
        try:
            items = parse_metadata(payload.metadata or b"")
            name = parse_routing(items)
        except TransferError as error:
            connection.work.begin(f"{connection.peer} ({error.code})").end(error)
            raise
        route = self._routes.get((model, name))
        if route is None:
            label = name if name.isprintable() else ascii(name)
            route = Route(label, model, partial(_ask_router, self._router), right=None, counted_as=OTHER)
        request = Request(self._session, route, items, payload)
        request.admit()
        return request

    def spool(self, frame: FragmentableFrame, metadata: bytes) -> UploadSpool | ReservedUpload | None:
        """Where a split request's data goes; None for memory. A request that is refused anyway goes there, too."""
        if not isinstance(frame, RequestResponseFrame):
            return None
        try:
            items = parse_metadata(metadata)
            route = self._routes.get((Model.REQUEST_RESPONSE, parse_routing(items)))
            if route is None or route.spool is None:
                return None
            request = Request(self._session, route, items, Payload())
            request.check()
            return route.spool(request)
        except Exception:  # whatever an app's function raises: nothing else is received while this is asked
            return None  # what is wrong with the request is said when it is whole

    async def request_stream(self, payload: Payload) -> Publisher:
        try:
            return await _publish(self.admit(Model.REQUEST_STREAM, payload))
        except Exception as error:
            return _Refusal(to_protocol_error(error))

    async def request_channel(self, payload: Payload) -> tuple[Publisher | None, Subscriber | None]:
        try:
            return await _publish(self.admit(Model.REQUEST_CHANNEL, payload))
        except Exception as error:
            refusal = _Refusal(to_protocol_error(error))
            return refusal, refusal

    async def request_fire_and_forget(self, payload: Payload) -> None:
        try:
            request = self.admit(Model.FIRE_AND_FORGET, payload)
        except Exception:
            return  # it is counted, and no answer is waited for
        task = _run(request)
        self.unanswered.add(task)
        task.add_done_callback(self.unanswered.discard)


async def _ask_router(router: RequestRouter, request: Request[None]) -> Any:
    """The handler of what isn't in the table: a route that was added in rsocket's way, or none."""
    model, name = request.route.model, parse_routing(request.items)
    composite = CompositeMetadata([CompositeMetadataItem(item.mimetype, item.content) for item in request.items])
    try:
        given = await router.route(FrameType(model), name, request.payload, composite)
    except RSocketUnknownRoute:
        raise UnknownRoute(f"no route {name!r} for {model}") from None
    return await given if model == Model.REQUEST_RESPONSE else given


async def _publish(request: Request[Any]) -> Any:
    """The Publisher of a stream; the Publisher and the Subscriber of a channel."""
    operation = request.operation
    try:
        given = request.route.handle(request)
        if isawaitable(given):
            publisher = _checked(request.route.model, await given)
            operation.end(None)
            return publisher
        if request.route.model == Model.REQUEST_CHANNEL:
            halves = _checked(request.route.model, given)
            if given == (None, None):
                operation.end(None)
            return halves
        items = cast(Items | Callable[[PullStream], Items], given)
        make: Callable[[PullStream], Items] = items if callable(items) else lambda _: items
        stream = PullStream(make, request.session.connection, operation)
    except Exception as error:
        operation.end(error)
        raise
    request.follow(stream)
    return stream


def _checked(model: Model, given: Any) -> Any:
    """What a handler gave, if rsocket can subscribe to it; else the stream would stay open after its error."""
    if model == Model.REQUEST_CHANNEL:
        publisher, subscriber = given
    else:
        publisher, subscriber = given, None
    is_publisher = hasattr(publisher, "subscribe") or (model == Model.REQUEST_CHANNEL and publisher is None)
    if not is_publisher or not (subscriber is None or hasattr(subscriber, "on_subscribe")):
        raise TypeError(f"a handler for {model} gave {type(given).__name__}, not what its model asks for")
    return (publisher, subscriber or _TakesNothing()) if model == Model.REQUEST_CHANNEL else given


async def call(request: Request[Any]) -> Any:
    """What the handler of a request-response or fire-and-forget gives; raises what it raises, not typed yet."""
    try:
        given = await cast(Awaitable[object], request.route.handle(request))
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        raise RuntimeError("a handler was cancelled from within") from error
    is_answer = isinstance(given, Payload) and is_part(given.data) and is_part(given.metadata)
    if request.route.model == Model.REQUEST_RESPONSE and not is_answer:
        raise TypeError(f"a handler answered with {type(given).__name__}, not with a Payload of bytes")
    return given


async def _call_typed(request: Request[Any]) -> Any:
    try:
        return await call(request)
    except Exception as error:
        request.operation.end(error)
        raise to_protocol_error(error) from None


def _run(request: Request[Any]) -> asyncio.Task[Any]:
    """A task that calls the handler, with typed errors, and whose end is the operation's."""
    task = request.session.connection.work.spawn(_call_typed, request)
    task.add_done_callback(partial(_on_end, request))
    return task


def _on_end(request: Request[Any], task: asyncio.Task[Any]) -> None:
    request.operation.end(asyncio.CancelledError() if task.cancelled() else task.exception())


def _is_cancelled() -> bool:
    """Whether this task was cancelled. A variable with the task would make its exception a reference cycle."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_part(value: object) -> bool:
    """Whether rsocket can send this; a handler may have put anything there."""
    return value is None or isinstance(value, bytes | bytearray)


class _TakesNothing(DefaultSubscriber):
    """In place of a channel's Subscriber where there is none: with that, rsocket lets the peer wait for demand."""

    def on_subscribe(self, subscription: Subscription) -> None:
        self.subscription = subscription
        asyncio.get_running_loop().call_soon(self._cancel)  # not if the request itself completes the peer's half

    def on_complete(self) -> None:
        self.subscription = None

    def _cancel(self) -> None:
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            subscription.cancel()


class _Refusal(DefaultPublisherSubscription, DefaultSubscriber):
    """A stream, or both halves of a channel, that ends with an error as soon as the peer requests an item."""

    def __init__(self, error: RSocketProtocolError) -> None:
        DefaultSubscriber.__init__(self)
        self._error = error

    def request(self, n: int) -> None:
        inbound, outbound = self.subscription, self._subscriber
        self.cancel()
        outbound.on_error(self._error)
        # An rsocket-py client goes on sending after an ERROR; the CANCEL stops it, and frees the stream here.
        if inbound is not None:
            inbound.cancel()

    def cancel(self) -> None:
        self.subscription, self._subscriber = None, DefaultSubscriber()  # both would be reference cycles
