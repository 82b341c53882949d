"""Blocking `SSLSocket`s in plain loops, one thread at each end: what Python's TLS can do without an event loop."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from ...transport.pairs import tls_contexts
from . import CHUNK_BYTES, Client


class SslSockets:
    """A line with a verb, a size and a name, then the bytes; one connection for each transfer."""

    def __init__(self) -> None:
        self._server_tls, self._client_tls = tls_contexts()

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_accept, args=(listener, folder, self._server_tls), daemon=True).start()
        yield listener.getsockname()[1]

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        yield _Client(port, self._client_tls)


def _accept(listener: socket.socket, folder: Path, tls: ssl.SSLContext) -> None:
    while True:
        plain, _ = listener.accept()
        with tls.wrap_socket(plain, server_side=True) as connection:
            verb, size, name = _line(connection).split()
            path = folder / name
            if verb == "down":
                connection.sendall(b"%d\n" % path.stat().st_size)
                _send(path, connection)
            else:
                _receive(path, int(size), connection)
                connection.sendall(b"stored\n")
            with suppress(OSError):
                connection.recv(1)


class _Client(Client):
    def __init__(self, port: int, tls: ssl.SSLContext) -> None:
        self._port = port
        self._tls = tls

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        await asyncio.to_thread(self._download, name, target)

    async def upload(self, source: Path, name: str) -> None:
        await asyncio.to_thread(self._upload, source, name)

    def _open(self) -> ssl.SSLSocket:
        return self._tls.wrap_socket(socket.create_connection(("127.0.0.1", self._port)), server_hostname="localhost")

    def _download(self, name: str, target: Path) -> None:
        with self._open() as connection:
            connection.sendall(f"down 0 {name}\n".encode())
            _receive(target, int(_line(connection)), connection)

    def _upload(self, source: Path, name: str) -> None:
        with self._open() as connection:
            connection.sendall(f"up {source.stat().st_size} {name}\n".encode())
            _send(source, connection)
            _line(connection)


def _line(connection: ssl.SSLSocket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        line += connection.recv(1)
    return line.decode()


def _send(path: Path, connection: ssl.SSLSocket) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while nbytes := file.readinto(buffer):
            connection.sendall(buffer[:nbytes])


def _receive(path: Path, size: int, connection: ssl.SSLSocket) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("wb", buffering=0) as file:
        while size:
            nbytes = connection.recv_into(buffer)
            file.write(buffer[:nbytes])
            size -= nbytes
