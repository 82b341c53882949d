"""Where a transfer's parts meet: sources that wait, second subscriptions, consumers that are stopped in the middle."""

import asyncio
import io
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from reactivex import operators as ops
from reactivex.subject import Subject

from rx_client import FileClient, Progress, Retrying, Started
from rx_client.operators import retry_backoff, stall_timeout
from server import FileServer
from shared import ConnectionLost, InvalidRequest, Superseded, TransferError
from shared.protocol.messages import ChunkHead, Receipt
from tests.faults import fault_proxy
from tests.support import INVALID, PATIENCE, client_stream_ids, eventually, raw_peer
from tests.transfers.helpers import (
    CHUNK,
    QUICK,
    Recorder,
    WatchedStore,
    at_rest,
    check_story,
    connected,
    content,
    make_store,
    parts,
)
from tests.transfers.test_wire import begun, chunk, until_error, up

SMALL = 1000


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    return make_store("directory", tmp_path)


# A connection of the caller's own


async def test_a_client_of_a_given_connection_has_transfers_too(
    store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    rsocket = files._connector.current()
    assert rsocket is not None
    given = FileClient(rsocket)
    data = content(3 * CHUNK)
    await given.upload_from("n", data)
    await given.download_to("n", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == await store.content("n") == data


# A source that can't be read again


async def test_a_pipe_that_was_disposed_while_it_was_read_loses_nothing_in_silence(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    """What a stopped attempt took from the pipe is gone; the next one must say so, or send it."""
    data = content(20 * SMALL)
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb", buffering=0) as feed:
        upload = files.upload_from("n", pipe, chunk_size=SMALL)
        subscription = upload.subscribe()
        feed.write(data[: 4 * SMALL])  # as much as is read in one go
        await eventually(lambda: store.appended == 4 * SMALL)
        subscription.dispose()  # while the next bytes are waited for
        feed.write(data[4 * SMALL : 8 * SMALL])
        await files.settle()
        await at_rest(server, store)
        heard = Recorder()
        upload.subscribe(heard)
        feed.write(data[8 * SMALL :])
        feed.close()
        await heard.ended()
    if heard.error is None:
        assert await store.content("n") == data
    else:
        assert isinstance(heard.error, TransferError)
        assert await store.names() == []


async def test_a_file_object_that_two_attempts_read_is_not_torn_in_silence(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    """An attempt that was disposed may still be in a read, whose thread moves the file's position."""
    data = content(40 * SMALL)
    is_held, go_on = threading.Event(), threading.Event()

    class SlowDisk(io.BytesIO):
        """Its 6th read takes its time."""

        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            is_slow = self.reads == 6
            got = super().read(size)
            if is_slow:
                is_held.set()
                go_on.wait(5)
            return got

    disk = SlowDisk(data)
    upload = files.upload_from("n", disk, chunk_size=SMALL, window=2)
    subscription = upload.subscribe()
    await eventually(is_held.is_set)
    subscription.dispose()
    store.before_append.close()
    heard = Recorder()
    upload.subscribe(heard)
    try:
        await eventually(lambda: disk.reads >= 10, 1.0)  # it has begun to read, with its window full
    except AssertionError:
        pass  # one that waits for the older one's end is fine
    go_on.set()
    await asyncio.sleep(0.1)
    store.before_append.open()
    await heard.ended()
    if heard.error is not None:
        assert isinstance(heard.error, TransferError)
        await upload  # as `ops.retry` does: what went wrong mustn't be continued
    assert await store.content("n") == data


async def test_two_subscriptions_of_one_upload_from_a_file_object(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    data = content(1_000_000)
    upload = files.upload_from("n", io.BytesIO(data), chunk_size=5000)
    for _ in range(5):
        older, newer = Recorder(), Recorder()
        upload.subscribe(older)
        await older.got(Progress)
        upload.subscribe(newer)
        await older.ended()
        await newer.ended()
        assert older.error is None or isinstance(older.error, Superseded)
        if newer.error is None:
            assert await store.content("n") == data
        else:
            assert isinstance(newer.error, TransferError)


async def test_a_hot_observable_that_is_retried_is_not_cut_in_silence(server: FileServer, store: WatchedStore) -> None:
    """It doesn't begin again, so what it emits now isn't what the server has already."""
    data = content(15 * SMALL)
    hot: Subject[bytes] = Subject()
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as files:
        heard = Recorder()
        upload = files.upload_from("n", hot, chunk_size=SMALL)
        upload.pipe(retry_backoff(3, base=0.01)).subscribe(heard)
        await eventually(lambda: hot.observers)
        hot.on_next(data[: 5 * SMALL])
        await eventually(lambda: store.appended == 5 * SMALL)
        proxy.cut()
        await heard.got(Retrying)
        hot.on_next(data[5 * SMALL : 6 * SMALL])
        await eventually(lambda: len(store.began) == 2 and hot.observers)
        hot.on_next(data[6 * SMALL :])
        hot.on_completed()
        await heard.ended()
    if heard.error is None:
        assert await store.content("n") == data
    else:
        assert isinstance(heard.error, TransferError)
        assert await store.names() == []


# A source that waits


async def test_a_dispose_is_heard_while_the_source_blocks_its_thread(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    """A pipe without a writer: the CANCEL must not wait for it."""
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb", buffering=0) as feed:
        subscription = files.upload_from("n", pipe, chunk_size=SMALL).subscribe()
        feed.write(b"x" * 4 * SMALL)
        await eventually(lambda: store.appended == 4 * SMALL)
        subscription.dispose()
        try:
            await eventually(lambda: server.work.cancelled == 1, 1.0)
            assert not client_stream_ids(files)
        finally:
            feed.close()  # lets the thread end
            await files.settle()


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_lost_connection_is_heard_while_the_source_waits(
    server: FileServer, store: WatchedStore, kind: str
) -> None:
    is_over = asyncio.Event()
    is_over_in_thread = threading.Event()

    async def live() -> AsyncIterator[bytes]:
        yield b"x" * SMALL
        await is_over.wait()

    def live_in_thread() -> Iterator[bytes]:
        yield b"x" * SMALL
        is_over_in_thread.wait(10)

    async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as files:
        heard = Recorder()
        source = live() if kind == "async" else live_in_thread()
        files.upload_from("n", source, chunk_size=SMALL).subscribe(heard)
        await eventually(lambda: store.appended == SMALL)
        proxy.cut()
        try:
            await heard.ended(1.0)
            assert isinstance(heard.error, ConnectionLost)
        finally:
            is_over.set()
            is_over_in_thread.set()


async def test_a_takeover_is_heard_while_the_source_waits(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    is_over = asyncio.Event()

    async def live() -> AsyncIterator[bytes]:
        yield b"x" * SMALL
        await is_over.wait()

    heard = Recorder()
    files.upload_from("n", live(), chunk_size=SMALL, upload_id="one").subscribe(heard)
    await eventually(lambda: store.appended == SMALL)
    await files.upload_from("n", [b"x" * SMALL], upload_id="one")
    try:
        await heard.ended(1.0)
        assert isinstance(heard.error, Superseded)
    finally:
        is_over.set()


# A download that is subscribed to twice


async def test_a_repeated_download_to_a_path_is_done_again(files: FileClient, tmp_path: Path) -> None:
    got = tmp_path / "got"
    for data in (content(3 * CHUNK), b"", b"x"):
        await files.upload_from("n", data)
        download = files.download_to("n", got)
        for _ in range(2):
            check_story(await download.pipe(ops.to_list()), len(data), len(data))
            assert got.read_bytes() == data
            got.unlink()
        assert parts(tmp_path) == []


async def test_a_repeated_download_to_a_writer_is_done_again(files: FileClient) -> None:
    """Two subscriptions are two transfers, each of the whole file."""
    data = content(3 * CHUNK)
    await files.upload_from("n", data)
    got = bytearray()

    class Writer:
        async def write(self, data: bytes, /) -> None:
            got.extend(data)

    await files.download_to("n", Writer()).pipe(ops.repeat(2))
    assert got == data + data


async def test_two_subscriptions_of_one_download_give_the_file_or_a_typed_error(
    files: FileClient, tmp_path: Path
) -> None:
    data = content(40 * CHUNK)
    await files.upload_from("n", data)
    download = files.download_to("n", tmp_path / "got", window=2)
    one, two = Recorder(), Recorder()
    download.subscribe(one)
    download.subscribe(two)
    await one.ended()
    await two.ended()
    for heard in (one, two):
        assert heard.error is None or isinstance(heard.error, TransferError), repr(heard.error)
    assert one.error is None or two.error is None, "neither came through"
    assert (tmp_path / "got").read_bytes() == data


async def test_a_download_that_is_disposed_and_subscribed_to_at_once(files: FileClient, tmp_path: Path) -> None:
    """`switch_latest` does so; the older attempt is still closing its file then."""
    data = content(60 * CHUNK)
    await files.upload_from("n", data)
    got = tmp_path / "got"
    for _ in range(5):
        download = files.download_to("n", got, window=4)
        for _ in range(4):
            first = Recorder()
            subscription = download.subscribe(first)
            await first.got(Progress)
            subscription.dispose()
        heard = Recorder()
        download.subscribe(heard)
        await heard.ended()
        assert heard.is_completed, repr(heard.error)
        assert got.read_bytes() == data
        assert parts(tmp_path) == []
        got.unlink()


async def test_a_writer_that_is_stopped_in_a_write_gets_nothing_twice(server: FileServer, files: FileClient) -> None:
    """It is unknown whether such a write took its bytes: the right bytes, or a typed error."""
    data = content(8 * CHUNK)
    await files.upload_from("n", data)
    got = bytearray()
    is_stuck = asyncio.Event()

    class Slow:
        async def write(self, data: bytes, /) -> None:
            got.extend(data)
            if len(got) == 4 * CHUNK and not is_stuck.is_set():
                is_stuck.set()
                await asyncio.sleep(30)

    heard = Recorder()
    files.download_to("n", Slow()).pipe(stall_timeout(0.2), retry_backoff(3, base=0.01)).subscribe(heard)
    await heard.ended()
    if heard.error is None:
        assert got == data
    else:
        assert isinstance(heard.error, TransferError)


# Parts and messages that another process made


async def test_a_part_that_is_longer_than_the_file_is_no_reason_to_fail_for_ever(
    files: FileClient, tmp_path: Path
) -> None:
    data = content(60 * CHUNK)
    await files.upload_from("n", data)
    got = tmp_path / "got"
    await files.download_to("n", got, window=2).pipe(ops.take(4))
    await files.settle()
    (part,) = parts(tmp_path)
    os.truncate(tmp_path / part, len(data) + 1)
    try:
        await files.download_to("n", got)
    except TransferError:
        await files.download_to("n", got)
    assert got.read_bytes() == data
    assert parts(tmp_path) == []


@pytest.mark.parametrize("modified", ["1e999", "-1e999", "NaN", "true", '"1"', "[1]", "1" + "0" * 400])
def test_times_are_numbers_of_seconds(modified: str) -> None:
    said = json.loads('{"name": "n", "size": 1, "offset": 0, "length": 1, "committed": 1}') | {
        "modified": json.loads(modified)
    }
    for kind in (ChunkHead, Receipt):
        with pytest.raises(InvalidRequest, match="modified"):
            kind.from_json(said)


async def test_what_is_no_file_is_a_type_error_at_the_call(files: FileClient) -> None:
    with pytest.raises(TypeError, match="binary"):
        files.upload_from("n", io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a source is"):
        files.upload_from("n", object())  # type: ignore[arg-type]


async def test_a_stream_reader_is_an_asynchronous_iterable(files: FileClient) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(b"one\ntwo")
    reader.feed_eof()
    await files.upload_from("n", reader)
    assert await files.download("n") == b"one\ntwo"


async def test_a_peer_that_breaks_the_rules_gets_a_typed_error(server: FileServer, store: WatchedStore) -> None:
    """Not `internal`, which is retryable, and says that the server's log has more."""
    async with raw_peer(server.uri) as peer:
        store.before_append.close()
        await peer.send(up(1, "n"))
        await begun(peer, 1, 0)
        await peer.send(*[chunk(1, b"x")] * 17)
        store.before_append.open()
        code, text = await until_error(peer, 1)
    assert (code, text.partition(":")[0]) == (INVALID, "invalid_request")


async def test_a_file_that_changes_all_the_time_is_given_up(tmp_path: Path, files: FileClient) -> None:
    """A log that another process appends to: starting over must have an end, or a pause."""
    path = tmp_path / "store" / "log"
    path.write_bytes(content(20 * CHUNK))
    attempts = 0
    heard = Recorder()

    def change(event: Any) -> None:
        nonlocal attempts
        if isinstance(event, Started):
            attempts += 1
            with path.open("ab") as file:
                file.write(b"line\n")

    subscription = (
        files.download_to("log", tmp_path / "got", window=1)
        .pipe(ops.do_action(change))
        .subscribe(heard.on_next, heard.on_error, heard.on_completed)
    )
    try:
        async with asyncio.timeout(PATIENCE):
            while heard.error is None and attempts < 100:
                await asyncio.sleep(0.01)
        assert isinstance(heard.error, TransferError), f"started over {attempts} times"
    finally:
        subscription.dispose()
        await files.settle()
