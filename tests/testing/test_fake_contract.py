"""`FakeFileClient` does what the real client does: the same scenario gives the same events, results and errors."""

import asyncio
import gc
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from reactivex import Observable
from reactivex import operators as ops

from rx_client import Completed, Connected, Disconnected, Failed, FileClient, Files, Progress, Started
from rx_client.client import Client
from rx_client.operators import for_each_async, map_async, retry_backoff
from rx_client.testing import FakeFileClient
from server import ChatData, serve
from shared import FileInfo
from tests.support import eventually
from tests.transfers.helpers import QUICK, content

CHUNK = 1000
DATA = content(10 * CHUNK + 123)


@dataclass
class World:
    """A client, real or not, and what its server has.

    Attributes:
        lose: Ends the connection.
        folder: An empty folder.
        open: How many requests are under way at the server.
    """

    files: FileClient
    stored: dict[str, bytes]
    lose: Callable[[], None]
    folder: Path
    open: Callable[[], int]


Scenario = Callable[[World], Awaitable[object]]
scenarios: list[Scenario] = []


def scenario(function: Scenario) -> Scenario:
    scenarios.append(function)
    return function


@pytest.mark.parametrize("play", scenarios, ids=lambda each: each.__name__)
async def test_the_fake_does_what_the_real_client_does(
    play: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RXFILES_STATE", str(tmp_path / "state"))
    folders = [tmp_path / "real", tmp_path / "fake"]
    for folder in folders:
        folder.mkdir()
    stored = {"a": DATA, "empty": b"", "b/c": b"below", "b/d": b"below, too"}

    data = ChatData(dict(stored))
    async with serve(data=data) as server, FileClient.connect(server.uri, options=QUICK) as files:

        def lose() -> None:
            for transport in list(server._connections):
                transport.abort()

        assert isinstance(data.files, dict)
        real = World(files, data.files, lose, folders[0], lambda: server.work.active)
        real_result = _comparable(await play(real))
        await eventually(lambda: server.work.active == 0)

    fake = FakeFileClient(stored)
    fake_result = _comparable(await play(World(fake, fake.files, fake.lose, folders[1], lambda: len(fake.active))))
    await eventually(lambda: not fake.active)
    await fake.settle()

    assert fake_result == real_result
    assert fake.files == data.files
    assert _tree(folders[1]) == _tree(folders[0])


def _comparable(seen: object) -> object:
    """Without what differs between any two runs."""
    match seen:
        case list() | tuple():
            return [_comparable(each) for each in seen]
        case Completed(info):
            return Completed(_comparable(info))  # type: ignore[arg-type]
        case FileInfo(modified=float() as modified) if modified > 1e9:
            return replace(seen, modified=-1.0)
        case Failed(name, error):
            return [name, _comparable(error)]
        case Disconnected(cause):
            return [Disconnected, type(cause)]
        case OSError(errno=int() as number):
            return [type(seen), number]
        case Exception():
            return [type(seen), str(seen), getattr(seen, "name", None)]
        case _:
            return seen


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


async def story(*observables: Observable[Any]) -> list[object]:
    """What each of them emits, and its error; of the progress in between, which depends on the time, only the last."""
    told: list[object] = []
    for observable in observables:
        try:
            await observable.pipe(ops.do_action(told.append))
        except Exception as error:
            told.append(error)
    return [each for at, each in enumerate(told) if not (isinstance(each, Progress) and _is_progress(told[at + 1 :]))]


def _is_progress(rest: list[object]) -> bool:
    return bool(rest) and isinstance(rest[0], Progress)


# Whole files


@scenario
async def whole_files(world: World) -> object:
    files = world.files
    up = await story(files.upload("new", b"content"), files.upload("a", b""), files.upload("", b"x"))
    down = await story(files.download("new"), files.download("a"), files.download("missing"), files.download("\0"))
    return [up, down, await story(files.stat("new"), files.stat("empty"), files.stat("missing"))]


@scenario
async def whole_files_of_several_frames(world: World) -> object:
    large = content(2_500_000)
    up = await story(world.files.upload("large", large))
    return [up, await world.files.download("large") == large]


@scenario
async def listings(world: World) -> object:
    files = world.files
    world.stored |= {"ä": b"", "B": b"1", "z": b"22"}
    return [
        await story(files.list_files(1)),
        await story(files.list_files(prefix="b/")),
        await story(files.list_files(prefix="b/", details=True)),
        await story(files.list_files(prefix="nothing")),
        await story(files.list_files().pipe(ops.take(2))),
    ]


@scenario
async def deletes(world: World) -> object:
    files = world.files
    etag = (await files.stat("a")).etag
    wrong = await story(files.delete("missing"), files.delete("a", if_match="other"))
    return [wrong, await story(files.delete("a", if_match=etag), files.delete("a"), files.delete("empty"))]


@scenario
async def moves(world: World) -> object:
    files = world.files
    etag = (await files.stat("a")).etag
    wrong = await story(
        files.move("missing", "x"),
        files.move("a", "empty", overwrite=False),
        files.move("a", "x", if_match="other"),
        files.move("a", "\n"),
    )
    right = await story(files.move("a", "x", if_match=etag), files.move("a", "x", if_match=etag), files.move("x", "x"))
    return [wrong, right, await story(files.move("x", "empty"), files.stat("empty"))]


# Transfers


@scenario
async def uploads_of_all_sources(world: World) -> object:
    path = world.folder / "source"
    path.write_bytes(DATA)
    os.utime(path, (1000, 1000))

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(DATA), 700):
            yield DATA[at : at + 700]

    uploads = [
        world.files.upload_from("up", source, upload_id=f"id{number}", chunk_size=CHUNK, window=1)
        for number, source in enumerate(
            (path, DATA, [DATA, b"more"], pieces(), b"", world.files.list_files().pipe(ops.map(str.encode)))
        )
    ]
    return await story(*uploads)


@scenario
async def uploads_with_options(world: World) -> object:
    upload_from = world.files.upload_from
    return await story(
        upload_from("a", b"new", overwrite=False, upload_id="x"),
        upload_from("new", b"new", overwrite=False, digest="sha-256", modified=5.0, upload_id="x"),
        upload_from("new", b"newer", digest=None, upload_id="x"),
        upload_from("new", b"newer", size=7, upload_id="x"),
        upload_from("new", [b"newer"], size=7, upload_id="x"),
        upload_from("new", world.folder / "missing", upload_id="x"),
        upload_from("new", world.folder, upload_id="x"),
        upload_from("\r", b"", upload_id="x"),
    )


@scenario
async def downloads(world: World) -> object:
    files, path = world.files, world.folder / "target"
    written = bytearray()

    class Writer:
        async def write(self, data: bytes) -> None:
            written.extend(data)

    told = await story(
        files.download_to("a", path),
        files.download_to("empty", path),
        files.download_to("a", Writer(), offset=9 * CHUNK),
        files.download_to("a", path, digest="sha-256"),
        files.download_to("b/c", path, digest=None),
        files.download_to("missing", path),
        files.download_to("a", world.folder),
        files.download_to("a", Writer(), offset=len(DATA) + 1),
    )
    return [told, bytes(written) == DATA[9 * CHUNK :]]


@scenario
async def ranges(world: World) -> object:
    files = world.files
    etag = (await files.stat("a")).etag

    def seen(chunks: Observable[Any]) -> Observable[Any]:
        return chunks.pipe(ops.map(lambda chunk: (chunk.offset, bytes(chunk.data))))

    return await story(
        seen(files.download_chunks("a", 5000, 100, if_match=etag)),
        seen(files.download_chunks("a", len(DATA))),
        seen(files.download_chunks("a", 10_000, 1_000_000, digest="sha-256")),
        seen(files.download_chunks("empty")),
        seen(files.download_chunks("a", len(DATA) + 1)),
        seen(files.download_chunks("a", if_match="other")),
        seen(files.download_chunks("missing")),
    )


@scenario
async def chunks_for_a_slow_consumer(world: World) -> object:
    world.stored["large"] = large = content(1_500_000)
    seen: list[bytes] = []

    async def consume(chunk: Any) -> None:
        await asyncio.sleep(0)
        seen.append(bytes(chunk.data))

    count = await world.files.download_chunks("large", window=1).pipe(for_each_async(consume))
    return [count, b"".join(seen) == large, [len(each) for each in seen]]


@scenario
async def trees(world: World) -> object:
    files, here = world.files, world.folder / "here"
    (here / "sub").mkdir(parents=True)
    (here / "one").write_bytes(b"1")
    (here / "sub" / "two").write_bytes(b"22")
    for path in (here / "one", here / "sub" / "two"):
        os.utime(path, (1000, 1000))
    world.stored |= {"tree/../x": b"outside", "tree/one": b"old"}

    def named(tree: Observable[Any]) -> Observable[Any]:
        shown = ops.map(lambda event: replace(event, upload_id=None) if isinstance(event, Started) else event)
        return tree.pipe(shown)

    up = await story(named(files.upload_tree(here, "tree", max_concurrent=1, overwrite=False)))
    down = await story(
        named(files.download_tree("tree", world.folder / "there", max_concurrent=1)),
        named(files.download_tree("tree", world.folder / "there", max_concurrent=1, overwrite=False)),
    )
    return [sorted(map(repr, map(_comparable, up))), down]


# Resuming


def _breaking(world: World) -> Callable[[int], AsyncIterator[bytes]]:
    """A source during whose first reading the connection is lost, with five chunks at the server."""
    begun: list[int] = []

    async def read(offset: int) -> AsyncIterator[bytes]:
        begun.append(offset)
        for at in range(offset, len(DATA), CHUNK):
            if len(begun) == 1 and at >= 6 * CHUNK:
                world.lose()
                await asyncio.sleep(60)
            yield DATA[at : at + CHUNK]

    return read


@scenario
async def an_upload_that_is_retried(world: World) -> object:
    upload = world.files.upload_from("up", _breaking(world), upload_id="x", size=len(DATA), chunk_size=CHUNK, window=1)
    told = await story(upload.pipe(retry_backoff(base=0.01)))
    assert sum(isinstance(each, Started) for each in told) == 2
    return [told[0], told[-1]]


@scenario
async def an_upload_that_goes_on_by_its_id(world: World) -> object:
    first = world.files.upload_from("up", _breaking(world), upload_id="x", size=len(DATA), chunk_size=CHUNK, window=1)
    lost = await story(first)
    goes_on = await story(world.files.upload_from("up", DATA, upload_id="x", chunk_size=CHUNK, window=1))
    other = await story(world.files.upload_from("up", DATA, upload_id="x", chunk_size=CHUNK, window=1))
    assert isinstance(goes_on[0], Started)
    assert goes_on[0].resumed_from >= 4 * CHUNK
    return [lost[0], type(lost[-1]), replace(goes_on[0], resumed_from=0), goes_on[1:], other]


@scenario
async def an_upload_that_a_newer_one_takes_over(world: World) -> object:
    waits = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DATA[:CHUNK]
        await waits.wait()

    begun: list[object] = []
    old = world.files.upload_from("up", slow(), upload_id="x", size=len(DATA), chunk_size=CHUNK)
    first = asyncio.ensure_future(story(old.pipe(ops.do_action(begun.append))))
    await eventually(lambda: len(begun) == 2)
    second = await story(world.files.upload_from("up", DATA, upload_id="x", chunk_size=CHUNK, window=1))
    return [await first, second]


@scenario
async def an_upload_that_is_resumed_with_other_bytes(world: World) -> object:
    lost = world.files.upload_from("up", _breaking(world), upload_id="x", size=len(DATA), chunk_size=CHUNK, window=1)
    await story(lost)
    other = bytes(len(DATA))
    wrong = await story(world.files.upload_from("up", other, upload_id="x", chunk_size=CHUNK, window=1))
    again = await story(world.files.upload_from("up", other, upload_id="x", chunk_size=CHUNK, window=1))
    return [type(wrong[-1]), again]


@scenario
async def an_upload_id_in_use_for_another_file(world: World) -> object:
    await story(
        world.files.upload_from("up", _breaking(world), upload_id="x", size=len(DATA), chunk_size=CHUNK, window=1)
    )
    return await story(world.files.upload_from("other", DATA, upload_id="x"))


@scenario
async def an_upload_that_is_discarded(world: World) -> object:
    waits, begun = asyncio.Event(), list[object]()

    async def slow() -> AsyncIterator[bytes]:
        yield DATA[:CHUNK]
        await waits.wait()

    upload = world.files.upload_from("up", slow(), upload_id="x", size=len(DATA), chunk_size=CHUNK)
    uploading = asyncio.ensure_future(story(upload.pipe(ops.do_action(begun.append))))
    await eventually(lambda: len(begun) == 2)
    discarded = await story(world.files.discard("x"), world.files.discard("x"))
    return [discarded, await uploading, await story(world.files.upload_from("other", b"new", upload_id="x"))]


@scenario
async def uploads_that_are_remembered(world: World) -> object:
    path = world.folder / "source"
    path.write_bytes(DATA)
    os.utime(path, (1000, 1000))

    def upload() -> Observable[Any]:
        return world.files.upload_from("up", path, remember=True, chunk_size=CHUNK, window=1)

    one = await upload().pipe(ops.take_while(lambda event: not isinstance(event, Progress), inclusive=True))
    assert isinstance(one, Progress)
    await world.files.settle()
    seen = await upload().pipe(ops.to_list())
    assert isinstance(seen[0], Started)
    return [seen[0].resumed_from > 0, seen[-1]]


@scenario
async def downloads_that_leave_no_part(world: World) -> object:
    world.stored["large"] = content(1_500_000)
    download = world.files.download_to("large", world.folder / "target", keep_part=False)
    return [await story(download.pipe(ops.take(1)), world.files.download_to("a", world.folder / "a", keep_part=False))]


@scenario
async def a_download_that_is_retried(world: World) -> object:
    world.stored["large"] = content(1_500_000)
    is_lost = False
    written = bytearray()

    class Writer:
        async def write(self, data: bytes) -> None:
            nonlocal is_lost
            written.extend(data)
            if len(written) > 500_000 and not is_lost:
                is_lost = True
                world.lose()

    told = await story(world.files.download_to("large", Writer(), window=1).pipe(retry_backoff(base=0.01)))
    assert sum(isinstance(each, Started) for each in told) == 2
    return [told[0], told[-1], bytes(written) == world.stored["large"]]


@scenario
async def a_download_of_a_file_that_changed(world: World) -> object:
    world.stored["large"] = content(1_500_000)
    path = world.folder / "target"
    first = await story(world.files.download_to("large", path).pipe(ops.take(2), ops.ignore_elements()))
    await world.files.settle()  # the part isn't in use any more
    world.stored["large"] = content(1_400_000, seed=1)
    return [type(first[-1]), await story(world.files.download_to("large", path))]


# Cold, cancelled, lost


@scenario
async def what_is_not_subscribed_to_does_nothing(world: World) -> object:
    files = world.files
    made = [files.upload("x", b""), files.delete("a"), files.upload_from("x", b""), files.move("a", "x")]
    await asyncio.sleep(0)
    return [len(made), sorted(world.stored), world.open()]


@scenario
async def a_dispose_is_a_cancel(world: World) -> object:
    waits = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DATA[:CHUNK]
        await waits.wait()

    seen: list[object] = []
    upload = world.files.upload_from("up", slow(), upload_id="x", size=len(DATA), chunk_size=CHUNK)
    subscription = upload.subscribe(seen.append, seen.append)
    await eventually(lambda: len(seen) == 2 and world.open() == 1)
    subscription.dispose()
    await eventually(lambda: world.open() == 0)
    world.stored["large"] = content(1_500_000)
    held = asyncio.Event()
    chunks: list[object] = []
    subscription = (
        world.files.download_chunks("large", window=1)
        .pipe(map_async(lambda _: held.wait(), 1))
        .subscribe(chunks.append)
    )
    await eventually(lambda: world.open() == 1)
    subscription.dispose()
    await eventually(lambda: world.open() == 0)
    return [seen, chunks]


@scenario
async def a_lost_connection_and_the_next_one(world: World) -> object:
    states: list[object] = []
    watching = world.files.connection_state().subscribe(states.append)
    world.lose()
    await eventually(lambda: len(states) == 2)
    assert isinstance(states[0], Connected)
    stat = await story(world.files.stat("empty"))
    watching.dispose()
    return [states, stat]


@scenario
async def a_client_that_is_closed(world: World) -> object:
    waits = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DATA[:CHUNK]
        await waits.wait()

    states, begun = list[object](), list[object]()
    upload = world.files.upload_from("up", slow(), upload_id="x", size=len(DATA), chunk_size=CHUNK)
    uploading = asyncio.ensure_future(story(upload.pipe(ops.do_action(begun.append))))
    watching = asyncio.ensure_future(story(world.files.connection_state().pipe(ops.do_action(states.append))))
    await eventually(lambda: len(begun) == 2 and states)
    await world.files.close()
    await world.files.close()
    return [await uploading, await watching, await story(world.files.stat("a"), world.files.upload_from("x", b""))]


@scenario
async def arguments_that_are_wrong(world: World) -> object:
    files: Any = world.files
    calls: list[Callable[[], object]] = [
        lambda: files.upload("x", "text"),
        lambda: files.upload(1, b""),
        lambda: files.upload_from("x", object()),
        lambda: files.upload_from("x", b"", chunk_size=0),
        lambda: files.upload_from("x", b"", upload_id="../x"),
        lambda: files.upload_from("x", b"", digest="md5"),
        lambda: files.download_to("x", 5),
        lambda: files.download_chunks("x", window=0),
        lambda: files.list_files(0),
        lambda: files.stat("x", deadline=0),
        lambda: files.discard(".."),
        lambda: files.upload_from("x", b"", remember=True),
        lambda: files.upload_tree("x", max_concurrent=0),
    ]
    told: list[object] = []
    for call in calls:
        try:
            told.append(call())
        except (TypeError, ValueError) as error:
            told.append(error)
    return told


@scenario
async def deadlines(world: World) -> object:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    return await story(world.files.upload_from("up", never(), deadline=0.05, upload_id="x").pipe(ops.ignore_elements()))


# The types


def test_the_protocol_has_the_methods_of_the_client_as_they_are() -> None:
    """So that what takes `Files` can do all that the client can."""
    public = {name for name in vars(Client) if not name.startswith("_")} - {"requests"}
    assert {name for name in vars(Files) if not name.startswith("_")} == public
    for name in public - {"scheduler", "list_files"}:
        assert inspect.signature(getattr(Files, name)) == inspect.signature(getattr(Client, name)), name


async def test_a_fake_that_is_dropped_leaves_nothing() -> None:
    files = FakeFileClient({"a": b"content"})
    assert await files.download("a") == b"content"
    del files
    gc.collect()
