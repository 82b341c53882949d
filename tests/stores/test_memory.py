"""The memory store: a view of a dictionary that others change, too."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.stores.base import PAGE_FILES, Upload
from server.stores.memory import MemoryStore
from shared.errors import Changed, InvalidRequest, NotFound, StorageFull, TooLarge
from shared.protocol.wire import FileInfo

from .support import begin, digest_of, get, listed, names_in, put


async def test_a_value_put_into_the_dictionary_is_served() -> None:
    files = {"a": b"old"}
    store = MemoryStore(files)
    old = await store.stat("a")
    assert (old.size, old.digest) == (3, digest_of(b"old"))
    assert await store.stat("a") == old

    files["a"] = b"new"
    new = await store.stat("a")
    assert (new.size, new.digest) == (3, digest_of(b"new"))
    assert new.etag != old.etag
    with pytest.raises(Changed):
        await store.delete("a", if_match=old.etag)
    del files["a"]
    with pytest.raises(NotFound):
        await store.stat("a")
    assert not await listed(store)


async def test_a_stored_file_is_in_the_dictionary() -> None:
    files: dict[str, bytes] = {}
    store = MemoryStore(files)
    await put(store, "a", b"content")

    assert files == {"a": b"content"}
    assert type(files["a"]) is bytes
    await store.delete("a")
    assert not files


async def test_a_removed_value_is_not_kept() -> None:
    files = {"a": b"x" * 1000}
    store = MemoryStore(files)
    await store.stat("a")
    del files["a"]
    await listed(store)

    assert not store._catalog._known


async def test_a_page_is_a_snapshot() -> None:
    files = {str(number): b"x" * 2_000_000 for number in range(3)}
    store = MemoryStore(files)
    await listed(store)
    files.update({str(number): b"y" * 2_000_000 for number in range(3)})
    listing = asyncio.create_task(store.list())
    await asyncio.sleep(0)
    files["more"] = b""
    del files["2"]

    assert [info.name for info in (await listing).files] == ["0", "1", "2"]
    assert await names_in(store) == {"0", "1", "more"}


async def test_listings_share_one_snapshot_until_a_sweep() -> None:
    files = {f"{number:05}": b"" for number in range(5000)}
    store = MemoryStore(files)
    page = await store.list()
    names = store._names._names
    assert (await store.list()).files == page.files
    assert store._names._names is names
    files["00000a"] = b""
    assert [info.name for info in (await store.list(limit=2)).files] == ["00000", "00000a"], "a new one has all"

    await store.sweep(-1)
    assert not store._names._names
    assert not store._names._runs
    assert page.after is not None
    assert [info.name for info in (await store.list(after=page.after, limit=1)).files] == ["00064"]


async def test_delete_spares_a_value_that_replaced_the_old_one_during_its_digest() -> None:
    files = {"a": b"x" * 3_000_000}
    store = MemoryStore(files)
    delete = asyncio.create_task(store.delete("a", if_match=digest_of(b"x" * 3_000_000)))
    await asyncio.sleep(0)
    files["a"] = b"new"

    with pytest.raises(Changed):
        await delete
    assert files == {"a": b"new"}


async def test_a_move_takes_the_value_that_replaced_the_old_one_during_its_digest() -> None:
    old = b"x" * 3_000_000
    files: dict[str, bytes] = {}
    store = MemoryStore(files)

    async def move(if_match: str | None) -> FileInfo:
        files["a"] = bytes(bytearray(old))  # another object, whose digest isn't known
        moving = asyncio.create_task(store.move("a", "b", if_match=if_match))
        await asyncio.sleep(0)
        files["a"] = b"new"
        return await moving

    with pytest.raises(Changed):
        await move(digest_of(old))
    assert files == {"a": b"new"}
    assert (await move(None)).digest == digest_of(b"new")
    assert files == {"b": b"new"}


async def test_a_move_counts_what_its_name_takes() -> None:
    files = {"a": b"x", "b": b"y"}
    store = MemoryStore(files, max_bytes=2 + 2 * ENTRY + len("a long" + "b"))
    await store.move("a", "a long")
    with pytest.raises(StorageFull):
        await store.move("b", "longer")
    assert files == {"a long": b"x", "b": b"y"}
    await store.move("a long", "b")
    assert files == {"b": b"x"}
    await store.put("c", b"x")


ENTRY = 1024
"""What each file and each unfinished upload counts beside its content and its name."""


async def test_files_and_unfinished_uploads_together_have_a_limit() -> None:
    files = {"a": b"x" * 50}
    store = MemoryStore(files, max_bytes=100 + 3 * ENTRY + len("a" + "b" + "u1" + "c" + "u2"))
    first = await begin(store, "b", upload_id="u1")
    await first.append([b"y" * 30])
    second = await begin(store, "c", upload_id="u2")
    with pytest.raises(StorageFull):
        await second.append([b"z" * 15, b"z" * 15])
    assert second.received == 15

    await first.abort()
    await second.append([b"z" * 35])
    await second.commit(digest_of(b"z" * 50))
    assert await get(store, "c") == b"z" * 50
    third = await begin(store, "d", upload_id="u3")
    await third.append([b"1"])
    with pytest.raises(StorageFull):
        await third.append([b"2" * 2])
    files["a"] = b""
    await third.append([b"2" * 50])
    await third.commit(None)
    assert await names_in(store) == {"a", "c", "d"}


async def suspended(store: MemoryStore, upload_id: str, nbytes: int, *, size: int | None = None) -> None:
    """An unfinished upload without an owner."""
    upload = await begin(store, "n", upload_id=upload_id, size=size)
    await upload.append([bytes(nbytes)])
    await upload.suspend()


async def test_uploads_without_an_owner_make_room_the_oldest_first() -> None:
    store = MemoryStore({}, max_bytes=10 * ENTRY)
    owned = await begin(store, "n", upload_id="owned")
    await owned.append([bytes(100)])
    for upload_id in ("u1", "u2", "u3", "u4"):
        await suspended(store, upload_id, 900)
    resumed = await begin(store, "n", upload_id="u1")
    await resumed.suspend()  # it is the youngest now

    await store.put("a", bytes(2 * ENTRY))
    assert list(store._parts) == ["owned", "u1", "u3", "u4"]
    assert not store.put_at_once("b", bytes(ENTRY)), "only a put that waits drops uploads"
    upload = await begin(store, "b", upload_id="sized", size=ENTRY)
    assert list(store._parts) == ["owned", "u1", "u4", "sized"]
    await owned.append([bytes(1500)])
    assert list(store._parts) == ["owned", "u1", "sized"]
    assert await store.uploaded("u1", "n") == 900
    await upload.append([bytes(ENTRY)])
    await upload.commit(None)
    assert (await begin(store, "n", upload_id="u4")).received == 0, "what was dropped begins anew"


async def test_an_upload_that_does_not_fit_is_refused_when_it_begins_and_drops_nothing() -> None:
    store = MemoryStore({"a": bytes(4 * ENTRY)}, max_bytes=14 * ENTRY)
    await suspended(store, "u1", ENTRY, size=3 * ENTRY)
    with pytest.raises(StorageFull):
        await begin(store, "b", upload_id="u2", size=9 * ENTRY)
    assert await store.uploaded("u1", "n") == ENTRY

    # What is announced is reserved, as long as it has an owner, and it is not counted twice.
    first = await begin(store, "b", upload_id="u2", size=4 * ENTRY)
    for _ in range(4):
        with pytest.raises(StorageFull):
            await begin(store, "c", upload_id="u3", size=4 * ENTRY)
        with pytest.raises(StorageFull):
            await store.put("c", bytes(4 * ENTRY))
        await first.append([bytes(ENTRY)])
    assert await store.uploaded("u1", "n") == ENTRY
    await first.suspend()
    await (await begin(store, "c", upload_id="u3", size=7 * ENTRY)).abort()
    assert not store._parts
    assert (store._catalog.reserved, store._idle_bytes) == (0, 0)


async def test_an_upload_that_found_no_room_is_dropped_with_its_owner() -> None:
    store = MemoryStore({}, max_bytes=4 * ENTRY)
    endless = await begin(store, "a", upload_id="endless")
    other = await begin(store, "b", upload_id="other")
    with pytest.raises(StorageFull):
        await endless.append([bytes(ENTRY)] * 3)
    assert endless.received > 0
    await endless.suspend()
    with pytest.raises(NotFound):
        await store.uploaded("endless", "a")
    await other.append([bytes(2 * ENTRY)])
    await other.commit(None)


async def until_full(add: Callable[[int], Awaitable[object]]) -> None:
    """Adds one after the other until there is no room, which is soon."""
    async with asyncio.timeout(30):
        for number in count():
            try:
                await add(number)
            except StorageFull:
                return
            await asyncio.sleep(0)


@pytest.mark.parametrize("name", ["", "x" * 1000, "ä" * 500, "\udcff" * 300], ids=len)
async def test_empty_files_count_too(name: str) -> None:
    files: dict[str, bytes] = {}
    store = MemoryStore(files, max_bytes=100_000)
    await until_full(lambda number: store.put(f"{name}{number:02}", b""))
    size = len(name.encode("utf-8", "surrogatepass"))
    assert len(files) == 100_000 // (ENTRY + size + 2)
    await store.put(f"{name}00", b"")  # in place of itself
    files.clear()

    await until_full(lambda number: begin(store, name, upload_id=f"{number:02}"))
    begun = len(store._parts)
    assert begun == 100_000 // (ENTRY + size + 2)
    upload = await begin(store, name, upload_id="00")  # which has begun
    await upload.abort()
    await begin(store, name, upload_id="99")
    assert await store.sweep(-1) == begun
    assert store._catalog.used == 0


async def test_an_overwrite_counts_the_difference() -> None:
    store = MemoryStore({}, max_bytes=ENTRY + 101)
    await store.put("a", b"x" * 100)
    await store.put("a", b"y" * 100)
    await store.put("a", b"z")
    with pytest.raises(StorageFull):
        await store.put("a", b"z" * 101)
    assert store._catalog.used == ENTRY + 2


async def test_removals_by_others_make_room_at_once_and_their_additions_are_found() -> None:
    files = {str(number): bytes(1000) for number in range(2000)}
    store = MemoryStore(files, max_bytes=5_000_000)
    await store.put("a", bytes(100_000))
    with pytest.raises(StorageFull):
        await store.put("b", bytes(1_000_000))
    for number in range(1000):
        del files[str(number)]
    await store.put("b", bytes(1_000_000))

    for number in range(2000):
        files[f"more {number}"] = bytes(2000)
    await until_full(lambda number: store.put(f"c{number}", b""))
    for name in list(files):  # as many as before, but small
        files[name] = b""
    async with asyncio.timeout(30):
        while True:
            try:
                await store.put("c", bytes(1000))
                break
            except StorageFull:
                await asyncio.sleep(0.01)


async def test_looking_at_many_files_yields_to_other_callbacks() -> None:
    """Every operation on all files lets other event-loop callbacks run after a few hundred of them."""
    files = {str(number): b"" for number in range(20_000)}
    store = MemoryStore(files, max_bytes=100_000_000)
    await listed(store)
    for number in range(1000):
        await begin(store, "a", upload_id=f"u{number}")

    async def yields(whole: Coroutine[Any, Any, object]) -> int:
        count, task = 0, asyncio.create_task(whole)
        while not task.done():
            count += 1
            await asyncio.sleep(0)
        await task
        return count

    files.update({str(number): b"x" for number in range(20_000)})
    store._catalog._count_again_at = 0.0
    assert await yields(store.put("a", b"")) > 70
    assert await yields(store.list("no such name")) > 5
    assert await yields(store.list()) >= PAGE_FILES
    files.clear()
    assert await yields(store.sweep(-1)) > 4
    assert not store._catalog._known


NAMES = st.sampled_from(["a", "b", "ä", "a longer name"])
CONTENTS = st.integers(0, 3000).map(bytes)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["put", "set", "upload", "begin"]), NAMES, CONTENTS),
    st.tuples(st.sampled_from(["delete", "del", "append", "commit", "abort", "list", "clear"]), NAMES, CONTENTS),
)
LIMIT = 10_000


def plain_count(store: MemoryStore, files: dict[str, bytes]) -> int:
    parts = store._parts.values()
    return sum(ENTRY + len(name.encode()) + len(content) for name, content in files.items()) + sum(
        ENTRY + len(part.spec.name.encode()) + len(part.spec.upload_id) + part.digest.length for part in parts
    )


async def do(store: MemoryStore, uploads: dict[str, Upload], action: str, name: str, content: bytes) -> None:
    match action:
        case "put":
            await store.put(name, content)
        case "upload":
            await put(store, name, content, upload_id="whole")
        case "begin":
            uploads[name] = await begin(store, name, upload_id=f"u{name}")
        case "append" if name in uploads:
            await uploads[name].append([content[:1000], content[1000:]])
        case "commit" if name in uploads:
            await uploads.pop(name).commit(None)
        case "abort" if name in uploads:
            await uploads.pop(name).abort()
        case "delete":
            await store.delete(name)
        case "list":
            await listed(store)
        case _:
            pass


def do_without_the_store(files: dict[str, bytes], action: str, name: str, content: bytes) -> bool:
    match action:
        case "set":
            files[name] = content
        case "del":
            files.pop(name, None)
        case "clear":
            files.clear()
        case _:
            return False
    return True


@given(st.lists(STEPS, max_size=40))
@settings(deadline=None, max_examples=150)
def test_the_count_is_that_of_a_plain_recount(steps: list[tuple[str, str, bytes]]) -> None:
    async def scenario() -> None:
        files: dict[str, bytes] = {}
        store = MemoryStore(files, max_bytes=LIMIT)
        uploads: dict[str, Upload] = {}
        is_ours = True  # only the store has changed the dictionary since the last count of all
        for action, name, content in steps:
            before = plain_count(store, files)
            if do_without_the_store(files, action, name, content):
                is_ours = False
                continue
            try:
                await do(store, uploads, action, name, content)
            except (NotFound, InvalidRequest, TooLarge):  # an upload that found no room is still there, and goes on
                pass
            except StorageFull:
                # Never because of what isn't there: so few files are always counted before a refusal.
                assert before + ENTRY + len(name.encode()) + len("whole") + max(len(content), 1) > LIMIT
                assert store._catalog.used == plain_count(store, files)
                is_ours = True
                continue  # what others added may have been counted only now: it may be over the limit
            if is_ours:
                assert store._catalog.used == plain_count(store, files) <= max(before, LIMIT)
        await store._catalog._count()
        assert store._catalog.used == plain_count(store, files)
        for upload in uploads.values():
            await upload.abort()
        for name in list(files):
            await store.delete(name)
        assert store._catalog.used == sum(part.cost + part.digest.length for part in store._parts.values())

    asyncio.run(scenario())


async def test_the_published_content_is_not_copied() -> None:
    files: dict[str, bytes] = {}
    upload = await begin(MemoryStore(files), "a")
    await upload.append([b"x" * 1_000_000])
    await upload.commit(None)

    content = files["a"]
    reader = await MemoryStore(files).open("a")
    assert await reader.read(0, 1_000_000) is content
    await reader.close()


async def test_a_file_has_one_time_however_many_ask_for_it_at_once() -> None:
    store = MemoryStore({"a": b"content"})
    infos = await asyncio.gather(*(store.stat("a") for _ in range(3)))
    assert infos == [await store.stat("a")] * 3
