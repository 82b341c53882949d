"""What verbs emit beside the client's events: files that are shown, and changes that were made or would be."""

from dataclasses import dataclass
from typing import Literal

from rx_client import ServerStats, TotalProgress, TreeEvent
from shared import FileInfo

__all__ = ["Action", "Change", "Happening", "Listed", "Note", "Statistics", "Watched"]

Action = Literal["put", "get", "move", "delete"]


@dataclass(frozen=True, slots=True)
class Listed:
    """A file is there.

    Attributes:
        info: What is known of it.
        detail: How much to show a person: its name, a line, or all that is known.
    """

    info: FileInfo
    detail: Literal["name", "line", "all"] = "name"


@dataclass(frozen=True, slots=True)
class Change:
    """Something was done, or would be.

    Attributes:
        action: What; `put` and `get` are transfers to the server and from it.
        name: The file's.
        to: The new name of a file that is moved.
        reason: Why, in words; empty if it was asked for by name.
        is_planned: Whether it only would be done, without `--dry-run`.
    """

    action: Action
    name: str
    to: str | None = None
    reason: str = ""
    is_planned: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person may want to know."""

    message: str


@dataclass(frozen=True, slots=True)
class Watched:
    """A file that is watched: it is there, or was added, changed or removed; or all that are there have come.

    Attributes:
        kind: Which of these.
        name: The file's; empty for `ready`.
        info: What is known of it; None if it was removed.
    """

    kind: Literal["present", "ready", "added", "changed", "removed"]
    name: str = ""
    info: FileInfo | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the server has done, and does.

    Attributes:
        stats: Now.
        before: The last time; None at first.
    """

    stats: ServerStats
    before: ServerStats | None = None


Happening = TreeEvent | TotalProgress | Listed | Change | Note | Watched | Statistics
"""What a verb emits."""
