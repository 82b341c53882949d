"""A caller's code, never run: `test_typing.py` has pyright check in strict mode that it gets these types.

An ignore comment without an error on its line is an error, too.
"""

import asyncio
from collections.abc import AsyncIterator
from gzip import GzipFile
from io import BytesIO
from pathlib import Path
from typing import assert_type

from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.scheduler.eventloop import AsyncIOScheduler

from rx_client import (
    Completed,
    Failed,
    FileClient,
    Files,
    Progress,
    Retrying,
    Skipped,
    Started,
    TotalProgress,
    TransferEvent,
    TreeEvent,
    rate_limit,
)
from rx_client.operators import for_each_async, from_async_iter, retry_backoff, total_progress, with_rate
from rx_client.testing import FakeFileClient
from shared import FileInfo, NotFound, is_retryable


async def uses_the_client(content: bytes) -> None:
    async with FileClient.connect("tcp://localhost:6565") as files:
        assert_type(files, FileClient)
        for anything_bytes_like in (content, bytearray(content), memoryview(content)):
            assert_type(files.upload("name", anything_bytes_like), Observable[FileInfo])
        assert_type(files.download("name"), Observable[bytes])
        assert_type(files.list_files(request_n=8), Observable[str])

        assert_type(await files.upload("name", content), FileInfo)
        assert_type(await files.download("name"), bytes)
        assert_type(await files.list_files().pipe(ops.to_list()), list[str])


def pipes(files: FileClient) -> None:
    upload = files.upload("name", b"")
    assert_type(upload.pipe(ops.retry(3), ops.timeout(5)), Observable[FileInfo])
    assert_type(upload.pipe(ops.map(lambda info: info.name), ops.retry(3), ops.timeout(5)), Observable[str])
    listing = files.list_files()
    assert_type(listing.pipe(ops.filter(lambda name: name.endswith(".csv")), ops.share()), Observable[str])
    assert_type(listing.pipe(ops.flat_map(files.download), ops.map(len)), Observable[int])
    assert_type(listing.pipe(ops.take(1), ops.to_list()), Observable[list[str]])


async def takes_text(text: str) -> None:
    print(text)


async def rows() -> AsyncIterator[int]:
    yield 1


def trees_and_operators(files: FileClient) -> None:
    limit = rate_limit(1_000_000)
    tree = files.upload_tree("folder", "prefix", each=retry_backoff(3), include=["*.csv"], limit=limit)
    assert_type(tree, Observable[TreeEvent])
    assert_type(files.download_tree("prefix", "folder", exclude=lambda name: name == "x"), Observable[TreeEvent])
    assert_type(tree.pipe(total_progress(), with_rate()), Observable[TreeEvent | TotalProgress])
    assert_type(tree.pipe(ops.map(sees_events)), Observable[str])
    assert_type(
        files.upload_from("name", "path", limit=limit).pipe(with_rate(), retry_backoff()), Observable[TransferEvent]
    )
    assert_type(from_async_iter(rows), Observable[int])
    assert_type(from_async_iter(rows).pipe(ops.map(str), for_each_async(takes_text)), Observable[int])


def takes_any_client(files: Files) -> None:
    assert_type(files.upload_from("name", b"").pipe(retry_backoff()), Observable[TransferEvent])
    assert_type(files.list_files(), Observable[str])
    assert_type(files.list_files(details=True), Observable[FileInfo])


def gives_clients(real: FileClient, fake: FakeFileClient) -> None:
    takes_any_client(real)
    takes_any_client(fake)
    fake.script("name", (0, Started(None, 10, 0)), (1.5, Progress(5, 10)), (2, NotFound("gone")))


def sees_events(event: TreeEvent) -> str:
    match event:
        case Started(upload_id, total, resumed_from):
            return f"{upload_id} {total} {resumed_from}"
        case Progress(transferred, total, name=name, bytes_per_second=rate):
            return f"{name} {transferred} {total} {rate}"
        case Retrying(attempt, delay, cause):
            return f"{attempt} {delay} {cause}"
        case Completed(info):
            return info.name
        case Failed(name, error):
            return f"{name} {error}"
        case Skipped(name, reason):
            return f"{name} {reason}"


def calls_fluent_methods(files: FileClient) -> None:
    assert_type(files.upload("name", b"").map(lambda info: info.size).retry(3).timeout(5.0), Observable[int])
    assert_type(files.download("name").map(lambda content: content.decode()), Observable[str])
    assert_type(files.list_files().filter(lambda name: name != "").flat_map(files.download), Observable[bytes])
    assert_type(files.list_files().to_list(), Observable[list[str]])


def subscribes(files: FileClient, scheduler: AsyncIOScheduler) -> abc.DisposableBase:
    def on_next(content: bytes) -> None:
        print(content)

    def on_error(error: Exception) -> None:
        if isinstance(error, NotFound):
            assert_type(error.name, str | None)
        print(is_retryable(error))

    return files.download("name").subscribe(on_next, on_error, scheduler=scheduler)


def transfers(files: FileClient, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, packed: GzipFile) -> None:
    for source in (b"bytes", "path", Path("path"), BytesIO(), packed, reader, [b"items"], memoryview(b"bytes")):
        assert_type(files.upload_from("name", source), Observable[TransferEvent])
    for sink in ("path", Path("path"), BytesIO(), packed, writer):
        assert_type(files.download_to("name", sink), Observable[TransferEvent])


def calls_wrongly(files: FileClient) -> None:
    files.upload("name", "text")  # pyright: ignore[reportArgumentType]
    files.download(b"name")  # pyright: ignore[reportArgumentType]
    files.list_files("prefix")  # pyright: ignore[reportArgumentType]
    files.download("name").map(lambda content: content.encode())  # pyright: ignore
    files.list_files().pipe(ops.map(lambda name: name.no_such_method()))  # pyright: ignore
