"""What a transfer says while it runs: a closed union, so that `match` can be exhaustive."""

from dataclasses import dataclass

from shared.protocol.wire import FileInfo

__all__ = ["Completed", "Progress", "Retrying", "Started", "TransferEvent"]


@dataclass(frozen=True, slots=True)
class Started:
    """The transfer goes on, or begins.

    Attributes:
        upload_id: Names the upload for a later resume, in this process or another; None for a download.
        total: The whole content's length in bytes; None if the source doesn't know it.
        resumed_from: How many bytes are there already; 0 where the transfer starts (over).
    """

    upload_id: str | None
    total: int | None
    resumed_from: int


@dataclass(frozen=True, slots=True)
class Progress:
    """More bytes are durable at the receiving end.

    Attributes:
        transferred: Durable bytes since the beginning of the file, never less than before on one attempt.
        total: As in `Started`.
    """

    transferred: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Retrying:
    """An attempt failed, and another one will follow.

    Attributes:
        attempt: The number of the coming attempt; the first retry is 1, also after an attempt that got further.
        delay: Seconds until it starts.
        cause: Why the last one failed.
    """

    attempt: int
    delay: float
    cause: Exception


@dataclass(frozen=True, slots=True)
class Completed:
    """The file is verified and published; nothing follows but the observable's completion.

    Attributes:
        info: What was stored: at the server for an upload, as the server told for a download.
    """

    info: FileInfo


TransferEvent = Started | Progress | Retrying | Completed
