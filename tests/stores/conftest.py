"""The stores under test, started and closed."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from server.stores.base import Store
from server.stores.directory.store import DirectoryStore
from server.stores.objects import ObjectStore

from .objects.service import BUCKET, CREDENTIALS, new_prefix, shared_service
from .support import OBJECTS, STORES

OpenStore = Callable[..., AbstractAsyncContextManager[Store]]


@pytest.fixture(scope="session")
def object_service(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """The endpoint of an object store that all tests share."""
    base = tmp_path_factory.getbasetemp()
    with shared_service((base if worker_id == "master" else base.parent) / "object-store") as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(object_service: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same, with the environment that its clients need."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return object_service


@pytest.fixture(params=[*STORES, OBJECTS])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Opens a store of each kind; `limit` is the largest file that it takes."""
    make = STORES.get(request.param)
    if make is None:
        endpoint, prefix = request.getfixturevalue("endpoint"), new_prefix()

        def make(_: Path, limit: int | None) -> Store:
            return ObjectStore(BUCKET, prefix, endpoint=endpoint, max_file_bytes=limit)

    @asynccontextmanager
    async def opened(limit: int | None = None) -> AsyncIterator[Store]:
        store = make(tmp_path / "files", limit)
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
