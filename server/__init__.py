"""The file server: `serve` embeds it in an app or a test, `python -m server` runs it."""

from .app import FileServer, serve, server_tls
from .data import ChatData, get_file_name
from .limits import Limits
from .routes.session import ChatUserSession
from .stores.base import Reader, Store, Upload
from .stores.directory.store import DirectoryStore
from .stores.memory import MemoryStore
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
