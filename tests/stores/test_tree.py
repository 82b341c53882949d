"""The directory store as a tree: what is there is served as it is, and nothing leads out of it."""

import asyncio
import ctypes
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from server.stores.base import Store
from server.stores.directory import listing, records
from server.stores.directory.names import encode, fingerprint
from server.stores.directory.store import DirectoryStore
from server.stores.directory.tree import OpenFolder
from shared.errors import NotFound, StorageUnavailable
from shared.protocol.wire import check_name

from .support import NAMES, begin, digest_of, get, listed, names_in, put


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "files"


async def _opened(path: Path, *, follow_links: bool = False) -> DirectoryStore:
    store = DirectoryStore(path, follow_links=follow_links)
    await store.start()
    return store


async def _is_served(store: Store, name: str) -> bool:
    """Whether there is such a file, for all methods alike."""
    found = name in await names_in(store)
    try:
        assert (await store.stat(name)).name == name
        await get(store, name)
    except NotFound:
        assert not found
        return False
    assert found
    return True


def _files(root: Path) -> dict[str, bytes]:
    """The files of a tree but for the store's own, by their paths."""
    paths = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {
        name: path.read_bytes() for path in paths if not (name := str(path.relative_to(root))).startswith(".rxfiles/")
    }


def _folders(root: Path) -> set[str]:
    return {
        name
        for path in root.rglob("*")
        if path.is_dir() and not (name := str(path.relative_to(root))).startswith(".rxfiles")
    }


# What lies where


async def test_a_name_with_slashes_is_a_path(directory: DirectoryStore, root: Path) -> None:
    names = [
        "a",
        "docs/b.txt",
        "docs/c/d.txt",
        "docs/c/ä ö",
        ".hidden/.x",
        "docs/.rxfiles",
        "CON",
        "a:b/c?",
        "x" * 255 + "/y",
    ]
    for name in names:
        await put(directory, name, name.encode())

    assert _files(root) == {name: name.encode() for name in names}
    assert not os.listdir(root / ".rxfiles" / "names")
    for name in names:
        await put(directory, name, b"new")
    assert _files(root) == dict.fromkeys(names, b"new")


async def test_a_tree_that_is_there_is_served_as_it_is(root: Path) -> None:
    choose = random.Random(1)
    parts = [
        "src",
        "lib",
        ".git",
        "node_modules",
        "a b",
        "ü",
        "README.md",
        "x.y",
        "-",
        "0",
        "Z",
        "aux.c",
        "tab~1",
        "e\u0301",
    ]
    expected: dict[str, bytes] = {}
    while len(expected) < 2000:
        path = root.joinpath(
            *choose.choices(parts, k=choose.randrange(5)), f"{choose.choice(parts)}{choose.randrange(40)}"
        )
        if not path.exists() and not any(parent.is_file() for parent in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(str(path).encode())
            expected[str(path.relative_to(root))] = str(path).encode()

    store = await _opened(root)
    assert [info.name for info in await listed(store)] == sorted(expected)
    assert [info.name for info in await listed(store, limit=30)] == sorted(expected)
    for prefix in ("src", "src/", "src/lib/", ".git/x", "a b/0", "README.md/", "nothing"):
        assert [info.name for info in await listed(store, prefix)] == sorted(
            n for n in expected if n.startswith(prefix)
        )
    for name, content in expected.items():
        assert await get(store, name) == content
    assert _files(root) == expected
    await store.close()


async def test_only_the_folders_that_can_match_are_read(
    root: Path, directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/x", "b/c/x", "b/c/y", "b/d/x", "bc/x", "c/x"):
        await directory.put(name, b"")
    read: list[str] = []
    entries = OpenFolder.entries

    def noted(self: OpenFolder) -> object:
        read.append(os.readlink(f"/proc/self/fd/{self.fd}") if self.fd is not None else self._path)
        return entries(self)

    monkeypatch.setattr(OpenFolder, "entries", noted)
    assert await names_in(directory, "b/c") == {"b/c/x", "b/c/y"}
    assert {os.path.relpath(path, root) for path in read} == {".", "b", "b/c", ".rxfiles/names"}


async def test_names_that_cannot_be_paths_stay_possible(directory: DirectoryStore, root: Path) -> None:
    await put(directory, "a", b"a")
    await put(directory, "dir/x", b"x")
    os.mkfifo(root / "fifo")
    encoded = [
        "a/b",
        "a/b/c",
        "dir",
        "fifo",
        "fifo/x",
        "../x",
        "/x",
        "x/",
        "x//y",
        ".",
        "./x",
        "x/../y",
        ".rxfiles",
        ".rxfiles/lock",
    ]
    encoded += ["long/" + "x" * 256]
    for name in encoded:
        await put(directory, name, name.encode())

    assert _files(root) == {"a": b"a", "dir/x": b"x"}
    assert set(os.listdir(root / ".rxfiles" / "names")) == set(map(encode, encoded))
    assert await names_in(directory) == {"a", "dir/x", *encoded}
    await directory.delete("a")
    await directory.delete("dir/x")
    for name in encoded:
        assert await get(directory, name) == name.encode()
        await put(directory, name, b"again")
    assert not _files(root)
    assert await names_in(directory) == set(encoded)


async def test_a_file_system_that_refuses_a_name(
    directory: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, mkdir = os.replace, os.mkdir

    def refuse(path: str, *args: object, **kwargs: object) -> None:
        if ":" in str(args[0] if args else path):
            raise OSError(22, "Invalid argument")
        (replace if args else mkdir)(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    for name in ("a:b", "x/a:b", "y/a:b/c", "x/ok"):
        await put(directory, name, name.encode())
        assert await get(directory, name) == name.encode()
    assert _files(root) == {"x/ok": b"x/ok"}
    assert _folders(root) == {"x"}, "no folder is left for a file that isn't in it"


async def test_a_place_on_another_file_system(
    directory: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "mount").mkdir()
    (root / "mount" / "old").write_bytes(b"old")
    replace = os.replace

    def refuse(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        if dst_dir_fd is not None and os.path.samestat(os.fstat(dst_dir_fd), os.stat(root / "mount")):
            raise OSError(18, "Invalid cross-device link")
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "replace", refuse)
    for name in ("mount/old", "mount/new"):
        await put(directory, name, b"new")
        assert await get(directory, name) == b"new"
    assert await names_in(directory) == {"mount/old", "mount/new"}
    assert not _files(root)
    for name in ("mount/old", "mount/new"):
        await directory.delete(name)
    assert await names_in(directory) == set()


async def test_a_commit_makes_its_folders_survive_up_to_the_root(
    directory: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, link = os.fsync, os.link

    def synced(fd: int) -> None:
        path = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root)
        if not path.startswith(".rxfiles"):
            done.append(f"fsync {path}")
        fsync(fd)

    def linked(source: str, target: str, *, src_dir_fd: int | None, dst_dir_fd: int) -> None:
        done.append(f"link {target}")
        link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    (root / "a").mkdir()  # by another process, which was killed before it could sync
    upload = await begin(directory, "a/b/c/file", overwrite=False)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    await upload.commit(None)
    assert done == ["link file", *("fsync " + path for path in ("a/b/c", ".", "a", "a/b"))]


# Folders that become empty


async def test_a_folder_that_the_store_made_goes_with_its_last_file(directory: DirectoryStore, root: Path) -> None:
    (root / "made by hand").mkdir()
    for name in ("a/b/c/1", "a/b/2", "made by hand/sub/3"):
        await put(directory, name, b"")
    await directory.delete("a/b/c/1")
    assert _folders(root) == {"a", "a/b", "made by hand", "made by hand/sub"}
    await directory.delete("a/b/2")
    await directory.delete("made by hand/sub/3")
    assert _folders(root) == {"made by hand"}
    assert not os.listdir(root / ".rxfiles" / "folders")


async def test_a_folder_that_was_made_again_by_hand_stays(directory: DirectoryStore, root: Path) -> None:
    await put(directory, "a/1", b"")
    (root / "a").rename(root / "b")
    (root / "a").mkdir()
    (root / "a" / "1").write_bytes(b"by hand")
    await directory.delete("a/1")
    assert _folders(root) == {"a", "b"}


async def test_deletes_that_empty_a_folder_lose_no_upload(directory: DirectoryStore, root: Path) -> None:
    async def work(number: int) -> None:
        for step in range(40):
            name = f"a/b/{number % 2}/{number}"
            await put(directory, name, b"%d" % step, upload_id=f"u{number}", overwrite=bool(step % 2))
            assert await get(directory, name) == b"%d" % step
            await directory.delete(name)

    await asyncio.gather(*map(work, range(8)))
    assert not _files(root)
    assert not _folders(root)
    assert not os.listdir(root / ".rxfiles" / "folders")


async def test_a_folder_that_is_removed_while_a_file_is_published_is_made_again(
    directory: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    removed: list[str] = []

    def late(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        if dst_dir_fd is not None and not removed:
            removed.append(os.readlink(f"/proc/self/fd/{dst_dir_fd}"))
            os.rmdir(removed[0])
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "replace", late)
    await put(directory, "a/b/file", b"content")
    assert removed == [str(root / "a" / "b")]
    assert _files(root) == {"a/b/file": b"content"}


async def test_a_folder_that_takes_the_place_of_a_file_meanwhile(
    directory: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def late(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        if target == str(root / "a"):
            (root / "a").mkdir(exist_ok=True)
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "replace", late)
    await put(directory, "a", b"content")
    assert await get(directory, "a") == b"content"
    assert os.listdir(root / ".rxfiles" / "names") == ["=a"]


async def test_a_failed_commit_leaves_no_folder(
    directory: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        raise OSError(5, "Input/output error")

    upload = await begin(directory, "a/b/c", overwrite=False)
    monkeypatch.setattr(os, "link", broken)
    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(StorageUnavailable):
        await upload.commit(None)
    assert not _folders(root)


async def test_empty_folders_of_a_killed_process_go_at_the_next_start(directory: DirectoryStore, root: Path) -> None:
    await put(directory, "a/b/c", b"")
    (root / "d").mkdir()
    (root / "a" / "b" / "c").unlink()
    await directory.close()
    store = await _opened(root)
    assert _folders(root) == {"d"}
    assert not os.listdir(root / ".rxfiles" / "folders")
    await store.close()


async def test_a_file_moves_between_folders(directory: DirectoryStore, root: Path) -> None:
    info = await put(directory, "a/b/file", b"content")
    for source, target in (
        ("a/b/file", "c/file"),
        ("c/file", "c"),
        ("c", "../x"),
        ("../x", "a/b/file"),
        ("a/b/file", "a"),
    ):
        moved = await directory.move(source, target)
        assert (moved.name, moved.digest) == (target, info.digest)
        assert [each.name for each in await listed(directory)] == [target]
        assert await get(directory, target) == b"content"
    assert not _folders(root)
    assert not _files(root), "while it was moved there was a folder at its path"


# Links, and what else isn't a file


@pytest.fixture
def linked(root: Path, tmp_path: Path) -> Iterator[Path]:
    """A tree with links in all shapes, and other things that aren't files."""
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"inside")
    (root / "dir" / "sub" / "deep").write_bytes(b"deep")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    links = {
        "to file": "dir/file",
        "to folder": "dir",
        "absolute": str(root / "dir" / "file"),
        "dir/up": "../dir/sub",
        "dir/sub/up up": "../../to file",
        "twice": "to folder/sub/../file",
        "out": "../outside/secret",
        "out absolute": str(tmp_path / "outside" / "secret"),
        "out folder": "../outside",
        "out and in": "../files/dir/file",
        "out by name": f"{root}/../outside/secret",
        "out by link": "out folder/secret",
        "beside": f"{root}-beside/secret",
        "nowhere": "missing",
        "itself": "itself",
        "dir/parent": "..",
        "dir/sub/self": ".",
        "root": "/",
        "own": ".rxfiles",
        "own lock": ".rxfiles/lock",
        "ping": "pong",
        "pong": "ping",
    }
    (tmp_path / "files-beside").mkdir()
    (tmp_path / "files-beside" / "secret").write_bytes(b"secret")
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "dir" / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(root)  # a socket's path may only have 108 bytes
        unix.bind("socket")
        os.chdir(here)
        yield root


_UNSERVED = {
    *("out", "out absolute", "out folder/secret", "out by name", "out by link", "out and in", "beside", "nowhere"),
    *("itself", "dir/parent/dir/file", "dir/sub/self/deep", "root/etc/passwd", "own lock", "own/lock", "ping", "pong"),
    *("dir/fifo", "socket", "to folder", "dir", "../outside/secret"),
}
_BY_LINKS = {
    *("to file", "absolute", "to folder/file", "to folder/sub/deep", "to folder/up/deep", "dir/up/deep"),
    *("dir/sub/up up", "to folder/sub/up up", "dir/up/up up", "to folder/up/up up", "twice"),
}


async def test_links_are_as_nothing(linked: Path) -> None:
    store = await _opened(linked)
    assert await names_in(store) == {"dir/file", "dir/sub/deep"}
    for name in _UNSERVED | _BY_LINKS:
        assert not await _is_served(store, name)
        with pytest.raises(NotFound):
            await store.delete(name)
    # Their names can be used all the same, and what is there stays.
    before = {path: os.lstat(path) for path in linked.rglob("*") if ".rxfiles" not in str(path)}
    for name in _UNSERVED | _BY_LINKS:
        await put(store, name, name.encode())
        assert await get(store, name) == name.encode()
        await put(store, name, b"again")
    assert await names_in(store) == {"dir/file", "dir/sub/deep"} | _UNSERVED | _BY_LINKS
    for name in _UNSERVED | _BY_LINKS:
        await store.delete(name)
    assert {path: os.lstat(path).st_ino for path in before} == {path: status.st_ino for path, status in before.items()}
    assert _files(linked) == {"dir/file": b"inside", "dir/sub/deep": b"deep"}
    assert _files(linked.parent / "outside") == {"secret": b"secret"}
    await store.close()


async def test_links_that_lead_to_a_place_inside_can_be_followed(linked: Path) -> None:
    store = await _opened(linked, follow_links=True)
    assert await names_in(store) == {"dir/file", "dir/sub/deep"} | _BY_LINKS
    for limit in (1, 3):
        assert [info.name for info in await listed(store, limit=limit)] == sorted(
            {"dir/file", "dir/sub/deep"} | _BY_LINKS
        )
    for name in _BY_LINKS:
        assert await get(store, name) == (b"deep" if name.endswith("deep") else b"inside")
    for name in _UNSERVED:
        assert not await _is_served(store, name)
        await put(store, name, name.encode())
        assert await get(store, name) == name.encode()
        await store.delete(name)

    await put(store, "to file", b"new")
    assert (linked / "to file").is_symlink(), "what it leads to is replaced"
    assert await get(store, "dir/file") == await get(store, "twice") == b"new"
    await put(store, "to folder/added", b"added")
    assert await get(store, "dir/added") == b"added"
    await store.delete("to file")
    assert not (linked / "to file").is_symlink(), "the link is deleted"
    assert await get(store, "dir/file") == b"new"
    assert _files(linked.parent / "outside") == {"secret": b"secret"}
    await store.close()


@pytest.mark.parametrize("follow_links", [False, True])
async def test_a_link_that_comes_between_two_steps_leads_nowhere_else(
    root: Path, tmp_path: Path, follow_links: bool
) -> None:
    """A folder and a link out of the root change places all the time."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_bytes(b"inside")
    (root / "link").symlink_to("../outside")
    store = await _opened(root, follow_links=follow_links)
    stop = threading.Event()
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    if exchange is None:
        pytest.skip("this system can't exchange two entries in one step")

    def swap() -> None:
        while not stop.is_set():
            assert exchange(-100, os.fsencode(root / "a"), -100, os.fsencode(root / "link"), 2) == 0

    swapping = asyncio.create_task(asyncio.to_thread(swap))
    found = 0
    try:
        for step in range(60):
            try:
                assert await get(store, "a/file") == b"inside"
                found += 1
            except NotFound:
                pass
            await names_in(store)
            await put(store, f"a/{step}", b"mine")
            with suppress(NotFound):
                await store.delete(f"a/{step}")
    finally:
        stop.set()
        await swapping
    assert _files(tmp_path / "outside") == {"file": b"secret"}
    await store.close()


async def test_what_is_not_served_is_counted_in_one_line(linked: Path, caplog: pytest.LogCaptureFixture) -> None:
    (linked / os.fsdecode(b"not utf-8 \xff")).touch()
    (linked / "dir" / "line\nbreak").touch()
    (linked / ("x" * 200)).mkdir()
    for depth in range(1, 6):
        (linked / "/".join(["x" * 200] * depth)).mkdir(exist_ok=True)
    (linked / "/".join(["x" * 200] * 5) / ("y" * 100)).touch()
    store = await _opened(linked)
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"{linked}: not served: 2 devices, FIFOs or sockets, 22 links, 3 names that aren't valid"
    assert await names_in(store) == {"dir/file", "dir/sub/deep"}
    await store.close()
    caplog.clear()
    store = await _opened(linked, follow_links=True)
    [line] = [record.getMessage() for record in caplog.records]
    assert "16 links" in line
    await store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, who may not read everything")
async def test_unreadable_folders(caplog: pytest.LogCaptureFixture) -> None:
    folder = Path(tempfile.mkdtemp())  # where that user may go
    root = folder / "files"
    for name in ("open/file", "closed/file", "closed/sub/file", "listed/file", "names/file"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    (root / "closed").chmod(0o300)
    (root / "names").chmod(0o400)
    os.seteuid(65534)
    try:
        store = await _opened(root)
        [line] = [record.getMessage() for record in caplog.records]
        assert line == f"{root}: not served: 1 unreadable folders"
        assert await names_in(store) == {"open/file", "listed/file"}
        assert not await _is_served(store, "closed/file")
        await put(store, "new/file", b"")
        await store.close()
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


# Folders of an older version


def _encode(root: Path, name: str, content: bytes) -> None:
    """Puts a file where an older version had it."""
    path = root / ".rxfiles" / "names" / encode(name)
    path.write_bytes(content)


async def test_files_that_an_older_version_encoded_are_moved(directory: DirectoryStore, root: Path) -> None:
    names = [*NAMES, "docs/b.txt", "docs/c/d.txt", "y/" * 100 + "z", "taken", "taken/x", "fifo", "both"]
    infos = {}
    for name in names:
        infos[name] = await put(directory, name, name.encode())
    await directory.close()
    for name, content in _files(root).items():
        os.rename(root / name, root / ".rxfiles" / "names" / encode(name))
        assert content == name.encode()
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and ".rxfiles" not in str(path):
            path.rmdir()
    shutil.rmtree(root / ".rxfiles" / "folders")
    (root / "taken").mkdir()
    os.mkfifo(root / "fifo")
    os.link(root / ".rxfiles" / "names" / encode("both"), root / "both")  # killed in the middle

    store = await _opened(root)
    encoded = set(os.listdir(root / ".rxfiles" / "names"))
    assert encode("docs/b.txt") not in encoded
    assert encode("both") not in encoded
    assert {encode(name) for name in ("../x", "fifo", "taken", "x" * 1024)} <= encoded
    assert {name: infos[name] for name in names} == {info.name: info for info in await listed(store)}
    for name in names:
        assert await get(store, name) == name.encode()
    assert {"docs/b.txt", ".hidden", "CON", "taken/x", "y/" * 100 + "z", "both"} <= set(_files(root))
    tree = set(root.rglob("*"))
    await store.close()
    store = await _opened(root)
    assert set(root.rglob("*")) == tree
    for name in names:
        await store.delete(name)
    assert _folders(root) == {"taken"}
    await store.close()


async def test_a_file_whose_path_has_become_free_keeps_its_digest(
    directory: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(directory, "a", b"")
    info = await put(directory, "a/b", b"content")
    await directory.delete("a")
    await directory.close()
    monkeypatch.setattr(records, "_PUBLISHED_WITHIN_NS", 1_000_000_000)
    await asyncio.sleep(1.2)
    for _ in range(2):
        store = await _opened(root)
        assert await listed(store) == [info]
        assert _files(root) == {"a/b": b"content"}
        await store.close()


async def test_a_file_by_hand_at_the_path_of_an_encoded_one_is_kept(directory: DirectoryStore, root: Path) -> None:
    _encode(root, "docs/a", b"stored")
    (root / "docs").mkdir()
    (root / "docs" / "a").write_bytes(b"by hand")
    await directory.close()
    store = await _opened(root)
    assert await get(store, "docs/a") == b"stored"
    assert [info.size for info in await listed(store)] == [6]
    await store.delete("docs/a")
    assert await get(store, "docs/a") == b"by hand"
    await store.close()


# Listings


async def test_folders_that_change_are_read_again(directory: DirectoryStore, root: Path) -> None:
    (root / "d").mkdir()
    for number in range(20):
        (root / "d" / f"{number:02}").touch()
        assert len(await listed(directory)) == number + 1
    os.utime(root / "d", (1, 1))  # long ago
    assert len(await listed(directory)) == 20
    assert len(await listed(directory)) == 20
    (root / "d" / "20").touch()
    assert len(await listed(directory)) == 21
    shutil.rmtree(root / "d")
    assert await listed(directory) == []
    (root / "d").write_bytes(b"a file")
    assert await names_in(directory) == {"d"}


async def test_a_large_folder_is_kept_in_pieces(
    directory: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_WINDOW_NAMES", 100)
    monkeypatch.setattr(listing, "_KEPT_NAMES", 400)
    names = sorted(
        f"{folder}{number:04}"
        for folder in ("", "large/", "small/")
        for number in range(1050 if folder != "small/" else 9)
    )
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    listings = directory._folder.listings
    for limit in (7, 64, 1000):
        assert [info.name for info in await listed(directory, limit=limit)] == names
        assert listings._kept_names == sum(
            listing._cost(window) for windows in listings._kept.values() for window in windows
        )
        assert listings._kept_names <= 400
    for after in ("0500", "large/0777", "large/1049", "large/2", "small/"):
        page = await directory.list(after=after, limit=5)
        assert [info.name for info in page.files] == [name for name in names if name > after][:5]

    # Two at once, at different places, while files come and go.
    async def whole(limit: int) -> list[str]:
        return [info.name for info in await listed(directory, "large/", limit)]

    async def change() -> None:
        for number in range(300):
            path = root / "large" / f"{number * 3:04}+"
            path.touch()
            await asyncio.sleep(0)
            path.unlink()

    first, second, _ = await asyncio.gather(whole(3), whole(40), change())
    stays = [name for name in names if name.startswith("large/")]
    for found in (first, second):
        assert found == sorted(set(found))
        assert [name for name in found if not name.endswith("+")] == stays
    await directory.sweep(3600)
    assert not listings._kept
    assert not listings._kept_names


async def test_a_page_ends_after_many_folders(directory: DirectoryStore, root: Path) -> None:
    for number in range(1000):
        (root / f"empty{number:04}" / "more").mkdir(parents=True)
    (root / "last").touch()
    _encode(root, "empty0300/", b"")
    _encode(root, "empty0063/", b"")
    directory._folder._places.count_encoded()  # as when the store has put them there, or finds them at its start
    page = await directory.list()
    assert [info.name for info in page.files] == ["empty0063/"]
    assert page.after
    for limit in (1, 64):
        assert [info.name for info in await listed(directory, limit=limit)] == ["empty0063/", "empty0300/", "last"]


async def test_the_deepest_name(directory: DirectoryStore) -> None:
    name = "a/" * 511 + "b"
    check_name(name)
    info = await put(directory, name, b"deep")
    assert await listed(directory) == [info]
    assert await listed(directory, "a/" * 300) == [info]
    assert await get(directory, name) == b"deep"
    await directory.delete(name)
    assert await listed(directory) == []


async def test_digests_of_files_in_folders(directory: DirectoryStore, root: Path) -> None:
    await put(directory, "a/b", b"content")
    (root / "a" / "c").write_bytes(b"by hand")
    assert {info.name: info.digest for info in await listed(directory)} == {"a/b": digest_of(b"content"), "a/c": None}
    assert fingerprint("a/b") + ".json" in os.listdir(root / ".rxfiles" / "records")


def test_the_command_line_follows_links(tmp_path: Path) -> None:
    for arguments in (["--follow-links"], ["--follow-links", "--store", str(tmp_path), "--port", "-1"]):
        command = [sys.executable, "-m", "server", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert ended.returncode == 2
        assert ("--follow-links goes with --store" in ended.stderr) == (len(arguments) == 1)
