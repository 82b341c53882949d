"""The routes, as in the rsocket-py tutorial: parse, call, convert.

No `from __future__ import annotations` here: rsocket's router reads the annotations of the route functions, and wants
the metadata parameter to be named `composite_metadata`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, MutableMapping
from dataclasses import replace
from typing import Any, Final, ParamSpec, cast

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from rsocket.extensions.composite_metadata import CompositeMetadata
from rsocket.frame import FragmentableFrame, RequestResponseFrame
from rsocket.payload import Payload
from rsocket.routing.request_router import RequestRouter

from shared.errors import TransferError, to_protocol_error
from shared.files.lane import FileItems
from shared.protocol.messages import (
    DownloadRequest,
    FileRequest,
    Json,
    ListRequest,
    Receipt,
    UploadRequest,
    chat_transfer_mimetype,
    check_upload_id,
    find_transfer,
    transfer_metadata,
)
from shared.protocol.metadata import MetadataItem, parse_metadata, parse_routing
from shared.protocol.wire import Route, encode_name, name_metadata, parse_name
from shared.transport.tcp import FrameTransport

from ..data import ChatData, get_file_name
from ..net.stream import Items, PullStream, SendWindow
from ..stores.base import Store
from ..stores.memory import MemoryStore
from ..stores.queueing import StoreInTurns
from ..users import ANYBODY, Right
from ..work import Work
from .download import read_range
from .upload import UploadChannel
from .whole import FilePayload, UploadSpool

__all__ = ["SMALL_FILE_BYTES", "ChatUserSession"]

_log = logging.getLogger(__name__)

P = ParamSpec("P")

# Enough for a listing to fill the connection, little enough to forget.
_DEFAULT_WINDOW_BYTES = 256 * 1024
# The routes that need no time for a file in memory, and the right that each one needs.
_AT_ONCE: Final = {Route.UPLOAD: Right.WRITE, Route.DOWNLOAD: Right.READ, Route.STAT: Right.READ}
SMALL_FILE_BYTES: Final = 64 * 1024
"""A file up to this is read as a whole for its answer, which saves a task."""


class ChatUserSession:
    """One client's session.

    Args:
        data: What is served; the session's own, empty, if None.
        work: Counts the operations and owns their tasks; the session's own if None.
        window: The connection's send window; the session's own if None.
        answers: The same, for small answers.

    Attributes:
        user: Who is asking; anybody, who may do everything, until somebody says otherwise.
        peer: Where they are, for the log.
        sends_files: Whether the connection can send a FilePayload.
        queue_items: Puts FileItems into the send queue, where `transport` moves files.
        transport: The connection; None if it isn't one of ours.
        on_unstored: Told of each item of an upload that has arrived, and, with a minus, that was stored or dropped.
    """

    def __init__(
        self,
        data: ChatData | None = None,
        work: Work | None = None,
        window: SendWindow | None = None,
        answers: SendWindow | None = None,
    ) -> None:
        self.user = ANYBODY
        self.peer = "-"
        self.sends_files = False
        self.queue_items: Callable[[FileItems], None] | None = None
        self.transport: FrameTransport | None = None
        self.on_unstored: Callable[[int], None] = _count_nothing
        self._data = data if data is not None else ChatData()
        self._store: Store = self._data.store if self._is_in_memory else StoreInTurns(self._data.store)
        self._work = work if work is not None else Work()
        self._window = window if window is not None else SendWindow(_DEFAULT_WINDOW_BYTES)
        self._answers = answers if answers is not None else SendWindow(_DEFAULT_WINDOW_BYTES)

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
        async def get_file_names(composite_metadata: CompositeMetadata) -> Publisher:
            said = _said(composite_metadata)
            request = ListRequest.from_json(said)
            return self._stream(Route.FILES, lambda _: self._list(request))

        @router.stream(Route.DOWNLOAD)
        async def download_chunks(composite_metadata: CompositeMetadata) -> Publisher:
            name, request = get_file_name(composite_metadata), DownloadRequest.from_json(_said(composite_metadata))
            self.user.check(Right.READ, name)
            store = self._store
            moves_files = self.transport is not None and self.transport.moves_files
            queue = self.queue_items if moves_files else None
            what = f"{Route.DOWNLOAD} {name!r}"
            return self._stream(what, lambda stream: read_range(store, name, request, stream), queue)

        @router.channel(Route.UPLOAD)
        async def upload_chunks(
            payload: Payload, composite_metadata: CompositeMetadata
        ) -> tuple[Publisher, Subscriber]:
            name, request = get_file_name(composite_metadata), UploadRequest.from_json(_said(composite_metadata))
            self.user.check(Right.WRITE, name)
            request = replace(request, upload_id=self.user.scoped(request.upload_id))
            first = bytes(payload.data or b"")
            operation = self._work.begin(f"{self.peer} {Route.UPLOAD} {name!r} {request.upload_id}")
            channel = UploadChannel(
                self._data,
                self._store,
                name,
                request,
                first,
                self._work,
                operation,
                self.transport,
                self.on_unstored,
            )
            return channel, channel

        @router.response(Route.UPLOAD_STATUS)
        async def upload_status(composite_metadata: CompositeMetadata) -> asyncio.Task[Payload]:
            return self._answer(self._status, composite_metadata)

        @router.response(Route.STAT)
        async def stat_file(composite_metadata: CompositeMetadata) -> asyncio.Task[Payload]:
            return self._answer(self._stat, composite_metadata)

        @router.response(Route.DELETE)
        async def delete_file(composite_metadata: CompositeMetadata) -> asyncio.Task[Payload]:
            return self._answer(self._delete, composite_metadata)

        del upload_file, download_file, get_file_names, download_chunks, upload_chunks  # the router has them
        del upload_status, stat_file, delete_file
        return router

    def spool(self, request: FragmentableFrame, metadata: bytes) -> UploadSpool | None:
        """Where a split request's data goes; None for memory. A request that is refused anyway goes there, too."""
        if not isinstance(request, RequestResponseFrame) or self._is_in_memory:
            return None
        try:
            items = parse_metadata(metadata)
            if parse_routing(items) != Route.UPLOAD:
                return None
            name = parse_name(items)
            self.user.check(Right.WRITE, name)
        except TransferError:
            return None
        return UploadSpool(self._store, name, self._work)

    def answer_at_once(self, request: Payload) -> Payload | Callable[[], Payload | None] | None:
        """The answer to a request-response that takes neither time nor a task: one about a file in memory.

        Returns:
            The answer; or what stores a file and gives the answer, to be called in a turn of the loop of its own, so
            that a CANCEL that came with the request is in time; or None. Then, and if the call gives None or raises,
            the routes have to be asked: they alone do what takes time, and say what is wrong.
        """
        store = self._data.store
        # What is made of either may do otherwise, and must be asked once alone: it may raise, and count.
        if type(store) is not MemoryStore or type(self._data.files) is not dict:
            return None
        try:
            items = parse_metadata(request.metadata or b"")
            route = parse_routing(items)
            right = _AT_ONCE.get(route)
            if right is None:
                return None
            name = parse_name(items)
            self.user.check(right, name)
            if route == Route.STAT:
                info = store.known(name)
                return None if info is None else Payload(b"", transfer_metadata(info))
            content = request.data if route == Route.UPLOAD else store.content(name)
            if not isinstance(content, bytes):
                return None
            if route == Route.DOWNLOAD:
                return Payload(content, name_metadata(name))
        except Exception:
            return None

        def put() -> Payload | None:
            return Payload(b"", name_metadata(name)) if store.put_at_once(name, content) else None

        return put

    @property
    def _is_in_memory(self) -> bool:
        return isinstance(self._data.files, MutableMapping)

    async def _upload(self, payload: Payload, composite_metadata: CompositeMetadata) -> Payload:
        name = get_file_name(composite_metadata)
        self.user.check(Right.WRITE, name)
        content = cast("UploadSpool | bytes | bytearray | None", payload.data)
        if isinstance(content, UploadSpool):
            await content.commit()
        else:
            # A copy of its own: what rsocket hands over may be a buffer that somebody still writes to.
            await self._store.put(name, bytes(content or b""))
        return Payload(b"", name_metadata(name))

    async def _download(self, composite_metadata: CompositeMetadata) -> Payload:
        name = get_file_name(composite_metadata)
        self.user.check(Right.READ, name)
        # Not opened before: somebody who asks for thousands and takes none has few of them here, and in the store's
        # queue. The answer itself counts once it is made.
        await self._answers.reserve(SMALL_FILE_BYTES)
        try:
            reader = await self._store.open(name)
            if self.sends_files and reader.info.size > SMALL_FILE_BYTES and not self._is_in_memory:
                return FilePayload(reader, name_metadata(name))
            try:
                return Payload(await reader.read(0, reader.info.size), name_metadata(name))
            finally:
                await reader.close()
        finally:
            self._answers.remove(SMALL_FILE_BYTES)

    async def _list(self, request: ListRequest) -> Items:
        # A snapshot: uploads go on meanwhile.
        found = await self._store.list(request.prefix)
        infos = [info for info in found if self.user.may(Right.READ, info.name)]
        for index, info in enumerate(infos, 1):
            metadata = transfer_metadata(info) if request.details else None
            yield Payload(encode_name(info.name), metadata), index == len(infos)

    async def _status(self, composite_metadata: CompositeMetadata) -> Payload:
        name, request = get_file_name(composite_metadata), FileRequest.from_json(_said(composite_metadata))
        self.user.check(Right.WRITE, name)
        upload_id = self.user.scoped(check_upload_id(request.upload_id or ""))
        return Payload(b"", transfer_metadata(Receipt(await self._store.uploaded(upload_id, name))))

    async def _stat(self, composite_metadata: CompositeMetadata) -> Payload:
        name = get_file_name(composite_metadata)
        self.user.check(Right.READ, name)
        return Payload(b"", transfer_metadata(await self._store.stat(name)))

    async def _delete(self, composite_metadata: CompositeMetadata) -> Payload:
        name, request = get_file_name(composite_metadata), FileRequest.from_json(_said(composite_metadata))
        self.user.check(Right.DELETE, name)
        return Payload(b"", transfer_metadata(await self._store.delete(name, request.if_match)))

    def _stream(
        self, what: str, make: Callable[[PullStream], Items], queue: Callable[[FileItems], None] | None = None
    ) -> PullStream:
        return PullStream(make, self._window, self._work.begin(f"{self.peer} {what}"), queue)

    def _answer(
        self, function: Callable[P, Coroutine[Any, Any, Payload]], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Task[Payload]:
        return self._work.spawn(_typed, lambda: function(*args, **kwargs))


def _said(composite_metadata: CompositeMetadata) -> Json:
    """What the request's transfer item says; nothing if it has none."""
    items = composite_metadata.find_by_mimetype(chat_transfer_mimetype)
    return find_transfer([MetadataItem(chat_transfer_mimetype, bytes(item.content or b"")) for item in items]) or {}


async def _typed(call: Callable[[], Coroutine[Any, Any, Payload]]) -> Payload:
    """The result of `call()`, its exceptions made into what rsocket sends as typed ERROR frames."""
    try:
        return await call()
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise  # the client cancelled; nobody waits for an answer
        _log.exception("a route was cancelled from within")
        raise to_protocol_error(error) from None
    except TransferError as error:
        raise to_protocol_error(error) from None
    except Exception as error:
        _log.exception("a route failed")
        raise to_protocol_error(error) from None


def _is_cancelled() -> bool:
    """Whether somebody has cancelled this task. A variable with the task would make its exception lead back to it."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _count_nothing(_: int) -> None:
    """For a session without a connection that could be read from later."""
