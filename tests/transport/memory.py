"""Another transport than TCP: two ends in this process, one message a frame, no length before it, and no file lane.

It is here to prove that `shared.transport.base.Transport` is all that a connection needs of the bytes below it; a
transport over WebSocket would look like this.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketTransportError
from rsocket.frame import ErrorFrame, Frame

from rx_client.connection.dial import Dial
from server import FileServer
from shared.aio import wake
from shared.frames.codec import FrameError, serialize_head
from shared.frames.fragments import SplitPayload
from shared.frames.reassembly import Reassembler
from shared.transport.base import Flow, State, Transport
from shared.transport.pacing import Pacer

__all__ = ["MemoryTransport", "connect", "dial_memory"]

# What may be on its way to an end that doesn't take it.
_INBOX_BYTES: Final = 256 * 1024
_CLOSE_SECONDS: Final = 1.0


class MemoryTransport(Transport):
    """One end of a connection; see `connect`.

    Args:
        name: The other end's, for logs.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._loop = asyncio.get_running_loop()
        self._reassembler: Reassembler | None = None
        self._on_lost: Callable[[], None] | None = None
        self._other: MemoryTransport | None = None
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._arrived: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._ended = self._loop.create_future()
        self._cut: asyncio.TimerHandle | None = None
        self._is_rest_wanted = True
        self._pacer = Pacer()
        self._flow = _MemoryFlow(self._loop.time())

    def open(
        self,
        other: "MemoryTransport",
        on_connected: "Callable[[MemoryTransport], Reassembler]",
        on_lost: Callable[[], None],
    ) -> None:
        """Connects this end with the other one."""
        self._other, self._on_lost, self.state = other, on_lost, State.OPEN
        self._reassembler = on_connected(self)

    @property
    def flow(self) -> Flow:
        flow = self._flow
        return Flow(flow.received_at, flow.handed_bytes, flow.waiting_bytes, flow.blocked_since)

    # Receiving

    async def next_frame(self) -> Frame | SplitPayload | None:
        while True:
            if self._pacer.is_due():
                await self._pacer.pause()
            if self.failure is not None or (self.is_lost and not (self._is_rest_wanted and self._inbox)):
                return None
            if not self._inbox:
                self._pacer.restart()
                self._arrived = self._loop.create_future()
                await self._arrived
                continue
            self._pacer.add()
            message = self._inbox.popleft()
            self._take_in(len(message))
            assert self._reassembler is not None, "it is given when the connection is made"
            try:
                received = self._reassembler.take(memoryview(message))
            except FrameError as error:
                self.fail(ErrorCode.CONNECTION_ERROR, f"invalid_frame: {error}")
                continue
            if received is not None:
                return received

    def forget_rest(self) -> None:
        self._is_rest_wanted = False
        self._inbox.clear()
        wake(self._arrived)

    def _take_in(self, nbytes: int) -> None:
        self._inbox_bytes -= nbytes
        if self._other is not None:
            self._other._flow.on_taken(nbytes)
        if self._inbox_bytes < _INBOX_BYTES:
            self._room.set()

    def _arrive(self, message: bytes) -> None:
        """The other end has sent a message."""
        if self.state is not State.OPEN:
            if self._other is not None:
                self._other._flow.on_taken(len(message))  # dropped
            return
        self._flow.received_at = self._loop.time()
        self._inbox.append(message)
        self._inbox_bytes += len(message)
        if self._inbox_bytes >= _INBOX_BYTES:
            self._room.clear()
        wake(self._arrived)

    # Sending

    async def send(self, frame: Frame) -> None:
        other = self._check_open()
        parts = [bytes(serialize_head(frame))]
        frame.write_data_metadata(parts.append)
        self._hand_over(other, b"".join(parts))
        if not other._room.is_set():
            self._flow.block(self._loop.time())
            await other._room.wait()
            self._flow.block(None)
            self._check_open()
        elif self._flow.is_slice_over(frame.length):
            await asyncio.sleep(0)

    async def flush(self) -> None:
        """Nothing is gathered."""

    def _hand_over(self, other: "MemoryTransport", message: bytes) -> None:
        self._flow.on_sent(len(message))
        other._arrive(message)

    def _check_open(self) -> "MemoryTransport":
        if self.state is not State.OPEN or self._other is None:
            raise RSocketTransportError("the connection has ended")
        return self._other

    # The end

    def fail(self, error_code: ErrorCode, reason: str) -> None:
        if self.state is not State.OPEN:
            return
        self.failure = reason
        farewell = ErrorFrame()
        farewell.error_code, farewell.data = error_code, reason.encode()
        parts = [bytes(serialize_head(farewell))]
        farewell.write_data_metadata(parts.append)
        if self._other is not None:
            self._hand_over(self._other, b"".join(parts))
        self.state = State.FAILED
        if self._reassembler is not None:
            self._reassembler.close()
        self._inbox.clear()
        self._room.set()
        wake(self._arrived)
        self._cut = self._loop.call_later(_CLOSE_SECONDS, self.abort)
        if self._other is not None:
            self._other._on_other_ends()

    async def close(self) -> None:
        if self.state is State.CONNECTING:
            return
        other = self._other
        if other is not None and not self.is_lost:
            other._on_other_ends()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await asyncio.shield(other._ended)
            self.abort()
        await asyncio.shield(self._ended)

    def abort(self) -> None:
        other = self._other
        self._lose()
        if other is not None:
            other._lose()

    def _on_other_ends(self) -> None:
        """The other end sends nothing any more; this one ends when it has the rest, as with TCP."""
        self._loop.call_soon(self.abort)

    def _lose(self) -> None:
        if self.state in (State.CONNECTING, State.LOST):
            return
        self.state = State.LOST
        if self._cut is not None:
            self._cut.cancel()
        if self._reassembler is not None:
            self._reassembler.close()  # of what is still taken nothing is counted any more
        self._other = None
        self._flow.close()
        self._room.set()
        wake(self._arrived)
        wake(self._ended)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            self._loop.call_soon(on_lost)


class _MemoryFlow:
    """What `shared.transport.base.Flow` is made of."""

    def __init__(self, received_at: float) -> None:
        self.received_at = received_at
        self.handed_bytes = 0
        self.waiting_bytes = 0
        self.blocked_since: float | None = None
        self._slice = 0

    def on_sent(self, nbytes: int) -> None:
        self.handed_bytes += nbytes
        self.waiting_bytes += nbytes

    def on_taken(self, nbytes: int) -> None:
        self.waiting_bytes = max(self.waiting_bytes - nbytes, 0)
        if self.blocked_since is not None:
            self.blocked_since = asyncio.get_running_loop().time()

    def block(self, since: float | None) -> None:
        self.blocked_since = since

    def is_slice_over(self, nbytes: int) -> bool:
        self._slice += nbytes + 1024
        if self._slice < _INBOX_BYTES // 4:
            return False
        self._slice = 0
        return True

    def close(self) -> None:
        self.waiting_bytes, self.blocked_since = 0, None


def connect(
    server_side: Callable[[Transport], Reassembler],
    on_server_lost: Callable[[Transport], None],
    client_side: Callable[[Transport], Reassembler],
    on_client_lost: Callable[[Exception | None], None],
) -> tuple[MemoryTransport, MemoryTransport]:
    """Makes a connection; the server's end is the first."""
    server, client = MemoryTransport("client:1"), MemoryTransport("server:1")
    server.open(client, server_side, lambda: on_server_lost(server))
    client.open(server, client_side, lambda: on_client_lost(None))
    return server, client


def dial_memory(server: FileServer) -> Dial:
    """Connects to a server in this process."""

    async def dial(
        on_connected: Callable[[Transport], Reassembler], on_lost: Callable[[Exception | None], None]
    ) -> object:
        if server._listener is None:
            raise ConnectionRefusedError
        return connect(server.on_connected, server.on_lost, on_connected, on_lost)

    return dial
