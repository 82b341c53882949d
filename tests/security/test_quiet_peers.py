"""Every way in which a peer can fall silent: every method ends with a typed error, in time."""

import asyncio
import socket
import struct
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reactivex import Observable
from reactivex import operators as ops

from rx_client import (
    Completed,
    Connected,
    Connecting,
    ConnectionState,
    ConnectOptions,
    Disconnected,
    FileClient,
    Progress,
    Started,
)
from server import ChatData, serve
from shared.errors import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    NotFound,
    Stalled,
    TransferError,
    Unauthenticated,
    is_retryable,
)
from tests.security.support import MIB, server_process
from tests.support import (
    CONNECTION_ERROR,
    ERROR,
    PATIENCE,
    REQUEST_CHANNEL,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawPeer,
    eventually,
    frame,
    raw_server,
    stream_ids,
)

SHORT = ConnectOptions(
    connect_timeout=0.5,
    keepalive_period=0.1,
    keepalive_timeout=0.5,
    reconnect_timeout=0.5,
    reconnect_base=0.05,
    progress_timeout=0.8,
)

Ask = Callable[[FileClient, Path], Observable[Any]]

METHODS: dict[str, Ask] = {
    "upload": lambda files, _: files.upload("a", b"x" * 1000),
    "download": lambda files, _: files.download("a"),
    "list_files": lambda files, _: files.list_files(),
    "list_files with details": lambda files, _: files.list_files(details=True),
    "upload_from": lambda files, _: files.upload_from("a", b"x" * 1000),
    "download_to": lambda files, folder: files.download_to("a", folder / "a"),
    "download_chunks": lambda files, _: files.download_chunks("a"),
    "stat": lambda files, _: files.stat("a"),
    "delete": lambda files, _: files.delete("a"),
}


async def failure(source: Observable[Any]) -> TransferError:
    """The typed error that a transfer ends with."""
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(TransferError) as raised:
            await source.pipe(ops.to_list())
    return raised.value


async def failures(files: FileClient, folder: Path) -> dict[str, type[TransferError]]:
    """How all methods end that are called concurrently."""
    errors = await asyncio.gather(*(failure(ask(files, folder)) for ask in METHODS.values()))
    return {method: type(error) for method, error in zip(METHODS, errors, strict=True)}


def all_are(kind: type[TransferError]) -> dict[str, type[TransferError]]:
    return dict.fromkeys(METHODS, kind)


def open_streams(files: FileClient) -> list[int]:
    rsocket = files._connector.current()
    return [] if rsocket is None else stream_ids(rsocket)


class Relay:
    """A relay to a server, whose faults can be switched on while it runs.

    Attributes:
        is_black_hole: Whether what arrives from either end is dropped from now on.
        bytes_per_second: Its speed in each direction; None for no limit.
        accepted: Connections so far.
    """

    def __init__(self, uri: str, *, black_hole_after: tuple[int, int] | None = None) -> None:
        self.is_black_hole = False
        self.bytes_per_second: float | None = None
        self.accepted = 0
        self.uri = ""
        self._server = uri.removeprefix("tcp://").split(":")
        self._after = black_hole_after
        self._passed = [0, 0]
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Relay":
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=16 * 1024)
        self.uri = f"tcp://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Ends all connections abruptly."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, back = await asyncio.open_connection(self._server[0], int(self._server[1]), limit=16 * 1024)
            self._writers += [writer, back]
            await asyncio.gather(self._copy(0, reader, back), self._copy(1, there, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.cut()

    async def _copy(self, way: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(16 * 1024):
            self._passed[way] += len(piece)
            if self._after is not None and self._passed[way] > self._after[way]:
                self.is_black_hole = True
            if self.is_black_hole:
                await asyncio.Event().wait()  # doesn't read either, so that buffers fill as with a dead host
            writer.write(piece)
            await writer.drain()
            if self.bytes_per_second is not None:
                await asyncio.sleep(len(piece) / self.bytes_per_second)
        writer.close()


async def alive(peer: RawPeer) -> None:
    """Answers keepalives, and never a request."""
    while await peer.receive(60) is not None:
        pass


async def alive_for(seconds: float, peer: RawPeer) -> None:
    """Answers keepalives for so many seconds, then closes the connection."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await alive(peer)


async def mute(peer: RawPeer) -> None:
    """Reads, and sends nothing."""
    while await peer.reader.read(65536):
        pass


async def deaf(_: RawPeer) -> None:
    """Neither reads nor sends anything."""
    await asyncio.sleep(1.0)  # twice as long as the client waits


# No RSocket peer


@asynccontextmanager
async def full_backlog() -> AsyncGenerator[str, None]:
    """An address whose backlog is full: the SYN gets no answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        queued = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
            queued.append(one)
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for one in queued:
                one.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems treat a full backlog otherwise")
async def test_a_peer_that_never_accepts() -> None:
    async with full_backlog() as uri, asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionFailed, match="not answered"):
            async with FileClient.connect(uri, options=SHORT):
                pass


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"\0" * 64, id="zeros"),
        pytest.param(frame(0, 0x3D), id="a frame of no known kind"),
        pytest.param(frame(0, 0x04, 0, b"x"), id="a request on stream 0"),
        pytest.param(frame(0, ERROR, 0, struct.pack(">I", 0x1) + b"no"), id="a refusal"),
        pytest.param(frame(0, ERROR, 0, struct.pack(">I", 0xABCDEF) + b"\xff"), id="an unknown error"),
    ],
)
async def test_a_peer_with_another_protocol(sent: bytes) -> None:
    async def other(peer: RawPeer) -> None:
        await peer.send(sent)
        await mute(peer)

    async with raw_server(other) as uri, asyncio.timeout(PATIENCE):
        with pytest.raises(TransferError):
            async with FileClient.connect(uri, options=SHORT):
                pass


# A silent RSocket peer


@pytest.mark.parametrize("scheme", ["tcp", "tcps"])
@pytest.mark.parametrize("peer", [mute, deaf])
async def test_a_peer_that_accepts_and_is_silent(peer: Callable[[RawPeer], Awaitable[None]], scheme: str) -> None:
    """A web server that waits for a request, for example; with TLS, a peer that is silent in the handshake."""
    async with raw_server(peer) as uri, asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionFailed, match=r"not answered within 0\.5 s") as raised:
            async with FileClient.connect(uri.replace("tcp", scheme), options=SHORT):
                pass
        assert type(raised.value) is ConnectionFailed


async def test_a_peer_that_is_silent_on_a_later_connection(tmp_path: Path) -> None:
    accepted = 0

    async def peer(peer: RawPeer) -> None:
        nonlocal accepted
        accepted += 1
        if accepted == 1:
            await alive_for(0.2, peer)
        else:
            await mute(peer)

    async with raw_server(peer) as uri, FileClient.connect(uri, options=SHORT) as files:
        await eventually(lambda: files._connector.current() is None)
        assert await failures(files, tmp_path) == all_are(ConnectionFailed)


@pytest.mark.parametrize("answer", ["accepts", "refuses"])
async def test_a_peer_that_takes_long_for_the_setup(answer: str) -> None:
    """A password check may take longer than `keepalive_timeout`."""

    async def slow(peer: RawPeer) -> None:
        await asyncio.sleep(1.5)
        if answer == "refuses":
            await peer.send(frame(0, ERROR, 0, struct.pack(">I", 0x3) + b"unauthenticated: no such user"))
        await alive(peer)

    patient = replace(SHORT, connect_timeout=PATIENCE, keepalive_timeout=0.3)
    async with raw_server(slow) as uri:
        try:
            async with FileClient.connect(uri, options=patient) as files:
                assert answer == "accepts"
                assert isinstance(await failure(files.stat("a")), Stalled)
        except Unauthenticated:
            assert answer == "refuses"


async def test_a_peer_that_answers_keepalives_and_never_the_request(tmp_path: Path) -> None:
    async with raw_server(alive) as uri, FileClient.connect(uri, options=SHORT) as files:
        assert await failures(files, tmp_path) == all_are(Stalled)
        await files.settle()
        assert not open_streams(files)
    assert not list(tmp_path.iterdir())


async def test_a_peer_that_is_a_black_hole_after_the_setup(tmp_path: Path) -> None:
    async with (
        serve(data=ChatData({"a": b"x"})) as server,
        Relay(server.uri) as relay,
        FileClient.connect(relay.uri, options=SHORT) as files,
    ):
        relay.is_black_hole = True
        assert await failures(files, tmp_path) == all_are(ConnectionLost)


LARGE = 8 * MIB


async def slowly(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 256 * 1024):
        yield content[at : at + 256 * 1024]


async def test_a_peer_that_is_a_black_hole_in_the_middle(tmp_path: Path) -> None:
    down, up = (MIB, 3 * MIB), (3 * MIB, MIB)
    asked: dict[str, tuple[Ask, tuple[int, int]]] = {
        "download": (METHODS["download"], down),
        "download_to": (METHODS["download_to"], down),
        "download_chunks": (METHODS["download_chunks"], down),
        "upload": (lambda files, _: files.upload("b", bytes(LARGE)), up),
        "upload_from": (lambda files, _: files.upload_from("c", bytes(LARGE)), up),
        "upload_from an iterator": (lambda files, _: files.upload_from("d", slowly(bytes(LARGE))), up),
    }
    async with serve(data=ChatData({"a": bytes(LARGE)})) as server:

        async def end(ask: Ask, after: tuple[int, int]) -> type[TransferError]:
            async with (
                Relay(server.uri, black_hole_after=after) as relay,
                FileClient.connect(relay.uri, options=SHORT) as files,
            ):
                error = await failure(ask(files, tmp_path))
                assert relay.is_black_hole
                return type(error)

        ends = await asyncio.gather(*(end(*one) for one in asked.values()))
    assert dict(zip(asked, ends, strict=True)) == dict.fromkeys(asked, ConnectionLost)


@pytest.mark.parametrize("quiet", ["keepalives go on", "nothing comes"])
async def test_a_peer_that_is_quiet_after_the_last_chunk(quiet: str) -> None:
    async def server(peer: RawPeer) -> None:
        asked = await peer.receive()
        while asked is not None and asked.kind != REQUEST_CHANNEL:
            asked = await peer.receive()
        assert asked is not None
        receipt = b"\x11chat/file-transfer" + (16).to_bytes(3, "big") + b'{"committed": 0}'
        await peer.send(frame(asked.stream_id, 0x0A, 0x120, len(receipt).to_bytes(3, "big") + receipt))
        await peer.send(frame(asked.stream_id, 0x08, 0, struct.pack(">I", 100)))
        while not (got := await peer.receive(60)) or not got.flags & 0x40:
            if got is None:
                return
        is_last.set()
        peer.is_alive = quiet == "keepalives go on"
        await alive(peer)

    is_last = asyncio.Event()
    async with raw_server(server) as uri, FileClient.connect(uri, options=SHORT) as files:
        error = await failure(files.upload_from("a", b"x" * 1000))
        assert is_last.is_set()
        assert isinstance(error, Stalled if quiet == "keepalives go on" else ConnectionLost)


async def test_a_peer_that_stops_reading() -> None:
    async def stops(peer: RawPeer) -> None:
        async def say() -> None:
            while True:
                await peer.send(frame(0, 0x03, 0, bytes(8)))
                await asyncio.sleep(0.1)

        await peer.reader.readexactly(3)
        await say()

    async with raw_server(stops) as uri, FileClient.connect(uri, options=SHORT) as files:
        ends = await asyncio.gather(failure(files.upload("a", bytes(16 * MIB))), failure(files.download("a")))
        assert [type(end) for end in ends] == [Stalled, Stalled]


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(frame(1, 0x0A, 0x60, b"x" * 100)[:50], id="half a frame"),
        pytest.param(frame(0, ERROR, 0, struct.pack(">I", CONNECTION_ERROR) + b"going away"), id="an error"),
    ],
)
async def test_a_peer_that_closes_when_asked(last: bytes, tmp_path: Path) -> None:
    async def closes(peer: RawPeer) -> None:
        asked = 0
        while asked < len(METHODS) and (got := await peer.receive(60)) is not None:
            asked += got.kind in (REQUEST_RESPONSE, REQUEST_STREAM, REQUEST_CHANNEL)
        await peer.send(last)

    async with raw_server(closes) as uri, FileClient.connect(uri, options=SHORT) as files:
        assert await failures(files, tmp_path) == all_are(ConnectionLost)


async def test_a_killed_server_ends_pending_and_later_requests(tmp_path: Path) -> None:
    async with server_process() as server, FileClient.connect(server.uri, options=SHORT) as files:
        await files.upload("a", bytes(64 * MIB))
        pending = [
            files.download("a"),
            files.upload("b", bytes(64 * MIB)),
            files.download_to("a", tmp_path / "a"),
            files.upload_from("b", slowly(bytes(64 * MIB))),
        ]
        begun = [asyncio.ensure_future(one.pipe(ops.to_list())) for one in pending]
        await asyncio.sleep(0.01)
        server.process.kill()
        async with asyncio.timeout(PATIENCE):
            ends = await asyncio.gather(*begun, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, ConnectionFailed)] == []
        assert type(ends[0]) is ConnectionLost
        assert await failures(files, tmp_path) == all_are(ConnectionFailed)


# A slow peer isn't silent


async def test_a_slow_link_is_not_taken_for_dead(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2000
    async with serve(data=ChatData({"a": content})) as server, Relay(server.uri) as relay:
        relay.bytes_per_second = 500_000
        # A fragment of 600 kB takes over a second, twice `keepalive_timeout`.
        async with FileClient.connect(relay.uri, options=replace(SHORT, progress_timeout=5)) as files:
            states: list[ConnectionState] = []
            files.connection_state().subscribe(states.append)
            down, to, up = await asyncio.gather(
                files.download("a"),
                files.download_to("a", tmp_path / "a"),
                files.upload_from("b", content, chunk_size=64 * 1024),
            )
            assert down == (tmp_path / "a").read_bytes() == server.data.files["b"] == content
            assert isinstance(to, Completed)
            assert isinstance(up, Completed)
            assert states == [Connected()]


# Deadlines


async def test_a_deadline_ends_an_operation_long_before_it_has_stalled(tmp_path: Path) -> None:
    async with raw_server(alive) as uri, FileClient.connect(uri, options=ConnectOptions(progress_timeout=60)) as files:
        late = [
            files.upload("a", b"x", deadline=0.2),
            files.download("a", deadline=0.2),
            files.list_files(deadline=0.2),
            files.list_files(details=True, deadline=0.2),
            files.upload_from("a", b"x", deadline=0.2),
            files.download_to("a", tmp_path / "a", deadline=0.2),
            files.download_chunks("a", deadline=0.2),
            files.stat("a", deadline=0.2),
            files.delete("a", deadline=0.2),
        ]
        for error in await asyncio.gather(*map(failure, late)):
            assert isinstance(error, DeadlineExceeded)
            assert isinstance(error, TimeoutError)
        await files.settle()
        assert not open_streams(files)


async def test_a_deadline_covers_the_connecting(tmp_path: Path) -> None:
    patient = ConnectOptions(reconnect_timeout=60)
    async with server_process() as server, FileClient.connect(server.uri, options=patient) as files:
        server.process.kill()
        await eventually(lambda: files._connector.current() is None)
        assert isinstance(await failure(files.download("a", deadline=0.3)), DeadlineExceeded)
        assert isinstance(await failure(files.upload_from("a", b"x", deadline=0.3)), DeadlineExceeded)


# Reconnecting


async def test_the_states_of_a_connection_are_emitted_in_order() -> None:
    seen: list[ConnectionState] = []
    ended: list[str] = []
    async with (
        serve(data=ChatData({"a": b"x"})) as server,
        Relay(server.uri) as relay,
        FileClient.connect(relay.uri, options=SHORT) as files,
    ):
        files.connection_state().subscribe(seen.append, on_completed=lambda: ended.append("completed"))
        assert seen == [Connected()]
        relay.cut()
        await eventually(lambda: len(seen) == 2)
        assert await files.download("a") == b"x"
        late: list[ConnectionState] = []
        files.connection_state().subscribe(late.append)
        assert late == [Connected()]
        relay.cut()
        await eventually(lambda: len(seen) == 5)
        await relay.__aexit__()
        await failure(files.download("a"))
    kinds = [type(state) for state in seen]
    lost = [Disconnected, Connecting]
    assert kinds == [Connected, *lost, Connected, *lost, Disconnected]
    causes = [state.cause for state in seen if isinstance(state, Disconnected)]
    assert [type(cause) for cause in causes] == [ConnectionLost, ConnectionLost, ConnectionFailed]
    assert ended == ["completed"]
    assert late[-1] == seen[-1]


async def test_one_attempt_is_shared_by_all_requests(tmp_path: Path) -> None:
    async with (
        serve(data=ChatData({"a": b"x"})) as server,
        Relay(server.uri) as relay,
        FileClient.connect(relay.uri, options=SHORT) as files,
    ):
        relay.cut()
        await eventually(lambda: files._connector.current() is None)
        waiting = [asyncio.ensure_future(files.download("a").pipe(ops.to_list())) for _ in range(200)]
        given_up = [files.download("a").subscribe() for _ in range(100)]
        await asyncio.sleep(0)
        for one in given_up:
            one.dispose()
        assert await asyncio.gather(*waiting) == [[b"x"]] * 200
        assert relay.accepted == 2


async def test_a_peer_that_closes_each_connection_at_once_sees_no_storm() -> None:
    attempts = 0

    async def slams(peer: RawPeer) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            try:
                while await peer.receive(0.3):
                    pass
            except TimeoutError:
                pass

    options = ConnectOptions(reconnect_timeout=1.0, reconnect_base=0.1, reconnect_cap=0.4, keepalive_period=0.1)
    async with raw_server(slams) as uri, FileClient.connect(uri, options=options) as files:
        await eventually(lambda: files._connector.current() is None)
        attempts = 1
        errors = await asyncio.gather(*(failure(files.download("a")) for _ in range(100)))
        assert {type(error) for error in errors} == {ConnectionFailed}
        # At 0, 0.05 to 0.1, then 0.1 to 0.2, then 0.2 to 0.4 each, within 1 s.
        assert 3 <= attempts <= 9


async def test_attempts_are_bounded_by_their_deadline_and_a_later_subscription_tries_again() -> None:
    async with server_process() as server, FileClient.connect(server.uri, options=SHORT) as files:
        server.process.kill()
        await eventually(lambda: files._connector.current() is None)
        for _ in range(2):
            assert isinstance(await failure(files.download("a")), ConnectionFailed)


# Closing


async def test_close_ends_pending_and_later_requests(tmp_path: Path) -> None:
    got: list[Exception] = []
    async with raw_server(alive) as uri:
        async with FileClient.connect(uri) as files:
            for ask in METHODS.values():
                ask(files, tmp_path).subscribe(lambda _: None, got.append)
            await asyncio.sleep(0.05)
            assert not got
        await eventually(lambda: len(got) == len(METHODS))
        assert {type(error) for error in got} == {ClientClosed}
        assert not is_retryable(got[0])
        assert await failures(files, tmp_path) == all_are(ClientClosed)


async def test_close_ends_requests_that_wait_for_a_connection(tmp_path: Path) -> None:
    got: list[Exception] = []
    async with serve() as server, Relay(server.uri) as relay:
        async with FileClient.connect(relay.uri, options=ConnectOptions(reconnect_timeout=60)) as files:
            await relay.__aexit__()
            await eventually(lambda: files._connector.current() is None)
            for ask in METHODS.values():
                ask(files, tmp_path).subscribe(lambda _: None, got.append)
            await asyncio.sleep(0.1)
            assert not got
        await eventually(lambda: len(got) == len(METHODS))
        assert {type(error) for error in got} == {ClientClosed}


async def test_close_in_any_event_loop_iteration_leaves_no_request_waiting(tmp_path: Path) -> None:
    """Each method under way; closed after 0, 3, 6, … iterations."""
    async with serve(data=ChatData({"a": bytes(MIB)})) as server:
        for iterations in range(0, 60, 3):
            ends = await closed_after(server.uri, iterations, tmp_path)
            # `delete` may have been first; everything else is complete, or closed.
            assert {type(end) for end in ends} <= {type(None), ClientClosed, NotFound}, ends
            server.data.files["a"] = bytes(MIB)


async def closed_after(uri: str, iterations: int, folder: Path) -> list[object]:
    """How the methods end if the client is closed that many event-loop iterations after the subscriptions."""
    ends: list[object] = []
    async with FileClient.connect(uri) as files:
        for number, ask in enumerate(METHODS.values()):
            to = folder / f"{iterations} {number}"
            to.mkdir()
            ask(files, to).subscribe(lambda _: None, ends.append, lambda: ends.append(None))
        for _ in range(iterations):
            await asyncio.sleep(0)
    await eventually(lambda: len(ends) == len(METHODS), PATIENCE)
    return ends


async def test_progress_that_is_slow_is_progress() -> None:
    """Each chunk arrives before the timeout; all of them take much longer."""
    content = bytes(600_000)
    async with serve(data=ChatData({"a": content})) as server, Relay(server.uri) as relay:
        relay.bytes_per_second = 300_000
        async with FileClient.connect(relay.uri, options=SHORT) as files:
            events = await files.upload_from("b", content, chunk_size=100_000).pipe(ops.to_list())
            assert isinstance(events[0], Started)
            assert isinstance(events[-1], Completed)
            assert all(isinstance(event, Progress) for event in events[1:-1])
