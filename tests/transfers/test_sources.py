"""Sources as they really are: they change while they are read, have nothing just now, block, claim another length."""

import array
import asyncio
import codecs
import io
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import reactivex
from reactivex import operators as ops
from reactivex.subject import Subject

from rx_client import Completed, FileClient, Progress, Started
from rx_client.operators import retry_backoff
from rx_client.transfers.channel import UploadChannel
from server import FileServer
from shared import IntegrityError, SourceChanged, SourceExhausted
from tests.support import PATIENCE, eventually
from tests.transfers.helpers import Recorder, WatchedStore, at_rest, check_story, content, make_store

SMALL: Final = 1000
ALGORITHMS: Final = ("xxh3-128", None)


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    """One kind: what a source is doesn't depend on it."""
    return make_store("lane", tmp_path)


@pytest.fixture(params=["file lane", "frame path"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "frame path":
        monkeypatch.setattr(UploadChannel, "lane", None)
    return request.param


def on_first_progress(change: Callable[[], object]) -> Callable[[Any], Any]:
    """Makes a change when some of an upload is durable."""
    is_made = False

    def look(event: object) -> None:
        nonlocal is_made
        if isinstance(event, Progress) and not is_made:
            is_made = True
            change()

    return ops.do_action(look)


async def begun(files: FileClient, upload: Any) -> None:
    """Subscribes to an upload, and disposes of it when some of it is durable."""
    await upload.pipe(ops.take_while(lambda event: not isinstance(event, Progress), inclusive=True))
    await files.settle()


# Changes while it is read


def rewrite(path: Path, data: bytes) -> None:
    with path.open("r+b") as file:
        file.write(b"!" * len(data))


def rewrite_and_hide_it(path: Path, data: bytes) -> None:
    status = path.stat()
    rewrite(path, data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rewrite_longer(path: Path, data: bytes) -> None:
    rewrite(path, data + b"more")


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"more" * SMALL)


def replace(path: Path, data: bytes) -> None:
    (path.parent / "new").write_bytes(b"!" * len(data))
    os.replace(path.parent / "new", path)


def cut(path: Path, data: bytes) -> None:
    os.truncate(path, len(data) // 2)


def touch(path: Path, data: bytes) -> None:
    os.utime(path)


def rename(path: Path, data: bytes) -> None:
    path.rename(path.parent / "renamed")


def change_bits(path: Path, data: bytes) -> None:
    path.chmod(0o600)


HARMLESS = (append, replace, touch, rename, change_bits)
HARMFUL = (rewrite, rewrite_and_hide_it, rewrite_longer, cut)
# Without a digest, what was sent can't be read again and compared.
UNSEEN_WITHOUT_DIGEST = (rewrite_and_hide_it, rewrite_longer)


def opened(kind: str, path: Path) -> Any:
    return path if kind == "path" else path.open("rb", *([0] if kind == "unbuffered file" else []))


@pytest.mark.parametrize("kind", ["path", "open file", "unbuffered file"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("change", [*HARMLESS, *HARMFUL])
async def test_a_file_that_changes_while_it_is_read(
    server: FileServer,
    store: WatchedStore,
    files: FileClient,
    tmp_path: Path,
    engine: str,
    kind: str,
    algorithm: str | None,
    change: Callable[[Path, bytes], None],
) -> None:
    if algorithm is None and engine == "file lane" and change in UNSEEN_WITHOUT_DIGEST:
        pytest.skip("documented")
    data, path = content(60 * SMALL), tmp_path / "source"
    path.write_bytes(data)
    source = opened(kind, path)
    upload = files.upload_from("n", source, chunk_size=SMALL, window=1, digest=algorithm)
    changed = upload.pipe(on_first_progress(lambda: change(path, data)), ops.to_list())
    if change in HARMLESS and not (change is touch and algorithm is None and engine == "file lane"):
        check_story(await changed, len(data), len(data))
        assert await store.content("n") == data
    else:
        with pytest.raises(SourceChanged):
            await changed
        assert await store.names() == []
        await at_rest(server, store)
        now = (tmp_path / "source").read_bytes()
        check_story(await upload.pipe(ops.to_list()), len(now), len(now))
        assert await store.content("n") == now
    await files.stat("n")  # the connection is alive
    if source is not path:
        assert source.tell() == 0
        source.close()


# Changes between attempts


@pytest.mark.parametrize("kind", ["path", "open file"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("change", [*HARMLESS, *HARMFUL])
async def test_a_file_that_changes_between_two_attempts(
    server: FileServer,
    store: WatchedStore,
    files: FileClient,
    tmp_path: Path,
    engine: str,
    kind: str,
    algorithm: str | None,
    change: Callable[[Path, bytes], None],
) -> None:
    """It goes on where the content is the same, and starts over where it is another one, or can't be told."""
    if algorithm is None and engine == "file lane" and change in UNSEEN_WITHOUT_DIGEST:
        pytest.skip("documented")
    if change is rename and kind == "path":
        pytest.skip("nothing is there any more")
    data, path = content(60 * SMALL), tmp_path / "source"
    path.write_bytes(data)
    source = opened(kind, path)
    upload = files.upload_from("n", source, chunk_size=SMALL, window=1, digest=algorithm)
    await begun(files, upload)
    await at_rest(server, store)
    change(path, data)
    now = data if change in (append, rename) or (change is replace and kind == "open file") else path.read_bytes()
    events = await upload.pipe(ops.to_list())
    assert await store.content("n") == now
    started = [event for event in events if isinstance(event, Started)]
    assert started[0].resumed_from > 0
    is_same = now == data and not (change is touch and algorithm is None and engine == "file lane")
    assert [event.resumed_from for event in started[1:]] == ([] if is_same else [0])
    if source is not path:
        source.close()


async def test_a_copy_with_the_same_content_is_gone_on_with(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path, engine: str
) -> None:
    data, path = content(60 * SMALL), tmp_path / "source"
    path.write_bytes(data)
    upload = files.upload_from("n", path, chunk_size=SMALL, window=1)
    await begun(files, upload)
    await at_rest(server, store)
    path.unlink()
    (tmp_path / "other").write_bytes(b"keeps the inode")
    path.write_bytes(data)
    events = await upload.pipe(ops.to_list())
    assert isinstance(events[0], Started)
    check_story(events, len(data), len(data), resumed_from=events[0].resumed_from)
    assert events[0].resumed_from > 0


async def test_a_log_that_grows_all_the_time(store: WatchedStore, files: FileClient, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a line\n" * 100_000)
    stop = threading.Event()

    def write() -> None:
        with log.open("ab", 0) as file:
            while not stop.wait(0.001):
                file.write(b"a line\n")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with log.open("rb") as file:
            for source in (log, file):
                for algorithm in ALGORITHMS:
                    await files.upload_from("log", source, digest=algorithm)
                    got = await store.content("log")
                    assert got == b"a line\n" * (len(got) // 7)
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", ["iterable", "observable"])
async def test_items_that_are_others_the_next_time_are_not_the_rest(
    server: FileServer, store: WatchedStore, files: FileClient, kind: str, algorithm: str | None
) -> None:
    class Sensor:
        number = 0

        def __iter__(self) -> Iterator[bytes]:
            self.number += 1
            return iter([b"%d" % self.number * SMALL] * 60)

    sensor = Sensor()
    source = sensor if kind == "iterable" else reactivex.defer(lambda _: reactivex.from_iterable(sensor))
    window = 1 if kind == "iterable" else 100
    upload = files.upload_from("n", source, chunk_size=SMALL, window=window, digest=algorithm)
    await begun(files, upload)
    await at_rest(server, store)
    for _ in range(2):
        with pytest.raises(SourceExhausted, match="other bytes"):
            await upload
        assert await store.names() == []


async def test_a_hot_observable_is_not_cut_in_silence_where_the_server_has_nothing_yet(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    hot: Subject[bytes] = Subject()
    upload = files.upload_from("n", hot, chunk_size=SMALL)
    subscription = upload.subscribe()
    await eventually(lambda: hot.observers)
    hot.on_next(b"a" * 100)  # no whole item
    await asyncio.sleep(0.05)
    subscription.dispose()
    await files.settle()
    await at_rest(server, store)
    heard = Recorder()
    upload.subscribe(heard)
    await eventually(lambda: hot.observers)
    hot.on_next(b"b" * 100)
    hot.on_completed()
    await heard.ended()
    assert isinstance(heard.error, SourceExhausted)
    assert await store.names() == []


# Lengths


def test_this_system_makes_what_is_in_proc() -> None:
    assert os.stat("/proc/version").st_size == 0


@pytest.mark.parametrize("path", ["/proc/version", "/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled"])
async def test_what_the_system_makes_when_it_is_read(files: FileClient, path: str) -> None:
    if not os.path.exists(path):
        pytest.skip("not on this system")
    expected = len(Path(path).read_bytes())
    with open(path, "rb") as file, open(path, "rb", 0) as unbuffered:
        for source in (path, file, unbuffered):
            for algorithm in ALGORITHMS:
                completed = await files.upload_from("n", source, digest=algorithm)
                assert isinstance(completed, Completed)
                assert completed.info.size == expected or path == "/proc/cpuinfo"
                assert completed.info.size > 0
                if source is not path:
                    source.seek(0)


@pytest.mark.parametrize("kind", ["path", "file", "sparse"])
async def test_a_file_without_blocks_on_the_disk(
    store: WatchedStore, files: FileClient, tmp_path: Path, kind: str
) -> None:
    (path := tmp_path / "source").touch()
    size = 300_000 if kind == "sparse" else 0
    os.truncate(path, size)
    with path.open("rb") as file:
        source = file if kind == "file" else path
        check_story(await files.upload_from("n", source).pipe(ops.to_list()), size, size)
    assert await store.content("n") == bytes(size)


async def test_devices_and_folders(files: FileClient, tmp_path: Path) -> None:
    completed = await files.upload_from("n", "/dev/null")
    assert isinstance(completed, Completed)
    assert completed.info.size == 0
    with pytest.raises(IsADirectoryError):
        await files.upload_from("n", tmp_path)
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="link"):
        await files.upload_from("n", tmp_path / "link")


@pytest.mark.parametrize("kind", ["zip", "temporary", "wrapped", "spooled", "random"])
async def test_file_objects_of_the_standard_library(
    store: WatchedStore, files: FileClient, tmp_path: Path, kind: str
) -> None:
    data = content(300_000)
    make: dict[str, Callable[[], Any]] = {
        "temporary": tempfile.TemporaryFile,
        "wrapped": partial(tempfile.NamedTemporaryFile, dir=tmp_path),
        "spooled": partial(tempfile.SpooledTemporaryFile, 1000),
        "random": lambda: (tmp_path / "random").open("w+b"),
    }
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "zip", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("n", data)
        with zipfile.ZipFile(tmp_path / "zip") as packed, packed.open("n") as file:
            await files.upload_from("n", file)
        assert await store.content("n") == data
        return
    with make[kind]() as file:
        file.write(b"before" + data)  # not flushed
        file.seek(6)
        events = await files.upload_from("n", file).pipe(ops.to_list())
        check_story(events, len(data), len(data))
    assert await store.content("n") == data


async def test_a_memory_file_that_becomes_shorter_or_longer(store: WatchedStore, files: FileClient) -> None:
    data = content(60 * SMALL)
    file = io.BytesIO(data)
    upload = files.upload_from("n", file, chunk_size=SMALL, window=1)

    def lengthen() -> None:
        position = file.tell()
        file.seek(0, os.SEEK_END)
        file.write(b"more")
        file.seek(position)

    events = await upload.pipe(on_first_progress(lengthen), ops.to_list())
    check_story(events, len(data), len(data))
    assert await store.content("n") == data
    with pytest.raises(SourceChanged):
        await upload.pipe(on_first_progress(lambda: file.truncate(30 * SMALL)))
    await upload
    assert await store.content("n") == data[: 30 * SMALL]


# Memory


def mapped(path: Path, data: bytes) -> mmap.mmap:
    path.write_bytes(b"before" + data)
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    memory.seek(6)
    return memory


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_an_mmap(
    server: FileServer, store: WatchedStore, files: FileClient, tmp_path: Path, algorithm: str | None
) -> None:
    data = content(60 * SMALL)
    with mapped(tmp_path / "source", data) as memory:
        upload = files.upload_from("n", memory, chunk_size=SMALL, window=1, digest=algorithm)
        await begun(files, upload)
        await at_rest(server, store)
        events = await upload.pipe(ops.to_list())
        assert isinstance(events[0], Started)
        check_story(events, len(data), len(data), resumed_from=events[0].resumed_from)
        assert await store.content("n") == data

        def write() -> None:
            memory[6 : 6 + len(data)] = b"!" * len(data)

        with pytest.raises(SourceChanged):
            await upload.pipe(on_first_progress(write))
        assert await store.content("n") == data
        await upload
        assert await store.content("n") == b"!" * len(data)
        # What isn't there any more would end the process.
        with pytest.raises(SourceChanged):
            await upload.pipe(on_first_progress(lambda: os.truncate(tmp_path / "source", 10 * SMALL)))


async def test_items_of_any_buffer(store: WatchedStore, files: FileClient) -> None:
    numbers = array.array("i", range(100_000))
    data = numbers.tobytes()
    whole, every_other = memoryview(numbers), memoryview(data)[::2]
    pieces = [memoryview(numbers)[at : at + 700] for at in range(0, len(numbers), 700)]
    for source in (pieces, iter(pieces), lambda offset: [whole.cast("B")[offset:]], reactivex.from_iterable(pieces)):
        await files.upload_from("n", source, chunk_size=SMALL, window=1000)
        assert await store.content("n") == data
    for source in (numbers, whole):
        check_story(await files.upload_from("n", source).pipe(ops.to_list()), len(data), len(data))
        assert await store.content("n") == data
    await files.upload_from("n", [every_other, b""])
    assert await store.content("n") == data[::2]


@pytest.mark.parametrize("kind", ["iterable", "async iterable", "observable"])
async def test_a_buffer_that_is_used_again(store: WatchedStore, files: FileClient, kind: str) -> None:
    def fill() -> Iterator[memoryview]:
        buffer = bytearray(100)
        for number in range(100):
            buffer[:] = bytes([number]) * 100
            yield memoryview(buffer)[: number + 1]

    async def fill_slowly() -> AsyncIterator[memoryview]:
        for piece in fill():
            yield piece

    sources = {"iterable": fill, "async iterable": fill_slowly, "observable": lambda: reactivex.from_iterable(fill())}
    await files.upload_from("n", sources[kind](), window=1000)
    assert await store.content("n") == b"".join(bytes([number]) * (number + 1) for number in range(100))


# What has nothing just now


def write_slowly(descriptor: int, data: bytes) -> threading.Thread:
    def write() -> None:
        with open(descriptor, "wb", 0) as pipe:
            pipe.writelines(data[at : at + 5000] for at in range(0, len(data), 5000))

    thread = threading.Timer(0.05, write)
    thread.start()
    return thread


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("is_blocking", [True, False])
async def test_a_pipe_that_is_empty_for_a_while(
    store: WatchedStore, files: FileClient, buffering: int, is_blocking: bool
) -> None:
    data = content(200_000)
    reading, writing = os.pipe()
    os.set_blocking(reading, is_blocking)
    thread = write_slowly(writing, data)
    with open(reading, "rb", buffering) as pipe:
        check_story(await files.upload_from("n", pipe).pipe(ops.to_list()), None, len(data))
    thread.join()
    assert await store.content("n") == data


class Hesitant(io.RawIOBase):
    """A file object without a descriptor that has nothing, some bytes, nothing, and so on."""

    def __init__(self, data: bytes, nothing: object) -> None:
        self.left = data
        self.nothing = nothing
        self.calls = 0

    def readable(self) -> bool:
        return True

    def read(self, nbytes: int = -1) -> Any:
        self.calls += 1
        if self.calls % 2 and self.left:
            if isinstance(self.nothing, type):
                raise self.nothing
            return self.nothing
        piece, self.left = self.left[:7000], self.left[7000:]
        return piece


@pytest.mark.parametrize("nothing", [None, BlockingIOError])
async def test_a_file_object_that_has_nothing_just_now(store: WatchedStore, files: FileClient, nothing: object) -> None:
    data = content(50_000)
    await files.upload_from("n", Hesitant(data, nothing))  # type: ignore[arg-type]
    assert await store.content("n") == data


async def test_a_fifo(store: WatchedStore, files: FileClient, tmp_path: Path) -> None:
    data = content(200_000)
    os.mkfifo(fifo := tmp_path / "fifo")
    upload = files.upload_from("n", fifo)
    heard = Recorder()
    subscription = upload.subscribe(heard)
    await heard.got(Started)
    subscription.dispose()  # while there is no writer
    await files.settle()
    heard = Recorder()
    upload.subscribe(heard)
    await heard.got(Started)
    thread = threading.Thread(target=fifo.write_bytes, args=(data,))
    thread.start()
    await heard.ended()
    thread.join()
    assert heard.is_completed, heard.error
    assert await store.content("n") == data
    with pytest.raises(SourceExhausted):
        await upload


async def test_what_a_cancelled_read_has_taken_is_not_lost(
    server: FileServer, store: WatchedStore, files: FileClient
) -> None:
    data = content(10 * SMALL)
    is_asked, may_go_on = threading.Event(), threading.Event()

    class Stuck(io.RawIOBase):
        file = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def read(self, nbytes: int = -1) -> bytes:
            is_asked.set()
            may_go_on.wait(PATIENCE)
            return self.file.read(nbytes)

    upload = files.upload_from("n", Stuck())  # type: ignore[arg-type]
    subscription = upload.subscribe()
    await eventually(is_asked.is_set)
    subscription.dispose()
    await files.settle()
    await at_rest(server, store)
    may_go_on.set()
    await upload
    assert await store.content("n") == data


BLOCKED: Final = {
    "FIFO": "os.mkfifo(name); source = name",
    "pipe": "source = os.fdopen(os.pipe()[0], 'rb')",
    "generator": "source = iter(queue.SimpleQueue().get, None)",
    "file object": "source = type('File', (), {'read': lambda self, nbytes: queue.SimpleQueue().get()})()",
    "async file object": "source = asyncio.StreamReader()",
}


@pytest.mark.parametrize("kind", BLOCKED)
def test_a_process_ends_though_its_source_blocks(tmp_path: Path, kind: str) -> None:
    code = f"""
import asyncio, os, queue
from rx_client import FileClient
from server import serve

async def main():
    name = {str(tmp_path / "fifo")!r}
    {BLOCKED[kind]}
    async with serve() as server, FileClient.connect(server.uri) as files:
        try:
            await asyncio.wait_for(files.upload_from("n", source).__await__.__self__, 0.5)
        except TimeoutError:
            print("cancelled")

asyncio.run(main())
"""
    code = code.replace('files.upload_from("n", source).__await__.__self__', 'wait(files.upload_from("n", source))')
    code = "async def wait(transfer):\n    await transfer\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout) == (0, "cancelled\n"), done.stderr


# Slow ones


@pytest.mark.parametrize("kind", ["iterable", "async iterable", "file object"])
async def test_what_a_slow_source_has_given_is_sent(
    server: FileServer, store: WatchedStore, files: FileClient, kind: str
) -> None:
    given, may_end = asyncio.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"first"
        may_end.wait(PATIENCE)
        yield b"last"

    async def slow_async() -> AsyncIterator[bytes]:
        yield b"first"
        await given.wait()
        yield b"last"

    class File:
        pieces = slow()

        def read(self, nbytes: int) -> bytes:
            return next(self.pieces, b"")

    sources = {"iterable": slow, "async iterable": slow_async, "file object": File}
    heard = Recorder()
    files.upload_from("n", sources[kind]()).subscribe(heard)
    await heard.got(Progress)
    assert store.appended == len(b"first")
    may_end.set()
    given.set()
    await heard.ended()
    assert await store.content("n") == b"firstlast"


async def test_a_dispose_is_heard_within_one_item(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    taken, may_go_on, closed = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def slow() -> Iterator[bytes]:
        try:
            while True:
                taken.release()
                may_go_on.acquire(timeout=PATIENCE)
                yield b"x"
        finally:
            closed.set()

    subscription = files.upload_from("n", slow()).subscribe()
    await asyncio.to_thread(taken.acquire)
    subscription.dispose()
    await eventually(lambda: server.work.cancelled == 1)
    may_go_on.release()
    await eventually(closed.is_set)
    await files.settle()
    assert not taken.acquire(blocking=False), "no more items were taken"


# Asynchronous file objects


class AsyncFile:
    """As aiofiles' and anyio's."""

    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)

    async def read(self, nbytes: int = -1) -> bytes:
        await asyncio.sleep(0)
        return self.file.read(nbytes)

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError("by lines")


class SeekableAsyncFile(AsyncFile):
    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    async def tell(self) -> int:
        return self.file.tell()


class OddlySeekableAsyncFile(AsyncFile):
    """As Starlette's uploaded files."""

    async def seek(self, offset: int) -> None:
        self.file.seek(offset)


@pytest.mark.parametrize("kind", [AsyncFile, SeekableAsyncFile, OddlySeekableAsyncFile])
async def test_asynchronous_file_objects(
    server: FileServer, store: WatchedStore, files: FileClient, kind: type[AsyncFile]
) -> None:
    data = content(60 * SMALL)
    file = kind(b"before" + data)
    await file.read(6)
    upload = files.upload_from("n", file, chunk_size=SMALL, window=2)
    is_seekable = kind is SeekableAsyncFile
    if is_seekable:
        await begun(files, upload)
        await at_rest(server, store)
    events = await upload.pipe(ops.to_list())
    assert isinstance(events[0], Started)
    assert (events[0].resumed_from > 0) == is_seekable
    check_story(events, len(data) if is_seekable else None, len(data), resumed_from=events[0].resumed_from)
    assert await store.content("n") == data
    if not is_seekable:
        with pytest.raises(SourceExhausted):
            await upload


class AsyncDiskFile(SeekableAsyncFile):
    def __init__(self, path: Path, is_aiofiles: bool) -> None:
        self.file = path.open("rb")  # type: ignore[assignment]
        self.is_aiofiles = is_aiofiles

    def fileno(self) -> Any:
        async def number() -> int:
            return self.file.fileno()

        return number() if self.is_aiofiles else self.file.fileno()


@pytest.mark.parametrize("change", [append, rewrite, cut])
@pytest.mark.parametrize("is_aiofiles", [True, False])
async def test_an_asynchronous_file_that_changes_while_it_is_read(
    store: WatchedStore, files: FileClient, tmp_path: Path, is_aiofiles: bool, change: Callable[[Path, bytes], None]
) -> None:
    data, path = content(60 * SMALL), tmp_path / "source"
    path.write_bytes(data)
    file = AsyncDiskFile(path, is_aiofiles)
    upload = files.upload_from("n", file, chunk_size=SMALL, window=1)
    changed = upload.pipe(on_first_progress(lambda: change(path, data)))
    if change is append:
        await changed
        assert await store.content("n") == data
    else:
        with pytest.raises(SourceChanged):
            await changed
        assert await store.names() == []
    file.file.close()


async def test_a_stream_reader(store: WatchedStore, files: FileClient) -> None:
    data = content(300_000)  # with lines of any length
    reader = asyncio.StreamReader()
    heard = Recorder()
    files.upload_from("n", reader).subscribe(heard)
    for at in range(0, len(data), 10_000):
        reader.feed_data(data[at : at + 10_000])
        await asyncio.sleep(0)
    reader.feed_eof()
    await heard.ended()
    assert heard.is_completed, heard.error
    assert await store.content("n") == data


# What is none


NOT_SOURCES: Final[dict[str, Callable[[Path], Any]]] = {
    "text file": lambda path: path.open(),
    "file to write": lambda path: path.open("ab"),
    "text in memory": lambda _: io.StringIO("text"),
    "set": lambda _: {b"a", b"b"},
    "mapping": lambda _: {b"a": b"b"},
    "list of text": lambda _: ["text"],
    "list of numbers": lambda _: [1, 2],
    "encoded text": lambda _: codecs.getreader("utf-8")(io.BytesIO()),
    "temporary text": lambda _: tempfile.NamedTemporaryFile("w+"),  # noqa: SIM115
    "range": lambda _: range(3),
    "coroutine function": lambda _: asyncio.sleep,
    "number": lambda _: 1,
    "object": lambda _: object(),
}


@pytest.mark.parametrize("kind", NOT_SOURCES)
async def test_what_is_no_source_is_refused_at_the_call(files: FileClient, tmp_path: Path, kind: str) -> None:
    (path := tmp_path / "source").touch()
    source = NOT_SOURCES[kind](path)
    with pytest.raises(TypeError, match="source"):
        files.upload_from("n", source)
    if hasattr(source, "close"):
        source.close()


async def test_a_function_that_makes_no_items(files: FileClient) -> None:
    with pytest.raises(TypeError, match="function makes"):
        await files.upload_from("n", lambda offset: 5)  # type: ignore[arg-type,return-value]


async def test_a_changed_source_can_be_retried_and_is_a_kind_of_integrity_error(
    store: WatchedStore, files: FileClient, tmp_path: Path
) -> None:
    data, path = content(60 * SMALL), tmp_path / "source"
    path.write_bytes(data)
    upload = files.upload_from("n", path, chunk_size=SMALL, window=1)
    change = on_first_progress(lambda: rewrite(path, data))
    await upload.pipe(change, retry_backoff(attempts=3, base=0.01))
    assert await store.content("n") == b"!" * len(data)
    assert issubclass(SourceChanged, IntegrityError)
