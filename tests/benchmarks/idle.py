"""What idle connections cost a server: its memory and processor time for each, and a small request beside them.

`python -m tests.benchmarks.idle` connects ten thousand clients, in a process of their own, which send a SETUP and then
a keepalive every few seconds, as this project's client does, and reports the growth of the server's process. Linux
only.
"""

import argparse
import asyncio
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from rx_client import ConnectOptions, FileClient
from server import Limits, serve
from tests.support import KEEPALIVE, RESPOND, frame, setup

__all__ = ["measure_idle"]

_ROOT: Final = Path(__file__).parents[2]
_ASKING: Final = frame(0, KEEPALIVE, RESPOND, bytes(8))
_STEP_SECONDS: Final = 0.01
_SETTLE_SECONDS: Final = 3.0
_WATCHED_SECONDS: Final = 10.0
_REQUESTS: Final = 500
_PAUSE_SECONDS: Final = 0.002
# The descriptors that a process needs beside its connections.
_OWN_DESCRIPTORS: Final = 100
_READY: Final = "ready"


def measure_idle(count: int = 10_000, *, are_own: bool = False) -> dict[str, float]:
    """The figures of a server with so many idle clients, fewer if the system's limit of descriptors is lower.

    Args:
        count: How many.
        are_own: Whether they are this project's clients, instead of sockets that cost as little as possible.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(count, most - _OWN_DESCRIPTORS)
    server, uri = _start("serve", count)
    clients = None
    try:
        asyncio.run(_small_requests(uri))  # what is imported and made once
        time.sleep(1)
        before, began = _private_kib(server.pid), time.monotonic()
        clients, answer = _start("own" if are_own else "raw", count, uri)
        if answer != _READY:
            raise RuntimeError("the clients could not connect")
        connected = time.monotonic() - began
        time.sleep(_SETTLE_SECONDS)
        server_cpu, client_cpu = _cpu_seconds(server.pid), _cpu_seconds(clients.pid)
        time.sleep(_WATCHED_SECONDS)
        server_cpu, client_cpu = _cpu_seconds(server.pid) - server_cpu, _cpu_seconds(clients.pid) - client_cpu
        grown = _private_kib(server.pid) - before
        took = asyncio.run(_small_requests(uri))
        return {
            "clients": count,
            "KiB each": grown / count,
            "% of a core for 10,000": 100 * server_cpu / _WATCHED_SECONDS * 10_000 / count,
            "small request, median ms": statistics.median(took),
            "small request, p99 ms": statistics.quantiles(took, n=100)[98],
            "connections made in a second": count / connected,
            "KiB each in the clients' process": _private_kib(clients.pid) / count,
            "% of a core for 10,000 in the clients' process": 100 * client_cpu / _WATCHED_SECONDS * 10_000 / count,
        }
    finally:
        for process in (clients, server):
            if process is not None:
                process.kill()
                process.communicate()


def _start(role: str, count: int, uri: str = "") -> "tuple[subprocess.Popen[str], str]":
    """A process of this module, and its first line."""
    command = [sys.executable, "-m", "tests.benchmarks.idle", "--clients", str(count), "--role", role, "--uri", uri]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    assert process.stdout is not None, "it is a pipe"
    return process, process.stdout.readline().strip()


async def _small_requests(uri: str) -> list[float]:
    """Milliseconds of requests for 4 KiB, one at a time, of a client of this process."""
    async with FileClient.connect(uri) as files:
        await files.upload("small", bytes(4096))
        took: list[float] = []
        for _ in range(_REQUESTS):
            start = time.perf_counter()
            await files.download("small")
            took.append((time.perf_counter() - start) * 1000)
            await asyncio.sleep(_PAUSE_SECONDS)
        return took


def _private_kib(pid: int) -> int:
    """The memory that only this process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


# In the processes


async def _serve(count: int) -> None:
    async with serve(limits=Limits(max_connections=count + 10)) as server:
        print(server.uri, flush=True)
        await asyncio.Event().wait()


async def _connect_own(uri: str, count: int) -> None:
    clients = [FileClient.connect(uri) for _ in range(count)]
    for client in clients:
        await client.__aenter__()
    print(_READY, flush=True)
    await asyncio.Event().wait()


def _connect_raw(uri: str, count: int) -> None:
    """Without asyncio. The keepalives are spread evenly over each period."""
    host, _, port = uri.removeprefix("tcp://").rpartition(":")
    period, poll, clients = ConnectOptions().keepalive_period, select.epoll(), dict[int, socket.socket]()
    for _ in range(count):
        client = socket.create_connection((host, int(port)))
        client.sendall(setup() + _ASKING)
        client.recv(1024)
        poll.register(client, select.EPOLLIN)
        clients[client.fileno()] = client
    print(_READY, flush=True)
    senders, start, sent = list(clients.values()), time.monotonic(), 0
    while True:
        due = int((time.monotonic() - start) / period * count)
        for number in range(sent, due):
            senders[number % count].send(_ASKING)
        sent = due
        for fd, _ in poll.poll(_STEP_SECONDS):
            if not clients[fd].recv(1024):
                sys.exit("the server has closed a connection")


def main() -> None:
    """Measures, and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.idle")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--own", action="store_true", help="this project's clients instead of bare sockets")
    parser.add_argument("--role", choices=["serve", "own", "raw"], help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    match arguments.role:
        case "serve":
            asyncio.run(_serve(arguments.clients))
        case "own":
            asyncio.run(_connect_own(arguments.uri, arguments.clients))
        case "raw":
            _connect_raw(arguments.uri, arguments.clients)
        case _:
            for what, value in measure_idle(arguments.clients, are_own=arguments.own).items():
                print(f"{what}: {value:,.2f}")


if __name__ == "__main__":
    main()
