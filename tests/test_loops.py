"""A client used from elsewhere than its event loop: from threads, from other loops, and through RxPY's own threads."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import reactivex
from reactivex import Observable
from reactivex import operators as ops
from reactivex.subject import Subject
from rsocket.payload import Payload

from rx_client import Chunk, Completed, Connected, ConnectOptions, FileClient
from rx_client.connection.managed import Connection
from rx_client.operators import (
    for_each_async,
    map_async,
    progress_every,
    retry_backoff,
    stall_timeout,
    to_async_iter,
    transfer_all,
)
from server import ChatData, FileServer, serve
from shared.errors import NotFound, TransferError, WrongLoop
from tests.support import HAS_UVLOOP, PATIENCE, RawPeer, eventually, on_uvloop, raw_server, server_stream_ids

T = TypeVar("T")

LARGE = bytes(range(256)) * 12_000


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData({"a": b"content", "large": LARGE})) as server:
        yield server


@pytest.fixture
async def files(server: FileServer) -> AsyncGenerator[FileClient, None]:
    async with FileClient.connect(server.uri) as files:
        yield files


def ask_all(files: FileClient, folder: Path) -> dict[str, tuple[Observable[Any], type]]:
    (folder / "source").write_bytes(LARGE)
    return {
        "upload": (files.upload("b", b"x"), object),
        "download": (files.download("a"), bytes),
        "list_files": (files.list_files(), str),
        "upload_from": (files.upload_from("c", folder / "source").pipe(stall_timeout(30), retry_backoff()), Completed),
        "download_to": (files.download_to("large", folder / "got").pipe(progress_every(0.1)), Completed),
        "download_chunks": (files.download_chunks("large").pipe(ops.map(len), ops.sum()), int),
        "stat": (files.stat("a", deadline=30), object),
        "requests": (files.requests.fire_and_forget(Payload(b"", b"")), type(None)),
        "connection_state": (files.connection_state().pipe(ops.take(1)), Connected),
        "map_async": (files.download_chunks("large").pipe(ops.map(len), map_async(_same), ops.last()), int),
        "transfer_all": (reactivex.of("a", "a").pipe(ops.map(files.stat), transfer_all(2), ops.count()), int),
        "of RxPY": (reactivex.merge(files.stat("a"), files.stat("a")).pipe(ops.count()), int),
    }


async def _same(item: T) -> T:
    await asyncio.sleep(0)
    return item


async def in_thread(function: Callable[[], T]) -> T:
    """What `function` returns in a thread of its own, while this loop runs."""
    async with asyncio.timeout(PATIENCE):
        return await asyncio.to_thread(function)


async def in_other_loop(make: Callable[[], Awaitable[T]]) -> T:
    """What is awaited in another thread's loop."""

    async def scenario() -> T:
        async with asyncio.timeout(PATIENCE):
            return await make()

    return await in_thread(lambda: asyncio.run(scenario()))


def subscribe_and_wait(source: Observable[Any]) -> tuple[list[Any], set[threading.Thread]]:
    """What a source emits, and in which threads; blocks this one until the end."""
    seen: list[Any] = []
    threads: set[threading.Thread] = set()
    ended = threading.Event()

    def on_error(error: Exception) -> None:
        seen.append(error)
        ended.set()

    noted = source.pipe(ops.do_action(lambda _: threads.add(threading.current_thread())))
    noted.subscribe(seen.append, on_error, ended.set)
    assert ended.wait(PATIENCE)
    return seen, threads


async def test_everything_can_be_subscribed_to_in_a_thread(files: FileClient, tmp_path: Path) -> None:
    for name, (source, kind) in ask_all(files, tmp_path).items():
        seen, threads = await in_thread(partial(subscribe_and_wait, source))
        assert isinstance(seen[-1], kind), (name, seen)
        if name not in ("transfer_all", "of RxPY"):  # whose source emits in the thread
            assert threads == {threading.main_thread()}, name


async def test_another_loops_subscriber_is_called_in_that_loop(files: FileClient, tmp_path: Path) -> None:
    for name, (source, kind) in ask_all(files, tmp_path).items():

        async def subscribe(source: Observable[Any] = source) -> tuple[Any, bool]:
            here = asyncio.get_running_loop()
            loops: list[asyncio.AbstractEventLoop] = []
            last = await source.pipe(ops.do_action(lambda _: loops.append(asyncio.get_running_loop())))
            return last, set(loops) == {here}

        last, is_here = await in_other_loop(subscribe)
        assert isinstance(last, kind), name
        assert is_here, name


async def test_everything_can_be_run_in_a_thread(files: FileClient, tmp_path: Path) -> None:
    for name, (source, kind) in ask_all(files, tmp_path).items():
        assert isinstance(await in_thread(source.run), kind), name


async def test_everything_can_be_awaited_in_another_loop(files: FileClient, tmp_path: Path) -> None:
    for name, (source, kind) in ask_all(files, tmp_path).items():

        async def wait(source: Observable[Any] = source) -> Any:
            return await source

        assert isinstance(await in_other_loop(wait), kind), name


async def test_errors_reach_other_threads_and_loops(files: FileClient) -> None:
    async def wait() -> Any:
        return await files.stat("nope")

    with pytest.raises(NotFound):
        await in_thread(files.stat("nope").run)
    with pytest.raises(NotFound):
        await in_other_loop(wait)


async def test_an_iteration_in_another_loop_keeps_its_demand(server: FileServer, files: FileClient) -> None:
    async def iterate() -> tuple[int, int]:
        nbytes = most = 0
        async with files.download_chunks("large", window=2).pipe(to_async_iter()) as chunks:
            async for chunk in chunks:
                nbytes += len(chunk)
                await asyncio.sleep(0.002)
                most = max(most, len(chunks._inbox._items))
        return nbytes, most

    nbytes, most = await in_other_loop(iterate)
    assert nbytes == len(LARGE)
    assert most <= 2


async def test_a_chunk_may_be_released_in_another_thread(files: FileClient) -> None:
    held: list[Chunk] = []
    got = 0
    ended = threading.Event()

    def on_next(chunk: Chunk) -> None:
        nonlocal got
        chunk.retain()
        got += len(chunk)
        held.append(chunk)

    def consume() -> None:
        files.download_chunks("large", window=2).subscribe(on_next, lambda _: ended.set(), ended.set)
        while not ended.wait(0.001):
            assert len(held) <= 2
            while held:
                held.pop(0).release()

    await in_thread(consume)
    assert got == len(LARGE)


async def test_demand_from_another_loop_with_an_asynchronous_consumer(files: FileClient) -> None:
    async def consume() -> int:
        return await files.download_chunks("large", window=2).pipe(for_each_async(_same))

    assert await in_other_loop(consume) == -(-len(LARGE) // 262_144)


async def test_a_dispose_in_a_thread_ends_the_request_and_silences_it(server: FileServer, files: FileClient) -> None:
    events: list[Any] = []
    chunks: list[Chunk] = []

    def hold(chunk: Chunk) -> None:
        chunk.retain()
        chunks.append(chunk)

    def subscribe_and_dispose() -> None:
        subscription = files.download_chunks("large", window=1).subscribe(hold, events.append)
        deadline = time.monotonic() + PATIENCE
        while not chunks and time.monotonic() < deadline:
            time.sleep(0.001)
        subscription.dispose()
        files.stat("a").subscribe(events.append).dispose()

    await in_thread(subscribe_and_dispose)
    await eventually(lambda: not server_stream_ids(server))
    assert len(chunks) == 1
    assert not events


async def test_a_search_box(files: FileClient) -> None:
    """Subject, debounce and switch_latest: the inner observables are subscribed to in RxPY's timer thread."""
    typed: Subject[str] = Subject()
    found: list[Any] = []
    typed.pipe(ops.debounce(0.02), ops.map(files.stat), ops.switch_latest()).subscribe(found.append, found.append)
    typed.on_next("nope")
    typed.on_next("a")
    await eventually(lambda: found)
    assert [info.name for info in found] == ["a"]
    typed.on_completed()


async def test_typed_in_another_thread_than_the_loops(files: FileClient) -> None:
    """The loop's scheduler may be used by a source that emits in any thread."""
    typed: Subject[str] = Subject()
    found: list[Any] = []
    searched = typed.pipe(
        ops.debounce(0.02, files.scheduler), ops.map(files.stat), ops.switch_latest(), stall_timeout(30)
    )
    searched.subscribe(found.append, found.append)
    await asyncio.to_thread(typed.on_next, "a")
    await eventually(lambda: found)
    assert [info.name for info in found] == ["a"]
    typed.on_completed()


async def test_a_timer(files: FileClient) -> None:
    seen: list[Any] = []
    reactivex.timer(0.01).pipe(ops.flat_map(lambda _: files.download("a"))).subscribe(seen.append, seen.append)
    await eventually(lambda: seen)
    assert seen == [b"content"]


async def test_a_thread_may_be_the_pipes_scheduler(files: FileClient) -> None:
    seen: list[Any] = []

    def ask() -> None:
        reactivex.of("a").pipe(ops.flat_map(files.download), ops.subscribe_on(files.scheduler)).subscribe(seen.append)

    await asyncio.to_thread(ask)
    await eventually(lambda: seen)
    assert seen == [b"content"]


def two_loops() -> tuple[asyncio.AbstractEventLoop, asyncio.AbstractEventLoop]:
    return asyncio.new_event_loop(), asyncio.new_event_loop()


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_loop_that_does_not_run_is_an_error_at_once(tmp_path: Path, is_closed: bool) -> None:
    """As with a fixture of a session's scope, whose loop waits while each test has one of its own."""
    first, second = two_loops()
    entered: list[Any] = []

    async def begin() -> FileClient:
        server = serve()
        await server.__aenter__()
        client = FileClient.connect(server.uri)
        files = await client.__aenter__()
        entered.extend((server, client))
        return files

    async def end() -> None:
        await entered[1].__aexit__(None, None, None)
        await entered[0].__aexit__(None, None, None)
        await asyncio.get_running_loop().shutdown_default_executor()

    files = first.run_until_complete(begin())
    if is_closed:
        first.run_until_complete(end())
        first.close()
    sources = {name: source for name, (source, _) in ask_all(files, tmp_path).items() if name != "transfer_all"}

    async def fails(name: str) -> None:
        with pytest.raises(WrongLoop, match="closed" if is_closed else r"files\.scheduler, and ops\.subscribe_on"):
            await sources[name]

    for name, source in sources.items():
        second.run_until_complete(asyncio.wait_for(fails(name), PATIENCE))
        if name != "of RxPY":
            with pytest.raises(WrongLoop):
                source.run()
        errors: list[Exception] = []
        source.subscribe(on_error=errors.append)
        assert [type(error) for error in errors] == [WrongLoop], name
    assert issubclass(WrongLoop, TransferError)
    assert issubclass(WrongLoop, RuntimeError)
    second.close()
    if not is_closed:
        first.run_until_complete(end())
        first.close()


async def test_a_loop_that_ends_ends_a_wait_elsewhere() -> None:
    """A thread that waits for a loop which has ended isn't left alone."""
    clients: list[FileClient] = []
    ready = threading.Event()

    async def stay_silent(peer: RawPeer) -> None:
        await peer.reader.read()

    async def use(uri: str) -> None:
        connection = Connection(uri, ConnectOptions())
        clients.append(FileClient(connection))
        ready.set()
        await asyncio.sleep(0.2)
        await connection.close()

    async with raw_server(stay_silent) as uri:
        thread = threading.Thread(target=lambda: asyncio.run(use(uri)))
        thread.start()
        await asyncio.to_thread(ready.wait, PATIENCE)
        with pytest.raises(TransferError):
            await in_thread(clients[0].stat("a").run)
        await asyncio.to_thread(thread.join)
        with pytest.raises(WrongLoop):
            await clients[0].stat("a")


RUNS: dict[str, Callable[[FileClient], Observable[Any]]] = {
    "a verb": lambda files: files.stat("a"),
    "a transfer": lambda files: files.upload_from("b", b"x"),
    "piped": lambda files: files.stat("a").pipe(ops.map(str)),
    "zip": lambda files: reactivex.zip(files.stat("a"), files.stat("a")),
    "combine_latest": lambda files: reactivex.combine_latest(files.stat("a"), files.stat("a")),
    "merge": lambda files: reactivex.merge(files.stat("a"), files.stat("a")),
    "concat": lambda files: reactivex.concat(files.stat("a"), files.stat("a")),
    "timer": lambda files: reactivex.timer(0.01).pipe(ops.flat_map(lambda _: files.stat("a"))),
    "map_async": lambda _: reactivex.of(1).pipe(map_async(_same)),
}


@pytest.mark.parametrize("name", RUNS)
async def test_run_in_the_loops_own_thread_is_an_error_at_once(files: FileClient, name: str) -> None:
    with pytest.raises(WrongLoop, match="await the observable"):
        RUNS[name](files).run()


@pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop isn't installed")
async def test_run_in_the_loops_own_thread_is_an_error_on_uvloop() -> None:
    """Which, unlike asyncio's loop, doesn't say in which thread it runs."""

    async def scenario() -> None:
        async with serve(data=ChatData({"a": b"content"})) as server, FileClient.connect(server.uri) as files:
            for name, make in RUNS.items():
                with pytest.raises(WrongLoop, match="await the observable"):
                    make(files).run()
                assert await make(files), name
                if name != "map_async":  # which belongs to no loop
                    assert await in_thread(make(files).run), name

    await asyncio.to_thread(on_uvloop, scenario())


Hot = Callable[[Observable[Any], Observable[Any]], Observable[Any]]

HOT: dict[str, Hot] = {
    "publish and ref_count": lambda source, _: source.pipe(ops.publish()).pipe(ops.ref_count()),
    "fluent": lambda source, _: source.publish().ref_count(),
    "share": lambda source, _: source.pipe(ops.share()),
    "replay": lambda source, _: source.pipe(ops.replay(buffer_size=1)).pipe(ops.ref_count()),
    "multicast": lambda source, _: source.pipe(ops.multicast(Subject())).pipe(ops.ref_count()),
    "auto_connect": lambda source, _: source.pipe(ops.publish()).auto_connect(),
    "merge": lambda source, other: source.pipe(ops.merge(other)),
    "concat": lambda source, other: source.pipe(ops.concat(other)),
    "plus": lambda source, other: source + other,
    "combine_latest": lambda source, other: source.pipe(ops.combine_latest(other)),
    "zip": lambda source, other: source.pipe(ops.zip(other)),
    "switch_latest": lambda source, _: source.map(lambda _: source).switch_latest(),
    "partition": lambda source, _: source.pipe(ops.partition(bool))[0],
    "slice": lambda source, _: source[1:],
    "merge of RxPY on the client's scheduler": reactivex.merge,
}


@pytest.mark.parametrize("name", HOT)
@pytest.mark.parametrize("is_elsewhere", [False, True])
async def test_hot_operators_keep_the_loops_scheduler(files: FileClient, name: str, is_elsewhere: bool) -> None:
    source = files.connection_state().pipe(ops.skip(1))  # has no item while the connection lives
    stored = HOT[name](source, files.connection_state().pipe(ops.skip(1)))
    seen: list[tuple[Exception, threading.Thread]] = []

    def subscribe() -> None:
        scheduler = files.scheduler if "RxPY" in name else None
        stored.pipe(ops.timeout(0.02)).subscribe(
            on_error=lambda error: seen.append((error, threading.current_thread())), scheduler=scheduler
        )

    if is_elsewhere:
        await asyncio.to_thread(subscribe)
    else:
        subscribe()
    await eventually(lambda: seen)
    assert [thread for _, thread in seen] == [threading.main_thread()]


async def test_a_published_transfer_is_connected_from_a_thread(server: FileServer, files: FileClient) -> None:
    published = files.upload_from("b", LARGE).pipe(ops.timeout(30), ops.publish())
    events: list[Any] = []
    published.subscribe(events.append)
    assert not server.work.started
    await asyncio.to_thread(published.connect)
    await eventually(lambda: events and isinstance(events[-1], Completed))
    assert server.data.files["b"] == LARGE
