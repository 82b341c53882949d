"""A network on one machine that can be slow, or fail: a TCP relay that counts what passes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ..connection.connector import parse_uri

__all__ = ["Relay", "relay", "slow_link"]


class Relay:
    """A relay to the server at `uri`; made by `relay`.

    Attributes:
        uri: Where the relay itself listens.
        bytes_up: What has come from the clients.
        bytes_down: What has come from the server.
    """

    def __init__(self, uri: str, piece_bytes: int, pause_seconds: float) -> None:
        self.uri = ""
        self.bytes_up = 0
        self.bytes_down = 0
        self._host, self._port = parse_uri(uri)
        self._piece_bytes = piece_bytes
        self._pause_seconds = pause_seconds
        self._connections: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Ends every connection at once, with what is under way in it; new ones can be made."""
        for connection in self._connections:
            connection.cancel()

    async def close(self) -> None:
        """Cuts, and returns when nothing runs any more."""
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes a client's connection."""
        connection = asyncio.create_task(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            server_reader, server_writer = await asyncio.open_connection(
                self._host, self._port, limit=self._piece_bytes
            )
            ends.append(server_writer)
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(self._copy_up(reader, server_writer))
                both_ways.create_task(self._copy_down(server_reader, writer))
        except* OSError:
            pass  # either end has gone, or the server isn't there; so does the other
        finally:
            for end in ends:
                end.transport.abort()

    async def _copy_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(self._piece_bytes):
            self.bytes_up += len(piece)
            writer.write(piece)
            await writer.drain()
        writer.close()

    async def _copy_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(self._piece_bytes):
            self.bytes_down += len(piece)
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(self._pause_seconds)
        writer.close()


@asynccontextmanager
async def relay(uri: str, *, piece_bytes: int = 256 * 1024, pause_seconds: float = 0.0) -> AsyncGenerator[Relay, None]:
    """A relay to the server at `uri`. Close the connections to it inside the block.

    Nothing is held back in memory: while the relay pauses, the server's socket fills up, as with a slow network.

    Args:
        uri: The server.
        piece_bytes: How much passes at a time.
        pause_seconds: How long it pauses after each piece of an answer; requests pass at full speed.
    """
    relayed = Relay(uri, piece_bytes, pause_seconds)
    listener = await asyncio.start_server(relayed.accept, "127.0.0.1", 0)
    relayed.uri = f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield relayed
    finally:
        listener.close()
        await relayed.close()


def slow_link(uri: str) -> AbstractAsyncContextManager[Relay]:
    """A relay that lets a server's answers through at about 320 kB/s: 16 KiB each 50 ms."""
    return relay(uri, piece_bytes=16 * 1024, pause_seconds=0.05)
