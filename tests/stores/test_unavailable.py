"""The directory store whose folder is gone, fails, may not be written, or is only to be read."""

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from server.stores.directory.store import DirectoryStore
from server.stores.failures import typed
from shared.errors import Forbidden, NotFound, ServerFull, StorageFull, StorageUnavailable, TransferError
from shared.files import disk
from tests.conftest import Mount

from .support import begin, digest_of, get, listed, names_in, put


async def _opened(path: Path, **options: Any) -> DirectoryStore:
    store = DirectoryStore(path, **options)
    await store.start()
    return store


def _calls(store: DirectoryStore) -> list[Coroutine[Any, Any, object]]:
    """Everything that a client may ask for."""
    return [
        store.stat("a"),
        store.open("a"),
        store.list(),
        store.delete("a"),
        store.move("a", "b"),
        store.move("a", "docs/b"),
        store.put("a", b"new"),
        store.stat("docs/a"),
        store.open("docs/a"),
        store.list("docs/"),
        store.delete("docs/a"),
        store.put("docs/a", b"new"),
        begin(store, "a", upload_id="new"),
        begin(store, "a", upload_id="new", size=10, overwrite=False),
        store.uploaded("u1", "a"),
    ]


async def _all_raise(store: DirectoryStore, error: type[TransferError]) -> None:
    for call in _calls(store):
        with pytest.raises(error):
            await call


async def test_a_folder_that_was_moved_away_and_back(directory: DirectoryStore, tmp_path: Path) -> None:
    await put(directory, "a", b"content")
    upload = await begin(directory, "b", size=10)
    await upload.append([b"01234"])
    (tmp_path / "files").rename(tmp_path / "away")
    await _all_raise(directory, StorageUnavailable)
    assert not (tmp_path / "files").exists()

    (tmp_path / "away").rename(tmp_path / "files")
    assert await get(directory, "a") == b"content"
    await upload.append([b"56789"])
    await upload.commit(digest_of(b"0123456789"))
    assert await names_in(directory) == {"a", "b"}


async def test_what_could_not_be_removed_is_swept_later(directory: DirectoryStore, tmp_path: Path) -> None:
    upload = await begin(directory, "a")
    await upload.append([b"content"])
    (tmp_path / "files").rename(tmp_path / "away")
    with pytest.raises(StorageUnavailable):
        await upload.commit(None)
    (tmp_path / "away").rename(tmp_path / "files")
    assert await directory.uploaded("u1", "a") == 7
    assert await directory.sweep(3600) == 0
    assert await directory.sweep(0) == 1
    assert os.listdir(tmp_path / "files" / ".rxfiles" / "parts") == []


@pytest.mark.parametrize("is_all_removed", [True, False])
async def test_another_folder_in_its_place_is_served(
    directory: DirectoryStore, tmp_path: Path, is_all_removed: bool
) -> None:
    root = tmp_path / "files"
    await put(directory, "a", b"content")
    upload = await begin(directory, "b")
    await upload.append([b"01234"])
    shutil.rmtree(root if is_all_removed else root / ".rxfiles")
    if is_all_removed:
        await _all_raise(directory, StorageUnavailable)
        root.mkdir()
        (root / "c").write_bytes(b"new")
    else:
        (root / "a").rename(root / "c")
    assert await names_in(directory) == {"c"}
    with pytest.raises(StorageUnavailable):
        await upload.commit(None)
    upload = await begin(directory, "b")
    assert upload.received == 0
    await upload.commit(None)
    await put(directory, "a", b"content")
    assert await names_in(directory) == {"a", "b", "c"}
    with pytest.raises(BlockingIOError):
        await _opened(root)


async def test_a_disk_that_was_unmounted_and_is_back(mount: Mount) -> None:
    path = mount("size=1m")
    store = await _opened(path)
    await put(store, "a", b"content")
    subprocess.run(["umount", "--lazy", str(path)], check=True)
    await _all_raise(store, StorageUnavailable)
    assert os.listdir(path) == [], "nothing is stored below the mount point"

    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(path)], check=True)
    await put(store, "b", b"content")
    assert await names_in(store) == {"b"}
    await store.close()


async def test_a_disk_that_may_only_be_read(mount: Mount) -> None:
    path = mount("size=1m")
    store = await _opened(path)
    names = {"a", "../a", "docs/b/c"}
    for name in names:
        await put(store, name, b"content")
    upload = await begin(store, "a")
    await upload.append([b"half"])
    await upload.suspend()
    await store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    with pytest.raises(OSError, match="Read-only"):
        await _opened(path)

    store, other = await _opened(path, read_only=True), await _opened(path, read_only=True)
    for each in (store, other):
        for name in names:
            assert await get(each, name) == b"content"
            assert (await each.stat(name)).digest == digest_of(b"content")
        assert await names_in(each) == names
        assert [info.name for info in await listed(each, limit=1)] == sorted(names)
        assert await names_in(each, "docs/") == {"docs/b/c"}
        assert await each.sweep(-1) == 0
        assert await each.uploaded("u1", "a") == 4
        with pytest.raises(NotFound):
            await each.stat("b")
        for call in (
            *(each.delete("a"), each.move("a", "b"), each.put("a", b""), each.put("new/a", b"")),
            *(each.delete("docs/b/c"), begin(each, "a"), begin(each, "a", overwrite=False)),
        ):
            with pytest.raises(Forbidden):
                await call
        await each.close()

    subprocess.run(["mount", "-o", "remount,rw", str(path)], check=True)
    store = await _opened(path)
    await put(store, "b", b"content")
    assert await store.uploaded("u1", "a") == 4
    await store.close()


@pytest.mark.parametrize("follow_links", [False, True])
async def test_a_folder_that_was_never_written_to_is_only_read(tmp_path: Path, follow_links: bool) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b").write_bytes(b"content")
    (tmp_path / "link").symlink_to("docs")
    (tmp_path / "empty").mkdir()
    there = sorted(tmp_path.rglob("*"))
    store = await _opened(tmp_path, read_only=True, follow_links=follow_links)
    served = {"a", "docs/b", *(["link/b"] if follow_links else [])}
    assert await names_in(store) == served
    for name in served:
        assert await get(store, name) == b"content"
    for name in ("empty", "empty/a", "none/a"):
        with pytest.raises(NotFound):
            await store.open(name)
    with pytest.raises(NotFound):
        await store.uploaded("u1", "a")
    assert sorted(tmp_path.rglob("*")) == there
    writing = await _opened(tmp_path)
    await put(writing, "new/b", b"content")
    assert await names_in(store) == {*served, "new/b"}
    await writing.close()
    await store.close()
    for missing in (tmp_path / "none", tmp_path / "a"):
        with pytest.raises(OSError):
            await _opened(missing, read_only=True)
        assert not (tmp_path / "none").exists()


async def test_a_folder_that_is_only_read_may_go_and_come_back(tmp_path: Path) -> None:
    root = tmp_path / "files"
    root.mkdir()
    store = await _opened(root, read_only=True)
    shutil.rmtree(root)
    for call in (store.stat("a"), store.open("a"), store.list()):
        with pytest.raises(StorageUnavailable):
            await call
    root.mkdir()
    (root / "a").write_bytes(b"content")
    assert await get(store, "a") == b"content"
    await store.close()


ERRORS: list[tuple[int, type[TransferError]]] = [
    *((number, StorageUnavailable) for number in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTCONN)),
    *((number, Forbidden) for number in (errno.EROFS, errno.EACCES, errno.EPERM)),
    *((number, StorageFull) for number in (errno.ENOSPC, errno.EDQUOT)),
    *((number, ServerFull) for number in (errno.EMFILE, errno.ENFILE)),
]


@pytest.mark.parametrize(("number", "error"), ERRORS)
async def test_the_errors_of_a_disk_are_typed(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int, error: type[TransferError]
) -> None:
    def failing(*args: object, **kwargs: object) -> Any:
        raise OSError(number, os.strerror(number), "/the/path")

    await put(directory, "a", b"content")
    steps: list[tuple[Any, str, Callable[[], Coroutine[Any, Any, object]]]] = [
        (os, "scandir", directory.list),
        (os, "lstat", lambda: directory.stat("a")),
        (os, "open", lambda: directory.open("a")),
        (os, "replace", lambda: begin(directory, "b", upload_id="u2")),
        (os, "unlink", lambda: directory.delete("a")),
        (disk, "read_at", lambda: reader.read(0, 3)),
        (disk, "write_at", lambda: upload.append([b"more"])),
        (os, "fsync", lambda: upload.commit(None)),
    ]
    reader = await directory.open("a")
    upload = await begin(directory, "b", upload_id="u1")
    for module, function, call in steps:
        with monkeypatch.context() as patch:
            patch.setattr(module, function, failing)
            with pytest.raises(error) as caught:
                await call()
            assert "/the/path" not in caught.value.message
    await reader.close()
    assert await get(directory, "a") == b"content"
    await put(directory, "b", b"content")


def test_a_defect_is_not_the_disk_s_failure() -> None:
    assert isinstance(typed(OSError(errno.ENOTDIR, "Not a directory")), StorageUnavailable)
    assert typed(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert typed(FileExistsError(errno.EEXIST, "File exists")) is None


async def test_checks_at_once_open_the_folder_once(directory: DirectoryStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "files")
    (tmp_path / "files").mkdir()
    lists = await asyncio.gather(*(directory.list() for _ in range(20)))
    assert not any(page.files for page in lists)
    await put(directory, "a", b"content")
