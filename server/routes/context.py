"""What a route's handler knows beside its request: the session, and the connection that it is served on."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from shared.engine import RSocketEngine

from ..data import ChatData
from ..stores.base import Store
from ..stores.queueing import QueuedStore
from ..users import ANYBODY
from ..work import Work
from .window import SendWindow

__all__ = ["ConnectionContext", "Session"]


def _default_window() -> SendWindow:
    return SendWindow(256 * 1024)  # enough for a listing to fill the connection, little enough to forget


def _ignore(_: int) -> None:
    """For a session without a connection that could stop reading."""


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """A session's connection. The defaults are for rsocket's own server, of whose connections nothing is known.

    Attributes:
        peer: The peer's address, for the log.
        work: Counts the operations and owns their tasks.
        window: What streams may have waiting in the send queue.
        answers: The same for small answers.
        engine: The connection, for what sends and receives files; None in rsocket's own server.
        on_held: Called with the change of what uploads have received and not stored, in bytes.
    """

    peer: str = "-"
    work: Work = field(default_factory=Work)
    window: SendWindow = field(default_factory=_default_window)
    answers: SendWindow = field(default_factory=_default_window)
    engine: RSocketEngine | None = None
    on_held: Callable[[int], None] = _ignore


class Session:
    """What all requests of one connection share.

    Attributes:
        user: The authenticated user; one who may do everything where no user is asked for.
        data: What is served.
        store: Its files, by this connection's share of the store's threads.
        at_once: What the store can do without waiting; None if it can't.
        connection: The connection.
    """

    def __init__(self, data: ChatData | None, connection: ConnectionContext | None) -> None:
        self.user = ANYBODY
        self.data = data if data is not None else ChatData()
        self.connection = connection if connection is not None else ConnectionContext()
        store = self.data.store
        self.store: Store = QueuedStore(store) if store.queues_calls else store
        self.at_once = store.at_once

    def on_lost(self) -> None:
        """The connection has ended. What refers to it is dropped, since that would be a reference cycle."""
        self.connection = replace(self.connection, engine=None, on_held=_ignore)
