"""Trees: every file goes up and comes down, nothing lands outside of the folder, and each failure is an event."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import reactivex
from reactivex import Observable
from reactivex import operators as ops

from rx_client import Completed, ConnectOptions, Failed, FileClient, Skipped, TotalProgress, TreeEvent, rate_limit
from rx_client.operators import map_async, retry_backoff, total_progress
from rx_client.transfers import folders
from rx_client.transfers.folders import unsafe_reason
from rx_client.transfers.listing import resumed
from server import ChatData, FileServer, serve
from shared.errors import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    IntegrityError,
    ProtocolError,
)
from tests.faults import fault_proxy
from tests.support import eventually

from .helpers import Recorder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links, FIFOs and any names")


@pytest.fixture
def data() -> ChatData:
    return ChatData({})


@pytest.fixture
async def server(data: ChatData) -> AsyncGenerator[FileServer, None]:
    async with serve(data=data) as running:
        yield running


@pytest.fixture
async def files(server: FileServer) -> AsyncGenerator[FileClient, None]:
    options = ConnectOptions(reconnect_timeout=0.2, reconnect_cap=0.1)
    async with FileClient.connect(server.uri, options=options) as client:
        yield client


def make_tree(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        write(folder / name, content)


def write(path: Path, content: bytes = b"content") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


async def events(tree: Observable[TreeEvent]) -> list[TreeEvent]:
    return await tree.pipe(ops.to_list())


def completed(tree: list[TreeEvent]) -> list[str]:
    return sorted(event.name for event in tree if isinstance(event, Completed))


def skipped(tree: list[TreeEvent]) -> dict[str, str]:
    return {event.name: event.reason for event in tree if isinstance(event, Skipped)}


def failed(tree: list[TreeEvent]) -> dict[str, Exception]:
    return {event.name: event.error for event in tree if isinstance(event, Failed)}


TREE = {
    "a.txt": b"a",
    ".hidden": b"hidden",
    "empty": b"",
    "b/c/d.bin": bytes(range(256)) * 2000,
    "b/c/.e": b"e",
    "b/ä ö.txt": "ü".encode(),
    "b/what?*.txt": b"legal here",
}


@pytest.mark.parametrize("prefix", ["", "x", "x/", "x/y z"])
async def test_a_tree_goes_up_and_comes_down(files: FileClient, data: ChatData, tmp_path: Path, prefix: str) -> None:
    for name, content in TREE.items():
        write(tmp_path / "here" / name, content)
    data.files["xx"] = b"another file"
    up = await events(files.upload_tree(tmp_path / "here", prefix))
    below = prefix and prefix.rstrip("/") + "/"
    assert completed(up) == sorted(below + name for name in TREE)
    assert {event.name for event in up} == {below + name for name in TREE}
    down = await events(files.download_tree(prefix, tmp_path / "new" / "there"))
    assert not failed(down)
    assert not skipped(down)
    got = read_tree(tmp_path / "new" / "there")
    assert got == TREE | ({} if prefix else {"xx": b"another file"})


async def test_an_empty_tree(files: FileClient, tmp_path: Path) -> None:
    (tmp_path / "here" / "empty").mkdir(parents=True)
    assert await events(files.upload_tree(tmp_path / "here")) == []
    assert await events(files.download_tree("", tmp_path / "there")) == []
    assert (tmp_path / "there").is_dir()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"include": "*.txt"}, ["a.txt", "b/c.txt", "b/skip.txt"]),
        ({"include": ["a*", "*.bin"]}, ["a.bin", "a.txt", "b/d.bin"]),
        ({"include": lambda name: name.startswith("b/")}, ["b/c.txt", "b/d.bin", "b/skip.txt"]),
        ({"exclude": "b/*"}, ["a.bin", "a.txt"]),
        ({"include": "*.txt", "exclude": ("*skip*", "a*")}, ["b/c.txt"]),
        ({"include": []}, []),
    ],
)
async def test_filters(
    files: FileClient, data: ChatData, tmp_path: Path, filters: dict[str, Any], expected: list[str]
) -> None:
    for name in ("a.txt", "a.bin", "b/c.txt", "b/d.bin", "b/skip.txt"):
        write(tmp_path / "here" / name)
        data.files[f"p/{name}"] = b"there"
    assert completed(await events(files.upload_tree(tmp_path / "here", "q", **filters))) == [
        f"q/{name}" for name in expected
    ]
    assert completed(await events(files.download_tree("p", tmp_path / "there", **filters))) == [
        f"p/{name}" for name in expected
    ]


# Up


async def test_what_is_no_file_or_has_no_name_is_skipped(files: FileClient, data: ChatData, tmp_path: Path) -> None:
    here, outside = tmp_path / "here", write(tmp_path / "outside" / "secret")
    write(here / "a")
    (here / "link").symlink_to(outside)
    (here / "folder-link").symlink_to(outside.parent)
    (here / "broken").symlink_to("nowhere")
    os.mkfifo(here / "fifo")
    write(here / ".a.0123456789abcdef.rxpart")
    write(here / "line\nbreak")
    os.close(os.open(os.fsencode(here) + b"/\xff", os.O_CREAT))
    os.mkdir(os.fsencode(here) + b"/\xfe")
    os.close(os.open(os.fsencode(here) + b"/\xfe/below", os.O_CREAT))
    before = os.getcwd()
    os.chdir(here)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(before)
    tree = await events(files.upload_tree(here, "p"))
    assert completed(tree) == ["p/a"]
    assert not failed(tree)
    assert list(data.files) == ["p/a"]
    reasons = skipped(tree)
    assert {name: reason for name, reason in reasons.items() if "UTF-8" not in reason} == {
        "p/link": "it is a symbolic link",
        "p/folder-link": "it is a symbolic link",
        "p/broken": "it is a symbolic link",
        "p/fifo": "it is neither a file nor a folder",
        "p/socket": "it is neither a file nor a folder",
        "p/.a.0123456789abcdef.rxpart": "it is what an unfinished download has left",
        "p/line\nbreak": "a file name must not contain control characters; this one has U+000A",
    }
    assert {name for name, reason in reasons.items() if "UTF-8" in reason} == {r"p/\udcff", r"p/\udcfe"}


async def test_symbolic_links_are_followed_if_asked_but_not_in_circles(files: FileClient, tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    write(here / "sub" / "a")
    write(other / "b")
    (here / "link").symlink_to(other)
    (here / "sub" / "file").symlink_to(other / "b")
    (here / "sub" / "up").symlink_to(here)
    (here / "broken").symlink_to("nowhere")
    tree = await events(files.upload_tree(here, follow_symlinks=True))
    assert completed(tree) == ["link/b", "sub/a", "sub/file"]
    assert skipped(tree) == {
        "sub/up": "it is a symbolic link to a folder that it is in",
        "broken": "it is neither a file nor a folder",
    }


async def test_a_folder_that_cannot_be_read_is_one_failure(
    files: FileClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b/c", "d/e"):
        write(tmp_path / name)
    scandir = os.scandir

    def scandir_but_b(path: str) -> Any:
        if os.path.basename(path) == "b":
            raise PermissionError(13, "no", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_but_b)
    tree = await events(files.upload_tree(tmp_path))
    assert completed(tree) == ["a", "d/e"]
    assert {name: type(error) for name, error in failed(tree).items()} == {"b/": PermissionError}
    with pytest.raises(PermissionError):
        await files.upload_tree(tmp_path, keep_going=False)


async def test_a_root_that_is_no_folder_fails(files: FileClient, data: ChatData, tmp_path: Path) -> None:
    write(tmp_path / "file")
    data.files["a"] = b"a"
    with pytest.raises(FileNotFoundError):
        await files.upload_tree(tmp_path / "missing")
    with pytest.raises(NotADirectoryError):
        await files.upload_tree(tmp_path / "file")
    with pytest.raises(FileExistsError):
        await files.download_tree("", tmp_path / "file")


async def test_the_failure_of_one_file_is_an_event_and_the_others_go_on(
    files: FileClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        write(tmp_path / f"{number}")
    upload_from = files.upload_from

    def upload(name: str, path: Path, **options: Any) -> Any:
        if name == "7":
            path.unlink()
        return upload_from(name, path, **options)

    monkeypatch.setattr(files, "upload_from", upload)
    tree = await events(files.upload_tree(tmp_path))
    assert len(completed(tree)) == 19
    assert {name: type(error) for name, error in failed(tree).items()} == {"7": FileNotFoundError}
    write(tmp_path / "7")
    with pytest.raises(FileNotFoundError):
        await files.upload_tree(tmp_path, keep_going=False)


async def test_a_folder_is_read_as_transfers_begin(
    files: FileClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2000):
        write(tmp_path / f"{number % 10}" / f"{number}")
    seen: list[str] = []
    look_at = folders._look_at  # pyright: ignore[reportPrivateUsage]

    def count(entry: os.DirEntry[str], *rest: Any) -> Any:
        seen.append(entry.path)
        return look_at(entry, *rest)

    monkeypatch.setattr(folders, "_look_at", count)
    limit = rate_limit(1)
    heard = Recorder()
    subscription = files.upload_tree(tmp_path, limit=limit).subscribe(heard)
    await eventually(lambda: seen)
    await asyncio.sleep(0.3)
    assert len(seen) <= 600
    limit.bytes_per_second = None
    await eventually(lambda: len(seen) > 1000, 20)
    subscription.dispose()


# Down


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../x",
            "a/../../x",
            "..",
            "/etc/x",
            "a//b",
            "a/",
            "./a",
            "a/./b",
            "/",
            "..\\x",
            "a\\b",
            "C:\\x",
            "C:/x",
            "C:x",
        ),
        *("a:stream", "CON", "con.txt", "a/NUL", "nul.tar.gz", "Aux .txt", "COM1", "lpt9.x", "COM¹", "CONIN$", "prn"),
        *("a.", "a ", "a./b", ".. /x", "... ", " ", ".a.0123456789abcdef.rxpart", ".x.RXPART", "\\\\server\\share"),
    ],
)
async def test_unsafe_names_are_skipped(files: FileClient, data: ChatData, tmp_path: Path, name: str) -> None:
    data.files.update({f"p/{name}": b"unsafe", "p/safe": b"safe"})
    tree = await events(files.download_tree("p", tmp_path / "there"))
    assert completed(tree) == ["p/safe"]
    assert list(skipped(tree)) == [f"p/{name}"]
    assert not failed(tree)
    assert read_tree(tmp_path) == {"there/safe": b"safe"}
    data.files.clear()
    data.files[name] = b"unsafe"
    assert list(skipped(await events(files.download_tree("", tmp_path / "there")))) == [name]
    assert read_tree(tmp_path) == {"there/safe": b"safe"}


@pytest.mark.parametrize(
    "name", ["...a", "a..b", ".a", "~", "~root/x", "-rf", "a b", "CONSOLE", "com0", "a/con1", "%2e%2e/x", "$HOME"]
)
def test_names_that_only_look_unsafe(name: str) -> None:
    assert unsafe_reason(name) is None


async def test_links_that_lead_out_of_the_folder_are_not_followed(
    files: FileClient, data: ChatData, tmp_path: Path
) -> None:
    there, outside = tmp_path / "there", tmp_path / "outside"
    for each in (there / "real", outside):
        each.mkdir(parents=True)
    write(outside / "file", b"old")
    (there / "out").symlink_to(outside)
    (there / "up").symlink_to("..")
    (there / "self").symlink_to(".")
    (there / "missing").symlink_to(outside / "new")
    (there / "file").symlink_to(outside / "file")
    (there / "in").symlink_to("real")
    (there / "chain").symlink_to("in")
    names = [
        "out/a",
        "out/b/c",
        "up/outside/a",
        "missing",
        "missing/x",
        "file",
        "in/a",
        "chain/b",
        "self/self/z",
    ]
    data.files.update(dict.fromkeys(names, b"new"))
    tree = await events(files.download_tree("", there))
    assert read_tree(outside) == {"file": b"old"}
    inside = {"chain/b", "in/a", "self/self/z"}
    assert set(completed(tree)) == inside
    assert read_tree(there / "real") == {"a": b"new", "b": b"new"}
    assert (there / "z").read_bytes() == b"new"
    assert set(skipped(tree)) == set(names) - inside
    assert sorted(path.name for path in outside.iterdir()) == ["file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "there"]


async def test_the_folder_itself_may_be_a_link(files: FileClient, data: ChatData, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    data.files["a/b"] = b"content"
    assert completed(await events(files.download_tree("", tmp_path / "link"))) == ["a/b"]
    assert read_tree(tmp_path / "real") == {"a/b": b"content"}


async def test_a_file_where_a_folder_has_to_be_and_the_other_way_round(
    files: FileClient, data: ChatData, tmp_path: Path
) -> None:
    write(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    data.files.update({"file/a": b"a", "folder": b"b", "fifo": b"c", "good": b"d"})
    tree = await events(files.download_tree("", tmp_path))
    assert completed(tree) == ["good"]
    assert skipped(tree) == {
        "file/a": "'file' is a file here, not a folder",
        "folder": "it is a folder here",
        "fifo": "it isn't a regular file here",
    }


async def test_a_file_that_is_a_folder_too_at_the_server(files: FileClient, data: ChatData, tmp_path: Path) -> None:
    data.files.update({"a": b"file", "a/b": b"below"})
    tree = await events(files.download_tree("", tmp_path, max_concurrent=1))
    assert completed(tree) == ["a"]
    assert skipped(tree) == {"a/b": "'a' is a file here, not a folder"}
    assert read_tree(tmp_path) == {"a": b"file"}


async def test_names_that_are_the_same_where_case_does_not_count(
    files: FileClient, data: ChatData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.files.update({"A/Straße": b"1", "a/STRASSE": b"2", "a/other": b"3"})
    assert len(completed(await events(files.download_tree("", tmp_path / "sensitive")))) == 3
    monkeypatch.setattr(folders, "is_case_insensitive", lambda _: True)
    tree = await events(files.download_tree("", tmp_path / "insensitive", max_concurrent=1))
    assert len(completed(tree)) == 2
    assert list(skipped(tree).values()) == [
        "another file's name differs in upper and lower case only, which are the same here"
    ]


async def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    assert not folders.is_case_insensitive(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


async def test_a_listing_is_read_as_transfers_begin(files: FileClient, data: ChatData, tmp_path: Path) -> None:
    data.files.update({f"{number}": b"content" for number in range(3000)})
    listed: list[str] = []

    def note(name: str) -> bool:
        listed.append(name)
        return True

    limit = rate_limit(1)
    heard = Recorder()
    subscription = files.download_tree("", tmp_path, include=note, limit=limit).subscribe(heard)
    await eventually(lambda: listed)
    await asyncio.sleep(0.3)
    assert len(listed) <= 300
    limit.bytes_per_second = None
    await eventually(lambda: len(listed) > 600, 20)
    subscription.dispose()


async def test_a_failed_download_is_an_event_and_the_others_go_on(
    files: FileClient, data: ChatData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data.files.update({f"{number}": b"content" for number in range(20)})
    download_to = files.download_to

    def download(name: str, path: Path, **options: Any) -> Any:
        if name == "7":
            data.files.pop(name, None)
        return download_to(name, path, **options)

    monkeypatch.setattr(files, "download_to", download)
    tree = await events(files.download_tree("", tmp_path))
    assert len(completed(tree)) == 19
    assert list(failed(tree)) == ["7"]


async def test_a_listing_goes_on_after_the_loss_of_its_connection(
    server: FileServer, data: ChatData, tmp_path: Path
) -> None:
    names = [f"{number:04}" for number in range(1000)]
    data.files.update(dict.fromkeys(names, b"content"))
    listed: list[str] = []
    async with fault_proxy(server.uri) as proxy, FileClient.connect(proxy.uri) as files:

        def cut(name: str) -> bool:
            listed.append(name)
            if name in ("0300", "0700"):
                proxy.cut()
            return True

        each = retry_backoff(10, base=0.01)
        tree = await events(files.download_tree("", tmp_path, include=cut, each=each))
    assert listed == names
    assert completed(tree) == names
    assert not failed(tree)


def in_turn(*attempts: Observable[str]) -> Observable[str]:
    coming = iter(attempts)
    return reactivex.defer(lambda _: next(coming))


LOST = ConnectionLost("lost")


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([("a", "b", LOST), ("a", "b", "c")], ["a", "b", "c"]),
        ([("a", LOST), ("a", "b", LOST), ("b", "c")], ["a", "b", "c"]),
        ([("a", LOST), ("b", "c")], ["a", "b", "c"]),
        ([("a", LOST), (LOST,)], ConnectionLost),
        ([("a", LOST), ("a", LOST)], ConnectionLost),
        ([(LOST,)], ConnectionLost),
        ([("b", "a", LOST)], ConnectionLost),
        ([("b", "a", "c")], ["b", "a", "c"]),
        ([("a", "b", LOST), ("b", "a", "c")], ProtocolError),
        ([("a", IntegrityError("no"))], IntegrityError),
    ],
)
async def test_what_a_listing_does_after_a_failure(
    attempts: list[tuple[str | Exception, ...]], expected: list[str] | type[Exception]
) -> None:
    sources = [
        reactivex.concat(
            *(reactivex.throw(each) if isinstance(each, Exception) else reactivex.just(each) for each in one)
        )
        for one in attempts
    ]
    listing = resumed(in_turn(*sources)).pipe(ops.to_list())
    if isinstance(expected, list):
        assert await listing == expected
    else:
        with pytest.raises(expected):
            await listing


# Both


async def test_without_overwriting_a_second_run_goes_on(files: FileClient, data: ChatData, tmp_path: Path) -> None:
    make_tree(tmp_path / "here", a=b"new a", b=b"new b")
    data.files["a"] = b"old a"
    up = await events(files.upload_tree(tmp_path / "here", overwrite=False))
    assert (completed(up), skipped(up)) == (["b"], {"a": "it exists already"})
    assert data.files["a"] == b"old a"
    make_tree(tmp_path / "there", a=b"older a")
    down = await events(files.download_tree("", tmp_path / "there", overwrite=False))
    assert (completed(down), skipped(down)) == (["b"], {"a": "it exists already"})
    assert read_tree(tmp_path / "there") == {"a": b"older a", "b": b"new b"}


@pytest.mark.parametrize("way", ["up", "down"])
async def test_no_more_transfers_at_a_time_than_allowed(
    files: FileClient, data: ChatData, tmp_path: Path, way: str
) -> None:
    for number in range(30):
        write(tmp_path / "here" / f"{number}")
        data.files[f"{number}"] = b"content"
    active = most = 0

    def each(transfer: Observable[Any]) -> Observable[Any]:
        def begin(_: object) -> Observable[Any]:
            nonlocal active, most
            active += 1
            most = max(most, active)
            return transfer

        def end() -> None:
            nonlocal active
            active -= 1

        return transfer.pipe(ops.do_action(lambda _: None), _around(begin, end))

    def _around(begin: Callable[[object], Observable[Any]], end: Callable[[], None]) -> Any:
        return lambda _: reactivex.defer(begin).pipe(ops.finally_action(end))

    tree = (
        files.upload_tree(tmp_path / "here", max_concurrent=3, each=each)
        if way == "up"
        else files.download_tree("", tmp_path / "there", max_concurrent=3, each=each)
    )
    assert len(completed(await events(tree))) == 30
    assert most == 3
    assert active == 0


async def test_each_transfer_is_retried_by_itself(files: FileClient, data: ChatData, tmp_path: Path) -> None:
    """Every file fails once with what its observer raises, and resumes."""
    data.files.update({f"{number}": b"content" for number in range(10)})
    has_failed: set[str] = set()

    def fail_once(event: Any) -> None:
        if event.name not in has_failed:
            has_failed.add(event.name)
            raise IntegrityError("once")

    def each(transfer: Observable[Any]) -> Observable[Any]:
        return transfer.pipe(ops.do_action(fail_once), retry_backoff(2, base=0.001, when=lambda _: True))

    tree = await events(files.download_tree("", tmp_path, each=each))
    assert len(completed(tree)) == len(has_failed) == 10
    assert not failed(tree)


async def test_the_progress_of_a_tree(files: FileClient, tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"{number}", bytes(1000 * number))
    os.mkfifo(tmp_path / "fifo")
    totals = await files.upload_tree(tmp_path).pipe(
        total_progress(), ops.filter(lambda event: isinstance(event, TotalProgress)), ops.to_list()
    )
    assert max(total.active for total in totals) <= 4
    last = totals[-1]
    assert (last.transferred, last.total, last.moved) == (45_000, 45_000, 45_000)
    assert (last.active, last.completed, last.failed, last.skipped) == (0, 10, 0, 1)


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_dispose_ends_all_of_it(
    server: FileServer, files: FileClient, data: ChatData, tmp_path: Path, way: str
) -> None:
    for number in range(50):
        write(tmp_path / "here" / f"{number}")
        data.files[f"{number}"] = b"content"
    tree = files.upload_tree(tmp_path / "here", "x") if way == "up" else files.download_tree("", tmp_path / "there")
    assert len(await tree.pipe(ops.take(10), ops.to_list())) == 10
    await files.settle()
    with pytest.raises(DeadlineExceeded):
        await (
            files.upload_tree(tmp_path / "here", "y", limit=rate_limit(1), deadline=0.1)
            if way == "up"
            else files.download_tree("", tmp_path / "other", limit=rate_limit(1), deadline=0.1)
        )


async def test_without_a_server_the_tree_fails_instead_of_each_file(
    server: FileServer, files: FileClient, tmp_path: Path
) -> None:
    for number in range(50):
        write(tmp_path / f"{number}")
    await server.close()
    tree = Recorder()
    files.upload_tree(tmp_path).subscribe(tree)
    await tree.ended()
    assert isinstance(tree.error, ConnectionFailed)
    assert not isinstance(tree.error, ConnectionLost)


async def test_a_closed_client_ends_the_tree(server: FileServer, tmp_path: Path) -> None:
    for number in range(50):
        write(tmp_path / f"{number}")
    heard = Recorder()
    async with FileClient.connect(server.uri) as files:
        files.upload_tree(tmp_path, limit=rate_limit(1)).subscribe(heard)
        await asyncio.sleep(0.1)
    await heard.ended()
    assert isinstance(heard.error, ClientClosed)


async def test_arguments(files: FileClient, tmp_path: Path) -> None:
    for call in (
        lambda: files.upload_tree(tmp_path, max_concurrent=0),
        lambda: files.download_tree("", tmp_path, max_concurrent=0),
        lambda: files.upload_tree(tmp_path, digest="crc"),
        lambda: files.download_tree("", tmp_path, digest="crc"),
    ):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(TypeError):
        files.upload_tree(tmp_path, 7)  # type: ignore[arg-type]  # pyright: ignore


async def test_a_tree_in_a_thread_without_a_loop_and_in_another_loop(
    files: FileClient, data: ChatData, tmp_path: Path
) -> None:
    make_tree(tmp_path / "here", a=b"a", b=b"b")
    up = files.upload_tree(tmp_path / "here", "p").pipe(ops.to_list())
    assert completed(await asyncio.to_thread(up.run)) == ["p/a", "p/b"]

    async def elsewhere() -> list[TreeEvent]:
        return await events(files.download_tree("p", tmp_path / "there", limit=rate_limit(1_000_000)))

    assert completed(await asyncio.to_thread(lambda: asyncio.run(elsewhere()))) == ["p/a", "p/b"]
    assert read_tree(tmp_path / "there") == {"a": b"a", "b": b"b"}
    data.files.update({f"q/{number}": b"content" for number in range(2000)})

    async def count() -> int:
        return await files.list_files(prefix="q/").pipe(
            map_async(lambda _: asyncio.sleep(0), max_pending=0), ops.count()
        )

    assert await asyncio.to_thread(lambda: asyncio.run(count())) == 2000
