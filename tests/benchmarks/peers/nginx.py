"""nginx, and a curl process for each request."""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from . import Client

if shutil.which("nginx") is None or shutil.which("curl") is None:
    raise ImportError("nginx or curl isn't installed")

_NOTHING: Final = asyncio.subprocess.DEVNULL
_CONFIGURATION: Final = """
daemon off;
worker_processes 1;
{user}
pid {own}/pid;
error_log stderr error;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    client_max_body_size 0;
    client_body_temp_path {root}/.nginx;
    proxy_temp_path {own}/proxy;
    fastcgi_temp_path {own}/fastcgi;
    uwsgi_temp_path {own}/uwsgi;
    scgi_temp_path {own}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ root {root}; dav_methods PUT; client_body_buffer_size 1m; }}
    }}
}}
"""


class Nginx:
    """Server and client."""

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        with tempfile.TemporaryDirectory() as own, socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
            free.close()
            configuration = Path(own, "nginx.conf")
            user = "user root;" if os.geteuid() == 0 else ""
            configuration.write_text(_CONFIGURATION.format(own=own, root=folder, port=port, user=user))
            process = await asyncio.create_subprocess_exec(
                *("nginx", "-c", str(configuration), "-p", own), stdin=_NOTHING, stdout=_NOTHING
            )
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except ConnectionError:
                    await asyncio.sleep(0.01)
            try:
                yield port
            finally:
                process.terminate()
                await process.wait()

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        yield _Client(f"http://127.0.0.1:{port}")


class _Client(Client):
    def __init__(self, url: str) -> None:
        self._url = url

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        await self._curl("-o", str(target), f"{self._url}/{name}")

    async def upload(self, source: Path, name: str) -> None:
        await self._curl("-H", "Expect:", "-T", str(source), f"{self._url}/{name}")

    async def _curl(self, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec("curl", "-sSf", *arguments, stdin=_NOTHING)
        if await process.wait():
            raise RuntimeError(f"curl failed with {process.returncode}")
