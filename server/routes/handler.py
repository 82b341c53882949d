"""From an RSocket request to its route: strict metadata in, typed errors out."""

import asyncio
import logging
from typing import Any, NoReturn

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from rsocket.exceptions import RSocketProtocolError, RSocketUnknownRoute
from rsocket.extensions.composite_metadata import CompositeMetadata
from rsocket.extensions.composite_metadata_item import CompositeMetadataItem
from rsocket.frame import FrameType
from rsocket.payload import Payload
from rsocket.request_handler import BaseRequestHandler
from rsocket.routing.request_router import RequestRouter
from rsocket.streams.error_stream import ErrorStream

from shared.errors import TransferError, UnknownRoute, to_protocol_error
from shared.protocol.metadata import parse_metadata, parse_routing

__all__ = ["FileRequestHandler"]

_log = logging.getLogger(__name__)

_MODEL_NAMES = {
    FrameType.REQUEST_RESPONSE: "request-response",
    FrameType.REQUEST_STREAM: "request-stream",
    FrameType.REQUEST_CHANNEL: "request-channel",
    FrameType.REQUEST_FNF: "fire-and-forget",
}


class FileRequestHandler(BaseRequestHandler):
    """Routes one connection's requests.

    rsocket's own `RoutingRequestHandler` accepts truncated metadata, sends the text of every exception to the client,
    and leaves the stream of a refused channel open.

    Args:
        router: Where the routes are.
    """

    def __init__(self, router: RequestRouter) -> None:
        self._router = router

    async def request_response(self, payload: Payload) -> asyncio.Future[Payload]:
        try:
            return await self._route(FrameType.REQUEST_RESPONSE, payload)
        except RSocketProtocolError as error:
            failed: asyncio.Future[Payload] = asyncio.get_running_loop().create_future()
            failed.set_exception(_bare(error))
            return failed

    async def request_stream(self, payload: Payload) -> Publisher:
        try:
            return await self._route(FrameType.REQUEST_STREAM, payload)
        except RSocketProtocolError as error:
            return ErrorStream(_bare(error))

    async def request_channel(self, payload: Payload) -> tuple[Publisher | None, Subscriber | None]:
        try:
            return await self._route(FrameType.REQUEST_CHANNEL, payload)
        except RSocketProtocolError as error:
            refused = _RefusedChannel(_bare(error))
            return refused, refused

    async def request_fire_and_forget(self, payload: Payload) -> None:
        try:
            await self._route(FrameType.REQUEST_FNF, payload)
        except RSocketProtocolError as error:
            _log.debug("fire-and-forget refused: %s", error)

    async def _route(self, model: FrameType, payload: Payload) -> Any:
        """What the route gives.

        Raises:
            RSocketProtocolError: Whatever went wrong, ready to be sent.
        """
        try:
            items = parse_metadata(payload.metadata or b"")
            route = parse_routing(items)
            composite = CompositeMetadata([CompositeMetadataItem(item.mimetype, item.content) for item in items])
            return await self._router.route(model, route, payload, composite)
        except RSocketUnknownRoute as error:
            _raise_typed(UnknownRoute(f"no route {error.route_id!r} for {_MODEL_NAMES[model]}"))
        except TransferError as error:
            _raise_typed(error)
        except Exception as error:
            _log.exception("a request could not be routed")
            _raise_typed(error)


def _raise_typed(error: Exception) -> NoReturn:
    raise to_protocol_error(error) from None


def _bare(error: RSocketProtocolError) -> RSocketProtocolError:
    """It without its traceback, nor that of what it came from: they lead to the frame that keeps it, in a circle."""
    error.__context__ = None
    return error.with_traceback(None)


class _RefusedChannel(Publisher, Subscriber, Subscription):
    """Both halves of a channel that ends with an error as soon as the client may be told."""

    def __init__(self, error: RSocketProtocolError) -> None:
        self._error = error
        self._inbound: Subscription | None = None
        self._outbound: Subscriber | None = None

    def on_subscribe(self, subscription: Subscription) -> None:
        self._inbound = subscription

    def subscribe(self, subscriber: Subscriber) -> None:
        self._outbound = subscriber
        subscriber.on_subscribe(self)

    def request(self, n: int) -> None:
        outbound, inbound = self._outbound, self._inbound
        self.cancel()
        if outbound is None:
            return
        outbound.on_error(self._error)
        # An rsocket-py client goes on sending after an ERROR; the CANCEL stops it, and frees the stream here.
        if inbound is not None:
            inbound.cancel()

    def cancel(self) -> None:
        self._outbound = self._inbound = None

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        """Dropped: the channel has failed."""

    def on_error(self, exception: Exception) -> None:
        """Dropped: the channel has failed."""

    def on_complete(self) -> None:
        """Dropped: the channel has failed."""
