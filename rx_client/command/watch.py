"""`rxfiles watch`: the server's files, and their changes as they happen."""

import sys
from typing import Annotated

import reactivex
import typer
from reactivex import Observable
from reactivex import operators as ops

from shared import is_retryable

from ..operators import retry_backoff
from ..watch import Added, Changed, Present, Ready, Removed, WatchEvent
from .happenings import Note, Watched
from .run import Run

__all__ = ["watch"]

Prefix = Annotated[str, typer.Argument(metavar="PREFIX", help="What the names start with, such as docs/.")]

# A server that is restarted is soon there again.
_MOST_SECONDS = 5.0


def watch(run: Run, prefix: Prefix = "") -> Observable[Watched | Note]:
    """Shows files as they change, until it is interrupted.

    First those that are there, then each one that is added, changed or removed. A server that is lost is waited for:
    then it begins with what is there again.
    """
    events: Observable[Watched | Note] = run.files.watch_files(prefix).pipe(ops.map(_shown))
    return events.pipe(ops.catch(_noted), retry_backoff(sys.maxsize, cap=_MOST_SECONDS))


def _shown(event: WatchEvent) -> Watched:
    match event:
        case Present(info):
            return Watched("present", info.name, info)
        case Added(info):
            return Watched("added", info.name, info)
        case Changed(info):
            return Watched("changed", info.name, info)
        case Removed(name):
            return Watched("removed", name)
        case Ready():
            return Watched("ready")


def _noted(error: Exception, _: object) -> Observable[Watched | Note]:
    """The error, and before it a word to the user, if it isn't the end."""
    failure: Observable[Watched | Note] = reactivex.throw(error)
    return reactivex.concat(reactivex.just(Note(f"{error}; trying again")), failure) if is_retryable(error) else failure
