"""What a store with its files in memory offers beside its coroutines; part of `server.stores.base`."""

from typing import Protocol

from shared.protocol.wire import FileInfo

__all__ = ["AtOnceStore"]


class AtOnceStore(Protocol):
    """What a store can do within one event-loop callback. What these don't do, the store's coroutines do."""

    def known(self, name: str) -> FileInfo | None:
        """What `Store.stat` returns; None if there is no such file, or its digest isn't known yet."""
        ...

    def content(self, name: str) -> bytes:
        """The whole file.

        Raises:
            NotFound: There is none of that name.
        """
        ...

    def put_at_once(self, name: str, content: bytes) -> bool:
        """As `Store.put`, if it is certain that there is room; returns whether it was done."""
        ...
