"""Each limit, exceeded by a hostile peer on a raw socket, while an honest client is served."""

import asyncio
import struct
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from reactivex import operators as ops

from rx_client import FileClient
from server import ChatData, DirectoryStore, Limits, MemoryStore, Upload, serve
from shared.errors import StorageFull, TooLarge
from tests.security.support import (
    INVALID_SETUP,
    MIB,
    REJECTED_RESUME,
    REJECTED_SETUP,
    UNSUPPORTED_SETUP,
    channel,
    chunks,
    download,
    needs_proc,
    receive,
    refused,
    reset,
    server_process,
    serves,
    setup_frame,
    stat,
    upload,
    warnings,
)
from tests.support import (
    APPLICATION_ERROR,
    CANCEL,
    CONNECTION_ERROR,
    ERROR,
    FOLLOWS,
    KEEPALIVE,
    METADATA_PUSH,
    NEXT,
    PATIENCE,
    PAYLOAD,
    REJECTED,
    REQUEST_CHANNEL,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawPeer,
    eventually,
    frame,
    item,
    name_item,
    raw_peer,
    request,
    route_item,
    server_stream_ids,
    setup,
    transfer_item,
)

RESUMPTION = frame(0, 0x0D, 0, struct.pack(">HHH", 1, 0, 16) + b"t" * 16 + bytes(16))


def fragments(stream_id: int, name: bytes, size: int, count: int) -> list[bytes]:
    """The first `count` fragments of an upload; more would have to follow."""
    data = b"x" * size
    more = [frame(stream_id, PAYLOAD, NEXT | FOLLOWS, data)] * (count - 1)
    return [upload(stream_id, name, data, flags=FOLLOWS), *more]


# What a connection may send


async def test_a_payload_over_the_limit_is_refused_once_in_the_log_and_the_connection_stays_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serve(limits=Limits(max_request_bytes=100_000)) as server, raw_peer(server.uri) as peer:
        for stream_id in range(1, 41, 2):
            await peer.send(upload(stream_id, b"a", b"x" * 100_001))
            answer = await receive(peer)
            assert (answer.stream_id, answer.kind) == (stream_id, ERROR)
            assert answer.error[0] == APPLICATION_ERROR
            assert answer.error[1].startswith("too_large: ")
        await peer.send(upload(41, b"a", b"x" * 1000))
        assert (await receive(peer)).kind == PAYLOAD
        assert list(server.data.files) == ["a"]
        await serves(server.uri)
    assert len(warnings(caplog)) == 1


async def test_fragments_over_the_limit_are_refused_once_and_the_rest_is_skipped() -> None:
    async with serve(limits=Limits(max_request_bytes=100_000)) as server, raw_peer(server.uri) as peer:
        await peer.send(*fragments(1, b"a", 10_000, 500))
        answer = await receive(peer)
        assert (answer.stream_id, answer.error[1].split(":")[0]) == (1, "too_large")
        await peer.silence()
        await peer.send(upload(3, b"b", b"x"))
        assert (await receive(peer)).stream_id == 3
        assert server._budget.used_bytes == 0
        assert list(server.data.files) == ["b"]


BOMB = item(b"route", b"") * 25_000
"""Metadata of which four megabytes take a second to parse."""
BEGUN = request(1, REQUEST_RESPONSE, BOMB[:9000], flags=FOLLOWS)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([request(1, REQUEST_RESPONSE, BOMB)], id="whole"),
        pytest.param([request(1, REQUEST_RESPONSE, BOMB[:20_000])], id="whole, in a small frame"),
        pytest.param([BEGUN, request(1, PAYLOAD, BOMB)], id="split"),
        pytest.param([BEGUN, *[request(1, PAYLOAD, BOMB[:8000], flags=FOLLOWS)] * 9], id="in pieces"),
        pytest.param([request(1, REQUEST_STREAM, BOMB)], id="a stream's"),
        pytest.param(
            [channel(1, b"a", b'{"upload_id": "u"}'), request(1, PAYLOAD, BOMB, b"x", flags=NEXT)], id="an item's"
        ),
    ],
)
async def test_metadata_over_the_limit_is_refused_unparsed(sent: list[bytes], tmp_path: Path) -> None:
    data = ChatData(DirectoryStore(tmp_path))
    async with serve(data=data) as server, raw_peer(server.uri) as peer:
        await peer.send(*sent)
        while (answer := await receive(peer)).kind != ERROR:
            pass
        assert answer.error[1].startswith("too_large: metadata of at least ")
        assert server._budget.used_bytes == 0
        await peer.send(stat(3, b"missing"))
        while (answer := await receive(peer)).kind != ERROR:
            pass
        assert answer.error[1].startswith("not_found: ")
        await eventually(lambda: not server_stream_ids(server))


async def test_a_large_keepalive_ends_the_connection() -> None:
    """The echo of a keepalive, up to 16 MB, would wait in the server's memory for a peer that doesn't read."""
    async with serve() as server:
        for nbytes in (20_000, 100_000, 16_000_000):
            async with raw_peer(server.uri) as peer:
                await peer.send(frame(0, KEEPALIVE, 0x80, bytes(nbytes)))
                code, text = await refused(peer)
                assert code == CONNECTION_ERROR
                assert text.startswith("invalid_frame: a frame of ")


async def test_what_one_connection_holds_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(max_request_bytes=200_000, max_connection_bytes=500_000)
    async with serve(limits=limits) as server, raw_peer(server.uri) as peer:
        for stream_id in range(1, 101, 2):
            await peer.send(*fragments(stream_id, b"a", 10_000, 10))
        answers = [await receive(peer) for _ in range(46)]
        assert {answer.error for answer in answers} == {
            (REJECTED, "server_full: no room just now for a payload of this size; try again later")
        }
        assert server._budget.used_bytes <= 500_000
        await serves(server.uri)
        await peer.close()
        await eventually(lambda: server._budget.used_bytes == 0)
    assert len(warnings(caplog)) == 1


async def test_what_all_connections_hold_is_bounded_and_freed() -> None:
    async with (
        serve(limits=Limits(max_reassembly_bytes=300_000)) as server,
        raw_peer(server.uri) as first,
        raw_peer(server.uri) as second,
    ):
        await first.send(*fragments(1, b"a", 70_000, 4))
        await eventually(lambda: server._budget.used_bytes > 280_000)
        await second.send(*fragments(1, b"b", 70_000, 4))
        assert (await receive(first)).error[0] == REJECTED  # the connection that holds far more is refused
        await eventually(lambda: server._budget.used_bytes > 280_000)
        assert server._budget.used_bytes <= 300_000
        await serves(server.uri)  # a payload that fits the receive buffer doesn't count
        reset(second)
        await eventually(lambda: not server._budget.used_bytes)
        await first.send(upload(3, b"b", b"x" * 250_000))
        assert (await receive(first)).kind == PAYLOAD


async def test_a_request_too_many_is_refused_once_in_the_log_and_the_connection_stays_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    two = ChatData({"a": b"x" * 1000, "b": b""})
    async with serve(limits=Limits(max_streams=10), data=two) as server, raw_peer(server.uri) as peer:
        # Each listing has one more item than was requested.
        await peer.send(*[request(i, REQUEST_STREAM, route_item("files"), n=1) for i in range(101, 121, 2)])
        for _ in range(10):
            assert (await receive(peer)).kind == PAYLOAD
        more = {
            1001: stat(1001, b"a"),
            1003: chunks(1003, b"a"),
            1005: request(1005, REQUEST_CHANNEL, route_item("file.upload") + name_item(b"c"), n=1),
        }
        for stream_id, asked in more.items():
            await peer.send(asked)
            answer = await receive(peer)
            assert (answer.stream_id, answer.error[0]) == (stream_id, REJECTED)
            assert answer.error[1].startswith("too_many_streams: ")
        await peer.send(request(1007, REQUEST_FNF, route_item("files")))
        assert len(server_stream_ids(server)) == 10
        await serves(server.uri)
        await peer.send(frame(101, CANCEL), stat(1009, b"a"))
        assert (await receive(peer)).kind == PAYLOAD
    assert len(warnings(caplog)) == 1


async def test_a_connection_with_many_requests_leaves_others_their_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def listings(count: int) -> list[bytes]:
        return [request(id_, REQUEST_STREAM, route_item("files"), n=1) for id_ in range(1, 2 * count, 2)]

    two = ChatData({"a": b"x" * 1000, "b": b""})
    async with serve(limits=Limits(max_requests=40), data=two) as server:
        async with raw_peer(server.uri) as greedy, raw_peer(server.uri) as other:
            await greedy.send(*listings(50))
            answers = [await receive(greedy) for _ in range(50)]
            refused = [answer for answer in answers if answer.kind == ERROR]
            assert [answer.stream_id for answer in refused] == list(range(81, 101, 2))
            assert all(answer.error[1].startswith("server_full: ") for answer in refused)
            await other.send(*listings(17))
            answers = [await receive(other) for _ in range(17)]
            assert [answer.stream_id for answer in answers if answer.kind == ERROR] == [33]
            await serves(server.uri)
        await eventually(lambda: not server.work.active)
    assert len(warnings(caplog)) == 2, "one for each connection"


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        pytest.param([stat(i, b"missing") for i in range(1, 401, 2)], "not_found: ", id="answered"),
        pytest.param([upload(i, b"a", b"x" * 100_001) for i in range(1, 401, 2)], "too_large: ", id="too large"),
        pytest.param([upload(i, b"a", b"", flags=FOLLOWS) for i in range(1, 4001, 2)], "too_many_streams: ", id="half"),
    ],
)
async def test_a_peer_that_causes_error_after_error_is_closed(
    sent: list[bytes], error: str, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(max_errors_per_minute=20, max_request_bytes=100_000)
    async with serve(limits=limits) as server, raw_peer(server.uri) as peer:
        await peer.send(*sent)
        answers = 0
        while (answer := await receive(peer)).stream_id:
            assert answer.error[1].startswith(error)
            answers += 1
        assert answers <= 20
        assert answer.error[0] == CONNECTION_ERROR
        assert answer.error[1].startswith("too_many_errors: ")
        assert await peer.receive() is None
        await serves(server.uri)
        await eventually(lambda: not server.work.active)
    assert len(warnings(caplog)) == (error != "not_found: ")


# How many connections, and for how long


async def test_a_connection_too_many_is_refused_and_one_that_ends_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(limits=Limits(max_connections=3)) as server:
        peers = [await RawPeer.connect(server.uri) for _ in range(3)]
        for peer in peers:  # none is pending, and would be evicted
            await peer.send(setup(), stat(1, b"a"))
            assert (await receive(peer)).kind == ERROR
        for _ in range(10):
            async with raw_peer(server.uri) as late:
                assert await refused(late) == (REJECTED_SETUP, "server_full: too many connections; try again later")
        assert server.connections == 3
        reset(peers.pop())
        await eventually(lambda: server.connections == 2)
        await serves(server.uri)
        for peer in peers:
            await peer.close()
        await eventually(lambda: not server.connections)
    assert len(warnings(caplog)) == 1


async def test_connections_of_one_address_are_limited_if_asked_for() -> None:
    async with serve(limits=Limits(max_connections_per_address=2)) as server:
        for _ in range(5):  # the count goes down as it went up
            async with raw_peer(server.uri) as first, raw_peer(server.uri) as second:
                await first.send(stat(1, b"a"))
                await second.send(stat(1, b"a"))
                assert (await receive(first)).kind == (await receive(second)).kind == ERROR
                async with raw_peer(server.uri) as third:
                    assert (await refused(third))[1].startswith("server_full: ")
            await eventually(lambda: not server.connections)
        assert server._listener is not None
        assert not server._listener._admission._per_address
        # Proxies share one address: by default only the total counts.
        assert Limits().max_connections_per_address is None


async def test_a_connection_without_a_setup_is_closed_in_time() -> None:
    async with serve(limits=Limits(setup_seconds=0.3)) as server:

        async def end(sent: bytes) -> tuple[int, str]:
            async with raw_peer(server.uri, set_up=False) as peer:
                await peer.send(sent)
                return await refused(peer)

        ends = await asyncio.gather(*map(end, [b"", setup()[:-1]]))
        assert set(ends) == {(INVALID_SETUP, "timeout: there was no SETUP in time")}
        await eventually(lambda: not server.connections)
        assert server._budget.used_bytes == 0


async def test_a_setup_byte_by_byte_gets_no_more_time_and_delays_no_other() -> None:
    async with serve(limits=Limits(setup_seconds=0.5)) as server:

        async def loris() -> tuple[int, str]:
            async with raw_peer(server.uri, set_up=False) as peer:
                dribble = asyncio.create_task(dribbled(peer, setup()))
                try:
                    return await refused(peer)
                finally:
                    dribble.cancel()
                    await asyncio.gather(dribble, return_exceptions=True)

        async with asyncio.TaskGroup() as group:
            slow = [group.create_task(loris()) for _ in range(50)]
            await serves(server.uri)
        assert {task.result()[0] for task in slow} == {INVALID_SETUP}


async def dribbled(peer: RawPeer, wire: bytes) -> None:
    for byte in wire:
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def test_a_request_byte_by_byte_is_served_and_delays_no_other() -> None:
    async with serve() as server, raw_peer(server.uri) as peer:
        async with asyncio.TaskGroup() as group:
            group.create_task(dribbled(peer, stat(1, b"a")))
            await serves(server.uri)
        assert (await receive(peer)).error[1].startswith("not_found: ")


async def test_a_silent_peer_is_closed_and_one_with_keepalives_is_not() -> None:
    async with (
        serve(limits=Limits(idle_seconds=0.4)) as server,
        raw_peer(server.uri, set_up=False) as silent,
        raw_peer(server.uri, set_up=False) as alive,
    ):
        await silent.send(setup_frame(lifetime_ms=100))
        await alive.send(setup_frame(lifetime_ms=100))

        async def keepalives() -> None:
            while True:
                await alive.send(frame(0, KEEPALIVE, 0, struct.pack(">Q", 0)))
                await asyncio.sleep(0.05)

        task = asyncio.create_task(keepalives())
        code, text = await refused(silent)
        assert (code, text.split(":")[0]) == (CONNECTION_ERROR, "timeout")
        await alive.send(stat(1, b"a"))
        assert (await receive(alive)).stream_id == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_announced_lifetime_is_bounded() -> None:
    async with serve(limits=Limits(idle_seconds=0.1)) as server, raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup_frame(lifetime_ms=0x7FFFFFFF))
        assert (await refused(peer))[0] == CONNECTION_ERROR


async def test_a_peer_that_stops_reading_is_closed_and_its_answers_are_dropped() -> None:
    large = ChatData({"large": bytes(32 * MIB)})
    async with (
        serve(limits=Limits(blocked_seconds=0.6), data=large) as server,
        raw_peer(server.uri) as of_a_whole_file,
        raw_peer(server.uri) as of_chunks,
    ):
        await of_a_whole_file.send(download(1, b"large"))
        await of_chunks.send(chunks(1, b"large", 0x7FFFFFFF))
        await serves(server.uri)
        await eventually(lambda: not server.connections, seconds=10)
        assert not server.work.active
        assert server.work.cancelled == 2


async def test_a_peer_that_reads_slowly_is_not_closed() -> None:
    large = ChatData({"large": bytes(24 * MIB)})
    async with serve(limits=Limits(blocked_seconds=1.0), data=large) as server, raw_peer(server.uri) as peer:
        await peer.send(download(1, b"large"))
        got = 0
        while got < 24 * MIB:
            answer = await receive(peer)
            got += len(answer.data)
            await asyncio.sleep(0.1)
        assert not server_stream_ids(server)


# What is stored


async def test_a_full_memory_store_refuses_and_keeps_what_it_has() -> None:
    async with serve(limits=Limits(max_store_bytes=1_000_000)) as server, FileClient.connect(server.uri) as files:
        await files.upload("a", bytes(600_000))
        with pytest.raises(StorageFull):
            await files.upload("b", bytes(500_000))
        with pytest.raises(StorageFull):
            await files.upload_from("b", bytes(500_000), chunk_size=50_000)
        assert await files.list_files().pipe(ops.to_list()) == ["a"]
        await files.upload("a", bytes(100_000))  # replaces the file
        assert await files.download("a") == bytes(100_000)
        await files.delete("a")


async def test_unfinished_uploads_count_in_the_memory_store() -> None:
    async with serve(limits=Limits(max_store_bytes=1_000_000)) as server, raw_peer(server.uri) as peer:
        for stream_id in (1, 3, 5):
            await peer.send(channel(stream_id, b"%d" % stream_id, b'{"upload_id": "%d"}' % stream_id))
            while (await receive(peer)).kind == PAYLOAD:
                pass  # the receipt comes before the server's credit
            await peer.send(frame(stream_id, PAYLOAD, NEXT, bytes(400_000)))
            while (answer := await receive(peer)).kind not in (PAYLOAD, ERROR):
                pass
        assert answer.error[1].startswith("storage_full: ")
        assert not server.data.files


async def test_small_files_and_uploads_fill_no_memory() -> None:
    async with serve(limits=Limits(max_store_bytes=1_000_000)) as server, raw_peer(server.uri) as peer:
        await peer.send(*(upload(2 * number + 1, b"x" * 1000 + b"%d" % number, b"") for number in range(900)))
        answers = [await receive(peer) for _ in range(900)]
        assert all(answer.error[1].startswith("storage_full: ") for answer in answers if answer.kind == ERROR)
        assert len(server.data.files) == 1_000_000 // (1024 + 1003)
        server.data.files.clear()
        for number in range(1000):
            await peer.send(channel(2001 + 2 * number, b"x" * 1000, b'{"upload_id": "%d"}' % number))
            while (answer := await receive(peer)).kind == PAYLOAD:
                pass
            if answer.kind == ERROR:
                break
        assert answer.error[1].startswith("storage_full: ")
        assert number < 1000


async def test_a_file_over_the_limit_is_refused_in_a_folder(tmp_path: Path) -> None:
    data = ChatData(DirectoryStore(tmp_path, max_file_bytes=100_000))
    async with serve(data=data) as server, FileClient.connect(server.uri) as files:
        with pytest.raises(TooLarge):
            await files.upload("a", bytes(100_001))
        with pytest.raises(TooLarge):
            await files.upload_from("a", bytes(100_001))
        with pytest.raises(TooLarge):  # without its size announced
            await files.upload_from("a", (bytes(50_000) for _ in range(3)))
        assert await files.list_files().pipe(ops.to_list()) == []
        await files.upload("a", bytes(100_000))


# Violations of the protocol


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(stat(1, b"a"), INVALID_SETUP, id="a request"),
        pytest.param(chunks(1, b"a"), INVALID_SETUP, id="a stream"),
        pytest.param(channel(1, b"a", b"{}"), INVALID_SETUP, id="a channel"),
        pytest.param(request(1, REQUEST_FNF, route_item("files")), INVALID_SETUP, id="fire and forget"),
        pytest.param(frame(0, KEEPALIVE, 0x80, bytes(8)), INVALID_SETUP, id="a keepalive"),
        pytest.param(frame(0, METADATA_PUSH, 0x100, b"x"), INVALID_SETUP, id="a metadata push"),
        pytest.param(frame(0, ERROR, 0, struct.pack(">I", 0x101)), INVALID_SETUP, id="an error"),
        pytest.param(setup(version=(2, 0)), UNSUPPORTED_SETUP, id="another version"),
        pytest.param(setup(version=(0, 0)), UNSUPPORTED_SETUP, id="version 0"),
        pytest.param(setup(b"text/plain"), REJECTED_SETUP, id="other metadata"),
        pytest.param(RESUMPTION, REJECTED_RESUME, id="a resumption"),
        pytest.param((20_000).to_bytes(3, "big") + setup()[3:], INVALID_SETUP, id="a SETUP of 20,000 bytes"),
        pytest.param(b"\xff\xff\xff" + setup()[3:], INVALID_SETUP, id="a SETUP of 16 MiB"),
        pytest.param(b"\xff\xff\xff" + stat(1, b"a")[3:], INVALID_SETUP, id="a request of 16 MiB"),
        pytest.param(bytes(3), INVALID_SETUP, id="a frame of no bytes"),
        pytest.param(bytes(30_000), INVALID_SETUP, id="frames of no bytes"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", INVALID_SETUP, id="HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), INVALID_SETUP, id="TLS"),
    ],
)
async def test_a_wrong_setup_ends_the_connection_with_an_error(
    sent: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(data=ChatData({"a": b"x"})) as server:
        async with raw_peer(server.uri, set_up=False) as peer:
            # In the same segment: nothing of this may be served.
            await peer.send(sent, upload(3, b"intruder", b"x"), download(5, b"a"))
            assert (await refused(peer))[0] == code
        assert server.work.started == 0
        assert list(server.data.files) == ["a"]
        await eventually(lambda: not server.connections)
        await serves(server.uri)
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(stat(0x80000001, b"a"), id="a stream of 32 bits"),
        pytest.param(RESUMPTION, id="a resumption"),
        pytest.param(bytes(3), id="a frame of no bytes"),
        pytest.param(frame(1, 0x3E), id="an unknown frame"),
        pytest.param(frame(1, REQUEST_RESPONSE, 0x100, b"\xff\xff\xff"), id="metadata beyond the frame's end"),
    ],
)
async def test_a_violation_of_the_protocol_ends_its_connection_and_no_other(sent: bytes) -> None:
    async with serve(data=ChatData({"a": bytes(4 * MIB)})) as server, raw_peer(server.uri) as peer:
        await peer.send(sent)
        code, text = await refused(peer)
        assert code == CONNECTION_ERROR
        assert text.split(":")[0] in ("invalid_frame", "rejected_resume")
        await eventually(lambda: not server.work.active)
        await serves(server.uri)


class Broken(MemoryStore):
    """A store whose calls all fail, with a text that mustn't reach a peer."""

    def __getattribute__(self, name: str) -> Any:
        if name not in ("stat", "list", "open", "begin", "put", "published", "uploaded", "delete"):
            return super().__getattribute__(name)

        async def fail(*_: object, **__: object) -> Sequence[object]:
            raise OSError(13, "a secret", "/srv/secret/path")

        return fail


async def test_no_internal_text_reaches_a_peer_by_any_route(caplog: pytest.LogCaptureFixture) -> None:
    message = b'{"upload_id": "u", "sent_all": %s}'
    asked = {
        1: upload(1, b"a", b"x"),
        3: download(3, b"a"),
        5: stat(5, b"a"),
        7: chunks(7, b"a"),
        9: request(9, REQUEST_STREAM, route_item("files")),
        11: channel(11, b"a", message % b"false"),
        13: channel(13, b"a", message % b"true"),
        15: request(15, REQUEST_RESPONSE, route_item("file.delete") + name_item(b"a")),
        17: request(
            17,
            REQUEST_RESPONSE,
            route_item("file.upload.status") + name_item(b"a") + item(b"chat/file-transfer", message % b"true"),
        ),
    }
    async with serve(data=ChatData(Broken({}))) as server, raw_peer(server.uri) as peer:
        for stream_id, one in asked.items():
            await peer.send(one)
            while (answer := await receive(peer)).kind != ERROR:
                assert answer.kind == CANCEL
            code, text = answer.error
            assert (answer.stream_id, code) == (stream_id, APPLICATION_ERROR)
            assert text == "internal: the server failed to serve this request; its log says why"
    assert "secret" in caplog.text


# Floods, of a process whose memory is measured


@needs_proc
@pytest.mark.parametrize("is_set_up", [False, True])
async def test_400_mb_of_fragments(is_set_up: bool) -> None:
    async with server_process("--limit", "max_connection_bytes=33554432") as server:
        await serves(server.uri)
        before, served, peak = server.rss, 0, 0
        async with raw_peer(server.uri, set_up=is_set_up) as peer:

            async def flood() -> None:
                data = b"x" * 1_000_000
                try:
                    for stream_id in range(1, 801, 2):
                        await peer.send(upload(stream_id, b"a", data, flags=FOLLOWS))
                except ConnectionError:
                    assert not is_set_up

            async def read() -> None:
                try:
                    while await peer.receive(30):
                        pass
                except ConnectionError:
                    assert not is_set_up

            reading = asyncio.create_task(read())
            flooding = asyncio.create_task(flood())
            while not flooding.done() or not served:
                await serves(server.uri)
                served += 1
                peak = max(peak, server.rss)
            await flooding
            peak = max(peak, server.rss)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        assert peak - before < (64 if is_set_up else 16) * MIB
        status, log = await server.stop()
        assert status == 0
        assert log.count("\n") <= (1 if is_set_up else 0)


@needs_proc
async def test_empty_frames_by_the_hundred_thousand() -> None:
    async with server_process() as server:
        await serves(server.uri)
        before = server.rss
        async with raw_peer(server.uri) as peer:
            unknown = frame(7, PAYLOAD, NEXT) * 1_000
            await peer.send(upload(1, b"a", b"", flags=FOLLOWS), stat(11, b"missing"))
            assert (await receive(peer)).stream_id == 11  # now stream 7 may have been one that has ended
            empty = frame(1, PAYLOAD, NEXT | FOLLOWS) * 1_000
            keepalive = frame(0, KEEPALIVE, 0, bytes(8)) * 1_000
            ignored = frame(1, 0x3E, 0x200) * 1_000

            async def flood() -> None:
                for _ in range(20):
                    await peer.send(unknown, empty, keepalive, ignored, frame(9, CANCEL) * 1_000)
                await peer.send(stat(3, b"missing"))

            flooding = asyncio.create_task(flood())
            served = 0
            while not flooding.done() or not served:
                await serves(server.uri)
                served += 1
            await flooding
            assert (await peer.receive(30)).stream_id == 3
        assert server.rss - before < 16 * MIB
        assert await server.stop() == (0, "")


@needs_proc
async def test_a_thousand_successive_connections_leave_nothing_behind(tmp_path: Path) -> None:
    async with server_process("--store", str(tmp_path)) as server:

        async def visit(number: int) -> None:
            peer = await RawPeer.connect(server.uri)
            match number % 8:
                case 0:
                    pass
                case 1:
                    await peer.send(setup()[:20])
                case 2:
                    await peer.send(setup(), stat(1, b"missing"))
                    await peer.receive()
                case 3:
                    await peer.send(b"\0" * 100)
                case 4:
                    await peer.send(setup(), upload(1, b"a", b"x" * 10_000, flags=FOLLOWS))
                case 5:
                    await peer.send(setup(), upload(1, b"a", b"x" * 10_000), download(3, b"a"))
                case 6:
                    await peer.send(setup(), chunks(1, b"a", 100), frame(1, CANCEL))
                case _:
                    await peer.send(setup(), channel(1, b"c", b'{"upload_id": "u"}'))
            reset(peer) if number % 3 else await peer.close()

        for number in range(240):
            await visit(number)
        await serves(server.uri)
        await asyncio.sleep(1.2)  # longer than a peer has to read the last ERROR
        files, memory = server.fds, server.rss
        for number in range(1_000):
            await visit(number)
            if not number % 100:
                await serves(server.uri)
        await eventually(lambda: server.fds <= files)
        assert server.rss - memory < 8 * MIB
        status, log = await server.stop()
        assert (status, log) == (0, "")


async def test_small_files_for_a_peer_that_does_not_read_are_not_read(tmp_path: Path) -> None:
    data = ChatData(DirectoryStore(tmp_path))
    async with serve(data=data) as server:
        await data.store.put("small", bytes(64 * 1024))
        async with raw_peer(server.uri) as peer:
            await peer.send(*(download(stream_id, b"small") for stream_id in range(1, 2001, 2)))
            await eventually(lambda: server.work.started == 1000)
            await serves(server.uri)
            (connection, *_) = server._connections.values()
            await eventually(lambda: connection.transport.flow.blocked_since is not None)
            waiting = len(connection.outbox._entries)
            assert waiting * 64 * 1024 < 4 * MIB, f"{waiting} answers wait"
            for _ in range(1000):
                assert len((await receive(peer)).data) == 64 * 1024
        await eventually(lambda: not server.work.active)
        assert connection.answers._queued_bytes == 0


async def test_whole_frames_are_written_to_the_disk_one_by_one(tmp_path: Path) -> None:
    data = ChatData(DirectoryStore(tmp_path))
    async with serve(data=data) as server:
        put, most = data.store.put, 0

        async def noted(name: str, content: bytes) -> None:
            nonlocal most
            most = max(most, len(content))
            await put(name, content)

        data.store.put = noted
        async with raw_peer(server.uri) as peer:
            for stream_id in range(1, 11, 2):
                await peer.send(upload(stream_id, b"large%d" % stream_id, bytes([stream_id]) * 4_000_000))
            # They are published in threads, in any order.
            assert {(await receive(peer)).stream_id for _ in range(5)} == set(range(1, 11, 2))
        assert most == 0, "it was held in memory until a thread was free"
        for stream_id in range(1, 11, 2):
            assert (tmp_path / f"large{stream_id}").read_bytes() == bytes([stream_id]) * 4_000_000
        assert server._budget.used_bytes == 0


async def test_a_repeated_warning_is_logged_ten_times(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(limits=Limits(max_request_bytes=1000, max_streams=1)) as server:
        for _ in range(30):
            async with raw_peer(server.uri) as peer:
                await peer.send(upload(1, b"a", bytes(2000)))
                assert (await receive(peer)).error[1].startswith("too_large: ")
    logged = warnings(caplog)
    assert len(logged) == 10
    assert logged[-1].endswith("more of this kind isn't logged for a minute")


@needs_proc
async def test_memory_of_a_flood_is_returned_to_the_system() -> None:
    async with server_process() as server:
        await serves(server.uri)
        before = server.rss
        async with AsyncExitStack() as stack:
            for _ in range(4):
                peer = await stack.enter_async_context(raw_peer(server.uri))
                await peer.send(*fragments(1, b"a", 1_000_000, 30))
            await eventually(lambda: server.rss - before > 105 * MIB, seconds=20)
        await eventually(lambda: server.rss - before < 48 * MIB, seconds=20)
        assert await server.stop() == (0, "")


@needs_proc
async def test_digests_from_an_earlier_offset_delay_no_other() -> None:
    async with server_process() as server:
        async with FileClient.connect(server.uri) as files:
            await files.upload_from("large", bytes(64 * MIB))
        message = b'{"offset": 67108863, "digest_from": 0, "digest": "sha-256"}'
        metadata = route_item("file.download") + name_item(b"large") + item(b"chat/file-transfer", message)
        async with raw_peer(server.uri) as peer, raw_peer(server.uri) as other:
            for each in (peer, other):
                await each.send(*(request(stream_id, REQUEST_STREAM, metadata) for stream_id in range(1, 2001, 2)))
            assert (await receive(peer)).kind == PAYLOAD
            async with asyncio.timeout(PATIENCE):  # all of it takes the server much longer
                await serves(server.uri)


async def test_first_bytes_of_uploads_count_before_the_store_begins() -> None:
    gate = asyncio.Event()

    class Waiting(MemoryStore):
        async def begin(self, *args: Any, **kwargs: Any) -> Upload:
            await gate.wait()
            return await super().begin(*args, **kwargs)

    limits = Limits(max_unstored_bytes=300_000)  # a connection may have two thirds of it
    async with serve(data=ChatData(Waiting({})), limits=limits) as server, raw_peer(server.uri) as peer:
        for count in range(10):
            metadata = route_item("file.upload") + name_item(b"%d" % count) + transfer_item(upload_id=f"{count}")
            await peer.send(request(2 * count + 1, REQUEST_CHANNEL, metadata, bytes(100_000), n=5))
        await eventually(lambda: server.work.unstored_bytes >= 200_000)
        await peer.silence()
        assert server.work.unstored_bytes <= 300_000
        assert server.work.active <= 3
        gate.set()
        await eventually(lambda: server.work.active == 10 and not server.work.unstored_bytes)
        gate.clear()
        await peer.send(request(101, REQUEST_CHANNEL, metadata, bytes(100_000), n=5))
        await eventually(lambda: server.work.unstored_bytes == 100_000)
        await peer.close()
        await eventually(lambda: not server.work.active)
        assert not server.work.unstored_bytes
