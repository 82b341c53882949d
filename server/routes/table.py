"""A route as a row of a table: what is checked before its handler runs, and what its handler gives."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import IntEnum
from typing import Generic, Protocol, TypeVar, cast

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from rsocket.frame import FrameType
from rsocket.payload import Payload

from shared.protocol.messages import Json, find_transfer
from shared.protocol.metadata import MetadataItem
from shared.protocol.wire import parse_name

from ..stores.base import AtOnceStore
from ..users import Right
from ..work import Operation, Progress, Transfer
from .context import Session
from .pull import Items, PullStream
from .whole import ReservedUpload, UploadSpool

__all__ = ["Answer", "Model", "Request", "Route"]

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)


class Model(IntEnum):
    """RSocket's interaction models."""

    REQUEST_RESPONSE = FrameType.REQUEST_RESPONSE
    FIRE_AND_FORGET = FrameType.REQUEST_FNF
    REQUEST_STREAM = FrameType.REQUEST_STREAM
    REQUEST_CHANNEL = FrameType.REQUEST_CHANNEL

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


class Request(Generic[M]):
    """One request.

    Attributes:
        session: The connection's: its `user`, its `store`.
        route: The row.
        items: The request's metadata.
        payload: The request as it arrived.
        name: The file that it is about; empty if its route isn't about one.
        message: The `Route.message` of its metadata; None if the route has none.
        operation: Is counted, and ends with the answer; its `nbytes` are what the answer has so far.
    """

    __slots__ = ("items", "message", "name", "operation", "payload", "route", "session")

    operation: Operation

    def __init__(self, session: Session, route: "Route[M]", items: Sequence[MetadataItem], payload: Payload) -> None:
        self.session = session
        self.route = route
        self.items = items
        self.payload = payload
        self.name = ""
        self.message = cast(M, None)

    def check(self) -> None:
        """Parses what the route needs to know, and checks the user's right to it.

        Raises:
            InvalidRequest: The name or the message is missing, doubled or malformed.
            InvalidName: The name isn't one.
            PermissionDenied: The user doesn't have the right.
        """
        route = self.route
        if route.is_about_file:
            self.name = parse_name(self.items)
        if route.message is not None:
            self.message = route.message.from_json(find_transfer(self.items) or {})
        if route.right is not None:
            self.session.user.check(route.right, self.name)

    def admit(self) -> None:
        """The same, and counts the request as started, or as failed if it raises."""
        try:
            self.check()
        except Exception as error:
            self._begin().end(error)
            raise
        self._begin()

    def follow(self, stream: Progress) -> None:
        """The answer is a stream; if it is about a file, the statistics show it."""
        if self.route.is_about_file:
            session = self.session
            transfer = Transfer(self.route.name, self.name, session.user.name, session.connection.peer)
            self.operation.follow(stream, transfer)

    def _begin(self) -> Operation:
        connection = self.session.connection
        user = self.session.user.name
        what = f"{user}@{connection.peer} {self.route.name}" if user else f"{connection.peer} {self.route.name}"
        self.operation = connection.work.begin(f"{what} {self.name!r}" if self.name else what, self.route.counted_as)
        self.operation.received = len(self.payload.data or b"")
        return self.operation


class Message(Protocol[M_co]):
    """A class of `shared.protocol.messages`, or of an app."""

    def from_json(self, said: Json, /) -> M_co: ...


Answer = Awaitable[object] | Items | Callable[[PullStream], Items] | tuple[Publisher | None, Subscriber | None]


@dataclass(frozen=True, slots=True)
class Route(Generic[M]):
    """One route.

    What its handler raises reaches the peer as a typed error: a `shared.TransferError` as it is, anything else as
    `internal`, with a traceback in the server's log. What it gives depends on the interaction model:

    - `REQUEST_RESPONSE`: an awaitable of the Payload, of any size.
    - `REQUEST_STREAM`: an async generator of Payloads; it is pulled as the peer requests them and as the connection has
      room. Each must fit one frame of 1,000,000 bytes, and not be empty. Or an awaitable of a Publisher, which has to
      look to that by itself, and is counted as completed when it is there.
    - `REQUEST_CHANNEL`: a Publisher and a Subscriber, which end the request's `operation`; or an awaitable as above.
      Without the first nothing is sent, without the second the peer's items are cancelled.
    - `FIRE_AND_FORGET`: an awaitable.

    Attributes:
        name: What peers ask for, beside the model; printable, 1 to 255 bytes.
        model: The interaction model.
        handle: The handler.
        right: What the user has to have: for the file, if the route is about one, else for all files. None if every
            user may ask; that has to be said.
        is_about_file: Whether each request has the name of a file in its `chat/file-name` item.
        message: Parses the `chat/file-transfer` item, or {} if there is none; None to do without.
        at_once: Answers a request-response without waiting if the store is in memory; or gives what does so, to be
            called in the next event-loop iteration, so that a CANCEL that came with the request is in time. If either
            gives None or raises, `handle` is called.
        counted_as: What the statistics call it; its name and its model by default.
        spool: Where the data of a request in several frames goes, or what room it needs; None for memory.
    """

    name: str
    model: Model
    handle: Callable[[Request[M]], Answer]
    _: KW_ONLY
    right: Right | None
    is_about_file: bool = False
    message: Message[M] | None = None
    at_once: Callable[[Request[M], AtOnceStore], Payload | Callable[[], Payload | None] | None] | None = None
    spool: Callable[[Request[M]], UploadSpool | ReservedUpload | None] | None = None
    counted_as: str = ""

    def __post_init__(self) -> None:
        if not self.counted_as:
            object.__setattr__(self, "counted_as", f"{self.name} {self.model}")
