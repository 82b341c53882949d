"""aiohttp: `FileResponse` down, `PUT` of an open file up; small files from a dictionary, or the same way."""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from . import CHUNK_BYTES, Client, Pace


class Aiohttp:
    """Server and client.

    Args:
        buffer_bytes: The read buffer of either end; None for aiohttp's default of 64 KiB.
        connections: The client's limit; 0 for none.
        on_disk: Whether small files are in the folder, too, each replaced in one step that survives a crash.
    """

    def __init__(self, *, buffer_bytes: int | None = None, connections: int = 0, on_disk: bool = False) -> None:
        self._small = "durable" if on_disk else "memory"
        self._buffering = {} if buffer_bytes is None else {"read_bufsize": buffer_bytes}
        self._chunk_bytes = 64 * 1024 if buffer_bytes is None else CHUNK_BYTES
        self._connections = connections

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        files: dict[str, bytes] = {}

        async def download(request: web.Request) -> web.StreamResponse:
            return web.FileResponse(folder / request.match_info["name"], chunk_size=CHUNK_BYTES)

        async def upload(request: web.Request) -> web.Response:
            with (folder / request.match_info["name"]).open("wb", buffering=0) as file:
                async for data in request.content.iter_chunked(self._chunk_bytes):
                    file.write(data)
            return web.Response()

        async def get(request: web.Request) -> web.Response:
            return web.Response(body=files[request.match_info["name"]])

        async def put(request: web.Request) -> web.Response:
            files[request.match_info["name"]] = await request.read()
            return web.Response()

        async def put_durably(request: web.Request) -> web.Response:
            await asyncio.to_thread(_replace, folder / request.match_info["name"], await request.read())
            return web.Response()

        app = web.Application(client_max_size=1 << 30)
        app.add_routes([web.get("/disk/{name}", download), web.put("/disk/{name}", upload)])
        app.add_routes([web.get("/memory/{name}", get), web.put("/memory/{name}", put)])
        app.add_routes([web.get("/durable/{name}", download), web.put("/durable/{name}", put_durably)])
        runner = web.AppRunner(app, access_log=None, **self._buffering)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        connector = aiohttp.TCPConnector(limit=self._connections)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", connector=connector, timeout=timeout, **self._buffering
        ) as session:
            yield _Client(session, self._chunk_bytes, self._small)


class _Client(Client):
    def __init__(self, session: aiohttp.ClientSession, chunk_bytes: int, small: str) -> None:
        self._session = session
        self._small = small
        self._chunk_bytes = chunk_bytes

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        pace = Pace(rate)
        async with self._session.get(f"/disk/{name}") as response:
            with target.open("wb", buffering=0) as file:
                async for data in response.content.iter_chunked(self._chunk_bytes):
                    file.write(data)
                    await pace.throttle(len(data))

    async def upload(self, source: Path, name: str) -> None:
        with source.open("rb", buffering=0) as file:
            data = file if self._chunk_bytes < CHUNK_BYTES else _read(source)
            async with self._session.put(f"/disk/{name}", data=data) as response:
                response.raise_for_status()

    async def get(self, name: str) -> bytes:
        async with self._session.get(f"/{self._small}/{name}") as response:
            return await response.read()

    async def put(self, name: str, content: bytes) -> None:
        async with self._session.put(f"/{self._small}/{name}", data=content) as response:
            response.raise_for_status()

    async def stat(self, name: str) -> None:
        async with self._session.head(f"/{self._small}/{name}") as response:
            response.raise_for_status()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{threading.get_ident()}.tmp")
    with temporary.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


async def _read(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            yield data
