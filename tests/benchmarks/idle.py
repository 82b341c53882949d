"""What idle connections cost a server: its memory and processor time for each, and a small request beside them.

`python -m tests.benchmarks.idle --clients 10000` connects so many clients in a process of their own, which send a SETUP
and then a keepalive every few seconds, and reports the growth of the server's process. Linux only.
"""

import argparse
import asyncio
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from rx_client import FileClient
from server import Limits, serve

__all__ = ["measure"]

_ROOT: Final = Path(__file__).parents[2]
_MIMETYPES: Final = (b"message/x.rsocket.composite-metadata.v0", b"application/octet-stream")
_CONNECTED_AT_ONCE: Final = 64
_STEP_SECONDS: Final = 0.01
_REQUESTS: Final = 500


def _frame(kind: int, flags: int, body: bytes) -> bytes:
    head = struct.pack(">IH", 0, kind << 10 | flags)
    return (len(head) + len(body)).to_bytes(3, "big") + head + body


def _setup(period: float, lifetime: float) -> bytes:
    times = struct.pack(">HHII", 1, 0, int(period * 1000), int(lifetime * 1000))
    return _frame(0x01, 0, times + b"".join(bytes([len(mime)]) + mime for mime in _MIMETYPES))


_KEEPALIVE: Final = _frame(0x03, 0x80, bytes(8))


class _Clients:
    """Raw connections in one thread, without asyncio: they must cost less than the server that is measured."""

    def __init__(self, port: int, count: int, period: float, lifetime: float) -> None:
        self._poll = select.epoll()
        self._sockets: list[socket.socket] = []
        self._by_fd: dict[int, socket.socket] = {}
        self._period = period
        for number in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(_setup(period, lifetime) + _KEEPALIVE)
            self._poll.register(sock, select.EPOLLIN)
            self._sockets.append(sock)
            self._by_fd[sock.fileno()] = sock
            if number % _CONNECTED_AT_ONCE == 0:
                sock.recv(4096)
        self.answers = 0

    def run(self) -> None:
        """Sends keepalives, evenly over each period, and takes the answers, until the process is ended."""
        start, sent = time.monotonic(), 0
        while True:
            due = int((time.monotonic() - start) / self._period * len(self._sockets))
            for number in range(sent, due):
                self._sockets[number % len(self._sockets)].send(_KEEPALIVE)
            sent = due
            for fd, _ in self._poll.poll(_STEP_SECONDS):
                if not self._by_fd[fd].recv(4096):
                    sys.exit("the server has closed a connection")


async def _serve(count: int) -> None:
    async with serve(limits=Limits(max_connections=count + 64)) as server:
        print(server.uri, flush=True)
        await asyncio.Event().wait()


async def _connect_own(uri: str, count: int) -> None:
    clients = [FileClient.connect(uri) for _ in range(count)]
    for client in clients:
        await client.__aenter__()
    print("ready", flush=True)
    await asyncio.Event().wait()


def _kib(pid: int) -> int:
    """The memory that only this process has."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _worker(*arguments: str) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__ if __name__ != "__main__" else "tests.benchmarks.idle", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def measure(count: int, seconds: float, period: float, lifetime: float, *, is_own: bool = False) -> dict[str, float]:
    """The server's figures with `count` idle clients, watched for `seconds`."""
    server, uri = _worker("--serve", "--clients", str(count))
    clients = None
    try:
        asyncio.run(_latency(uri))  # what is imported and made once
        time.sleep(1)
        before = _kib(server.pid)
        mode = "--own" if is_own else "--raw"
        began = time.monotonic()
        clients, ready = _worker(
            mode, uri, "--clients", str(count), "--period", str(period), "--lifetime", str(lifetime)
        )
        assert ready == "ready", ready
        connected = time.monotonic() - began
        time.sleep(3)
        cpu, client_cpu, began = _cpu(server.pid), _cpu(clients.pid), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        cpu, client_cpu = (_cpu(server.pid) - cpu) / took, (_cpu(clients.pid) - client_cpu) / took
        grown = _kib(server.pid) - before
        latencies = asyncio.run(_latency(uri))
        return {
            "connects a second": count / connected,
            "KiB each": grown / count,
            "client process, KiB each": _kib(clients.pid) / count,
            "% of a core": 100 * cpu,
            "client process, % of a core": 100 * client_cpu,
            "small request, median ms": statistics.median(latencies),
            "small request, p99 ms": statistics.quantiles(latencies, n=100)[98],
        }
    finally:
        for process in (clients, server):
            if process is not None:
                process.kill()
                process.wait()


async def _latency(uri: str) -> list[float]:
    async with FileClient.connect(uri) as files:
        await files.upload("small", bytes(4096))
        took: list[float] = []
        for _ in range(_REQUESTS):
            start = time.perf_counter()
            await files.download("small")
            took.append((time.perf_counter() - start) * 1000)
            await asyncio.sleep(0.002)
        return took


def main() -> None:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.idle")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--period", type=float, default=3.0)
    parser.add_argument("--lifetime", type=float, default=8.0)
    parser.add_argument("--with-own", action="store_true")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--own")
    parser.add_argument("--raw")
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(_serve(arguments.clients))
    elif arguments.own:
        asyncio.run(_connect_own(arguments.own, arguments.clients))
    elif arguments.raw:
        port = int(arguments.raw.rpartition(":")[2])
        clients = _Clients(port, arguments.clients, arguments.period, arguments.lifetime)
        print("ready", flush=True)
        clients.run()
    else:
        figures = measure(
            arguments.clients, arguments.seconds, arguments.period, arguments.lifetime, is_own=arguments.with_own
        )
        for what, value in figures.items():
            print(f"{what}: {value:.2f}")


if __name__ == "__main__":
    main()
