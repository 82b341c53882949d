"""A file of a served folder that is open to be read."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, Protocol, TypeVar

from shared.protocol.wire import FileInfo

from ..base import OpenFile, Reader
from .folder import Folder, is_same, read_same

__all__ = ["DirectoryReader"]

P = ParamSpec("P")
T = TypeVar("T")


class OwnerStore(Protocol):
    """What a reader needs of its store."""

    @property
    def executor(self) -> Executor:
        """The threads for the store's files."""
        ...

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a blocking function, called in one of these threads."""
        ...

    def forget_reader(self, reader: "DirectoryReader") -> None:
        """Notes that a reader is closed."""
        ...


class DirectoryReader(Reader):
    """A file's descriptor: it stays with the content that it was opened for."""

    def __init__(self, store: OwnerStore, name: str) -> None:
        self._store = store
        self._name = name
        self._lock = asyncio.Lock()
        self._fd: int | None = None
        self._info: FileInfo | None = None
        self._opened: os.stat_result | None = None

    @property
    def info(self) -> FileInfo:
        assert self._info is not None, "`open` sets it"
        return self._info

    async def read(self, offset: int, length: int) -> bytes:
        async with self._lock:  # the descriptor's number mustn't become another file's while a thread reads
            return await self._store.run(self._read, offset, length)

    def as_file(self) -> OpenFile:
        assert self._fd is not None, "`open` sets it"
        return OpenFile(self._fd, self._store.executor, self._is_same)

    async def close(self) -> None:
        async with self._lock:
            fd, self._fd = self._fd, None
            self._store.forget_reader(self)
            if fd is not None:
                await self._store.run(os.close, fd)

    def open(self, folder: Folder) -> None:
        """Blocks."""
        self._fd, self._opened, self._info = folder.open_file(self._name)

    def _read(self, offset: int, length: int) -> bytes:
        if self._fd is None or self._opened is None:
            raise RuntimeError("the reader is closed")
        return read_same(self._fd, self._opened, length, offset, self._name)

    def _is_same(self) -> bool:
        assert self._fd is not None, "`open` sets it"
        assert self._opened is not None, "`open` sets it"
        return is_same(self._fd, self._opened)
