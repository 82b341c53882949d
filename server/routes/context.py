"""What the requests of one connection share: its session, and the connection itself."""

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


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """A session's connection. The defaults are for rsocket's own server, whose connections are unknown.

    Attributes:
        peer: The peer's address, for the log.
        work: Counts the operations and owns their tasks.
        window: What streams may have waiting in the send queue.
        answers: The same for small answers.
        engine: The connection, for what sends and receives files; None in rsocket's own server.
        on_held: Called with the change of what uploads have received and not stored, in bytes; None to do without.
    """

    peer: str = "-"
    work: Work = field(default_factory=Work)
    window: SendWindow = field(default_factory=SendWindow)
    answers: SendWindow = field(default_factory=SendWindow)
    engine: RSocketEngine | None = None
    on_held: Callable[[int], None] | None = None


class Session:
    """The session of one connection.

    Attributes:
        user: The authenticated user; `ANYBODY` on a server without users.
        data: What is served.
        store: The store; where its calls take threads, a connection has a share of them.
        at_once: The store's `at_once`.
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
        """The connection has ended: drops what refers to it, which would be a reference cycle."""
        self.connection = replace(self.connection, engine=None, on_held=None)
