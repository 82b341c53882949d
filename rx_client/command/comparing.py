"""What `sync` has to do: two trees of files, compared by size, time and digest."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from shared import FileInfo
from shared.aio import run_blocking
from shared.protocol.digest import Digest, algorithm_of

from .. import FileClient
from ..events import Failed, Skipped
from ..operators import from_async_iter
from ..transfers.folders import LocalFile, walk
from .failures import RefusedError
from .pipelines import fit_or_failed

__all__ = ["Entry", "Plan", "Tree", "compare", "local_tree", "remote_tree"]

# File systems keep times with different precision; the wire has them as seconds with a fraction.
_SAME_SECONDS: Final = 0.002
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a tree.

    Attributes:
        size: In bytes.
        modified: In seconds since the epoch; None if it isn't known.
        digest: As `algorithm:hex`; None if it isn't known.
        path: Where it is on this computer; None at the server.
        etag: The server's; None on this computer.
    """

    size: int
    modified: float | None
    digest: str | None = None
    path: Path | None = None
    etag: str | None = None


@dataclass(slots=True)
class Tree:
    """The files below a folder.

    Attributes:
        entries: By their names below it.
        left_out: What was found beside them: what isn't a file, what can't be read.
    """

    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    left_out: list[Failed | Skipped] = field(default_factory=list[Failed | Skipped])

    @property
    def is_complete(self) -> bool:
        """Whether all of the folder could be read."""
        return not any(isinstance(each, Failed) for each in self.left_out)

    def hides(self, name: str) -> bool:
        """Whether something that was skipped stands in the place of a file, so that it isn't known to be missing."""
        return any(name == each.name or name.startswith(f"{each.name}/") for each in self.left_out)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would make the target like the source.

    Attributes:
        transfers: The names of the files to transfer, and why, in words.
        nbytes: Of those files.
        deletions: The files that only the target has.
        same: How many files are the same.
    """

    transfers: dict[str, str]
    nbytes: int
    deletions: dict[str, Entry]
    same: int

    def check(self, source: Tree, target: Tree, max_delete: int | None) -> None:
        """Raises RefusedError if the files may not be deleted."""
        if self.deletions and not source.entries:
            number = len(target.entries)
            raise RefusedError(f"the source has no files: --delete would delete all {number} of the target's")
        if max_delete is not None and len(self.deletions) > max_delete:
            raise RefusedError(f"{len(self.deletions)} files would be deleted, more than --max-delete {max_delete}")


def local_tree(folder: str, is_selected: Callable[[str], bool]) -> Observable[Tree]:
    """Reads a local folder; an observable of one tree. Fails with OSError if the folder itself can't be read."""
    fit = fit_or_failed("put it alone, with --to NAME")

    async def read() -> AsyncIterator[Tree]:
        tree = Tree()
        async for found in walk(Path(folder), "", follow_symlinks=False):
            match found:
                case LocalFile(name, path) if is_selected(name):
                    with suppress(FileNotFoundError):  # it has gone meanwhile
                        status = os.stat(path)
                        tree.entries[name] = Entry(status.st_size, status.st_mtime, path=path)
                case LocalFile():
                    pass
                case Failed() | Skipped():
                    tree.left_out.append(fit(found) if is_selected(found.name) else found)
        yield tree

    return from_async_iter(read)


def remote_tree(files: FileClient, prefix: str, is_selected: Callable[[str], bool]) -> Observable[Tree]:
    """The same of the files whose names begin with a prefix."""

    def add(tree: Tree, info: FileInfo) -> Tree:
        name = info.name.removeprefix(prefix)
        if is_selected(name):
            tree.entries[name] = Entry(info.size, info.modified, info.digest, etag=info.etag)
        return tree

    listed = files.list_files(prefix=prefix, details=True)
    return reactivex.defer(lambda _: listed.pipe(ops.reduce(add, Tree())))


def compare(source: Tree, target: Tree, *, delete: bool, checksum: bool) -> Observable[Plan]:
    """Emits what would make the target like the source.

    Files of one size are the same if they have the same time, or the same digest, which then is computed of the local
    one; with `checksum` the digest decides wherever it is known. Nothing is deleted if the source couldn't be read.
    """

    async def plan() -> AsyncIterator[Plan]:
        transfers: dict[str, str] = {}
        for name, entry in source.entries.items():
            reason = await _difference(entry, target.entries.get(name), checksum)
            if reason is not None:
                transfers[name] = reason
        only_there = target.entries.keys() - source.entries.keys() if delete and source.is_complete else ()
        deletions = {name: target.entries[name] for name in sorted(only_there) if not source.hides(name)}
        nbytes = sum(source.entries[name].size for name in transfers)
        yield Plan(transfers, nbytes, deletions, len(source.entries) - len(transfers))

    return from_async_iter(plan)


async def _difference(source: Entry, target: Entry | None, checksum: bool) -> str | None:
    """Why a file has to be transferred, in words; None if it is there already."""
    if target is None:
        return "new"
    if source.size != target.size:
        return "other size"
    is_same_time = (
        source.modified is not None
        and target.modified is not None
        and abs(source.modified - target.modified) <= _SAME_SECONDS
    )
    if is_same_time and not checksum:
        return None
    here, there = (source, target) if source.path is not None else (target, source)
    if there.digest is None or here.path is None:
        return None if is_same_time else "other time"
    digest = await run_blocking(None, _digest_of, here.path, algorithm_of(there.digest))
    return None if digest == there.digest else "other content"


def _digest_of(path: Path, algorithm: str) -> str:
    digest = Digest(algorithm)
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.text()
