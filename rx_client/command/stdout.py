"""Standard output as the end of a download."""

import asyncio
import os
import stat
import sys
from typing import Final

from ..transfers.sinks import SinkLike

__all__ = ["standard_output"]


def standard_output() -> SinkLike:
    """What a download can be written to."""
    mode = os.fstat(sys.stdout.fileno()).st_mode
    if (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)) and os.path.exists(_PATH):
        return _PATH  # without blocking, so that an interruption needn't wait for the reader
    # A file has a position, which those who write to it have in common; a socket can't be opened again.
    return _Descriptor(sys.stdout.fileno())


_PATH: Final = "/dev/stdout"


class _Descriptor:
    """An AsyncWriter that is an open file of the process's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
