"""The reactive client: file transfers over RSocket as cold Rx observables.

What this package exports is imported when it is asked for: `rxfiles --help` needs none of it, and takes a third of the
time without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from ._siblings import check_sibling as check_sibling  # it says what else is in the way of `shared`

if TYPE_CHECKING:
    from .blocking import BlockingFileClient
    from .chunks import Chunk
    from .connection.options import ConnectOptions, parse_uri
    from .connection.states import Connected, Connecting, ConnectionState, Disconnected
    from .errors import (
        AlreadyExists,
        BackpressureOverflow,
        Changed,
        ClientClosed,
        ConnectionFailed,
        ConnectionLost,
        DeadlineExceeded,
        Forbidden,
        IntegrityError,
        InvalidName,
        InvalidRequest,
        NotFound,
        PermissionDenied,
        ProtocolError,
        RemoteError,
        RequestRefused,
        ServerError,
        ServerFull,
        SourceChanged,
        SourceExhausted,
        Stalled,
        StorageFull,
        StorageUnavailable,
        Superseded,
        TlsFailed,
        TooLarge,
        TooManyStreams,
        TransferError,
        Unauthenticated,
        UnknownRoute,
        WrongLoop,
        is_retryable,
        is_transient,
    )
    from .events import (
        Completed,
        Failed,
        FileInfo,
        Progress,
        Retrying,
        Skipped,
        Started,
        TotalProgress,
        TransferEvent,
        TreeEvent,
    )
    from .file_client import FileClient
    from .files import Files
    from .requests.cold import ColdReactiveXClient
    from .stats import RouteStats, ServerStats, TransferStats
    from .transfers.limit import RateLimit, rate_limit
    from .transfers.sinks import AsyncWriter
    from .watch import WatchEvent

__all__ = [
    "AlreadyExists",
    "AsyncWriter",
    "BackpressureOverflow",
    "BlockingFileClient",
    "Changed",
    "Chunk",
    "ClientClosed",
    "ColdReactiveXClient",
    "Completed",
    "ConnectOptions",
    "Connected",
    "Connecting",
    "ConnectionFailed",
    "ConnectionLost",
    "ConnectionState",
    "DeadlineExceeded",
    "Disconnected",
    "Failed",
    "FileClient",
    "FileInfo",
    "Files",
    "Forbidden",
    "IntegrityError",
    "InvalidName",
    "InvalidRequest",
    "NotFound",
    "PermissionDenied",
    "Progress",
    "ProtocolError",
    "RateLimit",
    "RemoteError",
    "RequestRefused",
    "Retrying",
    "RouteStats",
    "ServerError",
    "ServerFull",
    "ServerStats",
    "Skipped",
    "SourceChanged",
    "SourceExhausted",
    "Stalled",
    "Started",
    "StorageFull",
    "StorageUnavailable",
    "Superseded",
    "TlsFailed",
    "TooLarge",
    "TooManyStreams",
    "TotalProgress",
    "TransferError",
    "TransferEvent",
    "TransferStats",
    "TreeEvent",
    "Unauthenticated",
    "UnknownRoute",
    "WatchEvent",
    "WrongLoop",
    "is_retryable",
    "is_transient",
    "parse_uri",
    "rate_limit",
]

_HOMES: Final = {
    "blocking": ("BlockingFileClient",),
    "chunks": ("Chunk",),
    "connection.options": ("ConnectOptions", "parse_uri"),
    "connection.states": ("Connected", "Connecting", "ConnectionState", "Disconnected"),
    "events": (
        *("Completed", "Failed", "FileInfo", "Progress", "Retrying", "Skipped", "Started"),
        *("TotalProgress", "TransferEvent", "TreeEvent"),
    ),
    "file_client": ("FileClient",),
    "files": ("Files",),
    "requests.cold": ("ColdReactiveXClient",),
    "stats": ("RouteStats", "ServerStats", "TransferStats"),
    "transfers.limit": ("RateLimit", "rate_limit"),
    "transfers.sinks": ("AsyncWriter",),
    "watch": ("WatchEvent",),
}
"""The modules, and what is exported from each; all else is from `errors`."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_sibling("shared")  # again: what was in the way may have come after this package
    home = next((module for module, names in _HOMES.items() if name in names), "errors")
    value: object = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
