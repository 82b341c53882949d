"""`rxfiles rm`: files are deleted on the server."""

from typing import Annotated

import reactivex
import typer
from reactivex import Observable
from reactivex import operators as ops

from ..events import Failed
from ..operators import transfer_all
from .failures import UsageError
from .folders import as_folder, names_below, or_folder_error
from .happenings import Change
from .options import DryRun, Recursive
from .pipelines import failure_alone
from .run import Run

__all__ = ["rm"]

Names = Annotated[list[str], typer.Argument(metavar="NAME", help="The files' names; with -r also folders'.")]


def rm(run: Run, names: Names, recursive: Recursive = False, dry_run: DryRun = False) -> Observable[Change | Failed]:
    """Deletes files on the server.

    It doesn't ask.
    """
    files = run.files
    if recursive and not all(map(as_folder, names)):
        raise UsageError("rm -r takes the name of a folder: without one it would delete every file of the server")

    def delete(name: str) -> Observable[Change | Failed]:
        removed = files.stat(name) if dry_run else files.delete(name)
        return removed.pipe(
            or_folder_error(files, name),
            ops.map(lambda info: Change("delete", info.name, is_planned=dry_run)),
            failure_alone(name),
        )

    found = reactivex.from_iterable(names)
    if recursive:
        found = found.pipe(ops.concat_map(lambda name: names_below(files, name)))
    return found.pipe(ops.map(delete), transfer_all(4))
