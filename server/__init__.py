"""The file server: `serve` embeds it in an app or a test, `python -m server` runs it."""

from .data import ChatData, get_file_name
from .serving import FileServer, serve
from .session import ChatUserSession

__all__ = ["ChatData", "ChatUserSession", "FileServer", "get_file_name", "serve"]
