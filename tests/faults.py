"""A TCP proxy with a network's faults: it cuts, stalls, slows or fragments connections, or never answers."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from tests.support import eventually

__all__ = ["Direction", "FaultProxy", "fault_proxy"]

_READ_BYTES = 64 * 1024
_SLOW_READ_BYTES = 2 * 1024


class Direction:
    """One direction through the proxy, for all connections.

    Attributes:
        nbytes: Bytes forwarded so far.
        cut_after: Bytes to forward before that connection is cut, once; None for never.
        flip_after: Bytes to forward before a bit of the next one is changed, once; None for never.
        stall_after: Bytes to forward before everything stalls, with open connections, until `flow`; None for never.
        dribble: The most bytes forwarded in one event-loop iteration; 0 for no limit.
        rate: Bytes forwarded in a second, by all connections together; None for no limit.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self.cut_after: int | None = None
        self.stall_after: int | None = None
        self.flip_after: int | None = None
        self.dribble = 0
        self.rate: float | None = None
        self._paced_until = 0.0
        self._may_flow = asyncio.Event()
        self._may_flow.set()

    @property
    def is_stalled(self) -> bool:
        """Whether nothing is forwarded at the moment."""
        return not self._may_flow.is_set()

    def stall(self) -> None:
        """Stops forwarding, until `flow`."""
        self._may_flow.clear()

    def flow(self) -> None:
        """Ends a stall."""
        self.stall_after = None
        self._may_flow.set()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forwards until the connection ends or is cut."""
        while data := await reader.read(self.dribble or (_READ_BYTES if self.rate is None else _SLOW_READ_BYTES)):
            if self.flip_after is not None:
                if self.flip_after < len(data):
                    data = bytes([*data[: self.flip_after], data[self.flip_after] ^ 1]) + data[self.flip_after + 1 :]
                self.flip_after = self.flip_after - len(data) if self.flip_after >= len(data) else None
            while data:
                await self._may_flow.wait()
                piece = data if self.stall_after is None else data[: self.stall_after]
                is_cut = self.cut_after is not None and len(piece) >= self.cut_after
                if is_cut:
                    piece = piece[: self.cut_after]
                    self.cut_after = None
                elif self.cut_after is not None:
                    self.cut_after -= len(piece)
                data = data[len(piece) :]
                writer.write(piece)
                await writer.drain()
                self.nbytes += len(piece)
                await self._pace(len(piece))
                if is_cut:
                    return
                if self.stall_after is not None:
                    self.stall_after -= len(piece)
                    if not self.stall_after:
                        self.stall_after = None
                        self.stall()
            if self.dribble:
                await asyncio.sleep(0)

    async def _pace(self, nbytes: int) -> None:
        if self.rate is None:
            return
        now = asyncio.get_running_loop().time()
        self._paced_until = max(now, self._paced_until) + nbytes / self.rate
        await asyncio.sleep(self._paced_until - now)


class FaultProxy:
    """Forwards each connection to a server; made by `fault_proxy`.

    Args:
        target: The server's URI.
        buffer_bytes: The size of each buffer, small so that a slow link slows its sender at once; None for defaults.

    Attributes:
        target: The server's URI; a change applies to new connections.
        up: From the clients to the server.
        down: From the server to the clients.
        accepted: Connections so far.
        is_black_hole: Whether new connections are accepted and never answered.
    """

    def __init__(self, target: str, buffer_bytes: int | None = None) -> None:
        self.target = target
        self._buffer_bytes = buffer_bytes
        self.up = Direction()
        self.down = Direction()
        self.accepted = 0
        self.is_black_hole = False
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    @property
    def uri(self) -> str:
        """The proxy's own URI."""
        assert self._listener is not None
        host, port = self._listener.sockets[0].getsockname()[:2]
        return f"tcp://{host}:{port}"

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections)

    async def open(self) -> None:
        """Begins to listen, on a free port."""
        sock = self._socket()
        sock.bind(("127.0.0.1", 0))
        self._listener = await asyncio.start_server(self._accept, sock=sock, limit=self._reads_ahead)

    async def close(self) -> None:
        """Stops listening, and cuts every connection."""
        assert self._listener is not None
        self._listener.close()
        self.cut()
        await eventually(lambda: not self._connections)

    def cut(self) -> None:
        """Resets every connection, on both sides."""
        for connection in self._connections:
            connection.cancel()

    @property
    def _reads_ahead(self) -> int:
        return _READ_BYTES if self._buffer_bytes is None else self._buffer_bytes

    def _socket(self) -> socket.socket:
        """A new socket. Its buffers are set before it is connected, since its TCP window depends on them. Its segments
        are as short as a network's, since those of loopback don't fit into small buffers.
        """
        sock = socket.socket()
        sock.setblocking(False)
        if self._buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer_bytes)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
        return sock

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [writer]
        writer.transport.set_write_buffer_limits(self._reads_ahead)
        try:
            if self.is_black_hole:
                await asyncio.get_running_loop().create_future()
            host, port = self.target.removeprefix("tcp://").rsplit(":", 1)
            sock = self._socket()
            try:
                await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
                server_reader, server_writer = await asyncio.open_connection(sock=sock, limit=self._reads_ahead)
            except BaseException:
                sock.close()
                raise
            writers.append(server_writer)
            server_writer.transport.set_write_buffer_limits(self._reads_ahead)
            ways = [
                asyncio.ensure_future(self.up.forward(reader, server_writer)),
                asyncio.ensure_future(self.down.forward(server_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            for each in writers:
                each.transport.abort()
                with suppress(OSError):  # retrieved here: else its report comes where the garbage collector finds it
                    await each.wait_closed()


@asynccontextmanager
async def fault_proxy(target: str, buffer_bytes: int | None = None) -> AsyncGenerator[FaultProxy, None]:
    """A proxy to the server at `target`, a `tcp://HOST:PORT`; it forwards everything until a fault is set."""
    proxy = FaultProxy(target, buffer_bytes)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
