"""One connection's rsocket: the client side of the RSocket protocol, with a better notion of a dead peer.

rsocket 0.4.20's own reconnect dies after one failed attempt, or reconnects thousands of times a second, and a request
on a dead connection waits for ever. So each connection has an `RSocketClient` of its own, and none is used again.
"""

import asyncio
import ssl
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError
from rsocket.extensions.mimetypes import WellKnownMimeTypes
from rsocket.frame import ErrorFrame, Frame, FrameFragmentMixin, FrameType, KeepAliveFrame
from rsocket.frame_builders import to_keepalive_frame
from rsocket.helpers import single_transport_provider
from rsocket.payload import Payload
from rsocket.request_handler import BaseRequestHandler

from shared.engine import CONNECTION_CLOSE, SETUP_ERRORS, ClientEngine
from shared.errors import TlsFailed, from_error_frame
from shared.frames.budget import ReassemblyLimits
from shared.frames.codec import REQUEST_KINDS, FrameHeader
from shared.frames.outbox import Outbox
from shared.presence import RunClock, Standstill
from shared.protocol.adaptive import WindowBudget
from shared.protocol.wire import FRAGMENT_SIZE_BYTES, MAX_METADATA_BYTES
from shared.transport.base import Transport

from .options import ConnectOptions

__all__ = ["ClientHandler", "ClientSession"]

_LOOKS_PER_TIMEOUT: Final = 16
# With this much waiting to be sent, the link is slow, or the peer has stopped reading.
_BACKLOG_BYTES: Final = 16 * 1024

# What of one transfer, and of all together, may wait to be written to files; beyond it the connection isn't read from.
# The first window of a transfer is less.
_MAX_HELD_BYTES: Final = 12 * 1024 * 1024
_MAX_ALL_HELD_BYTES: Final = 48 * 1024 * 1024
# By how much the windows of all transfers to an application's own consumers may be wider than they are at first.
_MAX_WINDOW_BYTES: Final = 48 * 1024 * 1024

# How much the server may make this side answer without reading the answers.
_MAX_CONTROL_BYTES: Final = 1024 * 1024
_ANSWERS: Final = frozenset[type[Frame]]([KeepAliveFrame, ErrorFrame])
# Metadata is parsed, and error texts are decoded, in the event loop: 16 MB of either would block it for seconds.
_LIMITS: Final = ReassemblyLimits(max_metadata_bytes=MAX_METADATA_BYTES)

_NOTHING_HERE: Final = RSocketProtocolError(ErrorCode.REJECTED, data="unknown_route: this client serves nothing")


class ClientHandler(BaseRequestHandler):
    """What the server may do to a client: nothing, but end the connection.

    Attributes:
        on_end: Called once, with an error code and text, when the connection ends.
        ended: What it was called with; None while the connection works.
        is_lost: Whether the connection ended without a word of the server's.
        lost_by: What ended it then.
        on_closing: Called when the server closes the connection as soon as the requests under way have ended.
        is_closing: Whether it does.
        first_sign: Set when the first keepalive has arrived, or the connection has ended before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_end: Callable[[ErrorCode, str], None] | None = None
        self.ended: tuple[ErrorCode, str] | None = None
        self.is_lost = False
        self.lost_by: Exception | None = None
        self.on_closing: Callable[[str], None] | None = None
        self.is_closing = False
        self.first_sign = asyncio.Event()

    async def on_error(self, error_code: ErrorCode, payload: Payload) -> None:
        """An ERROR on stream 0 is the connection's end, also if the server leaves it open.

        Not one about the SETUP, once that was accepted: the specification has it ignored. Nor does one that closes the
        connection end the requests under way.
        """
        text = bytes(payload.data or b"").decode("utf-8", errors="replace")
        is_set_up = self.first_sign.is_set() and self.ended is None
        if is_set_up and error_code == CONNECTION_CLOSE and self.on_closing is not None:
            self.is_closing = True
            self.on_closing(text)
        elif not (is_set_up and error_code in SETUP_ERRORS):
            self.end(error_code, text)

    async def request_response(self, payload: Payload) -> asyncio.Future[Payload]:
        raise _NOTHING_HERE

    async def request_stream(self, payload: Payload) -> Publisher:
        raise _NOTHING_HERE

    async def request_channel(self, payload: Payload) -> tuple[Publisher | None, Subscriber | None]:
        raise _NOTHING_HERE

    def on_lost(self, error: Exception | None, failure: str | None) -> None:
        """The transport has ended; `failure` says why, if this side ended it."""
        if failure is not None and isinstance(from_error_frame(ErrorCode.REJECTED_SETUP, failure.encode()), TlsFailed):
            self.end(ErrorCode.REJECTED_SETUP, f"{TlsFailed.code}: the server is encrypted: use tcps://")
            return
        if failure is None and self.ended is None:
            self.is_lost, self.lost_by = True, error
        reason = str(error) if failure is None and isinstance(error, ssl.SSLError) else failure
        text = "the connection to the server was lost"
        self.end(ErrorCode.CONNECTION_ERROR, f"{text}: {reason}" if reason else text)

    def end(self, code: ErrorCode, text: str) -> None:
        """Gives up the connection; only the first call counts."""
        if self.ended is None:
            self.ended = (code, text)
            self.first_sign.set()
            on_end, self.on_end = self.on_end, None  # which holds this handler: a reference cycle
            if on_end is not None:
                on_end(code, text)


class ClientSession(ClientEngine):
    """rsocket's client over one connected transport, which knows a slow peer from a dead one.

    `handler` is notified of the connection's end; `setup` is the SETUP's payload, with credentials.

    Attributes:
        is_silent: Whether the connection was given up since the server was silent.
        windows: What the windows of downloads may have together.
    """

    def __init__(
        self, transport: Transport, handler: ClientHandler, options: ConnectOptions, setup: Payload | None
    ) -> None:
        self._client_handler = handler
        self._timeout = options.keepalive_timeout
        self.transport = transport
        self.is_silent = False
        self.windows = WindowBudget(_MAX_WINDOW_BYTES)
        self._held_bytes = 0
        self._holding_much = 0  # transfers
        self._has_room = asyncio.Event()
        self._init_engine(_LIMITS, None, Outbox(_ANSWERS))
        super().__init__(
            single_transport_provider(self.make_feed()),
            handler_factory=lambda: handler,
            data_encoding=WellKnownMimeTypes.APPLICATION_OCTET_STREAM,
            metadata_encoding=WellKnownMimeTypes.MESSAGE_RSOCKET_COMPOSITE_METADATA,
            keep_alive_period=timedelta(seconds=options.keepalive_period),
            max_lifetime_period=timedelta(seconds=options.keepalive_timeout),
            setup_payload=setup,
            fragment_size_bytes=FRAGMENT_SIZE_BYTES,
        )

    async def open(self) -> None:
        """Sends the SETUP; returns when the server has accepted it, or the connection has ended: see `handler.ended`.

        RSocket has no answer to a SETUP. But every server answers a keepalive, and ours only after it has accepted the
        SETUP. A peer that isn't an RSocket server answers with something else, hangs up, or never answers.
        """
        await self.connect()
        self.send_frame(to_keepalive_frame(b""))
        await self._client_handler.first_sign.wait()

    def send_frame(self, frame: Frame | FrameFragmentMixin) -> None:
        """As rsocket's; ends the connection if the server makes this side answer, and doesn't read the answers."""
        super().send_frame(frame)
        if self.outbox.control_bytes > _MAX_CONTROL_BYTES:
            text = "the server takes none of the answers it asks for"
            self._client_handler.end(ErrorCode.CONNECTION_ERROR, text)

    def expects(self, header: FrameHeader) -> bool:
        """See `PayloadRules`; a large request, or one in fragments, is refused before it is held."""
        if not super().expects(header):
            return False
        if header.kind not in REQUEST_KINDS:
            return True
        if header.kind != FrameType.REQUEST_FNF:
            self.send_error(header.stream_id, _NOTHING_HERE)
        return False

    def on_held(self, nbytes: int, held_bytes: int) -> None:
        """A transfer to a file holds so many bytes more, or fewer, that aren't written; `held_bytes` in all."""
        self._held_bytes += nbytes
        self._holding_much += (held_bytes > _MAX_HELD_BYTES) - (held_bytes - nbytes > _MAX_HELD_BYTES)
        if nbytes < 0:
            self._has_room.set()

    def must_wait(self) -> bool:
        """Whether so much waits for a disk that nothing more is read."""
        is_too_much = self._holding_much > 0 or self._held_bytes > _MAX_ALL_HELD_BYTES
        return is_too_much and not self.transport.is_lost

    async def may_take(self) -> None:
        self._has_room.clear()
        await self._has_room.wait()

    async def watch_peer(self) -> None:
        """In place of rsocket's, which only counts keepalives: on a slow link they wait behind megabytes."""
        timeout, period = self._timeout, self._timeout / _LOOKS_PER_TIMEOUT
        await self._client_handler.first_sign.wait()  # until then the attempt's own timeout counts
        loop = asyncio.get_running_loop()
        clock, arrived, other_signs = RunClock(period, loop.time), Standstill(), Standstill()
        taken, is_backlog, taken_of_backlog, unread = 0, False, 0, 0
        while True:
            if self._client_handler.is_closing and not self.count_streams():
                self._client_handler.end(CONNECTION_CLOSE, "the server has closed the connection")
                return
            if not self.count_streams():
                self.transport.become_quiet()
            await asyncio.sleep(period)
            can_judge = clock.tick()
            # What arrives is a sign of life, and so is what the peer takes of a backlog, since keepalives are behind
            # it. What it takes without a backlog is none: the system of a stopped process goes on to take a little.
            # What waits unread may be one.
            flow = self.transport.flow
            if is_backlog and flow.taken_bytes > taken:
                taken_of_backlog = flow.taken_bytes
            is_backlog, taken = flow.waiting_bytes > _BACKLOG_BYTES, flow.taken_bytes
            unread += self.transport.has_unread
            now, received_at = clock.time(), flow.received_at
            arrived_ago = arrived.look(now, received_at, loop.time() - received_at)
            signs_ago = other_signs.look(now, (taken_of_backlog, unread))
            if can_judge and min(arrived_ago, signs_ago) > timeout:
                break
        self.is_silent = True
        self._client_handler.end(ErrorCode.CONNECTION_ERROR, f"the server was silent for {timeout:g} s")

    async def handle_keep_alive(self, frame: KeepAliveFrame) -> None:
        self._client_handler.first_sign.set()
        await super().handle_keep_alive(frame)
