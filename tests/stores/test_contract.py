"""What `server.stores.base.Store` promises, checked for each store in `support.STORES`.

A test may not assume that every byte received is durable: `support.flushed` says how many are.
"""

import asyncio
import inspect
import os
import time
from dataclasses import replace
from typing import Any

import pytest

from server.stores.base import Store
from server.stores.objects import ObjectStore
from server.stores.queueing import QueuedStore
from shared.errors import (
    AlreadyExists,
    Changed,
    IntegrityError,
    InvalidName,
    InvalidRequest,
    NotFound,
    Superseded,
    TooLarge,
)

from .conftest import OpenStore
from .support import (
    begin,
    check_listed,
    digest_of,
    flushed,
    get,
    invalid_names_for,
    listed,
    names_for,
    names_in,
    put,
)


async def test_a_file_goes_in_and_comes_out(store: Store) -> None:
    content = bytes(range(256)) * 100
    info = await put(store, "a.bin", content)

    assert (info.name, info.size, info.digest) == ("a.bin", len(content), digest_of(content))
    assert info.etag
    assert info.modified
    assert await store.stat("a.bin") == info
    await check_listed(store, info)
    assert await get(store, "a.bin") == content


async def test_an_empty_file(store: Store) -> None:
    upload = await begin(store, "empty", size=0)
    assert upload.received == upload.durable == 0
    info = await upload.commit(digest_of(b""))

    assert (info.size, info.digest) == (0, digest_of(b""))
    assert await get(store, "empty") == b""


@pytest.mark.parametrize("size", [None, 6])
@pytest.mark.parametrize("algorithm", ["xxh3-128", "sha-256"])
async def test_digest_and_size_are_optional(store: Store, size: int | None, algorithm: str) -> None:
    upload = await begin(store, "a", size=size, algorithm=algorithm)
    await upload.append([b"con", b"", b"ten"])

    assert (await upload.commit(None)).digest == digest_of(b"conten", algorithm)


async def test_reads_any_range(store: Store) -> None:
    await put(store, "a", b"0123456789")
    reader = await store.open("a")

    assert await reader.read(2, 3) == b"234"
    assert await reader.read(8, 10) == b"89"
    assert await reader.read(10, 1) == await reader.read(99, 1) == await reader.read(0, 0) == b""
    await reader.close()
    await reader.close()


async def test_an_open_file_stays_as_it_was(store: Store) -> None:
    await put(store, "a", b"old" * 1000)
    overwritten = await store.open("a")
    await put(store, "a", b"new")
    deleted = await store.open("a")
    await store.delete("a")

    for reader, content in ((overwritten, b"old" * 1000), (deleted, b"new")):
        try:
            assert await reader.read(0, 5000) == content
        except Changed:
            assert not store.keeps_opened
        await reader.close()


async def test_unfinished_uploads_are_invisible(store: Store) -> None:
    upload = await begin(store, "a")
    await upload.append([b"half"])

    assert not await listed(store)
    with pytest.raises(NotFound):
        await store.stat("a")
    with pytest.raises(NotFound):
        await store.open("a")
    with pytest.raises(NotFound):
        await store.delete("a")
    await upload.abort()


async def test_the_old_content_stays_until_the_commit(store: Store) -> None:
    old = await put(store, "a", b"old")
    upload = await begin(store, "a")
    await upload.append([b"new content"])
    assert await get(store, "a") == b"old"
    assert await store.stat("a") == old

    new = await upload.commit(None)
    assert await get(store, "a") == b"new content"
    assert new.etag != old.etag


async def test_the_etag_changes_with_the_content_however_fast(store: Store) -> None:
    etags = {(await put(store, "a", b"%03d" % number)).etag for number in range(50)}

    assert len(etags) == 50


@pytest.mark.parametrize("modified", [0, 1_700_000_000, 1_700_000_000.1234567, 3.5, -86400.25])
async def test_a_file_has_the_time_that_its_uploader_says(store: Store, modified: float) -> None:
    upload = await begin(store, "a", modified=1.0)
    await upload.append([b"content"])
    await upload.suspend()
    upload = await begin(store, "a", modified=modified)  # the newest one counts
    await upload.append([b"content"[upload.received :]])

    info = await upload.commit(None)
    assert info.modified == modified
    assert await store.stat("a") == info
    assert [file.modified for file in await listed(store)] == [modified] or not store.lists_all
    before = time.time()
    await store.put("a", b"new")
    now = (await store.stat("a")).modified
    assert now is not None
    assert before - 5 < now < time.time() + 5


@pytest.mark.parametrize("algorithm", ["xxh3-128", None])
async def test_the_etag_changes_though_time_and_size_do_not(store: Store, algorithm: str | None) -> None:
    etags: list[str | None] = []
    for number in range(20):
        upload = await store.begin(f"u{number}", "a", size=3, algorithm=algorithm, modified=1_700_000_000)
        await upload.append([b"%03d" % number])
        etags.append((await upload.commit(None)).etag)
        assert (await store.stat("a")).etag == etags[-1]
    assert len(set(etags)) == 20


@pytest.mark.parametrize("algorithm", ["xxh3-128", None])
async def test_a_move_keeps_the_time_and_the_etag(store: Store, algorithm: str | None) -> None:
    upload = await store.begin("u1", "a", size=7, algorithm=algorithm, modified=1_700_000_000.5)
    await upload.append([b"content"])
    info = await upload.commit(None)
    other = "../c" if "../c" in names_for(store) else "c"
    for source, target in (("a", "b"), ("b", other), (other, "a")):
        moved = await store.move(source, target, if_match=info.etag)
        assert moved == await store.stat(target) == replace(info, name=target)
    await store.put("b", b"CONTENT")
    assert (await store.stat("b")).etag != info.etag


async def test_an_upload_goes_on_where_it_stopped(store: Store) -> None:
    upload = await begin(store, "a", size=9)
    await upload.append([b"one"])
    assert upload.received == 3
    flushed_bytes = await flushed(upload)
    await upload.suspend()
    durable = await store.uploaded("u1", "a")
    assert flushed_bytes <= durable <= 3  # a store may keep more of one that is suspended

    upload = await begin(store, "a", size=9)
    assert upload.received == upload.durable == durable
    await upload.append([b"one"[durable:], b"two", b"six"])
    assert upload.received == 9
    assert await store.uploaded("u1", "a") == await flushed(upload)
    await upload.commit(digest_of(b"onetwosix"))
    assert await get(store, "a") == b"onetwosix"
    with pytest.raises(NotFound):
        await store.uploaded("u1", "a")


async def test_an_upload_is_discarded(store: Store) -> None:
    upload = await begin(store, "a", size=9)
    await upload.append([b"one"])
    durable = await flushed(upload)
    await upload.suspend()
    assert durable <= await store.discard("u1") <= 3
    for gone in (store.discard("u1"), store.uploaded("u1", "a"), store.discard("never")):
        with pytest.raises(NotFound):
            await gone

    upload = await begin(store, "b", algorithm="sha-256")  # nothing is left of it
    await upload.append([b"two"])
    durable = await flushed(upload)
    assert await store.discard("u1") == durable  # with an owner, too
    with pytest.raises(Superseded):
        await upload.append([b"three"])
    await upload.suspend()
    assert await store.sweep(-1) == 0
    await put(store, "a", b"first", upload_id="u1")
    with pytest.raises(NotFound):
        await store.discard("u1")
    assert await get(store, "a") == b"first"


async def test_a_window_of_bytes_is_enough_for_progress(store: Store) -> None:
    upload = await begin(store, "a")
    content = b"x" * (upload.window_bytes or 1)
    for count in (1, 2):
        await upload.append([content])
        assert await flushed(upload) == upload.received == count * len(content)
    await upload.append([b"end"])
    flushed_bytes = await flushed(upload)
    await upload.suspend()

    upload = await begin(store, "a")
    durable = upload.received
    assert durable >= flushed_bytes >= 2 * len(content)
    await upload.append([b"end"[durable - 2 * len(content) :]])
    await upload.commit(digest_of(content * 2 + b"end"))


async def test_after_completion_the_id_is_a_new_upload(store: Store) -> None:
    await put(store, "a", b"first", upload_id="same")
    upload = await begin(store, "b", upload_id="same")

    assert upload.received == 0
    await upload.append([b"second"])
    await upload.commit(None)
    assert await get(store, "a") == b"first"
    assert await get(store, "b") == b"second"


async def test_abort_leaves_nothing(store: Store) -> None:
    upload = await begin(store, "a")
    await upload.append([b"half"])
    await upload.abort()

    with pytest.raises(NotFound):
        await store.uploaded("u1", "a")
    again = await begin(store, "b")
    assert again.received == 0
    await again.abort()


async def test_abort_after_a_cancelled_commit_leaves_nothing(store: Store) -> None:
    for iterations in range(12):
        upload = await begin(store, "a")
        await upload.append([b"content"])
        committing = asyncio.create_task(upload.commit(None))
        for _ in range(iterations):
            await asyncio.sleep(0)
        committing.cancel()
        await asyncio.wait([committing])
        is_there = not committing.cancelled()
        await upload.abort()
        with pytest.raises(NotFound):
            await store.uploaded("u1", "a")
        found = [(info.name, info.size) for info in await listed(store)]
        # A commit that a thread has published already is cancelled too late.
        assert found == [("a", 7)] or (not found and not is_there)
        if found:
            await store.delete("a")


async def test_an_abort_after_a_failed_commit_takes_nothing_from_the_next_upload(store: Store) -> None:
    older = await begin(store, "a")
    await older.append([b"content"])
    committing = asyncio.create_task(older.commit(None))
    await asyncio.sleep(0)
    committing.cancel()
    await asyncio.wait([committing])
    if not committing.cancelled():
        return  # this store publishes at once
    newer = await begin(store, "a")
    await older.abort()
    assert newer.window_bytes or newer.received == len(b"content")
    await newer.append([b"content"[newer.received :]])
    await newer.commit(None)
    assert (await store.stat("a")).size == len(b"content")


async def test_suspend_and_abort_are_fine_after_the_end(store: Store) -> None:
    upload = await begin(store, "a")
    await upload.commit(None)
    await upload.suspend()
    await upload.abort()
    with pytest.raises(RuntimeError):
        await upload.append([b"more"])

    assert await get(store, "a") == b""


@pytest.mark.parametrize(
    "other", [{"name": "b"}, {"size": 5}, {"size": 4}, {"algorithm": "sha-256"}], ids=lambda other: next(iter(other))
)
async def test_another_upload_of_that_id_is_refused(store: Store, other: dict[str, Any]) -> None:
    upload = await begin(store, "a", size=None)
    await upload.append([b"half"])
    durable = await flushed(upload)
    wanted: dict[str, Any] = {"name": "a", "size": None, **other}

    for suspended in (False, True):
        if suspended:
            await upload.suspend()
        with pytest.raises(InvalidRequest):
            await begin(store, **wanted)
    with pytest.raises(NotFound):
        await store.uploaded("u1", "b")
    assert durable <= await store.uploaded("u1", "a") <= 4


async def test_unknown_algorithm(store: Store) -> None:
    with pytest.raises(InvalidRequest):
        await begin(store, "a", algorithm="crc32")


async def test_the_newest_upload_takes_over(store: Store) -> None:
    older = await begin(store, "a")
    await older.append([b"one"])
    durable = await flushed(older)
    newer = await begin(store, "a")
    assert newer.received == newer.durable == durable

    with pytest.raises(Superseded):
        await older.append([b"lost"])
    with pytest.raises(Superseded):
        await older.flush()
    with pytest.raises(Superseded):
        await older.commit(None)
    await older.suspend()
    await older.abort()
    await newer.append([b"one"[durable:], b"two"])
    await newer.commit(digest_of(b"onetwo"))
    assert await get(store, "a") == b"onetwo"


async def test_a_takeover_waits_for_the_append_under_way(store: Store) -> None:
    older = await begin(store, "a")
    append = asyncio.create_task(older.append([b"x" * 100_000] * 40))
    await asyncio.sleep(0)
    newer = await begin(store, "a")

    await append
    assert newer.window_bytes or newer.received == 4_000_000
    await newer.abort()


async def test_a_cancelled_append_leaves_no_write_behind(store: Store) -> None:
    chunk = b"x" * 100_000
    upload = await begin(store, "a")
    append = asyncio.create_task(upload.append([chunk] * 40))
    await asyncio.sleep(0)
    append.cancel()
    await asyncio.wait([append])
    assert append.cancelled() or (upload.window_bytes and not append.exception()), (
        "a partwise store may take it at once"
    )
    durable = await flushed(upload)

    assert await store.uploaded("u1", "a") == durable
    received = upload.received
    await upload.suspend()
    upload = await begin(store, "a")
    offset = upload.received
    assert durable <= offset <= received
    await upload.append([b"end"])
    content = (chunk * 40)[:offset] + b"end"
    await upload.commit(digest_of(content))
    assert await get(store, "a") == content


async def test_a_cancelled_commit_is_done_or_not(store: Store) -> None:
    for iterations in range(30):
        upload = await begin(store, "a")
        await upload.append([b"content"])
        commit = asyncio.create_task(upload.commit(None))
        for _ in range(iterations):
            await asyncio.sleep(0)
        commit.cancel()
        await asyncio.wait([commit])

        if await names_in(store):
            assert await get(store, "a") == b"content"
            await store.delete("a")
            with pytest.raises(NotFound):
                await store.uploaded("u1", "a")
        else:
            assert await store.uploaded("u1", "a") == 7 or upload.window_bytes
            await (await begin(store, "a")).abort()


async def test_a_wrong_digest_publishes_nothing(store: Store) -> None:
    await put(store, "a", b"old")
    upload = await begin(store, "a")
    await upload.append([b"new"])
    with pytest.raises(IntegrityError):
        await upload.commit(digest_of(b"something else"))

    assert await get(store, "a") == b"old"
    with pytest.raises(NotFound):
        await store.uploaded("u1", "a")


async def test_too_few_bytes_are_an_error(store: Store) -> None:
    upload = await begin(store, "a", size=4)
    await upload.append([b"new"])
    with pytest.raises(IntegrityError):
        await upload.commit(digest_of(b"new"))

    assert not await listed(store)


async def test_too_many_bytes_are_refused_before_they_are_stored(store: Store) -> None:
    upload = await begin(store, "a", size=4)
    await upload.append([b"abc"])
    with pytest.raises(TooLarge):
        await upload.append([b"d", b"e"])

    assert upload.received == 3
    await upload.append([b"d"])
    await upload.commit(digest_of(b"abcd"))


async def test_a_digest_of_another_algorithm_is_an_invalid_request(store: Store) -> None:
    upload = await begin(store, "a")
    await upload.append([b"abc"])
    for digest in (digest_of(b"abc", "sha-256"), "nonsense"):
        with pytest.raises(InvalidRequest):
            await upload.commit(digest)

    await upload.commit(digest_of(b"abc"))


async def test_without_overwrite(store: Store) -> None:
    first = await begin(store, "a", upload_id="u1", overwrite=False)
    second = await begin(store, "a", upload_id="u2", overwrite=False)
    await first.append([b"first"])
    await second.append([b"second"])
    info = await first.commit(None)
    with pytest.raises(AlreadyExists):
        await second.commit(None)
    with pytest.raises(AlreadyExists):
        await begin(store, "a", upload_id="u3", overwrite=False)

    assert await store.stat("a") == info
    assert await get(store, "a") == b"first"
    second = await begin(store, "a", upload_id="u2", overwrite=True)
    assert second.received == 6
    await second.commit(digest_of(b"second"))
    assert await get(store, "a") == b"second"


async def test_commits_at_once_leave_one_of_them(store: Store) -> None:
    contents = [b"%d" % number * 1000 for number in range(10)]
    infos = await asyncio.gather(*(put(store, "a", content, upload_id=f"u{n}") for n, content in enumerate(contents)))

    assert await store.stat("a") in infos
    content = await get(store, "a")
    assert content in contents
    assert (await store.stat("a")).digest == digest_of(content)


async def test_only_one_of_many_without_overwrite_wins(store: Store) -> None:
    uploads = [await begin(store, "a", upload_id=f"u{n}", overwrite=False) for n in range(8)]
    results = await asyncio.gather(*(upload.commit(None) for upload in uploads), return_exceptions=True)

    assert sum(isinstance(result, AlreadyExists) for result in results) == 7


async def test_delete(store: Store) -> None:
    info = await put(store, "a", b"content")
    with pytest.raises(Changed):
        await store.delete("a", if_match="other")

    assert await store.delete("a", if_match=info.etag) == info
    with pytest.raises(NotFound):
        await store.delete("a")
    with pytest.raises(NotFound):
        await store.stat("a")
    assert not await listed(store)


async def test_delete_if_match_never_hits_a_replacement(store: Store) -> None:
    for number in range(20):
        info = await put(store, "a", b"old %d" % number)
        upload = await begin(store, "a")
        await upload.append([b"new"])
        delete = asyncio.create_task(store.delete("a", if_match=info.etag))
        await upload.commit(None)
        try:
            await delete
        except Changed:
            pass
        assert await get(store, "a") == b"new"


async def test_move(store: Store) -> None:
    info = await put(store, "a", b"content")
    moved = await store.move("a", "b", if_match=info.etag)

    assert moved == replace(info, name="b")
    assert await store.stat("b") == moved
    assert await get(store, "b") == b"content"
    await check_listed(store, moved)
    for name, target in (("a", "c"), ("a", "a"), ("a", "b")):
        with pytest.raises(NotFound):
            await store.move(name, target)
    assert await store.published("put", "b") is None, "the upload published another name"
    assert await get(store, "b") == b"content"


async def test_a_move_over_a_file(store: Store) -> None:
    info, old = await put(store, "a", b"content"), await put(store, "b", b"old")
    reader = await store.open("b")
    with pytest.raises(Changed):
        await store.move("a", "b", if_match=old.etag)
    with pytest.raises(AlreadyExists) as caught:
        await store.move("a", "b", overwrite=False)
    assert caught.value.name == "b"
    assert (await get(store, "a"), await get(store, "b")) == (b"content", b"old")

    assert await store.move("a", "b") == replace(info, name="b")
    await check_listed(store, replace(info, name="b"))
    try:
        assert await reader.read(0, 10) == b"old"
    except Changed:
        assert not store.keeps_opened
    await reader.close()


async def test_a_move_to_the_same_name_does_nothing(store: Store) -> None:
    info = await put(store, "a", b"content")

    for overwrite in (True, False):
        assert await store.move("a", "a", overwrite=overwrite, if_match=info.etag) == info
        with pytest.raises(Changed):
            await store.move("a", "a", overwrite=overwrite, if_match="other")
    assert await store.stat("a") == info
    assert await store.published("put", "a") == info


async def test_a_file_can_be_moved_to_any_name(store: Store) -> None:
    names = names_for(store)
    if isinstance(store, ObjectStore):  # SeaweedFS makes no new file in the place of a folder
        names = [name for name in names if not any(other.startswith(f"{name}/") for other in names)]
    info = await put(store, names[-1], b"content")
    for before, name in zip(names[-1:] + names, names, strict=False):
        info = replace(info, name=name)
        assert await store.move(before, name, overwrite=False, if_match=info.etag) == info
        await check_listed(store, info)
    assert await get(store, names[-1]) == b"content"


async def test_moves_and_uploads_at_once_lose_nothing(store: Store) -> None:
    """Two files change places through a third name, again and again, while one is read, and another is replaced."""
    for name in ("a", "b", "c"):
        await put(store, name, name.encode())

    async def turn(names: str) -> None:
        for _ in range(10):
            for source, target in zip(names, names[1:] + names[0], strict=True):
                await store.move(source, target, overwrite=False)

    turns = asyncio.gather(turn("a123"), turn("b456"))
    while not turns.done():
        await put(store, "c", b"c")
        assert {await get(store, info.name) for info in await listed(store) if info.name == "c"} == {b"c"}
    await turns
    assert await names_in(store) == {"a", "b", "c"}
    for name in ("a", "b", "c"):
        assert await get(store, name) == name.encode()


async def test_of_two_moves_of_one_file_one_wins(store: Store) -> None:
    for _ in range(10):
        await put(store, "a", b"content")
        results = await asyncio.gather(store.move("a", "b"), store.move("a", "A"), return_exceptions=True)
        assert sum(isinstance(result, NotFound) for result in results) == 1
        (left,) = await listed(store)
        assert await get(store, left.name) == b"content"
        await store.delete(left.name)


async def test_list_by_prefix(store: Store) -> None:
    for name in ("a/1", "a/2", "ab", "b"):
        await put(store, name, name.encode())

    assert await names_in(store, "a/") == {"a/1", "a/2"}
    assert await names_in(store, "a") == {"a/1", "a/2", "ab"}
    assert await names_in(store, "c") == set()


async def test_a_listing_is_in_order_whatever_its_pages(store: Store) -> None:
    names = [
        *names_for(store),
        "a-b",
        "a.txt/b",
        "a/b/c",
        "a/b-c",
        "a/b.c",
        "a0",
        "b/c",
        "b/c/d",
        "dir/1",
        "dir/2/3",
        "dir/2/4",
        "dir/22",
    ]
    for number, name in enumerate(names):
        await put(store, name, b"", upload_id=f"u{number}")
    ordered = sorted(names, key=lambda name: name.encode("utf-8"))

    for limit in (1, 2, 7, 1000):
        assert [info.name for info in await listed(store, limit=limit)] == ordered
        for prefix in ("a", "a/", "a/b", "dir", "dir/", "dir/2", "dir/2/", "b/c/d", "z", "..", "\U0010ffff"):
            wanted = [name for name in ordered if name.startswith(prefix)]
            assert [info.name for info in await listed(store, prefix, limit)] == wanted
    for after in (*ordered, "a/", "dir/2/0", "~~", "\U0010ffff"):
        files = [info.name for info in (await store.list(after=after, limit=3)).files]
        assert files == [name for name in ordered if name > after][: len(files)]


async def test_what_stays_is_listed_once_while_other_files_come_and_go(store: Store) -> None:
    stays = sorted(f"{folder}/{number}" for folder in ("a", "b", "b/c", "d") for number in range(10))
    comes = [f"{name}-" for name in stays]
    for name in stays:
        await store.put(name, b"")
    found: list[str] = []
    after: str | None = ""
    step = 0
    while after is not None:
        page = await store.list("", after, 3)
        found += [info.name for info in page.files]
        after = page.after
        for name in comes[step : step + 5]:
            await store.put(name, b"")
        for name in comes[max(0, step - 10) : max(0, step - 5)]:
            await store.delete(name)
        step += 5

    assert found == sorted(set(found))
    assert [name for name in found if not name.endswith("-")] == stays


async def test_a_new_listing_has_what_is_there(store: Store) -> None:
    for number in range(30):
        await store.put(f"docs/{number:02}", b"")
        assert len(await listed(store)) == number + 1
    for number in range(30):
        await store.delete(f"docs/{number:02}")
        assert len(await listed(store, "docs/")) == 29 - number


async def test_any_name_comes_back_as_it_was(store: Store) -> None:
    names = names_for(store)
    for number, name in enumerate(names):
        await put(store, name, b"%d" % number)

    assert len(set(names)) == len(names)
    assert sorted(info.name for info in await listed(store)) == sorted(names)
    for number, name in enumerate(names):
        assert await get(store, name) == b"%d" % number
    for name in names:
        assert (await store.delete(name)).name == name
    assert not await listed(store)
    for name in invalid_names_for(store):
        for call in (store.stat(name), store.open(name), store.put(name, b""), store.delete(name), begin(store, name)):
            with pytest.raises(InvalidName):
                await call


async def test_any_upload_id_of_the_protocol(store: Store) -> None:
    ids = ["a", "A", "CON", "a.", "x" * 128, "X" * 128, "-", "_", "a.part", "a.json"]
    for number, upload_id in enumerate(ids):
        upload = await begin(store, f"{number}", upload_id=upload_id)
        await upload.append([bytes(number)])
        assert await flushed(upload) == number or upload.window_bytes
        await upload.suspend()

    for number, upload_id in enumerate(ids):
        assert await store.uploaded(upload_id, f"{number}") in (number, 0)


async def test_sweep_drops_uploads_that_got_no_bytes(store: Store) -> None:
    await put(store, "file", b"stays")
    uploads = [await begin(store, "a", upload_id=f"u{n}") for n in range(3)]
    for upload in uploads:
        await upload.append([b"half"])
        durable = await flushed(upload)
    await uploads[0].suspend()
    assert await store.sweep(3600) == 0
    assert durable <= await store.uploaded("u0", "a") <= 4

    assert await store.sweep(-1) == 3
    for number in range(3):
        with pytest.raises(NotFound):
            await store.uploaded(f"u{number}", "a")
    with pytest.raises(Superseded):
        await uploads[1].append([b"more"])
    await uploads[1].suspend()
    assert await names_in(store) == {"file"}
    assert (await begin(store, "a", upload_id="u0")).received == 0


@pytest.mark.parametrize("days", [2, -20_000])
async def test_ages_do_not_come_from_the_wall_clock(store: Store, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    owned = await begin(store, "a", upload_id="owned")
    idle = await begin(store, "b", upload_id="idle")
    await idle.suspend()
    wall, monotonic = time.time, time.monotonic
    monkeypatch.setattr(time, "time", lambda: wall() + days * 86400)
    assert await store.sweep(86400) == 0

    later = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + later)
    resumed = await begin(store, "b", upload_id="idle")
    later = 2 * 86400
    assert await store.sweep(86400) == 0, "both have an owner"
    await resumed.suspend()
    assert await store.sweep(86400) == 0
    later *= 2
    assert await store.sweep(86400) == 1
    await owned.append([b"more"])
    await owned.commit(None)


async def test_a_thread_that_writes_to_the_file_gets_the_errors_of_append(open_store: OpenStore) -> None:
    async with open_store(8) as store:
        upload = await begin(store, "a")
        file = upload.as_file()
        if file is None:
            return  # its content doesn't go to a file
        await upload.append([b"one"])
        await asyncio.to_thread(file.write, memoryview(b"two"))
        assert upload.received == upload.durable == 6
        assert file.write_from is None, "the digest must see the bytes"
        with pytest.raises(TooLarge):
            await asyncio.to_thread(file.write, memoryview(b"six"))
        newer = await begin(store, "a")
        with pytest.raises(Superseded):
            await asyncio.to_thread(file.write, memoryview(b"!"))
        assert (await newer.commit(digest_of(b"onetwo"))).size == 6

        upload = await store.begin("u2", "b", size=None, algorithm=None)
        file = upload.as_file()
        assert file is not None
        assert file.write_from is not None
        read, write = os.pipe()
        try:
            os.write(write, b"123456789")
            await asyncio.to_thread(file.write_from, read, 8)
            with pytest.raises(TooLarge):
                await asyncio.to_thread(file.write_from, read, 1)
        finally:
            os.close(read)
            os.close(write)
        await upload.commit(None)
        assert await get(store, "b") == b"12345678"


async def test_the_file_of_a_reader(store: Store) -> None:
    await put(store, "a", b"content")
    reader = await store.open("a")
    file = reader.as_file()
    if file is not None:
        assert await asyncio.to_thread(os.pread, file.descriptor, 9, 3) == b"tent"
        assert await asyncio.to_thread(file.is_same)
    await reader.close()


async def test_a_store_that_answers_at_once(store: Store) -> None:
    at_once = store.at_once
    if at_once is None:
        return  # this store always needs time
    assert at_once.known("a") is None
    with pytest.raises(NotFound):
        at_once.content("a")
    if not at_once.put_at_once("a", b"content"):
        await store.put("a", b"content")
    assert at_once.content("a") == await get(store, "a") == b"content"
    assert at_once.known("a") == await store.stat("a")


def test_a_queued_store_passes_every_call_on() -> None:
    calls = {name for name, method in vars(Store).items() if inspect.iscoroutinefunction(method)}
    assert calls <= vars(QueuedStore).keys()


async def test_the_limit_for_one_file(open_store: OpenStore) -> None:
    async with open_store(10) as store:
        with pytest.raises(TooLarge):
            await begin(store, "a", size=11)
        await put(store, "a", b"x" * 10)


async def test_closing_twice_is_fine(store: Store) -> None:
    upload = await begin(store, "a")
    await upload.append([b"half"])
    await store.close()
    await store.close()
    await upload.suspend()
