"""Trees of files: every file below a local folder, or below a prefix at the server, as one observable of events."""

from collections.abc import AsyncIterator, Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from shared.aio import run_blocking
from shared.errors import AlreadyExists, ClientClosed, ConnectionFailed, ConnectionLost, Unauthenticated

from ..events import EXISTS, Failed, Skipped, TransferEvent, TreeEvent
from ..operators import from_async_iter, transfer_all
from .folders import LocalFile, TargetFolder, walk
from .listing import resumed

__all__ = ["EachTransfer", "NameFilter", "TreeOptions", "as_prefix", "download_tree", "upload_tree"]

T = TypeVar("T")

NameFilter = str | Iterable[str] | Callable[[str], bool]
"""A pattern with `*`, `?` and `[...]`, several of them, or a function of a name. `*` matches slashes, too."""

EachTransfer = Callable[[Observable[TransferEvent]], Observable[TransferEvent]]
"""An operator for each file's transfer: `retry_backoff()`, say."""


class TreeOptions(NamedTuple):
    """What both directions have in common; see `FileClient.upload_tree`."""

    include: NameFilter | None
    exclude: NameFilter | None
    max_concurrent: int
    each: EachTransfer | None
    keep_going: bool

    def selector(self, prefix: str) -> Callable[[str], bool]:
        """Whether a file of the tree below `prefix` is to be transferred."""
        is_included = _always if self.include is None else _matcher(self.include)
        is_excluded = _never if self.exclude is None else _matcher(self.exclude)

        def is_selected(name: str) -> bool:
            below = name.removeprefix(prefix)
            return is_included(below) and not is_excluded(below)

        return is_selected

    def events_of(self, name: str, transfer: Observable[TransferEvent]) -> Observable[TreeEvent]:
        """The events of one file's transfer; its failure is one of them."""
        whole = transfer if self.each is None else self.each(transfer)
        return whole.pipe(ops.catch(lambda error, _: self.failure(name, error)))

    def failure(self, name: str, error: Exception) -> Observable[TreeEvent]:
        """What a failure is for the tree: an event, or its end."""
        if isinstance(error, AlreadyExists):
            return reactivex.just(Skipped(name, EXISTS))
        return reactivex.throw(error) if self.ends_with(error) else reactivex.just(Failed(name, error))

    def ends_with(self, error: Exception) -> bool:
        """Whether nothing is to be transferred after this error."""
        is_lost = isinstance(error, ConnectionLost) and not isinstance(error, ClientClosed)
        is_without_server = isinstance(error, ConnectionFailed | Unauthenticated) and not is_lost
        return not self.keep_going or is_without_server


def upload_tree(
    folder: Path,
    prefix: str,
    upload: Callable[[str, Path], Observable[TransferEvent]],
    *,
    options: TreeOptions,
    follow_symlinks: bool,
) -> Observable[TreeEvent]:
    """See `FileClient.upload_tree`; `upload` makes one file's transfer."""
    is_selected = options.selector(prefix)

    def begin(found: LocalFile | Failed | Skipped) -> Observable[TreeEvent]:
        match found:
            case LocalFile(name, path):
                return options.events_of(name, upload(name, path))
            case Failed(name, error):
                return options.failure(name, error)
            case Skipped():
                return reactivex.just(found)

    found = from_async_iter(lambda: walk(folder, prefix, follow_symlinks=follow_symlinks))
    return found.pipe(
        ops.filter(lambda each: isinstance(each, Failed) or is_selected(each.name)),
        ops.map(begin),
        transfer_all(options.max_concurrent),
    )


def download_tree(
    prefix: str,
    folder: Path,
    names: Observable[str],
    download: Callable[[str, Path], Observable[TransferEvent]],
    *,
    options: TreeOptions,
    overwrite: bool,
) -> Observable[TreeEvent]:
    """See `FileClient.download_tree`; `names` lists the files, `download` makes one file's transfer."""
    is_selected = options.selector(prefix)

    def begin(target: TargetFolder, name: str) -> Observable[TreeEvent]:
        def to(place: Path | str | TreeEvent) -> Observable[TreeEvent]:
            match place:
                case Path():
                    whole = options.events_of(name, download(name, place))
                    return whole.pipe(ops.finally_action(lambda: target.free(place)))
                case str():
                    return reactivex.just(Skipped(name, place))
                case _:
                    return reactivex.just(place)

        return _in_thread(lambda: target.place(name.removeprefix(prefix))).pipe(
            ops.catch(lambda error, _: options.failure(name, error)), ops.flat_map(to)
        )

    def transfers(target: TargetFolder) -> Observable[TreeEvent]:
        return resumed(names).pipe(
            ops.filter(is_selected), ops.map(lambda name: begin(target, name)), transfer_all(options.max_concurrent)
        )

    return _in_thread(lambda: TargetFolder(folder, overwrite=overwrite)).pipe(ops.flat_map(transfers))


def as_prefix(folder: str) -> str:
    """The beginning of the names below a folder of the server; the empty one has all files."""
    return folder if not folder or folder.endswith("/") else f"{folder}/"


def _in_thread(function: Callable[[], T]) -> Observable[T]:
    """Emits what `function` returns, which may block."""

    async def call() -> AsyncIterator[T]:
        yield await run_blocking(None, function)

    return from_async_iter(call)


def _matcher(names: NameFilter) -> Callable[[str], bool]:
    if callable(names):
        return names
    patterns = (names,) if isinstance(names, str) else tuple(names)
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def _always(_: str) -> bool:
    return True


def _never(_: str) -> bool:
    return False
