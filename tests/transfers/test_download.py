"""`download_to` and `download_chunks`: ranges, sinks, demand, resume and verification; against both stores."""

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from reactivex import operators as ops

from rx_client import AsyncWriter, Chunk, Completed, FileClient, Progress, Started
from rx_client.operators import for_each_async, map_async, retry_backoff, to_async_iter
from server import FileServer
from shared import Changed, IntegrityError, InvalidName, InvalidRequest, NotFound, StorageFull, TransferError
from tests.faults import fault_proxy
from tests.support import client_stream_ids, eventually
from tests.transfers.helpers import (
    CHUNK,
    QUICK,
    WITHOUT_LANE,
    Recorder,
    WatchedStore,
    at_rest,
    check_story,
    connected,
    content,
    digest_of,
    make_store,
    parts,
    serving,
)

SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 16 * CHUNK + 1, 37 * CHUNK + 123)
READ_AHEAD = 4


class Writer:
    """Keeps what it gets; the async writer of these tests."""

    def __init__(self) -> None:
        self.got = bytearray()

    async def write(self, data: bytes, /) -> None:
        self.got += data


@pytest.mark.parametrize("size", SIZES)
async def test_what_is_there_comes_down(files: FileClient, tmp_path: Path, size: int) -> None:
    data = content(size)
    await files.upload_from("n", data)
    writer = Writer()
    assert isinstance(writer, AsyncWriter)
    for sink in (tmp_path / "got", str(tmp_path / "other"), writer):
        events = await files.download_to("n", sink).pipe(ops.to_list())
        assert check_story(events, size, size).info == await files.stat("n")
    assert (tmp_path / "got").read_bytes() == (tmp_path / "other").read_bytes() == writer.got == data
    assert parts(tmp_path) == []
    chunks = await files.download_chunks("n").pipe(ops.to_list())
    assert b"".join(chunk.data for chunk in chunks) == data
    assert [chunk.offset for chunk in chunks] == list(range(0, max(size, 1), CHUNK))


@pytest.mark.parametrize("digest", ["xxh3-128", "sha-256", None])
async def test_digests_and_windows(files: FileClient, store: WatchedStore, tmp_path: Path, digest: str | None) -> None:
    data = content(5 * CHUNK + 7)
    await files.upload_from("n", data, digest="sha-256")
    for window in (1, 2, 3, 16, 1000, 2**31 - 1):
        await files.download_to("n", tmp_path / "got", digest=digest, window=window)
        assert (tmp_path / "got").read_bytes() == data
        chunks = await files.download_chunks("n", window=window, digest=digest).pipe(ops.to_list())
        assert b"".join(chunk.data for chunk in chunks) == data
        (tmp_path / "got").unlink()


async def test_ranges(files: FileClient, store: WatchedStore) -> None:
    size = 3 * CHUNK
    data = content(size)
    await files.upload_from("n", data)
    places = (0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 5, size - 1, size)
    for digest in ("xxh3-128", "sha-256", None):
        for offset in places:
            for length in (None, 0, 1, CHUNK, CHUNK + 1, size, 2**62):
                chunks = await files.download_chunks("n", offset, length, digest=digest).pipe(ops.to_list())
                assert b"".join(chunk.data for chunk in chunks) == data[offset:][:length]
                assert chunks[0].offset == offset
                assert all(len(chunk) for chunk in chunks) or len(chunks) == 1


@pytest.mark.parametrize("offset", [11, 2**62])
async def test_a_range_that_starts_beyond_the_end_is_refused(files: FileClient, offset: int) -> None:
    await files.upload("n", bytes(10))
    with pytest.raises(InvalidRequest, match="beyond the end"):
        await files.download_chunks("n", offset)


@pytest.mark.parametrize(
    "options",
    [{"offset": -1}, {"length": -1}, {"window": 0}, {"window": 2**31}, {"digest": "md5"}, {"offset": 1.0}],
)
async def test_options_out_of_range_are_value_errors_at_the_call(files: FileClient, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        files.download_chunks("n", **options)
    if "length" not in options:
        with pytest.raises(ValueError):
            files.download_to("n", Writer(), **options)


async def test_what_is_no_sink_is_an_error_at_the_call(files: FileClient, tmp_path: Path) -> None:
    for sink in (None, 5, b"path", [], object()):
        with pytest.raises(TypeError, match="sink"):
            files.download_to("n", sink)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="offset is for writers"):
        files.download_to("n", tmp_path / "got", offset=1)
    with pytest.raises(TypeError, match="must be a str"):
        files.download_to(b"n", tmp_path / "got")  # type: ignore[arg-type]


async def test_errors_know_the_name(files: FileClient, tmp_path: Path) -> None:
    for attempt in (files.download_to("nope", tmp_path / "got"), files.download_chunks("nope")):
        with pytest.raises(NotFound) as caught:
            await attempt
        assert caught.value.name == "nope"
    with pytest.raises(InvalidName):
        await files.download_to("", tmp_path / "got")
    assert list(tmp_path.glob("*got*")) == []


async def test_a_folder_that_is_not_there_is_the_systems_error(files: FileClient, tmp_path: Path) -> None:
    await files.upload("n", b"x")
    with pytest.raises(FileNotFoundError):
        await files.download_to("n", tmp_path / "no" / "got")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="irectory"):
        await files.download_to("n", tmp_path / "folder")


async def test_a_writer_that_raises_is_heard(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    class WriterFault(Exception):
        pass

    class Broken(Writer):
        async def write(self, data: bytes, /) -> None:
            if self.got:
                raise WriterFault("full")
            await super().write(data)

    await files.upload_from("n", content(20 * CHUNK))
    with pytest.raises(WriterFault, match="full"):
        await files.download_to("n", Broken())
    assert not client_stream_ids(files)
    await at_rest(server, store)


# Demand


async def test_a_consumer_that_holds_its_chunks_holds_the_server(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    await files.upload_from("n", content(60 * CHUNK))
    for window in (1, 2, 5, 16):
        held: list[Chunk] = []
        store.produced = 0

        def hold(chunk: Chunk, held: list[Chunk] = held) -> None:
            chunk.retain()
            held.append(chunk)

        subscription = files.download_chunks("n", window=window).subscribe(hold)
        await eventually(lambda held=held, window=window: len(held) == window)
        await files.stat("n")  # the connection has its turn
        await files.stat("n")
        assert len(held) == window
        assert store.produced <= (window + READ_AHEAD) * CHUNK
        # What is released comes again, at half a window, and no more.
        back = (window + 1) // 2
        for chunk in held[:back]:
            chunk.release()
        await eventually(lambda held=held, total=window + back: len(held) == total)
        await files.stat("n")
        assert len(held) == window + back
        assert store.produced <= (window + back + READ_AHEAD) * CHUNK
        subscription.dispose()
        await at_rest(server, store)
        for chunk in held[back:]:
            chunk.release()  # late, and harmless


@pytest.mark.parametrize("stage", ["map_async", "for_each_async", "to_async_iter", "writer"])
async def test_asynchronous_consumers_hold_the_server(
    server: FileServer, store: WatchedStore, files: FileClient, stage: str
) -> None:
    window, total = 3, 30
    await files.upload_from("n", content(total * CHUNK))
    store.produced = consumed = most = 0

    async def consume(data: Any) -> None:
        nonlocal consumed, most
        for _ in range(5):  # turns for the others, as much as they want
            await asyncio.sleep(0)
        await files.stat("n")
        most = max(most, store.produced - consumed * CHUNK)
        consumed += 1

    class Slow:
        async def write(self, data: bytes, /) -> None:
            await consume(data)

    chunks = files.download_chunks("n", window=window)
    if stage == "map_async":
        await chunks.pipe(map_async(consume))
    elif stage == "for_each_async":
        await chunks.pipe(for_each_async(consume), ops.default_if_empty(None))
    elif stage == "to_async_iter":
        async with chunks.pipe(to_async_iter(window)) as items:
            async for chunk in items:
                await consume(chunk)
    else:
        await files.download_to("n", Slow(), window=window)
    assert consumed == total
    assert most <= (window + READ_AHEAD) * CHUNK


async def test_a_window_is_no_more_than_is_on_the_wire(server: FileServer, store: WatchedStore) -> None:
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri) as files:
        await files.upload_from("n", content(40 * CHUNK))
        before = proxy.down.nbytes
        held: list[Chunk] = []

        def hold(chunk: Chunk) -> None:
            chunk.retain()
            held.append(chunk)

        subscription = files.download_chunks("n", window=4).subscribe(hold)
        await eventually(lambda: len(held) == 4)
        await files.stat("n")
        assert proxy.down.nbytes - before < 4 * CHUNK + 4000
        subscription.dispose()


# Dispose


async def test_a_dispose_in_the_same_iteration_sends_nothing(
    server: FileServer, files: FileClient, tmp_path: Path
) -> None:
    files.download_to("n", tmp_path / "got").subscribe().dispose()
    files.download_chunks("n").subscribe().dispose()
    await files.settle()
    assert not client_stream_ids(files)
    await files.list_files().pipe(ops.to_list())
    assert server.work.started <= 2  # the listing, and what was cancelled before it was begun


@WITHOUT_LANE
@pytest.mark.parametrize("gate", ["before_open", "before_read"])
async def test_a_dispose_before_the_first_item(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path, gate: str
) -> None:
    await files.upload("n", content(3 * CHUNK))
    held_up = getattr(store, gate)
    held_up.close()
    for source in (files.download_to("n", tmp_path / "got"), files.download_chunks("n")):
        cancelled = server.work.cancelled
        subscription = source.subscribe()
        await eventually(lambda: held_up.waiting)
        subscription.dispose()
        await files.settle()
        assert not client_stream_ids(files)
        await eventually(lambda cancelled=cancelled: server.work.cancelled == cancelled + 1)
        await at_rest(server, store)
    held_up.open()
    assert list(tmp_path.glob("*got*")) == []


@WITHOUT_LANE
async def test_a_dispose_in_the_middle_keeps_the_part_and_goes_on_with_it(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    data = content(50 * CHUNK)
    await files.upload_from("n", data)
    got = tmp_path / "got"
    got.write_bytes(b"what was there")
    download = files.download_to("n", got, window=2)
    await download.pipe(ops.take_while(lambda event: not isinstance(event, Progress), inclusive=True))
    await files.settle()
    await at_rest(server, store)
    assert got.read_bytes() == b"what was there"
    assert len(parts(tmp_path)) == 1
    store.produced = 0
    events = await download.pipe(ops.to_list())
    resumed_from = events[0].resumed_from  # type: ignore[union-attr]
    assert resumed_from > 0
    check_story(events, len(data), len(data), resumed_from=resumed_from)
    assert got.read_bytes() == data
    assert parts(tmp_path) == []
    assert store.produced == len(data) - resumed_from


async def test_a_dispose_before_the_rename_leaves_old_or_new(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    data = content(8 * CHUNK)
    await files.upload_from("n", data)
    got = tmp_path / "got"
    for _ in range(10):
        got.write_bytes(b"old")
        await files.download_to("n", got).pipe(
            ops.take_while(lambda event: not isinstance(event, Progress) or event.transferred < len(data))
        )
        await files.settle()
        assert got.read_bytes() in (b"old", data)
        await at_rest(server, store)
    await files.download_to("n", got)
    assert got.read_bytes() == data
    assert parts(tmp_path) == []


async def test_a_dispose_before_any_byte_leaves_no_part(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    await files.upload_from("n", content(50 * CHUNK))
    await files.download_to("n", tmp_path / "got").pipe(ops.take(1))  # Started
    await files.settle()
    await at_rest(server, store)
    assert [name for name in parts(tmp_path) if not (tmp_path / name).stat().st_size] == []


async def test_an_observer_that_raises_hears_it_and_ends_the_download(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    class ObserverFault(Exception):
        pass

    def fail(_: Any) -> None:
        raise ObserverFault("mine")

    await files.upload_from("n", content(50 * CHUNK))
    for source in (files.download_to("n", tmp_path / "got"), files.download_chunks("n")):
        heard = Recorder()
        source.subscribe(fail, heard.on_error, heard.on_completed)
        await heard.ended()
        assert isinstance(heard.error, ObserverFault)
        await files.settle()
        await at_rest(server, store)


# Resume


async def test_another_client_goes_on_with_the_part(server: FileServer, store: WatchedStore, tmp_path: Path) -> None:
    data = content(60 * CHUNK)
    got = tmp_path / "got"
    async with connected(server.uri) as one:
        await one.upload_from("n", data)
        for digest in ("xxh3-128", "sha-256", None):
            await one.download_to("n", got, digest=digest, window=2).pipe(ops.take(4))
            await one.settle()
            assert len(parts(tmp_path)) == 1
            store.produced = 0
            async with connected(server.uri) as other:
                events = await other.download_to("n", got, digest=digest).pipe(ops.to_list())
            resumed_from = events[0].resumed_from  # type: ignore[union-attr]
            assert resumed_from > 0
            check_story(events, len(data), len(data), resumed_from=resumed_from)
            assert got.read_bytes() == data
            assert parts(tmp_path) == []
            got.unlink()


async def test_a_part_that_rotted_is_found_out_dropped_and_not_gone_on_with(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    data = content(60 * CHUNK)
    await files.upload_from("n", data)
    got = tmp_path / "got"
    got.write_bytes(b"what was there")
    await files.download_to("n", got, window=2).pipe(ops.take(4))
    await files.settle()
    (part,) = parts(tmp_path)
    with (tmp_path / part).open("r+b") as file:
        file.write(b"!")
    with pytest.raises(IntegrityError):
        await files.download_to("n", got)
    assert got.read_bytes() == b"what was there"
    assert parts(tmp_path) == []
    await files.download_to("n", got)
    assert got.read_bytes() == data


async def test_a_file_that_changed_between_attempts_is_started_over(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    got = tmp_path / "got"
    await files.upload_from("n", content(60 * CHUNK))
    download = files.download_to("n", got, window=2)
    await download.pipe(ops.take(4))
    await files.settle()
    for client in ("the same", "another"):
        changed = content(50 * CHUNK, len(client))
        await files.upload_from("n", changed)
        again = download if client == "the same" else files.download_to("n", got, window=2)
        events = await again.pipe(ops.to_list())
        check_story(events, len(changed), len(changed))  # resumed_from=0
        assert got.read_bytes() == changed
        assert parts(tmp_path) == []
        got.unlink()
        download = files.download_to("n", got, window=2)
        await download.pipe(ops.take(4))
        await files.settle()
        assert len(parts(tmp_path)) == 1


async def test_a_download_under_way_gets_the_old_content_whole(
    store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    old, new = content(60 * CHUNK, 1), content(60 * CHUNK, 2)
    await files.upload_from("n", old)
    got = Recorder()
    held: list[Chunk] = []
    seen = bytearray()

    def take(chunk: Chunk) -> None:
        seen.extend(chunk.data)
        if len(held) < 4:
            chunk.retain()
            held.append(chunk)

    files.download_chunks("n", window=4).subscribe(take, got.on_error, got.on_completed)
    await eventually(lambda: len(held) == 4)
    await files.upload_from("n", new)
    await files.delete("n")
    for chunk in held:
        chunk.release()
    await got.ended()
    assert got.is_completed, got.error
    assert seen == old


async def test_if_match(store: WatchedStore, files: FileClient) -> None:
    await files.upload("n", b"first")
    etag = (await files.stat("n")).etag
    assert etag is not None
    assert (await files.download_chunks("n", if_match=etag)).data == b"first"
    await files.upload("n", b"other")
    with pytest.raises(Changed) as caught:
        await files.download_chunks("n", if_match=etag)
    assert caught.value.name == "n"


async def test_a_writer_goes_on_after_a_loss(server: FileServer, store: WatchedStore) -> None:
    data = content(60 * CHUNK)
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as files:
        await files.upload_from("n", data)
        writer = Writer()
        proxy.down.cut_after = 20 * CHUNK
        store.produced = 0
        events = await files.download_to("n", writer).pipe(retry_backoff(base=0.01), ops.to_list())
        started = [event for event in events if isinstance(event, Started)]
        assert len(started) == 2
        assert started[1].resumed_from > 0
        assert writer.got == data
        assert store.produced <= len(data) + (16 + READ_AHEAD) * CHUNK


async def test_a_writer_that_got_another_file_hears_that_it_changed(server: FileServer, store: WatchedStore) -> None:
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as files:
        await files.upload_from("n", content(60 * CHUNK))
        writer = Writer()
        proxy.down.cut_after = 20 * CHUNK
        heard = Recorder()
        files.download_to("n", writer).subscribe(heard)
        await heard.ended()
        assert writer.got
        before = bytes(writer.got)
        await files.upload_from("n", content(60 * CHUNK, 1))
    async with connected(server.uri) as other:
        download = other.download_to("n", writer)
        await download.pipe(ops.take(4))
        await other.settle()
        await other.upload_from("n", content(60 * CHUNK, 2))
        with pytest.raises(Changed, match="taken back"):
            await download
    assert writer.got[: len(before)] == before


async def test_a_writer_that_has_the_beginning(store: WatchedStore, files: FileClient) -> None:
    data = content(10 * CHUNK)
    await files.upload_from("n", data)
    for offset in (1, CHUNK, 3 * CHUNK + 5, len(data)):
        for digest in ("xxh3-128", "sha-256", None):
            writer = Writer()
            events = await files.download_to("n", writer, offset=offset, digest=digest).pipe(ops.to_list())
            check_story(events, len(data), len(data), resumed_from=offset)
            assert writer.got == data[offset:]


async def test_a_file_of_another_process_may_be_served_without_a_digest(tmp_path: Path) -> None:
    store = make_store("directory", tmp_path)
    data = content(5 * CHUNK)
    async with serving(store) as server, connected(server.uri) as files:
        (tmp_path / "store" / "by hand").write_bytes(data)
        info = await files.stat("by hand")
        assert info.digest is None
        completed = await files.download_to("by hand", tmp_path / "got")
        assert isinstance(completed, Completed)
        assert completed.info.digest == digest_of(data)
        assert (tmp_path / "got").read_bytes() == data


# Wrong bytes


@WITHOUT_LANE
async def test_bytes_that_rot_on_the_way_publish_nothing(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    await files.upload_from("n", content(10 * CHUNK))
    got = tmp_path / "got"
    got.write_bytes(b"what was there")
    store.is_rotten = True  # behind the digest that the store knows
    with pytest.raises(IntegrityError) as caught:
        await files.download_to("n", got)
    assert caught.value.name == "n"
    with pytest.raises(IntegrityError):
        await files.download_chunks("n")
    with pytest.raises(IntegrityError):
        await files.download_to("n", Writer())
    assert got.read_bytes() == b"what was there"
    assert parts(tmp_path) == []
    store.is_rotten = False
    await files.download_to("n", got)
    assert got.read_bytes() == content(10 * CHUNK)


async def test_a_file_that_is_cut_short_behind_the_stores_back(tmp_path: Path) -> None:
    store = make_store("directory", tmp_path)
    async with serving(store) as server, connected(server.uri) as files:
        await files.upload_from("n", content(40 * CHUNK))
        heard = Recorder()
        held: list[Chunk] = []
        seen = 0

        def take(chunk: Chunk) -> None:
            nonlocal seen
            seen += len(chunk)
            chunk.retain()
            held.append(chunk)

        files.download_chunks("n", window=2).subscribe(take, heard.on_error, heard.on_completed)
        await eventually(lambda: len(held) == 2)
        os.truncate(tmp_path / "store" / "n", 5 * CHUNK)
        while heard.error is None:
            if held:
                held.pop().release()
            await asyncio.sleep(0)
        assert isinstance(heard.error, TransferError)
        for chunk in held:
            chunk.release()


# A path that is odd


async def test_long_and_odd_paths(files: FileClient, tmp_path: Path) -> None:
    await files.upload("n", b"data")
    for name in ("x" * 255, "\N{GRINNING FACE}" * 63, ".hidden", "with space", "a.rxpart"):
        await files.download_to("n", tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"data"
    assert parts(tmp_path) == [".hidden"]


async def test_parts_of_other_files_are_left_alone(files: FileClient, tmp_path: Path) -> None:
    await files.upload("n", b"data")
    names = (".got.notes.rxpart", ".got.0123456789abcdef.rxpart.bak", ".other.0123456789abcdef.rxpart")
    mine = [tmp_path / name for name in names]
    for path in mine:
        path.write_bytes(b"another's")
    await files.download_to("n", tmp_path / "got")
    assert all(path.read_bytes() == b"another's" for path in mine)


async def test_two_downloads_to_one_path_both_come_through(
    server: FileServer, files: FileClient, tmp_path: Path
) -> None:
    data = content(30 * CHUNK)
    await files.upload_from("n", data)
    async with connected(server.uri) as other:
        one, two = Recorder(), Recorder()
        files.download_to("n", tmp_path / "got").subscribe(one)
        other.download_to("n", tmp_path / "got").subscribe(two)
        await one.ended()
        await two.ended()
        assert (one.error, two.error) == (None, None)
    assert (tmp_path / "got").read_bytes() == data
    assert parts(tmp_path) == []


async def test_a_full_disk_is_typed_and_gone_on_from_when_there_is_room(
    files: FileClient, tmp_path: Path, small_files: Callable[[int], AbstractContextManager[None]]
) -> None:
    data = content(20 * CHUNK)
    await files.upload_from("n", data)
    got = tmp_path / "got"
    got.write_bytes(b"what was there")
    download = files.download_to("n", got)
    with small_files(10 * CHUNK + 5), pytest.raises(StorageFull) as caught:
        await download
    assert caught.value.name == "n"
    assert got.read_bytes() == b"what was there"
    events = await download.pipe(ops.to_list())
    check_story(events, len(data), len(data), resumed_from=10 * CHUNK + 5)
    assert got.read_bytes() == data
