"""rsocket over a `Transport` of ours, for both ends; the only file that uses rsocket's private names.

What is replaced of rsocket 0.4.20, and why (tests/test_canaries.py fails when one of these names changes):

- `_sender` makes an asynchronous context manager for each frame, and its queue is one for any number of readers and
  writers: half of what a frame of a small request costs. Here the `Outbox` is the queue.
- `_handle_next_frame`, which calls `_handle_frame_by_type`, formats a log line for each frame, whether or not it is
  logged, joins fragments without a limit, and warns of frames for streams that have ended.
- `_stream_control._streams` are the open streams, which have no public accessor; `_register_stream` adds one.
- `_keepalive_timeout_task` counts keepalives only, which on a slow link wait behind megabytes.
- `_send_queue`, `_request_queue`, `_frame_fragment_cache` are made for each connection, and not used here.
- `_is_closing`, `_receiver_task`, `_setup_internals`, `_reset_internals`, `_before_sender`, `_finally_sender` are a
  connection's lifecycle, which has no public hooks.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketTransportError
from rsocket.frame import (
    CONNECTION_STREAM_ID,
    Frame,
    FrameFragmentMixin,
    FrameType,
    KeepAliveFrame,
    exception_to_error_frame,
    initiate_request_frame_types,
)
from rsocket.frame_builders import to_cancel_frame
from rsocket.handlers.interfaces import Requester
from rsocket.handlers.request_cahnnel_responder import RequestChannelResponder
from rsocket.rsocket_base import RSocketBase
from rsocket.rsocket_client import RSocketClient
from rsocket.streams.stream_handler import StreamHandler
from rsocket.transports.transport import Transport as RSocketTransport

from .aio import run_blocking
from .errors import ServerError, TransferError, to_protocol_error
from .frames.budget import ReassemblyBudget, ReassemblyLimits
from .frames.codec import REQUEST_KINDS, STREAM_KINDS, FrameHeader
from .frames.fragments import SplitPayload
from .frames.outbox import FileTurn, Outbox, SkippedFrame
from .frames.reassembly import Reassembler
from .frames.room import LEAST_BYTES, SendRoom
from .frames.rules import PayloadRules
from .transport.base import Transport

__all__ = ["CONNECTION_CLOSE", "SETUP_ERRORS", "ClientEngine", "RSocketEngine", "is_usable"]

_log = logging.getLogger(__name__)

FrameHandlers = Mapping[type[Frame], Callable[[Frame], Awaitable[None]]]
StreamHandlerT = TypeVar("StreamHandlerT", bound=StreamHandler)

_REQUESTS: Final = frozenset[type[Frame]](initiate_request_frame_types)
# What neither side of ours has a use for, and the SETUP, which only a server takes, and only once.
_UNEXPECTED: Final = frozenset(map(int, (FrameType.SETUP, FrameType.LEASE, FrameType.RESUME, FrameType.RESUME_OK)))
CONNECTION_CLOSE: Final = ErrorCode.CONNECTION_ERROR_NO_RETRY
"""The connection is to end when its streams have; rsocket's name for it is older than the specification's."""

SETUP_ERRORS: Final = frozenset(
    {ErrorCode.INVALID_SETUP, ErrorCode.UNSUPPORTED_SETUP, ErrorCode.REJECTED_SETUP, ErrorCode.REJECTED_RESUME}
)
"""What a server answers to a SETUP or RESUME, and what nothing means once the connection is set up."""


def is_usable(rsocket: RSocketBase) -> bool:
    """Whether a request on this connection can be answered; if not, it would wait until it stalls."""
    # If not, rsocket's sender has stopped; this is all that it does about unanswered keepalives.
    return not rsocket._is_closing and rsocket.is_server_alive()


class RSocketEngine(RSocketBase, PayloadRules):
    """A base class of a connection, after `RSocketClient` or `RSocketServer`.

    Attributes:
        transport: The connection's; the subclass sets it before rsocket's tasks start.
        reassembler: Checks and joins the peer's payloads; to be returned to the transport when it is connected.
        outbox: What waits to be sent.
        is_client: Whether this side has made the connection; its requests have the odd stream ids.
    """

    is_client = False

    transport: Transport
    reassembler: Reassembler
    outbox: Outbox

    def _reset_internals(self) -> None:
        super()._reset_internals()
        # Four kibibytes for each connection, and nothing of it is used: see `Outbox` and `Reassembler`.
        del self._send_queue, self._request_queue, self._frame_fragment_cache

    def _init_engine(
        self,
        limits: ReassemblyLimits,
        budget: ReassemblyBudget | None,
        outbox: Outbox,
        room: SendRoom | None = None,
    ) -> None:
        """To be called before rsocket's own constructor, which starts its tasks."""
        self._room = room
        self.reassembler = Reassembler(limits, budget, self)
        self.outbox = outbox
        self._has_refused = False
        self._has_ignored = False
        self._last_opened = 0  # the largest stream id of the peer's requests

    # What a connection decides

    def must_wait(self) -> bool:
        """Whether nothing more is taken from the peer for now; then `may_take` is awaited."""
        return False

    async def may_take(self) -> None:
        """Returns when `must_wait` may have changed."""

    def admits(self, frame: Frame) -> bool:
        """Whether a request is handled; else it is dropped."""
        return True

    def on_senseless_frame(self) -> None:
        """The peer has sent a frame that makes no sense, and is ignored."""

    # Open streams

    def count_streams(self) -> int:
        return len(self._stream_control._streams)

    def stream(self, stream_id: int) -> StreamHandler | None:
        """The handler of an open stream."""
        return self._stream_control._streams.get(stream_id)

    def register_stream(self, stream_id: int, handler: StreamHandlerT) -> StreamHandlerT:
        """Gives `handler` the frames of a stream that the peer has opened."""
        return self._register_stream(stream_id, handler)

    def finish_stream(self, stream_id: int) -> None:
        """As rsocket's, without its cache of fragments, which is empty here."""
        _untie(self._stream_control._streams.pop(stream_id, None))

    def stop_all_streams(self, error_code: ErrorCode = ErrorCode.CONNECTION_ERROR, data: bytes = b"") -> None:
        """As rsocket's."""
        streams = list(self._stream_control._streams.values())
        super().stop_all_streams(error_code, data)
        for stream in streams:
            _untie(stream)

    # Frames that make no sense: the specification ("Handling the Unexpected") has them ignored

    def expects(self, header: FrameHeader) -> bool:
        """See `PayloadRules`."""
        stream_id, kind, *_ = header
        if header.is_misplaced or kind in _UNEXPECTED:
            self.on_ignored(stream_id, kind)
            return False
        return kind not in REQUEST_KINDS or self._may_open(stream_id, kind)

    def on_ignored(self, stream_id: int, kind: int) -> None:
        """Notes that it makes no sense, unless the frame may have crossed with the end of its stream.

        A CANCEL may also be that of a request which its sender has withdrawn.
        """
        is_late = self._was_opened(stream_id) or (kind == FrameType.CANCEL and not self._is_own(stream_id))
        if stream_id and kind in STREAM_KINDS and kind not in REQUEST_KINDS and is_late:
            return
        if not self._has_ignored:
            self._has_ignored = True
            _log.info(
                "ignored a frame from %s that makes no sense: %s on stream %d; more of it isn't logged",
                self.transport.peer,
                FrameType(kind).name,
                stream_id,
            )
        self.on_senseless_frame()

    def _may_open(self, stream_id: int, kind: int) -> bool:
        """Whether the peer may open a stream with this id; ignores its request if not."""
        if stream_id in self._stream_control._streams or stream_id % 2 == self.is_client:
            self.on_ignored(stream_id, kind)
            return False
        if stream_id > self._last_opened:  # noqa: PLR1730 - `max` would be a call for each small request
            self._last_opened = stream_id
        return True

    def _was_opened(self, stream_id: int) -> bool:
        """Whether there may have been a stream with this id; this server opens none."""
        return self.is_client if self._is_own(stream_id) else stream_id <= self._last_opened

    def _is_own(self, stream_id: int) -> bool:
        """Whether the id is one of those that only this side uses for its requests."""
        return stream_id % 2 == self.is_client

    def max_payload_bytes(self, stream_id: int) -> float:
        """See `PayloadRules`; only this side's requests, and the peer's channels, take payloads."""
        stream = self.stream(stream_id)
        if not isinstance(stream, Requester | RequestChannelResponder):
            return 0
        most: float = getattr(stream, "max_payload_bytes", math.inf)
        return most

    # Receiving

    def make_feed(self) -> RSocketTransport:
        """The transport that rsocket is given."""
        return _Feed(self.transport, self.reassembler)

    def on_refused(self, stream_id: int, kind: int, error: TransferError) -> None:
        """Notifies the peer, and this side's handler of the stream."""
        if not self._has_refused:
            self._has_refused = True  # logged once: a flood of them must not fill the disk
            _log.warning("refused a payload from %s: %s; more of it isn't logged", self.transport.peer, error)
        answer = to_protocol_error(error)
        if kind == FrameType.PAYLOAD:
            # Its stream may be this side's or the peer's: one is ended by CANCEL, the other by ERROR.
            self.send_frame(to_cancel_frame(stream_id))
        self.send_error(stream_id, answer, is_sent=kind != FrameType.REQUEST_FNF)
        handler = self.stream(stream_id)
        if kind == FrameType.PAYLOAD and handler is not None:
            handler.frame_received(exception_to_error_frame(stream_id, answer))

    def on_frame_refused(self, error: TransferError) -> None:
        self.transport.fail(self.failure_code, f"invalid_frame: {error.message}")

    async def _handle_next_frame(self, frame: Frame, async_frame_handler_by_type: FrameHandlers) -> None:
        while self.must_wait():
            await self.may_take()
        if type(frame) is SkippedFrame:
            return  # see `Transport.next_frame`
        stream_id = frame.stream_id
        if stream_id == CONNECTION_STREAM_ID:
            if type(frame) is KeepAliveFrame:
                frame.flags_ignore = False  # it is sent back
            await self._handle_frame_by_type(frame, async_frame_handler_by_type)
        elif type(frame) in _REQUESTS:
            if self._may_open(stream_id, frame.frame_type) and self.admits(frame):
                await self._handle_frame_by_type(frame, async_frame_handler_by_type)
        elif (handler := self._stream_control._streams.get(stream_id)) is not None:
            handler.frame_received(frame)
        else:
            self.on_ignored(stream_id, frame.frame_type)
        if frame.length > LEAST_BYTES:
            frame.data = b""  # rsocket keeps the frame until the next one comes

    async def received(self, seconds: float) -> None:
        """Returns when all that was received is handled, or after so many seconds."""
        if self._receiver_task is not None:
            await asyncio.wait([self._receiver_task], timeout=seconds)

    # Sending

    def send_frame(self, frame: Frame | FrameFragmentMixin) -> None:
        """Queues a frame, or a payload."""
        self.outbox.put(frame)

    def send_priority_frame(self, frame: Frame | FrameFragmentMixin) -> None:
        """Queues a frame, the SETUP, before all others."""
        self.outbox.put_first(frame)

    def send_error(self, stream_id: int, exception: Exception, *, is_sent: bool = True) -> None:
        """As rsocket's; with `is_sent=False` the peer isn't notified, since it expects no answer."""
        if is_sent:
            super().send_error(stream_id, exception)

    async def _sender(self) -> None:
        transport, outbox, reassembler, room = self.transport, self.outbox, self.reassembler, self._room
        try:
            self._before_sender()
            while self.is_server_alive():
                entry = await outbox.take()
                if isinstance(entry, FileTurn):
                    lane = transport.lane
                    if lane is None:
                        raise RSocketTransportError("the connection has ended")
                    await lane.send(entry.jobs, entry.waiting)
                else:
                    if type(entry) is not SkippedFrame:
                        reassembler.on_sent(entry)
                        # A view is a part of what is somewhere else in memory anyway.
                        nbytes = len(entry.data) if type(entry.data) is bytes else 0
                        if nbytes > LEAST_BYTES and room is not None:
                            await _send_counted(transport, entry, nbytes, room)
                        else:
                            await transport.send(entry)
                    outbox.on_sent(entry)
                if outbox.is_empty:
                    await transport.flush()
        except (RSocketTransportError, asyncio.CancelledError):
            pass  # the connection has ended, or is closed; the receiver notifies the open streams
        except Exception:
            _log.exception("the connection with %s can't send any more, and is closed", transport.peer)
            transport.abort()  # without a reason for the peer: half a frame may be on its way
        finally:
            outbox.close()
            await self._finally_sender()


class ClientEngine(RSocketClient, RSocketEngine):
    """The client's, with its own `watch_peer`: rsocket's counts keepalives only."""

    is_client = True

    def _setup_internals(self) -> None:
        self._reset_internals()  # rsocket does this when it connects; a failure before that needs the table of streams

    async def watch_peer(self) -> None:
        """Runs beside the receiver, and ends the connection when the peer is dead."""

    async def _keepalive_timeout_task(self) -> None:
        await self.watch_peer()


class _Feed(RSocketTransport):
    """Adapts a `Transport` of ours to rsocket's: gives whole frames, their payloads joined or stored.

    rsocket's receiver would end with an exception, and leave open a connection whose frames nothing takes: so whatever
    is raised here ends the connection.
    """

    def __init__(self, transport: Transport, reassembler: Reassembler) -> None:
        super().__init__()
        self._transport = transport
        self._reassembler = reassembler
        self._is_exhausted = False

    async def next_frame_generator(self) -> "_Feed | None":
        return None if self._is_exhausted else self

    def __aiter__(self) -> "_Feed":
        return self

    async def __anext__(self) -> Frame:
        try:
            while (received := await self._transport.next_frame()) is not None:
                if type(received) is not SplitPayload:
                    return received
                frame = await self._continue(received)
                del received  # a payload that was refused isn't kept while the next one is waited for
                if frame is not None:
                    return frame
        except Exception:
            _log.exception("the connection with %s can't receive any more, and is closed", self._transport.peer)
            self._transport.fail(ErrorCode.CONNECTION_ERROR, "internal: the connection can't be received from")
        self._is_exhausted = True
        raise StopAsyncIteration

    async def send_frame(self, frame: Frame) -> None:
        await self._transport.send(frame)

    async def close(self) -> None:
        await self._transport.close()

    async def _continue(self, payload: SplitPayload) -> Frame | None:
        """Stores, joins or makes room for a payload in several frames; its frame if it is whole.

        Nothing is received meanwhile, so that no more of it waits.
        """
        try:
            await payload.store()
        except asyncio.CancelledError:
            payload.abandon()
            raise
        except Exception as error:  # any that a disk raises
            if self._reassembler.is_wanted(payload):  # else it was refused or cancelled meanwhile
                if not isinstance(error, TransferError):
                    _log.exception("a payload from %s could not be stored", self._transport.peer)
                    error = ServerError("the server failed to store the payload")
                payload.abandon()
                self._reassembler.refuse(payload, error)
            return None
        finally:
            self._reassembler.release(payload)
        if payload.is_whole:
            return payload.join()
        if payload.needs_room:
            await run_blocking(None, payload.make_room)
        return None


async def _send_counted(transport: Transport, frame: Frame, nbytes: int, room: SendRoom) -> None:
    room.add(nbytes)
    try:
        await transport.send(frame)
    finally:
        room.add(-nbytes)


def _untie(stream: object) -> None:
    """Breaks the reference cycle of a channel that has ended and its subscriber, which would keep the connection."""
    if type(stream) is RequestChannelResponder:
        stream.subscriber = None
