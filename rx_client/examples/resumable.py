"""An upload and a download that resume after the server is killed half-way, and has restarted.

The server runs in a process of its own, with a folder to keep its files in, and is killed with SIGKILL in the middle of
each transfer. `retry_backoff` subscribes again to the same observable, which goes on after the bytes that are durable:
on the server's disk for an upload, in the part beside the target for a download. A server named with `--uri` isn't
killed; there the connection is cut instead.

A relay counts all bytes that pass. Beyond the file itself they may be one window of chunks, which were on their way at
that moment.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from reactivex import Observable
from reactivex import operators as ops

from shared.protocol.flow import DEFAULT_WINDOW
from shared.protocol.messages import CHUNK_BYTES
from shared.protocol.wire import FileInfo

from .. import Completed, FileClient, Progress, Retrying, Started, TransferEvent
from ..operators import progress_every, retry_backoff
from .context import Context, check
from .real_files import chosen_file, digest_of
from .relay import Relay, relay

_FIRST_RETRY_SECONDS: Final = 0.1
_PROGRESS_SECONDS: Final = 0.1

# What headers, receipts, demand and keepalives add to the file's bytes: 0.03% of it, plus that of each connection.
_OVERHEAD: Final = 0.001
_OVERHEAD_BYTES: Final = 32 * 1024


async def run(context: Context) -> None:
    path, name = await chosen_file(context, "resumable")
    original = await digest_of(path)
    size, digest = original.length, original.text()
    # In the middle of a transfer at most a quarter of the file is requested beyond that: it can't be complete then.
    window = max(1, min(DEFAULT_WINDOW, size // CHUNK_BYTES // 4))

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, path.name)
        async with (
            _server(context, Path(folder, "store")) as (uri, kill),
            FileClient.connect(uri) as other,
            relay(uri) as link,
            FileClient.connect(link.uri) as files,
        ):
            context.say(f"{path.name!r}: {size:,} bytes, {window} chunks may be on their way at a time")

            def cut() -> None:
                context.say("the connection is cut")
                link.cut()

            transfer = partial(_Transfer, context, size, window, link, kill or cut)
            uploaded = await transfer("upload", files.upload_from(name, path, window=window)).run()
            # Over another connection: a restarted server has read this from its disk.
            stored = await other.stat(name)
            downloaded = await transfer("download", files.download_to(name, target, window=window)).run()

            infos = {"the upload's": uploaded, "the server's": stored, "the download's": downloaded}
            found = {whose: info.digest for whose, info in infos.items()}
            found["the downloaded file's"] = (await digest_of(target)).text()
            for whose, other_digest in found.items():
                check(other_digest == digest, f"{whose} digest is {other_digest}, but that of {path} is {digest}")
            await other.delete(name)

    context.say(f"the same digest at both ends, and of what came back: {digest}")


@dataclass
class _Transfer:
    """A transfer of `size` bytes through `link` that `fail` breaks in its middle; checks its events and its bytes."""

    context: Context
    size: int
    window: int
    link: Relay
    fail: Callable[[], None]
    verb: str
    events: Observable[TransferEvent]
    _durable: int = 0
    _has_failed: bool = False
    _has_resumed: bool = False

    async def run(self) -> FileInfo:
        before = self.link.passed.total()
        last = await self.events.pipe(
            retry_backoff(base=_FIRST_RETRY_SECONDS),
            ops.do_action(self._check),
            progress_every(_PROGRESS_SECONDS),
            ops.do_action(self._show),
        )
        passed = self.link.passed.total() - before
        allowed = self.window * CHUNK_BYTES + int(_OVERHEAD * self.size) + _OVERHEAD_BYTES
        assert isinstance(last, Completed), "a transfer's last event"
        check(self._has_resumed, f"the {self.verb} was done before it could fail")
        more = passed - self.size
        limit = f"more than {allowed:,} beyond it"
        check(more <= allowed, f"the {self.verb} of {self.size:,} bytes took {passed:,} bytes, {limit}")
        self.context.say(f"{self.verb}: {more:,} bytes more than the file has passed, of {allowed:,} at most")
        return last.info

    def _check(self, event: TransferEvent) -> None:
        """Checks each event; makes the transfer fail once, at the first event with half of the file durable."""
        match event:
            case Started(resumed_from=offset) if self._has_failed:
                check(offset > 0, f"the {self.verb} started over")
                check(offset >= self._durable, f"the {self.verb} went back to {offset:,} from {self._durable:,}")
                self._has_resumed = True
            case Progress(transferred=transferred):
                self._durable = transferred
                if not self._has_failed and 2 * transferred >= self.size:
                    self._has_failed = True
                    self.fail()
            case _:
                pass

    def _show(self, event: TransferEvent) -> None:
        match event:
            case Started(resumed_from=offset):
                self.context.say(f"{self.verb}: started at {offset:,}")
            case Progress(transferred=transferred):
                self.context.update(f"{self.verb}: {transferred:,} of {self.size:,} bytes are durable")
            case Retrying(attempt=attempt, delay=delay, cause=cause):
                self.context.say(f"{self.verb}: {cause}; retry {attempt} in {delay:.2f} s")
            case Completed(info=info):
                self.context.say(f"{self.verb}: completed, {info.size:,} bytes, {info.digest}")


@asynccontextmanager
async def _server(context: Context, folder: Path) -> AsyncGenerator[tuple[str, Callable[[], None] | None], None]:
    """The server's URI and a function that kills it, which is None for the user's own server.

    A server of this run is restarted whenever it ends, on the same port and folder, as a service manager does it.
    """
    if context.server is None:
        yield context.uri, None
        return
    process, uri = await _start(folder, "0")

    async def supervise() -> None:
        nonlocal process
        while True:
            await process.communicate()
            context.say(f"the server ended with status {process.returncode}; it is started again")
            process, _ = await _start(folder, uri.rpartition(":")[2])

    def kill() -> None:
        context.say(f"kill -9 {process.pid}")
        process.kill()

    supervisor = asyncio.create_task(supervise())
    try:
        yield uri, kill
    finally:
        supervisor.cancel()
        await asyncio.gather(supervisor, return_exceptions=True)
        await _stop(process)


async def _start(folder: Path, port: str) -> tuple[asyncio.subprocess.Process, str]:
    """A server that listens, and its URI."""
    command = [sys.executable, "-m", "server", "--store", str(folder), "--port", port]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None, "it is a pipe"
    listening: list[str] = []
    try:
        listening = (await process.stdout.readline()).decode().split()
    finally:
        if not listening:
            await _stop(process)
    if not listening:
        raise OSError(f"the server ended with status {process.returncode} before it listened")
    return process, listening[-1]


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()
