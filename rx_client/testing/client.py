"""A `FileClient` without a server, for the tests of an application."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from reactivex import Observable, abc

from shared.errors import ConnectionFailed, RemoteError, TransferError
from shared.protocol.wire import check_name

from ..connection.options import ConnectOptions
from ..events import TransferEvent
from ..file_client import FileClient
from ..rx.deadlines import within
from ..rx.observables import TransferObservable
from .connector import FakeConnector
from .faults import LOSE, STALL
from .script import Timed, play
from .server import FakeServer, Served

__all__ = ["FakeFileClient"]


class FakeFileClient(FileClient):
    """A `FileClient` whose server is a dictionary: no socket, no process, and no need to close it.

    All methods are the real client's, and so are the checks of their arguments, what they emit, their errors, demand,
    retries that resume, cancellation, and the digests. Only the server, and the connection, are played. Make one in a
    test or a fixture, and give it to the code that is tested::

        async def test_a_report_survives_a_lost_connection(tmp_path):
            files = FakeFileClient({"report.csv": b"1,2\\n" * 1000})
            files.lose_after(1000)
            await download_report(files, tmp_path)  # the application's code
            assert (tmp_path / "report.csv").read_bytes() == files.files["report.csv"]

    To code that connects by itself, give it with pytest's monkeypatch and contextlib's nullcontext::

        monkeypatch.setattr(FileClient, "connect", lambda *_, **__: nullcontext(files))

    Requests need an event loop, as asynchronous tests have; scripts, below, don't. `close`, at the end of a fixture
    say, also waits until a transfer that was given up has closed its file.

    Faults happen once each, in the order in which they were asked for, and are counted in bytes of content, of uploads
    and downloads of all kinds: those of a `name`, or all. A fault after 0 bytes happens when the next request begins.
    A transfer's item is cut where the fault is: what came before it has arrived. Files are real, where a method has a
    path, and so is the record of `remember=True`, in the folder that `RXFILES_STATE` names.

    Time is real, unless a test takes a `reactivex.testing.TestScheduler`. Subscribe with `scheduler=` one, or begin
    the pipe in its `start`, and operators such as `ops.timeout`, `stall_timeout` and `retry_backoff` count its time;
    `script` says at which of its times a transfer emits which events::

        scheduler, files = TestScheduler(), FakeFileClient()
        files.script("large", (1, Started(None, 100, 0)), (2, Progress(50, 100)))  # then nothing more comes
        result = scheduler.start(lambda: files.download_to("large", "copy").pipe(stall_timeout(30)))
        assert result.messages[-1].time == 200 + 2 + 30  # `start` subscribes at 200

    Args:
        files: What the server has at the start.
        progress_timeout: Seconds without progress after which a request fails with Stalled, as in `ConnectOptions`.

    Attributes:
        files: The server's files, each one's content by its name. A test may read it, and change it, at any time.
    """

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        progress_timeout: float = ConnectOptions().progress_timeout,
    ) -> None:
        self._server = FakeServer({check_name(name): _content(name, data) for name, data in (files or {}).items()})
        self._fake = FakeConnector(self._server, progress_timeout)
        super().__init__(self._fake)
        self.files: Final = self._server.store.files
        self._scripts: dict[str, deque[abc.Subscription[TransferEvent]]] = {}

    # What a test sees

    @property
    def served(self) -> Sequence[Served]:
        """The requests that have arrived at the server so far, each with its `route` and its file's `name`."""
        return tuple(self._server.served)

    @property
    def active(self) -> Sequence[Served]:
        """Those of them that are under way: none when all were answered, or cancelled by a dispose."""
        peer = self._fake.peer
        return () if peer is None else tuple(peer.open.values())

    @property
    def unfinished(self) -> Mapping[str, bytes]:
        """What the server has of each unfinished upload, by its `upload_id`."""
        return {upload_id: bytes(part.content) for upload_id, part in self._server.store.parts.items()}

    # What a test plays

    def lose_after(self, nbytes: int, *, name: str | None = None) -> None:
        """The connection is lost after so many bytes: everything under way fails with ConnectionLost.

        The next request makes another connection, so a retry resumes where the transfer was.

        Raises:
            ValueError: `nbytes` is less than 0.
        """
        self._server.faults.order(LOSE, nbytes, name)

    def lose(self) -> None:
        """Loses the connection now."""
        self._fake.lose()

    def stall(self, after: int = 0, *, name: str | None = None) -> None:
        """After so many bytes nothing arrives any more at either end, until `release`; `stalled` waits for that.

        The connection stays, and a retry stalls, too. With a `name`, the requests about other files go on.

        Raises:
            ValueError: `after` is less than 0.
        """
        self._server.faults.order(STALL, after, name)

    async def stalled(self) -> None:
        """Returns when a `stall` has begun, and wasn't released."""
        while not self._server.faults.is_stalled:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._server.on_stall.append(waiting)
            try:
                await waiting
            finally:
                self._server.on_stall.remove(waiting)

    def release(self) -> None:
        """Ends the stalls that have begun: what was held up arrives, in its order."""
        self._server.release()

    def refuse(self, error: TransferError, *, after: int = 0, name: str | None = None, times: int = 1) -> None:
        """The server ends the next request with this error, or the transfer that is there after so many bytes.

        ConnectionFailed, and what derives from it, is of no request: the connection is lost now, and the next attempts
        to make one fail with the error, as many as `times` says.

        Args:
            error: One that a server can send, such as NotFound, StorageFull or PermissionDenied.
            after: See above.
            name: The file; None for any.
            times: For how many requests.

        Raises:
            TypeError: `error` is no TransferError.
            ValueError: It is one that only the client raises, `after` is less than 0, or `times` less than 1.
        """
        if not isinstance(error, TransferError):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a server refuses with an instance of TransferError, not with {error!r}")
        if times < 1:
            raise ValueError(f"it is for 1 or more requests, not {times}")
        if isinstance(error, ConnectionFailed):
            self._fake.refusals.extend([error] * times)
            self._fake.lose()
            return
        if not error.code and not isinstance(error, RemoteError):
            raise ValueError(f"no server sends {type(error).__name__}: only the client raises it")
        for _ in range(times):
            self._server.faults.order(error, after, name)

    def script(self, name: str, *events: Timed, scheduler: abc.SchedulerBase | None = None) -> None:
        """The next subscription to `upload_from` or `download_to` of the file emits these events, at these times.

        No file is looked at, and nothing is transferred. An error ends the transfer, Completed completes it, and
        without either it stays open, as one that stalls. Several scripts are for several subscriptions, a retry's too,
        in their order; after the last one the file is transferred.

        Args:
            name: The file's; events without a name get it.
            events: Each with its time in seconds after the subscription: `(1.5, Progress(500, 1000))`.
            scheduler: Times them; by default the subscription's, else the event loop.

        Raises:
            InvalidName: No file can have this name.
            TypeError: An entry is no pair of a number and an event or error.
            ValueError: A time is less than 0, or no finite number.
        """
        self._scripts.setdefault(check_name(name), deque()).append(play(name, events, scheduler))

    def _transfer(
        self, name: str, attempt: Callable[[Callable[[TransferEvent], None]], Awaitable[None]], deadline: float | None
    ) -> Observable[TransferEvent]:
        transfer = super()._transfer(name, attempt, None)

        def subscribe(
            observer: abc.ObserverBase[TransferEvent], scheduler: abc.SchedulerBase | None = None
        ) -> abc.DisposableBase:
            scripts = self._scripts.get(name)
            if scripts:
                return scripts.popleft()(observer, scheduler)
            return transfer.subscribe(observer, scheduler=scheduler)

        return TransferObservable(subscribe, self._fake.loop, name=name).pipe(within(deadline, name))


def _content(name: str, data: bytes | bytearray | memoryview) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the content of {name!r} must be bytes, not {type(data).__name__}")
    return bytes(data)
