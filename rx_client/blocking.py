"""A client for scripts, threads and user interfaces: for code that has no event loop, or isn't in it."""

import ssl
from collections.abc import Callable, Generator, Sequence
from threading import Lock
from typing import Self, TypeVar

from reactivex import Observable, abc

from shared.aio import running_loop
from shared.errors import ClientClosed, WrongLoop

from .client import Client
from .connection.managed import Connection
from .connection.options import Auth, ConnectOptions
from .rx.blocking import deliver_on, iterate, run
from .rx.loop_thread import LoopThread

__all__ = ["BlockingFileClient"]

T = TypeVar("T")


class BlockingFileClient(Client):
    """The files of a server, for code without an event loop; made by `FileClient.blocking`, it has a thread with one.

    Its observables are those of `Client`. What is in their pipes, operators and functions, runs in the client's thread,
    and must not block. What is outside is called here: `run`, `iterate` and `subscribe` take any observable, also one
    that RxPY has made of several, and may be called in any other thread. ::

        with FileClient.blocking("tcp://localhost:6565") as files:
            files.run(files.upload_from("a", "a.bin").pipe(retry_backoff()))
            for name in files.iterate(files.list_files()):
                print(name)

    A process that ends without `close` has that done.
    """

    def __init__(self, thread: LoopThread, connection: Connection) -> None:
        super().__init__(connection)
        self._thread = thread
        self._closing = Lock()
        self._is_closed = False

    @staticmethod
    def open(
        uri: str | Sequence[str], auth: Auth | None, tls: ssl.SSLContext | None, options: ConnectOptions
    ) -> "BlockingFileClient":
        """See `FileClient.blocking`."""
        clients: list[BlockingFileClient] = []

        async def connect() -> None:
            connection = Connection(uri, options, auth, tls)
            clients.append(BlockingFileClient(thread, connection))
            try:
                await connection.open()
            except BaseException:
                await connection.close()
                raise

        async def close() -> None:
            for client in clients:
                await client._shut_down()

        thread = LoopThread(on_exit=close)
        try:
            thread.call(connect)
        except BaseException:
            thread.stop()
            raise
        return clients[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is under way with ClientClosed, the connection, and the thread; closing twice is fine.

        Raises:
            WrongLoop: It is called in the client's own thread, for whose end it waits.
        """
        if running_loop() is self._thread.loop:
            raise WrongLoop("close() would wait for the thread that it is called in: call it in another one")
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                self._thread.call(self._shut_down)
            finally:
                self._thread.stop()

    def run(self, observable: Observable[T], timeout: float | None = None) -> T:
        """Subscribes, blocks until the end, and returns the last item. An exception here, such as Ctrl-C's, disposes.

        Args:
            observable: What is subscribed to.
            timeout: The most seconds that it may take; None for no limit.

        Raises:
            Exception: The observable's error.
            SequenceContainsNoElementsError: RxPY's, if it completes without an item.
            DeadlineExceeded: It takes longer than `timeout`; it is disposed of.
            WrongLoop: It is called in the client's own thread, in an operator of a pipe say, and would wait for itself.
            ClientClosed: The client is closed.
            TypeError: `observable` is none: a coroutine, say.
            ValueError: `timeout` isn't more than 0.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        self._check(observable)
        return run(self._thread.loop, observable, timeout)

    def iterate(self, observable: Observable[T]) -> Generator[T, None, None]:
        """Yields the items as they come: `for chunk in files.iterate(files.download_chunks("a")):`.

        It subscribes at the first one. An item counts against the source's window until the next one is asked for, so
        that a slow loop slows the sender down. A `Progress` that isn't taken is replaced by the next one; of what can't
        be slowed down 1,024 items may wait. The loop's `break`, or an exception in it, disposes, as does `close()` of
        what is returned.

        Raises (as the generator goes on):
            Exception: The observable's error, after the items before it.
            BackpressureOverflow: More items wait; after them.
            WrongLoop: As for `run`.
            ClientClosed: The client is closed.
            TypeError: As for `run`.
        """
        self._check(observable)
        yield from iterate(self._thread.loop, observable)

    def subscribe(
        self,
        observable: Observable[T],
        on_next: Callable[[T], object] | None = None,
        on_error: Callable[[Exception], object] | None = None,
        on_completed: Callable[[], object] | None = None,
        *,
        scheduler: abc.SchedulerBase,
    ) -> abc.DisposableBase:
        """Subscribes, and has these functions called by `scheduler`, one call at a time: in a user interface's thread.

        An item counts against the source's window until `on_next` has returned there, unlike with RxPY's `observe_on`:
        a user interface that is slow slows the sender down, and a tree begins no new file. What can't be slowed down is
        as for `iterate`.

        Args:
            observable: What is subscribed to.
            on_next: Called with each item. If it raises, the subscription ends, and `on_error` gets what it raised.
            on_error: Called with the error that the observable ends with. None raises it in the scheduler's thread.
            on_completed: Called at the end, if there was no error.
            scheduler: RxPY's of a user interface, an event loop or a thread, or another one whose `schedule` may be
                called in any thread. Those of Qt and Tk may not: subscribe in their own thread; it then looks for items
                50 times a second. One of an asyncio loop is used as a thread-safe one.

        Returns:
            Disposes in any thread. If that is the scheduler's, nothing is called there any more.

        Raises:
            ClientClosed: The client is closed.
            TypeError: As for `run`.
        """
        self._check(observable)
        return deliver_on(
            scheduler,
            self._thread.loop,
            observable,
            on_next or _ignore,
            on_error or _raise,
            on_completed or _ignore_end,
        )

    def _check(self, observable: Observable[T]) -> None:
        # Anything that has a `subscribe`, as this client does, would be waited for without end.
        if not isinstance(observable, Observable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"this takes an observable, such as `files.list_files()`, not {type(observable).__name__}")
        if self._is_closed:
            raise ClientClosed("the client is closed")


def _ignore(_: object) -> None:
    return


def _raise(error: Exception) -> None:
    raise error


def _ignore_end() -> None:
    return
