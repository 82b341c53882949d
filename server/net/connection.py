"""One client's connection: rsocket's server, with answers that can be stopped and a send queue that can't grow."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import cast

from rsocket.disposable import Disposable
from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.frame import (
    CONNECTION_STREAM_ID,
    PROTOCOL_MAJOR_VERSION,
    CancelFrame,
    ErrorFrame,
    Frame,
    FrameFragmentMixin,
    KeepAliveFrame,
    RequestFireAndForgetFrame,
    RequestResponseFrame,
    ResumeFrame,
    SetupFrame,
    initiate_request_frame_types,
)
from rsocket.frame_builders import to_payload_frame
from rsocket.helpers import payload_from_frame
from rsocket.payload import Payload
from rsocket.rsocket_server import RSocketServer
from rsocket.streams.stream_handler import StreamHandler

from shared.engine import FrameHandlers, LeanRSocket
from shared.errors import InvalidRequest, ServerError, ServerFull, TooManyStreams, TransferError, to_protocol_error
from shared.frames.outgoing import OutgoingFrame
from shared.frames.reassembly import ReassemblyLimits
from shared.protocol.metadata import parse_metadata, parse_routing
from shared.protocol.wire import FRAGMENT_SIZE_BYTES, parse_name
from shared.transport.tcp import FrameTransport, SkippedFrame

from ..data import ChatData
from ..limits import Limits
from ..routes.handler import FileRequestHandler
from ..routes.session import SMALL_FILE_BYTES, ChatUserSession
from ..routes.whole import FilePayload, UploadSpool, fragments
from ..users import Users
from ..work import Operation, Work
from .stream import SendWindow

__all__ = ["ServerConnection"]

_log = logging.getLogger(__name__)

# Items of one connection's streams that wait in rsocket's send queue: one fragment's worth.
_SEND_WINDOW_BYTES = FRAGMENT_SIZE_BYTES
# What a peer may be owed of frames that aren't items of a stream, before nothing more is taken from it.
_MAX_OWED_BYTES = 1024 * 1024
_FRAME_COST_BYTES = 512
# So many connections may have all that isn't stored yet.
_CONNECTIONS_UNSTORED = 8
# Requests that a connection may have under way, whatever the others have.
_OWN_REQUESTS = 16
_SKIPPED = SkippedFrame()
# Nobody tells a sender that has stopped; `flush` looks.
_LOOK_SECONDS = 0.05
_MOST_RECEIVING_SECONDS = 1.0
_OWED_FRAMES = frozenset([KeepAliveFrame, ErrorFrame, CancelFrame])


class ServerConnection(RSocketServer, LeanRSocket):
    """Serves one connection from its `connection_made` to its end.

    Args:
        transport: The connection.
        data: What is served.
        work: Counts the operations and owns their tasks.
        limits: What the peer may make the server hold and do.
        users: Who may connect; None for anybody.
        on_set_up: Called when the SETUP was accepted.

    Attributes:
        answers: What small answers may have waiting in the send queue, beside the streams' window.
    """

    def __init__(
        self,
        transport: FrameTransport,
        data: ChatData,
        work: Work,
        limits: Limits,
        users: Users | None,
        on_set_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._file_transport = transport
        self._limits = limits
        self._users = users
        self._on_set_up = on_set_up
        self._made_at = self._loop.time()
        self._idle_seconds = limits.idle_seconds
        self._is_set_up = False
        self._requests = 0
        self._owed_bytes = 0
        self._unstored_bytes = 0
        self._paid = asyncio.Event()
        self._has_refused_streams = False
        self._errors: deque[float] = deque()
        self._window = SendWindow(_SEND_WINDOW_BYTES)
        self.answers = SendWindow(_SEND_WINDOW_BYTES)
        self._session = ChatUserSession(data, work, self._window, self.answers)
        self._session.peer = transport.peer
        self._session.sends_files = True
        self._session.queue_items = self.send_frame
        self._session.transport = transport
        self._session.on_unstored = self._count_unstored
        transport.set_stream_counter(lambda: len(self._stream_control._streams))
        transport.set_refusal_counter(self._count_error)
        # Until somebody has said who they are, one small frame is all that they may send.
        stranger = ReassemblyLimits(limits.max_setup_bytes, limits.max_setup_bytes, limits.max_setup_bytes)
        transport.set_limits(stranger)
        super().__init__(
            transport,
            handler_factory=partial(_make_handler, self._session),
            metadata_encoding=WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA,
            fragment_size_bytes=FRAGMENT_SIZE_BYTES,
        )

    def check(self) -> None:
        """Closes the connection if it is silent, or takes nothing, for too long, and refuses payloads that stall.

        To be called about twice a second.
        """
        now, limits, transport = self._loop.time(), self._limits, self._file_transport
        blocked_since = transport.write_blocked_since
        if not self._is_set_up and now - self._made_at > limits.setup_seconds:
            transport.fail(ErrorCode.INVALID_SETUP, "timeout: there was no SETUP in time")
        elif self._is_set_up and now - transport.received_at > self._idle_seconds:
            transport.fail(ErrorCode.CONNECTION_ERROR, "timeout: the connection was silent for too long")
        elif blocked_since is not None and now - blocked_since > limits.blocked_seconds:
            transport.fail(ErrorCode.CONNECTION_ERROR, "timeout: the peer takes nothing of what it asked for")
        else:
            transport.check_payloads(limits.payload_seconds)

    def on_lost(self) -> None:
        """The connection has ended; says in one line what it was."""
        self._paid.set()
        # Nobody waits for the answers: a flood that has ended would keep the server busy for a minute.
        self._file_transport.forget_rest()
        # What refers to this in a circle would stay until the collector comes, and with it all that wasn't sent.
        self._session.queue_items = None
        self._session.on_unstored = lambda _: None
        while not self._send_queue.empty():
            self._send_queue.get_nowait()
        _log.info(
            "connection from %s%s: %d requests in %.3f s%s",
            self._file_transport.peer,
            f" ({self._session.user.name})" if self._session.user.name else "",
            self._requests,
            self._loop.time() - self._made_at,
            f"; closed: {self._file_transport.failure}" if self._file_transport.failure else "",
        )

    async def _handle_next_frame(self, frame: Frame, async_frame_handler_by_type: FrameHandlers) -> None:
        """Takes no more from a peer that doesn't take what it is owed, or whose uploads wait for the disk.

        What it sends, and its echoes and errors, would pile up here.
        """
        while (self._owed_bytes > _MAX_OWED_BYTES or self._has_unstored()) and not self._file_transport.is_lost:
            self._paid.clear()
            await self._paid.wait()
        await super()._handle_next_frame(frame, async_frame_handler_by_type)

    def send_frame(self, frame: Frame | FrameFragmentMixin) -> None:
        """As rsocket's, but what a peer can make us send without taking it is counted."""
        if self._file_transport.is_lost:
            return  # nobody would take it out of the queue, and it may lead back here, in a circle
        if type(frame) in _OWED_FRAMES and isinstance(frame, Frame):
            nbytes = len(frame.data or b"") + _FRAME_COST_BYTES
            self._owed_bytes += nbytes
            frame.sent_future = self._loop.create_future()
            frame.sent_future.add_done_callback(lambda _: self._pay(nbytes))
        super().send_frame(frame)

    def _has_unstored(self) -> bool:
        """Whether this connection has to wait until less of its uploads isn't stored yet."""
        maximum = self._limits.max_unstored_bytes
        is_too_much = self._unstored_bytes > maximum / _CONNECTIONS_UNSTORED
        return self._unstored_bytes > 0 and (is_too_much or self._work.unstored_bytes > maximum)

    def _count_unstored(self, nbytes: int) -> None:
        self._unstored_bytes += nbytes
        self._work.unstored_bytes += nbytes
        if nbytes < 0:
            self._paid.set()

    def _pay(self, nbytes: int) -> None:
        self._owed_bytes -= nbytes
        if self._owed_bytes <= _MAX_OWED_BYTES:
            self._paid.set()

    async def _handle_frame_by_type(self, frame: Frame, async_frame_handler_by_type: FrameHandlers) -> None:
        """Whatever concerns the connection itself, or begins a stream, comes through here."""
        if not self._is_set_up and not isinstance(frame, SetupFrame | ResumeFrame):
            _abandon(frame)
            self._file_transport.fail(ErrorCode.INVALID_SETUP, "invalid_setup: a connection begins with a SETUP")
            return
        if isinstance(frame, initiate_request_frame_types):
            self._requests += 1
            streams = self._stream_control._streams
            if not frame.stream_id % 2 or frame.stream_id in streams:
                _abandon(frame)
                reason = f"invalid_frame: a request can't have the stream id {frame.stream_id}"
                self._file_transport.fail(ErrorCode.CONNECTION_ERROR, reason)
                return
            count, limits = len(streams) + self._file_transport.pending_requests, self._limits
            if count >= limits.max_streams:
                error = TooManyStreams(f"a connection may have {limits.max_streams} requests under way")
                self._refuse_stream(frame, error)
                return
            if count >= _OWN_REQUESTS and self._work.active >= limits.max_requests:
                error = ServerFull(f"{limits.max_requests} requests are under way; try again later, with fewer at once")
                self._refuse_stream(frame, error)
                return
        await super()._handle_frame_by_type(frame, async_frame_handler_by_type)

    async def handle_setup(self, frame: SetupFrame) -> None:
        """In place of rsocket's, which leaves a rejected connection usable."""
        try:
            self._check_setup(frame)
            if self._users is not None:
                items = parse_metadata(frame.metadata or b"")
                address = self._file_transport.address
                self._session.user = await self._users.authenticate(items, self._is_gone, address)
                if self._is_gone():
                    return  # what refers to this in a circle was dropped, and mustn't come again
        except RSocketProtocolError as error:
            self._file_transport.fail(error.error_code, error.data or "")
            return
        except TransferError as error:
            self._file_transport.fail(ErrorCode.REJECTED_SETUP, to_protocol_error(error).data or "")
            return
        limits = self._limits
        announced = frame.max_lifetime_milliseconds / 1000
        self._idle_seconds = max(limits.idle_seconds, min(announced, 10 * limits.idle_seconds))
        self._file_transport.set_limits(
            ReassemblyLimits(
                limits.max_request_bytes,
                limits.max_connection_bytes,
                max_metadata_bytes=limits.max_metadata_bytes,
                max_streams=limits.max_streams,
            )
        )
        # Not before: a stranger must not write to the disk.
        self._file_transport.set_spooler(self._session.spool)
        self._is_set_up = True
        self._on_set_up()

    async def received(self) -> None:
        """Returns when nothing of what the connection has received is being looked at; to be called when it has ended.

        It takes as long as a write to the store, a second at the most.
        """
        receiver = self._receiver_task
        if receiver is not None:
            await asyncio.wait([receiver], timeout=_MOST_RECEIVING_SECONDS)

    async def flush(self) -> None:
        """Returns when all that waits to be sent is in the socket, or the connection has ended."""
        marker = SkippedFrame()
        sent = marker.sent_future = self._loop.create_future()
        self.send_frame(marker)
        while not sent.done() and not self._is_gone():
            await asyncio.wait([sent], timeout=_LOOK_SECONDS)

    def _is_gone(self) -> bool:
        return self._file_transport.is_lost or self._file_transport.failure is not None

    def _check_setup(self, frame: SetupFrame) -> None:
        composite = WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA.value.name
        unsupported, invalid = ErrorCode.UNSUPPORTED_SETUP, ErrorCode.INVALID_SETUP
        if self._is_set_up:
            raise RSocketProtocolError(invalid, data="invalid_setup: the connection is set up already")
        if frame.major_version != PROTOCOL_MAJOR_VERSION:
            reason = f"the version must be {PROTOCOL_MAJOR_VERSION}, not {frame.major_version}"
            raise RSocketProtocolError(unsupported, data=f"unsupported_setup: {reason}")
        if frame.flags_resume or frame.flags_lease:
            raise RSocketProtocolError(unsupported, data="unsupported_setup: there is no resumption and no lease here")
        if bytes(frame.metadata_encoding) != composite:
            raise InvalidRequest(f"the connection's metadata mimetype must be {composite.decode()}")

    async def handle_error(self, frame: ErrorFrame) -> None:
        """The client says that the connection has failed; then it has."""
        self._file_transport.fail(ErrorCode.CONNECTION_ERROR, "connection_error: the client said so")

    async def handle_resume(self, frame: ResumeFrame) -> None:
        """This server resumes transfers, not connections."""
        reason = "rejected_resume: this server doesn't resume connections"
        self._file_transport.fail(ErrorCode.REJECTED_RESUME, reason)

    def send_error(self, stream_id: int, exception: Exception) -> None:
        """As rsocket's, but typed, never with an internal text, and not without end."""
        error = exception if isinstance(exception, RSocketProtocolError) else to_protocol_error(exception)
        if stream_id == CONNECTION_STREAM_ID:
            self._file_transport.fail(ErrorCode.CONNECTION_ERROR, error.data or "connection_error")
            return
        self._count_error()
        if self._file_transport.failure is None:
            super().send_error(stream_id, error)

    def _count_error(self) -> None:
        """Ends the connection of a peer that causes too many."""
        now = self._loop.time()
        self._errors.append(now)
        while self._errors[0] < now - 60:
            self._errors.popleft()
        if len(self._errors) > self._limits.max_errors_per_minute:
            self._file_transport.fail(
                ErrorCode.CONNECTION_ERROR, "too_many_errors: slow down, or ask for what there is"
            )

    def send_file(self, payload: FilePayload, stream_id: int, operation: Operation) -> asyncio.Task[None]:
        """Answers with a file, a fragment at a time, each read when the send window has room for it."""
        return self._work.spawn(self._send_file, payload, stream_id, operation)

    def ask_routes(self, request: Payload) -> asyncio.Task[Payload]:
        """The answer of the routes, from outside of the receiver."""

        async def ask() -> Payload:
            return await (await self._handler.request_response(request))

        return self._work.spawn(ask)

    def discard(self, payload: Payload) -> None:
        """Frees what an answer holds that nobody waits for any more."""
        if isinstance(payload, FilePayload):
            self._work.clean_up(payload.reader.close)

    async def _send_file(self, payload: FilePayload, stream_id: int, operation: Operation) -> None:
        async with aclosing(fragments(payload, stream_id, self._window)) as frames:
            async for frame in frames:
                nbytes = len(frame.data or b"")
                operation.nbytes += nbytes
                self._window.add(nbytes)
                frame.sent.add_done_callback(lambda _, nbytes=nbytes: self._window.remove(nbytes))
                self.send_frame(frame)
                if frame.flags_complete:
                    await asyncio.wait([frame.sent])  # not the future itself: rsocket needs it uncancelled

    def _refuse_stream(self, frame: Frame, error: TransferError) -> None:
        _abandon(frame)
        if isinstance(frame, RequestFireAndForgetFrame):
            return
        if not self._has_refused_streams:
            self._has_refused_streams = True
            _log.warning("refused a request from %s: %s", self._file_transport.peer, error.message)
        self.send_error(frame.stream_id, error)

    async def handle_request_response(self, frame: RequestResponseFrame) -> None:
        """As rsocket's, but the stream lives until its answer was sent, so that a CANCEL can stop that."""
        what = _describe(frame) if _log.isEnabledFor(logging.INFO) else ""
        operation = self._work.begin(f"{self._session.peer} {what}")
        operation.nbytes = len(frame.data or b"")
        request = payload_from_frame(frame)
        answer = self._session.answer_at_once(request)
        future = None if answer is not None else await self._handler.request_response(request)
        if future is not None and isinstance(cast(object, frame.data), UploadSpool):
            # Nobody else does this if the request was refused, or cancelled before its task began.
            future.add_done_callback(lambda _: _abandon(frame))
        reply = self._register_stream(frame.stream_id, _Reply(self, operation))
        if future is not None:
            reply.follow(future)
        elif isinstance(answer, Payload):
            reply.answer(answer)
        elif answer is not None:
            reply.answer_soon(answer, request)

    def send_payload(self, stream_id: int, payload: Payload, complete: bool = False, is_next: bool = True) -> None:
        """As rsocket's, but counted in the send window, and never larger than a frame.

        rsocket interleaves the fragments of two items of one stream, and the receiver joins them wrongly.
        """
        nbytes = len(payload.data or b"") + len(payload.metadata or b"")
        assert nbytes < FRAGMENT_SIZE_BYTES - 64, "an item of a stream must fit one frame"
        frame = to_payload_frame(stream_id, payload, complete, is_next, FRAGMENT_SIZE_BYTES)
        self._window.add(nbytes)
        self.send_frame(OutgoingFrame(frame, _SKIPPED, lambda: self._window.remove(nbytes)))


def _make_handler(session: ChatUserSession) -> FileRequestHandler:
    return FileRequestHandler(session.router_factory())


class _Reply(StreamHandler, Disposable):
    """Answers one request-response, fragment by fragment, until cancelled."""

    def __init__(self, socket: ServerConnection, operation: Operation) -> None:
        super().__init__(socket)
        self._connection = socket
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

    def answer_soon(self, call: Callable[[], Payload | None], request: Payload) -> None:
        """Answers with what `call()` gives in the loop's next turn; with what the routes do if that is nothing."""
        self._call = asyncio.get_running_loop().call_soon(self._answer_soon, call, request)

    def answer(self, payload: Payload) -> None:
        """Answers with the payload."""
        if not _is_payload(payload):
            _log.error("a route answered with %s, not with a Payload of bytes", type(payload).__name__)
            self._fail(ServerError("the server failed to serve this request; its log says why"))
        elif isinstance(payload, FilePayload):
            self._sending = self._connection.send_file(payload, self._stream(), self._operation)
            self._sending.add_done_callback(partial(self._on_file_sent, payload))
        else:
            frame = to_payload_frame(self._stream(), payload, complete=True, fragment_size_bytes=FRAGMENT_SIZE_BYTES)
            self._operation.nbytes += len(payload.data or b"")
            # Of a larger one nothing is here that isn't in the memory store anyway.
            self._waiting_bytes = min(len(payload.data or b""), SMALL_FILE_BYTES)
            self._connection.answers.add(self._waiting_bytes)
            self._outgoing = OutgoingFrame(frame, _SKIPPED, self._on_sent)
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

    def _answer_soon(self, call: Callable[[], Payload | None], request: Payload) -> None:
        self._call = None
        try:
            answer = call()
        except Exception:  # see `ChatUserSession.answer_at_once`
            answer = None
        if answer is None:
            self.follow(self._connection.ask_routes(request))
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


def _abandon(frame: Frame) -> None:
    """Drops what a request has stored that isn't published."""
    data = cast(object, frame.data)
    if isinstance(data, UploadSpool):
        data.abandon()


def _describe(frame: Frame) -> str:
    """The route and the file that a request is about, as far as it says so."""
    try:
        items = parse_metadata(frame.metadata or b"")
        route = parse_routing(items)
        return f"{route if route.isprintable() else ascii(route)} {parse_name(items)!r}"
    except TransferError as error:
        return f"({error.code})"


def _is_payload(value: object) -> bool:
    return isinstance(value, Payload) and _is_part(value.data) and _is_part(value.metadata)


def _is_part(value: object) -> bool:
    """Whether rsocket can send this; a route may have put anything there."""
    return value is None or isinstance(value, bytes | bytearray)
