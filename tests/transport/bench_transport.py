"""The transport's speed, beside rsocket's own and plain asyncio streams: `python -m tests.transport.bench_transport`.

A server in a process of its own, over loopback; every repetition runs each system once, and medians are printed. A
transfer is one request-stream (download) or request-channel (upload) of 256 KiB items with a window of 16, from memory
to nowhere, so that only the wire is measured. Differences below a quarter are noise; the processor time of both
processes together (Linux only) is steadier, and stands beside each figure.
"""

import argparse
import asyncio
import importlib
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from reactivestreams.publisher import Publisher
from reactivestreams.subscriber import Subscriber
from reactivestreams.subscription import Subscription
from rsocket.helpers import create_future, single_transport_provider
from rsocket.payload import Payload
from rsocket.request_handler import BaseRequestHandler
from rsocket.rsocket_client import RSocketClient
from rsocket.rsocket_server import RSocketServer
from rsocket.transports.tcp import TransportTCP
from rsocket.transports.transport import Transport

from shared.engine import RSocketEngine
from shared.frames.budget import ReassemblyLimits
from shared.frames.outbox import Outbox
from shared.frames.reassembly import Reassembler
from shared.logs import quiet_rsocket
from shared.transport.tcp import TcpTransport

CHUNK: Final = bytes(range(256)) * 1024
SMALL: Final = bytes(4096)
WINDOW: Final = 16
FRAGMENT: Final = 1_000_000
STREAMS: Final = "asyncio streams"
OWN: Final = "own"


class Source(Publisher, Subscription):
    """Publishes a chunk a credit, `count` of them."""

    def __init__(self, count: int) -> None:
        self._left = count

    def subscribe(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        subscriber.on_subscribe(self)

    def request(self, n: int) -> None:
        for _ in range(min(n, self._left)):
            self._left -= 1
            self._subscriber.on_next(Payload(CHUNK), self._left == 0)

    def cancel(self) -> None:
        self._left = 0


class Sink(Subscriber):
    """Takes chunks, gives credit back at half a window, and says when the last one came."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._credit = WINDOW
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_subscribe(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def on_next(self, value: Payload, is_complete: bool = False) -> None:
        self._expected -= len(value.data or b"")
        self._credit -= 1
        if self._credit <= WINDOW // 2 and not is_complete:
            self._subscription.request(WINDOW - self._credit)
            self._credit = WINDOW
        if is_complete:
            self._end()

    def on_complete(self) -> None:
        self._end()

    def on_error(self, exception: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(exception)

    def _end(self) -> None:
        assert self._expected == 0, f"{self._expected} bytes are missing"
        if not self.done.done():
            self.done.set_result(None)


class Receipt(Publisher, Subscription):
    """The server's half of an upload: one item, when the sink has everything."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def subscribe(self, subscriber: Subscriber) -> None:
        subscriber.on_subscribe(self)
        self._sink.done.add_done_callback(lambda _: subscriber.on_next(Payload(b"stored"), True))

    def request(self, n: int) -> None:
        """One item is always welcome."""

    def cancel(self) -> None:
        """Nothing is under way."""


class Handler(BaseRequestHandler):
    async def request_response(self, payload: Payload) -> Awaitable[Payload]:
        return create_future(Payload(payload.data))

    async def request_stream(self, payload: Payload) -> Publisher:
        return Source(int(payload.data or b"0") // len(CHUNK))

    async def request_channel(self, payload: Payload) -> tuple[Publisher, Subscriber]:
        sink = _Credited(int(payload.data or b"0"))
        return Receipt(sink), sink


class _Credited(Sink):
    def on_subscribe(self, subscription: Subscription) -> None:
        super().on_subscribe(subscription)
        subscription.request(WINDOW)


class _OwnServer(RSocketServer, RSocketEngine):
    def __init__(self, transport: TcpTransport) -> None:
        self.transport = transport
        self._init_engine(ReassemblyLimits(), None, Outbox(frozenset()))
        super().__init__(self.make_feed(), handler_factory=Handler, fragment_size_bytes=FRAGMENT)


class _OwnClient(RSocketClient, RSocketEngine):
    def __init__(self, transport: TcpTransport) -> None:
        self.transport = transport
        self._init_engine(ReassemblyLimits(), None, Outbox(frozenset()))
        super().__init__(single_transport_provider(self.make_feed()), fragment_size_bytes=FRAGMENT)
        self._reset_internals()  # what arrives before it has connected needs the table of streams


async def serve(system: str) -> None:
    """Serves until killed; prints its port."""
    loop = asyncio.get_running_loop()
    kept: set[object] = set()

    def rsocket_server(transport: Transport) -> None:
        kept.add(RSocketServer(transport, handler_factory=Handler, fragment_size_bytes=FRAGMENT))

    def own_server(transport: TcpTransport) -> Reassembler:
        server = _OwnServer(transport)
        kept.add(server)
        return server.reassembler

    if system == STREAMS:
        listener = await asyncio.start_server(_serve_streams, "127.0.0.1", 0, limit=len(CHUNK))
    elif system.startswith("rsocket"):
        size = int(system.rsplit(maxsplit=1)[-1])
        listener = await asyncio.start_server(
            lambda reader, writer: rsocket_server(TransportTCP(reader, writer, size)), "127.0.0.1", 0
        )
    else:
        listener = await loop.create_server(lambda: TcpTransport(own_server), "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await listener.serve_forever()


async def _serve_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        verb, size = line.split()
        left = int(size)
        while verb == b"down" and left:
            writer.write(CHUNK)
            await writer.drain()
            left -= len(CHUNK)
        while verb == b"up" and left:
            left -= len(await reader.read(len(CHUNK)))
        if verb == b"up":
            writer.write(b"stored\n")
    writer.close()


@asynccontextmanager
async def _process(system: str, *options: str) -> AsyncGenerator[tuple[int, int], None]:
    """A server; gives its process id and port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __spec__.name, "--serve", system, *options, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process.pid, int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def _client(system: str, port: int) -> AsyncGenerator[RSocketClient, None]:
    if system.startswith("rsocket"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        transport = TransportTCP(reader, writer, int(system.rsplit(maxsplit=1)[-1]))
        client = RSocketClient(single_transport_provider(transport), fragment_size_bytes=FRAGMENT)
    else:
        clients: list[_OwnClient] = []

        def own_client(transport: TcpTransport) -> Reassembler:
            clients.append(_OwnClient(transport))
            return clients[0].reassembler

        await asyncio.get_running_loop().create_connection(lambda: TcpTransport(own_client), "127.0.0.1", port)
        client = clients[0]
    async with client:
        yield client


async def _download(client: RSocketClient, nbytes: int) -> None:
    sink = Sink(nbytes)
    client.request_stream(Payload(b"%d" % nbytes)).initial_request_n(WINDOW).subscribe(sink)
    await sink.done


async def _upload(client: RSocketClient, nbytes: int) -> None:
    sink = _Receipts()
    client.request_channel(Payload(b"%d" % nbytes), Source(nbytes // len(CHUNK))).initial_request_n(2).subscribe(sink)
    await sink.done


class _Receipts(Sink):
    def __init__(self) -> None:
        super().__init__(len(b"stored"))


async def _requests(client: RSocketClient, requests: int, in_flight: int = 32) -> None:
    left = iter(range(requests))

    async def worker() -> None:
        for _ in left:
            await client.request_response(Payload(SMALL))

    await asyncio.gather(*(worker() for _ in range(in_flight)))


async def _latency(client: RSocketClient, nbytes: int) -> float:
    """The 99th percentile of a 4 KiB request's milliseconds, one after another, while a download goes on."""
    took: list[float] = []
    download = asyncio.create_task(_download(client, nbytes))
    while not download.done():
        start = time.perf_counter()
        await client.request_response(Payload(SMALL))
        took.append((time.perf_counter() - start) * 1000)
    await download
    return statistics.quantiles(took, n=100)[98] if len(took) > 1 else took[0]


class _Meter:
    """Times work, and the processor time of this process and the server's."""

    def __init__(self, server: int) -> None:
        self._server = server

    async def measure(self, work: Callable[[], Awaitable[None]], units: float) -> tuple[float, float]:
        """Units a second, and processor microseconds a unit."""
        start, cpu = time.perf_counter(), self._cpu()
        await work()
        return units / (time.perf_counter() - start), (self._cpu() - cpu) / units * 1e6

    def _cpu(self) -> float:
        try:
            fields = Path(f"/proc/{self._server}/stat").read_text().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            return float("nan")
        return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _measure(system: str, pid: int, port: int, nbytes: int, requests: int) -> list[float]:
    """MB/s and µs/MB down, the same up, requests a second and µs a request, p99 in milliseconds."""
    meter, megabytes = _Meter(pid), nbytes / 1e6
    if system == STREAMS:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=len(CHUNK))

        async def download() -> None:
            writer.write(b"down %d\n" % nbytes)
            left = nbytes
            while left:
                left -= len(await reader.read(len(CHUNK)))

        async def upload() -> None:
            writer.write(b"up %d\n" % nbytes)
            for _ in range(nbytes // len(CHUNK)):
                writer.write(CHUNK)
                await writer.drain()
            await reader.readline()

        results = [*await meter.measure(download, megabytes), *await meter.measure(upload, megabytes)]
        writer.close()
        return [*results, *[float("nan")] * 3]
    async with _client(system, port) as client:
        await _requests(client, 200)
        return [
            *await meter.measure(lambda: _download(client, nbytes), megabytes),
            *await meter.measure(lambda: _upload(client, nbytes), megabytes),
            *await meter.measure(lambda: _requests(client, requests), requests),
            await _latency(client, nbytes),
        ]


async def compare(systems: list[str], nbytes: int, requests: int, repetitions: int, *options: str) -> None:
    """Runs everything and prints the table."""
    results: dict[str, list[list[float]]] = {system: [] for system in systems}
    for repetition in range(repetitions + 1):
        for system in systems:
            async with _process(system, *options) as (pid, port):
                result = await _measure(system, pid, port, nbytes, requests)
            if repetition:  # the first warms memory up
                results[system].append(result)
    width = max(map(len, systems)) + 2
    print(" " * width + "  down MB/s  (cpu µs)    up MB/s  (cpu µs) requests/s  (cpu µs)     p99 ms")
    for system, rows in results.items():
        medians = [statistics.median(column) for column in zip(*rows, strict=True)]
        print(f"{system:{width}}" + "".join(f"{value:11.0f}" for value in medians[:-1]) + f"{medians[-1]:11.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", metavar="SYSTEM", help="be the server (used by the benchmark itself)")
    parser.add_argument("--mib", type=int, default=256, help="what one transfer moves")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", action="append", metavar="SYSTEM", help="leave the others out")
    parser.add_argument("--uvloop", action="store_true", help="run both ends on uvloop")
    arguments = parser.parse_args()
    quiet_rsocket()
    run: Callable[..., None] = asyncio.run
    if arguments.uvloop:
        run = importlib.import_module("uvloop").run
    if arguments.serve:
        run(serve(arguments.serve))
        return
    systems = arguments.only or [OWN, "rsocket 65536", "rsocket 1024", STREAMS]
    options = ["--uvloop"] if arguments.uvloop else []
    run(compare(systems, arguments.mib << 20, arguments.requests, arguments.repetitions, *options))


if __name__ == "__main__":
    main()
