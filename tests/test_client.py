"""The client's observables do what an Rx user expects, and leave nothing behind on either side."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import reactivex
from reactivex import operators as ops
from reactivex.internal.exceptions import SequenceContainsNoElementsError
from rsocket.helpers import single_transport_provider
from rsocket.payload import Payload
from rsocket.rsocket_client import RSocketClient
from rsocket.transports.tcp import TransportTCP

from rx_client import ColdReactiveXClient, Connected, Disconnected, FileClient
from server import ChatData, FileServer, Store, serve
from server.stores.memory import MemoryStore
from shared import (
    AlreadyExists,
    Changed,
    ConnectionFailed,
    ConnectionLost,
    FileInfo,
    InvalidName,
    NotFound,
    ProtocolError,
    RemoteError,
    TransferError,
    UnknownRoute,
)
from shared.protocol.wire import Route, request_metadata
from tests.support import (
    CANCEL,
    COMPLETE,
    ERROR,
    FOLLOWS,
    NEXT,
    PATIENCE,
    PAYLOAD,
    REQUEST_N,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    SETUP,
    RawFrame,
    RawPeer,
    eventually,
    frame,
    raw_server,
    server_stream_ids,
    stream_ids,
)

BIG = bytes(range(256)) * 80_000  # 20 MB: many fragments


def client_stream_ids(files: FileClient) -> list[int]:
    rsocket = files._connector.current()
    return stream_ids(rsocket) if rsocket is not None else []


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    async with serve() as server:
        server.data.files.update({"a": b"A", "b": b"B", "empty": b""})
        yield server


@pytest.fixture
async def files(server: FileServer) -> AsyncGenerator[FileClient, None]:
    async with FileClient.connect(server.uri) as files:
        yield files
        await eventually(lambda: not client_stream_ids(files))
        await eventually(lambda: not server_stream_ids(server))
        await eventually(lambda: not server.work.active)


# The three verbs


@pytest.mark.parametrize("content", [b"", b"x", BIG, bytearray(b"array"), memoryview(b"view")])
async def test_what_is_uploaded_is_downloaded(server: FileServer, files: FileClient, content: Any) -> None:
    assert await files.upload("n", content) == FileInfo(name="n", size=len(content))
    assert server.data.files["n"] == content
    got = await files.download("n").pipe(ops.to_list())
    assert got == [bytes(content)]
    assert type(got[0]) is bytes


async def test_a_listing_has_every_name_once(server: FileServer, files: FileClient) -> None:
    server.data.files.update({f"f{number}": b"" for number in range(1000)})
    for request_n in (1, 2, 3, 256, 5000, 0x7FFFFFFF):
        assert await files.list_files(request_n=request_n).pipe(ops.to_list()) == sorted(server.data.files)


async def test_an_empty_listing_completes(server: FileServer, files: FileClient) -> None:
    server.data.files.clear()
    assert await files.list_files().pipe(ops.to_list()) == []


@pytest.mark.parametrize("content", ["text", None, 5, [1, 2], object()])
async def test_content_that_is_not_bytes_is_a_type_error_at_the_call(files: FileClient, content: Any) -> None:
    with pytest.raises(TypeError, match="bytes, bytearray or memoryview"):
        files.upload("n", content)


@pytest.mark.parametrize("name", [b"bytes", None, 5])
async def test_a_name_that_is_no_str_is_a_type_error_at_the_call(files: FileClient, name: Any) -> None:
    with pytest.raises(TypeError, match="must be a str"):
        files.upload(name, b"")
    with pytest.raises(TypeError, match="must be a str"):
        files.download(name)


@pytest.mark.parametrize("request_n", [0, -1, 2**31])
async def test_demand_outside_its_range_is_a_value_error_at_the_call(files: FileClient, request_n: int) -> None:
    with pytest.raises(ValueError, match="request limit"):
        files.list_files(request_n=request_n)


async def test_mutable_content_is_copied_at_the_call(server: FileServer, files: FileClient) -> None:
    content = bytearray(b"before")
    upload = files.upload("n", content)
    content[:] = b"after!"
    await upload
    assert server.data.files["n"] == b"before"


async def test_errors_are_ours_and_know_the_name(server: FileServer, files: FileClient) -> None:
    with pytest.raises(NotFound, match="no file named 'nope'") as caught:
        await files.download("nope")
    assert caught.value.name == "nope"
    for bad in ("", "a\0", "x" * 1025):
        with pytest.raises(InvalidName) as refused:
            await files.upload(bad, b"")
        assert refused.value.name == bad
    assert server.work.started == 1  # a bad name isn't sent at all


async def test_a_bad_name_needs_no_connection(server: FileServer, files: FileClient, tmp_path: Path) -> None:
    await server.close()
    await files.connection_state().pipe(ops.first(lambda state: isinstance(state, Disconnected)))
    for request in (
        files.upload("", b""),
        files.stat(""),
        files.move("", "b"),
        files.move("a", ""),
        files.upload_from("", b""),
        files.download_to("", tmp_path / "got"),
    ):
        with pytest.raises(InvalidName):
            async with asyncio.timeout(1):
                await request


async def test_a_move_gives_what_is_known_of_the_file_then(server: FileServer, files: FileClient) -> None:
    info = await files.stat("a")
    move = files.move("a", "new", if_match=info.etag)
    assert server.data.files["a"] == b"A", "it is cold"
    assert await move == await files.stat("new") == replace(info, name="new")
    assert server.data.files == {"new": b"A", "b": b"B", "empty": b""}
    assert await files.move("new", "b") == replace(info, name="b")
    assert await files.move("b", "b", overwrite=False) == replace(info, name="b")


async def test_what_is_wrong_with_a_move(server: FileServer, files: FileClient) -> None:
    before = dict(server.data.files)
    with pytest.raises(NotFound) as missing:
        await files.move("nope", "new")
    assert missing.value.name == "nope"
    with pytest.raises(AlreadyExists) as existing:
        await files.move("a", "b", overwrite=False)
    assert existing.value.name == "b"
    with pytest.raises(Changed) as changed:
        await files.move("a", "new", if_match="other")
    assert changed.value.name == "a"
    for bad in ("\0", 5, None):
        with pytest.raises((InvalidName, TypeError)):
            await files.move("a", bad)  # type: ignore[arg-type]
    assert server.data.files == before


@pytest.mark.parametrize("overwrite", [True, False])
async def test_a_move_can_be_repeated_where_its_etag_is_known(
    server: FileServer, files: FileClient, overwrite: bool
) -> None:
    """As `retry` does when the answer was lost."""
    info = await files.stat("a")
    move = files.move("a", "new", overwrite=overwrite, if_match=info.etag)
    assert await move == await move == replace(info, name="new")
    with pytest.raises(NotFound):
        await files.move("a", "new", overwrite=overwrite)  # it may have been another file
    with pytest.raises(NotFound):
        await files.move("a", "b", overwrite=overwrite, if_match=info.etag)
    with pytest.raises(NotFound):
        await files.move("a", "missing", overwrite=overwrite, if_match=info.etag)


async def test_a_store_that_can_not_move_files_says_so() -> None:
    class Still(MemoryStore):
        move = Store.move

    async with serve(data=ChatData(Still({"a": b"A"}))) as server, FileClient.connect(server.uri) as files:
        with pytest.raises(UnknownRoute, match="can't move"):
            await files.move("a", "b")


# Cold


async def test_nothing_is_sent_before_a_subscription(server: FileServer, files: FileClient) -> None:
    files.upload("n", b"x")
    files.download("a")
    files.list_files()
    await files.download("b")
    assert server.work.started == 1


async def test_each_subscription_is_a_request(server: FileServer, files: FileClient) -> None:
    download, listing = files.download("a"), files.list_files()
    assert [await download, await download, await listing, await listing] == [b"A", b"A", "empty", "empty"]
    assert server.work.started == 4


async def test_awaiting_gives_the_last_item_or_rxpys_own_error(server: FileServer, files: FileClient) -> None:
    rsocket = files._connector.current()
    assert rsocket is not None
    listing = ColdReactiveXClient(rsocket).request_stream(Payload(b"", request_metadata(Route.FILES)))
    assert (await listing).data == list(server.data.files)[-1].encode()
    server.data.files.clear()
    with pytest.raises(SequenceContainsNoElementsError):
        await listing


async def test_repeat_and_concat_ask_again(server: FileServer, files: FileClient) -> None:
    assert await files.download("a").pipe(ops.repeat(3), ops.to_list()) == [b"A"] * 3
    both = reactivex.concat(files.download("a"), files.download("b"))
    assert await both.pipe(ops.to_list()) == [b"A", b"B"]
    assert server.work.started == 5


async def test_retry_asks_again_until_it_is_there(server: FileServer, files: FileClient) -> None:
    download = files.download("late")

    def arrive(_: Exception) -> None:
        if server.work.failed == 3:
            server.data.files["late"] = b"here"

    assert await download.pipe(ops.do_action(on_error=arrive), ops.retry(10)) == b"here"
    assert (server.work.failed, server.work.completed) == (3, 1)


async def test_share_is_one_request_for_all(server: FileServer, files: FileClient) -> None:
    shared = files.download("a").pipe(ops.share())
    assert await reactivex.merge(shared, shared).pipe(ops.to_list()) == [b"A", b"A"]
    assert server.work.started == 1


async def test_merge_bounds_what_runs_at_once(server: FileServer, files: FileClient) -> None:
    most = 0

    def note(_: bytes) -> None:
        nonlocal most
        most = max(most, len(client_stream_ids(files)))

    many = reactivex.of(*["a", "b"] * 20).pipe(
        ops.map(lambda name: files.download(name).pipe(ops.do_action(note))), ops.merge(max_concurrent=4), ops.to_list()
    )
    assert sorted(await many) == [b"A"] * 20 + [b"B"] * 20
    assert most <= 4


async def test_fluent_methods_and_pipe_are_the_same(files: FileClient) -> None:
    assert await files.list_files().filter(lambda name: name != "b").map(str.upper).to_list() == ["A", "EMPTY"]


# Dispose


async def test_a_synchronous_dispose_sends_no_request(server: FileServer, files: FileClient) -> None:
    for observable in (files.download("a"), files.upload("n", BIG), files.list_files()):
        observable.subscribe().dispose()
    assert not client_stream_ids(files)
    await files.download("b")
    assert server.work.started == 1
    assert "n" not in server.data.files


async def test_a_dispose_in_the_middle_of_an_upload_stores_nothing(server: FileServer, files: FileClient) -> None:
    subscription = files.upload("n", BIG).subscribe()
    (connection,) = await _connections(server)
    await eventually(lambda: connection.reassembler.pending)
    subscription.dispose()
    await files.download("a")
    await eventually(lambda: not connection.reassembler.pending)
    assert "n" not in server.data.files


async def test_a_dispose_in_the_middle_of_a_download_stops_the_server(server: FileServer, files: FileClient) -> None:
    server.data.files["big"] = BIG * 5
    got: list[bytes] = []
    subscription = files.download("big").subscribe(got.append)
    rsocket = files._connector.current()
    await eventually(lambda: rsocket.reassembler.pending)
    subscription.dispose()
    await eventually(lambda: server.work.cancelled == 1)
    assert not rsocket.reassembler.pending
    assert await files.download("a") == b"A"
    assert got == []


async def test_take_stops_the_listing(server: FileServer, files: FileClient) -> None:
    server.data.files.update({f"f{number}": b"" for number in range(1000)})
    assert await files.list_files(request_n=10).pipe(ops.take(1), ops.to_list()) == ["a"]
    await eventually(lambda: server.work.cancelled == 1)


async def test_take_until_stops_the_transfer(server: FileServer, files: FileClient) -> None:
    server.data.files["big"] = BIG * 5
    stop = reactivex.Subject[None]()
    done = asyncio.get_running_loop().create_future()
    files.download("big").pipe(ops.take_until(stop), ops.to_list()).subscribe(done.set_result)
    await eventually(lambda: server.work.active)
    stop.on_next(None)
    assert await done == []
    await eventually(lambda: server.work.cancelled == 1)


async def test_a_dispose_inside_on_next_is_fine(server: FileServer, files: FileClient) -> None:
    server.data.files.update({f"f{number}": b"" for number in range(100)})
    got: list[str] = []
    subscription = reactivex.disposable.SerialDisposable()

    def take_three(name: str) -> None:
        got.append(name)
        if len(got) == 3:
            subscription.dispose()

    subscription.disposable = files.list_files(request_n=5).subscribe(take_three)
    await eventually(lambda: server.work.cancelled == 1)
    assert got == ["a", "b", "empty"]


async def test_disposing_twice_or_after_the_end_is_fine(files: FileClient) -> None:
    done = asyncio.Event()
    subscription = files.download("a").subscribe(on_completed=done.set)
    await done.wait()
    subscription.dispose()
    subscription.dispose()
    early = files.download("a").subscribe()
    early.dispose()
    early.dispose()


async def test_a_dispose_from_another_thread_is_fine(server: FileServer, files: FileClient) -> None:
    server.data.files["big"] = BIG * 5
    subscription = files.download("big").subscribe()
    await eventually(lambda: server.work.active)
    await asyncio.to_thread(subscription.dispose)
    await eventually(lambda: server.work.cancelled == 1)


async def test_one_disposed_subscription_leaves_the_other_alone(files: FileClient) -> None:
    download = files.download("a")
    first = download.subscribe()
    second = asyncio.ensure_future(_value(download))
    await asyncio.sleep(0)
    first.dispose()
    assert await second == b"A"


async def test_cancelling_the_task_that_awaits_cancels_the_transfer(server: FileServer, files: FileClient) -> None:
    server.data.files["big"] = BIG * 5
    task = asyncio.ensure_future(_value(files.download("big")))
    await eventually(lambda: server.work.active)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: server.work.cancelled == 1)


# Observers that raise, and time


async def test_an_observer_that_raises_gets_its_own_error_and_the_server_only_a_cancel(
    server: FileServer, files: FileClient
) -> None:
    server.data.files.update({f"f{number}": b"" for number in range(100)})
    failures: list[Exception] = []

    def fail(_: str) -> None:
        raise ValueError("private")

    files.list_files(request_n=5).subscribe(fail, failures.append)
    await eventually(lambda: failures)
    assert [str(error) for error in failures] == ["private"]
    await eventually(lambda: server.work.cancelled == 1)
    assert await files.download("a") == b"A"


async def test_an_observer_without_on_error_is_reported_to_the_loop(files: FileClient) -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: reported.append(context))

    def fail(_: bytes) -> None:
        raise ValueError("private")

    try:
        files.download("a").subscribe(fail)
        await eventually(lambda: reported)
        files.download("missing").subscribe()
        await eventually(lambda: len(reported) == 2)
    finally:
        loop.set_exception_handler(handler)
    assert str(reported[0]["exception"]) == "private"
    assert isinstance(reported[1]["exception"], NotFound)
    assert await files.download("a") == b"A"


@pytest.mark.parametrize("fluent", [False, True])
async def test_a_timeout_fires_in_the_loops_thread(server: FileServer, files: FileClient, fluent: bool) -> None:
    server.data.files["big"] = BIG * 10
    seen: list[tuple[Exception, threading.Thread]] = []
    download = files.download("big")
    timed = download.timeout(0.001) if fluent else download.pipe(ops.timeout(timedelta(milliseconds=1)))
    timed.subscribe(on_error=lambda error: seen.append((error, threading.current_thread())))
    await eventually(lambda: seen)
    ((error, thread),) = seen
    assert str(error) == "Timeout"
    assert thread is threading.main_thread()
    await eventually(lambda: server.work.cancelled + server.work.completed == server.work.started)


# Connections


async def test_a_refused_connect_raises() -> None:
    async with serve() as server:
        uri = server.uri
    with pytest.raises(ConnectionFailed, match=uri):
        async with FileClient.connect(uri):
            pytest.fail("nothing listens there")


async def test_an_unknown_host_raises() -> None:
    with pytest.raises(ConnectionFailed, match="no-such-host"):
        async with FileClient.connect("tcp://no-such-host.invalid:1"):
            pytest.fail("there is no such host")


@pytest.mark.parametrize(
    "uri", ["", "localhost", "http://localhost:1", "tcp://", "tcp://h:x", "tcp://h:99999", "tcp://h/x"]
)
async def test_a_uri_that_is_none_is_a_value_error(uri: str) -> None:
    with pytest.raises(ValueError, match=r"tcp://HOST|port"):
        async with FileClient.connect(uri):
            pytest.fail("that is no URI")


async def test_a_lost_connection_ends_what_is_under_way_and_the_next_subscription_makes_another(
    server: FileServer,
) -> None:
    server.data.files["big"] = BIG * 10
    async with FileClient.connect(server.uri) as files:
        pending = asyncio.ensure_future(_value(files.download("big")))
        await eventually(lambda: server.work.active)
        (connection,) = await _connections(server)
        connection.transport.abort()
        with pytest.raises(ConnectionLost):
            await pending
        assert await files.download("a") == b"A"
        assert server.connections == 1


async def test_a_lost_connection_that_is_the_callers_is_not_made_again(server: FileServer) -> None:
    host, port = server.uri.removeprefix("tcp://").split(":")
    transport = TransportTCP(*await asyncio.open_connection(host, int(port)))
    async with RSocketClient(
        single_transport_provider(transport), metadata_encoding=b"message/x.rsocket.composite-metadata.v0"
    ) as rsocket:
        files = FileClient(rsocket)
        assert await files.download("a") == b"A"
        (connection,) = await _connections(server)
        connection.transport.abort()
        await eventually(lambda: rsocket._is_closing)
        for again in (files.download("a"), files.list_files(), files.upload_from("n", b"x")):
            with pytest.raises(ConnectionLost):
                await again


@pytest.mark.parametrize("end", ["the peer closes", "the peer resets", "the peer is silent", "the caller closes"])
async def test_a_dead_connection_of_the_callers_is_reported_and_fails_fast(end: str, tmp_path: Path) -> None:
    may_end = asyncio.Event()

    async def peer(peer: RawPeer) -> None:
        while not may_end.is_set():
            await asyncio.sleep(0.01)
        if end == "the peer resets":
            peer.writer.transport.abort()
        if end == "the peer is silent":
            while await peer.reader.read(65536):
                pass

    async with raw_server(peer) as uri:
        host, port = uri.removeprefix("tcp://").split(":")
        async with RSocketClient(
            single_transport_provider(TransportTCP(*await asyncio.open_connection(host, int(port)))),
            metadata_encoding=b"message/x.rsocket.composite-metadata.v0",
            keep_alive_period=timedelta(seconds=0.1),
            max_lifetime_period=timedelta(seconds=0.3),
        ) as rsocket:
            files = FileClient(rsocket)
            assert await files.connection_state() == Connected()
            may_end.set()
            if end == "the caller closes":
                await rsocket.close()
            await eventually(lambda: files._connector.current() is None)
            assert isinstance(await files.connection_state(), Disconnected)
            for ask in (
                files.upload("a", b"x"),
                files.download("a"),
                files.list_files(),
                files.upload_from("a", b"x"),
                files.download_to("a", tmp_path / "a"),
                files.download_chunks("a"),
                files.stat("a"),
                files.delete("a"),
                files.move("a", "b"),
            ):
                async with asyncio.timeout(PATIENCE):
                    with pytest.raises(ConnectionLost):
                        await ask


async def test_an_rsocket_of_the_callers_own_serves_as_well(server: FileServer) -> None:
    host, port = server.uri.removeprefix("tcp://").split(":")
    transport = TransportTCP(*await asyncio.open_connection(host, int(port)))
    async with RSocketClient(
        single_transport_provider(transport), metadata_encoding=b"message/x.rsocket.composite-metadata.v0"
    ) as rsocket:
        files = FileClient(rsocket)
        await files.upload("n", BIG)  # without a fragment size of its own, which would wrap above 16 MiB
        assert await files.download("n") == BIG
        files.upload("m", BIG).subscribe().dispose()
        assert await files.list_files().pipe(ops.to_list()) == ["a", "b", "empty", "n"]
        assert not stream_ids(rsocket)


# Foreign servers, frame by frame


async def _answer(peer: RawPeer, *answers: bytes) -> list[RawFrame]:
    """Reads SETUP and one request, sends the answers, and collects what the client sends until it closes."""
    seen: list[RawFrame] = []
    while (got := await peer.receive(10)) is not None:
        seen.append(got)
        if got.kind in (REQUEST_RESPONSE, REQUEST_STREAM):
            await peer.send(*answers)
    return seen


def _error(code: int, text: bytes, stream_id: int = 1) -> bytes:
    return frame(stream_id, ERROR, 0, code.to_bytes(4, "big") + text)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (_error(0x201, b"'wanted'"), NotFound),
        (_error(0x201, b"not_found: no file named 'wanted'"), NotFound),
        (_error(0x201, b"something else"), RemoteError),
        (_error(0x301, b"a code of its own"), RemoteError),
        (_error(0x201, b"\xff\xfe"), RemoteError),
        (_error(0x101, b"going down", stream_id=0), ConnectionLost),
        (frame(1, PAYLOAD, COMPLETE), b""),
        (frame(1, PAYLOAD, NEXT | COMPLETE, b"data"), b"data"),
        (frame(1, PAYLOAD, NEXT, b"data"), b"data"),
        (frame(1, PAYLOAD, NEXT | FOLLOWS, b"da") + frame(1, PAYLOAD, NEXT | COMPLETE, b"ta"), b"data"),
        (frame(7, PAYLOAD, NEXT | COMPLETE, b"whose?") + frame(1, PAYLOAD, NEXT | COMPLETE, b"data"), b"data"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ConnectionLost),
        (b"\x00\x00\x00", ConnectionLost),
    ],
)
async def test_any_answer_of_a_foreign_server_is_bytes_or_a_typed_error(answer: bytes, expected: Any) -> None:
    async def serve_one(peer: RawPeer) -> None:
        while (got := await peer.receive(10)) is not None:
            if got.kind == REQUEST_RESPONSE:
                await peer.send(answer)
                if expected is ConnectionLost:
                    return

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        async with asyncio.timeout(5):
            if isinstance(expected, bytes):
                assert await files.download("wanted") == expected
            else:
                with pytest.raises(expected) as caught:
                    await files.download("wanted")
                assert type(caught.value) is expected
                assert isinstance(caught.value, TransferError)
                assert caught.value.name == "wanted"


async def test_an_upload_completes_also_when_the_answer_is_empty_in_both() -> None:
    async def serve_one(peer: RawPeer) -> None:
        await _answer(peer, frame(1, PAYLOAD, COMPLETE))

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        assert await files.upload("n", b"xyz") == FileInfo(name="n", size=3)


async def test_a_listed_name_that_is_none_is_a_protocol_error() -> None:
    seen: list[RawFrame] = []

    async def serve_one(peer: RawPeer) -> None:
        seen.extend(await _answer(peer, frame(1, PAYLOAD, NEXT, b"\xff")))

    async with raw_server(serve_one) as uri:
        async with FileClient.connect(uri) as files:
            with pytest.raises(ProtocolError, match="UTF-8"):
                await files.list_files()
        await eventually(lambda: CANCEL in [got.kind for got in seen])


async def test_the_demand_of_a_listing_is_never_above_request_n() -> None:
    credit_seen: list[int] = []

    async def serve_one(peer: RawPeer) -> None:
        credit = sent = 0
        while (got := await peer.receive(10)) is not None:
            if got.kind == REQUEST_STREAM:
                credit += int.from_bytes(got.body[:4], "big")
            elif got.kind == REQUEST_N:
                credit += int.from_bytes(got.body, "big")
            credit_seen.append(credit)
            while credit and sent < 100:
                await peer.send(frame(1, PAYLOAD, NEXT, b"%d" % sent))
                credit, sent = credit - 1, sent + 1
            if sent == 100:
                await peer.send(frame(1, PAYLOAD, COMPLETE))

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        assert len(await files.list_files(request_n=8).pipe(ops.to_list())) == 100
    assert max(credit_seen) <= 8


async def test_a_dispose_in_the_middle_of_a_request_sends_cancel_and_nothing_after_it() -> None:
    seen: list[RawFrame] = []
    begun = asyncio.Event()

    async def serve_one(peer: RawPeer) -> None:
        while (got := await peer.receive(10)) is not None:
            seen.append(got)
            if got.kind == REQUEST_RESPONSE:
                begun.set()

    async with raw_server(serve_one) as uri, FileClient.connect(uri) as files:
        subscription = files.upload("n", BIG * 5).subscribe()
        await begun.wait()
        subscription.dispose()
        await eventually(lambda: seen[-1].kind == CANCEL)
        assert not client_stream_ids(files)
    kinds = [got.kind for got in seen]
    assert kinds[:2] == [SETUP, REQUEST_RESPONSE]
    assert kinds[-1] == CANCEL
    assert len(kinds) < 90


async def _value(observable: reactivex.Observable[Any]) -> Any:
    return await observable


async def _connections(server: FileServer) -> list[Any]:
    await eventually(lambda: server.connections)
    return list(server._connections.values())
