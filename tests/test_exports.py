"""The packages export exactly what `__all__` lists."""

import pytest

import rx_client
import server
import shared
from shared import errors

EXPORTED = {
    "rx_client": {
        *("AsyncWriter", "BlockingFileClient", "Chunk", "ColdReactiveXClient", "FileClient", "Files", "parse_uri"),
        *("ConnectOptions", "Connected", "Connecting", "ConnectionState", "Disconnected"),
        *("Completed", "FileInfo", "Progress", "Retrying", "Started", "TransferEvent"),
        *("Failed", "Skipped", "TotalProgress", "TreeEvent", "WatchEvent"),
        *("RouteStats", "ServerStats", "TransferStats"),
        *("RateLimit", "rate_limit", "is_transient", "is_retryable"),
        *(name for name in errors.__all__ if name[0].isupper()),
    },
    "server": {
        *("ChatData", "ChatUserSession", "FileServer", "get_file_name", "serve"),
        *("DirectoryStore", "MemoryStore", "Page", "Reader", "Store", "Upload"),
        *("Limits", "Users", "server_tls"),
        *("ConnectionContext", "Items", "Model", "Request", "Right", "Route"),
    },
}


@pytest.mark.parametrize("package", [rx_client, server, shared])
def test_all_lists_exactly_the_exports(package: object) -> None:
    exported = package.__all__
    assert len(set(exported)) == len(exported)
    assert all(hasattr(package, name) for name in exported)
    expected = EXPORTED.get(package.__name__)
    assert expected is None or set(exported) == expected


def test_shared_exports_every_error() -> None:
    assert {name for name in errors.__all__ if name[0].isupper()} <= set(shared.__all__)
    assert shared.chat_filename_mimetype == b"chat/file-name"
