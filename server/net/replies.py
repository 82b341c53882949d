"""The answer to one request-response, which can be stopped until its last byte is sent."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, cast

from rsocket.disposable import Disposable
from rsocket.frame import CancelFrame, Frame, FrameFragmentMixin
from rsocket.frame_builders import to_payload_frame
from rsocket.payload import Payload
from rsocket.streams.stream_handler import StreamHandler

from shared.engine import RSocketEngine
from shared.errors import ServerError
from shared.frames.outbox import SkippedFrame
from shared.frames.outgoing import OutgoingFrame
from shared.protocol.wire import FRAGMENT_SIZE_BYTES

from ..routes.table import Request
from ..routes.tutorial import SMALL_FILE_BYTES
from ..routes.whole import FilePayload, UploadSpool
from ..routes.window import SendWindow
from ..work import Operation

__all__ = ["SKIPPED", "AnsweringConnection", "Reply", "abandon"]

SKIPPED: Final = SkippedFrame()


class AnsweringConnection(Protocol):
    """What a reply needs of its connection.

    Attributes:
        answers: What small answers may have waiting in the outbox.
    """

    answers: SendWindow

    def answer(self, request: Request[Any]) -> asyncio.Task[Payload]:
        """What the request's handler answers."""
        ...

    def send_file(self, payload: FilePayload, stream_id: int, operation: Operation) -> asyncio.Task[None]:
        """Answers with a file."""
        ...

    def discard(self, payload: Payload) -> None:
        """Frees what an answer holds that is not sent."""
        ...

    def send_frame(self, frame: Frame | FrameFragmentMixin) -> None: ...
    def send_error(self, stream_id: int, exception: Exception) -> None: ...


class Reply(StreamHandler, Disposable):
    """Answers one request-response, fragment by fragment, until cancelled."""

    def __init__(self, connection: AnsweringConnection, socket: RSocketEngine, operation: Operation) -> None:
        super().__init__(socket)
        self._connection = connection
        self._call: asyncio.Handle | None = None
        self._future: asyncio.Future[Payload] | None = None
        self._operation = operation
        self._outgoing: OutgoingFrame | None = None
        self._waiting_bytes = 0
        self._sending: asyncio.Task[None] | None = None
        self._is_cancelled = False

    def setup(self) -> None:
        """Nothing: `follow` or `answer` does it all."""

    def follow(self, future: asyncio.Future[Payload]) -> None:
        """Answers with what the future gives."""
        self._future = future
        future.add_done_callback(self._on_done)

    def answer_soon(self, call: Callable[[], Payload | None], request: Request[Any]) -> None:
        """Answers with what `call()` gives in the next event-loop iteration; if that is None, as the handler does."""
        self._call = asyncio.get_running_loop().call_soon(self._answer_soon, call, request)

    def answer(self, payload: Payload) -> None:
        """Answers with the payload."""
        if isinstance(payload, FilePayload):
            self._sending = self._connection.send_file(payload, self._stream(), self._operation)
            self._sending.add_done_callback(partial(self._on_file_sent, payload))
        else:
            frame = to_payload_frame(self._stream(), payload, complete=True, fragment_size_bytes=FRAGMENT_SIZE_BYTES)
            self._operation.nbytes += len(payload.data or b"")
            # Of a larger one nothing is here that isn't in the memory store anyway.
            self._waiting_bytes = min(len(payload.data or b""), SMALL_FILE_BYTES)
            self._connection.answers.add(self._waiting_bytes)
            self._outgoing = OutgoingFrame(frame, SKIPPED, self._on_sent)
            self._connection.send_frame(self._outgoing)

    def frame_received(self, frame: Frame) -> None:
        if isinstance(frame, CancelFrame):
            self.dispose()
            self._finish_stream()

    def dispose(self) -> None:
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()
        if self._future is not None:
            self._future.cancel()
        if self._outgoing is not None:
            self._outgoing.withdraw()
            self._settle()
        if self._sending is not None:
            self._sending.cancel()
        self._operation.end(asyncio.CancelledError())

    def _on_done(self, future: asyncio.Future[Payload]) -> None:
        if self._is_cancelled:
            # The exception is retrieved, so that asyncio doesn't report it; a file that was opened is closed.
            if not future.cancelled() and future.exception() is None:
                self._connection.discard(future.result())
            return
        if future.cancelled():
            self._fail(ServerError("the server stopped working on this request"))
        elif (error := future.exception()) is not None:
            self._fail(error)
        else:
            self.answer(future.result())

    def _answer_soon(self, call: Callable[[], Payload | None], request: Request[Any]) -> None:
        self._call = None
        try:
            answer = call()
        except Exception:  # see `Route.at_once`
            answer = None
        if answer is None:
            self.follow(self._connection.answer(request))
        else:
            self.answer(answer)

    def _on_file_sent(self, payload: FilePayload, sending: asyncio.Task[None]) -> None:
        if sending.cancelled():
            self._connection.discard(payload)  # a task that is cancelled before its first turn closes nothing
            return
        if (error := sending.exception()) is not None:
            self._fail(error)
        else:
            self._on_sent()

    def _on_sent(self) -> None:
        self._settle()
        self._operation.end(None)
        self._finish_stream()

    def _settle(self) -> None:
        """The answer waits no more in the send queue."""
        nbytes, self._waiting_bytes = self._waiting_bytes, 0
        if nbytes:
            self._connection.answers.remove(nbytes)

    def _fail(self, error: BaseException) -> None:
        self._connection.send_error(self._stream(), error if isinstance(error, Exception) else ServerError(str(error)))
        self._operation.end(error)
        self._finish_stream()

    def _stream(self) -> int:
        assert self.stream_id is not None, "rsocket sets the id when it registers the stream"
        return self.stream_id


def abandon(frame: Frame) -> None:
    """Drops what a request has stored that isn't published."""
    data = cast(object, frame.data)
    if isinstance(data, UploadSpool):
        data.abandon()
