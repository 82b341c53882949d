"""One client's connection: rsocket's server, with answers that can be stopped and an outbox of bounded size."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.frame import (
    CONNECTION_STREAM_ID,
    CancelFrame,
    ErrorFrame,
    FragmentableFrame,
    Frame,
    FrameFragmentMixin,
    FrameType,
    KeepAliveFrame,
    RequestFireAndForgetFrame,
    RequestResponseFrame,
    SetupFrame,
)
from rsocket.frame_builders import to_payload_frame
from rsocket.helpers import payload_from_frame
from rsocket.payload import Payload
from rsocket.rsocket_server import RSocketServer

from shared.aio import wake
from shared.engine import CONNECTION_CLOSE, RSocketEngine
from shared.errors import ServerFull, TooManyStreams, TransferError, to_protocol_error
from shared.frames.budget import ReassemblyBudget, ReassemblyLimits
from shared.frames.codec import FrameHeader
from shared.frames.outbox import Outbox, SkippedFrame
from shared.frames.outgoing import OutgoingFrame
from shared.frames.room import LEAST_BYTES, SendRoom
from shared.protocol.metadata import parse_metadata
from shared.protocol.wire import FRAGMENT_SIZE_BYTES
from shared.transport.base import Transport

from ..data import ChatData
from ..limits import Limits
from ..routes.context import ConnectionContext
from ..routes.dispatch import Dispatcher, is_part
from ..routes.session import ChatUserSession, SessionFactory
from ..routes.table import Model
from ..routes.whole import ReservedUpload, UploadSpool
from ..routes.window import SendWindow
from ..users import Users
from ..work import Work
from .peer import PeerWatch
from .replies import SKIPPED, Reply, abandon
from .setup import check_setup

__all__ = ["ServerConnection"]

_log = logging.getLogger(__name__)

# The data and metadata that fit one frame.
_MAX_ITEM_BYTES: Final = FRAGMENT_SIZE_BYTES - 65
# What an item takes in the outbox beside its data and metadata.
_ITEM_COST_BYTES: Final = 4096
# Control frames that may wait for a peer before nothing more is taken from it.
_MAX_CONTROL_BYTES: Final = 1024 * 1024
_PROVOKED: Final = frozenset[type[Frame]]([KeepAliveFrame, ErrorFrame, CancelFrame])
# Of what may be unstored on all connections, what one may have: more than an upload's window.
_CONNECTION_SHARE: Final = 2 / 3
# Requests that a connection may have under way, whatever the others have.
_OWN_REQUESTS: Final = 16
# A sender that has stopped wakes no waiter; `flush` looks.
_LOOK_SECONDS: Final = 0.05


class ServerConnection(RSocketServer, RSocketEngine):
    """Serves one connection from the moment it is made to its end.

    Args:
        users: The users that may connect; None for every peer.
        on_set_up: Called when the SETUP was accepted.
        on_active: Called with this connection when it isn't quiet any more; see `check`.

    Attributes:
        answers: What small answers may have waiting in the outbox, beside the streams' window.
    """

    def __init__(
        self,
        transport: Transport,
        data: ChatData,
        work: Work,
        limits: Limits,
        budget: ReassemblyBudget | None,
        room: SendRoom,
        users: Users | None,
        on_set_up: Callable[[], None] = lambda: None,
        make_session: SessionFactory = ChatUserSession,
        on_active: "Callable[[ServerConnection], None] | None" = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.transport = transport
        self._work = work
        self._limits = limits
        self._users = users
        self._on_set_up: Callable[[], None] | None = on_set_up
        self._on_active = on_active
        self._made_at = self._loop.time()
        self._peer = PeerWatch(transport, limits)
        self._is_set_up = False
        self._is_ending = False
        self._requests = 0
        self._unstored_bytes = 0
        self._room_waiter: asyncio.Future[None] | None = None
        self._has_refused_streams = False
        self._errors: deque[float] | None = None
        self._room = room
        self._window, self.answers = SendWindow(room), SendWindow(room)
        # Before a peer has authenticated, one small frame is all that it may send.
        most = limits.max_setup_bytes
        outbox = Outbox(_PROVOKED, self._on_room, room)
        self._init_engine(ReassemblyLimits(most, most, most), budget, outbox, room)
        context = ConnectionContext(transport.peer, work, self._window, self.answers, self, self._on_held)
        self._session = make_session(data, context)
        dispatcher = self._dispatcher = Dispatcher(self._session, self._session.router_factory())
        super().__init__(
            self.make_feed(),
            handler_factory=lambda: dispatcher,
            metadata_encoding=WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA,
            fragment_size_bytes=FRAGMENT_SIZE_BYTES,
        )

    def check(self, now: float) -> bool:
        """Closes the connection if it is silent, or takes nothing, for too long, and refuses payloads that stall.

        To be called about twice a second, with the time of the server's `RunClock`.

        Returns:
            Whether the connection is quiet: nothing is under way. Until `on_active` is called, `check_quiet` is enough.
        """
        if not self._peer.check(now, is_set_up=self._is_set_up):
            return False
        self.reassembler.check(self._limits.payload_seconds)
        if self._is_ending:
            self._end_if_idle()
        return self._is_idle() and self.transport.become_quiet()

    def check_quiet(self, now: float) -> None:
        """The same for a quiet connection, now and then, and in a tenth of the time."""
        if self._peer.is_silent(now):
            self.check(now)

    def _is_idle(self) -> bool:
        is_working = self._count_requests() or self.reassembler.held_bytes or not self.outbox.is_empty
        return self._is_set_up and not self._is_ending and not is_working and self._on_active is not None

    def on_active(self) -> None:
        """See `PayloadRules`."""
        self.reassembler.check(self._limits.payload_seconds)  # which has observed nothing meanwhile
        if self._on_active is not None:
            self._on_active(self)

    def on_lost(self) -> None:
        """The connection has ended; logs one line about it."""
        self._on_room()
        # The answers would reach no peer: a flood that has ended would keep the server busy for a minute.
        self.transport.forget_rest()
        # Reference cycles would stay until the garbage collector runs, and with them all that wasn't sent.
        self._session.on_lost()
        self._on_set_up = self._on_active = None
        self.outbox.close()
        self._window.close()
        self.answers.close()
        _log.info(
            "connection from %s%s: %d requests in %.3f s%s",
            self.transport.peer,
            f" ({self._session.user.name})" if self._session.user.name else "",
            self._requests,
            self._loop.time() - self._made_at,
            f"; closed: {self.transport.failure}" if self.transport.failure else "",
        )

    # Receiving

    @property
    def spools(self) -> bool:
        """See `PayloadRules`; before its SETUP is accepted, a peer can't make the server use the disk."""
        return self._is_set_up and self._session.store.spools

    def spool(self, request: FragmentableFrame, metadata: bytes) -> UploadSpool | ReservedUpload | None:
        return self._dispatcher.spool(request, metadata) if self._is_set_up else None

    def must_wait(self) -> bool:
        """Whether the peer doesn't read its answers, or too much of its uploads waits for the disk.

        Too much is two thirds of `Limits.max_unstored_bytes` on this connection, or all of it on all connections. The
        demand of an upload bounds that upload; many uploads are bounded by not reading from their connection.
        """
        if self.transport.is_lost:
            return False
        if self.outbox.control_bytes > (LEAST_BYTES if self._room.is_short else _MAX_CONTROL_BYTES):
            return True
        maximum = self._limits.max_unstored_bytes
        is_too_much = self._unstored_bytes > maximum * _CONNECTION_SHARE
        return self._unstored_bytes > 0 and (is_too_much or self._work.unstored_bytes > maximum)

    async def may_take(self) -> None:
        self._room_waiter = self._loop.create_future()
        await self._room_waiter

    def _on_room(self) -> None:
        wake(self._room_waiter)

    def _on_held(self, nbytes: int) -> None:
        """Uploads hold so many bytes more, or fewer, that aren't stored."""
        self._unstored_bytes += nbytes
        self._work.unstored_bytes += nbytes
        if nbytes < 0:
            self._on_room()

    @property
    def failure_code(self) -> ErrorCode:
        """See `PayloadRules`."""
        return ErrorCode.CONNECTION_ERROR if self._is_set_up else ErrorCode.INVALID_SETUP

    def expects(self, header: FrameHeader) -> bool:
        """See `PayloadRules`; a connection begins with a SETUP, and this server resumes transfers, not connections."""
        if not header.stream_id and header.kind == FrameType.RESUME:
            code = ErrorCode.CONNECTION_ERROR if self._is_set_up else ErrorCode.REJECTED_RESUME
            self.transport.fail(code, "rejected_resume: this server doesn't resume connections")
            return False
        if not self._is_set_up and not header.stream_id and header.kind == FrameType.SETUP:
            return True
        if not self._is_set_up:
            self._fail_start()
            return False
        return super().expects(header)

    def on_ignored(self, stream_id: int, kind: int) -> None:
        if self._is_set_up:
            super().on_ignored(stream_id, kind)
        else:
            self._fail_start()

    def on_senseless_frame(self) -> None:
        self._count_error()

    def admits(self, frame: Frame) -> bool:
        if not self._is_set_up:
            abandon(frame)
            self._fail_start()
            return False
        self._requests += 1
        error = self._excess()
        if error is not None:
            self._refuse_stream(frame, error)
            return False
        return True

    def _fail_start(self) -> None:
        self.transport.fail(ErrorCode.INVALID_SETUP, "invalid_setup: a connection begins with a SETUP")

    def _excess(self) -> TransferError | None:
        """Why one more request is too many; None if it isn't."""
        limits, count = self._limits, self._count_requests()
        if self._is_ending:
            return ServerFull("the connection is being closed; use another one")
        if count >= limits.max_streams:
            return TooManyStreams(f"a connection may have {limits.max_streams} requests under way")
        if count >= _OWN_REQUESTS and self._work.active >= limits.max_requests:
            return ServerFull(f"{limits.max_requests} requests are under way; try again later, with fewer at once")
        return None

    def _count_requests(self) -> int:
        """Requests under way, whole or not."""
        return self.count_streams() + self.reassembler.pending_requests + len(self._dispatcher.unanswered)

    async def handle_setup(self, frame: SetupFrame) -> None:
        """In place of rsocket's, which leaves a rejected connection usable."""
        try:
            check_setup(frame)
            if self._users is not None:
                items = parse_metadata(frame.metadata or b"")
                self._session.user = await self._users.authenticate(items, self._is_gone, self.transport.address)
                if self._is_gone():
                    return  # `on_lost` has broken the reference cycles, and isn't called again
        except RSocketProtocolError as error:
            self.transport.fail(error.error_code, error.data or "")
            return
        except TransferError as error:
            self.transport.fail(ErrorCode.REJECTED_SETUP, to_protocol_error(error).data or "")
            return
        limits = self._limits
        announced = frame.max_lifetime_milliseconds / 1000
        self._peer.idle_seconds = max(limits.idle_seconds, min(announced, 10 * limits.idle_seconds))
        self.reassembler.set_limits(
            ReassemblyLimits(
                limits.max_request_bytes,
                limits.max_connection_bytes,
                max_metadata_bytes=limits.max_metadata_bytes,
                max_streams=limits.max_streams,
            )
        )
        self._is_set_up = True
        if self._on_set_up is not None:
            self._on_set_up()

    async def handle_error(self, frame: ErrorFrame) -> None:
        """The client has ended the connection, or ends it when its streams have ended; other errors aren't for it."""
        if not self._is_set_up:
            self._fail_start()
        elif frame.error_code == ErrorCode.CONNECTION_ERROR:
            self.transport.fail(ErrorCode.CONNECTION_ERROR, "connection_error: the client said so")
        elif frame.error_code == CONNECTION_CLOSE:
            self._is_ending = True
            self._end_if_idle()
        else:
            self.on_ignored(CONNECTION_STREAM_ID, FrameType.ERROR)

    def _end_if_idle(self) -> None:
        """Ends a connection that the client is closing, once all that is under way has ended."""
        if not self._count_requests() and self.outbox.is_empty:
            self.transport.fail(CONNECTION_CLOSE, "connection_close: the client said so")

    # The end

    async def flush(self) -> None:
        """Returns when all that waits to be sent is in the socket, or the connection has ended."""
        marker = SkippedFrame()
        sent = marker.sent_future = self._loop.create_future()
        self.send_frame(marker)
        while not sent.done() and not self._is_gone():
            await asyncio.wait([sent], timeout=_LOOK_SECONDS)

    def _is_gone(self) -> bool:
        return not self.transport.is_open

    # Answering

    async def handle_request_response(self, frame: RequestResponseFrame) -> None:
        """As rsocket's, but the stream lives until its answer was sent, so that a CANCEL can stop that."""
        try:
            request = self._dispatcher.admit(Model.REQUEST_RESPONSE, payload_from_frame(frame))
        except Exception as error:
            abandon(frame)
            self.send_error(frame.stream_id, error)
            return
        self.register_stream(frame.stream_id, Reply(self, request)).setup()

    def send_frame(self, frame: Frame | FrameFragmentMixin) -> None:
        """As the engine's; drops the frame once the connection has ended, since it may be part of a reference cycle."""
        if not self.transport.is_lost:
            super().send_frame(frame)

    def send_payload(self, stream_id: int, payload: Payload, complete: bool = False, is_next: bool = True) -> None:
        """As rsocket's, but counted in the send window, and never larger than a frame.

        rsocket interleaves the fragments of two items of one stream, and the receiver joins them wrongly.
        """
        nbytes = len(payload.data or b"") + len(payload.metadata or b"")
        if nbytes > _MAX_ITEM_BYTES:
            raise ValueError(f"an item of a stream must fit one frame: {_MAX_ITEM_BYTES} bytes, not {nbytes}")
        if not (is_part(payload.data) and is_part(payload.metadata)):
            raise TypeError("an item of a stream is bytes")  # anything else would end the sender of all streams
        frame = to_payload_frame(stream_id, payload, complete, is_next, FRAGMENT_SIZE_BYTES)
        cost = _ITEM_COST_BYTES + nbytes
        self._window.add(cost)
        self.send_frame(OutgoingFrame(frame, SKIPPED, lambda: self._window.remove(cost)))

    def send_error(self, stream_id: int, exception: Exception, *, is_sent: bool = True) -> None:
        """As rsocket's, but with typed errors, without internal texts, and limited in number."""
        error = exception if isinstance(exception, RSocketProtocolError) else to_protocol_error(exception)
        if stream_id == CONNECTION_STREAM_ID:
            self.transport.fail(ErrorCode.CONNECTION_ERROR, error.data or "connection_error")
            return
        self._count_error()
        if self.transport.failure is None:
            super().send_error(stream_id, error, is_sent=is_sent)

    def _refuse_stream(self, frame: Frame, error: TransferError) -> None:
        abandon(frame)
        if isinstance(frame, RequestFireAndForgetFrame):
            return
        if not self._has_refused_streams:
            self._has_refused_streams = True
            _log.warning("refused a request from %s: %s", self.transport.peer, error.message)
        self.send_error(frame.stream_id, error)

    def _count_error(self) -> None:
        """Ends the connection of a peer that causes too many."""
        now, errors = self._loop.time(), self._errors or deque[float]()
        self._errors = errors
        errors.append(now)
        while errors[0] < now - 60:
            errors.popleft()
        if len(errors) > self._limits.max_errors_per_minute:
            self.transport.fail(ErrorCode.CONNECTION_ERROR, "too_many_errors: slow down, or ask for what there is")
