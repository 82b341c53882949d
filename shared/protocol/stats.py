"""A server's statistics, and their JSON, which is the data of an item of `server.stats`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from ..errors import InvalidRequest
from .messages import JsonMessage

__all__ = ["RouteStats", "ServerStats", "StatsRequest", "TransferStats"]


@dataclass(frozen=True, slots=True)
class StatsRequest(JsonMessage):
    """Requests a snapshot at once, and then one every so many seconds, without end."""

    every: float = 1.0


@dataclass(frozen=True, slots=True)
class RouteStats:
    """The requests of one route since the server's start.

    Attributes:
        route: Its name; `other` for requests that aren't of a known route.
        model: Its interaction model, such as `request-stream`.
        active: Those under way.
        completed: Those whose whole answer was handed to the connection.
        failed: Those that ended with an error.
        cancelled: Those that the client cancelled, or whose connection ended.
    """

    route: str
    model: str
    active: int
    completed: int
    failed: int
    cancelled: int


@dataclass(frozen=True, slots=True)
class TransferStats:
    """A transfer that is under way.

    Attributes:
        route: `file.upload`, `file.download`, or an application's.
        name: The file's.
        user: The user's name; empty where the server has no users.
        peer: The peer's address.
        seconds: How long it has been under way.
        moved_bytes: The content that has passed, of this attempt.
        demand: Items that the receiver has asked for and that haven't passed: at 0 the receiver is slower.
    """

    route: str
    name: str
    user: str
    peer: str
    seconds: float
    moved_bytes: int
    demand: int


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A snapshot of a server.

    Attributes:
        seconds: Since its start.
        connections: Those that are open.
        received_bytes: The content of uploads, since the start.
        sent_bytes: The content of downloads, and all else that answers had, since the start.
        unfinished_uploads: Those that aren't published, under way or not; None if the store doesn't know.
        watched_files: How many files the consumers of all watches know of together.
        requests: By route.
        errors: How many requests failed, by the code of the error, such as `not_found`.
        transfers: Those under way, a hundred at the most, the oldest first.
        active_transfers: How many there are.
    """

    seconds: float = 0.0
    connections: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    unfinished_uploads: int | None = None
    watched_files: int = 0
    requests: Sequence[RouteStats] = ()
    errors: Mapping[str, int] = field(default_factory=dict[str, int])
    transfers: Sequence[TransferStats] = ()
    active_transfers: int = 0

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @staticmethod
    def from_bytes(data: bytes | bytearray) -> "ServerStats":
        """The same back; unknown keys are ignored, and missing ones have their defaults.

        Raises:
            InvalidRequest: It is something else.
        """
        try:
            said: dict[str, Any] = _known(ServerStats, json.loads(data))
            said["requests"] = [RouteStats(**_known(RouteStats, each)) for each in said.get("requests", ())]
            said["transfers"] = [TransferStats(**_known(TransferStats, each)) for each in said.get("transfers", ())]
            return ServerStats(**said)
        except (ValueError, TypeError, RecursionError):
            raise InvalidRequest("the statistics can't be read") from None


def _known(kind: type, said: object) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise TypeError("a JSON object is due")
    values = cast(dict[str, object], said)
    return {each.name: values[each.name] for each in fields(kind) if each.name in values}
