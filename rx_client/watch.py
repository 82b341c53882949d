"""The events of `watch_files`: a closed union. In a module of their own, since `rx_client.Changed` is an error.

match event:
    case watch.Present(info) | watch.Added(info) | watch.Changed(info): ...
    case watch.Removed(name): ...
    case watch.Ready(): ...
"""

from dataclasses import dataclass

from shared.protocol.wire import FileInfo

__all__ = ["Added", "Changed", "Present", "Ready", "Removed", "WatchEvent"]


@dataclass(frozen=True, slots=True)
class Present:
    """A file that is there when the subscription begins, or that comes before `Ready`."""

    info: FileInfo


@dataclass(frozen=True, slots=True)
class Ready:
    """All files that are there have been emitted; changes follow."""


@dataclass(frozen=True, slots=True)
class Added:
    """A file has come."""

    info: FileInfo


@dataclass(frozen=True, slots=True)
class Changed:
    """A file has other content, or another time, than when it was emitted last."""

    info: FileInfo


@dataclass(frozen=True, slots=True)
class Removed:
    """A file has gone."""

    name: str


WatchEvent = Present | Ready | Added | Changed | Removed
"""What `watch_files` emits."""
