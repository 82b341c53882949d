"""`rxfiles mv`: files are renamed on the server, each in one step."""

from typing import Annotated

import typer
from reactivex import Observable
from reactivex import operators as ops

from ..events import Failed
from ..operators import transfer_all
from .failures import UsageError
from .folders import as_folder, last_part, names_below, or_folder_error
from .happenings import Change
from .options import NoOverwrite, Recursive
from .pipelines import failure_alone
from .run import Run

__all__ = ["mv"]

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="The file's name; with -r a folder's.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="The new name; with a slash at its end, the new folder.")]


def mv(
    run: Run, source: Source, target: Target, recursive: Recursive = False, no_overwrite: NoOverwrite = False
) -> Observable[Change | Failed]:
    """Renames files on the server.

    Each in one step; nothing is transferred.
    """
    files = run.files
    if target.endswith("/"):
        target += last_part(source)

    def move(name: str, to: str) -> Observable[Change]:
        moved = files.move(name, to, overwrite=not no_overwrite)
        return moved.pipe(ops.map(lambda info: Change("move", name, info.name)))

    if not recursive:
        return move(source, target).pipe(or_folder_error(files, source))
    below, above = as_folder(source), as_folder(target)
    if above.startswith(below):
        raise UsageError(f"{source} can't be moved to {target}, which is in it")

    def move_below(name: str) -> Observable[Change | Failed]:
        to = above + name.removeprefix(below) if name.startswith(below) else target
        return move(name, to).pipe(failure_alone(name))

    return names_below(files, source).pipe(ops.map(move_below), transfer_all(4))
