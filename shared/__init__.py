"""What server and client agree on: the wire's vocabulary, the errors, and the transport. Imports neither of them."""

from . import errors
from .errors import *  # noqa: F403
from .protocol.wire import DEFAULT_PORT, FRAGMENT_SIZE_BYTES, MAX_NAME_BYTES, FileInfo, Route, chat_filename_mimetype

__all__ = ["DEFAULT_PORT", "FRAGMENT_SIZE_BYTES", "MAX_NAME_BYTES", "FileInfo", "Route", "chat_filename_mimetype"]
__all__ += errors.__all__
