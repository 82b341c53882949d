"""A server of either store, and a client of it, that are at rest again after each test."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from rx_client import FileClient
from server import FileServer
from tests.transfers.helpers import WatchedStore, connected, make_store, serving


@pytest.fixture(params=["memory", "directory"])
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
