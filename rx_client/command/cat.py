"""`rxfiles cat`: files are written to standard output, one after the other, as they arrive."""

from typing import Annotated

import typer
from reactivex import Observable

from .get import get
from .happenings import Happening
from .options import BwLimit, DigestName, Retries
from .run import Run

__all__ = ["cat"]

Names = Annotated[list[str], typer.Argument(metavar="NAME", help="The files' names on the server.")]


def cat(
    run: Run, names: Names, bwlimit: BwLimit = None, retries: Retries = 5, digest: DigestName = "xxh3-128"
) -> Observable[Happening]:
    """Writes files to standard output.

    The bytes come as they arrive. What is wrong with them is known at the end, and is an error then.
    """
    return get(run, names, to="-", bwlimit=bwlimit, retries=retries, digest=digest)
