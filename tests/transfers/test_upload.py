"""`upload_from`: every source, each phase, resume, takeover, verification, the window; with each store and the lane."""

import asyncio
import io
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reactivex
from reactivex import operators as ops
from reactivex.subject import Subject

from rx_client import Completed, FileClient, Progress, Started
from rx_client.operators import retry_backoff
from rx_client.transfers.content import FileContent
from server import ChatData, FileServer, Limits, serve
from server.stores.directory.store import DirectoryStore
from server.stores.owners import UploadOwners
from shared import (
    AlreadyExists,
    BackpressureOverflow,
    IntegrityError,
    InvalidName,
    InvalidRequest,
    NotFound,
    SourceExhausted,
    StorageFull,
    Superseded,
    TooLarge,
)
from shared.protocol.messages import UploadRequest
from tests.conftest import Mount
from tests.faults import fault_proxy
from tests.support import (
    ERROR,
    REQUEST_CHANNEL,
    client_stream_ids,
    eventually,
    name_item,
    raw_peer,
    request,
    route_item,
    transfer_item,
)
from tests.transfers.helpers import (
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
    serving,
)

# Sources

SMALL = 1000
SIZES = (0, 1, SMALL - 1, SMALL, SMALL + 1, 4 * SMALL, 37 * SMALL + 123)


def pieces(data: bytes, nbytes: int = 700) -> list[bytes]:
    return [data[at : at + nbytes] for at in range(0, len(data), nbytes)]


def generator(data: bytes) -> Iterator[bytes]:
    yield from pieces(data)


async def async_generator(data: bytes) -> AsyncIterator[bytes]:
    for piece in pieces(data):
        await asyncio.sleep(0)
        yield piece


def seekable(data: bytes, folder: Path) -> io.BytesIO:
    file = io.BytesIO(b"before" + data)
    file.seek(6)
    return file


def on_disk(data: bytes, folder: Path) -> Path:
    path = folder / "source"
    path.write_bytes(data)
    return path


def emitting(data: bytes) -> reactivex.Observable[bytes]:
    async def emit(observer: Any) -> None:
        for piece in pieces(data):
            observer.on_next(piece)
            await asyncio.sleep(0.001)
        observer.on_completed()

    def subscribe(observer: Any, scheduler: Any = None) -> Any:
        task = asyncio.get_running_loop().create_task(emit(observer))
        return reactivex.disposable.Disposable(task.cancel)

    return reactivex.Observable(subscribe)


# What each source is made of, and whether it tells its size.
SOURCES: dict[str, tuple[Callable[[bytes, Path], Any], bool]] = {
    "path": (on_disk, True),
    "str": (lambda data, folder: str(on_disk(data, folder)), True),
    "file": (seekable, True),
    "bytes": (lambda data, _: data, True),
    "bytearray": (lambda data, _: bytearray(data), True),
    "memoryview": (lambda data, _: memoryview(data), True),
    "list": (lambda data, _: pieces(data), False),
    "tuple": (lambda data, _: tuple(bytearray(piece) for piece in pieces(data)), False),
    "generator": (lambda data, _: generator(data), False),
    "async generator": (lambda data, _: async_generator(data), False),
    "function": (lambda data, _: lambda offset: generator(data[offset:]), False),
    "async function": (lambda data, _: lambda offset: async_generator(data[offset:]), False),
    "observable": (lambda data, _: emitting(data), False),
}


@pytest.mark.parametrize("kind", SOURCES)
async def test_every_source_brings_its_bytes(store: WatchedStore, files: FileClient, tmp_path: Path, kind: str) -> None:
    make, has_size = SOURCES[kind]
    window = 100 if kind == "observable" else 4  # an observable can't be slowed down: all of its items may wait
    for size in SIZES:
        data = content(size)
        upload = files.upload_from("n", make(data, tmp_path), chunk_size=SMALL, window=window)
        events = await upload.pipe(ops.to_list())
        completed = check_story(events, size if has_size else None, size)
        assert completed.info.name == "n"
        assert completed.info.digest == digest_of(data)
        assert completed.info == await files.stat("n")
        assert await store.content("n") == data
        assert max(store.appends, default=0) <= SMALL
        assert [length for length in store.appends if length != SMALL] in ([], [size % SMALL])
        store.appends.clear()


async def test_a_pipe_is_read_to_its_end(store: WatchedStore, files: FileClient) -> None:
    data = content(100_000)
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    with open(reading, "rb") as pipe:
        events = await files.upload_from("n", pipe, chunk_size=SMALL).pipe(ops.to_list())
    thread.join()
    check_story(events, None, len(data))
    assert await store.content("n") == data


@pytest.mark.parametrize("digest", ["xxh3-128", "sha-256", None])
async def test_digests(store: WatchedStore, files: FileClient, digest: str | None) -> None:
    data = content(600_000)
    completed = await files.upload_from("n", data, digest=digest)
    assert isinstance(completed, Completed)
    # With a disk, bytes without a digest may never come into the process.
    is_unknown = digest is None and isinstance(store.inner, DirectoryStore)
    assert completed.info.digest == (None if is_unknown else digest_of(data, digest or "xxh3-128"))
    assert await store.content("n") == data
    assert await files.download("n") == data


async def test_many_windows_with_the_defaults(store: WatchedStore, files: FileClient, tmp_path: Path) -> None:
    data = content(12_345_678)
    events = await files.upload_from("n", on_disk(data, tmp_path)).pipe(ops.to_list())
    check_story(events, len(data), len(data))
    assert len(events) > 4  # more than one receipt
    assert await store.content("n") == data


@pytest.mark.parametrize("size", [0, SMALL])
async def test_a_file_that_takes_long_to_close_is_uploaded(
    store: WatchedStore, files: FileClient, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has published it by then."""
    close = FileContent.close

    def slow_close(opened: FileContent) -> None:
        time.sleep(0.2)
        close(opened)

    monkeypatch.setattr(FileContent, "close", slow_close)
    data = content(size)
    check_story(await files.upload_from("n", on_disk(data, tmp_path)).pipe(ops.to_list()), size, size)
    assert await store.content("n") == data


async def test_odd_windows_and_the_largest_chunk(store: WatchedStore, files: FileClient) -> None:
    data = content(3_000_000)
    for window in (1, 2, 3, 17, 1000):
        for chunk_size in (960_000, 99_999):
            await files.upload_from("n", data, window=window, chunk_size=chunk_size)
            assert await store.content("n") == data


class Closeable:
    """An iterator of bytes that counts how often it was closed."""

    def __init__(self, items: list[Any]) -> None:
        self.items = iter(items)
        self.closed = 0

    def __iter__(self) -> "Closeable":
        return self

    def __next__(self) -> bytes:
        item = next(self.items)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        self.closed += 1


class AsyncCloseable(Closeable):
    """The same, asynchronous."""

    __iter__ = None  # type: ignore[assignment]

    def __aiter__(self) -> "AsyncCloseable":
        return self

    async def __anext__(self) -> bytes:
        try:
            return next(self)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        self.close()


@pytest.mark.parametrize("kind", [Closeable, AsyncCloseable])
async def test_a_source_that_raises_is_reported_closed_once_and_publishes_nothing(
    server: FileServer, store: WatchedStore, files: FileClient, kind: type[Closeable]
) -> None:
    class SourceFault(Exception):
        pass

    source = kind([b"x" * SMALL] * 10 + [SourceFault("broken")])
    with pytest.raises(SourceFault, match="broken"):
        await files.upload_from("n", source, chunk_size=SMALL)
    assert source.closed == 1
    await at_rest(server, store)
    assert await store.names() == []
    assert not client_stream_ids(files)


async def test_an_observable_that_fails_is_reported(files: FileClient, store: WatchedStore) -> None:
    source = reactivex.concat(reactivex.of(b"a", b"b"), reactivex.throw(KeyError("mine")))
    with pytest.raises(KeyError, match="mine"):
        await files.upload_from("n", source)
    assert await store.names() == []


@pytest.mark.parametrize("bad", ["text", 5, None, [b"x"]])
async def test_items_that_are_no_bytes(files: FileClient, bad: Any) -> None:
    for source in ([b"a", bad], iter([b"a", bad]), lambda _: [b"a", bad], reactivex.of(b"a", bad)):
        with pytest.raises(TypeError, match="must be bytes"):
            await files.upload_from("n", source)


async def test_a_path_that_is_not_there_is_the_systems_error(files: FileClient, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await files.upload_from("n", tmp_path / "nope")
    with pytest.raises(IsADirectoryError):
        await files.upload_from("n", tmp_path)


async def test_a_wrong_size_is_refused_and_publishes_nothing(store: WatchedStore, files: FileClient) -> None:
    with pytest.raises(InvalidRequest, match="3 bytes"):
        await files.upload_from("n", b"abc", size=4)
    for size in (2, 4):
        with pytest.raises((IntegrityError, TooLarge), match=r"announced|of 4 bytes"):
            await files.upload_from("n", iter([b"abc"]), size=size)
    assert await store.names() == []


async def test_an_observable_that_is_too_fast_overflows(store: WatchedStore, files: FileClient) -> None:
    fast: Subject[bytes] = Subject()
    upload, heard = files.upload_from("n", fast, chunk_size=1, window=3), Recorder()
    upload.subscribe(heard)
    await eventually(lambda: fast.observers)
    for _ in range(4):
        fast.on_next(b"x")
    await heard.ended()
    assert isinstance(heard.error, BackpressureOverflow)
    assert not fast.observers, "the source was left"
    assert await store.names() == []


async def test_an_observable_of_another_thread(store: WatchedStore, files: FileClient) -> None:
    source: Subject[bytes] = Subject()
    heard = Recorder()
    files.upload_from("n", source).subscribe(heard)
    await eventually(lambda: source.observers)

    def emit() -> None:
        for number in range(10):
            source.on_next(bytes([number]))
        source.on_completed()

    thread = threading.Thread(target=emit)
    thread.start()
    await heard.ended()
    thread.join()
    assert heard.is_completed, heard.error
    assert await store.content("n") == bytes(range(10))


# Options


@pytest.mark.parametrize("source", [None, 5, 1.5, True])
async def test_what_is_no_source_is_a_type_error_at_the_call(files: FileClient, source: Any) -> None:
    with pytest.raises(TypeError, match="source"):
        files.upload_from("n", source)


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 0},
        {"chunk_size": 960_001},
        {"chunk_size": 1.5},
        {"chunk_size": None},
        {"window": 0},
        {"window": 2**31},
        {"size": -1},
        {"size": "1"},
        {"digest": "md5"},
        {"digest": ""},
        {"upload_id": ""},
        {"upload_id": "../x"},
        {"upload_id": "a" * 129},
        {"upload_id": ".hidden"},
    ],
)
async def test_options_out_of_range_are_value_errors_at_the_call(files: FileClient, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        files.upload_from("n", b"", **options)


async def test_an_upload_id_that_is_no_str_is_a_type_error_at_the_call(files: FileClient) -> None:
    for call in (lambda: files.upload_from("n", b"", upload_id=7), lambda: files.discard(7)):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="a str, not int"):
            call()


async def test_nothing_is_read_before_a_subscription(server: FileServer, files: FileClient) -> None:
    source = Closeable([b"x"])
    upload = files.upload_from("n", source)
    upload.subscribe().dispose()  # in the same event-loop iteration
    await files.settle()
    assert next(source) == b"x"
    assert not server.work.started


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", "CON", ".rxfiles", "ends.", " ", "x" * 1024, "\N{GRINNING FACE}" * 256, "%2e", "=a"]
)
async def test_any_name_comes_back_as_it_was(store: WatchedStore, files: FileClient, name: str, tmp_path: Path) -> None:
    before = {entry.name for entry in tmp_path.parent.iterdir()}
    data = content(5000)
    completed = await files.upload_from(name, data, chunk_size=SMALL)
    assert isinstance(completed, Completed)
    assert completed.info.name == name
    assert await files.list_files().pipe(ops.to_list()) == [name]
    await files.download_to(name, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == data
    assert {entry.name for entry in tmp_path.parent.iterdir()} == before


async def test_names_that_differ_in_case_or_normalisation_only(store: WatchedStore, files: FileClient) -> None:
    alike = ["Name", "name", "NAME", "\u00e9", "e\u0301", "stra\u00dfe", "STRASSE"]
    for name in alike:
        await files.upload_from(name, name.encode())
    for name in alike:
        assert await store.content(name) == name.encode()
    assert sorted(await store.names()) == sorted(alike)


@pytest.mark.parametrize("name", ["", "a\0b", "a\n", "x" * 1025, "\ud800"])
async def test_what_is_no_name_is_refused(server: FileServer, files: FileClient, name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        await files.upload_from(name, b"")
    assert caught.value.name == name
    assert not server.work.started


# Overwriting


async def test_overwrite_false_keeps_what_is_there(store: WatchedStore, files: FileClient) -> None:
    await files.upload_from("n", b"old", overwrite=False)
    with pytest.raises(AlreadyExists) as caught:
        await files.upload_from("n", b"new", overwrite=False)
    assert caught.value.name == "n"
    assert await store.content("n") == b"old"


async def test_overwrite_false_loses_to_a_faster_upload(store: WatchedStore, files: FileClient) -> None:
    store.before_commit.close()
    heard = Recorder()
    files.upload_from("n", b"late", overwrite=False).subscribe(heard)
    await eventually(lambda: store.before_commit.waiting)
    await files.upload("n", b"early")
    store.before_commit.open()
    await heard.ended()
    assert isinstance(heard.error, AlreadyExists)
    assert await store.content("n") == b"early"


async def test_what_is_unfinished_is_not_visible(store: WatchedStore, files: FileClient) -> None:
    await files.upload("n", b"old")
    store.before_commit.close()
    heard = Recorder()
    files.upload_from("n", content(50_000), chunk_size=SMALL).subscribe(heard)
    files_new = Recorder()
    files.upload_from("new", b"x").subscribe(files_new)
    await eventually(lambda: store.before_commit.waiting == 2)
    assert await files.list_files().pipe(ops.to_list()) == ["n"]
    assert await files.download("n") == b"old"
    assert (await files.stat("n")).size == 3
    with pytest.raises(NotFound):
        await files.stat("new")
    store.before_commit.open()
    await heard.ended()
    await files_new.ended()
    assert await store.content("n") == content(50_000)


# Demand


@WITHOUT_LANE
async def test_the_uploader_is_never_more_than_a_window_ahead_of_the_disk(
    server: FileServer, store: WatchedStore
) -> None:
    pulled = 0

    def source() -> Iterator[bytes]:
        nonlocal pulled
        for number in range(100):
            pulled += 1
            yield bytes([number]) * SMALL

    async with fault_proxy(server.uri) as proxy, connected(proxy.uri) as files:
        store.before_append.close()
        heard = Recorder()
        files.upload_from("n", source(), chunk_size=SMALL, window=5).subscribe(heard)
        await heard.got(Started)
        await eventually(lambda: store.before_append.waiting and pulled == 5 + 1)
        await files.stat("x").pipe(ops.catch(lambda _, __: reactivex.of(None)))  # all that was sent has arrived
        before = proxy.up.nbytes
        # 5 in all are on the wire, and one more waits to be sent. The source is read a chunk in a thread handoff.
        assert pulled <= 5 + 1
        await files.stat("x").pipe(ops.catch(lambda _, __: reactivex.of(None)))
        assert pulled <= 5 + 1
        assert proxy.up.nbytes - before < SMALL
        store.before_append.open()
        await heard.ended()
    assert heard.is_completed
    assert pulled == 100
    assert len(await store.content("n")) == 100 * SMALL


@WITHOUT_LANE
async def test_no_more_bytes_than_a_window_are_on_their_way(server: FileServer, store: WatchedStore) -> None:
    chunk, window = 100_000, 4
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri) as files:
        store.before_append.close()
        heard = Recorder()
        files.upload_from("n", content(3_000_000), chunk_size=chunk, window=window).subscribe(heard)
        await eventually(lambda: proxy.up.nbytes > window * chunk)
        with pytest.raises(NotFound):
            await files.stat("nope")  # goes the same way, behind what is sent
        assert proxy.up.nbytes < window * chunk + 2000
        for _ in range(3):
            assert not [event for event in heard.items if isinstance(event, Progress)]
        store.before_append.open()
        await heard.ended()
    assert heard.is_completed


# Dispose


async def test_a_dispose_before_the_first_receipt(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    store.before_begin.close()
    source = AsyncCloseable([b"x"])
    subscription = files.upload_from("n", source).subscribe()
    await eventually(lambda: store.before_begin.waiting)
    subscription.dispose()
    await files.settle()
    assert not client_stream_ids(files)
    await eventually(lambda: server.work.cancelled == 1)
    await at_rest(server, store)
    assert not store.before_begin.waiting
    store.before_begin.open()
    assert next(source) == b"x"  # it was never read


@pytest.mark.parametrize("kind", [Closeable, AsyncCloseable])
async def test_a_dispose_between_chunks(
    server: FileServer, store: WatchedStore, files: FileClient, kind: type[Closeable]
) -> None:
    store.before_append.close()
    source = kind([b"x" * SMALL] * 100)
    subscription = files.upload_from("n", source, chunk_size=SMALL, window=4).subscribe()
    await eventually(lambda: store.before_append.waiting)
    subscription.dispose()
    await files.settle()
    assert source.closed == 1
    assert not client_stream_ids(files)
    await eventually(lambda: server.work.cancelled == 1)
    await at_rest(server, store)
    store.before_append.open()
    assert await store.names() == []


async def test_a_dispose_after_the_last_item(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    store.before_commit.close()
    source = AsyncCloseable([b"x" * SMALL] * 10)
    upload = files.upload_from("n", source, chunk_size=SMALL, upload_id="mine")
    subscription = upload.subscribe()
    await eventually(lambda: store.before_commit.waiting)
    subscription.dispose()
    await files.settle()
    assert source.closed == 1
    await at_rest(server, store)
    store.before_commit.open()
    assert await store.names() == []
    # Its part is still there.
    events = await files.upload_from("n", [b"x" * SMALL] * 10, upload_id="mine").pipe(ops.to_list())
    check_story(events, None, 10 * SMALL, resumed_from=10 * SMALL)
    assert await store.content("n") == b"x" * 10 * SMALL


async def test_a_dispose_at_each_event_and_then_the_rest(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    """Attempt after attempt is given up after its first progress; what is sent twice stays within a window each."""
    chunk, window = 10_000, 2
    data = content(200_000)
    upload = files.upload_from("n", on_disk(data, tmp_path), chunk_size=chunk, window=window)
    reached = attempts = 0
    while True:
        events = await upload.pipe(
            ops.take_while(lambda event: not isinstance(event, Progress), inclusive=True), ops.to_list()
        )
        attempts += 1
        await files.settle()
        await at_rest(server, store)
        assert isinstance(events[0], Started)
        assert events[0].resumed_from >= reached
        reached = events[0].resumed_from
        if not isinstance(last := events[-1], Progress) or last.transferred + window * chunk >= len(data):
            break  # the last item may have been sent before the dispose: the window has room for it
        assert not await store.names()
    assert attempts > 3
    if not await store.names():
        await upload
    assert await store.content("n") == data
    assert store.appended == len(data)  # whatever was durable was never sent again


@pytest.mark.parametrize("count", [1, 2])
async def test_take_disposes_within_on_next(
    server: FileServer, store: WatchedStore, files: FileClient, count: int
) -> None:
    await files.upload_from("n", content(2_000_000)).pipe(ops.take(count))
    await files.settle()
    assert not client_stream_ids(files)
    await at_rest(server, store)


async def test_an_observer_that_raises_hears_it_and_ends_the_upload(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    class ObserverFault(Exception):
        pass

    def raise_at_progress(event: Any) -> None:
        if isinstance(event, Progress):
            raise ObserverFault("mine")

    source = Closeable([b"x" * SMALL] * 300)
    errors: list[Exception] = []
    files.upload_from("n", source, chunk_size=SMALL, window=2).subscribe(raise_at_progress, errors.append)
    await eventually(lambda: errors)
    assert isinstance(errors[0], ObserverFault)
    await at_rest(server, store)
    await eventually(lambda: source.closed == 1)  # in a thread, which a busy machine may take its time with
    assert await store.names() == []


async def test_what_was_uploaded_is_moved(store: WatchedStore, files: FileClient) -> None:
    completed = await files.upload_from("n", b"content")
    assert isinstance(completed, Completed)
    moved = await files.move("n", "m", if_match=completed.info.etag)
    assert moved == await files.stat("m") == replace(completed.info, name="m")
    assert await store.content("m") == b"content"
    assert await store.names() == ["m"]


# Resume and takeover


async def test_the_newer_of_two_takes_over(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    data = content(100_000)
    older_heard = Recorder()
    received = asyncio.Event()

    async def half() -> AsyncIterator[bytes]:
        yield data[:30_000]
        await received.wait()
        yield data[30_000:]

    files.upload_from("n", half(), chunk_size=10_000, upload_id="one").subscribe(older_heard)
    await eventually(lambda: store.appended == 30_000)
    async with connected(server.uri) as other:
        events = await other.upload_from("n", [data], chunk_size=10_000, upload_id="one").pipe(ops.to_list())
    check_story(events, None, len(data), resumed_from=30_000)
    assert await store.content("n") == data
    assert store.appended == len(data)
    received.set()
    await older_heard.ended()
    assert isinstance(older_heard.error, Superseded)


async def test_few_attempts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.stores.owners._MAX_REMEMBERED", 3)
    owners = UploadOwners()

    async def attempt(upload_id: str, number: int) -> None:
        request = UploadRequest(upload_id, client="me", attempt=number)
        async with owners.claim(upload_id, "n", lambda: None, request):
            pass

    for number in range(10):
        await attempt(f"{number}", 2)
        await attempt("often", number)
    assert len(owners._attempts) == 3
    for late in ("9", "8", "often"):
        with pytest.raises(Superseded):
            await attempt(late, 1)
    await attempt("0", 1)


async def test_a_takeover_waits_for_the_write_under_way(server: FileServer, store: WatchedStore) -> None:
    data = content(50_000)
    async with connected(server.uri) as one, connected(server.uri) as other:
        store.before_append.close()
        older, newer = Recorder(), Recorder()
        one.upload_from("n", data, chunk_size=10_000, upload_id="one").subscribe(older)
        await eventually(lambda: store.before_append.waiting)
        other.upload_from("n", data, chunk_size=10_000, upload_id="one").subscribe(newer)
        await older.ended()
        assert isinstance(older.error, Superseded)
        store.before_append.open()
        await newer.ended()
        assert newer.is_completed
    assert await store.content("n") == data


async def test_an_upload_id_of_another_file_is_refused(store: WatchedStore, files: FileClient) -> None:
    await files.upload_from("n", content(50_000), chunk_size=SMALL, upload_id="one").pipe(ops.take(3))
    await files.settle()
    for source, name in ((content(50_000), "other"), (b"other size", "n")):
        with pytest.raises(InvalidRequest, match="'one'"):
            await files.upload_from(name, source, upload_id="one")
    assert await store.names() == []


async def test_after_completion_the_same_id_is_a_new_upload(store: WatchedStore, files: FileClient) -> None:
    data = content(30_000)
    upload = files.upload_from("n", data, chunk_size=SMALL)
    events = await upload.pipe(ops.repeat(3), ops.to_list())
    started = [event for event in events if isinstance(event, Started)]
    assert [event.resumed_from for event in started] == [0, 0, 0]
    assert len({event.upload_id for event in started}) == 1
    assert store.appended == 3 * len(data)
    assert len([event for event in events if isinstance(event, Completed)]) == 3


async def test_each_call_makes_an_upload_id_of_its_own(files: FileClient) -> None:
    ids = [
        (await files.upload_from("n", b"x").pipe(ops.first())).upload_id  # type: ignore[union-attr]
        for _ in range(3)
    ]
    await files.settle()
    assert len(set(ids)) == 3


async def test_a_retry_after_a_lost_final_receipt_sends_nothing_again(
    server: FileServer, store: WatchedStore, tmp_path: Path
) -> None:
    data = content(300_000)
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as files:
        store.after_commit.close()
        heard = Recorder()
        # A source that can't be read again: it needn't be.
        files.upload_from("n", iter(pieces(data))).pipe(retry_backoff(5, base=0.01)).subscribe(heard)
        await eventually(lambda: store.after_commit.waiting)
        sent = proxy.up.nbytes
        proxy.cut()
        store.after_commit.open()
        await heard.ended()
        assert heard.error is None
        assert proxy.accepted == 2
        assert proxy.up.nbytes - sent < 2000
    started = [event for event in heard.items if isinstance(event, Started)]
    assert [event.resumed_from for event in started] == [0, len(data)]
    assert isinstance(heard.items[-1], Completed)
    assert heard.items[-1].info.digest == digest_of(data)
    assert store.began == [0]
    assert store.appended == len(data)


async def test_a_new_client_goes_on_with_the_same_id(server: FileServer, store: WatchedStore, tmp_path: Path) -> None:
    """As another process does: no running digest is left, and the source is read from its start for it."""
    data = content(500_000)
    source = on_disk(data, tmp_path)
    for digest in ("xxh3-128", "sha-256"):
        async with connected(server.uri) as one:
            await one.upload_from(digest, source, chunk_size=10_000, upload_id=digest, digest=digest).pipe(ops.take(3))
            await one.settle()
        await at_rest(server, store)
        async with connected(server.uri) as other:
            events = await other.upload_from(digest, source, upload_id=digest, digest=digest).pipe(ops.to_list())
        resumed_from = events[0].resumed_from  # type: ignore[union-attr]
        assert resumed_from > 0
        check_story(events, len(data), len(data), resumed_from=resumed_from)
        assert await store.content(digest) == data
        assert store.appended == len(data)
        store.appended = 0


async def test_a_source_that_changed_meanwhile_is_found_out_and_publishes_nothing(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    await files.upload("n", b"what was there")
    data = content(100_000)
    await files.upload_from("n", data, chunk_size=SMALL, window=2, upload_id="one").pipe(ops.take(3))
    await files.settle()
    await at_rest(server, store)
    changed = b"!" + data[1:]
    with pytest.raises(IntegrityError):
        await files.upload_from("n", changed, upload_id="one")
    assert await store.content("n") == b"what was there"
    await files.upload_from("n", changed, upload_id="one")  # the wrong part is gone
    assert await store.content("n") == changed


async def test_a_source_that_became_shorter_is_exhausted(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    data = content(100_000)

    def short(offset: int) -> list[bytes]:
        return [data[:5][offset:]]

    # A function that is asked for what is missing can only be found out by the digest.
    for source, digest in ((short(0), "xxh3-128"), (short(0), None), (short, "xxh3-128")):
        upload_id = f"{type(source).__name__}-{digest}"
        first = files.upload_from("n", [data], chunk_size=SMALL, window=2, upload_id=upload_id, digest=digest)
        await first.pipe(ops.take(4))
        await files.settle()
        await at_rest(server, store)
        with pytest.raises(SourceExhausted):
            await files.upload_from("n", source, upload_id=upload_id, digest=digest)
    assert await store.names() == []


async def test_a_generator_can_be_read_only_once_and_says_so(files: FileClient, store: WatchedStore) -> None:
    upload = files.upload_from("n", generator(content(100_000)), chunk_size=SMALL, window=2)
    await upload.pipe(ops.take(2))
    await files.settle()
    with pytest.raises(SourceExhausted, match="function from an offset"):
        await upload
    assert await store.names() == []


async def test_a_function_is_asked_for_what_is_missing(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    data, offsets = content(100_000), []

    def source(offset: int) -> Iterator[bytes]:
        offsets.append(offset)
        return generator(data[offset:])

    upload = files.upload_from("n", source, chunk_size=SMALL, window=2)
    await upload.pipe(ops.take(4))
    await files.settle()
    await at_rest(server, store)
    events = await upload.pipe(ops.to_list())
    assert isinstance(events[0], Started)
    assert offsets == [0, events[0].resumed_from]
    assert await store.content("n") == data


async def test_unfinished_uploads_expire(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    await files.upload_from("n", content(50_000), chunk_size=SMALL, upload_id="one").pipe(ops.take(3))
    await files.settle()
    await at_rest(server, store)
    assert await store.sweep(60) == 0
    assert await store.sweep(-1) == 1
    events = await files.upload_from("n", content(50_000), upload_id="one").pipe(ops.to_list())
    check_story(events, 50_000, 50_000)


async def test_disposed_uploads_cost_others_nothing_and_begin_anew() -> None:
    files: dict[str, bytes] = {}
    data = content(300_000)
    limits = Limits(max_store_bytes=1_000_000)
    async with serve(data=ChatData(files), limits=limits) as server, connected(server.uri) as client:

        async def unfinished() -> AsyncIterator[bytes]:
            yield data
            await asyncio.Event().wait()

        # Of a fixed window: if the machine is busy, a wide one lets all of the file arrive before it is disposed.
        first = client.upload_from("first", data, chunk_size=SMALL, window=4)
        await first.pipe(ops.take(20))
        await client.settle()
        for number in range(40):
            await client.upload_from("n", unfinished(), chunk_size=100_000, digest=None).pipe(ops.take(2))
            await client.upload("x", data[: 100_000 + number])
        await client.settle()
        await eventually(lambda: not server.work.active)
        # The part of the first one went long ago: it starts over by itself.
        check_story(await first.pipe(ops.to_list()), len(data), len(data))
        assert files["first"] == data
        assert server.work.failed == 0


async def test_an_upload_that_does_not_fit_in_memory_is_refused_before_it_is_sent() -> None:
    limits = Limits(max_store_bytes=1_000_000)
    async with serve(data=ChatData({"a": bytes(600_000)}), limits=limits) as server, connected(server.uri) as client:
        recorder = Recorder()
        client.upload_from("n", content(500_000)).subscribe(recorder)
        await recorder.ended()
        assert isinstance(recorder.error, StorageFull)
        assert recorder.items == []
        with pytest.raises(StorageFull):  # its size isn't known
            await client.upload_from("n", generator(content(500_000)))
        await client.settle()
        await eventually(lambda: not server.work.active)
        await client.upload("b", bytes(390_000))  # nothing is left of it


async def test_many_uploads_at_once(store: WatchedStore, files: FileClient) -> None:
    many = {f"n{number}": content(70_000 + number, number) for number in range(20)}
    await reactivex.merge(*[files.upload_from(name, data, chunk_size=5000) for name, data in many.items()])
    for name, data in many.items():
        assert await store.content(name) == data


async def test_the_time_travels_up_and_down(store: WatchedStore, files: FileClient, tmp_path: Path) -> None:
    source = on_disk(content(70_000), tmp_path)
    for modified in (1_000_000_000, 1_700_000_000.123456, -1.5):
        os.utime(source, (modified, modified))
        expected = source.stat().st_mtime
        completed = await files.upload_from("n", source)
        assert isinstance(completed, Completed)
        assert completed.info.modified == expected
        assert (await files.stat("n")).modified == expected
        for digest in ("xxh3-128", None):
            await files.download_to("n", tmp_path / "got", digest=digest)
            assert (tmp_path / "got").stat().st_mtime == expected
    await files.upload_from("n", b"bytes", modified=5)
    assert (await files.stat("n")).modified == 5
    await files.upload_from("n", source, modified=6.5)
    assert (await files.list_files(details=True)).modified == 6.5
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    os.utime(fifo, (5, 5))
    for bare in (b"bytes", fifo):
        writing = asyncio.create_task(asyncio.to_thread(fifo.write_bytes, b"bytes")) if bare is fifo else None
        await files.upload_from("n", bare)
        if writing is not None:
            await writing
        now = (await files.stat("n")).modified
        assert now is not None
        assert abs(now - time.time()) < 3600


async def test_a_time_that_no_file_can_have(server: FileServer, files: FileClient) -> None:
    for modified in (float("nan"), float("inf"), 1e15, -1e15):
        with pytest.raises(ValueError, match="modified"):
            files.upload_from("n", b"", modified=modified)
    for wrong in ("now", True):
        with pytest.raises(TypeError, match="modified"):
            files.upload_from("n", b"", modified=wrong)  # type: ignore[arg-type]
    async with raw_peer(server.uri) as peer:
        for number, modified in enumerate((float("nan"), float("-inf"), 1e300, 10**400, "now", True, [])):
            metadata = route_item("file.upload") + name_item(b"n") + transfer_item(upload_id="u", modified=modified)
            await peer.send(request(2 * number + 1, REQUEST_CHANNEL, metadata, n=5))
            got = await peer.receive()
            while got is not None and got.kind != ERROR:
                got = await peer.receive()
            assert got is not None
            assert got.error[1].startswith("invalid_request:")


async def test_a_full_disk_is_typed_and_gone_on_from_when_there_is_room(
    small_files: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    data = content(2_000_000)
    full = make_store("directory", tmp_path / "full")
    async with serving(full) as server, connected(server.uri) as files:
        await files.upload("n", b"what was there")
        upload = files.upload_from("n", data, chunk_size=50_000)
        with small_files(1_000_005), pytest.raises(StorageFull) as caught:
            await upload
        assert caught.value.name == "n"
        assert await full.content("n") == b"what was there"
        events = await upload.pipe(ops.to_list())
        check_story(events, len(data), len(data), resumed_from=1_000_005)
        assert await full.content("n") == data
        assert full.appended == len(data)


@pytest.mark.parametrize("digest", ["xxh3-128", None])
@pytest.mark.parametrize("is_sized", [True, False])
async def test_an_upload_that_does_not_fit_on_the_disk_leaves_its_room_to_others(
    mount: Mount, tmp_path: Path, is_sized: bool, digest: str | None
) -> None:
    folder = mount("size=2m")
    data = content(3_000_000)
    source = on_disk(data, tmp_path)
    async with serve(data=ChatData(DirectoryStore(folder))) as server, connected(server.uri) as files:
        upload = files.upload_from("n", source if is_sized else pieces(data, 100_000), digest=digest)
        recorder = Recorder()
        upload.subscribe(recorder)
        await recorder.ended()
        assert isinstance(recorder.error, StorageFull)
        assert bool(recorder.items) != is_sized, "with a size it is refused when it begins"
        assert os.listdir(folder / ".rxfiles" / "parts") == []
        await files.upload_from("n", data[:1_500_000])
        with pytest.raises(StorageFull):
            await files.upload("whole", data)
        await eventually(lambda: not os.listdir(folder / ".rxfiles" / "parts"))
        await files.upload("n", b"x")


async def test_disposed_uploads_to_a_disk_cost_others_nothing_and_begin_anew(mount: Mount) -> None:
    folder = mount("size=2m")
    data = content(600_000)
    async with serve(data=ChatData(DirectoryStore(folder))) as server, connected(server.uri) as files:

        async def unfinished() -> AsyncIterator[bytes]:
            yield data
            await asyncio.Event().wait()

        first = files.upload_from("first", data, chunk_size=SMALL)
        await first.pipe(ops.take(20))
        await files.settle()
        for number in range(10):
            size = 700_000 if number % 2 else None
            await files.upload_from(f"{number}", unfinished(), size=size, chunk_size=100_000).pipe(ops.take(2))
            await files.upload("x", data[: 400_000 + number])
        await files.settle()
        await eventually(lambda: not server.work.active)
        check_story(await first.pipe(ops.to_list()), len(data), len(data))
        assert server.work.failed == 0
