"""From a request to its route's handler: parsed, checked, counted and answered with typed errors in one place."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from inspect import isawaitable
from typing import Any, cast

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import DefaultSubscriber, Subscriber
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
from .context import Session
from .pull import Items, PullStream
from .table import Model, Request, Route
from .whole import UploadSpool

__all__ = ["Dispatcher", "TableRouter"]


class TableRouter(RequestRouter):
    """rsocket's router, with the routes of a table; others can be added in rsocket's way.

    Args:
        session: The session that they serve.
        table: The routes.

    Attributes:
        routes: The table.

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
            if row.model == Model.REQUEST_RESPONSE:
                return _run(request, _answer_typed)
            return _run(request, _call) if row.model == Model.FIRE_AND_FORGET else await _publish(request)
        except Exception as error:
            raise to_protocol_error(error) from None


class Dispatcher(BaseRequestHandler):
    """Takes one connection's requests to their handlers.

    rsocket's own `RoutingRequestHandler` accepts truncated metadata, sends the text of every exception to the client,
    and leaves the stream of a refused channel open.

    Args:
        session: The connection's session.
        router: Where its routes are.

    Attributes:
        unanswered: How many fire-and-forgets are under way; they have no stream.
    """

    def __init__(self, session: Session, router: RequestRouter) -> None:
        self._session = session
        self._router = router
        self._routes = router.routes if isinstance(router, TableRouter) else {}
        self.unanswered = 0

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
            route = Route(label, model, partial(_ask_router, self._router), right=None)
        request = Request(self._session, route, items, payload)
        request.admit()
        return request

    def answer_at_once(self, request: Request[Any]) -> Payload | Callable[[], Payload | None] | None:
        """See `Route.at_once`."""
        at_once, store = request.route.at_once, self._session.at_once
        if at_once is None or store is None:
            return None
        try:
            return at_once(request, store)
        except Exception:
            return None  # the handler says what is wrong

    def answer(self, request: Request[Any]) -> asyncio.Task[Payload]:
        """The handler's answer to a request-response; its errors aren't typed yet, and its operation goes on."""
        return self._session.connection.work.spawn(_answer, request)

    def spool(self, frame: FragmentableFrame, metadata: bytes) -> UploadSpool | None:
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
        except TransferError:
            return None
        return route.spool(request)

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
        self.unanswered += 1
        _run(request, _call).add_done_callback(self._on_run)

    def _on_run(self, _: asyncio.Task[object]) -> None:
        self.unanswered -= 1


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
    connection, operation = request.session.connection, request.operation
    try:
        given = request.route.handle(request)
        if isawaitable(given):
            publisher = await given
            operation.end(None)
            return publisher
        if request.route.model == Model.REQUEST_CHANNEL:
            publisher, subscriber = cast(tuple[Publisher, Subscriber], given)
            return publisher, subscriber
        items = cast(Items | Callable[[PullStream], Items], given)
        if not callable(items):
            return PullStream(lambda _: items, connection.window, operation)
        return PullStream(items, connection.window, operation, connection.engine)
    except Exception as error:
        operation.end(error)
        raise


async def _call(request: Request[Any]) -> object:
    try:
        return await cast(Awaitable[object], request.route.handle(request))
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        raise RuntimeError("a handler was cancelled from within") from error


async def _answer(request: Request[Any]) -> Payload:
    payload = await _call(request)
    if isinstance(payload, Payload) and _is_part(payload.data) and _is_part(payload.metadata):
        return payload
    raise TypeError(f"a handler answered with {type(payload).__name__}, not with a Payload of bytes")


async def _answer_typed(request: Request[Any]) -> Payload:
    try:
        return await _answer(request)
    except Exception as error:
        request.operation.end(error)
        raise to_protocol_error(error) from None


def _run(request: Request[Any], function: Callable[[Request[Any]], Any]) -> asyncio.Task[Any]:
    """A task that calls it, and whose end is the operation's."""
    task = request.session.connection.work.spawn(function, request)
    task.add_done_callback(partial(_on_end, request))
    return task


def _on_end(request: Request[Any], task: asyncio.Task[Any]) -> None:
    request.operation.end(asyncio.CancelledError() if task.cancelled() else task.exception())


def _is_cancelled() -> bool:
    """Whether this task was cancelled. A variable with the task would make its exception a reference cycle."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _is_part(value: object) -> bool:
    """Whether rsocket can send this; a handler may have put anything there."""
    return value is None or isinstance(value, bytes | bytearray)


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
