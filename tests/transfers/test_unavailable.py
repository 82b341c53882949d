"""A server whose folder is gone or whose disk fails, as its clients see it, and what it logs."""

import errno
import logging
import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from reactivex import Observable
from reactivex import operators as ops

from rx_client import FileClient, Retrying, TransferEvent
from rx_client.operators import retry_backoff
from server import ChatData, DirectoryStore, FileServer, serve
from shared import Forbidden, StorageUnavailable, TransferError, is_retryable
from shared.files import disk
from tests.support import eventually
from tests.transfers.helpers import connected, content


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData(DirectoryStore(tmp_path / "store"))) as server:
        yield server
        await eventually(lambda: not server.work.active)


@pytest.fixture
async def files(server: FileServer) -> AsyncGenerator[FileClient, None]:
    async with connected(server.uri) as files:
        yield files


def requests_to(files: FileClient, folder: Path) -> list[Observable[Any]]:
    """One of each kind."""
    return [
        files.stat("a"),
        files.list_files(),
        files.download("a"),
        files.download_to("a", folder / "got"),
        files.download_chunks("a"),
        files.delete("a"),
        files.move("a", "b"),
        files.upload("a", b"x"),
        files.upload("a", bytes(3_000_000)),
        files.upload_from("a", bytes(3_000_000)),
    ]


async def test_a_folder_that_is_gone_and_back(
    files: FileClient, server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = content(2_000_000)
    await files.upload("a", data)
    (tmp_path / "store").rename(tmp_path / "away")
    for request in [*requests_to(files, tmp_path), *requests_to(files, tmp_path)]:
        with pytest.raises(StorageUnavailable) as caught:
            await request
        assert is_retryable(caught.value)
        assert str(tmp_path) not in caught.value.message
    await files.settle()
    await eventually(lambda: not server.work.active)
    lines = [record for record in caplog.records if record.name.startswith("server.stores")]
    assert len(lines) == 1
    assert not any(record.exc_info for record in caplog.records)

    events: list[TransferEvent] = []

    def put_back(event: TransferEvent) -> None:
        events.append(event)
        if isinstance(event, Retrying):
            (tmp_path / "away").rename(tmp_path / "store")

    await files.upload_from("b", data).pipe(retry_backoff(), ops.do_action(put_back))
    assert sum(isinstance(event, Retrying) for event in events) == 1
    assert await files.download("a") == await files.download("b") == data


@pytest.mark.parametrize(("number", "error"), [(errno.EIO, StorageUnavailable), (errno.EACCES, Forbidden)])
@pytest.mark.parametrize("digest", ["xxh3-128", None])
async def test_a_disk_that_fails_in_the_middle_of_a_transfer(
    files: FileClient,
    server: FileServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    error: type[TransferError],
    digest: str | None,
) -> None:
    data = content(3_000_000)
    source = tmp_path / "source"
    source.write_bytes(data)
    await files.upload_from("a", source)

    def failing(original: Callable[..., int], after: int) -> Callable[..., int]:
        calls = 0

        def call(*args: Any) -> int:
            nonlocal calls
            calls += 1
            if calls > after:
                raise OSError(number, os.strerror(number))
            return original(*args)

        return call

    with monkeypatch.context() as patch:
        if digest is None:
            patch.setattr("shared.files.part.move_from", _move_from(number))
        else:
            patch.setattr(disk, "write_at", failing(disk.write_at, 2))
        with pytest.raises(error):
            await files.upload_from("b", source, digest=digest)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", failing(os.preadv, 2))
        with pytest.raises(error):
            await files.download_to("a", tmp_path / "got", digest="sha-256")
    await files.settle()
    await eventually(lambda: not server.work.active)
    assert not any(record.exc_info for record in caplog.records if record.levelno >= logging.WARNING)
    await files.upload_from("b", source, digest=digest)
    await files.download_to("b", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == data


def _move_from(number: int) -> Callable[..., int]:
    def move_from(pipe: int, file: int, nbytes: int, offset: int, recover: Callable[[OSError], None]) -> int:
        recover(OSError(number, os.strerror(number)))
        return 0

    return move_from
