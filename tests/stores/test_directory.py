"""The directory store: what lies in the folder, what survives, and on which thread the disk is touched."""

import asyncio
import builtins
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.stores.directory import records
from server.stores.directory.folder import Folder
from server.stores.directory.names import encode, fingerprint
from server.stores.directory.places import Places
from server.stores.directory.store import DirectoryStore
from server.stores.directory.unfinished import UploadFile
from shared.errors import (
    AlreadyExists,
    Changed,
    IntegrityError,
    NotFound,
    StorageFull,
    StorageUnavailable,
    TransferError,
)
from shared.files import disk
from shared.protocol.wire import FileInfo

from .support import NAMES, Killed, begin, digest_of, get, killed_after, listed, names_in, put


async def _opened(path: Path) -> DirectoryStore:
    store = DirectoryStore(path)
    await store.start()
    return store


async def _reopened(store: DirectoryStore, path: Path) -> DirectoryStore:
    """What another process finds."""
    await store.close()
    return await _opened(path)


def _tree(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


# What lies where


async def test_ordinary_names_are_plain_files(directory: DirectoryStore, tmp_path: Path) -> None:
    for name in ("a.txt", "README.md", "Grüße.txt"):
        await put(directory, name, name.encode())

    root = tmp_path / "files"
    assert sorted(os.listdir(root)) == [".rxfiles", "Grüße.txt", "README.md", "a.txt"]
    assert (root / "README.md").read_bytes() == b"README.md"


async def test_nothing_is_ever_stored_outside(directory: DirectoryStore, tmp_path: Path) -> None:
    for name in NAMES:
        await put(directory, name, b"x")

    assert os.listdir(tmp_path) == ["files"]
    encoded = {path.name for path in (tmp_path / "files" / ".rxfiles" / "names").iterdir()}
    impossible = {"../x", "/etc/passwd", ".", "..", ".rxfiles", ".rxfiles/lock", "x" * 256, "x" * 1024, "X" * 1024}
    assert encoded == {encode(name) for name in impossible | {"ä" * 128, "ä" * 512, "a"}}, "`a/b` came before `a`"


async def test_all_names_are_there_after_a_restart(directory: DirectoryStore, tmp_path: Path) -> None:
    infos = [await put(directory, name, b"%d" % number) for number, name in enumerate(NAMES)]
    store = await _reopened(directory, tmp_path / "files")

    assert sorted(await listed(store), key=lambda info: info.name) == sorted(infos, key=lambda info: info.name)
    await store.close()


async def test_files_put_there_by_hand_are_served(directory: DirectoryStore, tmp_path: Path) -> None:
    file = tmp_path / "files" / "by hand.txt"
    file.write_bytes(b"content")
    info = await directory.stat("by hand.txt")

    assert (info.size, info.digest, info.modified) == (7, None, file.stat().st_mtime)
    assert await get(directory, "by hand.txt") == b"content"
    assert await listed(directory) == [info]
    file.write_bytes(b"CONTENT")
    assert (await directory.stat("by hand.txt")).etag != info.etag
    with pytest.raises(Changed):
        await directory.delete("by hand.txt", if_match=info.etag)
    await directory.delete("by hand.txt")
    assert not file.exists()


async def test_a_file_put_there_by_hand_is_moved_as_it_is(directory: DirectoryStore, tmp_path: Path) -> None:
    file = tmp_path / "files" / "by hand.txt"
    file.write_bytes(b"content")
    info = await directory.stat("by hand.txt")

    for name in ("moved.txt", "x" * 1000, "../moved"):
        moved = await directory.move(info.name, name, if_match=info.etag)
        assert moved == await directory.stat(name) == replace(info, name=name)
        info = moved
    assert await listed(directory) == [info]
    assert not file.exists()


async def test_a_moved_file_keeps_what_is_known_of_it(directory: DirectoryStore, tmp_path: Path) -> None:
    info = await put(directory, "a", b"content")
    await put(directory, "b", b"old")
    info = await directory.move("a", "b")
    store = await _reopened(directory, tmp_path / "files")

    assert await listed(store) == [info]
    assert info.digest == digest_of(b"content")
    assert os.listdir(tmp_path / "files" / ".rxfiles" / "records") == [f"{fingerprint('b')}.json"]
    await store.close()


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("target", ["b", "x" * 1000])
async def test_a_move_that_was_killed_between_two_names_is_done_by_the_next_one(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, overwrite: bool
) -> None:
    """Both names are links of one file then: to rename one of them to the other would do nothing."""
    info = await put(directory, "a", b"content")
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", _fail)
    with pytest.raises(OSError, match="no more"):
        await directory.move("a", target, overwrite=False)
    monkeypatch.setattr(os, "unlink", unlink)
    store = await _reopened(directory, tmp_path / "files")

    assert sorted(await listed(store), key=lambda each: len(each.name)) == [info, replace(info, name=target)]
    assert await store.move("a", target, overwrite=overwrite, if_match=info.etag) == replace(info, name=target)
    assert await listed(store) == [replace(info, name=target)]
    assert await get(store, target) == b"content"
    await store.close()


def _fail(*_: Any, **__: Any) -> None:
    raise OSError("no more")


async def test_a_content_written_by_hand_has_no_digest(directory: DirectoryStore, tmp_path: Path) -> None:
    stored = await put(directory, "a", b"content")
    (tmp_path / "files" / "a").write_bytes(b"CONTENT")

    info = await directory.stat("a")
    assert info.digest is None
    assert info.etag != stored.etag


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_a_content_written_by_hand_with_the_old_time_and_size_has_no_digest(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    # As `cp -p` and `tar` do it, in the very same file.
    for name in ("kept", "changed"):
        upload = await begin(directory, name, upload_id=name, modified=1_700_000_000)
        await upload.append([b"content"])
        await upload.commit(None)
    store = await _reopened(directory, tmp_path / "files") if is_restarted else directory
    stored = {info.name: info for info in await listed(store)}
    assert {info.digest for info in stored.values()} == {digest_of(b"content")}
    if is_restarted:
        monkeypatch.setattr(records, "_PUBLISHED_WITHIN_NS", 50_000_000)
    await asyncio.sleep(0.1)  # the system's clock for files ticks some hundred times a second
    changed = tmp_path / "files" / "changed"
    changed.write_bytes(b"CONTENT")
    os.utime(changed, (1_700_000_000, 1_700_000_000))

    info = await store.stat("changed")
    assert (info.size, info.modified) == (stored["changed"].size, stored["changed"].modified)
    assert info.digest is None
    assert info.etag != stored["changed"].etag
    assert await store.stat("kept") == stored["kept"]
    await store.close()


async def test_what_was_moved_long_after_it_was_published_keeps_its_etag_and_digest(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_PUBLISHED_WITHIN_NS", 50_000_000)
    await put(directory, "a", b"content")
    (tmp_path / "files" / "by hand").write_bytes(b"content")
    by_hand = await directory.stat("by hand")
    await asyncio.sleep(0.1)  # see above
    moved = [await directory.move(name, f"moved/{name}") for name in ("a", "by hand")]
    assert [info.digest for info in moved] == [digest_of(b"content"), None]
    assert moved[1].etag == by_hand.etag
    store = await _reopened(directory, tmp_path / "files")
    assert [await store.stat(info.name) for info in moved] == moved
    await store.close()


async def test_the_digests_of_an_older_version_are_known(directory: DirectoryStore, tmp_path: Path) -> None:
    stored = await put(directory, "a", b"content")
    record = tmp_path / "files" / ".rxfiles" / "records" / f"{fingerprint('a')}.json"
    known = json.loads(record.read_text())
    del known["sealed"]
    record.write_text(json.dumps(known))
    store = await _reopened(directory, tmp_path / "files")
    assert await store.stat("a") == stored
    await store.close()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
async def test_permission_bits(directory: DirectoryStore, tmp_path: Path, umask: int) -> None:
    root = tmp_path / "files"
    before = os.umask(umask)
    try:
        await put(directory, "new", b"content")
        for mode in (0o600, 0o755, 0o664, 0o444, 0o4755):
            name = f"{mode:o}"
            (root / name).write_bytes(b"old")
            (root / name).chmod(mode)
            await put(directory, name, b"new", upload_id=name)
            await directory.put(name, b"newer")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in root.iterdir() if path.is_file()}
    assert modes == {"new": 0o666 & ~umask, "600": 0o600, "755": 0o755, "664": 0o664, "444": 0o444, "4755": 0o755}
    assert (root / ".rxfiles" / "parts").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the superuser gives files away")
async def test_an_overwritten_file_keeps_its_owner(directory: DirectoryStore, tmp_path: Path) -> None:
    path = tmp_path / "files" / "a"
    path.write_bytes(b"old")
    os.chown(path, 12345, 23456)
    await put(directory, "a", b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


async def test_names_that_the_file_system_does_not_distinguish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulates a file system that ignores case: paths are folded before they reach the system.
    root = tmp_path / "files"
    given: dict[str, str] = {}

    def folded(path: str) -> str:
        is_served = path.startswith(f"{root}/") and ".rxfiles" not in path
        names = os.path.relpath(path, root).split("/") if is_served else []
        return os.path.join(root, *(given.setdefault(name.casefold(), name) for name in names)) if names else path

    for function in ("lstat", "stat", "open", "unlink", "mkdir", "rmdir", "scandir", "listdir"):
        original = getattr(os, function)

        def call(path: Any, *args: Any, original: Callable[..., Any] = original, **kwargs: Any) -> Any:
            return original(folded(path) if isinstance(path, str) else path, *args, **kwargs)

        monkeypatch.setattr(os, function, call)
    replace, link = os.replace, os.link
    monkeypatch.setattr(
        os, "replace", lambda source, target, src_dir_fd=None, dst_dir_fd=None: replace(source, folded(target))
    )
    monkeypatch.setattr(
        os, "link", lambda source, target, src_dir_fd=None, dst_dir_fd=None: link(source, folded(target))
    )
    monkeypatch.setattr(Places, "_distinguishes", lambda self, scratch: False)
    monkeypatch.setattr("server.stores.directory.tree.HAS_DIR_FD", False)  # as on Windows

    store = await _opened(root)
    alike = ["README.md", "readme.md", "ReadMe.md", "Grüße", "grüße", "docs/a", "Docs/a", "docs/A", "docs/b", "DOCS/c"]
    for name in alike:
        await put(store, name, name.encode(), overwrite=False)
    assert await names_in(store) == set(alike)
    for name in alike:
        assert await get(store, name) == name.encode()
    assert _tree(root) - {path for path in _tree(root) if path.startswith(".rxfiles")} == {
        "README.md",
        "docs/a",
        "docs/b",
    }
    assert await names_in(store, "docs/") == {"docs/a", "docs/A", "docs/b"}
    # Together, as names that differ in normalisation may be, which have locks of their own.
    assert list(store._folder.puts.put([("x", b"x"), ("X", b"X")])) == [(None, None)] * 2
    for name in ("x", "X"):
        assert await get(store, name) == name.encode()
        await store.delete(name)
    await store.delete("README.md")
    assert await get(store, "readme.md") == b"readme.md"
    await put(store, "readme.md", b"new")
    assert await get(store, "readme.md") == b"new"
    assert await names_in(store) == set(alike) - {"README.md"}
    await store.close()


async def test_a_second_process_is_refused(directory: DirectoryStore, tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from server.stores.directory.store import DirectoryStore\n"
        "try: asyncio.run(DirectoryStore(sys.argv[1]).start())\n"
        "except BlockingIOError as error: print(error.strerror)"
    )
    second = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, tmp_path / "files"], capture_output=True, text=True, check=False
    )
    assert second.stdout.strip() == "another process serves this folder"
    with pytest.raises(BlockingIOError, match="another process serves this folder"):
        await _opened(tmp_path / "files")

    again = await _reopened(directory, tmp_path / "files")
    await again.close()


_FORKS = """
import asyncio, multiprocessing, os, sys, time
from server.stores.directory.store import DirectoryStore
async def main():
    store = DirectoryStore(sys.argv[1])
    await store.start()
    context = multiprocessing.get_context("fork")
    runs = context.Event()
    child = context.Process(target=lambda: (runs.set(), time.sleep(60)))
    child.start()
    runs.wait()  # it has done what every forked process does first
    print(child.pid, flush=True)
    if sys.argv[2] == "close":
        await store.close()
    else:
        os.kill(os.getpid(), 9)
    print(flush=True)
    sys.stdin.read()
    os._exit(0)
asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("end", ["close", "kill"])
async def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path, end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _FORKS, tmp_path / "files", end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        child = int(await asyncio.to_thread(first.stdout.readline))
        try:
            if end == "close":
                await asyncio.to_thread(first.stdout.readline)
            else:
                await asyncio.to_thread(first.wait)
            await (await _opened(tmp_path / "files")).close()
            os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)
            first.kill()


async def test_a_call_that_was_given_up_does_not_lock_a_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in its thread, finds nothing, and then looks whether the whole folder is there."""
    store, gate, is_over = await _opened(tmp_path / "files"), threading.Event(), threading.Event()

    def missing(name: str) -> FileInfo:
        gate.wait(30)
        raise NotFound.for_name(name)

    check = store._folder.check

    def noting_check() -> None:
        try:
            check()
        finally:
            is_over.set()

    monkeypatch.setattr(store._folder, "stat", missing)
    monkeypatch.setattr(store._folder, "check", noting_check)
    asking = asyncio.create_task(store.stat("a"))
    await asyncio.sleep(0.01)
    asking.cancel()
    await store.close()
    gate.set()
    assert await asyncio.to_thread(is_over.wait, 30)
    await asyncio.wait([asking])
    await (await _opened(tmp_path / "files")).close()


async def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):

        def missing(fd: int, operation: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", missing)
        store = await _opened(tmp_path / "files")
        await put(store, "a", b"content")
        await store.close()
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path / 'files'} is on a file system without locks: no other process may serve it"
        ]
        caplog.clear()


async def test_nothing_happens_before_start_or_after_close(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "files")
    with pytest.raises(RuntimeError):
        await listed(store)
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        await DirectoryStore(tmp_path / "file").start()


async def test_close_closes_what_is_open(directory: DirectoryStore) -> None:
    await put(directory, "a", b"content")
    reader = await directory.open("a")
    upload = await begin(directory, "b")
    await upload.append([b"x"])
    await directory.close()  # the fixture of all tests counts descriptors and threads

    with pytest.raises(RuntimeError):
        await reader.read(0, 1)
    await reader.close()


# Reading


async def test_a_file_that_is_cut_or_written_while_it_is_read(directory: DirectoryStore, tmp_path: Path) -> None:
    file = tmp_path / "files" / "a"
    for change in (b"", b"01234", b"0123456789more", b"9876543210"):
        await put(directory, "a", b"0123456789")
        reader = await directory.open("a")
        assert await reader.read(0, 4) == b"0123"
        file.write_bytes(change)
        with pytest.raises(Changed):
            await reader.read(4, 4)
        await reader.close()


async def test_a_cancelled_open_leaves_no_descriptor(directory: DirectoryStore) -> None:
    await put(directory, "a", b"content")
    for iterations in range(10):
        opening = asyncio.create_task(directory.open("a"))
        for _ in range(iterations):
            await asyncio.sleep(0)
        opening.cancel()
        try:
            await (await opening).close()
        except asyncio.CancelledError:
            pass
    assert not directory._readers


async def test_a_link_or_a_fifo_in_the_place_of_a_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("secret")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(disk, "regular_file", lambda path, dir_fd: os.lstat(tmp_path / "secret"))

    for name in ("link", "fifo", "nothing"):
        assert disk.open_to_read(str(tmp_path / name)) is None


# Uploads


async def test_an_upload_goes_on_in_another_process(directory: DirectoryStore, tmp_path: Path) -> None:
    content = os.urandom(5_000_000)
    upload = await begin(directory, "a", size=len(content))
    await upload.append([content[:1_000_000], content[1_000_000:3_100_000]])
    store = await _reopened(directory, tmp_path / "files")

    assert await store.uploaded("u1", "a") == 3_100_000
    upload = await begin(store, "a", size=len(content))
    assert upload.received == 3_100_000
    await upload.append([content[3_100_000:]])
    await upload.commit(digest_of(content))
    assert await get(store, "a") == content
    await store.close()


async def test_the_same_process_reads_nothing_again(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    read_at = disk.read_at

    def counted(fd: int, length: int, offset: int) -> bytes:
        nonlocal reads
        data = read_at(fd, length, offset)
        reads += len(data)
        return data

    monkeypatch.setattr(disk, "read_at", counted)
    upload = await begin(directory, "a")
    await upload.append([b"x" * 3_000_000])
    await upload.suspend()
    upload = await begin(directory, "a")
    assert (upload.received, reads) == (3_000_000, 0)
    store = await _reopened(directory, tmp_path / "files")
    upload = await begin(store, "a")
    await upload.suspend()
    upload = await begin(store, "a")
    assert (upload.received, reads) == (3_000_000, 3_000_000)
    await upload.commit(digest_of(b"x" * 3_000_000))
    await store.close()


async def test_a_part_that_another_program_cut_short(directory: DirectoryStore, tmp_path: Path) -> None:
    part = tmp_path / "files" / ".rxfiles" / "parts" / f"{fingerprint('u1')}.part"
    upload = await begin(directory, "a")
    await upload.append([b"0123456789"])
    await upload.suspend()
    os.truncate(part, 4)
    upload = await begin(directory, "a")
    assert upload.received == 4
    await upload.append([b"xyz"])
    os.truncate(part, 5)
    with pytest.raises(IntegrityError):
        await upload.commit(None)
    assert not await listed(directory)
    assert not part.exists()


async def test_a_part_without_its_record_is_started_anew(directory: DirectoryStore, tmp_path: Path) -> None:
    upload = await begin(directory, "a")
    await upload.append([b"lost"])
    await upload.suspend()
    (tmp_path / "files" / ".rxfiles" / "parts" / f"{fingerprint('u1')}.json").unlink()

    upload = await begin(directory, "a")
    assert upload.received == 0
    await upload.commit(digest_of(b""))


async def test_an_old_part_that_was_reopened_is_not_swept(directory: DirectoryStore, tmp_path: Path) -> None:
    part = tmp_path / "files" / ".rxfiles" / "parts" / f"{fingerprint('u1')}.part"
    upload = await begin(directory, "a")
    await upload.suspend()
    os.utime(part, (0, 0))
    upload = await begin(directory, "a")

    assert await directory.sweep(3600) == 0
    # A file is as old as its publication, to the nanosecond: its digest is recorded under that time.
    os.utime(part, (0, 0))
    info = await upload.commit(None)
    assert info.modified is not None
    assert abs(info.modified - time.time()) < 60


@pytest.mark.parametrize("offset", [-3 * 86400, 0, 3 * 86400])
async def test_the_age_of_what_another_process_left(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    parts = tmp_path / "files" / ".rxfiles" / "parts"
    for upload_id, days in (("old", 2.0), ("new", 0.5), ("of the future", -700.0)):
        upload = await begin(directory, "a", upload_id=upload_id)
        await upload.suspend()
        time_then = time.time() - days * 86400
        os.utime(parts / f"{fingerprint(upload_id)}.part", (time_then, time_then))
    wall, monotonic = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: wall() + offset)
    store = await _reopened(directory, tmp_path / "files")

    assert await store.sweep(86400) == 1
    assert await store.uploaded("new", "a") == 0
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 0.6 * 86400)
    assert await store.sweep(86400) == 1
    assert await store.uploaded("of the future", "a") == 0
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 1.1 * 86400)
    assert await store.sweep(86400) == 1
    await store.close()


async def test_a_delete_does_not_hit_a_replacement(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await put(directory, "a", b"old")
    upload = await begin(directory, "a")
    await upload.append([b"new"])
    entered, leave = threading.Event(), threading.Event()
    unlink = os.unlink

    def slow(path: str, *, dir_fd: int | None = None) -> None:
        if path == str(tmp_path / "files" / "a"):
            entered.set()
            assert leave.wait(10)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", slow)
    delete = asyncio.create_task(directory.delete("a", if_match=info.etag))
    await asyncio.to_thread(entered.wait, 10)
    commit = asyncio.create_task(upload.commit(None))
    await asyncio.wait([commit], timeout=0.2)  # it waits, too, else it would be done by then
    leave.set()
    await delete
    await commit

    assert await get(directory, "a") == b"new"


@pytest.mark.parametrize("links", [True, False])
async def test_a_file_put_there_by_hand_is_not_overwritten(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def unsupported(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", unsupported)
    for number in range(2):
        upload = await begin(directory, f"a{number}", overwrite=False)
        await upload.append([b"upload"])
        if number:
            # It comes after the store has looked.
            monkeypatch.setattr(Folder, "exists", lambda self, name: False)
            (tmp_path / "files" / "a1").write_bytes(b"by hand")
            with pytest.raises(AlreadyExists):
                await upload.commit(None)
            assert await directory.uploaded("u1", "a1") == 6
        else:
            await upload.commit(None)

    assert await get(directory, "a0") == b"upload"
    assert await get(directory, "a1") == b"by hand"


async def test_many_chunks_and_short_writes(directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write_at = disk.write_at
    monkeypatch.setattr(disk, "write_at", lambda fd, views, offset: write_at(fd, [views[0][:7]], offset))
    short = [bytes([number % 251]) * (number % 20) for number in range(300)]
    upload = await begin(directory, "a")
    await upload.append(short)
    monkeypatch.undo()
    many = [b"%d" % number for number in range(3000)]
    await upload.append(many)
    content = b"".join(short + many)

    await upload.commit(digest_of(content))
    assert await get(directory, "a") == content


async def test_a_write_that_fails_half_way(directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    write_at = disk.write_at

    def full(fd: int, views: list[memoryview], offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_at(fd, [views[0][:5]], offset)

    upload = await begin(directory, "a")
    monkeypatch.setattr(disk, "write_at", full)
    with pytest.raises(StorageFull):
        await upload.append([b"0123", b"456789", b"abc"])
    assert upload.received == upload.durable == await directory.uploaded("u1", "a") == 9
    await upload.append([b"9"])
    assert upload.durable == 10
    await upload.commit(digest_of(b"0123456789"))


async def test_a_failed_sync_is_never_tried_again(directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await begin(directory, "a")
    await upload.append([b"content"])

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageUnavailable):
        await upload.commit(None)
    monkeypatch.undo()
    with pytest.raises(NotFound):
        await directory.uploaded("u1", "a")
    assert not await listed(directory)


async def test_a_commit_syncs_in_this_order(
    directory: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "files"
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        done.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def replaced(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        folder = "" if dst_dir_fd is None else os.readlink(f"/proc/self/fd/{dst_dir_fd}")
        done.append(("replace", os.path.join(folder, target)))
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    upload = await begin(directory, "a")
    await upload.append([b"content"])
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    await upload.commit(None)

    ours = root / ".rxfiles"
    record = ours / "records" / f"{fingerprint('a')}.json"
    assert [(what, Path(path)) for what, path in done if "/tmp/" not in path.removeprefix(str(tmp_path))] == [
        ("fsync", ours / "parts" / f"{fingerprint('u1')}.part"),
        ("replace", record),
        ("fsync", record.parent),
        ("replace", root / "a"),
        ("fsync", root),
    ]


# Crashes, step by step. `tests.stores.crash` kills processes at any moment.


@pytest.mark.parametrize("name", ["a", "docs/sub/a", "../a", "x" * 1000])
@pytest.mark.parametrize("overwrite", [True, False])
async def test_a_kill_after_any_step_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, overwrite: bool
) -> None:
    functions = ["utime", "fsync", "lstat", "replace", "link", "unlink", "open", "rename", "mkdir", "rmdir"]
    outcomes: list[bytes | None] = []
    for steps in range(60):
        folder = Folder(str(tmp_path / str(steps)))
        folder.open()
        folder.close()
        store = await _opened(tmp_path / str(steps))
        if overwrite:
            await put(store, name, b"old content")
        upload = await begin(store, name, overwrite=overwrite)
        await upload.append([b"new"])
        await store.close()

        folder.open()
        part = UploadFile(folder.uploads, upload._part.spec)
        assert part.open()
        try:
            with killed_after(steps, functions, monkeypatch):
                part.seal()
                folder.publish(part, overwrite=overwrite)
                survived = True
        except Killed:
            survived = False
        part.content.close()
        folder.close()

        store = await _opened(tmp_path / str(steps))
        found = {info.name: info for info in await listed(store)}
        content = await get(store, name) if found else None
        outcomes.append(content)
        assert set(found) <= {name}
        assert content in ((b"old content", b"new") if overwrite else (None, b"new"))
        if content is not None:
            assert found[name].digest == digest_of(content)  # the old one's, too, is known all the time
        if content == b"new":
            with pytest.raises(NotFound):
                await store.uploaded("u1", name)
        else:
            upload = await begin(store, name, overwrite=overwrite)
            assert upload.received == 3
            await upload.commit(digest_of(b"new"))
        assert await get(store, name) == b"new"
        files = {path for path in _tree(tmp_path / str(steps)) if not path.startswith(".rxfiles/folders/")}
        place = name if name in ("a", "docs/sub/a") else f".rxfiles/names/{encode(name)}"
        assert files == {place, ".rxfiles/lock", f".rxfiles/records/{fingerprint(name)}.json"}
        await store.close()
        if survived:
            break
    else:
        raise AssertionError("a commit has fewer steps")
    assert outcomes[0] != b"new" == outcomes[-1]
    assert outcomes == sorted(outcomes, key=lambda content: content == b"new")


async def test_leftovers_of_a_killed_process_are_removed(directory: DirectoryStore, tmp_path: Path) -> None:
    await put(directory, "kept", b"x")
    upload = await begin(directory, "kept too")
    await upload.append([b"half"])
    await directory.close()
    before = _tree(tmp_path)
    ours = tmp_path / "files" / ".rxfiles"
    (ours / "tmp" / "7").write_bytes(b"{")
    (ours / "parts" / f"{'0' * 64}.part").write_bytes(b"no record")
    (ours / "parts" / f"{'1' * 64}.json").write_bytes(b"no part")
    (ours / "parts" / f"{'2' * 64}.part").write_bytes(b"a bad record")
    (ours / "parts" / f"{'2' * 64}.json").write_text(json.dumps({"upload_id": "u", "name": "n", "size": "?"}))
    (ours / "records" / f"{'3' * 64}.json").write_text("{}")
    store = await _opened(tmp_path / "files")

    assert _tree(tmp_path) == before
    assert await store.uploaded("u1", "kept too") == 4
    await store.close()


async def test_sweep_removes_the_records_of_files_deleted_by_hand(directory: DirectoryStore, tmp_path: Path) -> None:
    for name in ("kept", "gone", "x" * 1000):
        await put(directory, name, b"x")
    (tmp_path / "files" / "gone").unlink()
    assert await directory.sweep(3600) == 0

    records = os.listdir(tmp_path / "files" / ".rxfiles" / "records")
    assert sorted(records) == sorted(f"{fingerprint(name)}.json" for name in ("kept", "x" * 1000))


async def test_digests_of_many_suspended_uploads_are_forgotten(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.stores.directory.store._MAX_SUSPENDED", 3)
    for number in range(10):
        upload = await begin(directory, "a", upload_id=f"u{number}")
        await upload.append([b"%d" % number])
        await upload.suspend()

    assert len(directory._suspended) == 3
    upload = await begin(directory, "a", upload_id="u1")
    await upload.append([b"!"])
    await upload.commit(digest_of(b"1!"))


# The event loop


async def test_the_disk_is_touched_in_threads_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop_thread = threading.get_ident()
    called: set[str] = set()
    in_loop: set[str] = set()

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            (in_loop if threading.get_ident() == loop_thread else called).add(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in [
        *(
            "open",
            "close",
            "read",
            "write",
            "pread",
            "pwrite",
            "pwritev",
            "readv",
            "writev",
            "lseek",
            "fsync",
            "truncate",
        ),
        *("stat", "lstat", "fstat", "scandir", "listdir", "mkdir", "makedirs", "rename", "replace", "link", "unlink"),
        *("remove", "rmdir", "utime", "readlink", "access"),
    ]:
        watch(os, name)
    for name in ("exists", "lexists", "isfile", "isdir", "islink", "getsize", "getmtime", "realpath"):
        watch(os.path, name)
    watch(builtins, "open")

    store = await _opened(tmp_path / "files")
    await put(store, "a", b"content" * 1000)
    await put(store, "../b", b"content", overwrite=False)
    await listed(store)
    await store.stat("a")
    await get(store, "a")
    upload = await begin(store, "c")
    await upload.append([b"half", b"more"])
    await upload.suspend()
    await store.uploaded("u1", "c")
    upload = await begin(store, "c")
    await upload.abort()
    with pytest.raises(TransferError):
        await begin(store, "a", upload_id="u2", overwrite=False)
    await (await begin(store, "d")).suspend()
    await store.sweep(-1)
    await store.delete("a")
    await store.close()
    monkeypatch.undo()

    assert not in_loop
    assert {"open", "pwritev", "pread", "fsync", "lstat", "scandir", "replace", "link", "unlink", "close"} <= called


async def test_a_hanging_thread_delays_its_caller_only(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, leave = threading.Event(), threading.Event()
    write_at = disk.write_at

    def slow(fd: int, views: list[memoryview], offset: int) -> int:
        entered.set()
        assert leave.wait(10)
        return write_at(fd, views, offset)

    upload = await begin(directory, "a")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", slow)
        append = asyncio.create_task(upload.append([b"content"]))
        await asyncio.to_thread(entered.wait, 10)
    append.cancel()
    takeover = asyncio.create_task(begin(directory, "a"))
    await put(directory, "b", b"x")
    assert await get(directory, "b") == b"x"
    append.cancel()  # a second cancel doesn't end the wait early, either
    await asyncio.sleep(0)
    assert not append.done()
    assert not takeover.done()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await append
    newer = await takeover
    assert newer.received == 7
    await newer.commit(digest_of(b"content"))
