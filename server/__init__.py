"""The file server: `serve` embeds it in an app or a test, `python -m server` runs it."""

from ._siblings import check_sibling as check_sibling  # first: it says what else is in the way of `shared`
from .app import FileServer, serve
from .data import ChatData, get_file_name
from .limits import Limits
from .routes.context import ConnectionContext
from .routes.pull import Items
from .routes.session import ChatUserSession
from .routes.table import Model, Request, Route
from .stores.base import Page, Reader, Store, Upload
from .stores.directory.store import DirectoryStore
from .stores.memory import MemoryStore
from .tls import server_tls
from .users import Right, Users

__all__ = [
    "ChatData",
    "ChatUserSession",
    "ConnectionContext",
    "DirectoryStore",
    "FileServer",
    "Items",
    "Limits",
    "MemoryStore",
    "Model",
    "Page",
    "Reader",
    "Request",
    "Right",
    "Route",
    "Store",
    "Upload",
    "Users",
    "get_file_name",
    "serve",
    "server_tls",
]
