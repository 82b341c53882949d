"""The lock of a served folder, which also shows whether the folder is still the one that was locked. Blocks."""

import errno
import logging
import os
import stat
from typing import Final

from shared.files import disk

__all__ = ["FolderLock"]

_log = logging.getLogger(__name__)


class FolderLock:
    """Held while a process serves a folder.

    Args:
        root: The folder.
        path: The file in it that is locked; None to lock nothing, for a folder that is only read.
    """

    def __init__(self, root: str, path: str | None) -> None:
        self._root: Final = root
        self._path: Final = path
        self._descriptor: int | None = None
        self._identity: tuple[int, int] | None = None
        self._is_mount = False

    def take(self) -> None:
        """Locks the folder.

        Raises:
            BlockingIOError: Another process has locked it.
            OSError: It isn't there, or can't be read or written.
        """
        if self._path is None:
            with os.scandir(self._root):
                pass  # it is a folder, and may be read
            status = os.stat(self._root)
        else:
            self._descriptor = disk.open_to_extend(self._path, os.O_CREAT)
            try:
                if not disk.lock(self._descriptor):
                    _log.warning("%s is on a file system without locks: no other process may serve it", self._root)
                status = os.fstat(self._descriptor)
            except BlockingIOError as error:
                self.release()
                raise BlockingIOError(error.errno, "another process serves this folder", self._root) from None
            except BaseException:
                self.release()
                raise
        self._identity = status.st_dev, status.st_ino
        self._is_mount = os.path.ismount(self._root)

    def release(self) -> None:
        """Unlocks it; does nothing if it isn't locked."""
        self._identity = None
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            disk.close(descriptor)

    def is_there(self) -> bool:
        """Whether the folder is the one that was locked."""
        try:
            status = os.stat(self._root if self._path is None else self._path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def check_place(self) -> None:
        """Raises OSError unless there is a folder in the place of the one that was locked.

        What shows under a disk that was unmounted isn't one: what is stored there would be hidden when it is back.
        """
        if not stat.S_ISDIR(os.stat(self._root).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._root)
        if self._is_mount and not os.path.ismount(self._root):
            raise FileNotFoundError(errno.ENOENT, "its disk isn't mounted", self._root)
