"""The stores under test, started and closed."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from server.stores.base import Store
from server.stores.directory.store import DirectoryStore

from .support import STORES

OpenStore = Callable[..., AbstractAsyncContextManager[Store]]


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Opens a store of each kind; `limit` is the largest file that it takes."""

    @asynccontextmanager
    async def opened(limit: int | None = None) -> AsyncIterator[Store]:
        store = STORES[request.param](tmp_path / "files", limit)
        await store.start()
        try:
            yield store
        finally:
            await store.close()

    return opened


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncGenerator[Store, None]:
    async with open_store() as opened:
        yield opened


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncGenerator[DirectoryStore, None]:
    """A store in `tmp_path / "files"`."""
    store = DirectoryStore(tmp_path / "files")
    await store.start()
    yield store
    await store.close()
