"""The memory store: a view of a dictionary that others change, too."""

import asyncio

import pytest

from server.memory_store import MemoryStore
from shared.errors import Changed, NotFound, StorageFull

from .support import begin, digest_of, get, names_in, put


async def test_what_is_put_into_the_dictionary_is_served() -> None:
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
    assert not await store.list()


async def test_what_is_stored_is_in_the_dictionary() -> None:
    files: dict[str, bytes] = {}
    store = MemoryStore(files)
    await put(store, "a", b"content")

    assert files == {"a": b"content"}
    assert type(files["a"]) is bytes
    await store.delete("a")
    assert not files


async def test_a_value_that_was_taken_out_is_not_kept() -> None:
    files = {"a": b"x" * 1000}
    store = MemoryStore(files)
    await store.stat("a")
    del files["a"]
    await store.list()

    assert not store._known


async def test_a_listing_is_a_snapshot() -> None:
    files = {str(number): b"x" * 2_000_000 for number in range(3)}
    store = MemoryStore(files)
    listing = asyncio.create_task(store.list())
    await asyncio.sleep(0)
    files["more"] = b""
    del files["2"]

    assert {info.name for info in await listing} == {"0", "1", "2"}
    assert await names_in(store) == {"0", "1", "more"}


async def test_delete_does_not_hit_a_value_that_came_while_the_old_one_was_digested() -> None:
    files = {"a": b"x" * 3_000_000}
    store = MemoryStore(files)
    delete = asyncio.create_task(store.delete("a", if_match=digest_of(b"x" * 3_000_000)))
    await asyncio.sleep(0)
    files["a"] = b"new"

    with pytest.raises(Changed):
        await delete
    assert files == {"a": b"new"}


async def test_files_and_unfinished_uploads_together_have_a_limit() -> None:
    files = {"a": b"x" * 50}
    store = MemoryStore(files, max_bytes=100)
    first = await begin(store, "b", upload_id="u1")
    await first.append([b"y" * 30])
    second = await begin(store, "c", upload_id="u2")
    with pytest.raises(StorageFull):
        await second.append([b"z" * 15, b"z" * 15])
    assert second.offset == 15

    await first.abort()
    await second.append([b"z" * 35])
    await second.commit(digest_of(b"z" * 50))
    assert await get(store, "c") == b"z" * 50
    with pytest.raises(StorageFull):
        await put(store, "d", b"1")
    files["a"] = b""
    await put(store, "e", b"2", upload_id="u3")
    assert await names_in(store) == {"a", "c", "e"}


async def test_the_published_content_is_not_copied() -> None:
    files: dict[str, bytes] = {}
    upload = await begin(MemoryStore(files), "a")
    await upload.append([b"x" * 1_000_000])
    await upload.commit(None)

    content = files["a"]
    reader = await MemoryStore(files).open("a")
    assert await reader.read(0, 1_000_000) is content
    await reader.close()
