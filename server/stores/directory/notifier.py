"""Hears of what other programs change in the served folder, where the system reports that; else listings find it.

The system's reports aren't complete: its queue may overflow, a folder may change before it is watched, and a network's
file system doesn't report what other machines do. So the folder is listed as well, but seldom.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final

from shared.errors import InvalidName
from shared.protocol.wire import check_name

from ..changes import Changes
from .tree import RESERVED

__all__ = ["FolderNotifier"]

_log = logging.getLogger(__name__)
# It has a line for each report.
logging.getLogger("watchfiles.main").setLevel(logging.WARNING)

# Changes that come within so many milliseconds are reported together.
_STEP_MS: Final = 50
_MOST_MS: Final = 200
# How often it is looked whether the folder is still the one that is watched.
_LOOK_MS: Final = 1000
# Until it is watched, or watched again.
_FIRST_LOOK_MS: Final = 100
_RETRY_SECONDS: Final = 1.0

# How often watched files are listed, where the system reports changes, and where it doesn't.
_RELIST_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 2.0


class FolderNotifier:
    """Notes in `changes` what the system reports while `run` does.

    Args:
        root: The served folder, as an absolute path without links.
        changes: Of its store; used in the event loop.

    """

    def __init__(self, root: str, changes: Changes) -> None:
        self._is_working = False
        self._root = root
        self._changes = changes

    @property
    def relist_seconds(self) -> float:
        """How often to look for what isn't reported."""
        return _RELIST_SECONDS if self._is_working else _POLL_SECONDS

    async def run(self) -> None:
        """Returns when it is cancelled, or at once where nothing is reported."""
        stop = threading.Event()
        loop, has_failed = asyncio.get_running_loop(), False
        with ThreadPoolExecutor(1, "folder-notifier") as thread:
            while True:
                watching = loop.run_in_executor(thread, self._watch, stop, loop)
                try:
                    await asyncio.shield(watching)
                except asyncio.CancelledError:
                    stop.set()
                    await asyncio.wait([watching])
                    raise
                except ImportError:  # it is an extra
                    _log.info("%s: changes by other programs are found by listings: see rxfiles[watch]", self._root)
                    return
                except Exception as error:  # no folder, or the system watches too many already
                    if not has_failed:
                        _log.warning("%s: changes by other programs are found by listings: %s", self._root, error)
                    has_failed = True
                finally:
                    self._is_working = False
                await asyncio.sleep(_RETRY_SECONDS)

    def _watch(self, stop: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
        """Reports until it is stopped, or another folder is in this one's place. For a thread of its own."""
        from watchfiles import watch  # noqa: PLC0415 - which takes a tenth of a second

        watched, is_first = os.stat(self._root), True
        # It ends, and yields, however little happens; its own filter would hide that.
        reports = watch(
            self._root,
            watch_filter=None,
            debounce=_MOST_MS,
            step=_STEP_MS,
            stop_event=stop,
            rust_timeout=_FIRST_LOOK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        )
        with closing(reports):
            for report in reports:
                if stop.is_set():
                    return
                names, folders = self._named(path for _, path in report)
                loop.call_soon_threadsafe(self._note, names, folders, is_first)
                is_first = False
                if not os.path.samestat(watched, os.stat(self._root)):
                    return

    def _named(self, paths: Iterable[str]) -> tuple[list[str], list[str]]:
        """The names of the files at these paths, and of those that are, or may have been, folders."""
        names: list[str] = []
        folders: list[str] = []
        for path in paths:
            name = os.path.relpath(path, self._root).replace(os.sep, "/")
            if name == "." or name.partition("/")[0] in ("..", RESERVED) or not _is_name(name):
                continue
            if os.path.isdir(path):
                folders.append(f"{name}/")
            else:
                names.append(name)
                if not os.path.lexists(path):
                    folders.append(f"{name}/")
        return names, folders

    def _note(self, names: Iterable[str], folders: Iterable[str], is_first: bool) -> None:
        self._is_working = True
        if is_first:
            self._changes.note_below("")  # what has changed since the watchers began
        for name in names:
            self._changes.note(name)
        for folder in folders:
            self._changes.note_below(folder)


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except InvalidName:
        return False
    return True
