"""A local folder follows a folder of the server, live: what is added, changed and removed there is so here.

`watch_files` emits what is there, `Ready`, and then each change; `map_async` fetches one file after the other, and
slows the watch down meanwhile: a file that changes ten times in that time is fetched once. After a lost connection a
retry begins with what is there again, so what hasn't come before `Ready` has gone, and is removed here.
"""

import asyncio
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

from reactivex import Observable
from reactivex import operators as ops

from .. import FileClient, NotFound, watch
from ..operators import map_async, retry_backoff, stall_timeout, transfer_all
from .context import Context, check

_RETRIES: Final = 5
_STALL_SECONDS: Final = 30.0
_PATIENCE_SECONDS: Final = 20.0


class LiveMirror:
    """A folder that is like one of the server.

    Args:
        files: The client.
        prefix: What the names start with, such as `docs/`.
        folder: The local folder; what else is in it is removed.
    """

    def __init__(self, files: FileClient, prefix: str, folder: Path) -> None:
        self._files = files
        self._prefix = prefix
        self._folder = folder
        self._present: set[Path] = set()

    def follow(self) -> Observable[str]:
        """Emits what was done, in words, without end."""
        events = self._files.watch_files(self._prefix)
        return events.pipe(map_async(self._apply), retry_backoff(_RETRIES))

    async def _apply(self, event: watch.WatchEvent) -> str:
        match event:
            case watch.Present(info):
                self._present.add(self._path(info.name))
                return await self._fetch(info.name)
            case watch.Added(info) | watch.Changed(info):
                return await self._fetch(info.name)
            case watch.Removed(name):
                self._path(name).unlink(missing_ok=True)
                return f"removed {name}"
            case watch.Ready():
                present, self._present = self._present, set()
                gone = [path for path in self._folder.rglob("*") if path.is_file() and path not in present]
                for path in gone:
                    path.unlink()
                return f"ready: {len(present)} files are the same, {len(gone)} others were removed"

    async def _fetch(self, name: str) -> str:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            await self._files.download_to(name, path).pipe(stall_timeout(_STALL_SECONDS), retry_backoff(_RETRIES))
        except NotFound:
            return f"{name} has gone already"  # its `Removed` follows
        return f"fetched {name}"

    def _path(self, name: str) -> Path:
        """Where a file is kept; ValueError for a name that leads elsewhere: servers may list any."""
        below = PurePosixPath(name.removeprefix(self._prefix))
        if below.is_absolute() or ".." in below.parts or "\\" in name or ":" in name:
            raise ValueError(f"{name!r} can't be a path below {self._folder}")
        return self._folder / below


async def run(context: Context) -> None:
    prefix = f"live-{uuid.uuid4().hex[:8]}/"
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "left over").write_text("isn't on the server")
        async with FileClient.connect(context.uri) as files:
            await files.upload(f"{prefix}notes/a", b"first")
            await files.upload(f"{prefix}b", b"second")
            following = LiveMirror(files, prefix, folder).follow().pipe(ops.do_action(context.say), ops.count())
            task = asyncio.ensure_future(_end_of(following))
            await _until(task, folder, {"notes/a": b"first", "b": b"second"})
            await files.upload(f"{prefix}notes/a", b"first, changed")
            await files.upload_from(f"{prefix}c/d/e", b"third")
            await files.delete(f"{prefix}b")
            await _until(task, folder, {"notes/a": b"first, changed", "c/d/e": b"third"})
            task.cancel()
            await files.list_files(prefix=prefix).pipe(ops.map(files.delete), transfer_all(4), ops.count())
    context.say("the folder was like the server's at every rest")


async def _end_of(following: Observable[int]) -> None:
    await following


async def _until(task: "asyncio.Task[None]", folder: Path, expected: dict[str, bytes]) -> None:
    """Waits until the folder has these files and no others."""
    found: dict[str, bytes] = {}
    for _ in range(round(_PATIENCE_SECONDS / 0.05)):
        found = await asyncio.to_thread(_read, folder)
        if found == expected or task.done():
            break
        await asyncio.sleep(0.05)
    if task.done():
        task.result()
    check(found == expected, f"the folder has {found}, and the server {expected}")


def _read(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # it was just removed
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found
