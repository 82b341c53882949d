from collections.abc import Callable
from typing import Any, TypeVar

from ..extensions.composite_metadata import CompositeMetadata
from ..frame import FrameType
from ..payload import Payload

F = TypeVar("F", bound=Callable[..., Any])

class RequestRouter:
    def __init__(
        self,
        payload_deserializer: Callable[[Any, Payload], Any] = ...,
        payload_serializer: Callable[[Any, Any], Payload] = ...,
    ) -> None: ...
    def response(self, route: str) -> Callable[[F], F]: ...
    def stream(self, route: str) -> Callable[[F], F]: ...
    def channel(self, route: str) -> Callable[[F], F]: ...
    def fire_and_forget(self, route: str) -> Callable[[F], F]: ...
    def metadata_push(self, route: str) -> Callable[[F], F]: ...
    # The result of the route's function; for a request-response in a Future, if it isn't one.
    async def route(
        self, frame_type: FrameType, route: str, payload: Payload, composite_metadata: CompositeMetadata
    ) -> Any: ...
