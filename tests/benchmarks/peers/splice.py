"""Blocking sockets, `sendfile` and `splice`: zero-copy in one thread at each end, the upper bound on Linux."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from . import Client

_PIPE_BYTES: Final = 1024 * 1024
_F_SETPIPE_SZ: Final = 1031

if not hasattr(os, "splice"):
    raise ImportError("this system has no splice")


class Splice:
    """A line with a verb, a size and a name, then the bytes; one connection for each transfer."""

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_accept, args=(listener, folder), daemon=True).start()
        yield listener.getsockname()[1]

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        yield _Client(port)


def _accept(listener: socket.socket, folder: Path) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            verb, size, name = _line(connection).split()
            path = folder / name
            if verb == "down":
                connection.sendall(b"%d\n" % path.stat().st_size)
                _send(path, connection)
            else:
                _receive(path, int(size), connection)
                connection.sendall(b"stored\n")


class _Client(Client):
    def __init__(self, port: int) -> None:
        self._port = port

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        await asyncio.to_thread(self._download, name, target)

    async def upload(self, source: Path, name: str) -> None:
        await asyncio.to_thread(self._upload, source, name)

    def _download(self, name: str, target: Path) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(f"down 0 {name}\n".encode())
            _receive(target, int(_line(connection)), connection)

    def _upload(self, source: Path, name: str) -> None:
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(f"up {source.stat().st_size} {name}\n".encode())
            _send(source, connection)
            _line(connection)


def _line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(1)
    return line.decode()


def _send(path: Path, connection: socket.socket) -> None:
    with path.open("rb") as file:
        connection.sendfile(file)


def _receive(path: Path, size: int, connection: socket.socket) -> None:
    import fcntl  # not on Windows, where there is no splice either

    readable, writable = os.pipe()
    try:
        fcntl.fcntl(writable, _F_SETPIPE_SZ, _PIPE_BYTES)
        with path.open("wb") as file:
            while size:
                moved = os.splice(connection.fileno(), writable, min(size, _PIPE_BYTES))
                size -= moved
                while moved:
                    moved -= os.splice(readable, file.fileno(), moved)
    finally:
        os.close(readable)
        os.close(writable)
