"""A server that runs out of descriptors logs it, serves the connections that it has, and recovers."""

import asyncio
import os
import resource
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import reactivex
from reactivex import operators as ops

from rx_client import FileClient
from rx_client.operators import retry_backoff
from server import DirectoryStore
from server.stores.queueing import QueuedStore
from shared.errors import ServerFull
from tests.security.support import (
    channel,
    chunks,
    needs_proc,
    receive,
    server_process,
    serves,
    setup_frame,
    stat,
)
from tests.stores.support import listed
from tests.support import ERROR, PAYLOAD, RawPeer, eventually, raw_peer

FEW = 64


async def connected(uri: str, stack: AsyncExitStack, count: int) -> list[RawPeer]:
    return [await stack.enter_async_context(raw_peer(uri, set_up=False)) for _ in range(count)]


@needs_proc
async def test_hundreds_of_pending_connections_and_few_descriptors(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}").write_bytes(os.urandom(1) * 600_000)
    async with server_process("--store", str(tmp_path), max_fds=FEW) as server, AsyncExitStack() as stack:
        async with FileClient.connect(server.uri) as files:
            assert len(await files.download("1")) == 600_000
            await connected(server.uri, stack, 300)

            # More requests at once than files may be open.
            sizes = await reactivex.range(100).pipe(
                ops.map(lambda number: files.download_chunks(str(number)).pipe(ops.map(lambda chunk: len(chunk.data)))),
                ops.map(lambda sizes: sizes.pipe(ops.sum(), retry_backoff(100, base=0.05, cap=0.2))),
                ops.merge_all(),
                ops.to_list(),
            )
            assert sizes == [600_000] * 100
            await files.upload("whole", b"x" * 1000, deadline=10)
            assert server.fds < FEW
        await serves(server.uri)
        await stack.aclose()
        await serves(server.uri)
        status, log = await server.stop()
    assert status == 0
    assert log.count("\n") == 1, log
    assert "pending ones make room" in log


@needs_proc
async def test_clients_that_have_all_descriptors(tmp_path: Path) -> None:
    """No connection waits in the backlog for ever; when one ends, another is accepted."""
    async with server_process("--store", str(tmp_path), max_fds=FEW) as server, AsyncExitStack() as stack:
        known: list[RawPeer] = []
        while len(known) < FEW + 10:
            (peer,) = await connected(server.uri, stack, 1)
            try:
                await peer.send(setup_frame(), stat(1, b"missing"))
                got = await peer.receive()
            except ConnectionError:
                break
            if got is None:
                break
            assert got.stream_id == 1
            known.append(peer)
        assert 10 < len(known) < FEW
        for _ in range(20):  # each is closed
            (peer,) = await connected(server.uri, stack, 1)
            try:
                assert await peer.receive() is None
            except ConnectionError:
                pass
        await known[0].send(stat(3, b"missing"))
        assert "missing" in (await receive(known[0])).error[1]

        # A file can't be opened, and the error has no internal text.
        await known[0].send(chunks(5, b"missing"), channel(7, b"new", b'{"upload_id": "u"}'))
        for _ in range(2):
            while (answer := await receive(known[0])).kind not in (ERROR, PAYLOAD):
                pass
            if answer.kind == ERROR:
                assert answer.error[1].split(":")[0] in ("not_found", "server_full")

        for peer in known[:10]:
            await peer.close()
        await eventually(lambda: server.fds < FEW - 8)
        await serves(server.uri)
        status, log = await server.stop()
    assert status == 0
    assert log.count("\n") == 1, log
    assert "connections can't be accepted" in log


@needs_proc
async def test_connections_that_have_many_files_open_leave_some_to_others(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(2_000_000))
    async with server_process("--store", str(tmp_path), max_fds=256) as server, AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(raw_peer(server.uri)) for _ in range(2)]
        for peer in peers:
            await peer.send(*(chunks(id_, b"a") for id_ in range(1, 160, 2)))
        answers = [await receive(peer) for peer in peers for _ in range(80)]
        refused = [answer.error[1].partition(":")[0] for answer in answers if answer.kind == ERROR]
        assert 0 < len(refused) < 80
        assert set(refused) == {"server_full"}
        await serves(server.uri)
        async with FileClient.connect(server.uri) as files:
            await files.upload_from("b", b"x" * 1000)
            sizes = [files.download_chunks("b").pipe(ops.map(lambda chunk: len(chunk.data))) for _ in range(8)]
            assert await reactivex.merge(*sizes).pipe(ops.sum()) == 8000


async def test_a_connection_counts_only_the_files_that_are_open(tmp_path: Path) -> None:
    folder = DirectoryStore(tmp_path)
    await folder.start()
    store = QueuedStore(folder)
    await store.put("a", b"x")
    reader = await store.open("a")
    upload = await store.begin("u", "b", size=None, algorithm=None)
    assert len(store.opened) == 2
    await reader.close()
    await upload.commit(None)
    del reader, upload
    assert len(store.opened) == 0
    await folder.close()


async def test_a_folder_opens_half_of_the_files_that_the_process_may(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store = DirectoryStore(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        await store.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await store.put("a", b"x")
    readers = [await store.open("a") for _ in range(40)]

    async def begin(number: int) -> object:
        return await store.begin(f"u{number}", "b", size=None, algorithm="xxh3-128")

    begun = await asyncio.gather(*map(begin, range(20)), return_exceptions=True)
    assert [isinstance(upload, ServerFull) for upload in begun] == [False] * 10 + [True] * 10
    with pytest.raises(ServerFull, match="too many files are open"):
        await store.open("a")
    with pytest.raises(ServerFull):
        await store.put("c", b"x")
    assert len(await listed(store)) == 1
    await readers.pop().close()
    await store.put("c", b"x")
    await store.close()


async def test_out_of_descriptors_is_server_full(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    store = DirectoryStore(tmp_path)
    await store.start()
    await store.put("a", b"x")
    upload = await store.begin("u", "b", size=None, algorithm="xxh3-128")
    await upload.append([b"content"])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        for attempt in (store.open("a"), store.put("c", b"x"), store.list(), upload.commit(None)):
            with pytest.raises(ServerFull, match="too many files are open"):
                await attempt
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    upload = await store.begin("u", "b", size=None, algorithm="xxh3-128")
    assert upload.received == 7
    await upload.commit(None)
    assert {info.name for info in await listed(store)} == {"a", "b"}
    await store.close()


def test_the_process_asks_for_all_the_descriptors_that_it_may_have() -> None:
    script = """
import resource, shared.files.disk
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
assert shared.files.disk.max_descriptors() == hard // 2
shared.files.disk.raise_max_descriptors()
assert shared.files.disk.max_descriptors() == hard
"""
    subprocess.run([sys.executable, "-c", script], check=True)
