"""`FileClient.blocking`: scripts, threads and user interfaces that have no event loop."""

import asyncio
import queue
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import reactivex
from reactivex import operators as ops
from reactivex.internal.exceptions import SequenceContainsNoElementsError
from reactivex.scheduler import EventLoopScheduler
from reactivex.scheduler.eventloop import AsyncIOScheduler
from reactivex.scheduler.mainloop import QtScheduler
from reactivex.scheduler.scheduler import Scheduler

from rx_client import (
    BackpressureOverflow,
    BlockingFileClient,
    ClientClosed,
    Completed,
    ConnectionFailed,
    ConnectOptions,
    DeadlineExceeded,
    FileClient,
    NotFound,
    Progress,
    Started,
    TransferEvent,
    WrongLoop,
    rate_limit,
)
from rx_client.operators import map_async, retry_backoff
from server import FileServer
from tests.operators.helpers import at_once
from tests.support import PATIENCE, eventually, server_stream_ids
from tests.transfers.helpers import CHUNK, WatchedStore, content, make_store, serving

T = TypeVar("T")

LARGE = content(60 * CHUNK)


@pytest.fixture
def store(tmp_path: Path) -> WatchedStore:
    return make_store("memory", tmp_path)


@pytest.fixture
async def server(store: WatchedStore) -> AsyncGenerator[FileServer, None]:
    async with serving(store) as server:
        await store.inner.put("a", b"content")
        await store.inner.put("large", LARGE)
        yield server


async def in_thread(function: Callable[[], T]) -> T:
    """What `function` returns in another thread, while the server runs in this one."""
    async with asyncio.timeout(PATIENCE):
        return await asyncio.to_thread(function)


async def using(server: FileServer, use: Callable[[BlockingFileClient], T]) -> T:
    """What `use` returns of a blocking client, in another thread."""

    def with_client() -> T:
        with FileClient.blocking(server.uri) as files:
            return use(files)

    return await in_thread(with_client)


class Desk(Scheduler):
    """A user interface's thread: what is scheduled, in any thread, waits until `work` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: queue.Queue[Callable[[], Any]] = queue.Queue()

    def schedule(self, action: Any, state: Any = None) -> Any:
        self.actions.put(lambda: self.invoke_action(action, state=state))
        return reactivex.disposable.Disposable()

    schedule_relative = schedule_absolute = None  # type: ignore[assignment]

    def work(self, until: Callable[[], object]) -> None:
        while not until():
            self.actions.get(timeout=PATIENCE)()


class Seen:
    """What a subscriber has heard, and in which threads."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.ends: list[Exception | None] = []
        self.threads: set[int] = set()

    def on_next(self, item: Any) -> None:
        self.threads.add(threading.get_ident())
        self.items.append(item)

    def on_error(self, error: Exception | None = None) -> None:
        self.threads.add(threading.get_ident())
        self.ends.append(error)


async def test_what_is_no_observable_is_a_type_error_at_the_call(server: FileServer) -> None:
    async def coroutine() -> None: ...

    def use(files: BlockingFileClient) -> None:
        not_called, never_awaited = files.list_files, coroutine()
        # A client has a `subscribe`, too: without a check the wait would have no end.
        for what in (files, "a", not_called, never_awaited, None):
            with pytest.raises(TypeError, match="an observable"):
                files.run(what, timeout=5)  # type: ignore[arg-type]  # pyright: ignore
            with pytest.raises(TypeError, match="an observable"):
                next(files.iterate(what))  # type: ignore[arg-type]  # pyright: ignore
            with pytest.raises(TypeError, match="an observable"):
                files.subscribe(what, scheduler=Desk())  # type: ignore[arg-type]  # pyright: ignore
        never_awaited.close()

    await using(server, use)


async def test_a_script(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(LARGE)

    def use(files: BlockingFileClient) -> None:
        assert files.run(files.download("a")) == b"content"
        done = files.run(files.upload_from("b", tmp_path / "source").pipe(retry_backoff()), timeout=60)
        assert isinstance(done, Completed)
        assert isinstance(files.run(files.download_to("b", tmp_path / "got")), Completed)
        assert (tmp_path / "got").read_bytes() == LARGE
        both = reactivex.merge(files.stat("a"), files.stat("b"))  # which belongs to no loop
        assert files.run(both.pipe(ops.timeout(60), ops.map(lambda info: info.size), ops.sum())) == len(LARGE) + 7
        assert list(files.iterate(files.list_files())) == ["a", "b", "large"]
        assert b"".join(chunk.data for chunk in files.iterate(files.download_chunks("b"))) == LARGE
        assert files.stat("a").run().size == 7
        assert files.run(files.upload_tree(tmp_path, "t").pipe(ops.count())) >= 4

    await using(server, use)


async def test_errors_are_raised(server: FileServer) -> None:
    def use(files: BlockingFileClient) -> None:
        with pytest.raises(NotFound):
            files.run(files.download("missing"))
        with pytest.raises(SequenceContainsNoElementsError):
            files.run(files.list_files(prefix="none"))
        with pytest.raises(DeadlineExceeded, match=r"within 0\.05 s"):
            files.run(reactivex.never(), timeout=0.05)
        with pytest.raises(ValueError, match="timeout"):
            files.run(reactivex.never(), timeout=0)
        items = files.iterate(reactivex.concat(files.stat("a"), files.stat("missing")))
        assert next(items).name == "a"
        with pytest.raises(NotFound):
            next(items)

    await using(server, use)
    with pytest.raises(ConnectionFailed):
        await in_thread(lambda: FileClient.blocking("tcp://127.0.0.1:1", options=ConnectOptions(connect_timeout=5.0)))
    with pytest.raises(ValueError, match="form"):
        await in_thread(lambda: FileClient.blocking("http://example.org"))


async def test_what_would_wait_for_itself_is_refused(server: FileServer) -> None:
    def use(files: BlockingFileClient) -> None:
        for call, said in (
            (lambda _: files.run(files.stat("a")), r"run\(\) would block"),
            (lambda _: files.stat("a").run(), r"run\(\) would block"),
            (lambda _: list(files.iterate(files.list_files())), r"iterate\(\) would block"),
            (lambda _: files.close(), r"close\(\) would wait"),
        ):
            with pytest.raises(WrongLoop, match=said):
                files.run(files.stat("a").pipe(ops.map(call)))
        assert files.run(files.download("a")) == b"content"

    await using(server, use)


async def test_run_works_in_the_thread_of_another_loop_as_in_a_notebook(server: FileServer) -> None:
    def use(files: BlockingFileClient) -> None:
        async def cell() -> None:
            assert files.run(files.download("a")) == b"content"
            assert len(list(files.iterate(files.list_files()))) == 2
            assert await files.stat("a").pipe(ops.map(lambda info: info.size)) == 7

        asyncio.run(cell())

    await using(server, use)


async def test_a_loop_that_is_slow_or_left_slows_or_ends_the_transfer(server: FileServer, store: WatchedStore) -> None:
    def use(files: BlockingFileClient) -> None:
        chunks = files.iterate(files.download_chunks("large", window=2))
        first = next(chunks)
        produced = _still(lambda: store.produced)
        assert len(first) == CHUNK
        assert produced <= 8 * CHUNK
        assert len(next(chunks)) == CHUNK
        chunks.close()
        for _ in files.iterate(files.download_chunks("large", window=2)):
            break
        with pytest.raises(ZeroDivisionError):
            any(1 / 0 for _ in files.iterate(files.download_chunks("large", window=2)))
        files.run(files.stat("a"))  # the cancels were sent before
        deadline = threading.Event()
        while server_stream_ids(server) and not deadline.wait(0.01):
            pass
        assert store.produced < len(LARGE)

    await using(server, use)
    await eventually(lambda: not server.work.active)


def _still(count: Callable[[], int]) -> int:
    """A count, when it has been the same for a while."""
    pause, last = threading.Event(), -1
    while (now := count()) != last:
        last = now
        pause.wait(0.1)
    return last


async def test_a_subscription_is_heard_on_the_scheduler(server: FileServer) -> None:
    def use(files: BlockingFileClient) -> None:
        desk, seen = Desk(), Seen()
        files.subscribe(files.upload_from("b", LARGE), seen.on_next, seen.on_error, seen.on_error, scheduler=desk)
        desk.work(lambda: seen.ends)
        assert seen.ends == [None]
        assert isinstance(seen.items[0], Started)
        assert isinstance(seen.items[-2], Progress)
        assert seen.items[-2].transferred == len(LARGE)
        assert isinstance(seen.items[-1], Completed)
        assert seen.threads == {threading.get_ident()}
        files.subscribe(files.stat("missing"), seen.on_next, seen.on_error, scheduler=desk)
        desk.work(lambda: len(seen.ends) == 2)
        assert isinstance(seen.ends[1], NotFound)
        files.subscribe(files.stat("missing"), scheduler=desk)
        with pytest.raises(NotFound):
            desk.work(lambda: False)
        thread = EventLoopScheduler()
        ended = threading.Event()
        files.subscribe(files.list_files(), seen.on_next, on_completed=ended.set, scheduler=thread)
        assert ended.wait(PATIENCE)
        assert len(seen.threads) == 2
        thread.dispose()

    await using(server, use)


async def test_a_user_interface_that_is_slow_slows_the_transfer(server: FileServer, store: WatchedStore) -> None:
    def use(files: BlockingFileClient) -> None:
        desk, seen = Desk(), Seen()
        subscription = files.subscribe(
            files.download_chunks("large", window=3).pipe(ops.map(lambda chunk: chunk.data)),
            *(seen.on_next, seen.on_error, seen.on_error),
            scheduler=desk,
        )
        assert _still(lambda: store.produced) <= 10 * CHUNK
        desk.work(lambda: seen.ends)
        assert b"".join(seen.items) == LARGE
        subscription.dispose()

    await using(server, use)


async def test_what_can_not_be_slowed_down_may_wait_for_a_while(server: FileServer) -> None:
    def use(files: BlockingFileClient) -> None:
        for count in (1024, 1025):
            desk, seen = Desk(), Seen()
            files.subscribe(at_once(*range(count)), seen.on_next, seen.on_error, seen.on_error, scheduler=desk)
            files.run(files.stat("a"))  # behind what was subscribed to before
            desk.work(lambda seen=seen: seen.ends)
            assert seen.items == list(range(1024))
            assert [type(end) for end in seen.ends] == [type(None) if count == 1024 else BackpressureOverflow]

    await using(server, use)


async def test_progress_that_is_late_is_replaced(server: FileServer, store: WatchedStore) -> None:
    def use(files: BlockingFileClient) -> None:
        desk, seen = Desk(), Seen()
        upload = files.upload_from("b", LARGE, chunk_size=4096)
        files.subscribe(upload, seen.on_next, seen.on_error, seen.on_error, scheduler=desk)
        while files.run(files.list_files(prefix="b").pipe(ops.count())) == 0:
            pass
        desk.work(lambda: seen.ends)
        kinds = [type(item) for item in seen.items]
        assert kinds[0] is Started
        assert kinds[-2:] == [Progress, Completed]
        assert len(kinds) <= 4, "while nothing was taken, one Progress waited"

    await using(server, use)


async def test_a_tree_waits_for_a_user_interface(server: FileServer, store: WatchedStore, tmp_path: Path) -> None:
    count = 600
    for number in range(count):
        (tmp_path / f"{number}").touch()

    def use(files: BlockingFileClient) -> None:
        desk, seen = Desk(), Seen()
        tree = files.upload_tree(tmp_path, "t", max_concurrent=2, exclude="??")
        files.subscribe(tree, seen.on_next, seen.on_error, seen.on_error, scheduler=desk)
        assert _still(lambda: len(store.began)) <= 8
        desk.work(lambda: seen.ends)
        assert seen.ends == [None]
        assert sum(isinstance(item, Completed) for item in seen.items) == count - 90

    await using(server, use)


async def test_nothing_is_heard_after_a_dispose(server: FileServer, store: WatchedStore) -> None:
    def use(files: BlockingFileClient) -> None:
        desk, seen = Desk(), Seen()
        large = files.download_chunks("large", window=8)
        subscription = files.subscribe(large, seen.on_next, seen.on_error, seen.on_error, scheduler=desk)
        desk.work(lambda: seen.items)
        subscription.dispose()
        heard = len(seen.items)
        files.run(files.stat("a"))
        while not desk.actions.empty():
            desk.actions.get()()
        assert (len(seen.items), seen.ends) == (heard, [])

        def dispose_at_the_second(chunk: object) -> None:
            seen.on_next(chunk)
            if len(seen.items) == heard + 2:
                subscription.dispose()

        subscription = files.subscribe(large, dispose_at_the_second, seen.on_error, scheduler=desk)
        desk.work(lambda: len(seen.items) == heard + 2)
        files.run(files.stat("a"))
        while not desk.actions.empty():
            desk.actions.get()()
        assert (len(seen.items), seen.ends) == (heard + 2, [])

    await using(server, use)
    await eventually(lambda: not server.work.active)


async def test_a_subscriber_that_raises_gets_its_error(server: FileServer) -> None:
    def use(files: BlockingFileClient) -> None:
        desk, seen = Desk(), Seen()
        files.subscribe(files.list_files(), lambda _: 1 / 0, seen.on_error, seen.on_error, scheduler=desk)
        desk.work(lambda: seen.ends)
        assert [type(end) for end in seen.ends] == [ZeroDivisionError]

    await using(server, use)
    await eventually(lambda: not server.work.active)


async def test_schedulers_that_belong_to_one_thread(server: FileServer) -> None:
    """RxPY's QtScheduler makes a timer in the thread that calls it, and AsyncIOScheduler isn't thread-safe either."""

    def use(files: BlockingFileClient) -> None:
        owner, timers, seen = threading.get_ident(), queue.SimpleQueue[Callable[[], None]](), Seen()

        class QtCore:
            class QTimer:
                @staticmethod
                def singleShot(_: int, function: Callable[[], None]) -> None:  # noqa: N802
                    assert threading.get_ident() == owner
                    timers.put(function)

        arguments = (seen.on_next, seen.on_error, seen.on_error)
        files.subscribe(files.list_files(), *arguments, scheduler=QtScheduler(QtCore))
        while not seen.ends:
            timers.get(timeout=PATIENCE)()
        assert (seen.items, seen.ends, timers.empty()) == (["a", "large"], [None], True)

        async def in_a_loop() -> None:
            scheduler = AsyncIOScheduler(asyncio.get_running_loop())
            files.subscribe(files.list_files(), *arguments, scheduler=scheduler)
            await eventually(lambda: len(seen.ends) == 2)

        asyncio.run(in_a_loop(), debug=True)  # which finds calls that aren't thread-safe
        assert (seen.items[2:], seen.threads) == (["a", "large"], {owner})

    await using(server, use)


async def test_a_scheduler_whose_thread_has_ended(server: FileServer) -> None:
    class Broken(Desk):
        def schedule(self, action: Any, state: Any = None) -> Any:
            raise RuntimeError("main thread is not in main loop")

    def use(files: BlockingFileClient) -> None:
        reported: list[dict[str, Any]] = []
        loop = files.scheduler._loop
        loop.call_soon_threadsafe(loop.set_exception_handler, lambda _, context: reported.append(context))
        files.subscribe(files.download_chunks("large", window=2), scheduler=Broken())
        while not reported:
            files.run(files.stat("a"))
        assert "main loop" in str(reported[0]["exception"])
        assert len(reported) == 1

    await using(server, use)
    await eventually(lambda: not server.work.active)


async def test_close_ends_everything_from_any_thread(server: FileServer, store: WatchedStore) -> None:
    def use() -> None:
        desk, seen, outcome = Desk(), Seen(), list[Exception]()
        files = FileClient.blocking(server.uri)
        files.subscribe(files.download_chunks("large", window=1), seen.on_next, seen.on_error, scheduler=desk)
        upload = files.upload_from("b", LARGE, limit=rate_limit(100_000))
        started = threading.Event()

        def run() -> None:
            try:
                files.run(upload.pipe(ops.do_action(lambda _: started.set())))
            except Exception as error:
                outcome.append(error)

        running = threading.Thread(target=run)
        running.start()
        assert started.wait(PATIENCE)
        closing = [threading.Thread(target=files.close) for _ in range(2)]
        for thread in closing:
            thread.start()
        for thread in (*closing, running):
            thread.join()
        assert [type(error) for error in outcome] == [ClientClosed]
        desk.work(lambda: seen.ends)
        assert [type(end) for end in seen.ends] == [ClientClosed]
        files.close()
        for call in (files.run, lambda source: next(files.iterate(source)), files.subscribe):
            with pytest.raises(ClientClosed):
                call(upload, **({"scheduler": desk} if call == files.subscribe else {}))
        with pytest.raises(WrongLoop):
            upload.run()

    await in_thread(use)
    await eventually(lambda: not server.work.active)


async def test_many_threads_use_one_client(server: FileServer) -> None:
    def use(files: BlockingFileClient) -> None:
        outcomes: list[object] = []

        def work(number: int) -> None:
            files.run(files.upload(f"n{number}", b"%d" % number))
            outcomes.append(files.run(files.download(f"n{number}").pipe(map_async(_same))))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(str, outcomes)) == sorted(str(b"%d" % number) for number in range(8))

    await using(server, use)


async def _same(item: bytes) -> bytes:
    await asyncio.sleep(0)
    return item


_ENDS = """
import sys
from rx_client import FileClient, Progress, Started, rate_limit

limit = rate_limit(20_000_000)
files = FileClient.blocking(sys.argv[1])
for event in files.iterate(files.upload_from("up", sys.argv[2], limit=limit)):
    if isinstance(event, Started):
        break
files.upload_from("b", sys.argv[2], limit=limit).subscribe(on_error=lambda _: None)
files.upload_from("zeros", "/dev/zero", limit=limit).subscribe(on_error=lambda _: None)
print(files.run(files.download("a")), flush=True)
if sys.argv[3] == "interrupt":
    with files:
        files.run(files.upload_from("more zeros", "/dev/zero", limit=limit))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="/dev/zero, and signals")
@pytest.mark.parametrize("how", ["end", "interrupt"])
async def test_a_process_ends_without_close_and_by_ctrl_c(
    server: FileServer, store: WatchedStore, tmp_path: Path, how: str
) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(200_000_000)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _ENDS, server.uri, str(tmp_path / "huge"), how),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        assert await process.stdout.readline() == b"b'content'\n"
        if how == "interrupt":
            await eventually(lambda: store.appended > 1_000_000)
            process.send_signal(signal.SIGINT)
        _, error = await process.communicate()
    if how == "interrupt":
        assert error.splitlines()[-1] == b"KeyboardInterrupt"
        assert process.returncode == -signal.SIGINT
    else:
        assert (process.returncode, error) == (0, b"")
    await eventually(lambda: not server.work.active)


def takes_any_events(events: "reactivex.Observable[TransferEvent]", files: BlockingFileClient) -> TransferEvent:
    return files.run(events)  # for the type checker
