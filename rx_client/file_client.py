"""The client of an asyncio application, and how it is made."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from rsocket.rsocket_base import RSocketBase

from shared.aio import running_loop

from .blocking import BlockingFileClient
from .client import Client
from .connection.connector import Connector
from .connection.managed import Connection
from .connection.options import Auth, ConnectOptions
from .rx.loops import check_is_running

__all__ = ["FileClient"]


class FileClient(Client):
    """The files of a server, for an asyncio application; see `Client` for what holds for all its methods.

    It is made by `connect`, or by `open`. `blocking` makes one for applications without an event loop.

    Args:
        rsocket: A connected rsocket with composite metadata; it stays the caller's to close.
    """

    def __init__(self, rsocket: RSocketBase | Connector) -> None:
        if isinstance(rsocket, str | Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                "FileClient(...) takes a connected rsocket; with a URI write "
                "`async with FileClient.connect(uri) as files:` or `files = await FileClient.open(uri)`"
            )
        super().__init__(rsocket)

    @staticmethod
    @asynccontextmanager
    async def connect(
        uri: str | Sequence[str],
        *,
        auth: Auth | None = None,
        tls: ssl.SSLContext | None = None,
        options: ConnectOptions | None = None,
    ) -> "AsyncGenerator[FileClient, None]":
        """A client with a connection of its own: `async with FileClient.connect("tcp://localhost:6565") as files:`.

        If the connection is lost, everything under way fails with ConnectionLost, and the next subscription makes a
        new one: so `retry` resumes. At the block's end, what is under way fails with ClientClosed; so does, within
        0.1 s, what is subscribed to later.

        Args:
            uri: `tcp://HOST[:PORT]`, or `tcps://HOST[:PORT]` with TLS; the port is 6565 if it isn't given. Or several,
                of servers with the same files: they are tried in turn, beginning with the last one that worked.
            auth: A user name and a password, or a bearer token; None for neither.
            tls: How to verify the server, and this client's certificate; the system's authorities if None.
            options: See `ConnectOptions`.

        Raises (on entering the block):
            ValueError: `uri` is something else, or `tls` is given with `tcp`.
            ConnectionFailed: The connection is refused, the host unknown, or no answer comes.
            TlsFailed: A certificate isn't accepted, or only one side is encrypted; not retryable.
            Unauthenticated: The server wants other credentials.
            ServerFull: The server has no room for another connection.
        """
        client = await FileClient.open(uri, auth=auth, tls=tls, options=options)
        try:
            yield client
        finally:
            await client.close()

    @staticmethod
    async def open(
        uri: str | Sequence[str],
        *,
        auth: Auth | None = None,
        tls: ssl.SSLContext | None = None,
        options: ConnectOptions | None = None,
    ) -> "FileClient":
        """As `connect`, without a block, for a notebook, say: `files = await FileClient.open(uri)`; `close` ends it."""
        connection = Connection(uri, options or ConnectOptions(), auth, tls)
        client = FileClient(connection)
        try:
            await connection.open()
        except BaseException:
            await client.close()
            raise
        return client

    async def close(self) -> None:
        """Ends what is under way, and the connection, as at the end of `connect`'s block; closing twice is fine.

        An rsocket that was given to the client stays as it is, with the requests that are under way there.

        Raises:
            WrongLoop: This is another event loop than the client's, which doesn't run.
        """
        loop = self._connector.loop
        if loop is None or loop is running_loop():
            await self._shut_down()
        elif not loop.is_closed():
            check_is_running(loop)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._shut_down(), loop))

    @staticmethod
    def blocking(
        uri: str | Sequence[str],
        *,
        auth: Auth | None = None,
        tls: ssl.SSLContext | None = None,
        options: ConnectOptions | None = None,
    ) -> BlockingFileClient:
        """A client for code without an event loop: `with FileClient.blocking(uri) as files: files.run(...)`.

        It connects at once, and has a thread that works until `close`, or the end of the block.

        Args:
            uri: As for `connect`.
            auth: As for `connect`.
            tls: As for `connect`.
            options: As for `connect`.

        Raises:
            Exception: As for `connect`.
        """
        return BlockingFileClient.open(uri, auth, tls, options or ConnectOptions())

    async def settle(self) -> None:
        """Returns when nothing of this client runs any more: a disposed transfer still has to close its file, say.

        A source or sink that doesn't return is waited for five seconds at the most.
        """
        await self._settle()
