"""A folder is uploaded and downloaded elsewhere, as a tree, with totals, a rate and the time left; then compared.

Four files at a time go up, each retried on its own, and one file's failure would be an event beside the others'. Both
directions share one limit, if there is one. `total_progress` sums the events of all files, `with_rate` adds the speed
and the time left, `progress_every` keeps the display calm. A second run without overwriting has nothing to do.
"""

import argparse
import asyncio
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from .. import Failed, FileClient, Skipped, TotalProgress, TreeEvent, rate_limit
from ..operators import progress_every, retry_backoff, stall_timeout, total_progress, transfer_all, with_rate
from .context import Context, check
from .real_files import STANDARD_LIBRARY, add_folder_option, files_below

_DEFAULT_FOLDER: Final = STANDARD_LIBRARY / "asyncio"
_COMPILED: Final = ("__pycache__/*", "*/__pycache__/*")
_STALL_SECONDS: Final = 30.0
_RETRIES: Final = 2
_FIRST_RETRY_SECONDS: Final = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    add_folder_option(parser, f"the sources of {_DEFAULT_FOLDER.name}")
    parser.add_argument("--limit", type=_rate, help="bytes a second, for both directions together (default: no limit)")


async def run(context: Context) -> None:
    folder: Path = context.options.folder or _DEFAULT_FOLDER
    prefix = f"mirror-{uuid.uuid4().hex[:8]}/{folder.name}"
    limit = rate_limit(context.options.limit)
    each = reactivex.compose(stall_timeout(_STALL_SECONDS), retry_backoff(_RETRIES, base=_FIRST_RETRY_SECONDS))

    with TemporaryDirectory() as elsewhere:
        async with FileClient.connect(context.uri) as files:
            upload = files.upload_tree(folder, prefix, exclude=_COMPILED, each=each, limit=limit)
            await _show(context, upload, "uploaded")
            download = files.download_tree(prefix, elsewhere, each=each, limit=limit)
            await _show(context, download, "downloaded")
            again = files.download_tree(prefix, elsewhere, overwrite=False)
            skipped = await again.pipe(ops.filter(lambda event: isinstance(event, Skipped)), ops.count())
            await files.list_files(prefix=f"{prefix}/").pipe(ops.map(files.delete), transfer_all(4), ops.count())
        compared = await asyncio.to_thread(_compare, folder, Path(elsewhere))
    check(compared == skipped, f"{compared} files came back, and a second run skips {skipped}")
    context.say(f"every byte is as on the disk, and a second run skips all {skipped} files")


async def _show(context: Context, tree: Observable[TreeEvent], verb: str) -> None:
    """Runs a tree's transfers; fails with the first file that does."""

    def show(event: TreeEvent) -> None:
        match event:
            case TotalProgress(transferred, total):
                speed = f", {event.bytes_per_second:,.0f} bytes a second" if event.bytes_per_second else ""
                left = f", {event.seconds_left:.0f} s left" if event.seconds_left else ""
                context.update(f"{verb} {event.completed} files, {transferred:,} of {total:,} bytes{speed}{left}")
            case Failed(name, error):
                context.say(f"{name}: {error}")
                raise error
            case Skipped(name, reason):
                context.say(f"{name} is skipped: {reason}")
            case _:
                pass

    period = 0.1 if context.is_terminal else 0.5
    await tree.pipe(total_progress(), with_rate(), progress_every(period), ops.do_action(show), ops.count())
    context.end_line()


def _compare(folder: Path, other: Path) -> int:
    """How many files both folders have; the other one's may be no others."""
    names = [path.relative_to(folder) for path in files_below(folder) if "__pycache__" not in path.parts]
    for name in names:
        check((other / name).is_file(), f"{name} was uploaded, and hasn't come back")
        check((other / name).read_bytes() == (folder / name).read_bytes(), f"{name} came back with other bytes")
    return len(names)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not rate > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes a second")
    return rate
