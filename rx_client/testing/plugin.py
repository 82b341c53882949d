"""A pytest plugin, loaded where this project is installed: fixtures with a real server, empty and in memory.

`file_server` is for tests of all kinds, and `file_client` for asynchronous ones, of pytest-asyncio in either mode or of
another plugin::

    async def test_a_report_is_published(file_client: FileClient) -> None:
        await publish_report(file_client)  # the application's code
        assert await file_client.download("report.csv") == b"..."

Nothing of this project but `rx_client` itself is imported before a fixture needs it: see the package.
"""

import asyncio
import importlib
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, cast

import pytest

from .._siblings import check_sibling

if TYPE_CHECKING:
    from .. import FileClient

__all__ = ["file_client", "file_server"]


class RunningServer(Protocol):
    """What a test mostly needs of a `server.FileServer`."""

    @property
    def uri(self) -> str:
        """Where it listens."""
        ...


def _async_fixture() -> Callable[[Callable[..., Any]], Any]:
    """pytest-asyncio in its strict mode has a decorator of its own."""
    try:
        module = importlib.import_module("pytest_asyncio")
    except ImportError:
        return pytest.fixture
    return cast("Callable[[Callable[..., Any]], Any]", module.fixture)


@pytest.fixture
def file_server() -> Generator[RunningServer, None, None]:
    """A `server.FileServer` that listens on 127.0.0.1: its `uri` is where, `data.files` has its files by their names.

    Its event loop runs in a thread, so that tests without one, and programs that a test starts, can use it, too.
    """
    started: Future[tuple[RunningServer, Callable[[], object]]] = Future()
    thread = Thread(target=lambda: asyncio.run(_serve(started)), name="file_server", daemon=True)
    thread.start()
    server, stop = started.result()
    yield server
    stop()
    thread.join()


@_async_fixture()
async def file_client(file_server: RunningServer) -> "AsyncGenerator[FileClient, None]":
    """A `FileClient` that is connected to `file_server`, in the test's event loop."""
    from .. import FileClient  # noqa: PLC0415 - see the module's docstring

    async with FileClient.connect(file_server.uri) as files:
        yield files


async def _serve(started: "Future[tuple[RunningServer, Callable[[], object]]]") -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    try:
        check_sibling("server")
        async with importlib.import_module("server").serve() as server:
            started.set_result((server, lambda: loop.call_soon_threadsafe(stopped.set)))
            await stopped.wait()
            await server.close(grace_seconds=0)  # what a test has left under way isn't waited for
    except Exception as error:
        if started.done():
            raise
        started.set_exception(error)
