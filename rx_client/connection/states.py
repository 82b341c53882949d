"""The states of a connection, as `FileClient.connection_state` emits them."""

from dataclasses import dataclass

from shared.errors import TransferError

__all__ = ["Connected", "Connecting", "ConnectionState", "Disconnected"]


@dataclass(frozen=True, slots=True)
class Connecting:
    """A connection is being made."""


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """There is none; the next operation makes one.

    Attributes:
        cause: Why the last one ended, or could not be made.
    """

    cause: TransferError


ConnectionState = Connecting | Connected | Disconnected
