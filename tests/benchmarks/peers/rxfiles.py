"""This project."""

import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import BinaryIO, Final

from rx_client import FileClient
from server import ChatData, serve
from server.stores.directory.store import DirectoryStore
from shared.files import disk
from shared.protocol.digest import DEFAULT_ALGORITHM

from ...transport.pairs import tls_contexts
from . import Client, Pace

_CLIENTS: Final = 64


class RxFiles:
    """Our server and client.

    Args:
        digest: The algorithm for verification; None for none.
        fsync: Whether files are synced, as they always are outside of benchmarks; peers never sync large ones.
        disk_rate: Limits the server's disk, in bytes written a second; None for no limit.
        in_memory: Whether the files are in memory, as the small ones of all peers are, instead of in the folder.
        tls: Whether the connection is encrypted.
        has_many: Whether each of several transfers has a client of its own.
    """

    def __init__(
        self,
        *,
        digest: str | None = DEFAULT_ALGORITHM,
        fsync: bool = False,
        disk_rate: float | None = None,
        in_memory: bool = False,
        tls: bool = False,
        has_many: bool = False,
    ) -> None:
        self._has_many = has_many
        self._digest = digest
        self._disk_rate = disk_rate
        self._in_memory = in_memory
        self._tls = tls
        if not fsync:
            os.fsync = lambda fd: None

    @asynccontextmanager
    async def serve(self, folder: Path) -> AsyncGenerator[int, None]:
        if self._disk_rate is not None:
            _slow_down(self._disk_rate)
        data = ChatData() if self._in_memory else ChatData(DirectoryStore(folder))
        async with serve(data=data, tls=tls_contexts()[0] if self._tls else None) as server:
            yield int(server.uri.rpartition(":")[2])

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncGenerator[Client, None]:
        uri, tls = f"tcp://127.0.0.1:{port}", None
        if self._tls:
            uri, tls = f"tcps://localhost:{port}", tls_contexts()[1]
        async with AsyncExitStack() as stack:
            count = _CLIENTS if self._has_many else 1
            clients = [await stack.enter_async_context(FileClient.connect(uri, tls=tls)) for _ in range(count)]
            yield _Client(clients, self._digest)


class _Client(Client):
    def __init__(self, clients: Sequence[FileClient], digest: str | None) -> None:
        self._clients = cycle(clients)
        self._digest = digest

    @property
    def _files(self) -> FileClient:
        """The next client."""
        return next(self._clients)

    async def download(self, name: str, target: Path, rate: float | None) -> None:
        if rate is None:
            await self._files.download_to(name, target, digest=self._digest)
        else:
            with target.open("wb") as file:
                await self._files.download_to(name, _SlowWriter(file, rate), digest=self._digest)

    async def upload(self, source: Path, name: str) -> None:
        await self._files.upload_from(name, source, digest=self._digest)

    async def get(self, name: str) -> bytes:
        return await self._files.download(name)

    async def put(self, name: str, content: bytes) -> None:
        await self._files.upload(name, content)

    async def stat(self, name: str) -> None:
        await self._files.stat(name)


class _SlowWriter:
    def __init__(self, file: BinaryIO, rate: float) -> None:
        self._file = file
        self._pace = Pace(rate)

    async def write(self, data: bytes, /) -> None:
        self._file.write(data)
        await self._pace.throttle(len(data))


def _slow_down(rate: float) -> None:
    write_at = disk.write_at

    def write_slowly(*args: object) -> int:
        written: int = write_at(*args)  # pyright: ignore[reportArgumentType]
        time.sleep(written / rate)
        return written

    disk.write_at = write_slowly
