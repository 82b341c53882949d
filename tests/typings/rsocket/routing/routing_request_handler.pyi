from collections.abc import Callable, Coroutine

from ..extensions.authentication import Authentication
from ..request_handler import BaseRequestHandler
from .request_router import RequestRouter

class RoutingRequestHandler(BaseRequestHandler):
    def __init__(
        self,
        router: RequestRouter,
        authentication_verifier: Callable[[str, Authentication], Coroutine[None, None, None]] | None = None,
    ) -> None: ...
