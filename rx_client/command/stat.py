"""`rxfiles stat`: what the server knows of files."""

from typing import Annotated

import reactivex
import typer
from reactivex import Observable
from reactivex import operators as ops

from ..events import Failed
from ..operators import transfer_all
from .happenings import Listed
from .pipelines import failure_alone
from .run import Run

__all__ = ["stat"]

Names = Annotated[list[str], typer.Argument(metavar="NAME", help="The files' names on the server.")]


def stat(run: Run, names: Names) -> Observable[Listed | Failed]:
    """Shows what the server knows of files.

    The size, when it was changed, the etag, and the digest if it is known.
    """

    def show(name: str) -> Observable[Listed | Failed]:
        return run.files.stat(name).pipe(ops.map(lambda info: Listed(info, "all")), failure_alone(name))

    return reactivex.from_iterable(names).pipe(ops.map(show), transfer_all(1))
