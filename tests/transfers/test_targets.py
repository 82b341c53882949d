"""The ends of downloads as they really are: links, FIFOs, devices, folders, odd names, file objects of all kinds."""

import asyncio
import codecs
import errno
import fcntl
import gzip
import io
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from reactivex import operators as ops

from rx_client import FileClient, Progress, Started
from rx_client.operators import retry_backoff
from rx_client.transfers import path_sink
from server import FileServer
from shared import Changed, IntegrityError, StorageFull
from tests.faults import fault_proxy
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


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    """One kind: what a target is doesn't depend on it."""
    return make_store("lane", tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty one."""
    (folder := tmp_path / "folder").mkdir()
    return folder


async def begun(files: FileClient, download: Any) -> None:
    """Subscribes to a download, and disposes of it when some of it is written."""
    await download.pipe(ops.take_while(lambda event: not isinstance(event, Progress), inclusive=True))
    await files.settle()


# What is no place for a file


def a_socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as bound:
        os.chdir(folder)  # such a path is short
        bound.bind("socket")
    return folder / "socket"


def a_link_loop(folder: Path) -> Path:
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    return folder / "one"


def a_link_to_a_folder(folder: Path) -> Path:
    (folder / "link").symlink_to(".")
    return folder / "link"


def a_link_into_no_folder(folder: Path) -> Path:
    (folder / "link").symlink_to("nope/file")
    return folder / "link"


def below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "got"


REFUSED: Final[dict[str, tuple[Callable[[Path], Path | str], int]]] = {
    "folder": (lambda folder: folder, errno.EISDIR),
    "folder that isn't there": (lambda folder: f"{folder}/new/", errno.EISDIR),
    "the same by its dot": (lambda folder: f"{folder}/new/.", errno.EISDIR),
    "link to a folder": (a_link_to_a_folder, errno.EISDIR),
    "no folder": (lambda folder: folder / "nope" / "got", errno.ENOENT),
    "link into no folder": (a_link_into_no_folder, errno.ENOENT),
    "below a file": (below_a_file, errno.ENOTDIR),
    "link loop": (a_link_loop, errno.ELOOP),
    "socket": (a_socket, errno.EINVAL),
    "too long a name": (lambda folder: folder / ("x" * 256), errno.ENAMETOOLONG),
    "a file of the system's": (lambda _: Path("/proc/rxfiles"), errno.ENOENT),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_is_no_place_for_a_file_is_refused_before_anything_is_fetched(
    server: FileServer, files: FileClient, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    await files.upload("n", b"new")
    make, number = REFUSED[kind]
    path = make(folder)
    before, started = sorted(os.listdir(folder)), server.work.started
    with pytest.raises(OSError) as caught:
        await files.download_to("n", path)
    assert caught.value.errno == number
    assert server.work.started == started
    assert sorted(os.listdir(folder)) == before


async def test_a_folder_without_permission_is_refused_before_anything_is_fetched(
    server: FileServer, files: FileClient, folder: Path
) -> None:
    await files.upload("n", b"new")
    folder.chmod(0o500)
    try:
        if os.geteuid() == 0:
            pytest.skip("everything is permitted")
        started = server.work.started
        with pytest.raises(PermissionError):
            await files.download_to("n", folder / "got")
        assert server.work.started == started
    finally:
        folder.chmod(0o700)


# What is written to as it is


def kind_of(path: Path) -> int:
    return stat.S_IFMT(os.lstat(path).st_mode)


@pytest.mark.parametrize("is_linked", [False, True])
async def test_a_fifo_is_written_to(files: FileClient, folder: Path, is_linked: bool) -> None:
    data = content(20 * CHUNK)
    await files.upload_from("n", data)
    os.mkfifo(fifo := folder / "fifo")
    (folder / "link").symlink_to("fifo")
    download = files.download_to("n", folder / ("link" if is_linked else "fifo"))
    heard = Recorder()
    subscription = download.subscribe(heard)
    await asyncio.sleep(0.1)
    assert heard.items == []
    subscription.dispose()  # while it has no reader
    await files.settle()
    for _ in range(2):
        heard = Recorder()
        download.subscribe(heard)
        got = await asyncio.to_thread(fifo.read_bytes)
        await heard.ended()
        assert heard.is_completed, heard.error
        assert got == data
    assert kind_of(fifo) == stat.S_IFIFO
    assert parts(folder) == []


async def test_a_fifo_whose_reader_goes_away(files: FileClient, folder: Path) -> None:
    await files.upload_from("n", content(20 * CHUNK))
    os.mkfifo(fifo := folder / "fifo")
    heard = Recorder()
    files.download_to("n", fifo).subscribe(heard)

    def read_some() -> None:
        with fifo.open("rb", 0) as reader:
            reader.read(10)

    await asyncio.to_thread(read_some)
    await heard.ended()
    assert isinstance(heard.error, BrokenPipeError)


async def test_devices_are_written_to(files: FileClient, folder: Path) -> None:
    await files.upload_from("n", content(20 * CHUNK))
    for path in (Path("/dev/null"), folder / "null"):
        if path.parent == folder:
            try:
                os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            except PermissionError:
                continue
        await files.download_to("n", path)
        assert kind_of(path) == stat.S_IFCHR
    if os.path.exists("/dev/full"):
        with pytest.raises(StorageFull):
            await files.download_to("n", "/dev/full")
    assert parts(folder) == []


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_standard_output_is_written_to(folder: Path, kind: str) -> None:
    code = """
import asyncio, sys
from rx_client import FileClient
from server import serve

async def main():
    async with serve() as server, FileClient.connect(server.uri) as files:
        await files.upload("n", b"x" * 1_000_000)
        print("before", flush=True)
        await files.download_to("n", "/dev/stdout")

asyncio.run(main())
"""
    with (folder / "out").open("wb") as out:
        output = out if kind == "file" else subprocess.PIPE
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, timeout=40, check=False
        )
    got = (folder / "out").read_bytes() if kind == "file" else done.stdout
    assert (done.returncode, got) == (0, b"before\n" + b"x" * 1_000_000), done.stderr.decode()


# Links


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("way", ["target", "../folder/sub/target", "absolute", "chain"])
async def test_the_target_of_a_link_is_replaced(files: FileClient, folder: Path, way: str, is_there: bool) -> None:
    (folder / "sub").mkdir()
    target, link = folder / "target", folder / "link"
    if way == "../folder/sub/target":
        target = folder / "sub" / "target"
    if way == "chain":
        (folder / "sub" / "middle").symlink_to("../target")
        link.symlink_to("sub/middle")
    else:
        link.symlink_to(target if way == "absolute" else way)
    if is_there:
        target.write_bytes(b"old")
    data = content(10 * CHUNK)
    await files.upload_from("n", data)
    await begun(files, files.download_to("n", link, window=1))
    assert parts(folder) + parts(folder / "sub") != []
    events = await files.download_to("n", link).pipe(ops.to_list())
    assert isinstance(events[0], Started)
    assert events[0].resumed_from > 0
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_bytes() == data
    assert parts(folder) == parts(folder / "sub") == []


# Between the look and the rename


def a_fifo_at(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_folder_at(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def a_link_at(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("change", [a_fifo_at, a_folder_at, a_link_at])
async def test_what_takes_the_files_place_meanwhile_stays(
    files: FileClient, folder: Path, change: Callable[[Path], None], is_there: bool
) -> None:
    data, got = content(10 * CHUNK), folder / "got"
    await files.upload_from("n", data)
    if is_there:
        got.write_bytes(b"old")
    download = files.download_to("n", got, window=1)
    is_changed = False

    def on_event(event: object) -> None:
        nonlocal is_changed
        if isinstance(event, Progress) and not is_changed:
            is_changed = True
            change(got)

    with pytest.raises(OSError):
        await download.pipe(ops.do_action(on_event))
    kind = kind_of(got)
    assert kind != stat.S_IFREG
    if change is a_folder_at:
        got.rmdir()
    elif change is a_fifo_at:
        got.unlink()
    events = await download.pipe(ops.to_list())
    at = folder / "elsewhere" if change is a_link_at else got
    assert at.read_bytes() == data
    assert isinstance(events[0], Started)
    if change is not a_link_at:
        check_story(events, len(data), len(data), resumed_from=len(data))  # nothing is fetched again


@pytest.mark.parametrize("is_real", [True, False])
async def test_a_mount_point_is_written_in_place(
    files: FileClient, folder: Path, is_real: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, got = content(3 * CHUNK), folder / "got"
    got.write_bytes(b"old" * CHUNK * 2)
    inode = got.stat().st_ino
    if is_real:
        mounted = subprocess.run(["mount", "--bind", got, got], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("it takes a privilege")
    else:
        replace = os.replace

        def refuse(source: str, target: str, **folders: int | None) -> None:
            if target == str(got):
                raise OSError(errno.EBUSY, "busy", target)
            replace(source, target, **folders)

        monkeypatch.setattr(os, "replace", refuse)
    try:
        await files.upload_from("n", data, modified=1_700_000_000.5)
        await files.download_to("n", got)
        assert (got.read_bytes(), got.stat().st_ino, got.stat().st_mtime) == (data, inode, 1_700_000_000.5)
    finally:
        if is_real:
            subprocess.run(["umount", got], check=True)
    assert got.read_bytes() == data
    assert parts(folder) == []


# Permission bits


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o755, 0o664, 0o666])
async def test_a_file_keeps_its_permission_bits(files: FileClient, folder: Path, mode: int) -> None:
    data = content(10 * CHUNK)
    await files.upload_from("n", data)
    got, new = folder / "got", folder / "new"
    got.write_bytes(b"old")
    got.chmod(mode)
    await begun(files, files.download_to("n", got, window=1))
    (part,) = parts(folder)
    assert stat.S_IMODE((folder / part).stat().st_mode) & ~mode & 0o077 == 0, "others see no more of it"
    old = os.umask(0o027)
    try:
        await files.download_to("n", got)
        await files.download_to("n", new)
    finally:
        os.umask(old)
    assert stat.S_IMODE(got.stat().st_mode) == mode
    assert stat.S_IMODE(new.stat().st_mode) == 0o640
    assert got.read_bytes() == new.read_bytes() == data


# Names and parts


NAMES: Final = (
    b"latin-\xe9\xff",
    b"\xff" * 255,
    b"n" * 205 + b"-1",
    b"n" * 205 + b"-2",
    "\N{GRINNING FACE}".encode() * 63,
    b".hidden",
    b" ",
    b"new\nline",
    b"-",
    b"%s",
)


async def test_no_two_targets_share_a_part(files: FileClient, folder: Path) -> None:
    data = content(10 * CHUNK)
    await files.upload_from("n", data)
    paths = [os.path.join(folder, os.fsdecode(name)) for name in NAMES]
    for path in paths:
        await begun(files, files.download_to("n", path, window=1))
    assert len(os.listdir(folder)) == len(NAMES)
    for path in paths:
        events = await files.download_to("n", path).pipe(ops.to_list())
        assert isinstance(events[0], Started)
        assert events[0].resumed_from > 0
    assert sorted(os.fsencode(name) for name in os.listdir(folder)) == sorted(NAMES)
    assert all(Path(path).read_bytes() == data for path in paths)


class BytesPath:
    """A PathLike whose path is bytes."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return self.path


async def test_a_path_of_bytes(store: WatchedStore, files: FileClient, folder: Path) -> None:
    path = BytesPath(os.fsencode(folder) + b"/\xff")
    await files.upload("n", b"data")
    await files.download_to("n", path)  # type: ignore[arg-type]
    await files.upload_from("m", path)  # type: ignore[arg-type]
    assert await store.content("m") == b"data"


async def test_what_else_is_in_the_folder_is_not_looked_at(
    files: FileClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(10 * CHUNK)
    await files.upload_from("n", data)

    def refuse(*_: object) -> None:
        raise AssertionError("listed")

    for name in ("listdir", "scandir"):
        monkeypatch.setattr(path_sink.os, name, refuse)
    await begun(files, files.download_to("n", folder / "got", window=1))
    events = await files.download_to("n", folder / "got").pipe(ops.to_list())
    monkeypatch.undo()
    assert isinstance(events[0], Started)
    assert events[0].resumed_from > 0
    assert (folder / "got").read_bytes() == data


@pytest.mark.parametrize("lacks", ["nothing", "attributes", "locks"])
async def test_a_file_system_that_lacks_something(
    server: FileServer,
    store: WatchedStore,
    files: FileClient,
    folder: Path,
    lacks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not in this file system")

    if lacks == "attributes":
        for name in ("setxattr", "getxattr", "removexattr"):
            monkeypatch.setattr(os, name, refuse)
    elif lacks == "locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
    data, got = content(20 * CHUNK), folder / "got"
    await files.upload_from("n", data)
    download = files.download_to("n", got, window=1)
    await begun(files, download)
    for again in (download, files.download_to("n", got)):
        events = await again.pipe(ops.to_list())
        assert isinstance(events[0], Started)
        assert (events[0].resumed_from > 0) == (again is download)
        assert got.read_bytes() == data
        assert os.listdir(folder) == ["got"]
    if lacks != "locks":
        async with connected(server.uri) as other:
            await begun(other, other.download_to("n", got, window=1))
        events = await files.download_to("n", got).pipe(ops.to_list())
        assert isinstance(events[0], Started)
        assert events[0].resumed_from > 0, "another process goes on with it"
        assert os.listdir(folder) == ["got"]
    one, two = Recorder(), Recorder()
    files.download_to("n", got).subscribe(one)
    files.download_to("n", got).subscribe(two)
    await one.ended()
    await two.ended()
    assert (one.error, two.error) == (None, None)
    assert got.read_bytes() == data
    assert os.listdir(folder) == ["got"]
    assert not hasattr(os, "listxattr") or os.listxattr(got) == []


async def test_a_part_of_another_file_is_started_over(files: FileClient, folder: Path) -> None:
    one, two = content(10 * CHUNK, 1), content(12 * CHUNK, 2)
    await files.upload_from("one", one)
    await files.upload_from("two", two)
    first = files.download_to("one", folder / "got", window=1)
    await begun(files, first)
    await begun(files, files.download_to("two", folder / "got", window=1))
    assert len(parts(folder)) == 1
    check_story(await first.pipe(ops.to_list()), len(one), len(one))
    assert (folder / "got").read_bytes() == one
    assert parts(folder) == []


@pytest.mark.parametrize("what", ["link", "folder", "FIFO"])
async def test_what_has_the_name_of_a_part_is_left_alone(files: FileClient, folder: Path, what: str) -> None:
    await files.upload_from("n", content(10 * CHUNK))
    await begun(files, files.download_to("n", folder / "got", window=1))
    (part,) = parts(folder)
    (folder / part).unlink()
    (folder / "other").write_bytes(b"other")
    if what == "link":
        (folder / part).symlink_to("other")
    elif what == "folder":
        (folder / part).mkdir()
    else:
        os.mkfifo(folder / part)
    await files.download_to("n", folder / "got")
    assert parts(folder) == [part]
    assert (folder / "other").read_bytes() == b"other"


# File objects


def opened(kind: str, folder: Path) -> Any:
    if kind == "memory":
        return io.BytesIO()
    if kind == "temporary":
        return tempfile.TemporaryFile()
    if kind == "wrapped":
        return tempfile.NamedTemporaryFile(dir=folder)
    if kind == "spooled":
        return tempfile.SpooledTemporaryFile(1000)
    return (folder / "got").open("w+b", *([0] if kind == "unbuffered" else []))


@pytest.mark.parametrize("kind", ["memory", "temporary", "wrapped", "spooled", "buffered", "unbuffered"])
async def test_a_file_object_is_a_sink_from_its_position_on(files: FileClient, folder: Path, kind: str) -> None:
    data, shorter = content(5 * CHUNK + 7), content(2 * CHUNK, 1)
    with opened(kind, folder) as file:
        file.write(b"before")
        download = files.download_to("n", file)
        for each in (data, data, shorter):
            await files.upload_from("n", each)
            check_story(await download.pipe(ops.to_list()), len(each), len(each))
            if kind in ("buffered", "unbuffered"):
                assert (folder / "got").read_bytes() == b"before" + each, "it is flushed"
            file.seek(0)
            assert file.read() == b"before" + each
            file.seek(3)  # another position is no obstacle
        file.seek(0, os.SEEK_END)


@pytest.mark.parametrize("kind", ["memory", "unbuffered"])
async def test_a_file_object_goes_on_after_a_loss_and_starts_over_after_a_change(
    server: FileServer, store: WatchedStore, folder: Path, kind: str
) -> None:
    data, changed = content(60 * CHUNK), content(50 * CHUNK, 1)
    async with fault_proxy(server.uri) as proxy, connected(proxy.uri, QUICK) as files:
        await files.upload_from("n", data)
        with opened(kind, folder) as file:
            proxy.down.cut_after = 20 * CHUNK
            download = files.download_to("n", file)
            events = await download.pipe(retry_backoff(base=0.01), ops.to_list())
            started = [event.resumed_from for event in events if isinstance(event, Started)]
            assert len(started) == 2
            assert started[1] > 0
            file.seek(0)
            assert file.read() == data
            await begun(files, files.download_to("n", file))
            file.seek(0)
            again = files.download_to("n", file, window=2)
            await begun(files, again)
            await at_rest(server, store)
            await files.upload_from("n", changed)
            check_story(await again.pipe(ops.to_list()), len(changed), len(changed))
            file.seek(0)
            assert file.read() == changed


async def test_a_file_object_that_has_the_beginning(files: FileClient) -> None:
    data = content(5 * CHUNK)
    await files.upload_from("n", data)
    file = io.BytesIO(data[:CHUNK])
    file.seek(0, os.SEEK_END)
    events = await files.download_to("n", file, offset=CHUNK).pipe(ops.to_list())
    check_story(events, len(data), len(data), resumed_from=CHUNK)
    assert file.getvalue() == data


async def test_a_file_object_that_compresses(files: FileClient, folder: Path) -> None:
    data = content(5 * CHUNK)
    await files.upload_from("n", data)
    with gzip.open(folder / "got", "wb") as file:
        await files.download_to("n", file)  # type: ignore[arg-type]
    assert gzip.decompress((folder / "got").read_bytes()) == data


@pytest.mark.parametrize("buffering", [0, -1])
@pytest.mark.parametrize("is_blocking", [True, False])
async def test_a_pipe_that_is_full_for_a_while(files: FileClient, buffering: int, is_blocking: bool) -> None:
    data = content(5 * CHUNK)
    await files.upload_from("n", data)
    reading, writing = os.pipe()
    os.set_blocking(writing, is_blocking)
    got = bytearray()

    def read() -> None:
        with open(reading, "rb", 0) as pipe:
            while piece := pipe.read(10_000):
                got.extend(piece)

    thread = threading.Timer(0.05, read)
    thread.start()
    with open(writing, "wb", buffering) as pipe:
        await files.download_to("n", pipe)
    thread.join()
    assert got == data


async def test_a_stream_writer(files: FileClient) -> None:
    data = content(5 * CHUNK)
    await files.upload_from("n", data)
    got = bytearray()
    ended = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.read(-1))
        writer.close()
        ended.set()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listener:
        _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        await files.download_to("n", writer)
        writer.close()
        await ended.wait()
        await writer.wait_closed()
    assert got == data


@pytest.mark.parametrize("kind", ["plain", "awaitable"])
async def test_a_plain_write_method(files: FileClient, kind: str) -> None:
    data = content(5 * CHUNK)
    await files.upload_from("n", data)
    got = bytearray()
    threads: set[threading.Thread] = set()

    async def keep(piece: bytes) -> None:
        got.extend(piece)

    class Plain:
        def write(self, piece: bytes) -> Any:
            threads.add(threading.current_thread())
            if kind == "awaitable":
                return keep(piece)
            got.extend(piece)
            return None

    await files.download_to("n", Plain())
    assert got == data
    assert threading.current_thread() not in threads


async def test_a_file_object_that_fails_is_heard(server: FileServer, store: WatchedStore, files: FileClient) -> None:
    class Broken(io.BytesIO):
        def write(self, data: Any, /) -> int:
            if self.tell() > 3 * CHUNK:
                raise OSError(errno.EIO, "broken")
            return super().write(data)

    await files.upload_from("n", content(20 * CHUNK))
    with pytest.raises(OSError, match="broken"):
        await files.download_to("n", Broken())
    await at_rest(server, store)


async def test_a_writer_cannot_take_back_what_it_got(server: FileServer, files: FileClient) -> None:
    class Plain:
        def write(self, piece: bytes) -> None:
            pass

    await files.upload_from("n", content(60 * CHUNK))
    download = files.download_to("n", Plain(), window=1)
    await begun(files, download)
    await files.upload_from("n", content(60 * CHUNK, 1))
    with pytest.raises((Changed, IntegrityError)):
        await download


def test_a_process_ends_though_its_sink_blocks() -> None:
    code = """
import asyncio, os
from rx_client import FileClient
from server import serve

async def main():
    reading, writing = os.pipe()
    async with serve() as server, FileClient.connect(server.uri) as files:
        await files.upload("n", bytes(1_000_000))
        async def wait():
            await files.download_to("n", os.fdopen(writing, "wb", 0, closefd=False))
        try:
            await asyncio.wait_for(wait(), 0.5)
        except TimeoutError:
            print("cancelled")

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stdout) == (0, "cancelled\n"), done.stderr


NOT_SINKS: Final[dict[str, Callable[[Path], Any]]] = {
    "text file": lambda path: path.open("a"),
    "file to read": lambda path: path.open("rb"),
    "text in memory": lambda _: io.StringIO(),
    "encoded text": lambda _: codecs.getwriter("utf-8")(io.BytesIO()),
    "temporary text": lambda _: tempfile.NamedTemporaryFile("w+"),  # noqa: SIM115
    "class": lambda _: io.BytesIO,
    "attribute": lambda _: type("Odd", (), {"write": 5})(),
    "bytearray": lambda _: bytearray(),
    "list": lambda _: [],
    "number": lambda _: 1,
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("kind", NOT_SINKS)
async def test_what_is_no_sink_is_refused_at_the_call(files: FileClient, folder: Path, kind: str) -> None:
    (path := folder / "file").touch()
    sink = NOT_SINKS[kind](path)
    with pytest.raises(TypeError, match="sink"):
        files.download_to("n", sink)
    if isinstance(sink, io.IOBase) or kind.endswith("text"):
        sink.close()


async def test_a_transport_is_no_sink(files: FileClient) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as listener:
        _, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        with pytest.raises(TypeError, match="sink"):
            files.download_to("n", writer.transport)  # type: ignore[arg-type]
        writer.close()
        await writer.wait_closed()


async def test_a_part_is_not_gone_on_with_when_it_was_published_meanwhile(
    server: FileServer, files: FileClient, folder: Path
) -> None:
    """A lock that was waited for may be that of a file that isn't a part any more."""
    data = content(30 * CHUNK)
    await files.upload_from("n", data)
    heard = [Recorder() for _ in range(6)]
    async with connected(server.uri) as other:
        for number, each in enumerate(heard):
            (files if number % 2 else other).download_to("n", folder / "got", window=2).subscribe(each)
        for each in heard:
            await each.ended()
            assert each.error is None
            assert (folder / "got").read_bytes() == data
    assert os.listdir(folder) == ["got"]
