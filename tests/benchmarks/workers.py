"""The two processes of a comparison, a peer's server and its client, and how the benchmark controls them.

A worker reads commands from standard input, and prints their results; each is a line of JSON.
"""

import argparse
import asyncio
import importlib
import json
import operator
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Self

from .peers import SYSTEMS, Client, make_peer

__all__ = ["SMALL_BYTES", "Pair", "is_available"]

SMALL_BYTES: Final = 4096
_ROOT: Final = Path(__file__).parents[2]
_PUT_NAMES: Final = 64
_ANSWER_SECONDS: Final = 120.0


class Pair:
    """A server and a client of one system, each a process, over loopback.

    Args:
        system: A key of `peers.SYSTEMS`.
        folder: Holds `files`; each side gets links to them in a folder of its own, as our server locks its folder.
        options: For both workers.
        round_trip: Seconds, of a long line between them; 0 for none.
    """

    def __init__(self, system: str, folder: Path, options: list[str], round_trip: float = 0) -> None:
        self.system = system
        self._round_trip = round_trip
        self._files = folder / "files"
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._options = options
        self._processes: list[asyncio.subprocess.Process] = []
        self._line: asyncio.subprocess.Process | None = None
        self._idle: list[float] = []

    async def __aenter__(self) -> Self:
        for side in ("server", "client"):
            (self._folder / side).mkdir()
            for file in self._files.iterdir():
                (self._folder / side / file.name).hardlink_to(file)
        server = await self._spawn("serve", str(self._folder / "server"))
        port = await _answer(server)
        if self._round_trip:
            self._line = await self._run("line", str(port), str(self._round_trip / 2))
            port = await _answer(self._line)
        await _answer(await self._spawn("drive", str(self._folder / "client"), "--port", str(port)))
        return self

    async def __aexit__(self, *_: object) -> None:
        processes = [*self._processes, *([] if self._line is None else [self._line])]
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in processes:
            await process.wait()
        shutil.rmtree(self._folder)

    async def _spawn(self, *arguments: str) -> asyncio.subprocess.Process:
        process = await self._run("workers", self.system, *arguments, *self._options)
        self._processes.append(process)
        return process

    async def _run(self, module: str, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", f"{__package__}.{module}", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=_ROOT,
            limit=1 << 20,
        )

    @property
    def _server(self) -> asyncio.subprocess.Process:
        return self._processes[0]

    @property
    def _client(self) -> asyncio.subprocess.Process:
        return self._processes[1]

    async def do(self, command: str, **arguments: object) -> Any:
        """Has the client's worker run a command, and returns its result."""
        return await _command(self._client, command, arguments)

    async def transfer(self, direction: str, names: list[str], rate: float | None = None) -> float:
        """The seconds of a transfer of these files of the sender's folder, all at once.

        Raises:
            RuntimeError: A file's size at the receiver isn't the sender's.
        """
        source, target = ("server", "client") if direction == "down" else ("client", "server")
        seconds: float = await self.do("transfer", direction=direction, names=names, rate=rate)
        for name in names:
            moved = self._folder / target / f"{name}.moved"
            if moved.stat().st_size != (self._folder / source / name).stat().st_size:
                raise RuntimeError(f"{self.system}: {moved} doesn't have the size of what was sent")
        self._remove_moved()
        return seconds

    async def latency(self, direction: str, name: str, *, is_small_on_disk: bool) -> list[float]:
        """See `_Worker.latency`."""
        found: list[float] = await self.do("latency", direction=direction, name=name, is_small_on_disk=is_small_on_disk)
        self._remove_moved()
        return found

    async def freeze(self, direction: str, name: str, seconds: float) -> None:
        """Begins a transfer, and stops its receiving process for `seconds`."""
        receiver = self._client if direction == "down" else self._server
        task = asyncio.create_task(self.do("transfer", direction=direction, names=[name], rate=None))
        await asyncio.sleep(0.15)
        receiver.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        receiver.send_signal(signal.SIGCONT)
        await asyncio.wait([task])
        self._remove_moved()

    def _remove_moved(self) -> None:
        for path in self._folder.glob("*/*.moved"):
            path.unlink()

    async def fsync_seconds(self) -> float:
        """The seconds of both processes in `os.fsync` since the last call."""
        return sum([await _command(process, "fsync_seconds", {}) for process in self._processes])

    async def callbacks(self) -> tuple[list[float], list[float]]:
        """The client's and the server's longest callbacks since the last call; see `_CallbackTimes.take`."""
        server, client = [await _command(process, "callbacks", {}) for process in self._processes]
        return client, server

    def cpu_seconds(self) -> float:
        """The processor time of both processes so far."""
        return sum(_cpu_seconds(process.pid) for process in self._processes)

    def forget_peaks(self) -> None:
        """Begins to measure memory: the present use counts as idle."""
        for process in self._processes:
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        self._idle = [_status_mib(process.pid, "VmRSS") for process in self._processes]

    def peaks(self) -> list[float]:
        """The client's and the server's peak memory since `forget_peaks`, in MiB above idle."""
        server, client = (
            _status_mib(process.pid, "VmHWM") - idle for process, idle in zip(self._processes, self._idle, strict=True)
        )
        return [client, server]


def is_available(system: str) -> str | None:
    """None if the system can run here, else the reason why it can't."""
    try:
        importlib.import_module(f"{__package__}.peers.{SYSTEMS[system][0].partition(':')[0]}")
    except ImportError as error:
        return str(error)
    return None


async def _command(process: asyncio.subprocess.Process, command: str, arguments: dict[str, object]) -> Any:
    assert process.stdin is not None, "it was made with pipes"
    process.stdin.write(json.dumps([command, arguments]).encode() + b"\n")
    return await _answer(process)


async def _answer(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None, "it was made with pipes"
    async with asyncio.timeout(_ANSWER_SECONDS):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError(f"a worker ended with status {await process.wait()}")
    return json.loads(line)


def _status_mib(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"there is no {field}")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    # utime, stime, and the same of children that have ended: curl.
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


# In the worker


class _Worker:
    """The commands of a client's worker."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._large = b""

    async def transfer(self, direction: str, names: list[str], rate: float | None) -> float:
        """The seconds of a transfer of these files, all at once."""

        async def one(name: str) -> None:
            if direction == "down":
                await self._client.download(name, self._folder / f"{name}.moved", rate)
            else:
                await self._client.upload(self._folder / name, f"{name}.moved")

        start = time.perf_counter()
        await asyncio.gather(*map(one, names))
        return time.perf_counter() - start

    async def whole(self, direction: str, nbytes: int) -> float:
        """The seconds of a transfer of one file from memory to memory."""
        if len(self._large) != nbytes:
            # In a thread, so that it doesn't count as a callback of the client's loop.
            self._large = await asyncio.to_thread(operator.mul, os.urandom(1000), nbytes // 1000)
            await self._client.put("large", self._large)
        got = self._large
        start = time.perf_counter()
        if direction == "up":
            await self._client.put("large", self._large)
        else:
            got = await self._client.get("large")
        seconds = time.perf_counter() - start
        # In a thread, for the same reason.
        if not await asyncio.to_thread(operator.eq, got, self._large):
            raise RuntimeError("other bytes came back")
        return seconds

    async def requests(self, verb: str, count: int, in_flight: int) -> float:
        """The seconds of `count` requests of small files, with `in_flight` of them at a time."""
        content = bytes(SMALL_BYTES)
        await self._client.put("small", content)
        left = iter(range(count))

        async def one_after_another() -> None:
            for number in left:
                if verb == "put":
                    await self._client.put(f"small{number % _PUT_NAMES}", content)
                elif verb == "get":
                    await self._client.get("small")
                else:
                    await self._client.stat("small")

        start = time.perf_counter()
        await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
        return time.perf_counter() - start

    async def latency(self, direction: str, name: str, is_small_on_disk: bool) -> list[float]:
        """Milliseconds of small requests, one at a time, during a large transfer: median and 99th percentile."""
        verb = self._client.stat if is_small_on_disk else self._client.get
        if not is_small_on_disk:
            await self._client.put("small", bytes(SMALL_BYTES))
        transfer = asyncio.create_task(self.transfer(direction, [name], None))
        took: list[float] = []
        await asyncio.sleep(0)
        while not transfer.done():
            start = time.perf_counter()
            await verb("small")
            took.append((time.perf_counter() - start) * 1000)
        await transfer
        percentiles = statistics.quantiles(took, n=100, method="inclusive")
        return [percentiles[49], percentiles[98]]


class _CallbackTimes:
    """Times the event loop's callbacks, in processor time, which other work of the machine doesn't change."""

    def __init__(self) -> None:
        self._took: list[float] = []

    def watch(self) -> None:
        """Begins; costs some microseconds a callback."""
        run: Callable[[asyncio.Handle], None] = asyncio.Handle._run  # pyright: ignore[reportAttributeAccessIssue]

        def timed_run(handle: asyncio.Handle) -> None:
            start = time.thread_time()
            run(handle)
            self._took.append((time.thread_time() - start) * 1000)

        asyncio.Handle._run = timed_run  # pyright: ignore[reportAttributeAccessIssue]

    async def take(self) -> list[float]:
        """Milliseconds of a callback since the last call: the 99.9th percentile, and the maximum."""
        took, self._took = sorted(self._took), []
        return [took[len(took) * 999 // 1000], took[-1]] if took else [0.0, 0.0]


class _FsyncTime:
    """Times `os.fsync`."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._fsync = os.fsync
        os.fsync = self._timed

    def _timed(self, fd: int) -> None:
        start = time.perf_counter()
        self._fsync(fd)
        self._seconds += time.perf_counter() - start

    async def take(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


async def _run_commands(commands: dict[str, Callable[..., Awaitable[object]]], greeting: object) -> None:
    """Runs the commands of standard input, until SIGTERM."""
    print(json.dumps(greeting), flush=True)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    task = asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        while line := await reader.readline():
            command, arguments = json.loads(line)
            print(json.dumps(await commands[command](**arguments)), flush=True)
    except asyncio.CancelledError:
        pass


async def _work(arguments: argparse.Namespace) -> None:
    peer, folder = make_peer(arguments.system), Path(arguments.folder)
    fsync, callbacks = _FsyncTime(), _CallbackTimes()
    if arguments.watch:
        callbacks.watch()
    times = {"fsync_seconds": fsync.take, "callbacks": callbacks.take}
    if arguments.role == "serve":
        async with peer.serve(folder) as port:
            await _run_commands(times, port)
        return
    async with peer.connect(arguments.port) as client:
        worker = _Worker(client, folder)
        verbs = {verb: getattr(worker, verb) for verb in ("transfer", "whole", "requests", "latency")}
        await _run_commands({**times, **verbs}, "ready")


def main() -> None:
    """Runs a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("role", choices=["serve", "drive"])
    parser.add_argument("folder")
    parser.add_argument("--port", type=int)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--watch", action="store_true", help="time the event loop's callbacks")
    arguments = parser.parse_args()
    run: Callable[..., None] = importlib.import_module("uvloop").run if arguments.uvloop else asyncio.run
    run(_work(arguments))


if __name__ == "__main__":
    main()
