"""A folder of files goes up and comes back, four at a time, each with its own retry; every byte is compared.

`merge(max_concurrent=4)` subscribes to four transfers and to the next one whenever one completes. As they are cold, the
others aren't under way yet: their files aren't even read. `retry_backoff` subscribes again to the one that failed, a
little later and on a new connection if need be, and the rest goes on meanwhile.
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
from .real_files import STANDARD_LIBRARY, files_below, python_sources, read

__all__ = ["add_options", "run"]

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
    parser.add_argument(
        "--folder",
        type=_folder,
        help="transfer every file below this one (default: the Python sources of the standard library)",
    )


async def run(context: Context) -> None:
    folder: Path = context.options.folder or STANDARD_LIBRARY
    paths = await asyncio.to_thread(lambda: files_below(folder) if context.options.folder else python_sources())
    context.say(f"{len(paths):,} files of {folder}, {_MAX_CONCURRENT} at a time")

    async with FileClient.connect(context.uri) as files:

        def upload(path: Path) -> Observable[int]:
            return read(path).pipe(
                ops.flat_map(lambda content: _with_retry(files.upload(_name(folder, path), content))),
                ops.map(lambda info: info.size),
            )

        def download_and_compare(path: Path) -> Observable[int]:
            name = _name(folder, path)

            def compare(downloaded: bytes, on_disk: bytes) -> int:
                check(downloaded == on_disk, f"{name!r} came back with other bytes than {path} has")
                return len(downloaded)

            return reactivex.zip(_with_retry(files.download(name)), read(path)).pipe(ops.starmap(compare))

        def all_of(transfer: Callable[[Path], Observable[int]], verb: str) -> Observable[_Done]:
            return reactivex.from_iterable(paths).pipe(
                ops.map(transfer),
                ops.merge(max_concurrent=_MAX_CONCURRENT),
                ops.scan(_Done.plus, _Done()),
                _show(context, verb, len(paths)),
            )

        up = await all_of(upload, "uploaded")
        down = await all_of(download_and_compare, "downloaded and compared")

    check(up == down and down.files == len(paths), f"{len(paths)} files: {up} went up, {down} came down")
    context.say(f"every byte is as on the disk: {down.files:,} files, {down.nbytes:,} bytes")


def _with_retry(transfer: Observable[T]) -> Observable[T]:
    return transfer.pipe(retry_backoff(_RETRIES, base=_FIRST_RETRY_SECONDS))


def _show(context: Context, verb: str, total: int) -> Callable[[Observable[_Done]], Observable[_Done]]:
    """Shows each percent to somebody who watches, and a few lines to a log."""
    steps = 100 if context.is_terminal else 5
    return reactivex.compose(
        ops.distinct_until_changed(lambda done: done.files * steps // total),
        ops.do_action(lambda done: context.update(f"{verb} {done.files:,}/{total:,} files, {done.nbytes:,} bytes")),
    )


def _name(folder: Path, path: Path) -> str:
    return f"{folder.name}/{path.relative_to(folder).as_posix()}"


def _folder(text: str) -> Path:
    folder = Path(text).resolve()
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    if not files_below(folder):
        raise argparse.ArgumentTypeError(f"there are no files below {text!r}")
    return folder
