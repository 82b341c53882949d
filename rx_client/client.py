"""The client: file transfers as cold Rx observables."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, TypeVar

import reactivex
from reactivex import Observable
from reactivex import operators as ops
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.errors import InvalidName, NotFound, ProtocolError, RemoteError, TransferError
from shared.wire import FileInfo, Route, decode_name, request_metadata

from .connection import open_connection
from .observables import on_loop
from .requests import ColdReactiveXClient

__all__ = ["Content", "FileClient"]

T = TypeVar("T")

Content = bytes | bytearray | memoryview
"""What can be uploaded as a whole."""

# Names that a listing's server may be ahead: a few kilobytes, and no round trip is waited for.
_LIST_REQUEST_N: Final = 256


class FileClient:
    """Uploads, downloads and lists files over one RSocket connection.

    What its methods return is cold: nothing is sent before somebody subscribes, each subscription is one request, and
    disposing a subscription cancels that request alone. Awaiting an observable gives its last value. Everything runs on
    the event loop that the connection belongs to; operators that need time use it, too.

    Args:
        rsocket: A connected rsocket with composite metadata; it stays the caller's to close. See also `connect`.
    """

    def __init__(self, rsocket: RSocketBase) -> None:
        self._requests = ColdReactiveXClient(rsocket)

    @staticmethod
    def connect(uri: str) -> "AbstractAsyncContextManager[FileClient]":
        """A client with a connection of its own: `async with FileClient.connect("tcp://localhost:6565") as files:`.

        Args:
            uri: `tcp://HOST[:PORT]`; the port is 6565 if it isn't given.

        Raises (on entering the block):
            ValueError: `uri` is something else.
            ConnectionFailed: The connection is refused, the host unknown, or nobody answers.
        """
        return _connected(uri)

    def upload(self, name: str, content: Content) -> Observable[FileInfo]:
        """Stores `content` as the file `name`, in place of what has that name.

        Args:
            name: 1 to 1,024 bytes of UTF-8 without control characters.
            content: The whole file. A mutable one is copied when this method is called.

        Returns:
            Emits one FileInfo (name and size; the tutorial's route tells no more) when the server has stored the file,
            and completes.

        Raises:
            TypeError: `name` isn't a str, or `content` isn't bytes-like.

        Raises (through `on_error`):
            InvalidName: `name` isn't one.
            TransferError: The server refused, or the connection was lost.
        """
        _check_type(name)
        if not isinstance(content, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"content must be bytes, bytearray or memoryview, not {type(content).__name__}")
        data = bytes(content)
        info = FileInfo(name=name, size=len(data))
        return self._ask(Route.UPLOAD, name, data, lambda _: info)

    def download(self, name: str) -> Observable[bytes]:
        """Fetches the whole file `name` into memory.

        Returns:
            Emits exactly one `bytes`, also for an empty file, and completes.

        Raises:
            TypeError: `name` isn't a str.

        Raises (through `on_error`):
            InvalidName: `name` isn't one.
            NotFound: There is no such file.
            TransferError: The server refused, or the connection was lost.
        """
        _check_type(name)
        return self._ask(Route.DOWNLOAD, name, None, lambda answer: bytes(answer.data or b""))

    def list_files(self, request_n: int = _LIST_REQUEST_N) -> Observable[str]:
        """Lists the files that the server has at one moment.

        Args:
            request_n: The demand: the server is never more than this many names ahead of the subscriber.

        Returns:
            Emits each file's name, in the server's order, and completes; empty if there are no files.

        Raises:
            ValueError: `request_n` isn't 1 to 2**31 - 1.

        Raises (through `on_error`):
            ProtocolError: The server sent something that can't be a file's name.
            TransferError: The server refused, or the connection was lost.
        """
        request = Payload(b"", request_metadata(Route.FILES))
        return self._requests.request_stream(request, request_n).pipe(ops.map(_listed_name))

    def _ask(self, route: str, name: str, data: bytes | None, convert: Callable[[Payload], T]) -> Observable[T]:
        try:
            request = Payload(data, request_metadata(route, name))
        except InvalidName as error:
            error.name = name
            return on_loop(reactivex.throw(error))
        return self._requests.request_response(request).pipe(
            ops.map(convert),
            ops.catch(lambda error, _: reactivex.throw(_about(error, name))),
        )


@asynccontextmanager
async def _connected(uri: str) -> AsyncGenerator[FileClient, None]:
    rsocket = await open_connection(uri)
    try:
        yield FileClient(rsocket)
    finally:
        await rsocket.close()


def _check_type(name: str) -> None:
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a file name must be a str, not {type(name).__name__}")


def _about(error: Exception, name: str) -> Exception:
    """`error`, knowing which file it is about."""
    if isinstance(error, RemoteError) and error.message == repr(name):
        # The tutorial's server answers with the text of its KeyError.
        return NotFound.for_name(name)
    if isinstance(error, TransferError) and error.name is None:
        error.name = name
    return error


def _listed_name(item: Payload) -> str:
    try:
        return decode_name(item.data or b"")
    except InvalidName as error:
        raise ProtocolError(f"the server listed a file whose name can't be one: {error.message}") from None
