"""Whole files in a folder: those that are put at the same time share their syncs, and nothing else."""

import asyncio
import errno
import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from server.stores.directory import records
from server.stores.directory.folder import Folder
from server.stores.directory.store import DirectoryStore
from shared.errors import StorageFull, StorageUnavailable, TransferError
from shared.files import disk

from .support import Killed, digest_of, get, killed_after, listed, put

HAS_ATTRIBUTES = hasattr(os, "setxattr")


async def _opened(path: Path) -> DirectoryStore:
    store = DirectoryStore(path)
    await store.start()
    return store


async def _put_all(store: DirectoryStore, names: Sequence[str], content: bytes) -> list[BaseException | None]:
    return await asyncio.gather(*(store.put(name, content) for name in names), return_exceptions=True)


@pytest.fixture(params=[True, False] if HAS_ATTRIBUTES else [False])
def attaches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system has extended attributes."""

    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    if HAS_ATTRIBUTES and not request.param:
        monkeypatch.setattr(os, "setxattr", unsupported)
    return request.param


def _watched(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[tuple[str, str]]:
    """What is synced and renamed from now on, in this order, each by its path."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def path_of(fd: int) -> str:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root)

    def synced(fd: int) -> None:
        done.append(("sync", path_of(fd)))
        fsync(fd)

    def replaced(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        path = os.path.relpath(target, root) if dst_dir_fd is None else os.path.join(path_of(dst_dir_fd), target)
        done.append(("rename", os.path.normpath(path)))
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return done


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_files_that_are_put_together_are_synced_in_this_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attaches: bool
) -> None:
    root = tmp_path / "files"
    folder = Folder(str(root))
    folder.open()
    done = _watched(monkeypatch, root)
    names = ["a", "b", "docs/a", "docs/b", "docs/sub/a", "../a"]
    assert list(folder.puts.put([(name, b"content") for name in names])) == [(None, None)] * len(names)
    folder.close()

    is_content = [what == "sync" and path.startswith(".rxfiles/tmp/") for what, path in done]
    renamed = [
        path for what, path in done if what == "rename" and path.split("/")[1:2] not in (["records"], ["folders"])
    ]
    first = next(index for index, (what, path) in enumerate(done) if path == "a")
    last = max(index for index, (what, _) in enumerate(done) if what == "rename")
    # No content has its name before all are synced,
    assert sum(is_content) == sum(is_content[:first]) == len(names)
    assert renamed == [*names[:-1], ".rxfiles/names/=..%2fa"]
    # and then each folder is synced once, the ones above it after it: the root also for the folder that was made in it.
    synced = [path for _, path in done[last + 1 :]]
    assert synced[:2] == [".", "docs"]
    assert set(synced) == {".", "docs", "docs/sub", ".rxfiles/names"}
    assert len(synced) <= len(set(synced)) + 3
    # What is known of a file is with it, or has a record before it has its name.
    recorded = [path for what, path in done[:last] if what == "rename" and path.startswith(".rxfiles/records/")]
    assert len(recorded) == (1 if attaches else len(names))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
async def test_the_folders_above_are_synced_again_where_another_one_is_there(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "files"
    done = _watched(monkeypatch, root)

    async def synced() -> list[str]:
        done.clear()
        await directory.put("a/b/c", b"content")
        return [path for what, path in done if what == "sync" and not path.startswith(".rxfiles")]

    assert await synced() == ["a/b", ".", "a"]
    assert await synced() == ["a/b"]
    (root / "a" / "b").rename(root / "away")
    (root / "a" / "b").mkdir()  # by another program
    assert await synced() == ["a/b", ".", "a"]
    assert await synced() == ["a/b"]
    await directory.delete("a/b/c")  # the store's own folder, which may be made again with the same inode
    await directory.put("d/e", b"content")
    assert await synced() == ["a/b", ".", "a"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
async def test_puts_that_come_while_the_disk_is_busy_share_their_syncs(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = _watched(monkeypatch, tmp_path / "files")
    fsync, gate = os.fsync, threading.Event()

    def busy(fd: int) -> None:
        gate.wait(30)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", busy)
    names = [f"{number:02}" for number in range(64)]
    puts = asyncio.create_task(_put_all(directory, names, b"content"))
    await asyncio.sleep(0.05)
    gate.set()
    assert await puts == [None] * 64
    synced = Counter(path.rpartition("/")[0] for what, path in done if what == "sync")
    assert synced[".rxfiles/tmp"] == 64
    assert 0 < sum(what == "sync" and path == "." for what, path in done) <= 40
    assert [info.name for info in await listed(directory)] == names


def test_a_kill_after_any_step_of_puts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attaches: bool) -> None:
    names, replaced = ["a", "new/b", "../c", "x" * 1000], ["a", "../c"]
    functions = ["open", "utime", "setxattr", "fsync", "lstat", "replace", "unlink", "mkdir", "rmdir", "pwritev"]
    new = 0
    for steps in range(attaches, 200, 2):
        path = tmp_path / str(steps)
        folder = Folder(str(path))
        folder.open()
        folder.puts.put([(name, b"old") for name in replaced])
        try:
            with killed_after(steps, functions, monkeypatch):
                outcomes = folder.puts.put([(name, b"new content") for name in names])
                survived = list(outcomes) == [(None, None)] * len(names)
        except Killed:
            survived = False
        folder.close()

        folder.open()
        found = {info.name: info for info in folder.list("", "", 100).files}
        assert set(replaced) <= set(found) <= set(names)
        for name, info in found.items():
            content = folder.whole(name, 100)
            assert content in (b"new content", b"old")[: 2 if name in replaced else 1]
            assert info.digest == digest_of(content)
        new += any(info.size == 11 for info in found.values())
        assert not os.listdir(path / ".rxfiles" / "tmp")
        folder.close()
        if survived:
            assert [info.size for info in found.values()] == [11] * len(names)
            break
    else:
        raise AssertionError("puts have fewer steps")
    assert new > 4  # some were there after some of the kills


async def test_a_put_that_fails_leaves_the_others_and_nothing_behind(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await directory.put("made/kept", b"old")
    write_at = disk.write_at

    def full(fd: int, views: Sequence[memoryview], offset: int) -> int:
        if len(views[0]) == 13:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_at(fd, views, offset)

    monkeypatch.setattr(disk, "write_at", full)
    contents = {"a": b"content", "made/kept": bytes(13), "new/b": bytes(13), "c": b"content"}
    outcomes = await asyncio.gather(
        *(directory.put(name, content) for name, content in contents.items()), return_exceptions=True
    )
    monkeypatch.undo()
    assert [type(outcome) for outcome in outcomes] == [type(None), StorageFull, StorageFull, type(None)]
    assert [outcome.name for outcome in outcomes if isinstance(outcome, TransferError)] == ["made/kept", "new/b"]
    assert {info.name: await get(directory, info.name) for info in await listed(directory)} == {
        **{"a": b"content", "made/kept": b"old", "c": b"content"}
    }
    assert not (tmp_path / "files" / "new").exists()
    assert not os.listdir(tmp_path / "files" / ".rxfiles" / "tmp")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
async def test_a_folder_that_cannot_be_synced_fails_the_puts_in_it(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _put_all(directory, ["bad/1", "good/1"], b"")
    fsync = os.fsync

    def broken(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/bad"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", broken)
    outcomes = await _put_all(directory, ["bad/1", "good/1", "bad/2", "good/2", "top"], b"content")
    assert [type(outcome) for outcome in outcomes] == [
        *(StorageUnavailable, type(None), StorageUnavailable, type(None), type(None))
    ]


async def test_a_folder_that_is_removed_meanwhile_is_made_again(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    removed: list[Path] = []

    def late(fd: int) -> None:
        fsync(fd)
        if not removed and (tmp_path / "files" / "d").exists():
            removed.append(tmp_path / "files" / "d")
            removed[0].rmdir()

    monkeypatch.setattr(os, "fsync", late)
    assert await _put_all(directory, ["d/1", "d/2", "3", "4"], b"content") == [None] * 4
    assert removed
    assert [info.name for info in await listed(directory)] == ["3", "4", "d/1", "d/2"]


@pytest.mark.usefixtures("attaches")
async def test_the_digest_of_a_put_is_known_to_another_process(directory: DirectoryStore, tmp_path: Path) -> None:
    names = ["a", "docs/a", "../a", "x" * 1000]
    await _put_all(directory, names, b"content")
    await put(directory, "a", b"an upload")
    await directory.put("a", b"content")
    stored = await listed(directory)
    await directory.close()
    store = await _opened(tmp_path / "files")
    assert await listed(store) == stored
    assert {info.name: info.digest for info in stored} == dict.fromkeys(names, digest_of(b"content"))
    for number, name in enumerate(names):
        info = await store.move(name, f"moved/{number}")
        assert (info.digest, info.etag) == (digest_of(b"content"), digest_of(b"content"))
    moved = await listed(store)
    await store.close()
    store = await _opened(tmp_path / "files")
    assert await listed(store) == moved
    await store.close()


@pytest.mark.usefixtures("attaches")
@pytest.mark.parametrize("is_restarted", [False, True])
async def test_the_digest_of_a_put_is_not_that_of_another_content_with_its_time_and_size(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    await directory.put("a", b"content")
    stored, path = await directory.stat("a"), tmp_path / "files" / "a"
    status = path.stat()
    if is_restarted:
        await directory.close()
        monkeypatch.setattr(records, "_PUBLISHED_WITHIN_NS", 50_000_000)
    store = await _opened(tmp_path / "files") if is_restarted else directory
    await asyncio.sleep(0.1)  # the system's clock for files ticks some hundred times a second
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    info = await store.stat("a")
    assert (info.size, info.modified) == (stored.size, stored.modified)
    assert info.digest is None
    assert info.etag != stored.etag
    await store.close()
