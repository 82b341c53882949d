"""The ways to make a client, and its end: with a block, without one, from an rsocket."""

import asyncio
import sys
from collections.abc import AsyncGenerator

import pytest
from reactivex import operators as ops

from rx_client import ClientClosed, Connected, ConnectionFailed, ConnectOptions, FileClient, WrongLoop
from server import ChatData, FileServer, serve
from tests.support import PATIENCE, eventually, server_stream_ids
from tests.transfers.helpers import Recorder

LARGE = bytes(8_000_000)


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData({"a": b"content", "large": LARGE})) as server:
        yield server


async def test_a_client_is_opened_and_closed(server: FileServer) -> None:
    files = await FileClient.open(server.uri)
    states, download = Recorder(), Recorder()
    files.connection_state().subscribe(states)
    assert await files.download("a") == b"content"
    files.download_chunks("large", window=1).pipe(ops.do_action(lambda chunk: chunk.retain())).subscribe(download)
    await eventually(lambda: download.items)
    await files.close()
    assert isinstance(download.error, ClientClosed)
    assert states.is_completed
    with pytest.raises(ClientClosed):
        await files.download("a")
    await files.close()
    await eventually(lambda: not server_stream_ids(server) and not server.work.active)


async def test_what_can_not_be_opened_fails_as_connect_does() -> None:
    options = ConnectOptions(connect_timeout=2.0)
    with pytest.raises(ConnectionFailed):
        await FileClient.open("tcp://127.0.0.1:1", options=options)
    with pytest.raises(ValueError, match="form"):
        await FileClient.open("http://example.org")


async def test_a_client_is_closed_from_another_loop(server: FileServer) -> None:
    files = await FileClient.open(server.uri)
    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(lambda: asyncio.run(files.close()))
    with pytest.raises(ClientClosed):
        await files.download("a")


async def test_a_client_whose_loop_has_stopped_or_is_closed(server: FileServer) -> None:
    def use() -> None:
        loop = asyncio.new_event_loop()
        files = loop.run_until_complete(FileClient.open(server.uri))
        with pytest.raises(WrongLoop, match="isn't running"):
            asyncio.run(files.close())
        loop.run_until_complete(files.close())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        asyncio.run(files.close())

    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(use)


async def test_an_rsocket_that_was_given_stays_as_it_is(server: FileServer) -> None:
    async with FileClient.connect(server.uri) as files:
        rsocket = await files.requests.connector.connect()
        async with asyncio.timeout(PATIENCE):
            given = FileClient(rsocket)
            assert await given.download("a") == b"content"
            await given.close()
        assert await given.download("a") == b"content"
        assert await files.connection_state().pipe(ops.first()) == Connected()


@pytest.mark.parametrize("given", ["tcp://localhost", ["tcp://localhost"], b"tcp://localhost"])
async def test_a_uri_is_no_rsocket(given: object) -> None:
    with pytest.raises(TypeError, match=r"FileClient\.connect\(uri\).*FileClient\.open\(uri\)"):
        FileClient(given)  # type: ignore[arg-type]


_SCRIPT = """
import asyncio, sys
from rx_client import FileClient

async def main():
    files = await FileClient.open(sys.argv[1])
    files.upload_from("new", "/dev/zero").subscribe(on_error=lambda _: None)
    print(await files.download("a"))

asyncio.run(main())
"""


async def test_a_script_that_closes_nothing_ends_all_the_same(server: FileServer) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _SCRIPT, server.uri), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE):
        out, error = await process.communicate()
    assert (process.returncode, out, error) == (0, b"b'content'\n", b"")
    await eventually(lambda: not server.work.active)
