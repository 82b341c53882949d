"""A server of either store, and a client of it, that are at rest again after each test."""

import math
import resource
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from rx_client import FileClient
from server import FileServer
from shared.protocol import adaptive
from tests.transfers.helpers import WatchedStore, connected, make_store, serving


@pytest.fixture(params=["memory", "directory", "lane"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> WatchedStore:
    return make_store(request.param, tmp_path)


@pytest.fixture
async def server(store: WatchedStore) -> AsyncGenerator[FileServer, None]:
    async with serving(store) as server:
        yield server


@pytest.fixture
async def files(server: FileServer) -> AsyncGenerator[FileClient, None]:
    async with connected(server.uri) as files:
        yield files


@pytest.fixture
def steady_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adaptive windows stay as they begin: on a busy machine, what comes late may look like a long line."""
    monkeypatch.setattr(adaptive, "_LEAST_WAIT_SECONDS", math.inf)


@pytest.fixture
def small_files() -> Callable[[int], AbstractContextManager[None]]:
    """Makes this process's disk full for a while: no file may get longer than so many bytes."""

    @contextmanager
    def limit(nbytes: int) -> Generator[None, None, None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
