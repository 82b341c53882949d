"""One client's session, as in the rsocket-py tutorial: `router_factory` makes its routes."""

from collections.abc import Callable, Sequence
from typing import Any

from rsocket.routing.request_router import RequestRouter

from ..data import ChatData
from .context import ConnectionContext, Session
from .dispatch import TableRouter
from .files import FILES
from .stats import STATS
from .table import Route
from .tutorial import TUTORIAL
from .watch import WATCH

__all__ = ["ChatUserSession", "SessionFactory"]


class ChatUserSession(Session):
    """One client's session, for our server, or for rsocket's own `RSocketServer` and `RoutingRequestHandler`.

    Args:
        data: What is served; an empty store of the session's own if None.
        connection: Its connection; None in rsocket's own server.
        routes: An app's routes, beside ours.
    """

    def __init__(
        self,
        data: ChatData | None = None,
        connection: ConnectionContext | None = None,
        routes: Sequence[Route[Any]] = (),
    ) -> None:
        super().__init__(data, connection)
        self._routes = routes

    def router_factory(self) -> RequestRouter:
        """The routes of this session. None of them holds up its connection.

        A subclass may add routes to it in rsocket's way. Those check their users' rights themselves, and only their
        request-responses are counted to their end; for the rest use `routes`.

        Raises:
            ValueError: Two routes have the same name and interaction model.
        """
        return TableRouter(self, (*TUTORIAL, *FILES, *WATCH, *STATS, *self._routes))


SessionFactory = Callable[[ChatData, ConnectionContext], ChatUserSession]
"""Makes the session of a connection."""
