"""The routes, as in the rsocket-py tutorial: parse, call, convert.

No `from __future__ import annotations` here: rsocket's router reads the annotations of the route functions, and wants
the metadata parameter to be named `composite_metadata`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, ParamSpec

from reactivestreams.publisher import Publisher
from rsocket.extensions.composite_metadata import CompositeMetadata
from rsocket.payload import Payload
from rsocket.routing.request_router import RequestRouter

from shared.errors import NotFound, TransferError, to_protocol_error
from shared.wire import Route, encode_name, name_metadata

from .data import ChatData, get_file_name
from .stream import PullStream, SendWindow
from .work import Work

__all__ = ["ChatUserSession"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")

# Enough for a listing to fill the connection, little enough to forget.
_DEFAULT_WINDOW_BYTES = 256 * 1024


class ChatUserSession:
    """One client's session.

    Args:
        data: What is served; the session's own, empty, if None.
        work: Counts the operations and owns their tasks; the session's own if None.
        window: The connection's send window; the session's own if None.
    """

    def __init__(
        self, data: ChatData | None = None, work: Work | None = None, window: SendWindow | None = None
    ) -> None:
        self._data = data if data is not None else ChatData()
        self._work = work if work is not None else Work()
        self._window = window if window is not None else SendWindow(_DEFAULT_WINDOW_BYTES)

    def router_factory(self) -> RequestRouter:
        """The routes of this session. Each answers at once with a task, so that none holds up its connection."""
        router = RequestRouter()

        @router.response(Route.UPLOAD)
        async def upload_file(payload: Payload, composite_metadata: CompositeMetadata) -> asyncio.Task[Payload]:
            return self._answer(self._upload, payload, composite_metadata)

        @router.response(Route.DOWNLOAD)
        async def download_file(composite_metadata: CompositeMetadata) -> asyncio.Task[Payload]:
            return self._answer(self._download, composite_metadata)

        @router.stream(Route.FILES)
        async def get_file_names() -> Publisher:
            return PullStream(self._list(), self._window, self._work.begin().end)

        del upload_file, download_file, get_file_names  # the router has them
        return router

    async def _upload(self, payload: Payload, composite_metadata: CompositeMetadata) -> Payload:
        name = get_file_name(composite_metadata)
        # A copy of its own: what rsocket hands over may be a buffer that somebody still writes to.
        self._data.files[name] = bytes(payload.data or b"")
        return Payload(b"", name_metadata(name))

    async def _download(self, composite_metadata: CompositeMetadata) -> Payload:
        name = get_file_name(composite_metadata)
        try:
            content = self._data.files[name]
        except KeyError:
            raise NotFound.for_name(name) from None
        return Payload(bytes(content), name_metadata(name))

    async def _list(self) -> AsyncGenerator[tuple[Payload, bool], None]:
        names = list(self._data.files)  # a snapshot: uploads go on meanwhile
        for index, name in enumerate(names, 1):
            yield Payload(encode_name(name)), index == len(names)

    def _answer(
        self, function: Callable[P, Coroutine[Any, Any, Payload]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[Payload]:
        return self._work.spawn(_typed, lambda: function(*args, **kwargs))


async def _typed(call: Callable[[], Coroutine[Any, Any, Payload]]) -> Payload:
    """The result of `call()`, its exceptions made into what rsocket sends as typed ERROR frames."""
    try:
        return await call()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise  # the client cancelled; nobody waits for an answer
        _log.exception("a route was cancelled from within")
        raise to_protocol_error(error) from None
    except TransferError as error:
        raise to_protocol_error(error) from None
    except Exception as error:
        _log.exception("a route failed")
        raise to_protocol_error(error) from None
