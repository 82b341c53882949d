from asyncio import Future
from collections.abc import Callable
from datetime import timedelta

from reactivestreams.publisher import Publisher

from .extensions.mimetypes import WellKnownMimeTypes
from .payload import Payload
from .request_handler import RequestHandler
from .rsocket_base import RSocketBase
from .transports.transport import Transport

class RSocketServer(RSocketBase):
    # Makes the handler and starts the tasks that use `transport`.
    def __init__(
        self,
        transport: Transport,
        handler_factory: Callable[[], RequestHandler] = ...,
        honor_lease: bool = False,
        lease_publisher: Publisher | None = None,
        request_queue_size: int = 0,
        data_encoding: str | bytes | WellKnownMimeTypes = ...,
        metadata_encoding: str | bytes | WellKnownMimeTypes = ...,
        keep_alive_period: timedelta = ...,
        max_lifetime_period: timedelta = ...,
        setup_payload: Payload | None = None,
        fragment_size_bytes: int | None = None,
        on_ready: Callable[[RSocketBase], object] | None = None,
    ) -> None: ...
    def _current_transport(self) -> Future[Transport]: ...
    def is_server_alive(self) -> bool: ...
