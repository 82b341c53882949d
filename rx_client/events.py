"""The events of a transfer: a closed union, so that `match` can be exhaustive."""

from dataclasses import dataclass

from shared.protocol.wire import FileInfo

__all__ = ["Completed", "Progress", "Retrying", "Started", "TransferEvent"]


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt has begun: the server has answered.

    Attributes:
        upload_id: Identifies the upload for a later resume, in this process or another; None for a download.
        total: The whole content's length in bytes; None if it isn't known.
        resumed_from: Bytes that are durable already; 0 if the transfer starts at the beginning.
    """

    upload_id: str | None
    total: int | None
    resumed_from: int


@dataclass(frozen=True, slots=True)
class Progress:
    """More bytes are durable at the receiving end.

    Attributes:
        transferred: Durable bytes since the beginning of the file; it never decreases during an attempt.
        total: As in `Started`.
    """

    transferred: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Retrying:
    """An attempt has failed, and another one will follow.

    Attributes:
        attempt: The number of the next retry: 1 for the first, and for the first after an attempt with progress.
        delay: Seconds until it starts.
        cause: The error of the last attempt.
    """

    attempt: int
    delay: float
    cause: Exception


@dataclass(frozen=True, slots=True)
class Completed:
    """The file is verified and published; nothing follows but the observable's completion.

    Attributes:
        info: The stored file: for an upload as the server stored it, for a download as the server announced it.
    """

    info: FileInfo


TransferEvent = Started | Progress | Retrying | Completed
