"""The verbs of a client: file transfers as cold Rx observables. Clients are made in `file_client` and `blocking`."""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeVar, cast, overload
from uuid import uuid4

import reactivex
from reactivex import Observable
from reactivex import operators as ops
from rsocket.payload import Payload
from rsocket.rsocket_base import RSocketBase

from shared.errors import (
    AlreadyExists,
    InvalidName,
    InvalidRequest,
    NotFound,
    ProtocolError,
    RemoteError,
    TransferError,
)
from shared.protocol.digest import DEFAULT_ALGORITHM, check_algorithm
from shared.protocol.flow import DEFAULT_WINDOW
from shared.protocol.messages import (
    CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    DownloadRequest,
    FileRequest,
    ListRequest,
    MoveRequest,
    Receipt,
    check_upload_id,
    find_transfer,
    parse_info,
    transfer_request,
)
from shared.protocol.stats import ServerStats, StatsRequest
from shared.protocol.wire import FileInfo, Route, check_modified, check_name, decode_name, encode_name, request_metadata

from .chunks import Chunk
from .connection.connector import Connector
from .connection.states import ConnectionState
from .events import TransferEvent, TreeEvent
from .requests.base import MAX_REQUEST_N, MAX_SMALL_BYTES
from .requests.cold import ColdReactiveXClient
from .requests.watching import watch_event
from .rx.deadlines import within
from .rx.loops import LoopScheduler, required_loop
from .rx.observables import on_loop
from .rx.tasks import from_coroutine
from .transfers.download import ChunkRequest, answered_info, download_into
from .transfers.limit import RateLimit, Share, after_payment
from .transfers.remembered import UploadRecord
from .transfers.sinks import SinkLike, to_sink
from .transfers.sources import SourceLike, to_source
from .transfers.trees import EachTransfer, NameFilter, TreeOptions, as_prefix, download_tree, upload_tree
from .transfers.upload import UploadTransfer
from .watch import WatchEvent

__all__ = ["Client", "Content"]

T = TypeVar("T")

Content = bytes | bytearray | memoryview
"""What can be uploaded as a whole."""

# Names that a listing's server may be ahead: a few kilobytes, and no round trip is waited for.
_LIST_REQUEST_N: Final = 256
_SETTLE_SECONDS: Final = 5.0
# Between two statistics.
_LEAST_SECONDS: Final = 0.1
_MOST_SECONDS: Final = 86_400


class Client:
    """The verbs of a client: uploads, downloads and lists files over one RSocket connection.

    What its methods return is cold: nothing is sent before it is subscribed to, each subscription is one request, and
    disposing a subscription cancels that request alone. Awaiting an observable gives its last value. Requests run
    on the event loop that the connection belongs to; operators that need time use it, too.

    Subscribe, await, `run` and dispose in any thread and any event loop: the request is handed to the client's loop. A
    subscriber in another loop is called in its own loop, one in a thread without a loop in the client's; see
    `BlockingFileClient` for another place. If the client's loop can't take the request, since it doesn't run, is
    closed, or is what `run` would block, the subscription fails at once with WrongLoop.

    In all methods `name` is 1 to 1,024 bytes of UTF-8 without control characters, `deadline` is how many seconds a
    subscription may take, None for no limit, and `digest` is `xxh3-128`, `sha-256`, or None to do without verification.
    A name that is no str, or a `limit` that `rate_limit` didn't make, is a TypeError at the call, a number or word out
    of its range a ValueError.

    Every observable may fail, through `on_error`, with InvalidName; with the server's refusal, such as
    PermissionDenied; with ConnectionFailed or ConnectionLost, Stalled if nothing moves, DeadlineExceeded, or
    ProtocolError. All of them are `TransferError`. The methods say what else theirs may fail with.

    Args:
        rsocket: A connected rsocket, or a connection that is made again.
    """

    def __init__(self, rsocket: RSocketBase | Connector) -> None:
        self._requests = ColdReactiveXClient(rsocket)
        self._connector = self._requests.connector
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def requests(self) -> ColdReactiveXClient:
        """What this client's requests are made with, for an application's own routes over the same connection.

        It is rsocket's `ReactiveXClient`, made cold: with demand, reconnects, and typed errors.
        """
        return self._requests

    @property
    def scheduler(self) -> LoopScheduler:
        """Schedules on this client's event loop, from any thread: for pipes that begin with an observable of RxPY's.

        For example `reactivex.merge(a, b).pipe(ops.timeout(5)).subscribe(..., scheduler=files.scheduler)`.

        Raises:
            WrongLoop: The rsocket was given outside of its loop, and no loop runs in this thread.
        """
        return LoopScheduler(self._connector.loop or required_loop())

    def connection_state(self) -> Observable[ConnectionState]:
        """Emits Connecting, Connected or Disconnected(cause), as it is now and whenever it changes.

        Completes when the client is closed; at once for a connection of the caller's own.
        """
        return self._connector.states()

    async def _shut_down(self) -> None:
        await self._connector.close()
        await self._settle()

    async def _settle(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    def upload(self, name: str, content: Content, *, deadline: float | None = None) -> Observable[FileInfo]:
        """Stores `content` as the file `name`, in place of what has that name.

        Args:
            content: The whole file. A mutable one is copied when this method is called.

        Returns:
            Emits one FileInfo (name and size; the tutorial's route has no more) when the server has stored the file,
            and completes.

        Raises:
            TypeError: `content` isn't bytes-like.
        """
        _check_type(name)
        if not isinstance(content, bytes | bytearray | memoryview):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"content must be bytes, bytearray or memoryview, not {type(content).__name__}")
        data = bytes(content)
        info = FileInfo(name=name, size=len(data))
        return self._ask(name, lambda: Payload(data, request_metadata(Route.UPLOAD, name)), lambda _: info, deadline)

    def download(self, name: str, *, deadline: float | None = None) -> Observable[bytes]:
        """Fetches the whole file `name` into memory.

        Returns:
            Emits exactly one `bytes`, also for an empty file, and completes.

        Raises (through `on_error`):
            NotFound: There is no such file.
        """
        _check_type(name)
        return self._ask(
            name, lambda: Payload(None, request_metadata(Route.DOWNLOAD, name)), _content, deadline, math.inf
        )

    @overload
    def list_files(
        self, request_n: int = ..., *, prefix: str = ..., details: Literal[False] = ..., deadline: float | None = ...
    ) -> Observable[str]: ...

    @overload
    def list_files(
        self, request_n: int = ..., *, prefix: str = ..., details: Literal[True], deadline: float | None = ...
    ) -> Observable[FileInfo]: ...

    def list_files(
        self,
        request_n: int = _LIST_REQUEST_N,
        *,
        prefix: str = "",
        details: bool = False,
        deadline: float | None = None,
    ) -> Observable[str] | Observable[FileInfo]:
        """Lists the server's files, as they are when each comes: one that is there all the time comes once.

        Args:
            request_n: The demand: the server is never more than this many names ahead of the subscriber.
            prefix: Only names that start with it.
            details: Whether to emit a FileInfo for each file instead of its name; not from a tutorial's server.

        Returns:
            Emits each file's name or info, in the server's order (this project's: that of the names' UTF-8 bytes), and
            completes; empty if there are no such files.

        Raises (through `on_error`):
            ProtocolError: The server sent something that can't be a file's name, or no details.
        """
        if prefix or details:
            metadata = transfer_request(Route.FILES, None, ListRequest(details, prefix))
        else:
            metadata = request_metadata(Route.FILES)
        items = self._requests.request_stream(Payload(b"", metadata), request_n, max_item_bytes=MAX_SMALL_BYTES)
        if details:
            return items.pipe(ops.map(_listed_info), within(deadline))
        # A tutorial's server doesn't know prefixes, and sends every name.
        return items.pipe(ops.map(_listed_name), ops.filter(lambda name: name.startswith(prefix)), within(deadline))

    def watch_files(self, prefix: str = "", *, request_n: int = _LIST_REQUEST_N) -> Observable[WatchEvent]:
        """Emits the server's files, and then their changes as they happen, without end.

        What is emitted is what is there when the server gets to it: a subscriber that is slow, or that holds items back
        with `map_async` and the like, gets the newest state of each name, once. A file that comes and goes meanwhile
        isn't emitted. Changes made through the server are noticed at once, those that other programs make to a folder
        within a second, where the system reports them; else by a listing every two seconds.

        After a failure, `retry` begins with what is there again: what isn't `Present` before `Ready` has gone.

        Args:
            prefix: Only files whose names start with it.
            request_n: The demand: the server is never more than this many events ahead of the subscriber.

        Returns:
            Emits Present for each file, in the server's order; Ready; then Added, Changed and Removed, all of
            `rx_client.watch`. A user sees the files that they may read. It doesn't complete.

        Raises (through `on_error`):
            ServerFull: The server watches too many files.
            StorageUnavailable: The server's files can't be reached.
            UnknownRoute: The server can't do this.
        """
        _check_type(prefix)
        metadata = transfer_request(Route.WATCH, None, ListRequest(prefix=prefix))
        items = self._requests.request_stream(
            Payload(b"", metadata), request_n, max_item_bytes=MAX_SMALL_BYTES, progress_timeout=math.inf
        )
        events = items.pipe(ops.map(watch_event), ops.filter(lambda event: event is not None))
        return cast(Observable[WatchEvent], events)

    def server_stats(self, every: float = 1.0) -> Observable[ServerStats]:
        """Emits the server's statistics now, and then every so many seconds, without end.

        Args:
            every: Seconds, 0.1 to a day.

        Returns:
            Emits a `ServerStats` each time, and doesn't complete; a slow subscriber gets fewer.

        Raises:
            ValueError: `every` is out of its range.

        Raises (through `on_error`):
            PermissionDenied: The user hasn't the right, which is `s@` in the server's file of users.
            UnknownRoute: The server can't do this.
        """
        if not _LEAST_SECONDS <= every <= _MOST_SECONDS:
            raise ValueError(f"every must be {_LEAST_SECONDS} to {_MOST_SECONDS} seconds, not {every!r}")
        request = Payload(b"", transfer_request(Route.STATS, None, StatsRequest(every)))
        items = self._requests.request_stream(request, 1, max_item_bytes=MAX_SMALL_BYTES, progress_timeout=math.inf)
        return items.pipe(ops.map(_stats))

    def upload_from(
        self,
        name: str,
        source: SourceLike,
        *,
        size: int | None = None,
        chunk_size: int = CHUNK_BYTES,
        window: int | None = None,
        overwrite: bool = True,
        digest: str | None = DEFAULT_ALGORITHM,
        upload_id: str | None = None,
        remember: bool = False,
        modified: float | None = None,
        limit: RateLimit | None = None,
        deadline: float | None = None,
    ) -> Observable[TransferEvent]:
        """Uploads a file of any size, a chunk at a time; `retry` resumes it where the server has it.

        The server keeps what it has of an upload that failed or was disposed, under its `upload_id`, for a day unless
        it is set otherwise. All subscriptions of the observable share the id; give the same one in another process to
        go on there, or `remember` it. The newest subscription takes over from an older one, which ends with Superseded.
        After completion the same id is a new upload.

        What is published was the source's content at one moment. A file is uploaded with the length that it has at the
        start: what is appended later isn't part of it. If the system says that it was changed, by its size, its times
        or its inode, what was sent is read again, and compared by its digest; with `digest=None` only a file that
        became longer is trusted, to be appended to. A part at the server that isn't of the source's content any more
        is dropped, and the upload starts over. A FIFO, a terminal or a file object that has nothing to give just now is
        waited for.

        Args:
            source: A path; a binary file object, blocking or asynchronous (`await file.read(n)`, so an
                asyncio.StreamReader, too), or an mmap, from its present position, which stays open; bytes; an iterable
                or asynchronous iterable of bytes; a function that makes one from an offset, so that a retry can go on
                there; or an Observable of bytes, of which no more than `window` items may wait, unless its source can
                be slowed down, as `from_async_iter` can. File objects and iterables that aren't lists or tuples are run
                in a thread. See also above.
            size: The content's length in bytes, where the source doesn't know it; the server checks it.
            chunk_size: Bytes in one item, 1 to 960,000. Where this and `window` are the defaults, a file is sent in
                items of 524,288 (not on Windows). What a source has given for a second is sent as a shorter item.
            window: Items that may be under way and not yet durable, 1 or more. If None, it adapts to the line: 16 at
                first, then what the server asks for, 128 and 64 MiB at the most. No more than 16 wait for the socket.
            overwrite: Whether a file of that name may be replaced.
            upload_id: 1 to 128 characters of `A-Z a-z 0-9 . _ -`, not starting with a dot; made up if None.
            remember: For a path, in place of an `upload_id`: the one that is made up is kept in a file of the user's
                state folder (or of `RXFILES_STATE`) until the upload is published, so that the same call in a later
                process goes on. It is found by the server's URI, `name`, `digest`, and the path with its size and time.
                A call at the same time takes over. A folder that can't be written is logged, and nothing remembered.
            modified: When the content was last changed, for `FileInfo.modified`: in seconds since the epoch, in the
                years 1 to 9999. If None, that of the file at a path, else that of the publication.
            limit: Of bytes a second, shared with other transfers; see `rate_limit`. Items are smaller then.

        Returns:
            Emits Started, Progress whenever more bytes are durable at the server, Completed when the file is verified
            and published, and completes.

        Raises:
            TypeError: `source` is none of the above, or isn't a path where it is to be remembered.
            ValueError: `remember` is given with an `upload_id`, or to a client that doesn't connect by itself, so that
                its server isn't known.

        Raises (through `on_error`):
            AlreadyExists: `overwrite` is False and there is such a file.
            IntegrityError: The server got other bytes than were sent; nothing was published.
            SourceChanged: The source changed or was cut short while it was read; nothing was published.
            Superseded: A newer subscription took over.
            SourceExhausted: The source can't be read again from where the server wants to go on, or gives other bytes.
            BackpressureOverflow: The source is an Observable that outran the connection.
            OSError: The source's disk failed, it is a folder, or isn't there.
            Exception: Whatever an iterable or Observable source raised.
        """
        _check_type(name)
        _check_range("chunk_size", chunk_size, 1, MAX_CHUNK_BYTES)
        _check_range("window", window, 1, MAX_REQUEST_N, or_none=True)
        _check_range("size", size, 0, or_none=True)
        _check_word(check_algorithm, digest)
        _check_limit(limit)
        _check_word(check_upload_id, upload_id)
        _check_time(modified)
        record = self._record(name, source, digest, upload_id) if remember else None
        transfer = UploadTransfer(
            name,
            to_source(source, DEFAULT_WINDOW if window is None else window),
            size=size,
            chunk_bytes=None if chunk_size == CHUNK_BYTES else chunk_size,
            window=window,
            overwrite=overwrite,
            modified=modified,
            algorithm=digest,
            upload_id=upload_id or uuid4().hex,
            limit=limit,
            record=record,
        )
        return self._transfer(name, lambda emit: transfer.attempt(self._requests, emit, self._tasks), deadline)

    def discard(self, upload_id: str, *, deadline: float | None = None) -> Observable[int]:
        """Drops what the server has of an unfinished upload of this user; one under way fails with Superseded.

        Args:
            upload_id: See `upload_from`; `Started` has it.

        Returns:
            Emits how many durable bytes were dropped, and completes.

        Raises (through `on_error`):
            NotFound: There is no such upload: it is finished, or was dropped, perhaps by an attempt whose answer was
                lost.
            PermissionDenied: The user may not write any file.
            UnknownRoute: The server, or its store, can't do this.
        """
        _check_word(check_upload_id, upload_id)
        request = Payload(b"", transfer_request(Route.UPLOAD_DISCARD, None, FileRequest(upload_id=upload_id)))
        return self._requests.ask(request, _committed).pipe(within(deadline))

    def download_to(
        self,
        name: str,
        sink: SinkLike,
        *,
        offset: int = 0,
        keep_part: bool = True,
        window: int | None = None,
        digest: str | None = DEFAULT_ALGORITHM,
        limit: RateLimit | None = None,
        deadline: float | None = None,
    ) -> Observable[TransferEvent]:
        """Downloads a file of any size, a chunk at a time; `retry` resumes it where the sink has it.

        A path is written beside it (`.NAME.HASH.rxpart`), verified, given the time of the server's file, synced to disk
        and moved there in one step; what was there stays until then, and leaves its permission bits to the new file. A
        part that was left behind, even by another process, is resumed. A file that changed on the server meanwhile is
        started over.

        What is at the path is looked at before anything is fetched. Links are followed, and stay. A FIFO, which is
        waited for until it has a reader, and a device such as a terminal or `/dev/null` are written to as the bytes
        come; so is `/dev/stdout`. A mount point, which can't be moved to, is written in place at last.

        Args:
            sink: A path, whose folder exists; an object with `async def write(data: bytes)`; an asyncio.StreamWriter;
                or a binary file object, whose `write` is called in a thread, from its present position; it stays open.
            offset: For a writer that has the file's first bytes: how many. They are not verified.
            keep_part: For a path: whether what has arrived stays beside it after a failure or dispose, to be resumed.
                If not, nothing is left there, and `retry` starts over.
            window: Items that the server may be ahead of the sink, 1 or more. If None, it adapts to the line: 16 at
                first; at the most 128 (64 MiB) if the sink is a path, else 12 MiB.
            limit: As for `upload_from`.

        Returns:
            Emits Started (again with `resumed_from=0` if the file changed and is started over), Progress whenever more
            bytes are written, Completed when everything is there, verified and published, and completes.

        Raises:
            TypeError: `sink` is none of these.
            ValueError: `offset` is given with a path, or `keep_part=False` with something else.

        Raises (through `on_error`):
            NotFound: There is no such file.
            Changed: The file changed, and what a writer got can't be taken back, unlike what a file that can seek got.
            IntegrityError: Other bytes arrived than were sent; what was at the path is still there.
            StorageFull: The path's disk is full.
            OSError: Nothing can be put at the path (it is a folder, as one that ends with a slash is, a disk, or not
                permitted), something else has taken its place meanwhile, or its disk failed.
            Exception: Whatever the writer raised.
        """
        _check_type(name)
        _check_range("offset", offset, 0)
        _check_range("window", window, 1, MAX_REQUEST_N, or_none=True)
        _check_word(check_algorithm, digest)
        _check_limit(limit)
        into = to_sink(sink, name, offset=offset, algorithm=digest, keep_part=keep_part)
        return self._transfer(
            name,
            lambda emit: download_into(
                self._requests, name, into, algorithm=digest, digest_from=offset, window=window, limit=limit, emit=emit
            ),
            deadline,
        )

    def download_chunks(
        self,
        name: str,
        offset: int = 0,
        length: int | None = None,
        window: int | None = None,
        *,
        if_match: str | None = None,
        digest: str | None = DEFAULT_ALGORITHM,
        limit: RateLimit | None = None,
        deadline: float | None = None,
    ) -> Observable[Chunk]:
        """Emits a range of a file as it arrives; the server is never more than a window ahead of the consumer.

        A chunk's credit goes back when `on_next` returns, or, if it was retained, when it is released; the operators
        `map_async`, `for_each_async` and `to_async_iter` of `rx_client.operators` do that for asynchronous consumers.

        Args:
            offset: Where the range starts, in bytes.
            length: How many bytes; None for all to the end. A range beyond the end is cut there.
            window: Chunks, 1 or more. If None, it adapts to the line: 16 at first, 48 at the most, and 16 again if that
                many wait for the consumer.
            if_match: The etag that the file must have; None if any will do.
            limit: As for `upload_from`.

        Returns:
            Emits the chunks, in order; one without bytes if the range is empty. Completes when all have arrived and the
            range is verified: what was emitted before is not to be trusted until then.

        Raises (through `on_error`):
            NotFound: There is no such file.
            Changed: It isn't the one that `if_match` names.
            InvalidRequest: `offset` is beyond the end.
            IntegrityError: Other bytes arrived than were sent, or too few.
        """
        _check_type(name)
        _check_range("offset", offset, 0)
        _check_range("length", length, 0, or_none=True)
        _check_range("window", window, 1, MAX_REQUEST_N, or_none=True)
        _check_word(check_algorithm, digest)
        _check_limit(limit)
        request = DownloadRequest(offset, length, if_match, digest)

        def ask(share: Share | None) -> Observable[Chunk]:
            return self._requests.cold(
                lambda rsocket, observer: ChunkRequest(rsocket, name, request, window, share, observer)
            )

        chunks = ask(None) if limit is None else after_payment(limit, ask, self._connector.loop)
        return _naming(name, chunks).pipe(within(deadline, name))

    def upload_tree(
        self,
        folder: str | os.PathLike[str],
        prefix: str = "",
        *,
        include: NameFilter | None = None,
        exclude: NameFilter | None = None,
        overwrite: bool = True,
        remember: bool = False,
        follow_symlinks: bool = False,
        max_concurrent: int = 4,
        each: EachTransfer | None = None,
        keep_going: bool = True,
        digest: str | None = DEFAULT_ALGORITHM,
        limit: RateLimit | None = None,
        deadline: float | None = None,
    ) -> Observable[TreeEvent]:
        """Uploads every file below a local folder, hidden ones included; in no particular order.

        The folder is read as transfers begin: no more than a few hundred names wait, and those of unread folders. What
        isn't a file, and what has no name that the server could take (not UTF-8, say), is skipped. Folders without
        files aren't kept.

        Args:
            folder: Its path.
            prefix: A folder of the server: `a` makes `a/b/c` of `b/c`. The empty one adds nothing.
            include: Which files; None for all. A pattern of their names below the folder with `*`, `?` and `[...]`, of
                which `*` also matches slashes; several patterns; or a function of the name.
            exclude: Which of them not; None for none.
            overwrite: Whether files of the server may be replaced; else those that exist are skipped, so that a second
                run goes on where the first one stopped.
            remember: As for `upload_from`, so that a second run also goes on with the files that were under way.
            follow_symlinks: Whether symbolic links are followed; else they are skipped.
            max_concurrent: The most transfers at a time.
            each: An operator for each file's transfer, such as `retry_backoff()`, or several by `reactivex.compose`.
            keep_going: Whether the others go on after the failure of one; else that ends them all. A server that can't
                be reached any more does so in any case.
            limit: As for `upload_from`.

        Returns:
            Emits the events of all transfers, each with the server's `name`; Failed for each that has failed, also for
            a folder that can't be read; Skipped for each that is left out, unless by `include` or `exclude`. Completes
            when all have ended. See `total_progress` for sums.

        Raises:
            ValueError: `max_concurrent` is less than 1, or `remember` as for `upload_from`.

        Raises (through `on_error`):
            OSError: The folder itself can't be read.
            Exception: With `keep_going=False`, the first failure of one.
        """
        _check_type(prefix)
        _check_range("max_concurrent", max_concurrent, 1)
        _check_word(check_algorithm, digest)
        _check_limit(limit)
        if remember:
            self._check_remembers()
        options = TreeOptions(include, exclude, max_concurrent, each, keep_going)
        tree = upload_tree(
            Path(folder),
            as_prefix(prefix),
            lambda name, path: self.upload_from(
                name, path, overwrite=overwrite, digest=digest, remember=remember, limit=limit
            ),
            options=options,
            follow_symlinks=follow_symlinks,
        )
        return on_loop(tree, self._connector.loop).pipe(within(deadline))

    def download_tree(
        self,
        prefix: str,
        folder: str | os.PathLike[str],
        *,
        include: NameFilter | None = None,
        exclude: NameFilter | None = None,
        overwrite: bool = True,
        max_concurrent: int = 4,
        each: EachTransfer | None = None,
        keep_going: bool = True,
        digest: str | None = DEFAULT_ALGORITHM,
        limit: RateLimit | None = None,
        deadline: float | None = None,
    ) -> Observable[TreeEvent]:
        """Downloads every file below a folder of the server, in the server's order. Nothing lands outside of `folder`.

        The server lists its files as transfers begin; a listing whose connection is lost goes on where it was, if the
        server has an order of names. A name that can't be a safe path on every system is skipped: one
        with `..`, a backslash or a colon, an absolute one, one with a part that is a device of Windows (`CON`,
        `nul.txt`) or that ends with a dot or a space; so is one whose way leads out of `folder` by a symbolic link, or
        meets a file where a folder has to be, and, where upper and lower case are the same, one that differs in nothing
        else from another one.

        Args:
            prefix: The folder of the server: `a` makes `b/c` of `a/b/c`. The empty one stands for all files.
            folder: The local folder; made if it isn't there.
            include: As for `upload_tree`.
            exclude: As for `upload_tree`.
            overwrite: Whether local files may be replaced; else those that exist are skipped.
            max_concurrent: The most transfers at a time.
            each: As for `upload_tree`.
            keep_going: As for `upload_tree`.
            limit: As for `upload_from`.

        Returns:
            As for `upload_tree`.

        Raises:
            ValueError: `max_concurrent` is less than 1.

        Raises (through `on_error`):
            OSError: `folder` can't be made, or nothing can be put there.
            Exception: With `keep_going=False`, the first failure of one.
        """
        _check_type(prefix)
        _check_range("max_concurrent", max_concurrent, 1)
        _check_word(check_algorithm, digest)
        _check_limit(limit)
        below = as_prefix(prefix)
        options = TreeOptions(include, exclude, max_concurrent, each, keep_going)
        tree = download_tree(
            below,
            Path(folder),
            self.list_files(prefix=below),
            lambda name, path: self.download_to(name, path, digest=digest, limit=limit),
            options=options,
            overwrite=overwrite,
        )
        return on_loop(tree, self._connector.loop).pipe(within(deadline))

    def stat(self, name: str, *, deadline: float | None = None) -> Observable[FileInfo]:
        """Asks what is known of a file.

        Returns:
            Emits one FileInfo, and completes.

        Raises (through `on_error`):
            NotFound: There is no such file.
        """
        _check_type(name)
        return self._ask_info(Route.STAT, name, FileRequest(), deadline)

    def delete(self, name: str, *, if_match: str | None = None, deadline: float | None = None) -> Observable[FileInfo]:
        """Removes a file.

        Args:
            if_match: The etag that it must have; None if any will do.

        Returns:
            Emits the FileInfo of what was removed, and completes.

        Raises (through `on_error`):
            NotFound: There is no such file.
            Changed: It isn't the one that `if_match` names.
        """
        _check_type(name)
        return self._ask_info(Route.DELETE, name, FileRequest(if_match), deadline)

    def move(
        self,
        source: str,
        target: str,
        *,
        overwrite: bool = True,
        if_match: str | None = None,
        deadline: float | None = None,
    ) -> Observable[FileInfo]:
        """Renames a file on the server in one step. To move a file to its own name does nothing.

        If the answer is lost, it isn't known whether the file was moved, and `retry` may fail with NotFound though it
        was. With `if_match`, `retry` is safe: where there is no `source`, and `target` has that etag, it was moved.

        Args:
            target: What the file will be called.
            overwrite: Whether a file of that name may be replaced.
            if_match: The etag that `source` must have; None if any will do.

        Returns:
            Emits the FileInfo of `target`, which is that of `source` but for the name, and completes.

        Raises (through `on_error`):
            NotFound: There is no file `source`.
            Changed: It isn't the one that `if_match` names.
            AlreadyExists: `overwrite` is False and there is a file `target`.
            PermissionDenied: The user may not delete `source`, or not write `target`.
            UnknownRoute: The server, or its store, can't do this.
        """
        _check_type(source)
        _check_type(target)

        def make() -> Payload:
            request = MoveRequest(check_name(target), overwrite, if_match)
            return Payload(b"", transfer_request(Route.MOVE, source, request))

        return self._ask(source, make, answered_info, deadline, target=target)

    def _record(self, name: str, source: SourceLike, algorithm: str | None, upload_id: str | None) -> UploadRecord:
        self._check_remembers()
        if upload_id is not None:
            raise ValueError("an upload is found again by its `upload_id`, or by `remember`; give one of them")
        if not isinstance(source, str | os.PathLike):
            raise TypeError("`remember` is for the path of a file; give an `upload_id` to go on with another source")
        path = os.fsdecode(cast("str | os.PathLike[str]", source))
        return UploadRecord(self._connector.uris, name, path, algorithm)

    def _check_remembers(self) -> None:
        if not self._connector.uris:
            raise ValueError("`remember` needs a client that connects by itself: make it with FileClient.connect")

    def _ask_info(self, route: str, name: str, request: FileRequest, deadline: float | None) -> Observable[FileInfo]:
        return self._ask(name, lambda: Payload(b"", transfer_request(route, name, request)), answered_info, deadline)

    def _ask(
        self,
        name: str,
        make: Callable[[], Payload],
        convert: Callable[[Payload], T],
        deadline: float | None,
        max_answer_bytes: float = MAX_SMALL_BYTES,
        *,
        target: str | None = None,
    ) -> Observable[T]:
        limit: Callable[[Observable[T]], Observable[T]] = within(deadline, name)
        try:
            request = make()
        except InvalidName as error:
            return on_loop(reactivex.throw(_about(error, name)), self._connector.loop)

        def explain(error: Exception) -> Exception:
            return _about(error, target if target is not None and isinstance(error, AlreadyExists) else name)

        return self._requests.ask(request, convert, explain, max_answer_bytes).pipe(limit)

    def _transfer(
        self, name: str, attempt: Callable[[Callable[[TransferEvent], None]], Awaitable[None]], deadline: float | None
    ) -> Observable[TransferEvent]:
        async def named(emit: Callable[[TransferEvent], None]) -> None:
            try:
                encode_name(name)  # before a connection is made, whose failure might be retried
                await attempt(emit)
            except TransferError as error:
                raise _about(error, name) from error.__cause__

        return from_coroutine(named, self._tasks, name, self._connector.loop).pipe(within(deadline, name))


def _check_type(name: str) -> None:
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a file name must be a str, not {type(name).__name__}")


def _check_range(what: str, value: int | None, least: int, most: int | None = None, *, or_none: bool = False) -> None:
    if value is None and or_none:
        return
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        raise ValueError(f"{what} must be {least} {'or more' if most is None else f'to {most}'}, not {value!r}")


def _check_word(check: Callable[[str], object], word: str | None) -> None:
    try:
        if word is not None:
            check(word)
    except TypeError:
        raise TypeError(f"an upload_id or a digest is named by a str, not {type(word).__name__}") from None
    except InvalidRequest as error:
        raise ValueError(error.message) from None


def _check_limit(limit: RateLimit | None) -> None:
    if limit is not None and not isinstance(limit, RateLimit):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"limit must be what rate_limit makes, as limit=rate_limit({limit!r})")


def _check_time(seconds: float | None) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"modified must be a number of seconds, not {type(seconds).__name__}")
    try:
        check_modified(seconds)
    except InvalidRequest as error:
        raise ValueError(error.message) from None


def _naming(name: str, source: Observable[T]) -> Observable[T]:
    """`source`, its errors knowing which file they are about."""
    return source.pipe(ops.catch(lambda error, _: reactivex.throw(_about(error, name))))


def _about(error: Exception, name: str) -> Exception:
    """`error`, knowing which file it is about."""
    if isinstance(error, RemoteError) and error.message == repr(name):
        return NotFound.for_name(name)  # the tutorial's server answers with the text of its KeyError
    if isinstance(error, TransferError) and error.name is None:
        error.name = name
    return error


def _content(answer: Payload) -> bytes:
    return bytes(answer.data or b"")


def _committed(answer: Payload) -> int:
    return Receipt.from_json(find_transfer(bytes(answer.metadata or b"")) or {}).committed


def _stats(item: Payload) -> ServerStats:
    try:
        return ServerStats.from_bytes(bytes(item.data or b""))
    except InvalidRequest as error:
        raise ProtocolError(f"the server's answer: {error.message}") from None


def _listed_info(item: Payload) -> FileInfo:
    try:
        return parse_info(bytes(item.metadata or b""))
    except (InvalidName, InvalidRequest) as error:
        raise ProtocolError(f"the server listed a file without its details: {error.message}") from None


def _listed_name(item: Payload) -> str:
    try:
        return decode_name(item.data or b"")
    except InvalidName as error:
        raise ProtocolError(f"the server listed a file whose name can't be one: {error.message}") from None
