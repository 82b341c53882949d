"""What an application needs of a client, as a type: a `FileClient`, a test's `FakeFileClient`, or another one."""

import os
from typing import Literal, Protocol, overload

from reactivex import Observable, abc

from shared.protocol.digest import DEFAULT_ALGORITHM
from shared.protocol.messages import CHUNK_BYTES
from shared.protocol.stats import ServerStats
from shared.protocol.wire import FileInfo

from .chunks import Chunk
from .connection.states import ConnectionState
from .events import TransferEvent, TreeEvent
from .transfers.limit import RateLimit
from .transfers.sinks import SinkLike
from .transfers.sources import SourceLike
from .transfers.trees import EachTransfer, NameFilter
from .watch import WatchEvent

__all__ = ["Files"]


class Files(Protocol):
    """The methods of a `FileClient`, whose docstrings say what each of them emits, and its errors.

    An application that takes `Files` can be given a `rx_client.testing.FakeFileClient` in its tests.
    """

    @property
    def scheduler(self) -> abc.SchedulerBase:
        """Schedules on this client's event loop, from any thread: for pipes that begin with an observable of RxPY's."""
        ...

    def connection_state(self) -> Observable[ConnectionState]:
        """Emits Connecting, Connected or Disconnected(cause), as it is now and whenever it changes."""
        ...

    def upload(
        self, name: str, content: bytes | bytearray | memoryview, *, deadline: float | None = None
    ) -> Observable[FileInfo]:
        """Stores `content` as the file `name`, in place of what has that name."""
        ...

    def download(self, name: str, *, deadline: float | None = None) -> Observable[bytes]:
        """Fetches the whole file `name` into memory."""
        ...

    @overload
    def list_files(
        self, request_n: int = ..., *, prefix: str = ..., details: Literal[False] = ..., deadline: float | None = ...
    ) -> Observable[str]: ...

    @overload
    def list_files(
        self, request_n: int = ..., *, prefix: str = ..., details: Literal[True], deadline: float | None = ...
    ) -> Observable[FileInfo]: ...

    def watch_files(self, prefix: str = "", *, request_n: int = 256) -> Observable[WatchEvent]:
        """Emits the server's files, and then their changes as they happen, without end."""
        ...

    def server_stats(self, every: float = 1.0) -> Observable[ServerStats]:
        """Emits the server's statistics now, and then every so many seconds, without end."""
        ...

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
        """Uploads a file of any size, a chunk at a time; `retry` resumes it where the server has it."""
        ...

    def discard(self, upload_id: str, *, deadline: float | None = None) -> Observable[int]:
        """Drops what the server has of an unfinished upload of this user; one under way fails with Superseded."""
        ...

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
        """Downloads a file of any size, a chunk at a time; `retry` resumes it where the sink has it."""
        ...

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
        """Emits a range of a file as it arrives, no faster than the consumer takes it."""
        ...

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
        """Uploads every file below a local folder, hidden ones included; in no particular order."""
        ...

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
        """Downloads every file below a folder of the server; nothing lands outside of `folder`."""
        ...

    def stat(self, name: str, *, deadline: float | None = None) -> Observable[FileInfo]:
        """Asks what is known of a file."""
        ...

    def delete(self, name: str, *, if_match: str | None = None, deadline: float | None = None) -> Observable[FileInfo]:
        """Removes a file."""
        ...

    def move(
        self,
        source: str,
        target: str,
        *,
        overwrite: bool = True,
        if_match: str | None = None,
        deadline: float | None = None,
    ) -> Observable[FileInfo]:
        """Renames a file on the server in one step. To move a file to its own name does nothing."""
        ...
