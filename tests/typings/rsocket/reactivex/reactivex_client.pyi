from asyncio import Event
from collections.abc import Callable

from reactivex import Observable, Subject

from ..payload import Payload
from ..rsocket import RSocket

class ReactiveXClient:
    _rsocket: RSocket
    def __init__(self, rsocket: RSocket) -> None: ...
    def request_stream(self, request: Payload, request_limit: int = 0x7FFFFFFF) -> Observable[Payload]: ...
    def request_response(self, request: Payload) -> Observable[Payload]: ...
    def request_channel(
        self,
        request: Payload,
        request_limit: int = 0x7FFFFFFF,
        observable: Observable[Payload] | Callable[[Subject[int]], Observable[Payload]] | None = None,
        sending_done: Event | None = None,
    ) -> Observable[Payload]: ...
    def fire_and_forget(self, request: Payload) -> Observable[None]: ...
    def metadata_push(self, metadata: bytes) -> Observable[None]: ...
