"""The server shuts down in order, and logs what an operator needs: no more, and no secret."""

import asyncio
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from reactivex import operators as ops

from rx_client import Completed, ConnectOptions, FileClient
from server import ChatData, DirectoryStore, serve
from shared.errors import ConnectionFailed, NotFound
from shared.files import disk
from tests.security.support import (
    MIB,
    channel,
    chunks,
    download,
    receive,
    reset,
    server_process,
    stat,
    upload,
    user_line,
    users,
    warnings,
)
from tests.support import (
    CANCEL,
    FOLLOWS,
    NEXT,
    PATIENCE,
    PAYLOAD,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawPeer,
    eventually,
    frame,
    name_item,
    raw_peer,
    request,
    route_item,
    setup,
)

PEER = r"127\.0\.0\.1:\d+"
SECONDS = r"\d+\.\d{3} s"


def infos(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]


async def test_queued_frames_are_sent_before_the_end() -> None:
    """The operation ends when its last frame is queued; the peer reads the frames after the close has begun."""
    content = os.urandom(3 * 256 * 1024)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with serve(data=ChatData({"a": content})) as server:
            host, port = server.uri.removeprefix("tcp://").split(":")
            sock.connect((host, int(port)))
            reader, writer = await asyncio.open_connection(sock=sock, limit=2048)
            peer = RawPeer(reader, writer)
            await peer.send(setup(), chunks(1, b"a", n=10))
            await eventually(lambda: server.work.completed)
            end = asyncio.create_task(server.close(grace_seconds=5))
            got = [await peer.receive() for _ in range(3)]
            assert b"".join(each.data for each in got if each is not None) == content
            await peer.close()
            await end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_transfers_under_way_are_completed_before_the_end(number: signal.Signals, tmp_path: Path) -> None:
    """The first bytes have arrived at the signal; the rest still arrives, and no new connection is accepted."""
    async with server_process("--store", str(tmp_path / "store"), "--log-level", "info") as server:
        async with FileClient.connect(server.uri) as files:
            content = bytes(range(256)) * (32 * MIB // 256)
            await files.upload_from("a", content)
            events: list[object] = []
            done = asyncio.get_running_loop().create_future()
            files.download_to("a", tmp_path / "a").subscribe(
                events.append, done.set_exception, lambda: done.set_result(0)
            )
            await eventually(lambda: len(events) > 1)
            server.process.send_signal(number)
            async with asyncio.timeout(PATIENCE):
                await done
                _, log = await server.process.communicate()
            assert isinstance(events[-1], Completed)
            assert (tmp_path / "a").read_bytes() == content
        assert server.process.returncode == 0
        assert f"file.download 'a': {len(content)} bytes" in log.decode()
        with pytest.raises(ConnectionFailed):
            async with FileClient.connect(server.uri):
                pass


async def test_operations_that_do_not_end_are_cancelled(tmp_path: Path) -> None:
    """Peers that don't read, idle uploads, streams without credit, pending connections: exit 0, in time, no log."""
    async with server_process("--store", str(tmp_path)) as server:
        async with FileClient.connect(server.uri) as files:
            await files.upload("a", bytes(16 * MIB))
        async with raw_peer(server.uri) as busy, raw_peer(server.uri, set_up=False), raw_peer(server.uri) as half:
            await busy.send(download(1, b"a"), chunks(3, b"a", 1), channel(5, b"b", b'{"upload_id": "u"}'))
            await half.send(upload(1, b"c", b"x" * 100_000, flags=FOLLOWS))
            await receive(busy)
            assert await server.stop() == (0, "")


MORE = frame(1, PAYLOAD, FOLLOWS | NEXT, b"x" * 900_000)


HALVES = pytest.mark.parametrize(
    "sent",
    [
        pytest.param([upload(1, b"a", b"x" * 900_000, flags=FOLLOWS), *[MORE] * 30], id="fragments"),
        pytest.param([upload(id_, b"%d" % id_, b"x" * 900_000) for id_ in range(1, 201, 2)], id="large frames"),
    ],
)


@HALVES
async def test_an_incomplete_request_is_dropped_at_the_end(sent: list[bytes], tmp_path: Path) -> None:
    """An incomplete request can't be resumed. More of it arrives while the server is closed."""
    parts = tmp_path / ".rxfiles" / "parts"
    async with server_process("--store", str(tmp_path)) as server, raw_peer(server.uri) as peer:
        peer.writer.write(b"".join(sent))
        await eventually(lambda: list(parts.iterdir()))
        assert await server.stop() == (0, "")
    assert not list(parts.iterdir())


@HALVES
async def test_an_incomplete_request_that_is_being_written_is_dropped_at_the_end(
    sent: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is so slow that the connection is closed in the middle of the write."""
    write_at, is_writing, may_write = disk.write_at, threading.Event(), threading.Event()

    def slow(fd: int, views: Sequence[memoryview], offset: int) -> int:
        is_writing.set()
        assert may_write.wait(10)
        return write_at(fd, views, offset)

    monkeypatch.setattr(disk, "write_at", slow)
    async with serve(data=ChatData(DirectoryStore(tmp_path))) as server, raw_peer(server.uri) as peer:
        peer.writer.write(b"".join(sent))
        await eventually(is_writing.is_set)
        end = asyncio.create_task(server.close(grace_seconds=0.01))
        await eventually(lambda: not server.connections)
        for _ in range(50):
            await asyncio.sleep(0)  # enough for a close that doesn't wait for the write
        may_write.set()
        await end
    assert not list((tmp_path / ".rxfiles" / "parts").iterdir())


async def test_the_durable_part_of_an_upload_survives_the_end(tmp_path: Path) -> None:
    content = bytes(range(256)) * (4 * MIB // 256)
    async with server_process("--store", str(tmp_path)) as server, FileClient.connect(server.uri) as files:
        held = asyncio.Event()

        async def source(offset: int) -> AsyncIterator[bytes]:
            for at in range(offset, len(content) // 2, MIB // 2):
                yield content[at : at + MIB // 2]
            await held.wait()

        committed: list[object] = []
        files.upload_from("a", source, upload_id="u", size=len(content)).subscribe(committed.append, lambda _: None)
        await eventually(lambda: getattr(committed[-1], "transferred", 0) == len(content) // 2 if committed else False)
        assert await server.stop() == (0, "")
        held.set()
    async with server_process("--store", str(tmp_path)) as server, FileClient.connect(server.uri) as files:
        events = await files.upload_from("a", content, upload_id="u", size=len(content)).pipe(ops.to_list())
        assert events[0].resumed_from == len(content) // 2  # type: ignore[union-attr]
        assert await files.download("a") == content


# One line for each connection and transfer


async def test_a_line_for_each_connection_and_each_transfer(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    content = b"the content of a file" * 30_000
    async with serve() as server:
        async with FileClient.connect(server.uri) as files:
            await files.upload("whole", content)
            await files.download("whole")
            await files.upload_from("chunks", content, upload_id="an-id")
            await files.download_to("chunks", tmp_path / "there")
            await files.stat("whole")
            await files.list_files().pipe(ops.to_list())
            await files.delete("whole")
        await eventually(lambda: not server.connections)
    size = len(content)
    expected = [
        rf"accepted a connection from {PEER}",
        rf"{PEER} file\.upload 'whole': {size} bytes in {SECONDS}, completed",
        rf"{PEER} file\.download 'whole': {size} bytes in {SECONDS}, completed",
        rf"{PEER} file\.upload 'chunks' an-id: {size} bytes in {SECONDS}, completed",
        rf"{PEER} file\.download 'chunks': {size} bytes in {SECONDS}, completed",
        rf"{PEER} file\.stat 'whole': 0 bytes in {SECONDS}, completed",
        rf"{PEER} files: \d+ bytes in {SECONDS}, completed",
        rf"{PEER} file\.delete 'whole': 0 bytes in {SECONDS}, completed",
        rf"connection from {PEER}: 7 requests in {SECONDS}",
    ]
    lines = infos(caplog)
    for pattern in expected:
        assert len([line for line in lines if re.fullmatch(pattern, line)]) == 1, (pattern, lines)
    assert len(lines) == len(expected), lines
    assert "the content" not in caplog.text


async def test_transfers_name_their_user(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    async with serve(users=users(user_line("alice", "secret"))) as server:
        async with FileClient.connect(server.uri, auth=("alice", "secret")) as files:
            await files.upload("whole", b"x")
            await files.upload_from("chunks", b"x", upload_id="an-id")
            await files.download_to("chunks", tmp_path / "there")
        await eventually(lambda: not server.connections)
    lines = [line for line in infos(caplog) if line.endswith("completed")]
    assert len(lines) == 3
    assert all(re.match(rf"alice@{PEER} file\.", line) for line in lines), lines


async def test_cancels_and_lost_connections_are_logged_as_outcomes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serve(data=ChatData({"a": bytes(16 * MIB)})) as server, raw_peer(server.uri) as peer:
        await peer.send(chunks(1, b"a", 1), channel(3, b"b", b'{"upload_id": "u"}'), download(5, b"a"))
        while (await receive(peer)).kind != PAYLOAD:
            pass
        await peer.send(frame(1, CANCEL))
        await eventually(lambda: server.work.cancelled == 1)
        reset(peer)
        await eventually(lambda: not server.connections)
        await eventually(lambda: not server.work.active)
    lines = infos(caplog)
    assert len([line for line in lines if line.endswith(", cancelled")]) == 3, lines
    assert len([line for line in lines if line.startswith("connection from ")]) == 1


async def test_the_reason_of_a_close_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serve() as server, raw_peer(server.uri) as peer:
        await peer.send(bytes(3))
        await receive(peer)
        await peer.close()
        await eventually(lambda: not server.connections)
    [line] = [line for line in infos(caplog) if line.startswith("connection from ")]
    assert re.fullmatch(rf"connection from {PEER}: 0 requests in {SECONDS}; closed: invalid_frame: .*", line)


async def test_a_name_can_not_break_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """A control character is refused in a name, but the line separator of Unicode isn't one."""
    caplog.set_level(logging.INFO)
    names = ["a\u2028b", "a\u0085b", "a'b\"", "\u202eb", "\x1b[31m", "a\nINFO forged"]
    async with serve() as server, raw_peer(server.uri) as peer:
        for stream_id, name in enumerate(names):
            await peer.send(stat(2 * stream_id + 1, name.encode()))
            await receive(peer)
        await peer.send(request(101, REQUEST_STREAM, route_item("files\nforged"), n=1))
        await receive(peer)
        await peer.send(request(103, REQUEST_RESPONSE, route_item("file.stat\nforged\x1b[2J") + name_item(b"a")))
        await receive(peer)
    for record in caplog.records:
        assert record.getMessage().isprintable(), record


# The default level


async def test_normal_events_are_not_logged_at_the_default_level(tmp_path: Path) -> None:
    """Cancels, disconnects, refusals and wrong requests; only what needs an operator is a warning."""
    async with server_process("--store", str(tmp_path)) as server:
        async with FileClient.connect(server.uri, options=ConnectOptions()) as files:
            await files.upload("a", bytes(8 * MIB))
            for source in (files.download("a"), files.download_chunks("a"), files.list_files(), files.stat("a")):
                source.subscribe(lambda _: None, lambda _: None).dispose()
            disposable = files.download_to("a", tmp_path / "x").subscribe(lambda _: None)
            await asyncio.sleep(0.02)
            disposable.dispose()
            disposable = files.upload_from("b", (bytes(100_000) for _ in range(100))).subscribe(lambda _: None)
            await asyncio.sleep(0.02)
            disposable.dispose()
            with pytest.raises(NotFound):
                await files.download("missing")
            await files.upload("c", bytes(8 * MIB)).pipe(ops.timeout(0.001), ops.catch(lambda *_: files.stat("a")))
        for sent in (stat(1, b"a"), download(1, b"a"), channel(1, b"d", b'{"upload_id": "u"}'), bytes(3), b"GET /"):
            for is_set_up in (True, False):
                for is_reset in (True, False):
                    async with raw_peer(server.uri, set_up=is_set_up) as peer:
                        await peer.send(sent)
                        await asyncio.sleep(0.01)
                        if is_reset:
                            reset(peer)
        assert await server.stop() == (0, "")


async def test_normal_events_are_not_logged_by_a_client(caplog: pytest.LogCaptureFixture) -> None:
    async with server_process() as server, FileClient.connect(server.uri) as files:
        await files.upload("a", bytes(8 * MIB))
        files.download("a").subscribe(lambda _: None).dispose()
        pending = asyncio.ensure_future(files.download("a"))
        await asyncio.sleep(0.002)
        server.process.kill()
        await asyncio.gather(pending, return_exceptions=True)
        await eventually(lambda: files._connector.current() is None)
    # asyncio's warning about the killed child isn't the client's.
    assert [line for line in warnings(caplog) if not line.startswith("Unknown child process")] == []
