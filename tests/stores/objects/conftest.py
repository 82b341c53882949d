"""Servers on one bucket, and a proxy before its object store."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from server import ChatData, FileServer, serve
from server.stores.objects import ObjectStore

from .service import BUCKET, new_prefix

OpenServer = Callable[..., AbstractAsyncContextManager[FileServer]]


@pytest.fixture
def prefix() -> str:
    """That of the test's objects."""
    return new_prefix()


@pytest.fixture
def open_server(endpoint: str, prefix: str) -> OpenServer:
    """Starts a server on the test's objects; each is as another process would be."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[FileServer]:
        async with serve(data=ChatData(ObjectStore(BUCKET, prefix, endpoint=endpoint, **options))) as server:
            yield server

    return opened


@pytest.fixture
async def store(endpoint: str, prefix: str) -> AsyncIterator[ObjectStore]:
    """A store of the test's objects."""
    store = ObjectStore(BUCKET, prefix, endpoint=endpoint)
    await store.start()
    yield store
    await store.close()
