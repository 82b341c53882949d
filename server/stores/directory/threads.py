"""The threads in which a directory store uses its folder: which calls share a handoff, which type an error gets."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar, cast

from shared.aio import run_blocking
from shared.errors import NotFound

from ..failures import typed
from .batches import Batches, Outcome, call_each
from .folder import Folder

__all__ = ["FolderThreads"]

P = ParamSpec("P")
T = TypeVar("T")

# More than there are processors: most of them wait for the disk.
_THREADS: Final = 16

# The most short calls that share a handoff, and how many handoffs there are at a time.
_CALLS: Final = 16
_CALL_THREADS: Final = 8

# The same for the files that are put together. As many threads wait for the disk, whose journal syncs for all at once.
_PUTS: Final = 32
_PUT_THREADS: Final = 8


class FolderThreads:
    """Made in the event loop that awaits the calls.

    Args:
        folder: The folder.

    Attributes:
        executor: The threads.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.executor: Final = ThreadPoolExecutor(_THREADS, thread_name_prefix="directory-store")
        self._calls = Batches[Callable[[], object], object](
            self.executor, call_each, most_items=_CALLS, most_batches=_CALL_THREADS
        )
        self._puts = Batches[tuple[str, bytes], None](
            self.executor, self._put, most_items=_PUTS, most_batches=_PUT_THREADS, is_joint=True
        )

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a blocking function."""
        return await run_blocking(self.executor, self._call, function, *args, **kwargs)

    async def run_quickly(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """As `run`, for what usually takes less time than a thread handoff."""
        return cast("T", await self._calls.run(partial(self._call, function, *args, **kwargs)))

    async def put(self, name: str, content: bytes) -> None:
        """Puts a whole file, together with others; no other one of that name may be under way."""
        await self._puts.run((name, content))

    def end(self) -> None:
        """Ends the threads when they have returned from what they do."""
        self.executor.shutdown(wait=False)

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function; a file isn't missing where the whole folder is."""
        try:
            try:
                return function(*args, **kwargs)
            except NotFound:
                self._folder.check()
                raise
        except OSError as error:
            failure = typed(error)
            if failure is None:
                raise
            raise failure from error

    def _put(self, files: Sequence[tuple[str, bytes]]) -> Sequence[Outcome[None]]:
        self._call(self._folder.check)
        outcomes = self._folder.puts.put(files)
        return [(None, _typed(error, name)) for (name, _), (_, error) in zip(files, outcomes, strict=True)]


def _typed(error: BaseException | None, name: str) -> BaseException | None:
    failure = typed(error, name) if isinstance(error, OSError) else None
    if failure is None:
        return error
    failure.__cause__ = error
    return failure
