"""asyncio streams, plain or with TLS: the least work of a transfer in Python without special system calls."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from ...transport.pairs import tls_contexts
from . import CHUNK_BYTES, Client, Pace


class Streams:
    """A line with a verb, a size and a name, then the bytes."""

    def __init__(self, *, tls: bool = False) -> None:
        self._server_tls, self._client_tls = tls_contexts() if tls else (None, None)

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

        listener = await asyncio.start_server(session, "127.0.0.1", 0, limit=CHUNK_BYTES, ssl=self._server_tls)
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            listener.close()

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        yield _Client(port, self._client_tls)


class _Client(Client):
    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._port = port
        self._tls = tls

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        name = None if self._tls is None else "localhost"
        return await asyncio.open_connection(
            "127.0.0.1", self._port, limit=CHUNK_BYTES, ssl=self._tls, server_hostname=name
        )

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        reader, writer = await self._open()
        writer.write(f"down 0 {name}\n".encode())
        size = int(await reader.readline())
        await _receive(target, size, reader, Pace(rate))
        writer.close()

    async def upload(self, source: Path, name: str) -> None:
        reader, writer = await self._open()
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
