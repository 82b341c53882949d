"""An upload and a download that go on where they were when the server is killed half-way, and comes back.

The server runs in a process of its own, with a folder to keep its files in, and is killed with SIGKILL in the middle of
each transfer. `retry_backoff` subscribes again to the same observable, which goes on at what is durable: on the
server's disk for an upload, in the part beside the target for a download. A server named with `--uri` isn't killed;
there the connection is cut instead.

All that passes goes through a relay that counts it: beyond the file itself it may be a window of chunks, which were on
their way at that moment.
"""

import asyncio
import sys
import tempfile
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from .real_files import add_file_option, digest_of, largest_of_python
from .relay import Relay, relay

__all__ = ["add_options", "run"]

_FIRST_RETRY_SECONDS: Final = 0.1
_PROGRESS_SECONDS: Final = 0.1

# What headers, receipts, demand and keepalives add to the file's bytes: 0.03% of it, plus that of each connection.
_OVERHEAD: Final = 0.001
_OVERHEAD_BYTES: Final = 32 * 1024

add_options = add_file_option


async def run(context: Context) -> None:
    path: Path = context.options.file or await asyncio.to_thread(largest_of_python)
    name = f"resumable-{uuid.uuid4().hex[:8]}/{path.name}"
    original = await asyncio.to_thread(digest_of, path)
    size, digest = original.length, original.text()
    # When a transfer is half-way, a quarter of the file at most has been asked for beyond that: it can't be done yet.
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

            def transfer(verb: str, events: Observable[TransferEvent]) -> "_Transfer":
                return _Transfer(context, verb, events, size, window, link, kill or cut)

            uploaded = await transfer("upload", files.upload_from(name, path, window=window)).run()
            # Looked at over another connection: what a restarted server tells was read from its disk.
            stored = await other.stat(name)
            downloaded = await transfer("download", files.download_to(name, target, window=window)).run()

            found = {
                "the upload's": uploaded.digest,
                "the server's": stored.digest,
                "the download's": downloaded.digest,
            }
            found["the downloaded file's"] = (await asyncio.to_thread(digest_of, target)).text()
            for whose, other_digest in found.items():
                check(other_digest == digest, f"{whose} digest is {other_digest}, but that of {path} is {digest}")
            await other.delete(name)

    context.say(f"the same digest at both ends, and of what came back: {digest}")


@dataclass
class _Transfer:
    """One transfer, the failure in the middle of it, and what its events say about both.

    Attributes:
        context: The run.
        verb: What it is.
        events: The transfer itself.
        size: The file's length in bytes.
        window: Chunks that may be on their way.
        link: What it goes through.
        fail: Makes it fail.
    """

    context: Context
    verb: str
    events: Observable[TransferEvent]
    size: int
    window: int
    link: Relay
    fail: Callable[[], None]
    _durable: int = 0
    _has_failed: bool = False
    _resumed_from: int | None = None

    async def run(self) -> FileInfo:
        before = self.link.bytes_up + self.link.bytes_down
        last = await self.events.pipe(
            retry_backoff(base=_FIRST_RETRY_SECONDS),
            ops.do_action(self._watch),
            progress_every(_PROGRESS_SECONDS),
            ops.do_action(self._tell),
        )
        passed = self.link.bytes_up + self.link.bytes_down - before
        allowed = self.window * CHUNK_BYTES + int(_OVERHEAD * self.size) + _OVERHEAD_BYTES

        check(isinstance(last, Completed), f"the {self.verb} ended with {last}")
        assert isinstance(last, Completed), "that was checked"
        check(self._resumed_from is not None, f"the {self.verb} was done before it could fail")
        more = passed - self.size
        check(
            more <= allowed,
            f"the {self.verb} of {self.size:,} bytes took {passed:,} bytes, more than {allowed:,} beyond it",
        )
        self.context.say(f"{self.verb}: {more:,} bytes more than the file has passed, of {allowed:,} at most")
        return last.info

    def _watch(self, event: TransferEvent) -> None:
        """Sees every event; makes the transfer fail once, at the first that says that half is durable."""
        match event:
            case Started(resumed_from=offset) if self._has_failed:
                check(offset > 0, f"the {self.verb} started over")
                check(offset >= self._durable, f"the {self.verb} went back to {offset:,} from {self._durable:,}")
                self._resumed_from = offset
            case Progress(transferred=transferred):
                self._durable = transferred
                if not self._has_failed and 2 * transferred >= self.size:
                    self._has_failed = True
                    self.fail()
            case Started() | Retrying() | Completed():
                pass

    def _tell(self, event: TransferEvent) -> None:
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
    """The server to use, and what kills it; nothing does if it is the one that the user named.

    One of our own is a process that is started again whenever it ends, on the same port and with the same folder, as a
    service manager does it.
    """
    if context.server is None:
        yield context.uri, None
        return
    process, uri = await _start(folder, "0")
    port = uri.rpartition(":")[2]

    async def supervise() -> None:
        nonlocal process
        while True:
            await process.communicate()
            context.say(f"the server ended with status {process.returncode}; it is started again")
            process, _ = await _start(folder, port)

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
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "--store", str(folder), "--port", port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None, "it was asked for"
    try:
        listening = (await process.stdout.readline()).decode().split()
    except BaseException:
        await _stop(process)
        raise
    if not listening:
        await _stop(process)
        raise OSError(f"the server ended with status {process.returncode} before it listened")
    return process, listening[-1]


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()
