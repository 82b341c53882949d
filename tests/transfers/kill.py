"""`python -m tests.transfers.kill`: either end is killed with SIGKILL in the middle of transfers, and comes back.

Each round sends another version of a real file up, or brings it down, and kills the server or the client at a random
moment. What must hold, round after round: the bytes are right, at both ends; the transfer continues, to
the byte, from what was durable when the process died; the server's file is the old or the new one, whole, at any time;
nothing is left over.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reactivex import Observable
from reactivex import operators as ops

from rx_client import Completed, FileClient, Progress, Started, TransferEvent
from rx_client.connection.options import ConnectOptions
from rx_client.operators import retry_backoff

KINDS = ("server dies, upload", "server dies, download", "client dies, upload", "client dies, download")

_CHUNK_BYTES = 64 * 1024
_WINDOW = 8
_ROUND_SECONDS = 60.0
_OPTIONS = ConnectOptions(reconnect_base=0.02, reconnect_cap=0.1, reconnect_timeout=15.0)


@dataclass
class Tally:
    """What happened.

    Attributes:
        rounds: How many.
        killed_in_time: Of those, how many died before the transfer was complete.
        resumed: How many of those had something durable, and went on with it.
    """

    rounds: int = 0
    killed_in_time: int = 0
    resumed: int = 0


@dataclass
class Server:
    """A server's process, always on the same port and folder."""

    folder: Path
    port: int = 0
    process: asyncio.subprocess.Process | None = None

    @property
    def uri(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server", "--store", str(self.folder), "--port", str(self.port)),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        assert line.startswith("listening on "), f"the server did not start: {line!r}"
        self.port = int(line.rsplit(":", 1)[1])

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    def durable(self) -> int:
        """Bytes of the one unfinished upload, as they lie on the disk."""
        parts = [part for part in (self.folder / ".rxfiles" / "parts").glob("*.part") if part.stat().st_nlink == 1]
        assert len(parts) <= 1, "one upload, and several parts"
        return parts[0].stat().st_size if parts else 0

    def leftovers(self) -> list[str]:
        """What should have gone."""
        ours = self.folder / ".rxfiles"
        return [str(path) for kind in ("parts", "tmp") for path in (ours / kind).iterdir()]


@dataclass
class Told:
    """What a client's process has said so far."""

    events: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])

    @property
    def reached(self) -> int:
        return max((count for _, count in self.events), default=0)

    @property
    def resumed_from(self) -> int:
        return next((count for kind, count in self.events if kind == "started"), 0)

    @property
    def is_complete(self) -> bool:
        return any(kind == "completed" for kind, _ in self.events)


class Rounds:
    """All rounds share a server's folder and a client's.

    Args:
        root: For both.
        seed: Of everything that is left to chance.
        nbytes: The file's length.
    """

    def __init__(self, root: Path, seed: int, nbytes: int) -> None:
        self.chance = random.Random(seed)
        self.server = Server(root / "served")
        self.source, self.got = root / "source", root / "client" / "got"
        self.got.parent.mkdir()
        self.tally = Tally()
        self.real = _real_bytes(nbytes)
        self.old = b""

    async def one(self, number: int, kind: str) -> str:
        """Does one round; says how it went."""
        turn = self.chance.randrange(1, len(self.real))
        new = self.real[turn:] + self.real[:turn] + number.to_bytes(4, "big")
        is_upload = kind.endswith("upload")
        if is_upload:
            self.source.write_bytes(new)
        else:
            await self._seed(new)
            self.got.write_bytes(b"what was there")
        # In one of ten the end is aimed at: the fsync, the rename, the last receipt.
        share = 1.0 if self.chance.random() < 0.1 else self.chance.random()
        moment = int(share * len(new)), self.chance.random() * 0.02
        act = self._server_dies if kind.startswith("server") else self._client_dies
        was_in_time, durable, resumed_from = await act(is_upload, f"id-{number}", new, *moment)
        self._check(is_upload, new)
        self.old = new
        self.tally.rounds += 1
        self.tally.killed_in_time += was_in_time
        if was_in_time and durable:
            assert resumed_from >= durable, f"{durable} bytes were durable; went on from {resumed_from}"
            self.tally.resumed += 1
        return f"{kind}: at {durable:,} of {len(new):,} bytes, went on from {resumed_from:,}"

    async def _seed(self, content: bytes) -> None:
        async with FileClient.connect(self.server.uri, options=_OPTIONS) as files:
            await files.upload_from("n", content)
        self.old = content

    def _check(self, is_upload: bool, new: bytes) -> None:
        at_server = (self.server.folder / "n").read_bytes()
        assert at_server == new, f"the server has other bytes: {len(at_server)} of {len(new)}"
        assert not self.server.leftovers(), self.server.leftovers()
        if not is_upload:
            assert self.got.read_bytes() == new, "the client has other bytes"
            assert [path.name for path in self.got.parent.iterdir()] == ["got"]

    async def _server_dies(
        self, is_upload: bool, upload_id: str, new: bytes, at: int, later: float
    ) -> tuple[bool, int, int]:
        reached = asyncio.Event()
        events: list[TransferEvent] = []

        def note(event: TransferEvent) -> None:
            events.append(event)
            match event:
                case Progress(transferred=count) | Started(resumed_from=count) if count < at:
                    pass
                case _:
                    reached.set()

        async with FileClient.connect(self.server.uri, options=_OPTIONS) as files:
            transfer = _transfer(files, is_upload, self.source if is_upload else self.got, upload_id)
            retried = transfer.pipe(retry_backoff(50, base=0.05, cap=0.2), ops.do_action(note))
            done = asyncio.ensure_future(_awaited(retried))
            done.add_done_callback(lambda _: reached.set())
            await reached.wait()
            await asyncio.sleep(later)
            was_in_time = not done.done()
            await self.server.kill()
            durable = self.server.durable() if is_upload else self._part_bytes(events)
            heard_before = len(events)
            await self.server.start()
            await self._old_or_new(new)
            await done
        assert isinstance(events[-1], Completed)
        again = [event.resumed_from for event in events[heard_before:] if isinstance(event, Started)]
        return was_in_time and bool(again), durable, again[0] if again else 0

    @staticmethod
    def _part_bytes(events: list[TransferEvent]) -> int:
        return max((event.transferred for event in events if isinstance(event, Progress)), default=0)

    async def _client_dies(
        self, is_upload: bool, upload_id: str, new: bytes, at: int, later: float
    ) -> tuple[bool, int, int]:
        path = self.source if is_upload else self.got
        async with _client(self.server.uri, is_upload, path, upload_id) as (process, told):
            while not told.is_complete and told.reached < at and await _listen(process, told):
                pass
            await asyncio.sleep(later)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            while await _listen(process, told):
                pass
        was_in_time = not told.is_complete
        assert is_upload or was_in_time or self.got.read_bytes() == new
        if is_upload:
            await self._old_or_new(new)
            durable = told.reached
        else:
            assert self.got.read_bytes() in (b"what was there", new)
            parts = [part for part in self.got.parent.iterdir() if part != self.got]
            assert len(parts) <= 1
            durable = parts[0].stat().st_size if parts else 0
        if is_upload and self._is_published(new):
            was_in_time = False  # before the death, and the same id is a new upload now
        async with _client(self.server.uri, is_upload, path, upload_id) as (process, again):
            while await _listen(process, again):
                pass
            assert await process.wait() == 0
        assert again.is_complete
        return was_in_time, durable, again.resumed_from

    def _is_published(self, new: bytes) -> bool:
        path = self.server.folder / "n"
        return path.exists() and path.read_bytes() == new

    async def _old_or_new(self, new: bytes) -> None:
        """What the server serves at this moment is one of the two, whole."""
        async with FileClient.connect(self.server.uri, options=_OPTIONS) as files:
            names = await files.list_files().pipe(ops.to_list())
            if not names:
                assert not self.old
                return
            assert names == ["n"]
            assert await files.download("n") in (self.old, new), "the server's file is neither old nor new"


def _real_bytes(nbytes: int) -> bytes:
    """The files of the standard library, one after the other."""
    found = bytearray()
    for path in sorted(Path(os.__file__).parent.rglob("*.*")):
        if len(found) >= nbytes:
            break
        if path.is_file():
            found += path.read_bytes()
    assert len(found) >= nbytes, f"this Python's library has {len(found)} bytes only"
    return bytes(found[:nbytes])


def _transfer(files: FileClient, is_upload: bool, path: Path, upload_id: str) -> Observable[TransferEvent]:
    if is_upload:
        return files.upload_from("n", path, chunk_size=_CHUNK_BYTES, window=_WINDOW, upload_id=upload_id)
    return files.download_to("n", path, window=_WINDOW)


async def _awaited(transfer: Observable[TransferEvent]) -> None:
    await transfer


@asynccontextmanager
async def _client(
    uri: str, is_upload: bool, path: Path, upload_id: str
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, Told], None]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.transfers.kill", "--client", uri),
        *("up" if is_upload else "down", str(path), upload_id),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process, Told()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _listen(process: asyncio.subprocess.Process, told: Told) -> bool:
    """Takes the next line of a client's process; whether there was one."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        return False
    kind, count = json.loads(line)
    told.events.append((kind, count))
    return True


async def run_client(uri: str, direction: str, path: str, upload_id: str) -> None:
    """The client's process: one transfer, its events on standard output, a line each."""

    def say(event: TransferEvent) -> None:
        match event:
            case Started(resumed_from=count):
                print(json.dumps(["started", count]), flush=True)
            case Progress(transferred=count):
                print(json.dumps(["progress", count]), flush=True)
            case Completed(info=info):
                print(json.dumps(["completed", info.size]), flush=True)
            case _:
                pass

    async with FileClient.connect(uri, options=_OPTIONS) as files:
        await _transfer(files, direction == "up", Path(path), upload_id).pipe(ops.do_action(say))


async def run(rounds: int, seed: int, nbytes: int, *, is_quiet: bool = False) -> Tally:
    """Does the rounds, each kind in its turn.

    Raises:
        AssertionError: Something that must hold did not.
    """
    with tempfile.TemporaryDirectory(prefix="rxfiles-kill-") as root:
        all_of_them = Rounds(Path(root), seed, nbytes)
        await all_of_them.server.start()
        try:
            for number in range(rounds):
                async with asyncio.timeout(_ROUND_SECONDS):
                    said = await all_of_them.one(number, KINDS[number % len(KINDS)])
                if not is_quiet:
                    print(f"{number + 1:4} {said}", flush=True)
        finally:
            await all_of_them.server.kill()
        return all_of_them.tally


def main() -> int:
    """The command; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m tests.transfers.kill", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="to repeat a run (default: another one each time)")
    parser.add_argument("--bytes", type=int, default=32_000_000, help="the file's length (default: %(default)s)")
    parser.add_argument("--client", nargs=4, metavar=("URI", "up|down", "PATH", "ID"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        asyncio.run(run_client(*options.client))
        return 0
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}")
    tally = asyncio.run(run(options.rounds, seed, options.bytes))
    print(f"{tally.rounds} rounds, {tally.killed_in_time} killed in time, {tally.resumed} of them with a durable part")
    return 0


if __name__ == "__main__":
    sys.exit(main())
