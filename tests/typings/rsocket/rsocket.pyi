from abc import ABCMeta, abstractmethod
from asyncio import Event, Future
from types import TracebackType
from typing import Self

from reactivestreams.publisher import Publisher

from .payload import Payload

class RSocket(metaclass=ABCMeta):
    @abstractmethod
    def request_channel(
        self, payload: Payload, publisher: Publisher | None = None, sending_done: Event | None = None
    ) -> Publisher: ...
    # Annotated as returning an Awaitable, like the two after `request_stream`; it is a Future.
    @abstractmethod
    def request_response(self, payload: Payload) -> Future[Payload]: ...
    @abstractmethod
    def request_stream(self, payload: Payload) -> Publisher: ...
    @abstractmethod
    def fire_and_forget(self, payload: Payload) -> Future[None]: ...
    @abstractmethod
    def metadata_push(self, metadata: bytes) -> Future[None]: ...
    @abstractmethod
    async def connect(self) -> Self | None: ...
    @abstractmethod
    async def close(self) -> None: ...
    @abstractmethod
    async def __aenter__(self) -> Self: ...
    @abstractmethod
    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None: ...
