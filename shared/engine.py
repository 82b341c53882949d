"""An rsocket's loops, for both ends: what rsocket 0.4.20's own do, with a fifth of the work for each frame.

Its own sender makes an asynchronous context manager for each frame, both of its loops make up what might be logged of
each, whether or not anybody listens, and its queue is one for any number of readers and writers. For a frame of a small
request that is half of what the frame costs.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketTransportError
from rsocket.frame import CONNECTION_STREAM_ID, Frame, FrameFragmentMixin, initiate_request_frame_types
from rsocket.handlers.request_cahnnel_responder import RequestChannelResponder
from rsocket.rsocket_base import RSocketBase

from .files.lane import FileItems, ItemsTurn

__all__ = ["FrameHandlers", "LeanRSocket"]

_log = logging.getLogger(__name__)

FrameHandlers = Mapping[type[Frame], Callable[[Frame], Awaitable[None]]]

# Asked by type: rsocket's classes are abstract ones, of which `isinstance` costs ten times as much.
_REQUESTS: Final = frozenset[type[Frame]](initiate_request_frame_types)


class LeanRSocket(RSocketBase):
    """To be inherited from beside `RSocketClient` or `RSocketServer`, after it; its transport gives whole frames."""

    def _reset_internals(self) -> None:
        super()._reset_internals()
        self._send_queue: _SendQueue = _SendQueue()

    def finish_stream(self, stream_id: int) -> None:
        """As rsocket's, whose cache of fragments is empty here."""
        stream = self._stream_control._streams.pop(stream_id, None)
        if type(stream) is RequestChannelResponder:
            _untie(stream)

    def stop_all_streams(self, error_code: ErrorCode = ErrorCode.CONNECTION_ERROR, data: bytes = b"") -> None:
        """As rsocket's."""
        streams = list(self._stream_control._streams.values())
        super().stop_all_streams(error_code, data)
        for stream in streams:
            if type(stream) is RequestChannelResponder:
                _untie(stream)

    async def _handle_next_frame(self, frame: Frame, async_frame_handler_by_type: FrameHandlers) -> None:
        stream_id = frame.stream_id
        if stream_id == CONNECTION_STREAM_ID or type(frame) in _REQUESTS:
            await self._handle_frame_by_type(frame, async_frame_handler_by_type)
            return
        handler = self._stream_control._streams.get(stream_id)
        if handler is not None:  # else the stream has ended on this side
            handler.frame_received(frame)

    async def _sender(self) -> None:
        try:
            transport = await self._current_transport()
            self._before_sender()
            queue = self._send_queue
            while self.is_server_alive():
                if queue.empty():
                    await queue.wait()
                source = queue.get_nowait()
                frame = _fragment(source) if isinstance(source, FrameFragmentMixin) else source
                if frame is not source and frame.flags_follows:
                    queue.put_nowait(source)  # after a fragment it is the others' turn
                if isinstance(frame, ItemsTurn):
                    queue.share(frame)
                await transport.send_frame(frame)
                if frame.sent_future is not None:
                    frame.sent_future.set_result(None)
                if queue.empty():
                    await transport.on_send_queue_empty()
        except (RSocketTransportError, asyncio.CancelledError):
            pass  # the connection has ended, or is closed; whoever waits for something hears it from the receiver
        except Exception:
            _log.exception("a connection can't send any more")
            raise
        finally:
            await self._finally_sender()


def _untie(channel: RequestChannelResponder) -> None:
    """A channel that has ended and its subscriber refer to each other: they would keep the whole connection."""
    channel.subscriber = None


def _fragment(source: FrameFragmentMixin) -> Frame:
    """The next fragment of a payload or request."""
    frame = source.get_next_fragment()
    assert frame is not None, "it is taken out of the queue with its last fragment"
    return frame


class _SendQueue:
    """What waits to be sent; one task takes it out."""

    def __init__(self) -> None:
        self._items: deque[Frame | FrameFragmentMixin] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def empty(self) -> bool:
        return not self._items

    def qsize(self) -> int:
        return len(self._items)

    def put_nowait(self, item: Frame | FrameFragmentMixin) -> None:
        self._items.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def get_nowait(self) -> Frame | FrameFragmentMixin:
        return self._items.popleft()

    def share(self, turn: ItemsTurn) -> None:
        """Lets the items of files that are next have that turn, too: one hop to a thread is enough for all of them."""
        staying = int(turn.flags_follows)  # those that are here for their next turn, too, don't wait for this one
        while self._items and isinstance(items := self._items[0], FileItems) and turn.share(items):
            self._items.popleft()
            if items.get_next_fragment().flags_follows:
                self._items.append(items)
                staying += 1
        turn.waiting = lambda: len(self._items) - staying

    async def wait(self) -> None:
        """Returns when there is an item."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
