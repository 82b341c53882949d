"""Watching files: what is there, and then what changes, for each store and whoever changes it."""

import asyncio
import builtins
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rsocket.payload import Payload

from rx_client import FileClient, WatchEvent
from rx_client.operators import for_each_async, retry_backoff, to_async_iter
from rx_client.requests.watching import watch_event
from rx_client.watch import Added, Changed, Present, Ready, Removed
from server import ChatData, DirectoryStore, FileServer, Limits, serve
from server.stores.changes import Interest
from shared.errors import ProtocolError, ServerFull, StorageUnavailable
from shared.protocol.messages import ListRequest, transfer_request
from shared.protocol.metadata import MetadataItem, build_metadata
from tests.security.support import user_line, users
from tests.support import eventually


@asynccontextmanager
async def watching(
    server: FileServer, prefix: str = "", *, request_n: int = 256
) -> AsyncGenerator[AsyncIterator[WatchEvent], None]:
    async with (
        FileClient.connect(server.uri) as files,
        files.watch_files(prefix, request_n=request_n).pipe(to_async_iter()) as events,
    ):
        yield events


def named(event: WatchEvent) -> tuple[str, str]:
    """The kind, and the file's name."""
    match event:
        case Ready():
            return "Ready", ""
        case Removed(name):
            return "Removed", name
        case Present(info) | Added(info) | Changed(info):
            return type(event).__name__, info.name


async def take(events: AsyncIterator[WatchEvent], count: int) -> list[tuple[str, str]]:
    return [named(await anext(events)) for _ in range(count)]


async def until(events: AsyncIterator[WatchEvent], expected: Iterable[tuple[str, str]]) -> None:
    """Takes events until all of `expected` have come, each once, in any order."""
    missing = set(expected)
    while missing:
        event = named(await anext(events))
        assert event in missing, f"{event} is not one of {missing}"
        missing.remove(event)


@pytest.fixture(params=["memory", "directory"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[FileServer, None]:
    data = ChatData() if request.param == "memory" else ChatData(DirectoryStore(tmp_path / "root"))
    async with serve(data=data) as running:
        yield running


async def test_a_watch_has_what_is_there_and_then_every_change(server: FileServer) -> None:
    async with FileClient.connect(server.uri) as files:
        await files.upload("docs/b", b"1")
        await files.upload("docs/a", b"1")
        await files.upload("other", b"1")
        async with watching(server, "docs/") as events:
            assert await take(events, 3) == [("Present", "docs/a"), ("Present", "docs/b"), ("Ready", "")]

            await files.upload("docs/a", b"22")
            changed = await anext(events)
            assert isinstance(changed, Changed)
            assert changed.info == await files.stat("docs/a")
            await files.upload_from("docs/c", b"333")
            assert await take(events, 1) == [("Added", "docs/c")]
            await files.upload("other", b"22")
            await files.move("docs/c", "docs/d")
            await until(events, [("Removed", "docs/c"), ("Added", "docs/d")])
            await files.delete("docs/b")
            assert await take(events, 1) == [("Removed", "docs/b")]


async def test_a_slow_consumer_gets_the_newest_state_of_each_name_once(server: FileServer) -> None:
    async with FileClient.connect(server.uri) as files, watching(server, request_n=1) as events:
        assert await take(events, 1) == [("Ready", "")]
        for number in range(20):
            await files.upload("a", b"%d" % number)
            await files.upload("gone", b"x")
            await files.delete("gone")
        await files.upload("b", b"x")
        added = [await anext(events), await anext(events)]

        assert [named(event) for event in added] == [("Added", "a"), ("Added", "b")]
        assert isinstance(added[0], Added)
        assert added[0].info == await files.stat("a")
        await files.upload("a", b"last")
        assert await take(events, 1) == [("Changed", "a")]


async def test_more_changes_than_are_noted_are_found_by_a_listing(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.stores.changes._MOST_NOTED", 4)
    async with FileClient.connect(server.uri) as files, watching(server, "d/", request_n=1) as events:
        assert await take(events, 1) == [("Ready", "")]
        for number in range(12):
            await files.upload(f"d/{number}", b"x")
        await files.delete("d/3")
        await until(events, [("Added", f"d/{number}") for number in range(12) if number != 3])


def test_what_is_noted_is_bounded_whatever_it_is() -> None:
    interest = Interest(["a/", "b/"])
    for number in range(10_000):
        interest.note(f"a/{number}")
        interest.note(f"elsewhere/{number}")
    names, below = interest.take()
    assert len(names) <= 4096
    assert below == ("a/", "b/")
    for number in range(10_000):
        interest.note_below(f"a/{number}/")
    assert len(interest.take()[1]) <= 4096
    interest.note_below("a")
    assert interest.take() == ((), ("a/",))


async def test_a_user_sees_the_files_that_they_may_read(tmp_path: Path) -> None:
    allowed = users(user_line("alice", "secret", "r@public/ rwd@alice/"), user_line("bob", "secret"))
    async with (
        serve(users=allowed) as server,
        FileClient.connect(server.uri, auth=("bob", "secret")) as bob,
        FileClient.connect(server.uri, auth=("alice", "secret")) as alice,
    ):
        for name in ("alice/a", "private", "public/p"):
            await bob.upload(name, b"x")
        async with alice.watch_files().pipe(to_async_iter()) as events:
            assert await take(events, 3) == [("Present", "alice/a"), ("Present", "public/p"), ("Ready", "")]
            await bob.upload("private", b"xx")
            await bob.delete("public/p")
            assert await take(events, 1) == [("Removed", "public/p")]
        async with alice.watch_files("private").pipe(to_async_iter()) as events:
            assert await take(events, 1) == [("Ready", "")]


async def test_what_an_app_does_to_the_dictionary_is_found_by_a_listing() -> None:
    data = ChatData({"a": b"1", "b": b"1"})
    data.store.relist_seconds = 0.01
    async with serve(data=data) as server, watching(server) as events:
        assert await take(events, 3) == [("Present", "a"), ("Present", "b"), ("Ready", "")]
        assert isinstance(data.files, dict)
        data.files.update(a=b"2", c=b"2")
        del data.files["b"]
        await until(events, [("Changed", "a"), ("Added", "c"), ("Removed", "b")])


@pytest.mark.parametrize("is_reported", [True, False])
async def test_what_other_programs_do_to_a_folder_is_noticed(
    is_reported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_reported:
        hide_module(monkeypatch, "watchfiles")
        monkeypatch.setattr("server.stores.directory.notifier._POLL_SECONDS", 0.01)
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "old").write_text("1")
    async with serve(data=ChatData(DirectoryStore(root))) as server, watching(server) as events:
        assert await take(events, 2) == [("Present", "sub/old"), ("Ready", "")]

        (root / "new\n").write_text("has no valid name")
        (root / "deep" / "er").mkdir(parents=True)
        (root / "deep" / "er" / "a").write_text("1")
        assert await take(events, 1) == [("Added", "deep/er/a")]
        with (root / "deep" / "er" / "a").open("a") as file:
            file.write("2")
        assert await take(events, 1) == [("Changed", "deep/er/a")]
        os.rename(root / "deep", root / "moved")
        await until(events, [("Removed", "deep/er/a"), ("Added", "moved/er/a")])
        os.rename(root / "moved", tmp_path / "moved")
        assert await take(events, 1) == [("Removed", "moved/er/a")]
        shutil.rmtree(root / "sub")
        assert await take(events, 1) == [("Removed", "sub/old")]


def hide_module(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    """Makes its import fail, as where it isn't installed."""
    real = builtins.__import__

    def imported(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == hidden:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", imported)


async def test_a_watch_of_a_folder_that_goes_fails_and_a_retry_sees_what_comes(tmp_path: Path) -> None:
    root = tmp_path / "root"
    seen: list[tuple[str, str]] = []
    async with serve(data=ChatData(DirectoryStore(root))) as server, FileClient.connect(server.uri) as files:
        await files.upload("a", b"1")
        events = files.watch_files()
        failed = events.pipe(for_each_async(noting(seen)))
        watch = asyncio.ensure_future(awaited(failed))
        await eventually(lambda: ("Ready", "") in seen)
        os.rename(root, tmp_path / "elsewhere")
        with pytest.raises(StorageUnavailable):
            await watch

        seen.clear()
        again = asyncio.ensure_future(awaited(events.pipe(retry_backoff(attempts=50), for_each_async(noting(seen)))))
        os.rename(tmp_path / "elsewhere", root)
        await eventually(lambda: ("Ready", "") in seen)
        (root / "b").write_text("1")
        await eventually(lambda: ("Added", "b") in seen)
        again.cancel()
    assert seen == [("Present", "a"), ("Ready", ""), ("Added", "b")]


def noting(seen: list[tuple[str, str]]) -> Any:
    async def note(event: WatchEvent) -> None:
        seen.append(named(event))

    return note


async def awaited(observable: Any) -> None:
    await observable


async def test_all_watches_together_know_of_a_bounded_number_of_files() -> None:
    data = ChatData({"a": b"", "b": b"", "c": b""})
    async with serve(data=data, limits=Limits(max_watched_files=4)) as server:
        async with FileClient.connect(server.uri) as files, watching(server) as events:
            await take(events, 4)
            with pytest.raises(ServerFull, match="4 files"):
                await files.watch_files()
            await files.upload("d", b"")
            assert await take(events, 1) == [("Added", "d")]
            await files.delete("a")
            await files.upload("e", b"")
            await until(events, [("Removed", "a"), ("Added", "e")])
            await files.upload("f", b"")
            with pytest.raises(ServerFull):
                await anext(events)
        await eventually(lambda: not data.store.changes.known)


async def test_nothing_is_left_of_watches_that_have_ended(server: FileServer) -> None:
    changes = server.data.store.changes
    async with FileClient.connect(server.uri) as files:
        await files.upload("a", b"1")
        async with watching(server) as one, watching(server) as other:
            await take(one, 2)
            await take(other, 2)
            assert len(changes.watchers) == 2
        await eventually(lambda: not changes.watchers)
        assert not changes.known
        await changes.close()
        await eventually(lambda: not server.work.active)


async def test_idle_watches_hold_no_room_that_transfers_need(server: FileServer) -> None:
    async with FileClient.connect(server.uri) as files:
        content = bytes(3_000_000)
        await files.upload_from("a", content)
        seen: list[WatchEvent] = []
        watches = [files.watch_files("b").subscribe(seen.append) for _ in range(20)]
        await eventually(lambda: len(seen) == 20)
        sizes: list[int] = []
        await files.download_chunks("a", window=100).pipe(for_each_async(adding(sizes)))
        assert sum(sizes) == len(content)
        for watch in watches:
            watch.dispose()


def adding(sizes: list[int]) -> Any:
    async def add(chunk: Any) -> None:
        sizes.append(len(chunk.data))

    return add


async def test_a_server_that_closes_does_not_wait_for_its_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as server, watching(server) as events:
        await take(events, 1)
        work = server.work
        assert work.active == 1
        assert work.idle.is_set()
        async with FileClient.connect(server.uri) as files:
            await files.upload("a", b"1")
        await eventually(lambda: work.active == 1)
        assert work.idle.is_set()


@pytest.mark.parametrize("said", [{}, {"kind": "added"}, {"kind": 1}, {"kind": "changed", "name": "", "size": 1}])
async def test_an_item_that_makes_no_sense_is_a_protocol_error(said: dict[str, object]) -> None:
    metadata = build_metadata([MetadataItem(b"chat/file-transfer", repr(said).replace("'", '"').encode())])
    with pytest.raises(ProtocolError):
        watch_event(Payload(b"x", metadata))
    later = build_metadata([MetadataItem(b"chat/file-transfer", b'{"kind": "renamed"}')])
    assert watch_event(Payload(b"x", later)) is None


async def test_a_raw_request_for_a_watch_may_do_without_a_message(server: FileServer) -> None:
    async with FileClient.connect(server.uri) as files:
        request = Payload(b"", transfer_request("files.watch", None, ListRequest()))
        async with files.requests.request_stream(request, 1).pipe(to_async_iter()) as items:
            item = await anext(items)
        assert not item.data
        assert b'"kind":"ready"' in bytes(item.metadata or b"")
