"""How many bytes there will be: counted while the transfers run, for the total of a display."""

import os
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from operator import add
from pathlib import Path

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from shared import FileInfo

from .. import FileClient
from ..operators import from_async_iter
from ..transfers.folders import LocalFile, walk
from ..transfers.trees import NameFilter, TreeOptions
from .folders import as_folder, is_folder

__all__ = ["bytes_at_server", "bytes_here"]


def bytes_here(paths: list[str], include: NameFilter | None, exclude: NameFilter | None) -> Observable[int]:
    """Emits the size of files, and of those below folders that `upload_tree` would upload."""
    is_selected = TreeOptions(include, exclude, 1, None, True).selector("")

    async def count() -> AsyncIterator[int]:
        nbytes = 0
        for path in paths:
            with suppress(OSError):  # the upload will say so
                status = os.stat(path)
                if not stat.S_ISDIR(status.st_mode):
                    nbytes += status.st_size
                    continue
                async for found in walk(Path(path), "", follow_symlinks=False):
                    if isinstance(found, LocalFile) and is_selected(found.name):
                        nbytes += os.stat(found.path).st_size
        yield nbytes

    return from_async_iter(count)


def bytes_at_server(
    files: FileClient, names: list[str], include: NameFilter | None, exclude: NameFilter | None
) -> Observable[int]:
    """Emits the size of files, and of those below folders that `download_tree` would download."""

    def below(name: str) -> Observable[int]:
        is_selected = TreeOptions(include, exclude, 1, None, True).selector(as_folder(name))
        infos = files.list_files(prefix=as_folder(name), details=True)
        return infos.pipe(ops.filter(lambda info: is_selected(info.name)), ops.map(_size))

    def of(name: str) -> Observable[int]:
        return is_folder(files, name).pipe(
            ops.flat_map(lambda yes: below(name) if yes else files.stat(name).pipe(ops.map(_size)))
        )

    return reactivex.from_iterable(names).pipe(ops.concat_map(of), ops.reduce(add, 0))


def _size(info: FileInfo) -> int:
    return info.size
