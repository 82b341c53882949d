"""The statistics of a server: one snapshot, for clients and for Prometheus."""

import asyncio
from collections.abc import AsyncGenerator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from reactivex import operators as ops

from rx_client import FileClient, NotFound, PermissionDenied, ServerStats
from rx_client.operators import to_async_iter
from server import ChatData, DirectoryStore, serve
from server.metrics import serve_metrics
from shared.aio import run_blocking
from shared.errors import InvalidRequest
from tests.security.support import user_line, users
from tests.support import (
    INVALID,
    PATIENCE,
    REQUEST_STREAM,
    RawFrame,
    eventually,
    raw_peer,
    request,
    route_item,
    transfer_item,
)


async def stats_of(files: FileClient) -> ServerStats:
    return await files.server_stats().pipe(ops.take(1))


def counts_of(stats: ServerStats) -> dict[str, tuple[int, int, int, int]]:
    """Active, completed, failed and cancelled requests by route and model."""
    return {
        f"{each.route} {each.model}".strip(): (each.active, each.completed, each.failed, each.cancelled)
        for each in stats.requests
    }


@pytest.mark.parametrize("is_folder", [False, True])
async def test_a_snapshot_has_all_that_was_done(is_folder: bool, tmp_path: Path) -> None:
    data = ChatData(DirectoryStore(tmp_path)) if is_folder else ChatData()
    async with serve(data=data) as server, FileClient.connect(server.uri) as files:
        await files.upload("a", b"12345")
        await files.upload_from("b", bytes(10_000))
        await files.download("a")
        await files.download_to("b", tmp_path.parent / f"{tmp_path.name} copy")
        with pytest.raises(NotFound):
            await files.stat("none")
        await files.list_files()
        upload = await server.data.store.begin("unfinished", "d", size=None, algorithm=None)
        await upload.append([b"x"])

        stats = await stats_of(files)
        assert counts_of(stats) == {
            "file.upload request-response": (0, 1, 0, 0),
            "file.upload request-channel": (0, 1, 0, 0),
            "file.download request-response": (0, 1, 0, 0),
            "file.download request-stream": (0, 1, 0, 0),
            "file.stat request-response": (0, 0, 1, 0),
            "files request-stream": (0, 1, 0, 0),
            "server.stats request-stream": (1, 0, 0, 0),
        }
        assert stats.errors == {"not_found": 1}
        assert stats.received_bytes == 10_005
        assert stats.sent_bytes == 10_005 + len("ab")
        assert stats.connections == 1
        assert stats.unfinished_uploads == 1
        assert stats.seconds > 0
        assert stats.transfers == []
        await eventually(lambda: not server.work.active)
        assert counts_of(await stats_of(files))["server.stats request-stream"] == (1, 0, 0, 1)
        await upload.abort()


async def test_transfers_under_way_are_shown_with_their_demand() -> None:
    content = bytes(1_000_000)
    async with serve(data=ChatData({"a": content})) as server, FileClient.connect(server.uri) as files:

        async def source() -> AsyncGenerator[bytes, None]:
            yield b"123"
            await asyncio.Event().wait()

        uploading = files.upload_from("b", source()).subscribe()
        async with files.download_chunks("a", window=2).pipe(to_async_iter()) as chunks:
            await anext(chunks)
            await eventually(lambda: server.work.received_bytes or len(server.work.transfers) == 2)

            stats = await stats_of(files)
            while {each.route: each.moved_bytes for each in stats.transfers}.get("file.upload") != 3:
                stats = await stats_of(files)
            shown = {each.route: each for each in stats.transfers}
            assert shown["file.download"].name == "a"
            assert shown["file.download"].demand == 0
            assert shown["file.download"].moved_bytes == 2 * 256 * 1024
            assert shown["file.upload"].name == "b"
            assert shown["file.upload"].demand > 0
            assert shown["file.upload"].peer
            assert stats.received_bytes == 3
            assert stats.sent_bytes >= 2 * 256 * 1024  # and the answers before
        uploading.dispose()
        await eventually(lambda: not server.work.transfers)


async def test_snapshots_come_until_they_are_not_wanted() -> None:
    async with serve() as server, FileClient.connect(server.uri) as files:
        three = await files.server_stats(every=0.1).pipe(ops.take(3), ops.to_list())
        assert sorted(three, key=lambda stats: stats.seconds) == three
        await eventually(lambda: not server.work.active)
        assert server.work.idle.is_set()
        with pytest.raises(ValueError, match="every"):
            files.server_stats(every=0)


async def test_statistics_need_a_right_of_their_own() -> None:
    lines = [user_line("alice", "secret", "rwd@"), user_line("eve", "secret", "s@x"), user_line("ops", "secret", "s@")]
    async with serve(users=users(*lines)) as server:
        for name in ("alice", "eve"):
            async with FileClient.connect(server.uri, auth=(name, "secret")) as files:
                with pytest.raises(PermissionDenied, match="monitor"):
                    await stats_of(files)
        async with FileClient.connect(server.uri, auth=("ops", "secret")) as files:
            assert (await stats_of(files)).errors == {"permission_denied": 2}


@pytest.mark.parametrize("every", [0, -1, 1e30, "1", True])
async def test_a_request_that_makes_no_sense_is_refused(every: object) -> None:
    async with serve() as server, raw_peer(server.uri) as peer:
        await peer.send(request(1, REQUEST_STREAM, route_item("server.stats") + transfer_item(every=every)))
        answer: RawFrame = await peer.receive()
        assert answer.error[0] == INVALID


async def test_routes_that_peers_make_up_are_counted_together() -> None:
    async with serve() as server, raw_peer(server.uri) as peer:
        for number in range(3):
            await peer.send(request(2 * number + 1, REQUEST_STREAM, route_item(f"made-up-{number}")))
            await peer.receive()
        await eventually(lambda: server.work.failed == 3)
        assert set(server.work.routes) == {"other"}
        assert server.work.errors == {"unknown_route": 3}


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"requests": [1]}', b'{"requests": 5}'])
def test_statistics_that_make_no_sense_are_an_error(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        ServerStats.from_bytes(data)
    assert ServerStats.from_bytes(b'{"later": 1, "connections": 2}') == ServerStats(
        connections=2, requests=[], transfers=[]
    )


async def test_prometheus_gets_counts_without_names() -> None:
    allowed = users(user_line("alice", "secret"))
    async with (
        serve(users=allowed) as server,
        FileClient.connect(server.uri, auth=("alice", "secret")) as files,
        serve_metrics(server, "127.0.0.1", 0) as port,
    ):
        await files.upload("private name", b"12345")
        with pytest.raises(NotFound):
            await files.download("private name 2")
        await eventually(lambda: not server.work.active)
        with pytest.raises(OSError, match="in use"):
            async with serve_metrics(server, "127.0.0.1", port):
                pass

        text = await run_blocking(None, _scrape, port)
        assert 'rxfiles_requests_total{model="request-response",outcome="completed",route="file.upload"} 1.0' in text
        assert 'rxfiles_requests_total{model="request-response",outcome="failed",route="file.download"} 1.0' in text
        assert 'rxfiles_errors_total{code="not_found"} 1.0' in text
        assert 'rxfiles_content_bytes_total{direction="received"} 5.0' in text
        assert "rxfiles_connections 1.0" in text
        assert "rxfiles_unfinished_uploads 0.0" in text
        assert "private" not in text
        assert "alice" not in text


def _scrape(port: int) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
