"""A hostile server can't fill a client's memory, prolong its operations without progress, or hide a lost connection."""

import asyncio
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reactivex import Observable

from rx_client import Connected, ConnectionState, ConnectOptions, Disconnected, FileClient
from shared.errors import ConnectionLost, ProtocolError, Stalled, TooLarge, TransferError
from tests.security.support import MIB
from tests.security.test_phases import REQUESTS, an_item, asked, chunk, credit, receipt
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
    APPLICATION_ERROR,
    CANCEL,
    COMPLETE,
    ERROR,
    FOLLOWS,
    KEEPALIVE,
    NEXT,
    PAYLOAD,
    REQUEST_RESPONSE,
    RESPOND,
    RawPeer,
    eventually,
    frame,
    item,
    raw_server,
    transfer_item,
)

Flood = Callable[[int], bytes]


def held_bytes(files: FileClient) -> int:
    """What a client holds of incomplete payloads, and of frames that wait to be sent."""
    rsocket: Any = files._connector.current()
    if rsocket is None:
        return 0
    waiting = sum(len(getattr(each, "data", None) or b"") + 1 for each in rsocket.outbox._entries)
    return rsocket.reassembler.held_bytes + waiting


def cut_now(files: FileClient) -> None:
    rsocket: Any = files._connector.current()
    rsocket.transport.abort()


# Memory

FLOODS: dict[str, Flood] = {
    "fragments of an unknown stream": lambda _: frame(101, PAYLOAD, NEXT | FOLLOWS, bytes(100_000)),
    "fragments of many unknown streams": lambda number: frame(
        101 + 2 * number, PAYLOAD, NEXT | FOLLOWS, bytes(100_000)
    ),
    "a request without an end": lambda number: frame(
        2, PAYLOAD if number else REQUEST_RESPONSE, FOLLOWS | (NEXT if number else 0), bytes(100_000)
    ),
    "keepalives that want an answer": lambda _: frame(0, KEEPALIVE, RESPOND, bytes(10_000)) * 10,
    "requests": lambda number: b"".join(
        frame(2 + 2 * (number * 500 + each), REQUEST_RESPONSE, 0, bytes(200)) for each in range(500)
    ),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_fills_no_memory(flood: str) -> None:
    """The server sends 40 MB, and doesn't read the answers."""

    async def floods(peer: RawPeer) -> None:
        await peer.reader.readexactly(100)
        await peer.send(frame(0, KEEPALIVE, 0, bytes(8)))
        for number in range(400):
            await peer.send(FLOODS[flood](number))
            await asyncio.sleep(0)
        is_over.set()
        await is_measured.wait()

    is_over, is_measured = asyncio.Event(), asyncio.Event()
    async with raw_server(floods) as uri, FileClient.connect(uri) as files:
        most = 0
        while not is_over.is_set() and files._connector.current() is not None:
            most = max(most, held_bytes(files))
            await asyncio.sleep(0.001)
        is_measured.set()
        assert most <= 4 * MIB


async def test_an_answer_without_an_end_is_refused(tmp_path: Path) -> None:
    """Only the answer of a whole download may have any size."""

    async def endless(peer: RawPeer) -> None:
        request = await asked(peer)
        reading = asyncio.ensure_future(alive(peer))
        while not reading.done():
            await peer.send(frame(request.stream_id, PAYLOAD, NEXT | FOLLOWS, bytes(1_000_000)))

    asks = {method: ask for method, ask in METHODS.items() if method != "download"}
    for ask in asks.values():
        async with raw_server(endless) as uri, FileClient.connect(uri) as files:
            assert isinstance(await failure(ask(files, tmp_path)), TooLarge)
            assert not open_streams(files)


async def test_metadata_that_would_take_long_to_parse_is_refused_unparsed(tmp_path: Path) -> None:
    """The frames are valid but for the size of their metadata; the connection stays open."""
    fields: dict[str, object] = {"name": "a", "size": 1, "etag": "e", "digest": None, "offset": 0, "length": 1}
    metadata = transfer_item(**fields, committed=0, more=[{}] * 300_000)

    async def answers(peer: RawPeer) -> None:
        while (got := await peer.receive(PATIENCE)) is not None:
            if got.kind in REQUESTS:
                await peer.send(an_item(got.stream_id, metadata, b"x", NEXT | COMPLETE))

    async with raw_server(answers) as uri, FileClient.connect(uri, options=SHORT) as files:
        connection = files._connector.current()
        assert await failures(files, tmp_path) == all_are(TooLarge)
        assert not open_streams(files)
        assert files._connector.current() is connection


async def test_an_error_that_would_take_long_to_read_ends_the_connection(tmp_path: Path) -> None:
    async def answers(peer: RawPeer) -> None:
        request = await asked(peer)
        await peer.send(frame(request.stream_id, ERROR, 0, APPLICATION_ERROR.to_bytes(4, "big") + b"x" * MIB))
        await alive(peer)

    for ask in METHODS.values():
        async with raw_server(answers) as uri, FileClient.connect(uri, options=SHORT) as files:
            assert type(await failure(ask(files, tmp_path))) is ConnectionLost


# Frames without progress, for ever


def empty_chunks(stream_id: int) -> bytes:
    return an_item(stream_id, None)


NOTHINGS: dict[str, tuple[Ask, tuple[Flood, ...], Flood]] = {
    "credit for what isn't sent in items": (METHODS["stat"], (), credit(1)),
    "cancellations of an answer": (METHODS["download"], (), lambda id_: frame(id_, CANCEL)),
    "items that are none": (METHODS["list_files"], (), lambda id_: frame(id_, PAYLOAD)),
    "chunks without bytes": (METHODS["download_chunks"], (chunk(length=20),), empty_chunks),
    "chunks without bytes, to a path": (METHODS["download_to"], (chunk(length=20),), empty_chunks),
    "chunks without bytes, unverified": (
        lambda files, folder: files.download_to("a", folder / "b", digest=None),
        (chunk(length=20),),
        empty_chunks,
    ),
    "receipts for nothing": (METHODS["upload_from"], (receipt(0), credit(100)), receipt(0)),
    "credit, and no receipt": (METHODS["upload_from"], (), credit(1)),
    "credit, and no last receipt": (METHODS["upload_from"], (receipt(0), credit(100)), credit(1)),
}


@pytest.mark.parametrize("nothing", NOTHINGS)
async def test_endless_empty_frames_are_no_progress(nothing: str, tmp_path: Path) -> None:
    ask, first, again = NOTHINGS[nothing]

    async def sends(peer: RawPeer) -> None:
        request = await asked(peer)
        reading = asyncio.ensure_future(alive(peer))
        await peer.send(*(make(request.stream_id) for make in first))
        while not reading.done():
            await peer.send(again(request.stream_id))
            await asyncio.sleep(0.02)

    async with raw_server(sends) as uri, FileClient.connect(uri, options=SHORT) as files:
        assert type(await failure(ask(files, tmp_path))) in (Stalled, ProtocolError)
        await files.settle()
        assert not open_streams(files)


# Invalid texts


@pytest.mark.parametrize("key", ["etag", "digest"])
@pytest.mark.parametrize("method", ["download_to", "download_chunks", "stat"])
async def test_a_text_with_half_of_a_surrogate_pair_is_a_typed_error(method: str, key: str, tmp_path: Path) -> None:
    fields: dict[str, object] = {"name": "a", "size": 1, "etag": "e", "digest": None, "offset": 0, "length": 1}
    metadata = item(b"chat/file-transfer", json.dumps(fields | {key: "\ud800"}).encode())

    async def answers(peer: RawPeer) -> None:
        request = await asked(peer)
        await peer.send(an_item(request.stream_id, metadata, b"x", NEXT | 0x40))
        await alive(peer)

    async with raw_server(answers) as uri, FileClient.connect(uri, options=SHORT) as files:
        assert isinstance(await failure(METHODS[method](files, tmp_path)), TransferError)


# The connection's end


async def test_a_connection_that_ends_as_soon_as_it_is_made_leaves_no_request_waiting(tmp_path: Path) -> None:
    """The connection ends after it was made, and before the callbacks of the requests that wait for it."""
    patient = replace(SHORT, progress_timeout=60)
    async with raw_server(alive) as uri, FileClient.connect(uri, options=patient) as files:

        def cut(state: ConnectionState) -> None:
            if isinstance(state, Connected):
                cut_now(files)

        files.connection_state().subscribe(cut)
        await eventually(lambda: files._connector.current() is None)
        for _ in range(3):
            assert await failures(files, tmp_path) == all_are(ConnectionLost)


async def test_an_observer_of_the_state_that_raises_does_not_affect_the_others() -> None:
    def fails(_: object = None) -> None:
        raise ValueError("private")

    reported: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    seen: list[ConnectionState] = []
    ended: list[str] = []
    try:
        async with raw_server(alive) as uri, FileClient.connect(uri, options=SHORT) as files:
            states = files.connection_state()
            states.subscribe(lambda state: None if isinstance(state, Connected) else fails(), on_completed=fails)
            states.subscribe(seen.append, on_completed=lambda: ended.append("completed"))
            states.subscribe(on_completed=fails)
            states.subscribe(on_completed=lambda: ended.append("completed"))
            cut_now(files)
            await eventually(lambda: len(seen) == 2)
    finally:
        loop.set_exception_handler(None)
    assert [type(state) for state in seen] == [Connected, Disconnected]
    assert ended == ["completed"] * 2
    assert {str(error) for error in reported} == {"private"}


# Numbers


@pytest.mark.parametrize("deadline", [math.inf, 1e15])
async def test_a_very_long_deadline_is_accepted(deadline: float, tmp_path: Path) -> None:
    asks: list[Callable[[FileClient], Observable[Any]]] = [
        lambda files: files.stat("a", deadline=deadline),
        lambda files: files.upload_from("a", b"x", deadline=deadline),
        lambda files: files.list_files(deadline=deadline),
    ]
    async with raw_server(alive) as uri, FileClient.connect(uri, options=SHORT) as files:
        errors = await asyncio.gather(*(failure(ask(files)) for ask in asks))
        assert [type(error) for error in errors] == [Stalled] * len(asks)


@pytest.mark.parametrize("name", ["keepalive_period", "keepalive_timeout"])
@pytest.mark.parametrize("seconds", [math.inf, 1e7])
def test_a_time_that_does_not_fit_the_setup_is_a_value_error(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=name):
        ConnectOptions(**{name: seconds})
