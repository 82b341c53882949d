"""Folders of the server: the beginnings that names with slashes have in common."""

from typing import TypeVar

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from shared import NotFound

from .. import FileClient
from .failures import UsageError
from .pipelines import Operator

__all__ = ["as_folder", "is_folder", "last_part", "names_below", "or_folder_error"]

T = TypeVar("T")


def as_folder(name: str) -> str:
    """What the names below a folder begin with; empty for all files."""
    bare = name.strip("/")
    return f"{bare}/" if bare else ""


def last_part(name: str) -> str:
    """What comes behind the last slash but one at the end."""
    return name.rstrip("/").rpartition("/")[2]


def is_folder(files: FileClient, name: str) -> Observable[bool]:
    """Emits whether files are below a name; all files are below the empty one."""
    below = as_folder(name)
    if not below:
        return reactivex.just(True)
    return files.list_files(prefix=below).pipe(ops.take(1), ops.map(bool), ops.default_if_empty(False))


def names_below(files: FileClient, name: str) -> Observable[str]:
    """Emits the names of the files below a folder; that of the file itself, if it is one."""
    return is_folder(files, name).pipe(
        ops.flat_map(lambda has_files: files.list_files(prefix=as_folder(name)) if has_files else reactivex.just(name))
    )


def or_folder_error(files: FileClient, name: str, advice: str = "give -r for all files below it") -> Operator[T, T]:
    """Says of a file that isn't there, but is a folder, what is meant instead."""

    def explained(error: Exception, _: Observable[T]) -> Observable[T]:
        if not isinstance(error, NotFound):
            return reactivex.throw(error)
        meant = UsageError(f"{name} is a folder on the server: {advice}")
        return is_folder(files, name).pipe(ops.flat_map(lambda yes: reactivex.throw(meant if yes else error)))

    return ops.catch(explained)
