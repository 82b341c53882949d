"""Real files of this machine for the examples to transfer: nothing here is generated."""

import argparse
import asyncio
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import reactivex
from reactivex import Observable

from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES

__all__ = [
    "STANDARD_LIBRARY",
    "add_file_option",
    "digest_of",
    "files_below",
    "largest_of_python",
    "python_sources",
    "read",
]

STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
"""The folder of the standard library's sources."""

_INSTALLED: Final = {"site-packages", "dist-packages"}

# A whole-file transfer is in memory as a whole, on both sides; two servers and two clients share a process here.
_MAX_WHOLE_FILE_BYTES: Final = 32 * 1024 * 1024

# With fewer than two chunks there is no middle to be seen, or to be interrupted in.
_MIN_CHUNKED_BYTES: Final = 2 * CHUNK_BYTES


def add_file_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--file`, for examples that transfer one in chunks."""
    parser.add_argument(
        "--file",
        type=_chunked_file,
        help="transfer this file, of any size (default: the largest of the running Python)",
    )


def read(path: Path) -> Observable[bytes]:
    """Reads a file in a thread, so that the event loop isn't held by a large one or a slow disk.

    Returns:
        Cold. Emits the whole content, once, and completes.

    Raises (through `on_error`):
        OSError: It can't be read.
    """
    return reactivex.defer(lambda _: asyncio.get_running_loop().run_in_executor(None, path.read_bytes))


def digest_of(path: Path) -> Digest:
    """The digest of a file's content, to compare with a FileInfo's; it knows the length, too."""
    digest = Digest()
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    return digest


def files_below(folder: Path) -> list[Path]:
    """Every file below `folder`, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def python_sources() -> list[Path]:
    """The sources of the standard library, without the packages that were installed beside it."""
    return sorted(
        path
        for path in STANDARD_LIBRARY.rglob("*.py")
        if path.is_file() and _INSTALLED.isdisjoint(path.relative_to(STANDARD_LIBRARY).parts)
    )


def largest_of_python() -> Path:
    """The largest file of the running Python that is handy as a whole: its shared library or executable, mostly."""
    return max(
        (path for path in _parts_of_python() if path.stat().st_size <= _MAX_WHOLE_FILE_BYTES),
        key=lambda path: path.stat().st_size,
    )


def _parts_of_python() -> Iterator[Path]:
    yield Path(sys.executable).resolve()
    folder, library = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
    if folder and library and Path(folder, library).is_file():
        yield Path(folder, library)
    yield from python_sources()


def _chunked_file(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file")
    if path.stat().st_size < _MIN_CHUNKED_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} has less than {_MIN_CHUNKED_BYTES:,} bytes")
    return path
