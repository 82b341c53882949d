"""The directory store on a disk that is full, or has a quota: what others need goes first, and nothing else."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.stores.base import Upload
from server.stores.directory.names import fingerprint
from server.stores.directory.store import DirectoryStore
from shared.errors import NotFound, StorageFull
from shared.files import disk
from tests.conftest import Mount

from .support import begin, digest_of, get, put

KIB = 1024


async def _opened(path: Path) -> DirectoryStore:
    store = DirectoryStore(path)
    await store.start()
    return store


async def _suspended(store: DirectoryStore, upload_id: str, nbytes: int, *, size: int | None = None) -> None:
    """An unfinished upload without an owner."""
    upload = await begin(store, "n", upload_id=upload_id, size=size)
    await upload.append([bytes(nbytes)])
    await upload.suspend()


def _parts(path: Path) -> set[str]:
    return {entry for entry in os.listdir(path / ".rxfiles" / "parts") if entry.endswith(".part")}


def _part(upload_id: str) -> str:
    return f"{fingerprint(upload_id)}.part"


async def test_a_full_disk(mount: Mount) -> None:
    small_disk = mount("size=256k")
    store = await _opened(small_disk)
    await put(store, "old", b"o" * 100_000)
    upload = await begin(store, "old")
    await upload.append([b"n" * 50_000])
    with pytest.raises(StorageFull):
        await upload.append([b"n" * 50_000] * 4)
    offset = upload.received
    assert 50_000 <= offset == await store.uploaded("u1", "old")
    assert await get(store, "old") == b"o" * 100_000
    other = DirectoryStore(small_disk)
    with pytest.raises(BlockingIOError):
        await other.start()

    # Nothing can begin, or be published, and all that was there stays.
    with pytest.raises(StorageFull):
        await put(store, "new", b"x" * 5000)
    with pytest.raises(StorageFull):
        await upload.commit(None)
    assert await get(store, "old") == b"o" * 100_000
    await store.close()
    store = await _opened(small_disk)
    assert await store.uploaded("u1", "old") == offset
    await store.delete("old")
    upload = await begin(store, "old")
    await upload.commit(digest_of(b"n" * offset))
    assert (await store.stat("old")).size == offset
    await store.close()


async def _append(upload: Upload, content: bytes) -> None:
    await upload.append([content])


async def _write(upload: Upload, content: bytes) -> None:
    """As the file lane does."""
    file = upload.as_file()
    assert file is not None
    await asyncio.to_thread(file.write, memoryview(content))


async def _write_from(upload: Upload, content: bytes) -> None:
    """As the file lane does without a digest."""
    file = upload.as_file()
    assert file is not None
    write_from = file.write_from
    assert write_from is not None
    read, write = os.pipe()
    try:
        for start in range(0, len(content), 32 * KIB):
            piece = content[start : start + 32 * KIB]
            os.write(write, piece)
            await asyncio.to_thread(write_from, read, len(piece))
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("write", [_append, _write, _write_from])
async def test_uploads_without_an_owner_make_room_the_oldest_first(
    mount: Mount, write: Callable[..., "asyncio.Future[None]"]
) -> None:
    path = mount("size=1m")
    store = await _opened(path)
    owned = await begin(store, "n", upload_id="owned")
    await owned.append([bytes(200 * KIB)])
    for upload_id in ("u1", "u2", "u3"):
        await _suspended(store, upload_id, 200 * KIB)
    await (await begin(store, "n", upload_id="u1")).suspend()  # it is the youngest now

    # Its size is known, and then it isn't.
    sized = await begin(store, "a", upload_id="sized", size=250 * KIB)
    assert _parts(path) == {_part(each) for each in ("owned", "u1", "u3", "sized")}
    await sized.append([bytes(250 * KIB)])
    await sized.commit(None)
    algorithm = None if write is _write_from else "xxh3-128"
    upload = await store.begin("unsized", "b", size=None, algorithm=algorithm)
    content = os.urandom(400 * KIB)
    await write(upload, content)
    assert _parts(path) == {_part(each) for each in ("owned", "unsized")}
    await upload.commit(None if algorithm is None else digest_of(content))
    assert await get(store, "b") == content
    await owned.commit(None)
    assert (await begin(store, "n", upload_id="u1")).received == 0, "what was dropped begins anew"
    await store.close()


async def test_what_does_not_fit_is_refused_when_it_begins_and_drops_nothing(mount: Mount) -> None:
    path = mount("size=1m")
    store = await _opened(path)
    await _suspended(store, "u1", 200 * KIB, size=300 * KIB)
    for size in (1024 * KIB, 10**15):
        with pytest.raises(StorageFull):
            await begin(store, "a", upload_id="large", size=size)
    assert _parts(path) == {_part("u1")}

    # What is announced is reserved, as long as it has an owner, and what has arrived of it isn't counted twice.
    first = await begin(store, "a", upload_id="first", size=600 * KIB)
    for _ in range(4):
        with pytest.raises(StorageFull):
            await begin(store, "b", upload_id="second", size=600 * KIB)
        await first.append([bytes(100 * KIB)])
    resumed = await begin(store, "n", upload_id="u1", size=300 * KIB)  # a part of it is there
    await first.append([bytes(200 * KIB)])
    await first.commit(None)
    await resumed.append([bytes(100 * KIB)])
    await resumed.commit(None)
    await store.delete("a")
    abandoned = await begin(store, "a", upload_id="abandoned", size=600 * KIB)
    await abandoned.suspend()
    await (await begin(store, "b", upload_id="second", size=600 * KIB)).abort()
    await store.close()


async def test_what_found_no_room_is_dropped_with_its_owner(mount: Mount) -> None:
    path = mount("size=1m")
    store = await _opened(path)
    for end in ("suspend", "close"):
        endless = await begin(store, "a", upload_id=end)
        other = await begin(store, "b", upload_id=f"other {end}")
        with pytest.raises(StorageFull):
            await endless.append([bytes(100 * KIB)] * 20)
        assert endless.received > 500 * KIB
        with pytest.raises(StorageFull):
            await other.append([bytes(100 * KIB)])
        if end == "suspend":
            await endless.suspend()
            with pytest.raises(NotFound):
                await store.uploaded("suspend", "a")
        else:
            await other.suspend()
            await store.close()
            store = await _opened(path)
            other = await begin(store, "b", upload_id=f"other {end}")
        await other.append([bytes(100 * KIB)])
        await other.commit(None)
    await store.close()


async def test_a_disk_without_inodes(mount: Mount) -> None:
    path = mount("size=1m,nr_inodes=40")
    store = await _opened(path)
    for number in range(100):
        await _suspended(store, f"u{number}", 10)
        if number % 10 == 0:
            await put(store, "a", b"%d" % number)
    assert await get(store, "a") == b"90"
    assert 1 < len(_parts(path)) < 20
    await store.close()
    store = await _opened(path)
    owned: list[Upload] = []

    async def begin_many() -> None:
        while True:
            owned.append(await begin(store, "b", upload_id=f"owned {len(owned)}"))

    with pytest.raises(StorageFull):
        await begin_many()
    await owned.pop().abort()
    await owned.pop().abort()
    await owned[0].append([b"x"])
    await owned[0].commit(None)
    await store.close()


async def test_folders_are_made_where_uploads_without_an_owner_leave_room(mount: Mount) -> None:
    path = mount("size=1m,nr_inodes=40")
    store = await _opened(path)
    for number in range(100):
        await _suspended(store, f"u{number}", 10)
    await put(store, "a/b/c/d", b"content")
    assert await get(store, "a/b/c/d") == b"content"
    assert 1 < len(_parts(path)) < 20
    await store.move("a/b/c/d", "e/f/g/h")
    assert await get(store, "e/f/g/h") == b"content"

    owned: list[Upload] = []

    async def begin_many() -> None:
        while True:
            owned.append(await begin(store, f"{len(owned)}/x/y", upload_id=f"owned {len(owned)}"))

    with pytest.raises(StorageFull):
        await begin_many()
    with pytest.raises(StorageFull):
        await owned[0].commit(None)
    assert sorted(os.listdir(path)) == [".rxfiles", "e"]
    for upload in owned[-4:]:
        await upload.abort()
    await owned[1].commit(None)
    assert (await store.stat("1/x/y")).size == 0
    await store.close()


async def test_a_quota(directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await _suspended(directory, "u1", 10)
    write_at = disk.write_at

    def limited(fd: int, views: list[memoryview], offset: int) -> int:
        if directory._folder.uploads._idle:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return write_at(fd, views, offset)

    upload = await begin(directory, "a", upload_id="u2")
    monkeypatch.setattr(disk, "write_at", limited)
    await upload.append([b"content"])
    with pytest.raises(NotFound):
        await directory.uploaded("u1", "n")
    await upload.commit(None)


async def test_a_file_system_that_says_nothing_of_its_room(
    directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([4096, 4096, *[0] * 9]))
    await (await begin(directory, "a", size=10**15)).abort()
