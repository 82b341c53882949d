"""The RSocket specification to the letter, with frames made by hand: what each side has to do, and to ignore."""

import asyncio
import logging
import struct
from collections.abc import AsyncGenerator, Callable

import pytest

from rx_client import ConnectOptions, FileClient
from server import ChatData, FileServer, Limits, serve
from shared.engine import ClientEngine
from shared.errors import ClientClosed
from tests.security.support import (
    INVALID_SETUP,
    REJECTED_RESUME,
    REJECTED_SETUP,
    UNSUPPORTED_SETUP,
    channel,
    chunks,
    download,
    receive,
    refused,
    stat,
    upload,
    warnings,
)
from tests.support import (
    CANCEL,
    COMPLETE,
    COMPOSITE,
    CONNECTION_ERROR,
    ERROR,
    FOLLOWS,
    IGNORE,
    INVALID,
    KEEPALIVE,
    LEASE,
    METADATA,
    METADATA_PUSH,
    NEXT,
    PAYLOAD,
    REJECTED,
    REQUEST_CHANNEL,
    REQUEST_FNF,
    REQUEST_N,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RESPOND,
    SETUP,
    RawFrame,
    RawPeer,
    client_stream_ids,
    eventually,
    frame,
    name_item,
    payload,
    raw_peer,
    raw_server,
    request,
    request_n,
    route_item,
    server_stream_ids,
    setup,
    transfer_item,
)

RESUME, RESUME_OK, EXT = 0x0D, 0x0E, 0x3F
CONNECTION_CLOSE = 0x102
CONTENT = b"content of a file"
MIMES = b"".join(bytes([len(mime)]) + mime for mime in (COMPOSITE, b"application/octet-stream"))
HEAD = struct.pack(">HHII", 1, 0, 10_000, 60_000)
RESUME_BODY = struct.pack(">HHH", 1, 0, 2) + b"id" + bytes(16)


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData({"a": CONTENT, "large": bytes(3_000_000)})) as serving:
        yield serving


def error(stream_id: int, code: int, text: bytes = b"x") -> bytes:
    return frame(stream_id, ERROR, 0, struct.pack(">I", code) + text)


async def is_served(peer: RawPeer, stream_id: int = 1001) -> None:
    """Asserts that the connection goes on: the next frame is the answer to a new request."""
    await peer.send(download(stream_id, b"a"))
    got = await receive(peer)
    assert (got.stream_id, got.kind, got.data) == (stream_id, PAYLOAD, CONTENT), got


async def granted(peer: RawPeer, stream_id: int) -> None:
    """Returns when the server has asked for items of the stream."""
    while (got := await receive(peer)).kind != REQUEST_N:
        assert (got.stream_id, got.kind) == (stream_id, PAYLOAD), got


async def completed(peer: RawPeer, stream_id: int) -> bytes:
    """The data of the stream's items until it completes."""
    data = b""
    while True:
        got = await receive(peer)
        assert got.stream_id == stream_id, got
        assert got.kind in (PAYLOAD, REQUEST_N), got
        data += got.data if got.kind == PAYLOAD else b""
        if got.kind == PAYLOAD and got.flags & COMPLETE:
            return data


IGNORED: dict[str, bytes] = {
    "a second SETUP": setup(),
    "a second SETUP of another version": setup(version=(9, 9)),
    "a second SETUP that is cut short": frame(0, SETUP, 0, HEAD[:5]),
    "a second SETUP that is large": setup(body=bytes(100_000)),
    "a SETUP on a stream": frame(1, SETUP, 0, HEAD + MIMES),
    **{
        f"an ERROR {code:#x} from the client": error(0, code)
        for code in (INVALID_SETUP, UNSUPPORTED_SETUP, REJECTED_SETUP, REJECTED_RESUME)
    },
    "an ERROR of a request on stream 0": error(0, 0x201),
    "an ERROR of a reserved code on stream 0": error(0, 0),
    "an ERROR of an unknown code on stream 0": error(0, 0x99),
    "an ERROR on an unknown stream": error(77, 0x201),
    "an ERROR on a stream of the server's": error(2, 0x201),
    **{
        f"{what} on stream {stream_id}": make(stream_id)
        for stream_id in (0, 2, 0x7FFFFFFE)
        for what, make in {
            "a request-response": lambda id_: stat(id_, b"a"),
            "a fire-and-forget": lambda id_: request(id_, REQUEST_FNF, route_item("files")),
            "a request-stream": lambda id_: chunks(id_, b"a"),
            "a request-channel": lambda id_: channel(id_, b"b", b'{"upload_id": "u"}'),
            "a large request": lambda id_: upload(id_, b"b", bytes(3_000_000)),
            "a request in fragments": lambda id_: (
                upload(id_, b"b", bytes(2000), flags=FOLLOWS) + frame(id_, PAYLOAD, NEXT, b"x")
            ),
        }.items()
    },
    **{
        f"{what} on stream {stream_id}": make(stream_id)
        for stream_id in (0, 2, 77, 0x7FFFFFFF)
        for what, make in {
            "a PAYLOAD": lambda id_: frame(id_, PAYLOAD, NEXT, b"x"),
            "an empty PAYLOAD": lambda id_: frame(id_, PAYLOAD, NEXT | COMPLETE),
            "a PAYLOAD that is neither": lambda id_: frame(id_, PAYLOAD, 0, b"x"),
            "a large PAYLOAD": lambda id_: frame(id_, PAYLOAD, NEXT, bytes(2_000_000)),
            "a fragment": lambda id_: frame(id_, PAYLOAD, NEXT | FOLLOWS, bytes(100_000)) * 3,
            "a CANCEL": lambda id_: frame(id_, CANCEL),
            "a REQUEST_N": lambda id_: request_n(id_, 5),
            "a REQUEST_N of 0": lambda id_: request_n(id_, 0),
        }.items()
    },
    **{
        f"{what} on stream {stream_id}": make(stream_id)
        for stream_id in (1, 2, 77)
        for what, make in {
            "a METADATA_PUSH": lambda id_: frame(id_, METADATA_PUSH, METADATA, b"x"),
            "a METADATA_PUSH without the flag": lambda id_: frame(id_, METADATA_PUSH, 0, b"x"),
            "a KEEPALIVE": lambda id_: frame(id_, KEEPALIVE, RESPOND, bytes(8)),
            "a LEASE": lambda id_: frame(id_, LEASE, 0, struct.pack(">II", 1000, 5)),
            "a RESUME": lambda id_: frame(id_, RESUME, 0, RESUME_BODY),
            "a RESUME_OK": lambda id_: frame(id_, RESUME_OK, 0, bytes(8)),
        }.items()
    },
    "a METADATA_PUSH": frame(0, METADATA_PUSH, METADATA, b"x"),
    "a LEASE": frame(0, LEASE, 0, struct.pack(">II", 1000, 5)),
    "a RESUME_OK": frame(0, RESUME_OK, 0, bytes(8)),
    "a KEEPALIVE that asks for nothing": frame(0, KEEPALIVE, 0, bytes(8) + b"data"),
    "an extension that may be ignored": frame(0, EXT, IGNORE, bytes(8)),
    "an extension on a stream": frame(1, EXT, IGNORE | METADATA, b"\xff" * 100),
    "an unknown type that may be ignored": frame(9, 0x2A, IGNORE, bytes(100_000)),
    "a reserved type that may be ignored": frame(0, 0, IGNORE),
    "a lie about metadata that may be ignored": frame(5, REQUEST_RESPONSE, IGNORE | METADATA, b"\0\0\xffabc"),
}


async def test_what_makes_no_sense_is_ignored(server: FileServer) -> None:
    async def outcome(sent: bytes) -> str:
        async with raw_peer(server.uri) as peer:
            try:
                await peer.send(sent)
                await is_served(peer)
                await peer.silence(0.05)
            except (AssertionError, ConnectionError) as error:
                return str(error)
            return "ignored"

    outcomes = {what: await outcome(sent) for what, sent in IGNORED.items()}
    assert outcomes == dict.fromkeys(IGNORED, "ignored")


async def test_nothing_is_held_of_what_is_ignored(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(*IGNORED.values())
        await is_served(peer)
        (connection,) = server._connections.values()
        assert not connection.reassembler.held_bytes
        assert not connection.reassembler.pending


async def test_ignoring_is_logged_once(server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with raw_peer(server.uri) as peer:
            await peer.send(*IGNORED.values())
            await is_served(peer)
    (line,) = [record.getMessage() for record in caplog.records if "ignored" in record.getMessage()]
    assert line.endswith("more of it isn't logged")
    assert warnings(caplog) == []


async def test_frames_that_are_ignored_are_limited_in_number() -> None:
    floods = [setup(), stat(2, b"a"), frame(0, CANCEL), frame(77, PAYLOAD, NEXT | FOLLOWS, b"x"), error(77, 0x201)]
    for sent in floods:
        async with serve(limits=Limits(max_errors_per_minute=20)) as server, raw_peer(server.uri) as peer:
            await peer.send(sent * 20)
            await peer.silence(0.05)
            await peer.send(sent * 20)
            code, text = await refused(peer)
            assert code == CONNECTION_ERROR
            assert text.startswith("too_many_errors")


async def test_frames_of_streams_that_have_ended_are_not_limited() -> None:
    """They may have crossed with the stream's end."""
    limits = Limits(max_errors_per_minute=20)
    async with serve(data=ChatData({"a": CONTENT}), limits=limits) as server, raw_peer(server.uri) as peer:
        for stream_id in range(1, 101, 2):
            await is_served(peer, stream_id)
            await peer.send(frame(stream_id, CANCEL), request_n(stream_id, 1), frame(stream_id, PAYLOAD, NEXT, b"x"))
            await peer.send(frame(stream_id + 2, CANCEL))  # a request that was withdrawn before it was sent
        await is_served(peer)


@pytest.mark.parametrize("second", [stat, download, chunks])
async def test_a_request_on_a_stream_that_is_in_use_is_ignored(
    second: Callable[[int, bytes], bytes], server: FileServer
) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(chunks(1, b"large"))
        assert (await receive(peer)).stream_id == 1
        await peer.send(second(1, b"a"), upload(1, b"b", bytes(3_000_000)), frame(1, EXT, IGNORE))
        await peer.send(request_n(1, 1))
        got = await receive(peer)
        assert (got.stream_id, got.kind, len(got.data)) == (1, PAYLOAD, 262_144)
        await is_served(peer)


@pytest.mark.parametrize("size", [10, 100_000, 2_000_000])
async def test_a_request_inside_a_fragmented_one_is_ignored(size: int, server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(
            upload(1, b"b", b"one", flags=FOLLOWS),
            upload(1, b"c", bytes(size)),
            chunks(1, b"a"),
            frame(1, PAYLOAD, NEXT | FOLLOWS, b"two"),
            stat(1, b"a"),
            frame(1, PAYLOAD, NEXT, b"three"),
        )
        got = await receive(peer)
        assert (got.stream_id, got.kind) == (1, PAYLOAD)
        assert server.data.files == {"a": CONTENT, "large": bytes(3_000_000), "b": b"onetwothree"}
        await is_served(peer)


async def test_follows_is_ignored_where_a_payload_completes(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(upload(1, b"b", b"one", flags=FOLLOWS), frame(1, PAYLOAD, NEXT | FOLLOWS | COMPLETE, b"two"))
        assert (await receive(peer)).stream_id == 1
        assert server.data.files["b"] == b"onetwo"
        end = transfer_item(size=5, digest=None)
        await peer.send(channel(3, b"c", b'{"upload_id": "u", "digest": null}'))
        await granted(peer, 3)
        flag, body = payload(end, b"three")
        await peer.send(frame(3, PAYLOAD, flag | NEXT | FOLLOWS | COMPLETE, body))
        await eventually(lambda: server.data.files.get("c") == b"three")


KNOWN_FLAGS = {
    REQUEST_RESPONSE: METADATA | FOLLOWS,
    REQUEST_FNF: METADATA | FOLLOWS,
    REQUEST_STREAM: METADATA | FOLLOWS,
    REQUEST_CHANNEL: METADATA | FOLLOWS | COMPLETE,
    PAYLOAD: METADATA | FOLLOWS | COMPLETE | NEXT,
    REQUEST_N: 0,
    CANCEL: 0,
    ERROR: 0,
    KEEPALIVE: RESPOND,
    METADATA_PUSH: METADATA,
    LEASE: METADATA,
}


@pytest.mark.parametrize("unknown", [1 << bit for bit in range(10)])
async def test_flags_that_a_kind_does_not_have_are_ignored(unknown: int, server: FileServer) -> None:
    """The ignore flag is for kinds that the receiver doesn't know."""

    def flag(kind: int) -> int:
        return unknown & ~KNOWN_FLAGS[kind]

    metadata = route_item("file.download") + name_item(b"a")
    async with raw_peer(server.uri) as peer:
        await peer.send(request(1, REQUEST_RESPONSE, metadata, flags=flag(REQUEST_RESPONSE)))
        assert (await receive(peer)).data == CONTENT
        await peer.send(request(3, REQUEST_STREAM, metadata, flags=flag(REQUEST_STREAM)))
        assert await completed(peer, 3) == CONTENT
        await peer.send(chunks(5, b"large"))
        assert (await receive(peer)).stream_id == 5
        await peer.send(frame(5, REQUEST_N, flag(REQUEST_N), struct.pack(">I", 1)))
        assert (await receive(peer)).stream_id == 5
        await peer.send(frame(5, CANCEL, flag(CANCEL)))
        await eventually(lambda: not server_stream_ids(server))
        metadata = route_item("file.upload") + name_item(b"b")
        await peer.send(
            request(7, REQUEST_RESPONSE, metadata, b"x" * 10, flags=FOLLOWS | flag(REQUEST_RESPONSE)),
            frame(7, PAYLOAD, NEXT | FOLLOWS | flag(PAYLOAD), b"y" * 10),
            frame(7, PAYLOAD, NEXT | flag(PAYLOAD), b"z" * 10),
        )
        assert (await receive(peer)).stream_id == 7
        assert server.data.files["b"] == b"x" * 10 + b"y" * 10 + b"z" * 10
        await peer.send(
            request(9, REQUEST_FNF, route_item("files"), flags=flag(REQUEST_FNF)),
            frame(0, METADATA_PUSH, METADATA | flag(METADATA_PUSH), b"x"),
            frame(0, LEASE, flag(LEASE), struct.pack(">II", 1000, 5)),
            frame(77, ERROR, flag(ERROR), struct.pack(">I", 0x201)),
        )
        metadata = route_item("file.upload") + name_item(b"c") + transfer_item(upload_id="u", digest=None)
        await peer.send(request(11, REQUEST_CHANNEL, metadata, n=100, flags=flag(REQUEST_CHANNEL)))
        await granted(peer, 11)
        flags, body = payload(transfer_item(size=30, digest=None), b"z" * 10)
        await peer.send(
            frame(11, PAYLOAD, NEXT | flag(PAYLOAD), b"x" * 10),
            frame(11, PAYLOAD, NEXT | FOLLOWS | flag(PAYLOAD), b"y" * 5),
            frame(11, PAYLOAD, NEXT | flag(PAYLOAD), b"y" * 5),
            frame(11, PAYLOAD, flags | NEXT | COMPLETE | flag(PAYLOAD), body),
        )
        await eventually(lambda: server.data.files.get("c") == b"x" * 10 + b"y" * 10 + b"z" * 10)
        await completed(peer, 11)
        peer.is_alive = False
        await peer.send(frame(0, KEEPALIVE, RESPOND | flag(KEEPALIVE), bytes(8) + b"echo"))
        got = await _next_frame(peer)
        assert (got.stream_id, got.kind, got.flags, got.body) == (0, KEEPALIVE, 0, bytes(8) + b"echo")
        await is_served(peer)


async def _next_frame(peer: RawPeer) -> RawFrame:
    """The next frame, keepalives included."""
    async with asyncio.timeout(5):
        length = int.from_bytes(await peer.reader.readexactly(3), "big")
        body = await peer.reader.readexactly(length)
    stream_id, type_and_flags = struct.unpack_from(">IH", body)
    return RawFrame(stream_id, type_and_flags >> 10, type_and_flags & 0x3FF, body[6:])


@pytest.mark.parametrize("data", [b"", b"x", bytes(10_000)])
async def test_the_data_of_a_keepalive_is_echoed(data: bytes, server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(frame(0, KEEPALIVE, RESPOND, b"\xff" * 8 + data), frame(0, KEEPALIVE, 0, bytes(8)))
        got = await _next_frame(peer)
        assert (got.stream_id, got.kind, got.flags, got.body[8:]) == (0, KEEPALIVE, 0, data)
        await is_served(peer)


# The SETUP

FIRST: dict[str, tuple[bytes, int]] = {
    **{
        f"a SETUP of {length} bytes": (frame(0, SETUP, 0, (HEAD + MIMES)[:length]), INVALID_SETUP)
        for length in range(len(HEAD + MIMES))
    },
    "a SETUP without an end of its metadata": (frame(0, SETUP, METADATA, HEAD + MIMES), INVALID_SETUP),
    "a SETUP with half a length": (frame(0, SETUP, METADATA, HEAD + MIMES + b"\0\0"), INVALID_SETUP),
    "a SETUP that lies about its metadata": (
        frame(0, SETUP, METADATA, HEAD + MIMES + b"\0\0\xffabc"),
        INVALID_SETUP,
    ),
    "a lying SETUP that may be ignored": (
        frame(0, SETUP, METADATA | IGNORE, HEAD + MIMES + b"\0\0\xffabc"),
        INVALID_SETUP,
    ),
    "a SETUP that lies about its mimetype": (frame(0, SETUP, 0, HEAD + b"\xff" + MIMES), INVALID_SETUP),
    "a keepalive time of 0": (frame(0, SETUP, 0, struct.pack(">HHII", 1, 0, 0, 60_000) + MIMES), INVALID_SETUP),
    "a lifetime of 0": (frame(0, SETUP, 0, struct.pack(">HHII", 1, 0, 10_000, 0) + MIMES), INVALID_SETUP),
    "a lifetime of the reserved bit": (
        frame(0, SETUP, 0, struct.pack(">HHII", 1, 0, 10_000, 0x80000000) + MIMES),
        INVALID_SETUP,
    ),
    "a SETUP on a stream": (frame(1, SETUP, 0, HEAD + MIMES), INVALID_SETUP),
    "a SETUP that is too large": (setup(body=bytes(1_000_000)), INVALID_SETUP),
    "another version": (setup(version=(2, 0)), UNSUPPORTED_SETUP),
    "a SETUP with resumption": (frame(0, SETUP, 0x80, HEAD + b"\0\x02id" + MIMES), REJECTED_SETUP),
    "a SETUP with half a token": (frame(0, SETUP, 0x80, HEAD + b"\xff\xffid" + MIMES), INVALID_SETUP),
    "a SETUP with a lease": (frame(0, SETUP, 0x40, HEAD + MIMES), UNSUPPORTED_SETUP),
    "a RESUME": (frame(0, RESUME, 0, RESUME_BODY), REJECTED_RESUME),
    "half a RESUME": (frame(0, RESUME, 0, RESUME_BODY[:5]), REJECTED_RESUME),
    "a RESUME on a stream": (frame(1, RESUME, 0, RESUME_BODY), INVALID_SETUP),
    **{
        what: (sent, INVALID_SETUP)
        for what, sent in {
            "a request-response": stat(1, b"a"),
            "a large request": upload(1, b"a", bytes(1_000_000)),
            "a fragment": upload(1, b"a", bytes(100), flags=FOLLOWS),
            "a request-stream": chunks(1, b"a"),
            "a request-channel": channel(1, b"a", b"{}"),
            "a fire-and-forget": request(1, REQUEST_FNF, route_item("files")),
            "a request on stream 0": stat(0, b"a"),
            "a request on stream 2": stat(2, b"a"),
            "a PAYLOAD": frame(1, PAYLOAD, NEXT, b"x"),
            "a PAYLOAD on stream 0": frame(0, PAYLOAD, NEXT, b"x"),
            "a CANCEL": frame(1, CANCEL),
            "a CANCEL on stream 0": frame(0, CANCEL),
            "a REQUEST_N": request_n(1, 1),
            "an ERROR": error(1, 0x201),
            "an ERROR on stream 0": error(0, INVALID_SETUP),
            "a KEEPALIVE": frame(0, KEEPALIVE, RESPOND, bytes(8)),
            "half a KEEPALIVE": frame(0, KEEPALIVE, RESPOND, bytes(3)),
            "a METADATA_PUSH": frame(0, METADATA_PUSH, METADATA, b"x"),
            "a METADATA_PUSH on a stream": frame(1, METADATA_PUSH, METADATA, b"x"),
            "a LEASE": frame(0, LEASE, 0, struct.pack(">II", 1000, 5)),
            "a RESUME_OK": frame(0, RESUME_OK, 0, bytes(8)),
            "an extension": frame(0, EXT, 0, bytes(4)),
            "an extension that may be ignored": frame(0, EXT, IGNORE, bytes(4)),
            "an unknown type": frame(0, 0x2A),
            "an empty frame": bytes(3),
            "a frame that is shorter than its header": b"\0\0\x05hello",
            "another protocol": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        }.items()
    },
}


async def test_what_a_connection_must_not_begin_with(server: FileServer) -> None:
    async def outcome(sent: bytes) -> int:
        async with raw_peer(server.uri, set_up=False) as peer:
            await peer.send(sent)
            code, text = await refused(peer)
            return code if ": " in text and not text.startswith("timeout") else 0

    outcomes = await asyncio.gather(*(outcome(sent) for sent, _ in FIRST.values()))
    assert dict(zip(FIRST, outcomes, strict=True)) == {what: code for what, (_, code) in FIRST.items()}


@pytest.mark.parametrize("flags", [0x10, 0x1F, 0x20, IGNORE, IGNORE | 0x3F])
async def test_flags_that_a_setup_does_not_have_are_ignored(flags: int, server: FileServer) -> None:
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(frame(0, SETUP, flags, HEAD + MIMES))
        await is_served(peer)


async def test_the_reserved_bits_of_a_setup_are_ignored(server: FileServer) -> None:
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(frame(0, SETUP, 0, struct.pack(">HHII", 1, 0, 0x8000_2710, 0x8000_EA60) + MIMES))
        await is_served(peer)


@pytest.mark.parametrize("mime", [b"", b"x", b"\xff" * 255, b"text/plain\0"])
async def test_a_data_mimetype_of_any_kind(mime: bytes, server: FileServer) -> None:
    async with raw_peer(server.uri, set_up=False) as peer:
        mimes = bytes([len(COMPOSITE)]) + COMPOSITE + bytes([len(mime)]) + mime
        await peer.send(frame(0, SETUP, 0, HEAD + mimes + b"data"))
        await is_served(peer)


# What ends a connection

ENDING: dict[str, bytes] = {
    "an unknown type": frame(1, 0x2A),
    "a reserved type": frame(0, 0),
    "an extension": frame(0, EXT, 0, bytes(4)),
    "an empty frame": bytes(3),
    "a frame that is shorter than its header": b"\0\0\x05hello",
    "a lie about metadata": frame(1, REQUEST_RESPONSE, METADATA, b"\0\0\xffabc"),
    "a lie about an item's metadata": frame(77, PAYLOAD, METADATA | NEXT, b"\0\0\xffabc"),
    "half a length of metadata": frame(1, REQUEST_RESPONSE, METADATA, b"\0\0"),
    "a request without its request-n": frame(1, REQUEST_STREAM, 0, b"\0\0"),
    "half a REQUEST_N": frame(1, REQUEST_N, 0, b"\0\0"),
    "half an ERROR": frame(1, ERROR, 0, b"\0\0"),
    "half a KEEPALIVE": frame(0, KEEPALIVE, RESPOND, bytes(3)),
    "a RESUME after the SETUP": frame(0, RESUME, 0, RESUME_BODY),
    "an ERROR of the connection": error(0, CONNECTION_ERROR),
}


@pytest.mark.parametrize("what", ENDING)
async def test_what_ends_a_connection(what: str, server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(ENDING[what])
        code, _ = await refused(peer)
        assert code == CONNECTION_ERROR


async def test_a_connection_that_the_client_closes_ends_when_its_streams_have(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(chunks(1, b"large", n=2), error(0, CONNECTION_CLOSE), stat(3, b"a"))
        got = [await receive(peer) for _ in range(3)]
        assert [each.kind for each in got if each.stream_id == 1] == [PAYLOAD] * 2
        (refusal,) = [each for each in got if each.stream_id == 3]
        assert refusal.kind == ERROR
        await peer.silence(0.7)
        await peer.send(request_n(1, 1000))
        while not (got_last := await receive(peer)).flags & COMPLETE:
            assert got_last.stream_id == 1
        while (last := await peer.receive()) is not None:
            assert last.stream_id == 0


async def test_a_connection_without_streams_that_the_client_closes_ends(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(error(0, CONNECTION_CLOSE))
        while (last := await peer.receive()) is not None:
            assert last.stream_id == 0


# Streams


@pytest.mark.parametrize("sent", [chunks(1, b"a", n=0), channel(1, b"b", b'{"upload_id": "u"}', n=0)])
async def test_an_initial_request_n_of_0_is_refused(sent: bytes, server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(sent)
        while (got := await receive(peer)).kind in (CANCEL, REQUEST_N):
            pass
        assert (got.stream_id, got.kind, got.error[0]) == (1, ERROR, INVALID)
        await peer.send(download(1001, b"a"))
        while (got := await receive(peer)).kind == CANCEL:  # for clients that go on after an ERROR
            assert got.stream_id == 1
        assert (got.stream_id, got.data) == (1001, CONTENT)


async def test_a_request_that_is_cancelled_between_its_fragments(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(
            upload(1, b"b", b"one", flags=FOLLOWS),
            frame(1, CANCEL),
            frame(1, PAYLOAD, NEXT | FOLLOWS, b"two"),
            frame(1, PAYLOAD, NEXT, b"three"),
        )
        await is_served(peer)
        assert "b" not in server.data.files
        # The peer may use the id again once it has used all others.
        await peer.send(upload(1, b"b", b"one", flags=FOLLOWS), frame(1, PAYLOAD, NEXT, b"two"))
        assert (await receive(peer)).stream_id == 1
        assert server.data.files["b"] == b"onetwo"


async def test_payloads_of_a_stream_that_takes_none_hold_nothing(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(chunks(1, b"large"))
        assert (await receive(peer)).stream_id == 1
        (connection,) = server._connections.values()
        for _ in range(8):
            await peer.send(frame(1, PAYLOAD, NEXT | FOLLOWS, bytes(1_000_000)))
            assert connection.reassembler.held_bytes <= 64
        await is_served(peer)
        assert not connection.reassembler.held_bytes


async def test_items_after_the_last_are_ignored(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(channel(1, b"b", b'{"upload_id": "u", "digest": null}'))
        await granted(peer, 1)
        flag, body = payload(transfer_item(size=1, digest=None), b"x")
        await peer.send(frame(1, PAYLOAD, flag | NEXT | COMPLETE, body), *[frame(1, PAYLOAD, NEXT, b"y")] * 5)
        await completed(peer, 1)
        assert server.data.files["b"] == b"x"
        await is_served(peer)


async def test_an_error_that_is_no_text_ends_a_channel(server: FileServer) -> None:
    async with raw_peer(server.uri) as peer:
        await peer.send(channel(1, b"b", b'{"upload_id": "u"}'), error(1, 0x201, b"\xff\xfe"))
        await eventually(lambda: not server.work.active)
        await eventually(lambda: not server_stream_ids(server))


# The client


async def a_request(peer: RawPeer) -> RawFrame:
    while (got := await receive(peer)).kind in (SETUP, CANCEL, REQUEST_N):
        pass
    return got


IGNORED_BY_CLIENTS: dict[str, Callable[[int], bytes]] = {
    "a SETUP": lambda _: setup(),
    "half a SETUP": lambda _: frame(0, SETUP, 0, HEAD[:5]),
    "a RESUME": lambda _: frame(0, RESUME, 0, RESUME_BODY),
    "a RESUME_OK": lambda _: frame(0, RESUME_OK, 0, bytes(8)),
    "a LEASE": lambda _: frame(0, LEASE, 0, struct.pack(">II", 1, 0)),
    "a METADATA_PUSH": lambda _: frame(0, METADATA_PUSH, METADATA, b"x"),
    "a METADATA_PUSH on a stream": lambda id_: frame(id_, METADATA_PUSH, METADATA, b"x"),
    "a KEEPALIVE on a stream": lambda id_: frame(id_, KEEPALIVE, RESPOND, bytes(8)),
    **{
        f"an ERROR {code:#x} after the SETUP was accepted": lambda _, code=code: error(0, code)
        for code in (INVALID_SETUP, UNSUPPORTED_SETUP, REJECTED_SETUP, REJECTED_RESUME)
    },
    "an ERROR on an unknown stream": lambda _: error(77, 0x201),
    "a request on a stream that is in use": lambda id_: stat(id_, b"a"),
    "a large request on a stream that is in use": lambda id_: upload(id_, b"a", bytes(100_000)),
    "a request in fragments on a stream in use": lambda id_: upload(id_, b"a", b"x", flags=FOLLOWS),
    "a request on the client's side": lambda _: stat(1001, b"a"),
    "a request on stream 0": lambda _: stat(0, b"a"),
    "a CANCEL on stream 0": lambda _: frame(0, CANCEL),
    "a CANCEL on an unknown stream": lambda _: frame(77, CANCEL),
    "a REQUEST_N on an unknown stream": lambda _: request_n(77, 1),
    "a REQUEST_N of an answer": lambda id_: request_n(id_, 1),
    "a PAYLOAD on stream 0": lambda _: frame(0, PAYLOAD, NEXT | COMPLETE, b"x"),
    "a PAYLOAD on an unknown stream": lambda _: frame(77, PAYLOAD, NEXT | COMPLETE, b"x"),
    "a large PAYLOAD on an unknown stream": lambda _: frame(2, PAYLOAD, NEXT | COMPLETE, bytes(1_000_000)),
    "a fragment on an unknown stream": lambda _: frame(77, PAYLOAD, NEXT | FOLLOWS, bytes(100_000)) * 3,
    "an extension": lambda _: frame(0, EXT, IGNORE, bytes(8)),
}


async def test_what_makes_no_sense_is_ignored_by_the_client() -> None:
    async def script(peer: RawPeer) -> None:
        for make in IGNORED_BY_CLIENTS.values():
            asked = await a_request(peer)
            await peer.send(make(asked.stream_id), frame(asked.stream_id, PAYLOAD, NEXT | COMPLETE, b"answer"))
        await peer.receive()

    async with raw_server(script) as uri, FileClient.connect(uri) as files:
        for what in IGNORED_BY_CLIENTS:
            assert (what, await files.download("a")) == (what, b"answer")
        session = files._connector.current()
        assert isinstance(session, ClientEngine)
        assert not session.reassembler.held_bytes


async def test_the_requests_of_a_server_are_rejected() -> None:
    sent = {
        2: stat(2, b"a"),
        4: chunks(4, b"a"),
        6: channel(6, b"a", b"{}"),
        8: upload(8, b"a", bytes(1_000_000)),
        10: upload(10, b"a", bytes(1000), flags=FOLLOWS) + frame(10, PAYLOAD, NEXT, b"x"),
    }
    got: dict[int, tuple[int, int]] = {}

    async def script(peer: RawPeer) -> None:
        asked = await a_request(peer)
        await peer.send(request(12, REQUEST_FNF, None), request(14, REQUEST_FNF, None, bytes(100_000)), *sent.values())
        while len(got) < len(sent):
            answer = await receive(peer)
            got[answer.stream_id] = answer.kind, answer.error[0]
        await peer.send(frame(asked.stream_id, PAYLOAD, NEXT | COMPLETE, b"answer"))
        await peer.receive()

    async with raw_server(script) as uri, FileClient.connect(uri) as files:
        assert await files.download("a") == b"answer"
    assert got == dict.fromkeys(sent, (ERROR, REJECTED))


@pytest.mark.parametrize("flags", [0, NEXT, NEXT | 0x1F])
async def test_an_answer_without_its_complete_flag_is_complete(flags: int) -> None:
    async def script(peer: RawPeer) -> None:
        asked = await a_request(peer)
        await peer.send(frame(asked.stream_id, PAYLOAD, flags, b"answer"))
        await peer.receive()

    async with raw_server(script) as uri, FileClient.connect(uri) as files:
        assert await files.download("a") == b"answer"
        assert not client_stream_ids(files)


async def test_follows_is_ignored_where_an_answer_completes() -> None:
    async def script(peer: RawPeer) -> None:
        asked = await a_request(peer)
        await peer.send(frame(asked.stream_id, PAYLOAD, NEXT | FOLLOWS, b"one"))
        await peer.send(frame(asked.stream_id, PAYLOAD, NEXT | FOLLOWS | COMPLETE, b"two"))
        await peer.receive()

    async with raw_server(script) as uri, FileClient.connect(uri) as files:
        assert await files.download("a") == b"onetwo"


async def test_a_connection_that_the_server_closes_ends_when_its_streams_have() -> None:
    accepted: list[RawPeer] = []
    may_answer = asyncio.Event()

    async def script(peer: RawPeer) -> None:
        accepted.append(peer)
        asked = await a_request(peer)
        if len(accepted) == 1:
            await peer.send(error(0, CONNECTION_CLOSE, b"connection_close: maintenance"))
            await may_answer.wait()
        await peer.send(frame(asked.stream_id, PAYLOAD, NEXT | COMPLETE, b"answer %d" % len(accepted)))
        while await peer.receive() is not None:
            pass

    options = ConnectOptions(keepalive_timeout=2.0, keepalive_period=0.5)
    async with raw_server(script) as uri, FileClient.connect(uri, options=options) as files:
        first = asyncio.ensure_future(files.download("a"))
        await eventually(lambda: files._connector.current() is None)
        assert await files.download("b") == b"answer 2"
        assert not first.done()
        may_answer.set()
        assert await first == b"answer 2"
        await eventually(accepted[0].reader.at_eof)
        assert not accepted[1].reader.at_eof()


async def test_a_client_with_a_connection_that_the_server_closes_can_be_closed() -> None:
    async def script(peer: RawPeer) -> None:
        await a_request(peer)
        await peer.send(error(0, CONNECTION_CLOSE))
        await peer.receive()

    async with raw_server(script) as uri:
        async with FileClient.connect(uri) as files:
            asking = asyncio.ensure_future(files.download("a"))
            await eventually(lambda: files._connector.current() is None)
        with pytest.raises(ClientClosed):
            await asking
