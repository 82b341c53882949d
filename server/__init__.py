"""The file server: `serve` embeds it in an app or a test, `python -m server` runs it."""

from .data import ChatData, get_file_name
from .directory_store import DirectoryStore
from .memory_store import MemoryStore
from .serving import FileServer, serve
from .session import ChatUserSession
from .store import Reader, Store, Upload

__all__ = [
    "ChatData",
    "ChatUserSession",
    "DirectoryStore",
    "FileServer",
    "MemoryStore",
    "Reader",
    "Store",
    "Upload",
    "get_file_name",
    "serve",
]
