"""A slow network on one machine: a TCP relay that lets a server's answers through a little at a time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from rx_client.connection import parse_uri

__all__ = ["slow_link"]

# 16 KiB each 50 ms are about 320 kB/s.
_PIECE_BYTES: Final = 16 * 1024
_PAUSE_SECONDS: Final = 0.05


@asynccontextmanager
async def slow_link(uri: str) -> AsyncGenerator[str, None]:
    """A relay to the server at `uri`; gives the relay's own URI. Close the connections to it inside the block.

    Requests pass at full speed, answers at about 320 kB/s. Nothing is held back in memory: while the relay pauses, the
    server's socket fills up, as with a slow network.
    """
    host, port = parse_uri(uri)
    relays: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.add(asyncio.create_task(_relay(reader, writer, host, port)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"tcp://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    server_reader, server_writer = await asyncio.open_connection(host, port, limit=_PIECE_BYTES)
    try:
        async with asyncio.TaskGroup() as both_ways:
            both_ways.create_task(_copy(reader, server_writer, 0.0))
            both_ways.create_task(_copy(server_reader, writer, _PAUSE_SECONDS))
    except* ConnectionError:
        pass  # either end has gone; so does the other
    finally:
        for end in (writer, server_writer):
            end.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause_seconds: float) -> None:
    while piece := await reader.read(_PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause_seconds)
    writer.close()
