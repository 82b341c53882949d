"""The answer to one request-response, which can be stopped until its last byte is sent."""

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from rsocket.disposable import Disposable
from rsocket.frame import CancelFrame, Frame
from rsocket.frame_builders import to_payload_frame
from rsocket.payload import Payload
from rsocket.streams.stream_handler import StreamHandler

from shared.engine import RSocketEngine
from shared.errors import Changed, ServerError
from shared.frames.outbox import SkippedFrame
from shared.frames.outgoing import OutgoingFrame
from shared.protocol.wire import FRAGMENT_SIZE_BYTES

from ..routes.dispatch import call
from ..routes.table import Request
from ..routes.tutorial import SMALL_FILE_BYTES
from ..routes.whole import FilePayload, WholeUpload
from ..routes.window import SendWindow

__all__ = ["SKIPPED", "Reply", "abandon"]

SKIPPED: Final = SkippedFrame()

# What a frame of a file takes beside its metadata and data: two length fields of 3 bytes and a header of 6.
_OVERHEAD_BYTES: Final = 12


class Reply(StreamHandler, Disposable):
    """Answers one request-response, fragment by fragment, until cancelled.

    Args:
        socket: The connection.
        request: The request; its operation ends with the answer.
    """

    def __init__(self, socket: RSocketEngine, request: Request[Any]) -> None:
        super().__init__(socket)
        self._engine = socket
        self._request = request
        # What goes on until the answer is in the outbox: a call that is due, or a task.
        self._working: asyncio.Handle | asyncio.Task[None] | None = None
        # What was put into the outbox last, and what gives back its room in the send window.
        self._outgoing: OutgoingFrame | None = None
        self._settle: Callable[[], None] | None = None
        self._is_cancelled = False

    def setup(self) -> None:
        """Answers at once if the route and the store can do so, else in a task."""
        at_once, store = self._request.route.at_once, self._request.session.at_once
        answer = None
        if at_once is not None and store is not None:
            try:
                answer = at_once(self._request, store)
            except Exception:
                answer = None  # the handler says what is wrong
        if answer is None:
            self._work()
        elif isinstance(answer, Payload):
            self._answer(answer)
        else:
            self._working = asyncio.get_running_loop().call_soon(self._answer_soon, answer)

    def frame_received(self, frame: Frame) -> None:
        if isinstance(frame, CancelFrame):
            self.dispose()
            self._finish_stream()

    def dispose(self) -> None:
        self._is_cancelled = True
        if self._working is not None:
            self._working.cancel()
        if self._outgoing is not None and self._outgoing.withdraw() and self._settle is not None:
            self._settle()
        self._request.operation.end(asyncio.CancelledError())

    def _answer_soon(self, make: Callable[[], Payload | None]) -> None:
        self._working = None
        try:
            answer = make()
        except Exception:
            answer = None  # as above
        if answer is None:
            self._work()
        else:
            self._answer(answer)

    def _work(self) -> None:
        self._working = self._request.session.connection.work.spawn(self._call)
        self._working.add_done_callback(self._on_done)

    async def _call(self) -> None:
        payload = await call(self._request)
        if isinstance(payload, FilePayload):
            await self._send_file(payload)
        elif not self._is_cancelled:
            self._answer(payload)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._working = None
        abandon(self._request.payload)  # if the request was refused, or cancelled before its task began
        error = ServerError("the server stopped working on this request") if task.cancelled() else task.exception()
        if error is not None and not self._is_cancelled:
            assert self.stream_id is not None, "rsocket sets the id when it registers the stream"
            shown = error if isinstance(error, Exception) else ServerError(str(error))
            self._engine.send_error(self.stream_id, shown)
            self._request.operation.end(error)
            self._finish_stream()

    def _answer(self, payload: Payload) -> None:
        # Of more than a small file nothing is here that isn't in the memory store anyway.
        self._send(payload, self._request.session.connection.answers, SMALL_FILE_BYTES)

    async def _send_file(self, payload: FilePayload) -> None:
        """Sends a file, a fragment at a time, each read when the send window has room for it.

        Raises:
            Changed: The file was cut short by another program.
        """
        window, reader, metadata = self._request.session.connection.window, payload.reader, payload.metadata
        try:
            offset, size, counted = 0, reader.info.size, 0
            while offset < size and not self._is_cancelled:
                await window.ready()
                try:
                    most = FRAGMENT_SIZE_BYTES - _OVERHEAD_BYTES - len(metadata or b"")
                    counted = window.room.take(min(most, size - offset))
                    data = await reader.read(offset, counted)
                    if not data:
                        raise Changed(f"{reader.info.name!r} was cut short while it was sent", name=reader.info.name)
                    offset += len(data)
                    self._send(Payload(data, metadata), window, FRAGMENT_SIZE_BYTES, is_last=offset == size)
                finally:
                    window.room.add(-counted)
                    window.settle()
                metadata = None
        finally:
            payload.on_over()
            await reader.close()

    def _send(self, payload: Payload, window: SendWindow, most: int, *, is_last: bool = True) -> None:
        """Puts an answer, or a fragment of one, into the outbox, where `most` bytes of it count in the window."""
        assert self.stream_id is not None, "rsocket sets the id when it registers the stream"
        frame = to_payload_frame(self.stream_id, payload, is_last, fragment_size_bytes=FRAGMENT_SIZE_BYTES)
        frame.flags_follows = not is_last
        size = len(payload.data or b"")
        self._request.operation.nbytes += size
        nbytes = min(size, most)

        def settle() -> None:
            window.remove(nbytes)

        def on_sent() -> None:
            window.remove(nbytes)
            self._request.operation.end(None)
            self._finish_stream()

        window.add(nbytes)
        self._settle = settle
        self._outgoing = OutgoingFrame(frame, SKIPPED, on_sent if is_last else settle)
        self._engine.send_frame(self._outgoing)


def abandon(request: Frame | Payload) -> None:
    """Drops what a request has stored that isn't published."""
    data = cast(object, request.data)
    if isinstance(data, WholeUpload):
        data.abandon()
