"""The reactive client: file transfers over RSocket as cold Rx observables."""

from .chunks import Chunk
from .client import FileClient
from .connection.options import ConnectOptions, parse_uri
from .connection.states import Connected, Connecting, ConnectionState, Disconnected
from .errors import is_transient
from .events import (
    Completed,
    Failed,
    Progress,
    Retrying,
    Skipped,
    Started,
    TotalProgress,
    TransferEvent,
    TreeEvent,
)
from .requests.cold import ColdReactiveXClient
from .transfers.limit import RateLimit, rate_limit
from .transfers.sinks import AsyncWriter

__all__ = [
    "AsyncWriter",
    "Chunk",
    "ColdReactiveXClient",
    "Completed",
    "ConnectOptions",
    "Connected",
    "Connecting",
    "ConnectionState",
    "Disconnected",
    "Failed",
    "FileClient",
    "Progress",
    "RateLimit",
    "Retrying",
    "Skipped",
    "Started",
    "TotalProgress",
    "TransferEvent",
    "TreeEvent",
    "is_transient",
    "parse_uri",
    "rate_limit",
]
