"""Plain asyncio streams: the least work of a transfer in Python without special system calls."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from . import CHUNK_BYTES, Client, Pace


class Streams:
    """A line with a verb, a size and a name, then the bytes."""

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                verb, size, name = line.decode().split()
                path = folder / name
                if verb == "down":
                    writer.write(b"%d\n" % path.stat().st_size)
                    await _send(path, writer)
                else:
                    await _receive(path, int(size), reader, Pace(None))
                    writer.write(b"stored\n")
            writer.close()

        listener = await asyncio.start_server(session, "127.0.0.1", 0, limit=CHUNK_BYTES)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        yield _Client(port)


class _Client(Client):
    def __init__(self, port: int) -> None:
        self._port = port

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=CHUNK_BYTES)
        writer.write(f"down 0 {name}\n".encode())
        size = int(await reader.readline())
        await _receive(target, size, reader, Pace(rate))
        writer.close()

    async def upload(self, source: Path, name: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=CHUNK_BYTES)
        writer.write(f"up {source.stat().st_size} {name}\n".encode())
        await _send(source, writer)
        await reader.readline()
        writer.close()


async def _send(path: Path, writer: asyncio.StreamWriter) -> None:
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


async def _receive(path: Path, size: int, reader: asyncio.StreamReader, pace: Pace) -> None:
    with path.open("wb", buffering=0) as file:
        while size:
            data = await reader.read(min(size, CHUNK_BYTES))
            file.write(data)
            size -= len(data)
            await pace.throttle(len(data))
