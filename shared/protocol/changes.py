"""The items of `files.watch`: a file's name as data, and a `FileChange` in the `chat/file-transfer` metadata item."""

from dataclasses import dataclass
from enum import StrEnum

from .messages import JsonMessage
from .wire import FileInfo

__all__ = ["ChangeKind", "FileChange"]


class ChangeKind(StrEnum):
    """What an item is about; a peer ignores others, which later versions may have."""

    PRESENT = "present"
    READY = "ready"
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class FileChange(JsonMessage):
    """Accompanies the name of a file; there is no name where all that were present have been sent.

    Attributes:
        kind: One of `ChangeKind`.
        info: The file's; None where it was removed.
    """

    kind: str
    info: FileInfo | None = None
