"""A folder of files is uploaded and downloaded, four at a time, each with its own retry; every byte is compared.

`merge(max_concurrent=4)` subscribes to four transfers, and to the next one whenever one completes. As they are cold,
the others haven't begun, and their files haven't been read. `retry_backoff` subscribes again to a transfer that failed,
a little later and on a new connection if need be, while the others go on.
"""

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from .. import FileClient
from ..operators import retry_backoff
from .context import Context, check
from .real_files import STANDARD_LIBRARY, add_folder_option, files_below, python_sources, read

T = TypeVar("T")

_MAX_CONCURRENT: Final = 4
_RETRIES: Final = 2
_FIRST_RETRY_SECONDS: Final = 0.1


class _Done(NamedTuple):
    files: int = 0
    nbytes: int = 0

    def plus(self, nbytes: int) -> "_Done":
        return _Done(self.files + 1, self.nbytes + nbytes)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folder_option(parser, "the Python sources of the standard library")


async def run(context: Context) -> None:
    folder: Path = context.options.folder or STANDARD_LIBRARY
    paths = await asyncio.to_thread(lambda: files_below(folder) if context.options.folder else python_sources())
    context.say(f"{len(paths):,} files of {folder}, {_MAX_CONCURRENT} at a time")

    def name_of(path: Path) -> str:
        return f"{folder.name}/{path.relative_to(folder).as_posix()}"

    async with FileClient.connect(context.uri) as files:

        def upload(path: Path) -> Observable[int]:
            return read(path).pipe(
                ops.flat_map(lambda content: _with_retry(files.upload(name_of(path), content))),
                ops.map(lambda info: info.size),
            )

        def download_and_compare(path: Path) -> Observable[int]:
            def compare(downloaded: bytes, on_disk: bytes) -> int:
                check(downloaded == on_disk, f"{name_of(path)!r} came back with other bytes than {path} has")
                return len(downloaded)

            return reactivex.zip(_with_retry(files.download(name_of(path))), read(path)).pipe(ops.starmap(compare))

        def all_of(transfer: Callable[[Path], Observable[int]], verb: str) -> Observable[_Done]:
            def show(done: _Done) -> None:
                context.update(f"{verb} {done.files:,}/{len(paths):,} files, {done.nbytes:,} bytes")

            steps = 100 if context.is_terminal else 5
            return reactivex.from_iterable(paths).pipe(
                ops.map(transfer),
                ops.merge(max_concurrent=_MAX_CONCURRENT),
                ops.scan(_Done.plus, _Done()),
                ops.distinct_until_changed(lambda done: done.files * steps // len(paths)),
                ops.do_action(show),
            )

        up = await all_of(upload, "uploaded")
        down = await all_of(download_and_compare, "downloaded and compared")

    check(up == down and down.files == len(paths), f"{len(paths)} files: {up} went up, {down} came down")
    context.say(f"every byte is as on the disk: {down.files:,} files, {down.nbytes:,} bytes")


def _with_retry(transfer: Observable[T]) -> Observable[T]:
    return transfer.pipe(retry_backoff(_RETRIES, base=_FIRST_RETRY_SECONDS))
