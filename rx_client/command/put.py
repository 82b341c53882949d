"""`rxfiles put`: files are uploaded, each published when it is verified; what the server has of one is resumed."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import reactivex
import typer
from reactivex import Observable
from reactivex import operators as ops

from shared import InvalidName
from shared.protocol.wire import check_name

from .. import TreeEvent, rate_limit
from ..operators import transfer_all
from .expected import bytes_here
from .failures import RUN_AGAIN, UsageError
from .folders import as_folder, is_folder
from .happenings import Happening
from .options import BwLimit, DigestName, Exclude, IgnoreExisting, Include, NoOverwrite, Recursive, Retries, Transfers
from .pipelines import existing, failure_alone, fit_or_failed, steady, with_total
from .run import Run
from .words import parse_digest, parse_rate

__all__ = ["put"]

_STDIN: Final = "-"

Paths = Annotated[list[str], typer.Argument(metavar="PATH", help="Files; with -r also folders; - for standard input.")]
To = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The file's name on the server; a folder, if it is one there or ends with a slash. "
        "Without it, names are those here.",
    ),
]


def put(
    run: Run,
    paths: Paths,
    to: To = "",
    recursive: Recursive = False,
    include: Include = None,
    exclude: Exclude = None,
    transfers: Transfers = 4,
    bwlimit: BwLimit = None,
    retries: Retries = 5,
    ignore_existing: IgnoreExisting = False,
    no_overwrite: NoOverwrite = False,
    digest: DigestName = "xxh3-128",
) -> Observable[Happening]:
    """Uploads files, folders, or standard input.

    A file can be seen on the server when all of it is there, and verified. What an interrupted upload has left there is
    resumed when the same command runs again, within a day.
    """
    files, limit, algorithm = run.files, rate_limit(parse_rate(bwlimit)), parse_digest(digest)
    overwrite = not (ignore_existing or no_overwrite)
    each = steady(retries, run.period)
    is_into = _check(paths, to, recursive)
    if _STDIN in paths:
        run.again = "standard input can't be read again: start over"
    else:
        run.again = RUN_AGAIN

    def put_file(path: str, name: str) -> Observable[TreeEvent]:
        source, is_path = (sys.stdin.buffer, False) if path == _STDIN else (path, True)
        upload = files.upload_from(name, source, overwrite=overwrite, digest=algorithm, remember=is_path, limit=limit)
        return upload.pipe(each, failure_alone(name))

    def put_folder(path: str, prefix: str) -> Observable[TreeEvent]:
        return files.upload_tree(
            path,
            prefix,
            include=include,
            exclude=exclude,
            overwrite=overwrite,
            max_concurrent=transfers,
            each=each,
            digest=algorithm,
            remember=True,
            limit=limit,
        )

    def put_either(path: str) -> Observable[TreeEvent]:
        put_it = put_folder if os.path.isdir(path) else put_file
        if is_into:
            return put_it(path, as_folder(to) + _own_name(path))
        if put_it is put_folder or path == _STDIN:
            return put_it(path, to)
        into = as_folder(to) + _own_name(path)
        return is_folder(files, to).pipe(ops.flat_map(lambda yes: put_file(path, into if yes else to)))

    if len(paths) == 1 and not recursive:
        expected = None  # a single file says so itself
    else:  # what is skipped can't be counted on
        expected = bytes_here(paths, include, exclude) if overwrite else reactivex.empty()
    return reactivex.from_iterable(paths).pipe(
        ops.map(put_either),
        transfer_all(1 if recursive else transfers),  # a folder has so many transfers itself
        existing(is_failure=not ignore_existing),
        ops.map(fit_or_failed("put it alone, with --to NAME")),
        with_total(run.period, expected),
    )


def _check(paths: list[str], to: str, recursive: bool) -> bool:
    """Whether `to` is a folder to put the files in, and not a new name.

    Raises:
        UsageError: The paths and `to` don't go together.
        FileNotFoundError: One of the paths isn't there.
    """
    for path in paths:
        if path != _STDIN and not os.path.lexists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if os.path.isdir(path) and not recursive:
            raise UsageError(f"{path} is a folder: give -r for all files in it")
    is_into = len(paths) > 1 or not to or to.endswith("/")
    if _STDIN in paths and is_into:
        raise UsageError("standard input has no name: put it alone, and give it one with --to NAME")
    try:
        check_name(to or "x")
    except InvalidName as error:
        raise UsageError(f"--to: {error.message}") from None
    names = [_own_name(path) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"two of the paths would be the same {twice} on the server: put them one by one, with --to")
    return is_into


def _own_name(path: str) -> str:
    """What a path is called; empty for `.`, `..` and the root, whose files are put without a folder of their own."""
    name = Path(path).name
    return "" if name == os.pardir else name
