"""The events of a transfer, and of a tree of them: closed unions, so that `match` can be exhaustive.

Each has the `name` of the server's file that it is about, by which the events of merged transfers are told apart. What
operators add is given by keyword only, and isn't part of a pattern such as `Progress(transferred, total)`.
"""

from dataclasses import dataclass, field, fields
from typing import Final

from shared.protocol.wire import FileInfo

__all__ = [
    "EXISTS",
    "Completed",
    "Failed",
    "FileInfo",
    "Progress",
    "Retrying",
    "Skipped",
    "Started",
    "TotalProgress",
    "TransferEvent",
    "TreeEvent",
]


@dataclass(frozen=True, slots=True, repr=False)
class _Event:
    """Its `repr` leaves out keywords that have their defaults."""

    def __repr__(self) -> str:
        shown = ((each, getattr(self, each.name)) for each in fields(self))
        text = ", ".join(f"{each.name}={value!r}" for each, value in shown if not each.kw_only or value != each.default)
        return f"{type(self).__name__}({text})"


@dataclass(frozen=True, slots=True, repr=False)
class Started(_Event):
    """An attempt has begun: the server has answered.

    Attributes:
        upload_id: Identifies the upload for a later resume, in this process or another; None for a download.
        total: The whole content's length in bytes; None if it isn't known.
        resumed_from: Bytes that are durable already; 0 if the transfer starts at the beginning.
        name: The file's.
    """

    upload_id: str | None
    total: int | None
    resumed_from: int
    name: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True, repr=False)
class Progress(_Event):
    """More bytes are durable at the receiving end.

    Attributes:
        transferred: Durable bytes since the beginning of the file; it never decreases during an attempt.
        total: As in `Started`.
        name: The file's.
        bytes_per_second: How fast bytes have become durable lately; None without `with_rate`, and before it can know.
        seconds_left: How long the rest takes at that rate; None where that, or `total`, isn't known, and at rate 0.
    """

    transferred: int
    total: int | None
    name: str = field(default="", kw_only=True)
    bytes_per_second: float | None = field(default=None, kw_only=True)
    seconds_left: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, repr=False)
class TotalProgress(Progress):
    """The progress of many transfers together, as `total_progress` emits it; `name` is of the last that has moved.

    Attributes:
        transferred: Bytes of the transfers that are under way or completed. It decreases when one starts over or fails.
        total: Of the same transfers; None while one of them doesn't know its own. Grows while transfers begin.
        moved: Bytes that became durable since the subscription: without those that a resumed transfer had already, and
            with those of failed attempts. It never decreases.
        active: Transfers that are under way.
        completed: Transfers that have completed.
        failed: How many have failed.
        skipped: How many were skipped.
    """

    moved: int = field(default=0, kw_only=True)
    active: int = field(default=0, kw_only=True)
    completed: int = field(default=0, kw_only=True)
    failed: int = field(default=0, kw_only=True)
    skipped: int = field(default=0, kw_only=True)


@dataclass(frozen=True, slots=True, repr=False)
class Retrying(_Event):
    """An attempt has failed, and another one will follow.

    Attributes:
        attempt: The number of the next retry: 1 for the first, and for the first after an attempt with progress.
        delay: Seconds until it starts.
        cause: The error of the last attempt.
        name: The file's.
    """

    attempt: int
    delay: float
    cause: Exception
    name: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Completed:
    """The file is verified and published; nothing follows but the observable's completion.

    Attributes:
        info: The stored file: for an upload as the server stored it, for a download as the server announced it.
    """

    info: FileInfo

    @property
    def name(self) -> str:
        """The file's."""
        return self.info.name


TransferEvent = Started | Progress | Retrying | Completed
"""What a transfer of one file emits."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The transfer of one file of a tree has failed; the others go on.

    Attributes:
        name: The file's; of a local folder that can't be read, its name with a slash at the end.
        error: Why.
    """

    name: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file of a tree isn't transferred; nothing of it was written.

    Attributes:
        name: The file's; what isn't UTF-8 in a local one is escaped.
        reason: Why, in words.
    """

    name: str
    reason: str


EXISTS: Final = "it exists already"
"""The reason of `Skipped` where nothing may be overwritten."""

TreeEvent = TransferEvent | Failed | Skipped
"""What the transfer of a tree emits."""
