"""Uploads that are remembered on this computer: the next run goes on, and nothing else is left of them."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import reactivex
from reactivex import operators as ops

from rx_client import Completed, FileClient, Progress, Started, parse_uri, rate_limit
from rx_client.transfers.remembered import state_folder
from server import ChatData, DirectoryStore, FileServer, serve
from shared.errors import AlreadyExists, Superseded
from tests.support import PATIENCE, eventually

from .helpers import QUICK, Recorder, connected, content

CONTENT = content(6_000_000)

# Uploads a file as a script does, and dies in the middle of it.
_DIES = """
import asyncio, os, sys
from rx_client import FileClient, Progress

async def main(uri, path):
    async with FileClient.connect(uri) as files:
        def die(event):
            if isinstance(event, Progress):
                os._exit(9)
        files.upload_from("a", path, remember=True, chunk_size=50_000, window=2).subscribe(die)
        await asyncio.sleep(30)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state folder."""
    monkeypatch.setenv("RXFILES_STATE", str(tmp_path / "state"))
    return tmp_path / "state" / "uploads"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData(DirectoryStore(tmp_path / "store"))) as server:
        yield server


@pytest.fixture
async def files(server: FileServer) -> AsyncGenerator[FileClient, None]:
    async with connected(server.uri, QUICK) as files:
        yield files


def records(state: Path) -> list[Path]:
    return sorted(state.iterdir()) if state.exists() else []


async def interrupted(files: FileClient, path: Path, name: str = "a", **options: bool) -> Progress:
    """Begins an upload, and disposes it when a part of it is durable."""
    part = files.upload_from(name, path, remember=True, chunk_size=50_000, window=2, **options)
    event = await part.pipe(ops.filter(lambda event: isinstance(event, Progress)), ops.take(1))
    await files.settle()
    assert isinstance(event, Progress)
    return event


async def started(files: FileClient, path: Path, name: str = "a", digest: str | None = "xxh3-128") -> Started:
    """Uploads to the end; how it began."""
    events = await files.upload_from(name, path, remember=True, digest=digest).pipe(ops.to_list())
    assert isinstance(events[-1], Completed)
    assert isinstance(events[0], Started)
    return events[0]


async def test_a_killed_process_leaves_what_the_next_one_goes_on_with(
    server: FileServer, path: Path, state: Path
) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _DIES, server.uri, str(path))
    async with asyncio.timeout(PATIENCE):
        assert await process.wait() == 9
    assert len(records(state)) == 1
    await eventually(lambda: not server.work.active)
    async with connected(server.uri, QUICK) as files:
        assert (await started(files, path)).resumed_from >= 50_000
        assert await files.download("a") == CONTENT
    assert not records(state)


async def test_another_file_time_name_or_digest_is_another_upload(
    files: FileClient, path: Path, state: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(CONTENT)
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    await interrupted(files, path)
    record = records(state)
    assert len(record) == 1
    if sys.platform != "win32":
        assert record[0].stat().st_mode & 0o077 == state.stat().st_mode & 0o077 == 0
    assert json.loads(record[0].read_bytes())["path"] == str(path)
    before = os.getcwd()
    assert (await started(files, copy)).resumed_from == 0
    assert (await started(files, path, "b")).resumed_from == 0
    assert (await started(files, path, digest=None)).resumed_from == 0
    assert records(state) == record
    os.chdir(tmp_path)
    try:
        resumed = await started(files, Path("source"))
        assert resumed.resumed_from > 0
        assert not records(state)
        await interrupted(files, path)
        os.utime(path, (0, 0))
        again = await started(files, path)
        assert (again.resumed_from, again.upload_id == resumed.upload_id) == (0, False)
    finally:
        os.chdir(before)


async def test_an_upload_that_the_server_does_not_know_starts_over_and_is_forgotten(path: Path, state: Path) -> None:
    async with serve() as server:
        _, port = parse_uri(server.uri)
        async with connected(server.uri, QUICK) as files:
            await interrupted(files, path)
    assert records(state)
    async with serve(port=port) as server, connected(server.uri, QUICK) as files:
        assert (await started(files, path)).resumed_from == 0
        assert await files.download("a") == CONTENT
    assert not records(state)


async def test_a_source_that_changes_between_two_attempts_starts_over(
    files: FileClient, path: Path, state: Path
) -> None:
    upload = files.upload_from("a", path, remember=True, chunk_size=50_000, window=2)
    await upload.pipe(ops.filter(lambda event: isinstance(event, Progress)), ops.take(1))
    await files.settle()
    path.write_bytes(CONTENT[::-1][:5_000_000])
    await upload
    assert await files.download("a") == CONTENT[::-1][:5_000_000]
    assert not records(state)


async def test_a_run_at_the_same_time_takes_over(
    server: FileServer, files: FileClient, path: Path, state: Path
) -> None:
    older = Recorder()
    files.upload_from("a", path, remember=True, limit=rate_limit(200_000)).subscribe(older)
    await older.got(Progress)
    async with connected(server.uri, QUICK) as other:
        assert (await started(other, path)).resumed_from > 0
    await older.ended()
    assert isinstance(older.error, Superseded)
    assert not records(state)


async def test_runs_that_begin_at_once_all_succeed_or_are_taken_over(
    server: FileServer, path: Path, state: Path
) -> None:
    async def one() -> object:
        async with connected(server.uri, QUICK) as files:
            return await files.upload_from("a", path, remember=True).pipe(
                ops.catch(lambda error, _: reactivex.just(error))
            )

    outcomes = await asyncio.gather(*(one() for _ in range(4)))
    assert all(isinstance(outcome, Completed | Superseded) for outcome in outcomes), outcomes
    assert any(isinstance(outcome, Completed) for outcome in outcomes)
    assert not records(state)


@pytest.mark.parametrize("garbage", [b"", b"[", b'{"upload_id": "../x"}', b'{"upload_id": 1}', b"\xff" * 100])
async def test_a_torn_record_is_none(files: FileClient, path: Path, state: Path, garbage: bytes) -> None:
    await interrupted(files, path)
    (record,) = records(state)
    record.write_bytes(garbage)
    await interrupted(files, path)
    assert records(state) == [record]
    assert (await started(files, path)).resumed_from > 0
    assert not records(state)


async def test_what_never_goes_on_is_removed_in_the_end(files: FileClient, path: Path, state: Path) -> None:
    await interrupted(files, path, "old")
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(records(state)[0], (long_ago, long_ago))
    await interrupted(files, path, "new")
    (record,) = records(state)
    assert json.loads(record.read_bytes())["name"] == "new"


async def test_a_folder_that_can_not_be_written_is_logged_once(
    files: FileClient, path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    assert (await started(files, path)).resumed_from == 0
    assert (await started(files, path, "b")).resumed_from == 0
    said = [record.getMessage() for record in caplog.records if record.name.startswith("rx_client")]
    assert len(said) == 1, said
    assert str(tmp_path / "state") in said[0]


async def test_what_is_refused_or_can_not_be_read_again_leaves_no_record(
    files: FileClient, path: Path, state: Path, tmp_path: Path
) -> None:
    await files.upload("a", b"it is there")
    with pytest.raises(AlreadyExists):
        await files.upload_from("a", path, remember=True, overwrite=False)
    with pytest.raises(FileNotFoundError):
        await files.upload_from("b", tmp_path / "missing", remember=True)
    assert not records(state)


async def test_a_tree_goes_on_with_the_files_that_were_under_way(
    files: FileClient, path: Path, state: Path, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    path.rename(tmp_path / "tree" / "a")
    tree = files.upload_tree(tmp_path / "tree", remember=True)
    await interrupted(files, tmp_path / "tree" / "a")
    assert records(state)
    first = await tree.pipe(ops.filter(lambda event: isinstance(event, Started)), ops.first())
    assert isinstance(first, Started)
    assert first.resumed_from > 0
    await files.settle()
    await tree
    assert not records(state)


async def test_what_can_not_be_remembered_is_refused_at_the_call(files: FileClient, path: Path) -> None:
    with pytest.raises(ValueError, match="one of them"):
        files.upload_from("a", path, remember=True, upload_id="mine")
    with pytest.raises(TypeError, match="path of a file"):
        files.upload_from("a", b"content", remember=True)
    given = FileClient(await files.requests.connector.connect())
    with pytest.raises(ValueError, match=r"FileClient\.connect"):
        given.upload_from("a", path, remember=True)
    with pytest.raises(ValueError, match=r"FileClient\.connect"):
        given.upload_tree(path.parent, remember=True)


def test_the_state_folder_is_the_users_or_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_folder() == Path(os.environ["RXFILES_STATE"])
    monkeypatch.delenv("RXFILES_STATE")
    assert state_folder().name == "rxfiles"
