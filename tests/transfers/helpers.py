"""Stores that can be watched and held up, and other helpers of the transfer tests."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from rx_client import Completed, FileClient, Progress, Started, TransferEvent
from rx_client.connection.dial import Dial
from rx_client.connection.managed import Connection
from rx_client.connection.options import ConnectOptions
from server import ChatData, FileServer, serve
from server.stores.base import OpenFile, Reader, Store, Upload
from shared import FileInfo, Superseded
from shared.files.part import FileTarget
from shared.protocol.digest import Digest
from tests.stores.support import STORES, listed
from tests.support import client_stream_ids, eventually, server_stream_ids

CHUNK = 256 * 1024
"""What one item of a download carries."""

WITHOUT_LANE = pytest.mark.parametrize("store", ["memory", "directory"], indirect=True)
"""For tests that hold the store up, or make it give other bytes."""

QUICK = ConnectOptions(
    connect_timeout=2.0,
    keepalive_period=0.1,
    keepalive_timeout=0.6,
    reconnect_timeout=2.0,
    reconnect_base=0.01,
    reconnect_cap=0.05,
)
"""Finds a dead peer in about a second. Much sooner, both ends of a test on a busy machine would be taken for dead."""


def content(nbytes: int, seed: int = 0) -> bytes:
    """Bytes that are the same each time, and nowhere repeat."""
    return random.Random(seed).randbytes(nbytes)


def digest_of(data: bytes, algorithm: str = "xxh3-128") -> str:
    digest = Digest(algorithm)
    digest.update(data)
    return digest.text()


class Gate:
    """Holds up its callers while it is closed."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def __call__(self) -> None:
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


class WatchedStore:
    """A store whose steps are counted, and can be held up or broken.

    Args:
        store: The store.
        has_files: Whether its files are for the file lane. What that moves can't be held up, and only the bytes are
            counted.

    Attributes:
        produced: Bytes that were read from it for downloads.
        appended: Bytes that were added to uploads, those of failed attempts included.
        appends: The length of each chunk that was added.
        began: The position at which each upload began, or went on.
        readers: Readers that are open.
        writers: Uploads that are open.
    """

    at_once = None

    def __init__(self, store: Store, *, has_files: bool = False) -> None:
        self.inner = store
        self.has_files = has_files
        self.produced = self.appended = 0
        self.appends: list[int] = []
        self.began: list[int] = []
        self.readers = self.writers = 0
        self.before_open, self.before_read = Gate(), Gate()
        self.before_begin, self.before_append, self.before_commit, self.after_commit = Gate(), Gate(), Gate(), Gate()
        self.is_rotten = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)  # what isn't watched

    async def open(self, name: str) -> Reader:
        await self.before_open()
        reader = await self.inner.open(name)
        self.readers += 1
        return _WatchedReader(self, reader)

    async def begin(
        self, upload_id: str, name: str, *, size: int | None, algorithm: str, overwrite: bool = True
    ) -> Upload:
        await self.before_begin()
        upload = await self.inner.begin(upload_id, name, size=size, algorithm=algorithm, overwrite=overwrite)
        self.writers += 1
        self.began.append(upload.received)
        return _WatchedUpload(self, upload)

    async def content(self, name: str) -> bytes:
        """A whole file's."""
        reader = await self.inner.open(name)
        try:
            return await reader.read(0, reader.info.size)
        finally:
            await reader.close()

    async def names(self) -> list[str]:
        """Every file's."""
        return [info.name for info in await listed(self.inner)]


class _WatchedReader(Reader):
    def __init__(self, store: WatchedStore, reader: Reader) -> None:
        self._store = store
        self._reader = reader
        self._is_open = True

    @property
    def info(self) -> FileInfo:
        return self._reader.info

    def as_file(self) -> OpenFile | None:
        return self._reader.as_file() if self._store.has_files else None

    async def read(self, offset: int, length: int) -> bytes:
        await self._store.before_read()
        data = await self._reader.read(offset, length)
        self._store.produced += len(data)
        if self._store.is_rotten and data:
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    async def close(self) -> None:
        self._store.readers -= self._is_open
        self._is_open = False
        await self._reader.close()


class _WatchedUpload(Upload):
    def __init__(self, store: WatchedStore, upload: Upload) -> None:
        self._store = store
        self._upload = upload
        self._is_open = True
        self.window_bytes = upload.window_bytes

    @property
    def received(self) -> int:
        return self._upload.received

    @property
    def durable(self) -> int:
        return self._upload.durable

    def as_file(self) -> FileTarget | None:
        file = self._upload.as_file() if self._store.has_files else None
        return None if file is None else _WatchedFile(self._store, file)

    async def append(self, chunks: Sequence[bytes]) -> None:
        await self._store.before_append()
        before = self._upload.received
        try:
            await self._upload.append(chunks)
        except Superseded:
            before = self._upload.received  # the newer upload has changed it
            raise
        finally:  # a write that was cancelled may have been done all the same
            self._store.appends.extend(map(len, chunks))
            self._store.appended += self._upload.received - before

    async def flush(self) -> int:
        return await self._upload.flush()

    async def commit(self, digest: str | None) -> FileInfo:
        await self._store.before_commit()
        info = await self._upload.commit(digest)
        self._end()
        await self._store.after_commit()
        return info

    async def suspend(self) -> None:
        self._end()
        await self._upload.suspend()

    async def abort(self) -> None:
        self._end()
        await self._upload.abort()

    def _end(self) -> None:
        self._store.writers -= self._is_open
        self._is_open = False


class _WatchedFile(FileTarget):
    def __init__(self, store: WatchedStore, file: FileTarget) -> None:
        self._store = store
        self._file = file

    @property
    def executor(self) -> Executor | None:
        return self._file.executor

    def write(self, data: memoryview) -> None:
        self._file.write(data)
        self._store.appended += len(data)

    @property
    def write_from(self) -> Callable[[int, int], None] | None:
        inner = self._file.write_from

        def write_from(pipe: int, nbytes: int) -> None:
            assert inner is not None
            inner(pipe, nbytes)
            self._store.appended += nbytes

        return None if inner is None else write_from


def make_store(kind: str, folder: Path) -> WatchedStore:
    """A store of `STORES`, watched; `lane` is the directory's, with its files for the file lane."""
    if kind == "lane":
        return WatchedStore(STORES["directory"](folder / "store", None), has_files=True)
    return WatchedStore(STORES[kind](folder / "store", None))


@asynccontextmanager
async def serving(store: WatchedStore) -> AsyncGenerator[FileServer, None]:
    """A server of `store`, which at the end has nothing under way."""
    data = ChatData(store)
    async with serve(data=data) as server:
        yield server
        await at_rest(server, store)


DIALS: Final[dict[str, Dial]] = {}
"""How servers are reached that aren't reached over TCP, by their URIs."""


@asynccontextmanager
async def connected(uri: str, options: ConnectOptions | None = None) -> AsyncGenerator[FileClient, None]:
    """A client, which at the end has no stream open."""
    async with _dialled(uri, options) if uri in DIALS else FileClient.connect(uri, options=options) as files:
        yield files
        await files.settle()
        await eventually(lambda: not client_stream_ids(files))


@asynccontextmanager
async def _dialled(uri: str, options: ConnectOptions | None) -> AsyncGenerator[FileClient, None]:
    """A client of a server that isn't reached over TCP."""
    connection = Connection(uri, options or ConnectOptions(), dial=DIALS[uri])
    files = FileClient(connection)
    try:
        await connection.open()
        yield files
    finally:
        await connection.close()
        await files.settle()


async def at_rest(server: FileServer, store: WatchedStore) -> None:
    """Asserts that soon nothing is under way at the server."""
    await eventually(lambda: not server.work.active)
    await eventually(lambda: not server_stream_ids(server))
    await eventually(lambda: not store.readers and not store.writers)
    assert not server.data.uploads._newest


def check_story(events: Sequence[TransferEvent], total: int | None, size: int, *, resumed_from: int = 0) -> Completed:
    """Asserts that these are the events of one attempt that went well, in their order."""
    started, *progress, completed = events
    assert isinstance(started, Started)
    assert (started.total, started.resumed_from) == (total, resumed_from)
    assert isinstance(completed, Completed)
    assert completed.info.size == size
    reached = resumed_from
    for event in progress:
        assert isinstance(event, Progress)
        assert event.total == total
        assert reached <= event.transferred <= size
        reached = event.transferred
    assert reached == size
    return completed


def parts(folder: Path) -> list[str]:
    """The resumable parts, and whatever else a download has beside the files of this folder."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))


class Recorder:
    """An observer that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.error: Exception | None = None
        self.is_completed = False
        self._wake = asyncio.Event()

    def on_next(self, item: Any) -> None:
        self.items.append(item)
        self._wake.set()

    def on_error(self, error: Exception) -> None:
        self.error = error
        self._wake.set()

    def on_completed(self) -> None:
        self.is_completed = True
        self._wake.set()

    async def ended(self, seconds: float = 10.0) -> None:
        """Waits for the end, whichever."""
        async with asyncio.timeout(seconds):
            while self.error is None and not self.is_completed:
                self._wake.clear()
                await self._wake.wait()

    async def got(self, kind: type[Any], seconds: float = 10.0) -> None:
        """Waits for an item of this class."""
        async with asyncio.timeout(seconds):
            while not any(isinstance(item, kind) for item in self.items):
                assert self.error is None, repr(self.error)
                self._wake.clear()
                await self._wake.wait()
