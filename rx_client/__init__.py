"""The reactive client: file transfers over RSocket as cold Rx observables."""

from .chunks import Chunk
from .client import FileClient
from .connection.connector import Connected, Connecting, ConnectionState, ConnectOptions, Disconnected, parse_uri
from .events import Completed, Progress, Retrying, Started, TransferEvent
from .requests.cold import ColdReactiveXClient
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
    "FileClient",
    "Progress",
    "Retrying",
    "Started",
    "TransferEvent",
    "parse_uri",
]
