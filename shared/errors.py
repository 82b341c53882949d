"""Every error that a transfer can end with, and how each is carried by an RSocket ERROR frame.

The tree; the errors with `*` are retryable, that is, the same request may succeed later::

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
    │   ├── PermissionDenied      permission_denied
    │   └── Forbidden             forbidden
    ├── IntegrityError            integrity_error
    │   └── SourceChanged *       (a source changed while it was uploaded)
    ├── Superseded                superseded
    ├── StorageFull               storage_full
    ├── StorageUnavailable *      storage_unavailable
    ├── ServerFull *              server_full
    ├── TooManyStreams *          too_many_streams
    ├── ServerError *             internal
    ├── RemoteError               (a foreign server's error text, which has none of the codes above)
    ├── ProtocolError             (the peer answered something that the protocol doesn't allow)
    ├── Stalled *                 stalled
    ├── DeadlineExceeded          (also a TimeoutError; the operation took longer than its `deadline`)
    ├── SourceExhausted           (a source can't be read again from where the upload has to go on)
    ├── BackpressureOverflow      (a source that can't be slowed down outran its buffer)
    ├── WrongLoop                 (also a RuntimeError; used where its event loop can't be reached)
    └── ConnectionFailed *        (also a ConnectionError; no connection could be made)
        ├── TlsFailed             tls_failed
        └── ConnectionLost *      (the connection ended while the operation was under way)
            └── ClientClosed      (the application closed the client)

On the wire an error is `code: message` in UTF-8, with a frame code of 0x201 (APPLICATION_ERROR), 0x202 (REJECTED: the
server is full) or 0x204 (INVALID: the request is malformed). Errors without a code are raised by the client alone.
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
    "Forbidden",
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
    "SourceChanged",
    "SourceExhausted",
    "Stalled",
    "StorageFull",
    "StorageUnavailable",
    "Superseded",
    "TlsFailed",
    "TooLarge",
    "TooManyStreams",
    "TransferError",
    "Unauthenticated",
    "UnknownRoute",
    "WrongLoop",
    "from_error_frame",
    "is_code",
    "is_retryable",
    "to_protocol_error",
]

# Longer texts are cut: an error is one line for a person, and fits one small frame.
_MAX_MESSAGE_CHARS = 2048


class TransferError(Exception):
    """The root of the tree above.

    Attributes:
        code: The class's name on the wire; "" if it is raised by the client alone.
        error_code: The code of its ERROR frame.
        retryable: Whether the same request may succeed later.
        message: One line for a person; it says what to do, where that is known.
        name: The file that the error is about, or None.
    """

    code: ClassVar[str] = ""
    error_code: ClassVar[ErrorCode] = ErrorCode.APPLICATION_ERROR
    retryable: ClassVar[bool] = False

    def __init_subclass__(
        cls, *, code: str | None = None, error_code: ErrorCode | None = None, retryable: bool | None = None
    ) -> None:
        super().__init_subclass__()
        cls.code = cls.code if code is None else code
        cls.error_code = cls.error_code if error_code is None else error_code
        cls.retryable = cls.retryable if retryable is None else retryable

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.name = name


class RequestRefused(TransferError):
    """The request can't be served as it stands; repeating it won't help."""


class InvalidRequest(RequestRefused, code="invalid_request", error_code=ErrorCode.INVALID):
    """The request is malformed: its metadata is missing, truncated, duplicated or meaningless."""


class InvalidName(RequestRefused, code="invalid_name", error_code=ErrorCode.INVALID):
    """The file name is empty, over 1,024 bytes, not UTF-8, or has NUL or control characters."""


class UnknownRoute(RequestRefused, code="unknown_route"):
    """The server has no such route for this interaction model."""


class NotFound(RequestRefused, code="not_found"):
    """There is no file `name`."""

    @classmethod
    def for_name(cls, name: str) -> "NotFound":
        """The error for a missing file."""
        return cls(f"no file named {name!r}", name=name)


class AlreadyExists(RequestRefused, code="already_exists"):
    """There is a file `name` already, and the request doesn't allow to overwrite it."""


class Changed(RequestRefused, code="changed"):
    """The file's etag isn't the request's `if_match`."""


class TooLarge(RequestRefused, code="too_large"):
    """The content is over the server's limit for one file or one request."""


class Unauthenticated(RequestRefused, code="unauthenticated"):
    """The server requires authentication, and the connection's credentials are missing or wrong."""


class PermissionDenied(RequestRefused, code="permission_denied"):
    """The user is authenticated and doesn't have the right."""


class Forbidden(RequestRefused, code="forbidden"):
    """The server's store allows it to no user: its files are read-only, or the server itself lacks the right."""


class IntegrityError(TransferError, code="integrity_error"):
    """The received bytes aren't the bytes that were sent; nothing was published."""


class SourceChanged(IntegrityError, code="", retryable=True):
    """A source changed while it was uploaded; nothing was published, and the next attempt starts over."""


class Superseded(TransferError, code="superseded"):
    """A newer transfer with the same `upload_id` took over."""


class StorageFull(TransferError, code="storage_full"):
    """The server's disk or memory store has no room for the content."""


class StorageUnavailable(TransferError, code="storage_unavailable", retryable=True):
    """The server's disk fails, or the folder with its files isn't there at the moment."""


class ServerFull(TransferError, code="server_full", error_code=ErrorCode.REJECTED, retryable=True):
    """The server has no capacity at the moment."""


class TooManyStreams(TransferError, code="too_many_streams", error_code=ErrorCode.REJECTED, retryable=True):
    """This connection has more requests under way than the server allows."""


class ServerError(TransferError, code="internal", retryable=True):
    """The server failed, and not because of the request; its log says why."""


class RemoteError(TransferError):
    """A foreign server sent an error text that has none of the codes; `message` is the text."""


class ProtocolError(TransferError):
    """The peer answered something that the protocol doesn't allow."""


class SourceExhausted(TransferError):
    """A source can't be read again from where the upload has to go on, or ended before that."""


class BackpressureOverflow(TransferError):
    """A source that can't be slowed down outran its buffer."""


class WrongLoop(TransferError, RuntimeError):
    """An observable was used outside of its event loop, which can't be handed the work; the message says what to do."""


class Stalled(TransferError, TimeoutError, code="stalled", retryable=True):
    """Nothing was moved in the time allowed; a server sends this about a payload whose rest doesn't arrive."""


class DeadlineExceeded(TransferError, TimeoutError):
    """The operation took longer than its `deadline`."""


class ConnectionFailed(TransferError, ConnectionError, retryable=True):
    """No connection could be made: refused, unresolvable, timed out, or the peer rejected our SETUP."""


class TlsFailed(ConnectionFailed, code="tls_failed", error_code=ErrorCode.REJECTED_SETUP, retryable=False):
    """TLS fails for good: a certificate isn't accepted, the versions don't match, or only one side is encrypted."""


class ConnectionLost(ConnectionFailed):
    """The connection ended while the operation was under way."""


class ClientClosed(ConnectionLost, retryable=False):
    """The application closed the client."""


_BY_CODE: dict[str, type[TransferError]] = {
    kind.code: kind
    for kind in (*TransferError.__subclasses__(), *RequestRefused.__subclasses__(), TlsFailed)
    if kind.code
}

_SETUP_ERRORS = frozenset({ErrorCode.INVALID_SETUP, ErrorCode.UNSUPPORTED_SETUP, ErrorCode.REJECTED_SETUP})
_CONNECTION_ERRORS = frozenset({ErrorCode.CONNECTION_ERROR, ErrorCode.CONNECTION_ERROR_NO_RETRY})


def is_retryable(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, TransferError) and error.retryable


def to_protocol_error(error: BaseException) -> RSocketProtocolError:
    """The exception that rsocket sends as the ERROR frame of `error`.

    An exception that isn't in the tree becomes `internal` with a fixed text: its own text may contain paths, queries or
    secrets, and belongs in the server's log alone.
    """
    if not (isinstance(error, TransferError) and error.code):
        error = ServerError("the server failed to serve this request; its log says why")
    text = f"{error.code}: {_one_line(error.message)}"
    return RSocketProtocolError(error.error_code, data=text)


def is_code(text: str) -> bool:
    """Whether an error on the wire has this code."""
    return text in _BY_CODE


def from_error_frame(error_code: int, data: bytes | bytearray | memoryview, name: str | None = None) -> TransferError:
    """The exception for an ERROR frame, of a request about the file `name`. Never raises: invalid UTF-8 is replaced."""
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
