"""The file server: `serve` embeds it in an app or a test, `python -m server` runs it."""

from .data import ChatData, get_file_name
from .directory_store import DirectoryStore
from .limits import Limits
from .memory_store import MemoryStore
from .serving import FileServer, serve, server_tls
from .session import ChatUserSession
from .store import Reader, Store, Upload
from .users import Users

__all__ = [
    "ChatData",
    "ChatUserSession",
    "DirectoryStore",
    "FileServer",
    "Limits",
    "MemoryStore",
    "Reader",
    "Store",
    "Upload",
    "Users",
    "get_file_name",
    "serve",
    "server_tls",
]
