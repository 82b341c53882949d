from asyncio import Future
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from typing import Any

from reactivestreams.publisher import Publisher

from .extensions.mimetypes import WellKnownMimeTypes
from .payload import Payload
from .request_handler import RequestHandler
from .rsocket_base import RSocketBase
from .transports.transport import Transport

class RSocketClient(RSocketBase):
    def __init__(
        self,
        transport_provider: AsyncGenerator[Transport, Any],
        # Annotated as taking an `RSocketBase`; it is called without arguments.
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
    ) -> None: ...
    async def _keepalive_timeout_task(self) -> None: ...  # runs beside the receiver
    def _current_transport(self) -> Future[Transport]: ...
    def is_server_alive(self) -> bool: ...
