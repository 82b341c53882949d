"""Real files of this machine for the examples to transfer: none is generated."""

import argparse
import asyncio
import sys
import sysconfig
import uuid
from pathlib import Path
from typing import Final

import reactivex
from reactivex import Observable

from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES

from .context import Context

STANDARD_LIBRARY: Final = Path(sysconfig.get_path("stdlib"))
"""The folder of the standard library's sources."""

_INSTALLED: Final = {"site-packages", "dist-packages"}

# A whole-file transfer is in memory as a whole, on both sides; an example may have two servers and two clients here.
_MAX_WHOLE_FILE_BYTES: Final = 32 * 1024 * 1024

# Fewer than two chunks have no middle, at which a transfer could be interrupted.
_MIN_CHUNKED_BYTES: Final = 2 * CHUNK_BYTES


def add_file_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--file`, for examples that transfer a file in chunks."""
    about = "transfer this file, of any size (default: the largest of the running Python)"
    parser.add_argument("--file", type=_chunked_file, help=about)


def add_folder_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--folder`, for examples that transfer many files; `default` describes what they do without it."""
    parser.add_argument("--folder", type=_folder, help=f"transfer every file below this one (default: {default})")


async def chosen_file(context: Context, example: str) -> tuple[Path, str]:
    """The file of `--file` or its default, and a name at the server that no other run uses."""
    path: Path = context.options.file or await asyncio.to_thread(largest_file)
    return path, f"{example}-{uuid.uuid4().hex[:8]}/{path.name}"


def read(path: Path) -> Observable[bytes]:
    """Reads a file in a thread, so that a large file or a slow disk doesn't block the event loop.

    Returns:
        A cold observable that emits the whole content, once, and completes.

    Raises (through `on_error`):
        OSError: It can't be read.
    """
    return reactivex.defer(lambda _: asyncio.get_running_loop().run_in_executor(None, path.read_bytes))


async def digest_of(path: Path) -> Digest:
    """The digest of a file's content, to compare with a FileInfo's; it has the length, too."""

    def compute() -> Digest:
        digest = Digest()
        with path.open("rb") as file:
            while data := file.read(CHUNK_BYTES):
                digest.update(data)
        return digest

    return await asyncio.to_thread(compute)


def files_below(folder: Path, pattern: str = "*") -> list[Path]:
    """Every file below `folder` whose name matches `pattern`, sorted by path."""
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def python_sources() -> list[Path]:
    """The sources of the standard library, without installed packages."""
    sources = files_below(STANDARD_LIBRARY, "*.py")
    return [path for path in sources if _INSTALLED.isdisjoint(path.relative_to(STANDARD_LIBRARY).parts)]


def largest_file() -> Path:
    """The largest file of the running Python that may be in memory as a whole; mostly its library or executable."""
    library = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
    parts = [Path(sys.executable).resolve(), *([library] if library.is_file() else []), *python_sources()]
    sizes = {path: path.stat().st_size for path in parts}
    return max((path for path in parts if sizes[path] <= _MAX_WHOLE_FILE_BYTES), key=lambda path: sizes[path])


def _folder(text: str) -> Path:
    folder = Path(text).resolve()
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    if not files_below(folder):
        raise argparse.ArgumentTypeError(f"there are no files below {text!r}")
    return folder


def _chunked_file(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file")
    if path.stat().st_size < _MIN_CHUNKED_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r} has less than {_MIN_CHUNKED_BYTES:,} bytes")
    return path
