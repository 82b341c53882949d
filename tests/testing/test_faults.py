"""The faults and scripts of `FakeFileClient`: exactly where they were asked for, also in virtual time."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import reactivex
from reactivex import Observable
from reactivex import operators as ops
from reactivex.testing import TestScheduler

from rx_client import Completed, Connected, Disconnected, FileClient, Progress, Retrying, Started, TransferEvent
from rx_client.operators import progress_every, retry_backoff, stall_timeout, with_rate
from rx_client.testing import FakeFileClient
from shared import (
    ClientClosed,
    ConnectionFailed,
    ConnectionLost,
    FileInfo,
    IntegrityError,
    InvalidName,
    NotFound,
    PermissionDenied,
    ProtocolError,
    RemoteError,
    ServerFull,
    Stalled,
    StorageFull,
    TransferError,
    WrongLoop,
)
from tests.support import eventually
from tests.transfers.helpers import content

LARGE = content(1_000_000)


async def events_of(transfer: Observable[TransferEvent]) -> list[TransferEvent]:
    return await transfer.pipe(ops.to_list())


def retried() -> Callable[[Observable[TransferEvent]], Observable[TransferEvent]]:
    return retry_backoff(base=0.001)


@pytest.mark.parametrize("after", [1, 5, 10])
async def test_a_lost_upload_is_resumed_at_the_very_byte(after: int) -> None:
    files = FakeFileClient()
    files.lose_after(after)
    seen = await events_of(files.upload_from("a", b"0123456789", chunk_size=4).pipe(retried()))
    (retrying,) = [event for event in seen if isinstance(event, Retrying)]
    assert isinstance(retrying.cause, ConnectionLost)
    assert [event.resumed_from for event in seen if isinstance(event, Started)] == [0, after]
    assert files.files == {"a": b"0123456789"}
    assert not files.unfinished


@pytest.mark.parametrize("after", [1, 300_000, 1_000_000])
async def test_a_lost_download_is_resumed_at_the_very_byte(after: int, tmp_path: Path) -> None:
    files = FakeFileClient({"a": LARGE})
    files.lose_after(after)
    seen = await events_of(files.download_to("a", tmp_path / "a").pipe(retried()))
    assert [event.resumed_from for event in seen if isinstance(event, Started)] == [0, after]
    assert Progress(after, len(LARGE), name="a") in seen
    assert (tmp_path / "a").read_bytes() == LARGE


async def test_each_fault_happens_once_in_its_order_and_for_its_file(tmp_path: Path) -> None:
    files = FakeFileClient({"a": LARGE, "b": LARGE})
    files.lose_after(100, name="a")
    files.lose_after(200)
    files.lose_after(0)
    both = [files.download_to(name, tmp_path / name).pipe(retried()) for name in ("b", "a")]
    seen = [await events_of(each) for each in both]
    assert [event.resumed_from for event in seen[0] if isinstance(event, Started)] == [0, 200]
    assert [event.attempt for event in seen[0] if isinstance(event, Retrying)] == [1, 2]
    assert [event.resumed_from for event in seen[1] if isinstance(event, Started)] == [0, 100]


async def test_whole_files_are_lost_before_or_after_they_are_stored() -> None:
    files = FakeFileClient({"a": b"old"})
    files.lose_after(2)
    with pytest.raises(ConnectionLost):
        await files.upload("a", b"new")
    assert files.files == {"a": b"old"}
    files.lose_after(3)
    with pytest.raises(ConnectionLost):
        await files.upload("a", b"new")
    assert files.files == {"a": b"new"}
    files.lose_after(1)
    assert await files.download("a").pipe(ops.retry(2)) == b"new"
    assert [each.route for each in files.served] == ["file.upload"] * 2 + ["file.download"] * 2


async def test_everything_under_way_ends_with_the_connection() -> None:
    files, states, errors = FakeFileClient({"a": LARGE}), list[object](), list[Exception]()
    files.connection_state().subscribe(states.append)
    files.stall()
    files.stat("a").subscribe(on_error=errors.append)
    files.download_chunks("a").subscribe(on_error=errors.append)
    await files.stalled()
    files.lose()
    await eventually(lambda: [type(error) for error in errors] == [ConnectionLost, ConnectionLost])
    assert not files.active
    files.release()
    assert (await files.stat("a")).size == len(LARGE)
    assert [type(state).__name__ for state in states] == ["Connected", "Disconnected", "Connecting", "Connected"]


async def test_a_stall_holds_everything_up_until_it_is_released(tmp_path: Path) -> None:
    files, seen = FakeFileClient({"a": LARGE, "b": b"other"}), list[TransferEvent]()
    files.stall(400_000, name="a")
    downloading = asyncio.ensure_future(files.download_to("a", tmp_path / "a").pipe(ops.do_action(seen.append)))
    await files.stalled()
    await eventually(lambda: seen[-1:] == [Progress(400_000, len(LARGE), name="a")])
    assert await files.download("b") == b"other", "another file's requests go on"
    waiting = asyncio.ensure_future(_last(files.stat("a")))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert not downloading.done()
    files.release()
    assert isinstance(await downloading, Completed)
    assert (await waiting).size == len(LARGE)


async def _last(observable: Observable[Any]) -> Any:
    return await observable


async def test_a_stalled_upload_shows_what_has_arrived() -> None:
    files = FakeFileClient()
    files.stall(5)
    uploading = asyncio.ensure_future(
        _last(files.upload_from("a", [b"012", b"3456", b"789"], upload_id="x", chunk_size=3))
    )
    await files.stalled()
    assert files.unfinished == {"x": b"01234"}
    assert [tuple(each) for each in files.active] == [("file.upload", "a")]
    files.release()
    assert (await uploading).info.size == 10


async def test_a_stall_is_what_a_timeout_is_for_in_virtual_time() -> None:
    """The work is the event loop's, and the time the scheduler's: no test waits for half a minute."""
    scheduler, files, told = TestScheduler(), FakeFileClient({"a": LARGE}), list[object]()
    files.stall(400_000)
    chunks = files.download_chunks("a").pipe(stall_timeout(30), ops.ignore_elements())
    chunks.subscribe(on_error=told.append, scheduler=scheduler)
    await files.stalled()
    scheduler.advance_by(29)
    assert told == []
    scheduler.advance_by(2)
    assert [type(each) for each in told] == [Stalled]
    await eventually(lambda: not files.active)


async def test_a_stall_ends_with_the_clients_own_timeout() -> None:
    files = FakeFileClient({"a": b"content"}, progress_timeout=0.05)
    files.stall()
    with pytest.raises(Stalled):
        await files.download("a")


async def test_what_waits_for_the_end_of_a_stall_is_under_way() -> None:
    files = FakeFileClient({"a": b"content"})
    files.stall()
    asking = [asyncio.ensure_future(_last(files.stat(name))) for name in ("a", "b")]
    await eventually(lambda: len(files.active) == 2)
    assert [each.name for each in files.active] == ["a", "b"]
    files.release()
    assert (await asking[0]).size == 7
    with pytest.raises(NotFound):
        await asking[1]


def test_a_request_without_an_event_loop_is_an_error_that_says_so() -> None:
    files = FakeFileClient({"a": b"content"})
    for request in (files.download("a"), files.download_chunks("a"), files.upload_from("a", b"")):
        with pytest.raises(WrongLoop, match="no event loop runs in this thread"):
            request.run()


async def test_what_was_cancelled_while_it_was_stalled_is_not_done() -> None:
    files = FakeFileClient({"a": b"content"})
    files.stall()
    files.delete("a").subscribe().dispose()
    deleting = files.delete("a").subscribe()
    await files.stalled()
    deleting.dispose()
    await eventually(lambda: not files.active)
    files.release()
    assert (await files.stat("a")).size == 7


@pytest.mark.parametrize("error", [NotFound("gone"), ServerFull("full"), RemoteError("what a foreign server says")])
async def test_a_refusal_is_the_next_requests_error(error: TransferError) -> None:
    files = FakeFileClient({"a": b"content", "b": b""})
    files.refuse(error, name="a", times=2)
    assert await files.download("b") == b""
    for request in (files.stat("a"), files.upload_from("a", b"new")):
        with pytest.raises(type(error), match=error.message) as raised:
            await request
        assert raised.value.name == "a"
    assert await files.download("a") == b"content"


async def test_a_refusal_in_the_middle_of_a_transfer(tmp_path: Path) -> None:
    files = FakeFileClient({"a": LARGE})
    files.refuse(StorageFull("no room"), after=5)
    with pytest.raises(StorageFull):
        await files.upload_from("new", b"0123456789", upload_id="x")
    assert files.unfinished == {"x": b"01234"}
    files.refuse(PermissionDenied("not any more"), after=400_000)
    seen = list[TransferEvent]()
    with pytest.raises(PermissionDenied):
        await files.download_to("a", tmp_path / "a").pipe(ops.do_action(seen.append))
    assert seen[-1] == Progress(400_000, len(LARGE), name="a")


async def test_a_server_that_is_away_for_a_while() -> None:
    files, states = FakeFileClient({"a": b"content"}), list[object]()
    files.connection_state().subscribe(states.append)
    files.refuse(ConnectionFailed("nothing listens"), times=2)
    assert await files.download("a").pipe(ops.retry(3)) == b"content"
    assert isinstance(states[0], Connected)
    assert [type(state.cause) for state in states if isinstance(state, Disconnected)] == [
        *(ConnectionLost, ConnectionFailed, ConnectionFailed)
    ]


@pytest.mark.parametrize(
    ("order", "raised"),
    [
        (lambda files: files.lose_after(-1), ValueError),
        (lambda files: files.stall(-1), ValueError),
        (lambda files: files.refuse(NotFound("x"), times=0), ValueError),
        (lambda files: files.refuse(ProtocolError("x")), ValueError),
        (lambda files: files.refuse(OSError("x")), TypeError),
        (lambda files: files.refuse(NotFound), TypeError),
        (lambda files: files.script("\n"), InvalidName),
        (lambda files: files.script("a", Started(None, 1, 0)), TypeError),
        (lambda files: files.script("a", (1, "Started")), TypeError),
        (lambda files: files.script("a", (1, NotFound)), TypeError),
        (lambda files: files.script("a", ("1", Started(None, 1, 0))), TypeError),
        (lambda files: files.script("a", (-1, Started(None, 1, 0))), ValueError),
        (lambda files: files.script("a", (float("nan"), Started(None, 1, 0))), ValueError),
        (lambda files: FakeFileClient({"a": "text"}), TypeError),
        (lambda files: FakeFileClient({"a": 5}), TypeError),
        (lambda files: FakeFileClient({"": b""}), InvalidName),
    ],
)
def test_a_fault_that_can_not_be_is_an_error_at_once(
    order: Callable[[FakeFileClient], object], raised: type[Exception]
) -> None:
    with pytest.raises(raised):
        order(FakeFileClient())


async def test_a_file_that_is_not_bytes_fails_its_request(caplog: pytest.LogCaptureFixture) -> None:
    files = FakeFileClient()
    files.files["a"] = "text"  # type: ignore[assignment]
    with pytest.raises(TransferError, match="failed to serve"):
        await files.download_chunks("a")
    assert "the fake server failed" in caplog.text


# Scripts, in virtual time


INFO = FileInfo("a", 100)


def test_a_script_runs_in_virtual_time_without_an_event_loop() -> None:
    scheduler, files = TestScheduler(), FakeFileClient()
    files.script("a", (0, Started(None, 100, 0)), (1, Progress(50, 100)), (3, Progress(100, 100)), (3, Completed(INFO)))
    seen = scheduler.start(lambda: files.upload_from("a", "no/such/file"))
    assert [(each.time, str(each.value)) for each in seen.messages] == [
        (200, "OnNext(Started(upload_id=None, total=100, resumed_from=0, name='a'))"),
        (201, "OnNext(Progress(transferred=50, total=100, name='a'))"),
        (203, "OnNext(Progress(transferred=100, total=100, name='a'))"),
        (203, f"OnNext({Completed(INFO)})"),
        (203, "OnCompleted()"),
    ]


def test_several_scripts_are_for_the_attempts_of_a_retry() -> None:
    scheduler, files = TestScheduler(), FakeFileClient()
    files.script("a", (0, Started(None, 100, 0)), (1, Progress(50, 100)), (2, ConnectionLost("gone")))
    files.script("a", (0, Started(None, 100, 50)), (5, Progress(100, 100)), (5, Completed(INFO)))
    download = files.download_to("a", "copy").pipe(retry_backoff(base=4, jitter=0), with_rate(), progress_every(10))
    seen = scheduler.start(lambda: download)
    kinds = [type(each.value.value).__name__ for each in seen.messages[:-1]]
    assert kinds == ["Started", "Progress", "Retrying", "Started", "Progress", "Completed"]
    assert seen.messages[-1].time == 200 + 2 + 4 + 5


def test_a_script_without_an_end_stalls() -> None:
    scheduler, files = TestScheduler(), FakeFileClient()
    files.script("a", (1, Started(None, 100, 0)), (2, Progress(50, 100)))
    seen = scheduler.start(lambda: files.download_to("a", "copy").pipe(stall_timeout(30)))
    assert seen.messages[-1].time == 200 + 2 + 30
    assert isinstance(seen.messages[-1].value.exception, Stalled)


async def test_a_script_has_its_own_scheduler_or_the_loops() -> None:
    scheduler, files, seen = TestScheduler(), FakeFileClient(), list[TransferEvent]()
    files.script("a", (5, Completed(INFO)), scheduler=scheduler)
    files.script("a", (0.01, Completed(INFO)))
    files.upload_from("a", b"").subscribe(seen.append)
    scheduler.advance_by(4)
    assert seen == []
    scheduler.advance_by(1)
    assert seen == [Completed(INFO)]
    assert await files.upload_from("a", b"") == Completed(INFO)
    assert (await files.upload_from("a", b"")).info.size == 0, "after the scripts the file is transferred"
    assert files.files == {"a": b""}


def test_scripts_of_several_transfers_are_merged() -> None:
    scheduler, files = TestScheduler(), FakeFileClient()
    files.script("a", (1, Started(None, 1, 0)), (3, Completed(FileInfo("a", 1))))
    files.script("b", (2, Started(None, 1, 0)), (4, Completed(FileInfo("b", 1))))
    both = reactivex.merge(files.upload_from("a", b""), files.upload_from("b", b""))
    seen = scheduler.start(lambda: both.pipe(ops.map(lambda event: event.name)))
    assert [(each.time, each.value.value) for each in seen.messages[:-1]] == [
        *((201, "a"), (202, "b"), (203, "a"), (204, "b"))
    ]


async def test_an_application_that_connects_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeFileClient({"a": b"content"})
    monkeypatch.setattr(FileClient, "connect", lambda *_, **__: nullcontext(fake))
    async with FileClient.connect("tcp://anywhere", auth=("alice", "secret")) as files:
        assert await files.download("a") == b"content"


async def test_it_can_be_closed(tmp_path: Path) -> None:
    files = FakeFileClient({"a": LARGE})
    files.stall()
    downloading = asyncio.ensure_future(_last(files.download_to("a", tmp_path / "a")))
    await files.stalled()
    await files.close()
    with pytest.raises(ClientClosed):
        await downloading
    with pytest.raises(ClientClosed):
        await files.stat("a")
    with pytest.raises((ClientClosed, IntegrityError)):
        await files.download("a")
