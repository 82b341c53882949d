"""A peer that falls silent, or never ends, in some phase of a request: each ends with a typed error, in time."""

import asyncio
import os
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from reactivex import Observable

from rx_client import Connected, Disconnected, FileClient
from server import ChatData, serve
from shared.errors import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolError,
    Stalled,
    TransferError,
)
from tests.faults import fault_proxy
from tests.security.support import MIB, server_process
from tests.security.test_quiet_peers import (
    METHODS,
    PATIENCE,
    SHORT,
    Ask,
    alive,
    all_are,
    failure,
    failures,
    open_streams,
)
from tests.support import (
    CANCEL,
    COMPLETE,
    FOLLOWS,
    KEEPALIVE,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RESPOND,
    RawFrame,
    RawPeer,
    eventually,
    frame,
    payload,
    raw_server,
    request_n,
    transfer_item,
)

Script = Callable[[RawPeer, RawFrame], Awaitable[None]]

REQUESTS = (REQUEST_RESPONSE, REQUEST_STREAM, REQUEST_CHANNEL)


async def asked(peer: RawPeer) -> RawFrame:
    """The next request."""
    while (got := await peer.receive(PATIENCE)) is None or got.kind not in REQUESTS:
        assert got is not None, "the client left without asking"
    return got


def an_item(stream_id: int, metadata: bytes | None, data: bytes = b"", flags: int = NEXT) -> bytes:
    flag, body = payload(metadata, data)
    return frame(stream_id, PAYLOAD, flag | flags, body)


def replies(*frames: Callable[[int], bytes]) -> Script:
    """Sends these in answer to a request, and nothing more."""

    async def script(peer: RawPeer, request: RawFrame) -> None:
        await peer.send(*(make(request.stream_id) for make in frames))

    return script


def chunk(*, length: int, data: bytes = b"x" * 10, last: bool = False) -> Callable[[int], bytes]:
    """An item of a download of `length` bytes in all."""
    head = {"name": "a", "size": length, "etag": "e", "modified": 0, "digest": None, "offset": 0, "length": length}
    if last:
        head["range_digest"] = "xxh3-128:" + "0" * 32
    return lambda stream_id: an_item(stream_id, transfer_item(**head), data)


def receipt(committed: int, *, window: int | None = None) -> Callable[[int], bytes]:
    """A receipt; `window` is what it announces, if it does."""
    said = {"committed": committed} if window is None else {"committed": committed, "window": window}
    return lambda stream_id: an_item(stream_id, transfer_item(**said))


def credit(count: int) -> Callable[[int], bytes]:
    return lambda stream_id: request_n(stream_id, count)


async def first_half(peer: RawPeer, request: RawFrame) -> None:
    """Half of a frame, and nothing more; not even keepalives can follow it."""
    peer.is_alive = False
    await peer.send(frame(request.stream_id, PAYLOAD, NEXT | COMPLETE, bytes(1000))[:500])


async def confirms_and_never_ends(peer: RawPeer, request: RawFrame) -> None:
    """Receipts for every byte of an upload, and no final one."""
    committed = 0
    await peer.send(receipt(0)(request.stream_id), request_n(request.stream_id, 100))
    while (got := await peer.receive(PATIENCE)) is not None:
        committed += len(got.data)
        await peer.send(receipt(committed)(request.stream_id))
        if got.flags & COMPLETE:
            return


def upload_of_a_path(files: FileClient, folder: Path) -> Observable[Any]:
    (folder / "source").write_bytes(b"x" * 1000)
    return files.upload_from("a", folder / "source", chunk_size=100)


details = transfer_item(name="b", size=1, etag="e", modified=0, digest=None)

PHASES: dict[str, tuple[Ask, Script, type[TransferError]]] = {
    "a whole answer's first fragment": (
        METHODS["download"],
        replies(lambda stream_id: an_item(stream_id, None, b"x" * 100, NEXT | FOLLOWS)),
        Stalled,
    ),
    "half of a frame": (METHODS["download"], first_half, ConnectionLost),
    "a large upload that is never answered": (lambda files, _: files.upload("a", bytes(3 * MIB)), replies(), Stalled),
    "a listing's first name": (
        METHODS["list_files"],
        replies(lambda stream_id: an_item(stream_id, None, b"b")),
        Stalled,
    ),
    "a listing's first details": (
        METHODS["list_files with details"],
        replies(lambda stream_id: an_item(stream_id, details)),
        Stalled,
    ),
    "chunks: the first": (METHODS["download_chunks"], replies(chunk(length=20)), Stalled),
    "chunks: all, with a window of one": (
        lambda files, _: files.download_chunks("a", window=1),
        replies(chunk(length=10, last=True)),
        Stalled,
    ),
    "chunks: half of the second": (
        METHODS["download_chunks"],
        replies(chunk(length=20), lambda stream_id: an_item(stream_id, None, b"x", NEXT | FOLLOWS)),
        Stalled,
    ),
    "to a path: the first": (METHODS["download_to"], replies(chunk(length=20)), Stalled),
    "to a path: all, but not the end": (METHODS["download_to"], replies(chunk(length=10, last=True)), Stalled),
    "upload: nothing but credit": (METHODS["upload_from"], replies(credit(100)), Stalled),
    "upload: no credit": (METHODS["upload_from"], replies(receipt(0)), Stalled),
    "upload: a little credit": (
        lambda files, _: files.upload_from("a", b"x" * 1000, chunk_size=100),
        replies(receipt(0), credit(2)),
        Stalled,
    ),
    "upload: credit and no receipts": (
        lambda files, _: files.upload_from("a", b"x" * 10_000, chunk_size=100),
        replies(receipt(0), credit(1000)),
        Stalled,
    ),
    "upload: no final receipt": (
        lambda files, _: files.upload_from("a", b"x" * 1000, chunk_size=100),
        confirms_and_never_ends,
        Stalled,
    ),
    "upload of a path: no credit": (upload_of_a_path, replies(receipt(0)), Stalled),
    "upload of a path: a little credit": (upload_of_a_path, replies(receipt(0), credit(2)), Stalled),
    "upload of a path: credit and no receipts": (upload_of_a_path, replies(receipt(0), credit(1000)), Stalled),
    "upload of a path: no final receipt": (upload_of_a_path, confirms_and_never_ends, Stalled),
    "upload of a path: a CANCEL without an ERROR": (
        upload_of_a_path,
        replies(receipt(0), credit(2), lambda stream_id: frame(stream_id, CANCEL)),
        ProtocolError,
    ),
    "upload of a path: completed without a receipt": (
        upload_of_a_path,
        replies(receipt(0), credit(2), lambda stream_id: frame(stream_id, PAYLOAD, COMPLETE)),
        ProtocolError,
    ),
    "upload: a CANCEL without an ERROR": (
        METHODS["upload_from"],
        replies(receipt(0), lambda stream_id: frame(stream_id, CANCEL)),
        ProtocolError,
    ),
    "upload: completed without a receipt": (
        METHODS["upload_from"],
        replies(lambda stream_id: frame(stream_id, PAYLOAD, COMPLETE)),
        ProtocolError,
    ),
}


async def test_a_peer_that_is_silent_from_some_phase_on(tmp_path: Path) -> None:
    """The peer still answers keepalives."""

    async def end(ask: Ask, script: Script) -> type[TransferError]:
        async def peer(peer: RawPeer) -> None:
            await script(peer, await asked(peer))
            await alive(peer)

        async with raw_server(peer) as uri, FileClient.connect(uri, options=SHORT) as files:
            error = await failure(ask(files, tmp_path))
            await files.settle()
            assert not open_streams(files)
            return type(error)

    ends = await asyncio.gather(*(end(ask, script) for ask, script, _ in PHASES.values()))
    assert dict(zip(PHASES, ends, strict=True)) == {phase: kind for phase, (_, _, kind) in PHASES.items()}


async def test_a_peer_that_only_sends_keepalives_with_the_respond_flag(tmp_path: Path) -> None:
    async def asks(peer: RawPeer) -> None:
        async def read() -> None:
            while await peer.reader.read(65536):
                pass

        reading = asyncio.ensure_future(read())
        while not reading.done():
            await peer.send(frame(0, KEEPALIVE, RESPOND, bytes(8)))
            await asyncio.sleep(0.1)

    async with raw_server(asks) as uri, FileClient.connect(uri, options=SHORT) as files:
        assert await failures(files, tmp_path) == all_are(Stalled)


async def test_a_peer_that_ends_its_half_of_the_connection(tmp_path: Path) -> None:
    async def half(peer: RawPeer) -> None:
        await asked(peer)
        peer.writer.write_eof()
        while await peer.reader.read(65536):
            pass

    async with raw_server(half) as uri, FileClient.connect(uri, options=SHORT) as files:
        assert set((await failures(files, tmp_path)).values()) == {ConnectionLost}


async def test_a_peer_that_dribbles_is_ended_by_the_deadline(tmp_path: Path) -> None:
    """A byte of a frame now and then counts as progress, so only the deadline ends it."""

    async def dribbles(peer: RawPeer) -> None:
        request = await asked(peer)
        head = struct.pack(">IH", request.stream_id, PAYLOAD << 10 | NEXT | COMPLETE)
        await peer.send((16_000_000).to_bytes(3, "big") + head)
        while True:
            await peer.send(b"x")
            await asyncio.sleep(0.05)

    late: dict[str, Callable[[FileClient], Observable[object]]] = {
        "upload": lambda files: files.upload("a", b"x", deadline=2.5),
        "download": lambda files: files.download("a", deadline=2.5),
        "list_files": lambda files: files.list_files(deadline=2.5),
        "upload_from": lambda files: files.upload_from("a", b"x", deadline=2.5),
        "download_to": lambda files: files.download_to("a", tmp_path / "a", deadline=2.5),
        "download_chunks": lambda files: files.download_chunks("a", deadline=2.5),
        "stat": lambda files: files.stat("a", deadline=2.5),
        "delete": lambda files: files.delete("a", deadline=2.5),
    }

    async def end(ask: Callable[[FileClient], Observable[object]]) -> type[TransferError]:
        async with raw_server(dribbles) as uri, FileClient.connect(uri, options=SHORT) as files:
            return type(await failure(ask(files)))

    ends = await asyncio.gather(*map(end, late.values()))
    assert dict(zip(late, ends, strict=True)) == dict.fromkeys(late, DeadlineExceeded)


async def test_the_progress_of_other_requests_does_not_count() -> None:
    """A request that is never answered, on a connection that is busy with others."""
    async with raw_server(alive) as uri, FileClient.connect(uri, options=SHORT) as files:
        asking = asyncio.ensure_future(failure(files.stat("a")))
        others = []
        while not asking.done():
            others.append(files.upload("b", bytes(10_000)).subscribe(on_error=lambda _: None))
            await asyncio.sleep(0.01)
        assert isinstance(await asking, Stalled)
        for one in others:
            one.dispose()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGSTOP")
async def test_a_server_that_is_stopped() -> None:
    """The kernel of a stopped process still receives what is sent, as far as the socket's buffer has room."""

    async def end(*asks: Callable[[FileClient], Observable[object]]) -> list[type[TransferError]]:
        async with server_process() as server, FileClient.connect(server.uri, options=SHORT) as files:
            asked = [asyncio.ensure_future(failure(ask(files))) for ask in asks]
            os.kill(server.process.pid, signal.SIGSTOP)
            while files._connector.current() is not None:
                if not asks:
                    files.stat("a").subscribe(on_error=lambda _: None)  # small requests, again and again
                await asyncio.sleep(0.02)
            return [type(error) for error in await asyncio.gather(*asked)]

    async with asyncio.timeout(PATIENCE):
        ends = await asyncio.gather(
            end(lambda files: files.stat("a")),
            end(lambda files: files.upload("a", bytes(64 * MIB))),
            end(lambda files: files.upload_from("a", bytes(64 * MIB), window=1000)),
            end(),
        )
    assert ends == [[ConnectionLost], [ConnectionLost], [ConnectionLost], []]


async def test_a_lost_connection_is_reported_at_once() -> None:
    async with (
        serve(data=ChatData({"a": b"x"})) as server,
        fault_proxy(server.uri) as proxy,
        FileClient.connect(proxy.uri, options=SHORT) as files,
    ):
        proxy.cut()
        await eventually(lambda: files._connector.current() is None)
        now: list[object] = []
        files.connection_state().subscribe(now.append)
        assert [type(state) for state in now] == [Disconnected]
        proxy.is_black_hole = True
        asking = [asyncio.ensure_future(failure(files.stat("a"))) for _ in range(1000)]
        assert {type(error) for error in await asyncio.gather(*asking)} == {ConnectionFailed}
        assert proxy.accepted <= 4
        proxy.is_black_hole = False
        await files.stat("a")
        assert isinstance(now[-1], Connected)


async def test_closing_while_a_silent_peer_is_waited_for(tmp_path: Path) -> None:
    got: list[Exception] = []
    async with serve() as server, fault_proxy(server.uri) as proxy:
        async with FileClient.connect(proxy.uri) as files:
            proxy.is_black_hole = True
            proxy.cut()
            await eventually(lambda: files._connector.current() is None)
            for ask in METHODS.values():
                ask(files, tmp_path).subscribe(lambda _: None, got.append)
            await eventually(lambda: proxy.accepted == 2)
            assert not got
        await eventually(lambda: len(got) == len(METHODS))
        assert {type(error) for error in got} == {ClientClosed}


async def test_settling_with_a_silent_peer_is_bounded(tmp_path: Path) -> None:
    async with raw_server(alive) as uri, FileClient.connect(uri) as files:
        for ask in METHODS.values():
            ask(files, tmp_path).subscribe(on_error=lambda _: None).dispose()
        begun = [ask(files, tmp_path).subscribe(on_error=lambda _: None) for ask in METHODS.values()]
        await asyncio.sleep(0.05)
        for one in begun:
            one.dispose()
        async with asyncio.timeout(PATIENCE):
            await files.settle()
        assert not open_streams(files)
