"""The systems that are compared: each peer's server and client, as short and as fast as its documentation suggests.

Peers do their disk work in the event loop, which is wrong in a real server and faster here.
"""

import asyncio
import importlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Protocol

__all__ = ["CHUNK_BYTES", "SYSTEMS", "Client", "Pace", "Peer", "make_peer"]

CHUNK_BYTES: Final = 256 * 1024


class Pace:
    """Limits a receiver to a rate, in bytes a second; None for no limit."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._due: float | None = None

    async def throttle(self, nbytes: int) -> None:
        """Returns when `nbytes` more may have been received."""
        if self._rate is None:
            return
        now = asyncio.get_running_loop().time()
        self._due = (now if self._due is None else self._due) + nbytes / self._rate
        await asyncio.sleep(max(self._due - now, 0))


class Client:
    """One connected client; a verb that its system doesn't support isn't called."""

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        """Server's disk to client's disk; `rate` is the receiver's, in bytes a second."""
        raise NotImplementedError

    async def upload(self, source: Path, name: str) -> None:
        """Client's disk to server's disk."""
        raise NotImplementedError

    async def get(self, name: str) -> bytes:
        """Server's memory to client's memory, as a whole."""
        raise NotImplementedError

    async def put(self, name: str, content: bytes) -> None:
        """Client's memory to server's memory, as a whole."""
        raise NotImplementedError

    async def stat(self, name: str) -> None:
        """Requests a file's metadata."""
        raise NotImplementedError


class Peer(Protocol):
    """A system, in the process of its server or of its client."""

    def serve(self, folder: Path) -> AbstractAsyncContextManager[int]:
        """Serves the folder, and files in memory; the value is the port."""
        ...

    def connect(self, port: int) -> AbstractAsyncContextManager[Client]:
        """Connects to the server."""
        ...


# Name -> module and class, and the arguments of the class.
SYSTEMS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "rxfiles": ("rxfiles:RxFiles", {}),
    "rxfiles, digest=None": ("rxfiles:RxFiles", {"digest": None}),
    "rxfiles, with fsync": ("rxfiles:RxFiles", {"fsync": True}),
    "rxfiles, slow disk": ("rxfiles:RxFiles", {"disk_rate": 25e6}),
    "rxfiles, TLS": ("rxfiles:RxFiles", {"tls": True}),
    "rxfiles, a client each": ("rxfiles:RxFiles", {"has_many": True}),
    "rxfiles, a client each, TLS": ("rxfiles:RxFiles", {"has_many": True, "tls": True}),
    "rxfiles, memory": ("rxfiles:RxFiles", {"in_memory": True}),
    "asyncio streams": ("streams:Streams", {}),
    "asyncio streams, TLS": ("streams:Streams", {"tls": True}),
    "SSLSockets": ("ssl_sockets:SslSockets", {}),
    "sendfile + splice": ("splice:Splice", {}),
    "nginx + curl": ("nginx:Nginx", {}),
    "aiohttp, default": ("aiohttp_files:Aiohttp", {}),
    "aiohttp, tuned": ("aiohttp_files:Aiohttp", {"buffer_bytes": 1024 * 1024}),
    "aiohttp, 1 connection": ("aiohttp_files:Aiohttp", {"connections": 1}),
    "aiohttp, 32 connections": ("aiohttp_files:Aiohttp", {"connections": 32}),
    "aiohttp, 32 connections, folder": ("aiohttp_files:Aiohttp", {"connections": 32, "on_disk": True}),
    "grpc.aio": ("grpc_aio:GrpcAio", {}),
    "rsocket, read buffer 1024": ("stock:Stock", {"read_buffer": 1024}),
    "rsocket, read buffer 64 KiB": ("stock:Stock", {"read_buffer": 64 * 1024}),
    "tutorial, read buffer 1024": ("tutorial:Tutorial", {"read_buffer": 1024}),
    "tutorial, read buffer 64 KiB": ("tutorial:Tutorial", {"read_buffer": 64 * 1024}),
}


def make_peer(system: str) -> Peer:
    """The peer of that name in `SYSTEMS`.

    Raises:
        ImportError: A package or a program that it needs isn't installed.
    """
    where, options = SYSTEMS[system]
    module, name = where.split(":")
    make: Callable[..., Peer] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return make(**options)
