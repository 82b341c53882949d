"""`rxfiles ls`: a listing, as it comes."""

from typing import Annotated

import typer
from reactivex import Observable
from reactivex import operators as ops

from shared import FileInfo, NotFound

from .happenings import Listed
from .run import Run

__all__ = ["ls"]

Prefix = Annotated[str, typer.Argument(metavar="PREFIX", help="What the names start with, such as docs/.")]
Long = Annotated[bool, typer.Option("--long", "-l", help="Also the sizes in bytes, and the times.")]


def ls(run: Run, prefix: Prefix = "", long: Long = False) -> Observable[Listed]:
    """Lists the server's files.

    All of them, or those whose names start with PREFIX. Names have slashes, as in docs/a.txt.
    """

    def show(info: FileInfo | None) -> Listed:
        if info is None:
            raise NotFound(f"no file's name starts with {prefix!r}", name=prefix)
        return Listed(info, "line" if long else "name")

    files = run.files
    if long or run.is_json:
        infos = files.list_files(prefix=prefix, details=True)
    else:  # which any server can, a tutorial's, too
        infos = files.list_files(prefix=prefix).pipe(ops.map(lambda name: FileInfo(name, 0)))
    return (infos.pipe(ops.default_if_empty(None)) if prefix else infos).pipe(ops.map(show))
