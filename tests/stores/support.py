"""What the tests of the stores share.

To have `test_contract.py` check another store, add one line to `STORES`; what is special about it is tested in a module
of its own. `partwise.py` is an example of a store that makes less durable than it receives.
"""

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.stores.base import PAGE_FILES, Store, Upload
from server.stores.directory.store import DirectoryStore
from server.stores.memory import MemoryStore
from server.stores.objects import ObjectStore
from shared.errors import InvalidName
from shared.protocol.digest import Digest
from shared.protocol.wire import FileInfo

from .partwise import PartwiseStore

STORES: dict[str, Callable[[Path, int | None], Store]] = {
    "memory": lambda path, limit: MemoryStore({}, None, limit),
    "directory": DirectoryStore,
    "partwise": lambda path, limit: PartwiseStore(limit),
}
"""Makes each store, not started yet, from a path that it may use (nothing is there) and the largest file it takes."""

OBJECTS = "objects"
"""The store in a bucket, which needs a service; see `conftest.py`."""

ALL_OF_IT = "ALL_OBJECT_STORE_TESTS"
"""An environment variable: whether all tests of the contract run on an object store."""

SOME_FOR_OBJECTS = {
    "test_a_file_goes_in_and_comes_out",
    "test_an_open_file_stays_as_it_was",
    "test_an_upload_goes_on_where_it_stopped",
    "test_the_newest_upload_takes_over",
    "test_a_wrong_digest_publishes_nothing",
    "test_without_overwrite",
    "test_move",
    "test_sweep_drops_uploads_that_got_no_bytes",
}
"""Those that always do."""

ALGORITHM = "xxh3-128"


def digest_of(content: bytes, algorithm: str = ALGORITHM) -> str:
    digest = Digest(algorithm)
    digest.update(content)
    return digest.text()


async def begin(
    store: Store,
    name: str,
    *,
    upload_id: str = "u1",
    size: int | None = None,
    algorithm: str = ALGORITHM,
    overwrite: bool = True,
    modified: float | None = None,
) -> Upload:
    return await store.begin(upload_id, name, size=size, algorithm=algorithm, overwrite=overwrite, modified=modified)


async def flushed(upload: Upload) -> int:
    """Flushes an upload, and returns what is durable: everything, but for less than the window of a partwise store."""
    durable = await upload.flush()
    assert durable == upload.durable
    assert 0 <= upload.received - durable < (upload.window_bytes or 1)
    return durable


async def put(store: Store, name: str, content: bytes, *, upload_id: str = "put", overwrite: bool = True) -> FileInfo:
    """Stores a file, in chunks of three bytes or a tenth."""
    upload = await begin(store, name, upload_id=upload_id, size=len(content), overwrite=overwrite)
    step = max(3, len(content) // 10)
    await upload.append([content[start : start + step] for start in range(0, len(content), step)])
    return await upload.commit(digest_of(content))


def as_listed(store: Store, info: FileInfo, modified: float | None = None) -> FileInfo:
    """What a listing says of a file; `modified` is the time that it says, where the store doesn't list that."""
    return info if store.lists_all else replace(info, digest=None, modified=modified)


async def check_listed(store: Store, *infos: FileInfo) -> None:
    """Asserts that these files are there, and no others."""
    found = await listed(store)
    assert found == [as_listed(store, info, each.modified) for info, each in zip(infos, found, strict=True)]


def names_for(store: Store) -> list[str]:
    """Those of `NAMES` that the store takes; the others must be invalid ones for it."""
    invalid = invalid_names_for(store)
    return [name for name in NAMES if name not in invalid and not (isinstance(store, ObjectStore) and is_odd(name))]


def invalid_names_for(store: Store) -> set[str]:
    """Those of `NAMES` that the store doesn't take."""
    return {name for name in NAMES if isinstance(store, ObjectStore) and not is_key(store, name)}


def is_key(store: ObjectStore, name: str) -> bool:
    """Whether an object can have this name."""
    try:
        store.key_of(name)
    except InvalidName:
        return False
    return True


def is_odd(name: str) -> bool:
    """Whether a service can't have an object of this name.

    SeaweedFS has segments of 255 bytes, and folds backslashes; moto doesn't list what XML doesn't have.
    """
    return (
        max(len(segment.encode()) for segment in name.split("/")) > 255 or name.startswith("..\\") or "\uffff" in name
    )


async def get(store: Store, name: str) -> bytes:
    """A file's content."""
    reader = await store.open(name)
    try:
        return await reader.read(0, reader.info.size + 1)
    finally:
        await reader.close()


async def listed(store: Store, prefix: str = "", limit: int = PAGE_FILES) -> list[FileInfo]:
    """A whole listing, page by page."""
    found: list[FileInfo] = []
    after: str | None = ""
    while after is not None:
        page = await store.list(prefix, after, limit)
        assert len(page.files) <= limit
        found += page.files
        after = page.after
    return found


async def names_in(store: Store, prefix: str = "") -> set[str]:
    return {info.name for info in await listed(store, prefix)}


NAMES = [
    "a.txt",
    "A.txt",
    "README.md",
    "Grüße.txt",
    "Gru\u0308ße.txt",
    "two words.txt",
    "../x",
    "..\\x",
    "/etc/passwd",
    "a/b",
    "a",
    ".",
    "..",
    "...",
    " ",
    "~",
    "-rf",
    "*?",
    "CON",
    "con",
    "con.txt",
    "com¹",
    "trailing.",
    "trailing ",
    " leading",
    ".hidden",
    ".rxfiles",
    ".rxfiles/lock",
    ".RXFILES",
    "=a",
    "=a%2fb",
    "a%2fb",
    "%",
    "~" + "0" * 64,
    "PROGRA~1",
    "a:stream",
    "\u202egnp.exe",
    "\u200b",
    "\N{LATIN SMALL LETTER LONG S}",
    "s",
    "K",
    "\N{KELVIN SIGN}",
    "日本語",
    "🗂️",
    "\ud7ff\ue000\uffff\U0010ffff",
    "x" * 255,
    "x" * 256,
    "x" * 1024,
    "X" * 1024,
    "ä" * 127,
    "ä" * 128,
    "ä" * 512,
    "a" * 127,
    "a" * 126,
]
"""Names that some file system can't have, hides, folds or obeys. All differ."""


class Killed(BaseException):
    """The process is killed here."""


@contextmanager
def killed_after(steps: int, functions: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    """Inside, the functions of `os` with these names can be called so many times together; then they raise Killed."""
    steps_left = steps

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps_left
            if steps_left == 0:
                raise Killed
            steps_left -= 1
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in filter(lambda name: hasattr(os, name), functions):
            patch.setattr(os, name, mortal(getattr(os, name)))
        yield
