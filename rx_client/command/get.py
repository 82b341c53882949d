"""`rxfiles get`: files are downloaded, each verified and then moved to its place; what was left of one is resumed."""

import os
from collections.abc import Callable
from typing import Annotated

import reactivex
import typer
from reactivex import Observable
from reactivex import operators as ops

from shared import AlreadyExists

from .. import TreeEvent, rate_limit
from ..operators import transfer_all
from ..transfers.folders import unsafe_reason
from .expected import bytes_at_server
from .failures import RUN_AGAIN, UsageError
from .folders import as_folder, is_folder, last_part, or_folder_error
from .happenings import Happening
from .options import BwLimit, DigestName, Exclude, IgnoreExisting, Include, NoOverwrite, Recursive, Retries, Transfers
from .pipelines import existing, failure_alone, fit_or_failed, steady, with_total
from .run import Run
from .stdout import standard_output
from .words import parse_digest, parse_rate

__all__ = ["get"]

Names = Annotated[list[str], typer.Argument(metavar="NAME", help="The files' names; with -r also folders'.")]
To = Annotated[
    str,
    typer.Option(
        metavar="PATH",
        help="The file's new name; a folder, if it is one or ends with a slash; - for standard output. "
        "Without it, files come to the folder where you are.",
    ),
]


def get(
    run: Run,
    names: Names,
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
    """Downloads files or folders.

    A file is written beside its place, verified, and moved there in one step. What an interrupted download has left is
    resumed when the same command runs again.
    """
    files, limit, algorithm = run.files, rate_limit(parse_rate(bwlimit)), parse_digest(digest)
    keeps_existing = ignore_existing or no_overwrite
    each = steady(retries, run.period)
    if to == "-":
        if recursive:
            raise UsageError("-r and --to - exclude each other: name the files")
        run.use_stdout()
        transfers = 1
    else:
        run.again = RUN_AGAIN
    if "" in names:
        raise UsageError("a name is empty: `rxfiles ls` lists the names")
    place = _places(names, to)

    def get_file(name: str) -> Observable[TreeEvent]:
        if to == "-":
            return files.download_to(name, standard_output(), digest=algorithm, limit=limit).pipe(each)
        path = place(name, False)
        if keeps_existing and os.path.lexists(path):
            return reactivex.throw(AlreadyExists(f"{path} exists already", name=name))
        return files.download_to(name, path, digest=algorithm, limit=limit).pipe(each)

    def get_folder(name: str) -> Observable[TreeEvent]:
        return files.download_tree(
            as_folder(name),
            place(name, True),
            include=include,
            exclude=exclude,
            overwrite=not keeps_existing,
            max_concurrent=transfers,
            each=each,
            digest=algorithm,
            limit=limit,
        )

    def get_either(name: str) -> Observable[TreeEvent]:
        if recursive:
            found = is_folder(files, name).pipe(ops.flat_map(lambda yes: get_folder(name) if yes else get_file(name)))
        else:
            advice = "`rxfiles get -r` gets all files below it" if to == "-" else "give -r for all files below it"
            found = reactivex.defer(lambda _: get_file(name)).pipe(or_folder_error(files, name, advice))
        return found.pipe(failure_alone(name))

    if len(names) == 1 and not recursive:
        expected = None  # a single file says so itself
    else:  # what is skipped can't be counted on, and files that are named one by one aren't asked for first
        is_counted = recursive and not keeps_existing
        expected = bytes_at_server(files, names, include, exclude) if is_counted else reactivex.empty()
    return reactivex.from_iterable(names).pipe(
        ops.map(get_either),
        transfer_all(1 if recursive else transfers),  # a folder has so many transfers itself
        existing(is_failure=not ignore_existing),
        ops.map(fit_or_failed("get it alone, with --to PATH")),
        with_total(run.period, expected),
    )


def _places(names: list[str], to: str) -> Callable[[str, bool], str]:
    """Where each file, or folder, goes.

    Raises:
        UsageError: Two of them go to the same place, or several to a file.
    """
    is_into = len(names) > 1 or not to or to.endswith(("/", os.sep)) or os.path.basename(to) in (".", "..")
    if len(names) > 1 and to != "-" and os.path.lexists(to) and not os.path.isdir(to):
        raise UsageError(f"{to} is a file: give a folder for several files")
    lasts = [last_part(name) for name in names]
    if to != "-" and is_into and len(set(lasts)) < len(names):
        twice = next(last for last in lasts if lasts.count(last) > 1)
        raise UsageError(f"two of the files would be the same {twice} here: get them one by one, with --to")

    def place(name: str, is_folder: bool) -> str:
        last = last_part(name)
        if not (is_into or (os.path.isdir(to) and not is_folder)):
            path = to
        elif is_folder and not last:
            path = to or os.curdir
        elif (reason := unsafe_reason(last)) is not None:
            raise UsageError(f"{name} can't be the name of a file on every system, since {reason}: give --to PATH")
        else:
            path = os.path.join(to, last)
        if to and os.path.dirname(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    return place
