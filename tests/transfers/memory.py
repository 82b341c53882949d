"""`python -m tests.transfers.memory`: how much memory each end needs for a file of 4 GB, up and down.

Two processes, a sparse source file, the default window; Linux only. Shown is the peak of each process's resident
memory (VmHWM) above what it was when the connection was made and nothing ran (VmRSS), for each direction in processes
of its own. On the disk it needs twice the file's length for a while.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rx_client import FileClient
from shared.protocol.digest import DEFAULT_ALGORITHM

GOAL_MIB = 16.0


@dataclass(frozen=True)
class Peak:
    """Of one process in one direction.

    Attributes:
        idle_mib: Resident when nothing ran.
        above_mib: The peak, above that.
        seconds: The transfer's time.
    """

    idle_mib: float
    above_mib: float
    seconds: float


def _mib(pid: int | str, key: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {key} in /proc/{pid}/status")


async def run_client(uri: str, direction: str, path: str, digest: str) -> None:
    """The client's process: one transfer, and what it needed on standard output."""
    algorithm = None if digest == "none" else digest
    async with FileClient.connect(uri) as files:
        await asyncio.sleep(0.2)
        idle = _mib("self", "VmRSS")
        begin = time.monotonic()
        if direction == "up":
            await files.upload_from("n", Path(path), digest=algorithm)
        else:
            await files.download_to("n", path, digest=algorithm)
        seconds = time.monotonic() - begin
        print(idle, _mib("self", "VmHWM") - idle, seconds)


async def _measure(direction: str, store: Path, path: Path, digest: str) -> dict[str, Peak]:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "--store", str(store), "--port", "0"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        uri = (await server.stdout.readline()).decode().split()[-1]
        idle = _mib(server.pid, "VmRSS")
        client = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.transfers.memory", "--client", uri, direction, str(path), digest),
            stdout=asyncio.subprocess.PIPE,
        )
        said, _ = await client.communicate()
        assert client.returncode == 0, "the client's process failed"
        client_idle, client_above, seconds = map(float, said.split())
        return {
            "server": Peak(idle, _mib(server.pid, "VmHWM") - idle, seconds),
            "client": Peak(client_idle, client_above, seconds),
        }
    finally:
        server.terminate()
        await server.communicate()


async def run(nbytes: int, folder: Path, digest: str = DEFAULT_ALGORITHM) -> Mapping[tuple[str, str], Peak]:
    """The peaks by direction (`up`, `down`) and process (`client`, `server`)."""
    source, got, store = folder / "source", folder / "got", folder / "served"
    with source.open("wb") as file:
        file.truncate(nbytes)
    peaks: dict[tuple[str, str], Peak] = {}
    for direction, path in (("up", source), ("down", got)):
        for process, peak in (await _measure(direction, store, path, digest)).items():
            peaks[direction, process] = peak
    assert (store / "n").stat().st_size == got.stat().st_size == nbytes
    return peaks


def main() -> int:
    """The command; 1 if a process needed more than the goal."""
    parser = argparse.ArgumentParser(prog="python -m tests.transfers.memory", description=__doc__)
    parser.add_argument("--bytes", type=int, default=4_000_000_000, help="the file's length (default: %(default)s)")
    parser.add_argument("--digest", default=DEFAULT_ALGORITHM, help="xxh3-128, sha-256 or none (default: %(default)s)")
    parser.add_argument("--folder", default=None, help="where to put the files (default: the system's temporary one)")
    parser.add_argument("--client", nargs=4, metavar=("URI", "up|down", "PATH", "DIGEST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        asyncio.run(run_client(*options.client))
        return 0
    with tempfile.TemporaryDirectory(prefix="rxfiles-memory-", dir=options.folder) as folder:
        free = shutil.disk_usage(folder).free
        if free < 3 * options.bytes:
            parser.error(f"{3 * options.bytes:,} bytes are needed in {folder}, {free:,} are free")
        peaks = asyncio.run(run(options.bytes, Path(folder), options.digest))
    print(f"{options.bytes:,} bytes, digest {options.digest}")
    print("direction  process  idle MiB  peak above idle MiB     MB/s")
    for (direction, process), peak in peaks.items():
        rate = options.bytes / peak.seconds / 1e6
        print(f"{direction:9}  {process:7}  {peak.idle_mib:8.1f}  {peak.above_mib:19.1f}  {rate:7.0f}")
    return int(any(peak.above_mib > GOAL_MIB for peak in peaks.values()))


if __name__ == "__main__":
    sys.exit(main())
