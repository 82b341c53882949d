"""A network on one machine that can be slow, or fail: a TCP relay that counts the bytes."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from ..connection.options import parse_uri


@dataclass
class Relay:
    """A relay to a server; made by `relay`. `passed` counts bytes: "up" from the clients, "down" from the server."""

    uri: str = ""
    passed: Counter[str] = field(default_factory=Counter[str])
    connections: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    def cut(self) -> None:
        """Ends every connection at once, and what is under way in it; new ones can be made."""
        for connection in self.connections:
            connection.cancel()


@asynccontextmanager
async def relay(uri: str, *, piece_bytes: int = 256 * 1024, pause_seconds: float = 0.0) -> AsyncGenerator[Relay, None]:
    """A relay to the server at `uri`. Close the connections to it inside the block.

    It buffers no more than a piece: while it pauses, the server's socket fills up, as with a slow network.

    Args:
        uri: The server's.
        piece_bytes: The most bytes that are forwarded at a time.
        pause_seconds: The pause after each piece from the server; the clients' pass at full speed.
    """
    relayed = Relay()
    host, port = parse_uri(uri)

    async def copy(way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: float) -> None:
        while piece := await reader.read(piece_bytes):
            relayed.passed[way] += len(piece)
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            server_reader, server_writer = await asyncio.open_connection(host, port, limit=piece_bytes)
            ends.append(server_writer)
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(copy("up", reader, server_writer, 0.0))
                both_ways.create_task(copy("down", server_reader, writer, pause_seconds))
        except* OSError:
            pass  # there is no server, or one end has closed: the other is closed, too
        finally:
            for end in ends:
                end.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(connect(reader, writer))
        relayed.connections.add(connection)
        connection.add_done_callback(relayed.connections.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    relayed.uri = f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield relayed
    finally:
        listener.close()
        relayed.cut()
        await asyncio.gather(*relayed.connections, return_exceptions=True)


def slow_link(uri: str) -> AbstractAsyncContextManager[Relay]:
    """A relay that forwards a server's bytes at about 320 kB/s: 16 KiB each 50 ms."""
    return relay(uri, piece_bytes=16 * 1024, pause_seconds=0.05)
