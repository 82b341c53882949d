"""Every error that a user of a transfer can meet, and how each one travels in an RSocket ERROR frame.

The tree (`*` marks the retryable ones: the same request may succeed later, unchanged)::

    TransferError
    ├── RequestRefused            the request can't be served as it stands
    │   ├── InvalidRequest        invalid_request
    │   ├── InvalidName           invalid_name
    │   ├── UnknownRoute          unknown_route
    │   ├── NotFound              not_found
    │   ├── AlreadyExists         already_exists
    │   ├── Changed               changed
    │   ├── TooLarge              too_large
    │   ├── Unauthenticated       unauthenticated
    │   └── PermissionDenied      permission_denied
    ├── IntegrityError            integrity_error
    ├── Superseded                superseded
    ├── StorageFull               storage_full
    ├── ServerFull *              server_full
    ├── TooManyStreams *          too_many_streams
    ├── ServerError *             internal
    ├── RemoteError               (an error text that is none of the above, from a foreign server)
    ├── ProtocolError             (the peer answered something that the protocol doesn't allow)
    ├── Stalled *                 stalled
    ├── DeadlineExceeded          (also a TimeoutError; the operation took longer than its `deadline`)
    ├── SourceExhausted           (a source can't be read again from where the upload has to go on)
    ├── BackpressureOverflow      (a source that can't be slowed down outran its buffer)
    └── ConnectionFailed *        (also a ConnectionError; no connection could be made)
        └── ConnectionLost *      (the connection ended while the operation was under way)
            └── ClientClosed      (the application closed the client)

On the wire an error is `code: message` in UTF-8, with a frame code of 0x201 (APPLICATION_ERROR), 0x202 (REJECTED: the
server is full) or 0x204 (INVALID: the request is malformed). Those without a `code` above are made by the client alone.
"""

from typing import ClassVar

from rsocket.error_codes import ErrorCode
from rsocket.exceptions import RSocketProtocolError

__all__ = [
    "AlreadyExists",
    "BackpressureOverflow",
    "Changed",
    "ClientClosed",
    "ConnectionFailed",
    "ConnectionLost",
    "DeadlineExceeded",
    "IntegrityError",
    "InvalidName",
    "InvalidRequest",
    "NotFound",
    "PermissionDenied",
    "ProtocolError",
    "RemoteError",
    "RequestRefused",
    "ServerError",
    "ServerFull",
    "SourceExhausted",
    "Stalled",
    "StorageFull",
    "Superseded",
    "TooLarge",
    "TooManyStreams",
    "TransferError",
    "Unauthenticated",
    "UnknownRoute",
    "from_error_frame",
    "is_retryable",
    "to_protocol_error",
]

# Longer texts are cut: an error is one line for a person, and must fit one small frame.
_MAX_MESSAGE_CHARS = 2048


class TransferError(Exception):
    """The root of the tree above.

    Attributes:
        code: The word that stands for this class on the wire; "" where it never travels.
        error_code: The ERROR frame's code that goes with it.
        retryable: Whether the same request, unchanged, may succeed later.
        message: One line for a person; what to do about it, where that can be said.
        name: The file that the error is about, or None.
    """

    code: ClassVar[str] = ""
    error_code: ClassVar[ErrorCode] = ErrorCode.APPLICATION_ERROR
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.name = name


class RequestRefused(TransferError):
    """The request can't be served as it stands; asking again won't help."""


class InvalidRequest(RequestRefused):
    """The request is malformed: its metadata is missing, truncated, doubled, or says something that has no meaning."""

    code = "invalid_request"
    error_code = ErrorCode.INVALID


class InvalidName(RequestRefused):
    """The file name is empty, over 1,024 bytes, not UTF-8, or has NUL or control characters."""

    code = "invalid_name"
    error_code = ErrorCode.INVALID


class UnknownRoute(RequestRefused):
    """The server has no such route for this interaction model."""

    code = "unknown_route"


class NotFound(RequestRefused):
    """There is no file of that `name`."""

    code = "not_found"

    @classmethod
    def for_name(cls, name: str) -> "NotFound":
        """The error for a file that isn't there."""
        return cls(f"no file named {name!r}", name=name)


class AlreadyExists(RequestRefused):
    """There is a file of that `name` already, and the request said not to overwrite it."""

    code = "already_exists"


class Changed(RequestRefused):
    """The file isn't the one that `if_match` names any more."""

    code = "changed"


class TooLarge(RequestRefused):
    """The content is over the server's limit for one file or one request."""

    code = "too_large"


class Unauthenticated(RequestRefused):
    """The server wants to know who is asking, and the connection's credentials are missing or wrong."""

    code = "unauthenticated"


class PermissionDenied(RequestRefused):
    """The user is known and may not do this."""

    code = "permission_denied"


class IntegrityError(TransferError):
    """The bytes that arrived aren't the bytes that were sent; nothing was published."""

    code = "integrity_error"


class Superseded(TransferError):
    """A newer transfer with the same `upload_id` took over."""

    code = "superseded"


class StorageFull(TransferError):
    """The server's disk or memory store has no room for the content."""

    code = "storage_full"


class ServerFull(TransferError):
    """The server has no capacity just now."""

    code = "server_full"
    error_code = ErrorCode.REJECTED
    retryable = True


class TooManyStreams(TransferError):
    """This connection has more requests under way than the server allows."""

    code = "too_many_streams"
    error_code = ErrorCode.REJECTED
    retryable = True


class ServerError(TransferError):
    """The server failed in a way that isn't the request's fault; its own log says how."""

    code = "internal"
    retryable = True


class RemoteError(TransferError):
    """A foreign server answered with an error text that isn't in our list; `message` is its text."""


class ProtocolError(TransferError):
    """The peer answered something that the protocol doesn't allow."""


class SourceExhausted(TransferError):
    """A source can't be read again from where the upload has to go on, or ended before that."""


class BackpressureOverflow(TransferError):
    """A source that can't be slowed down outran its buffer."""


class Stalled(TransferError, TimeoutError):
    """Nothing moved within the time allowed. A server says so of a payload whose rest doesn't come."""

    code = "stalled"
    retryable = True


class DeadlineExceeded(TransferError, TimeoutError):
    """The operation took longer than its `deadline`."""


class ConnectionFailed(TransferError, ConnectionError):
    """No connection could be made: refused, unresolvable, timed out, or the peer rejected our SETUP."""

    retryable = True


class ConnectionLost(ConnectionFailed):
    """The connection ended while the operation was under way."""


class ClientClosed(ConnectionLost):
    """The application closed the client."""

    retryable = False


_BY_CODE: dict[str, type[TransferError]] = {
    error.code: error
    for error in (
        InvalidRequest,
        InvalidName,
        UnknownRoute,
        NotFound,
        AlreadyExists,
        Changed,
        TooLarge,
        Unauthenticated,
        PermissionDenied,
        IntegrityError,
        Superseded,
        StorageFull,
        ServerFull,
        TooManyStreams,
        ServerError,
        Stalled,
    )
}

_SETUP_ERRORS = frozenset({ErrorCode.INVALID_SETUP, ErrorCode.UNSUPPORTED_SETUP, ErrorCode.REJECTED_SETUP})
_CONNECTION_ERRORS = frozenset({ErrorCode.CONNECTION_ERROR, ErrorCode.CONNECTION_ERROR_NO_RETRY})


def is_retryable(error: Exception) -> bool:
    """Whether the same request, unchanged, may succeed later."""
    return isinstance(error, TransferError) and error.retryable


def to_protocol_error(error: BaseException) -> RSocketProtocolError:
    """What rsocket turns into an ERROR frame for `error`.

    An exception from outside the tree becomes `internal` with a fixed text: its own may name paths, queries or secrets,
    and belongs in the server's log alone.
    """
    if not (isinstance(error, TransferError) and error.code):
        error = ServerError("the server failed to serve this request; its log says why")
    text = f"{error.code}: {_one_line(error.message)}"
    return RSocketProtocolError(error.error_code, data=text)


def from_error_frame(error_code: int, data: bytes | bytearray | memoryview, name: str | None = None) -> TransferError:
    """The exception for an ERROR frame; never raises, whatever a peer sends.

    Args:
        error_code: The frame's code.
        data: The frame's data; what isn't UTF-8 in it is replaced.
        name: The file that the request was about.
    """
    text = _one_line(bytes(data).decode("utf-8", errors="replace"))
    code, separator, message = text.partition(": ")
    known = _BY_CODE.get(code) if separator else None
    if known is not None and error_code not in _CONNECTION_ERRORS:
        return known(message, name=name)
    if error_code in _CONNECTION_ERRORS:
        return ConnectionLost(text or "the connection to the server was lost", name=name)
    if error_code in _SETUP_ERRORS:
        return ConnectionFailed(f"the server rejected the connection: {text or 'no reason given'}", name=name)
    if error_code == ErrorCode.INVALID:
        return InvalidRequest(text or "the server says that the request is malformed", name=name)
    if error_code == ErrorCode.REJECTED:
        return ServerFull(text or "the server rejected the request", name=name)
    return RemoteError(text or f"the server failed, without a text (error code {error_code:#x})", name=name)


def _one_line(text: str) -> str:
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return printable if len(printable) <= _MAX_MESSAGE_CHARS else printable[: _MAX_MESSAGE_CHARS - 1] + "…"
