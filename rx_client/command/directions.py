"""The two directions of `sync`: what each reads, transfers and deletes."""

import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import reactivex
from reactivex import Observable
from reactivex import operators as ops

from shared.aio import run_blocking

from .. import FileClient, RateLimit, TreeEvent
from ..operators import from_async_iter
from ..transfers.trees import EachTransfer
from .comparing import Entry, Tree, local_tree, remote_tree
from .happenings import Action

__all__ = ["Direction", "FromServer", "ToServer"]

Selector = Callable[[str], bool]


class Direction(ABC):
    """From the source of a `sync` to its target. Names are those below both folders, if nothing else is said.

    Args:
        files: The client.
        folder: The local folder's path.
        prefix: What the names of the server's folder begin with.
        transfers: Files at a time.
        each: As for `FileClient.upload_tree`.
        limit: As for `FileClient.upload_tree`.
    """

    action: Action

    def __init__(
        self,
        files: FileClient,
        folder: str,
        prefix: str,
        *,
        transfers: int,
        each: EachTransfer,
        limit: RateLimit,
    ) -> None:
        self.files: Final = files
        self.folder: Final = folder
        self.prefix: Final = prefix
        self.transfers: Final = transfers
        self.each: Final = each
        self.limit: Final = limit

    @abstractmethod
    def source(self, is_selected: Selector) -> Observable[Tree]:
        """Emits what the source has."""

    @abstractmethod
    def target(self, is_selected: Selector) -> Observable[Tree]:
        """Emits what the target has."""

    @abstractmethod
    def transfer(self, is_needed: Selector) -> Observable[TreeEvent]:
        """Transfers files; the events have the server's names."""

    @abstractmethod
    def delete(self, name: str, entry: Entry) -> Observable[object]:
        """Deletes a file of the target, if it is still this one; emits one item."""

    @abstractmethod
    def target_name(self, name: str) -> str:
        """What a file of the target is called, for a person."""

    def at_server(self, name: str) -> str:
        """What a file is called at the server."""
        return self.prefix + name


class ToServer(Direction):
    """From a local folder to the server."""

    action = "put"

    def source(self, is_selected: Selector) -> Observable[Tree]:
        return local_tree(self.folder, is_selected)

    def target(self, is_selected: Selector) -> Observable[Tree]:
        return remote_tree(self.files, self.prefix, is_selected)

    def transfer(self, is_needed: Selector) -> Observable[TreeEvent]:
        return self.files.upload_tree(
            self.folder,
            self.prefix,
            include=is_needed,
            max_concurrent=self.transfers,
            each=self.each,
            remember=True,
            limit=self.limit,
        )

    def delete(self, name: str, entry: Entry) -> Observable[object]:
        return self.files.delete(self.at_server(name), if_match=entry.etag)

    def target_name(self, name: str) -> str:
        return self.at_server(name)


class FromServer(Direction):
    """From the server to a local folder."""

    action = "get"

    def source(self, is_selected: Selector) -> Observable[Tree]:
        return remote_tree(self.files, self.prefix, is_selected)

    def target(self, is_selected: Selector) -> Observable[Tree]:
        def none_yet(error: Exception, _: Observable[Tree]) -> Observable[Tree]:
            return reactivex.just(Tree()) if isinstance(error, FileNotFoundError) else reactivex.throw(error)

        return local_tree(self.folder, is_selected).pipe(ops.catch(none_yet))

    def transfer(self, is_needed: Selector) -> Observable[TreeEvent]:
        return self.files.download_tree(
            self.prefix,
            self.folder,
            include=is_needed,
            max_concurrent=self.transfers,
            each=self.each,
            limit=self.limit,
        )

    def delete(self, name: str, entry: Entry) -> Observable[object]:
        async def unlink() -> AsyncIterator[None]:
            yield await run_blocking(None, _unlink, Path(self.folder), name)

        return from_async_iter(unlink)

    def target_name(self, name: str) -> str:
        return os.path.join(self.folder, name)


def _unlink(folder: Path, name: str) -> None:
    """Removes a file, and the folders that it leaves empty."""
    path = folder / name
    path.unlink(missing_ok=True)
    with suppress(OSError):  # others are in it
        for above in path.relative_to(folder).parents[:-1]:
            (folder / above).rmdir()
