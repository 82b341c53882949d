"""`make bench`: this project beside others, each in two processes over loopback, compared with the project's goals.

Every repetition runs each measurement once, one system after the other, so that other work of the machine affects all
alike; the first repetition only warms up, and medians of the others are reported. Files are in memory (`/dev/shm`)
unless `--folder` names another place, because a disk would hide all differences. Measurements of their own sync large
and small files to a real disk; for large ones, the time of the syncs is reported beside it.

Needs Linux, for the memory figures and the shared folder, and `pip install -e '.[bench]'`. Peers that aren't installed
are left out.
"""

import argparse
import asyncio
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .idle import measure_idle
from .report import Results, write_report
from .stages import measure_stages
from .workers import SMALL_BYTES, Pair, is_available

_RESULTS: Final = Path(__file__).parent / "results"
_MIB: Final = 1024 * 1024
_SLOW_MIB: Final = 64
_LINE_MIB: Final = 128
_ROUND_TRIPS_MS: Final = (20, 100)
_SLOW_RATE: Final = 25e6
_SLOW: Final = "slow receiver (25 MB/s) {}"
_FROZEN: Final = "frozen receiver (1 s) {}"

OURS: Final = "rxfiles"
OURS_NO_DIGEST: Final = "rxfiles, digest=None"
OURS_FSYNC: Final = "rxfiles, with fsync"
OURS_SLOW: Final = "rxfiles, slow disk"
OURS_TLS: Final = "rxfiles, TLS"
OURS_MEMORY: Final = "rxfiles, memory"
OURS_EACH: Final = ("rxfiles, a client each", "rxfiles, a client each, TLS")
STREAMS_TLS: Final = "asyncio streams, TLS"
TLS: Final = (OURS_TLS, STREAMS_TLS, "SSLSockets")
AT_ONCE: Final = (1, 4, 16, 64)
FAST: Final = (
    OURS,
    OURS_NO_DIGEST,
    "asyncio streams",
    "sendfile + splice",
    "nginx + curl",
    "aiohttp, default",
    "aiohttp, tuned",
    "grpc.aio",
)
STOCK: Final = ("rsocket, read buffer 1024", "rsocket, read buffer 64 KiB")
TUTORIAL: Final = ("tutorial, read buffer 1024", "tutorial, read buffer 64 KiB")
HTTP: Final = ("aiohttp, 1 connection", "aiohttp, 32 connections", "aiohttp, 32 connections, folder")


@dataclass(frozen=True)
class Size:
    """The amounts of a run."""

    repetitions: int
    stream_mib: int
    stock_mib: int
    whole_bytes: int
    requests: int
    latency_mib: int
    concurrent_mib: int
    idle_clients: int


FULL: Final = Size(5, 1024, 256, 100_000_000, 2000, 256, 256, 10_000)
QUICK: Final = Size(3, 128, 32, 20_000_000, 300, 64, 64, 1000)

Measure = Callable[[Pair], Awaitable[None]]


@dataclass
class Bench:
    """One run.

    Attributes:
        size: The amounts.
        folder: For the files.
        disk: The same, on a real disk.
        options: For the workers.
    """

    size: Size
    folder: Path
    disk: Path
    options: list[str]
    results: Results = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    async def run(self) -> None:
        """Measures everything."""
        print("streams, disk to disk", flush=True)
        await self._interleave([(system, self._streams(system)) for system in (*FAST, *STOCK)])
        await self._interleave([(OURS_FSYNC, self._synced)], self.disk)
        await self._interleave([(system, self._streams(system)) for system in TLS])
        print("long lines", flush=True)
        for milliseconds in _ROUND_TRIPS_MS:
            systems = (OURS, "asyncio streams", *TLS[:2])
            measure = self._long_line(milliseconds)
            await self._interleave([(system, measure) for system in systems], round_trip=milliseconds / 1000)
        print("stages, each by itself", flush=True)
        self._stages()
        print("callbacks of the event loop", flush=True)
        await self._callbacks()
        print("several at once", flush=True)
        systems = (OURS, *OURS_EACH, "asyncio streams", "aiohttp, tuned", "grpc.aio", STOCK[1], OURS_TLS, STREAMS_TLS)
        await self._interleave([(system, self._several) for system in systems])
        print("whole files in memory", flush=True)
        await self._interleave([(system, self._whole) for system in (OURS_MEMORY, OURS, *TUTORIAL)])
        print("small files", flush=True)
        systems = (OURS_MEMORY, OURS_FSYNC, *TUTORIAL, *STOCK, *HTTP, "grpc.aio")
        await self._interleave([(system, self._small) for system in systems])
        await self._interleave([(system, self._small_on_disk) for system in (OURS_FSYNC, HTTP[-1])], self.disk)
        print("small requests beside a large transfer", flush=True)
        await self._interleave([(system, self._latency) for system in (OURS, *STOCK, "grpc.aio")])
        print("idle clients", flush=True)
        await asyncio.to_thread(self._idle)
        print("memory", flush=True)
        await self._memory()

    # Running measurements

    async def _interleave(
        self, measurements: list[tuple[str, Measure]], folder: Path | None = None, round_trip: float = 0
    ) -> None:
        async with AsyncExitStack() as stack:
            pairs: list[tuple[Pair, Measure]] = []
            for system, measure in measurements:
                if _can_run(system):
                    pair = Pair(system, folder or self.folder, self.options, round_trip)
                    pairs.append((await stack.enter_async_context(pair), measure))
            for repetition in range(self.size.repetitions + 1):
                kept = self.results
                if not repetition:  # the first warms up
                    self.results = defaultdict(lambda: defaultdict(list))
                # In alternating order, so that no system always runs after the same other one.
                for pair, measure in pairs[:: 1 if repetition % 2 else -1]:
                    await measure(pair)
                self.results = kept

    def _warm(self, mib: int) -> None:
        """Touches as much memory as the next files will take: a virtual machine's host may have reclaimed free pages,
        and the first system after a pause would pay for their return."""
        _write(self.folder / "warm", bytes(_MIB), mib)
        (self.folder / "warm").unlink()

    def _add(self, what: str, system: str, value: float) -> None:
        self.results[what][system].append(value)

    # The measurements

    def _streams(self, system: str) -> Measure:
        mib = self.size.stock_mib if system in STOCK else self.size.stream_mib

        async def measure(pair: Pair) -> None:
            for direction in ("down", "up"):
                self._warm(mib)
                cpu = pair.cpu_seconds()
                seconds = await pair.transfer(direction, [_large(mib)])
                self._add(f"stream {direction}, MB/s", system, mib * _MIB / 1e6 / seconds)
                self._add(f"stream {direction}, cpu s/GiB", system, (pair.cpu_seconds() - cpu) * 1024 / mib)

        return measure

    def _long_line(self, milliseconds: int) -> Measure:
        async def measure(pair: Pair) -> None:
            for direction in ("down", "up"):
                self._warm(_LINE_MIB)
                seconds = await pair.transfer(direction, [_large(_LINE_MIB)])
                what = f"line of {milliseconds} ms {direction}, MB/s"
                self._add(what, pair.system, _LINE_MIB * _MIB / 1e6 / seconds)

        return measure

    async def _synced(self, pair: Pair) -> None:
        mib = self.size.stream_mib // 2
        for direction in ("down", "up"):
            self._warm(mib)
            await pair.fsync_seconds()
            seconds = await pair.transfer(direction, [_large(mib)])
            fsync = await pair.fsync_seconds()
            self._add(f"stream {direction} on a disk, MB/s", "with fsync", mib * _MIB / 1e6 / seconds)
            self._add(f"stream {direction} on a disk, MB/s", "without its time", mib * _MIB / 1e6 / (seconds - fsync))
            self._add(f"stream {direction} on a disk, fsync s/GiB", "with fsync", fsync * 1024 / mib)

    def _stages(self) -> None:
        file = self.folder / "files" / _large(self.size.latency_mib)
        for repetition in range(self.size.repetitions + 1):
            found = measure_stages(file, self.folder / "stage", self.disk / "stage")
            if repetition:  # the first warms up
                for stage, seconds in found.items():
                    self._add("stage, s/GiB", stage, seconds)

    async def _callbacks(self) -> None:
        for system in (OURS, OURS_NO_DIGEST, OURS_TLS, OURS_MEMORY):
            async with Pair(system, self.folder, [*self.options, "--watch"]) as pair:
                await pair.do("requests", verb="get", count=1, in_flight=1)
                await pair.callbacks()  # without those of the connect: a TLS handshake computes for long, once
                for direction in ("down", "up"):
                    if system == OURS_MEMORY:
                        await pair.do("whole", direction=direction, nbytes=self.size.whole_bytes)
                    else:
                        await pair.transfer(direction, [_large(self.size.stream_mib)])
                    for end, (late, longest) in zip(("client", "server"), await pair.callbacks(), strict=True):
                        self._add(f"loop callback of the {end} while {direction}, p99.9 ms", system, late)
                        self._add(f"loop callback of the {end} while {direction}, longest ms", system, longest)

    async def _several(self, pair: Pair) -> None:
        for count in AT_ONCE:
            for direction in ("down", "up"):
                mib = self.size.concurrent_mib // count
                names = [f"{_large(mib)}-{number}" for number in range(count)]
                self._warm(count * mib)
                seconds = await pair.transfer(direction, names)
                self._add(f"{count} at once {direction}, MB/s", pair.system, count * mib * _MIB / 1e6 / seconds)

    async def _whole(self, pair: Pair) -> None:
        nbytes = self.size.whole_bytes
        for direction in ("down", "up"):
            seconds = await pair.do("whole", direction=direction, nbytes=nbytes)
            self._add(f"whole file {direction}, MB/s", pair.system, nbytes / 1e6 / seconds)

    async def _small(self, pair: Pair) -> None:
        for verb in ("get", "put", "stat"):
            if verb == "stat" and pair.system in (*TUTORIAL, *STOCK):
                continue  # not supported
            await self._requests(pair, verb, "4 KiB", self.size.requests)

    async def _small_on_disk(self, pair: Pair) -> None:
        await self._requests(pair, "put", "4 KiB on a disk", self.size.requests // 3)

    async def _requests(self, pair: Pair, verb: str, what: str, requests: int) -> None:
        for in_flight in (1, 32):
            count = requests // (3 if in_flight == 1 else 1)
            seconds = await pair.do("requests", verb=verb, count=count, in_flight=in_flight)
            self._add(f"{verb} of {what}, {in_flight} in flight, 1/s", pair.system, count / seconds)

    async def _latency(self, pair: Pair) -> None:
        mib = self.size.latency_mib
        for direction in ("down", "up"):
            median, late = await pair.latency(direction, _large(mib), is_small_on_disk=pair.system == OURS)
            self._add(f"small request during {direction}, p50 ms", pair.system, median)
            self._add(f"small request during {direction}, p99 ms", pair.system, late)

    def _idle(self) -> None:
        for what, value in measure_idle(self.size.idle_clients).items():
            self._add(f"beside idle clients: {what}", OURS, value)

    async def _memory(self) -> None:
        large, slow, nbytes = _large(self.size.stream_mib), _large(_SLOW_MIB), self.size.whole_bytes
        for system in (OURS, "aiohttp, tuned", "grpc.aio", STOCK[1]):
            await self._peaks(system, "stream down", lambda pair: pair.transfer("down", [large]))
            await self._peaks(system, "stream up", lambda pair: pair.transfer("up", [large]))
            await self._peaks(system, _SLOW.format("down"), lambda pair: pair.transfer("down", [slow], _SLOW_RATE))
            await self._peaks(system, _FROZEN.format("down"), lambda pair: pair.freeze("down", large, 1.0))
            await self._peaks(system, _FROZEN.format("up"), lambda pair: pair.freeze("up", large, 1.0))
        await self._peaks(OURS_TLS, "stream down", lambda pair: pair.transfer("down", [large]))
        await self._peaks(OURS_TLS, "stream up", lambda pair: pair.transfer("up", [large]))
        await self._peaks(OURS_TLS, _FROZEN.format("down"), lambda pair: pair.freeze("down", large, 1.0))
        await self._peaks(OURS_TLS, _FROZEN.format("up"), lambda pair: pair.freeze("up", large, 1.0))
        await self._peaks(OURS_SLOW, _SLOW.format("up"), lambda pair: pair.transfer("up", [slow]))
        for system in (OURS, OURS_MEMORY, *TUTORIAL):
            what = f"whole file, {nbytes / 1e6:.0f} MB, up and down"
            await self._peaks(system, what, lambda pair: pair.do("whole", direction="down", nbytes=nbytes))

    async def _peaks(self, system: str, what: str, work: Callable[[Pair], Awaitable[object]]) -> None:
        """In new processes, and once: memory that was used before would hide what is used now."""
        if not _can_run(system):
            return
        async with Pair(system, self.folder, self.options) as pair:
            pair.forget_peaks()
            await work(pair)
            for end, peak in zip(("client", "server"), pair.peaks(), strict=True):
                self._add(f"peak of the {end} above idle, MiB: {what}", system, peak)

    def make_files(self) -> None:
        """Makes the files that are transferred."""
        size = self.size
        block = os.urandom(_MIB)
        for folder in (self.folder, self.disk):
            (folder / "files").mkdir()
        for mib in {size.stream_mib, size.stock_mib, size.latency_mib, _SLOW_MIB, _LINE_MIB}:
            _write(self.folder / "files" / _large(mib), block, mib)
        for count in AT_ONCE:
            mib = size.concurrent_mib // count
            for number in range(count):
                _write(self.folder / "files" / f"{_large(mib)}-{number}", block, mib)
        (self.folder / "files" / "small").write_bytes(bytes(SMALL_BYTES))
        _write(self.disk / "files" / _large(size.stream_mib // 2), block, size.stream_mib // 2)


def _large(mib: int) -> str:
    return f"large{mib}"


def _write(path: Path, block: bytes, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(block)


def _can_run(system: str) -> bool:
    why = is_available(system)
    if why is not None:
        print(f"  left out: {system}: {why}", flush=True)
    return why is None


@contextmanager
def _folder(where: str | None) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="rxfiles-bench-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{os.cpu_count()} cores of {model}, Linux, Python {platform.python_version()}"


def _load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


def main() -> None:
    """Runs the benchmark, prints the report, and writes it beside this module."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="smaller files and three repetitions, in a minute or two")
    parser.add_argument("--uvloop", action="store_true", help="run both ends of every peer on uvloop")
    parser.add_argument("--folder", default="/dev/shm" if Path("/dev/shm").is_dir() else None, help="for the files")
    parser.add_argument("--disk", help="a folder on a real disk (default: the system's for temporary files)")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        sys.exit("the benchmark needs Linux")
    size = QUICK if arguments.quick else FULL
    start, load = time.monotonic(), _load()
    with _folder(arguments.folder) as folder, _folder(arguments.disk) as disk:
        bench = Bench(size, folder, disk, ["--uvloop"] if arguments.uvloop else [])
        bench.make_files()
        asyncio.run(bench.run())
    machine = _machine() + (", uvloop" if arguments.uvloop else "")
    title = f"rxfiles beside other systems: {machine}; {time.strftime('%d %B %Y')}"
    about = (
        f"Medians of {size.repetitions} repetitions; {time.monotonic() - start:.0f} s; "
        f"load average before: {load}, after: {_load()}."
    )
    print(write_report(bench.results, title, about, _RESULTS))


if __name__ == "__main__":
    main()
