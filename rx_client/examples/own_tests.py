"""An application's own tests, without a server: faults at a byte, cancellation, and half a minute in no time.

Run them with `python -m pytest -o asyncio_mode=auto rx_client/examples/own_tests.py`. The application takes `Files`,
which a `FileClient` is as well as a `FakeFileClient`. The fake has the real client's code, and a dictionary in place of
a server. Where a test is about time, a TestScheduler counts it: `script` says when which event comes; nothing waits.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Final

import pytest
from reactivex import Observable
from reactivex import operators as ops
from reactivex.testing import TestScheduler

from .. import Completed, FileInfo, Files, Progress, Retrying, Started, StorageFull, TransferEvent
from ..operators import progress_every, retry_backoff, stall_timeout
from ..testing import FakeFileClient

# The application: a backup of a file, in words for its user


def back_up(files: Files, path: Path) -> Observable[str]:
    """Uploads a file; what is lost or stalls is tried again. Says what happens, at most once a second while it goes."""
    upload = files.upload_from(path.name, path, overwrite=False)
    return upload.pipe(stall_timeout(30), retry_backoff(3), progress_every(1), ops.flat_map(in_words))


def in_words(event: TransferEvent) -> Iterator[str]:
    match event:
        case Started(resumed_from=offset) if offset:
            yield f"goes on at byte {offset}"
        case Progress(transferred, total):
            yield f"{transferred} of {total} bytes"
        case Retrying(cause=cause):
            yield f"again, since {cause}"
        case Completed(info):
            yield f"{info.name} is safe"
        case Started():
            pass


# Its tests

DIARY: Final = b"a line a day\n" * 100


@pytest.fixture
async def files() -> AsyncGenerator[FakeFileClient]:
    fake = FakeFileClient()
    yield fake
    await fake.close()  # waits until what was given up has closed its file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "diary"
    path.write_bytes(DIARY)
    return path


async def test_a_backup_has_every_byte(files: FakeFileClient, path: Path) -> None:
    assert await back_up(files, path) == "diary is safe"
    assert files.files == {"diary": DIARY}


async def test_a_backup_goes_on_after_a_lost_connection(files: FakeFileClient, path: Path) -> None:
    files.lose_after(1000)
    said = await back_up(files, path).pipe(ops.to_list())
    assert "goes on at byte 1000" in said
    assert files.files == {"diary": DIARY}


async def test_a_full_server_is_not_asked_again(files: FakeFileClient, path: Path) -> None:
    files.refuse(StorageFull("the disk is full"), after=500)
    with pytest.raises(StorageFull):
        await back_up(files, path)
    assert len(files.served) == 1


async def test_a_user_who_gives_up_leaves_nothing_running(files: FakeFileClient, path: Path) -> None:
    files.stall(500)
    backup = back_up(files, path).subscribe()
    await files.stalled()
    assert [request.name for request in files.active] == ["diary"]
    backup.dispose()
    await asyncio.sleep(0.01)
    assert not files.active
    assert not files.files


def test_a_stall_of_half_a_minute_is_tried_again() -> None:
    scheduler, files = TestScheduler(), FakeFileClient()
    files.script("diary", (0, Started("id", 1300, 0)), (1, Progress(500, 1300)))  # and no more
    files.script(
        "diary", (0, Started("id", 1300, 500)), (1, Progress(1300, 1300)), (2, Completed(FileInfo("diary", 1300)))
    )

    said: list[tuple[float, str]] = []
    backup = back_up(files, Path("diary")).pipe(ops.do_action(lambda text: said.append((scheduler.clock, text))))
    scheduler.start(lambda: backup)

    assert said[:2] == [(201, "500 of 1300 bytes"), (231, "again, since no progress for 30 s")]  # it begins at 200
    assert [text for _, text in said[2:]] == ["goes on at byte 500", "1300 of 1300 bytes", "diary is safe"]
