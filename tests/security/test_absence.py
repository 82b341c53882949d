"""A process that stood still doesn't take its peers for silent: it judges when it has read what waits."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rx_client import Completed, Connected, ConnectionState, ConnectOptions, FileClient
from rx_client.operators import stall_timeout
from server import ChatData, Limits, serve
from shared.errors import ConnectionLost
from shared.presence import RunClock, Standstill, TimeoutWhileRunning
from tests.security.support import MIB, server_process, upload
from tests.support import (
    FOLLOWS,
    KEEPALIVE,
    PATIENCE,
    PAYLOAD,
    RESPOND,
    RawPeer,
    eventually,
    frame,
    payload,
    raw_peer,
    raw_server,
)

OPTIONS = ConnectOptions(keepalive_period=0.1, keepalive_timeout=0.5)
ABSENT_SECONDS = 2.0

CLIENT = """
import asyncio, sys
from rx_client import ConnectOptions, FileClient

async def slow():
    for _ in range(15):
        yield bytes(1000)
        await asyncio.sleep(0.02)

async def main():
    options = ConnectOptions(keepalive_period=0.1, keepalive_timeout=0.5, progress_timeout=0.5)
    async with FileClient.connect(sys.argv[1], options=options) as files:
        print("begun", flush=True)
        print(type(await files.upload_from("x", slow())).__name__)

asyncio.run(main())
"""


async def test_a_stopped_client_goes_on() -> None:
    async with serve() as server:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, server.uri, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            async with asyncio.timeout(3 * PATIENCE):
                assert await child.stdout.readline() == b"begun\n"
                await eventually(lambda: server.work.started)
                child.send_signal(signal.SIGSTOP)
                await asyncio.sleep(ABSENT_SECONDS)
                child.send_signal(signal.SIGCONT)
                assert await child.stdout.readline() == b"Completed\n"
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()
        assert server.work.started == 1  # no attempt was given up


@asynccontextmanager
async def stoppable(*arguments: str) -> AsyncGenerator[tuple[str, Callable[[], None], Callable[[], None]], None]:
    """A server's URI, and what stops and continues its process."""
    async with server_process(*arguments) as server:
        yield (
            server.uri,
            lambda: server.process.send_signal(signal.SIGSTOP),
            lambda: server.process.send_signal(signal.SIGCONT),
        )


async def test_a_stopped_server_goes_on() -> None:
    limits = ("idle_seconds=1", "payload_seconds=1", "blocked_seconds=1", "setup_seconds=1")
    arguments = [word for limit in limits for word in ("--limit", limit)]
    async with stoppable(*arguments) as (uri, stop, go_on), raw_peer(uri) as peer:
        pending = await RawPeer.connect(uri)
        begin, rest = bytes(100_000), bytes(50_000)
        await peer.send(upload(1, b"a", begin, flags=FOLLOWS))
        await peer.silence(0.1)
        stop()
        await asyncio.sleep(ABSENT_SECONDS)
        await peer.send(frame(0, KEEPALIVE, RESPOND, bytes(8)), frame(1, PAYLOAD, *payload(None, rest)))
        go_on()
        got = await peer.receive()
        assert got is not None
        assert (got.stream_id, got.kind) == (1, PAYLOAD)
        await pending.silence(0.2)
        await pending.close()


def block() -> None:
    time.sleep(ABSENT_SECONDS / 2)


async def test_a_loop_that_was_blocked_keeps_its_connection() -> None:
    async with server_process() as server, FileClient.connect(server.uri, options=OPTIONS) as files:
        states: list[ConnectionState] = []
        files.connection_state().subscribe(states.append)
        for _ in range(3):
            block()
            await files.upload("a", b"x")
        assert states == [Connected()]


async def test_a_request_whose_answer_waits_has_not_stalled() -> None:
    options = ConnectOptions(progress_timeout=0.5, keepalive_timeout=10)
    async with server_process() as server, FileClient.connect(server.uri, options=options) as files:
        await files.upload("a", b"x" * MIB)
        seen: list[Any] = []
        files.download("a").subscribe(seen.append, seen.append)
        await asyncio.sleep(0)
        block()
        await eventually(lambda: seen)
        assert seen == [b"x" * MIB]


async def test_a_transfer_whose_progress_waits_has_not_stalled() -> None:
    async def source() -> AsyncIterator[bytes]:
        yield bytes(1000)
        block()
        yield bytes(1000)

    async with server_process() as server, FileClient.connect(server.uri) as files:
        done = await files.upload_from("a", source()).pipe(stall_timeout(0.3))
        assert isinstance(done, Completed)


async def test_an_attempt_to_connect_whose_answer_waits_has_not_failed() -> None:
    options = ConnectOptions(connect_timeout=0.5)
    async with server_process() as server:

        async def connect() -> None:
            async with FileClient.connect(server.uri, options=options) as files:
                await files.upload("a", b"x")

        connecting = asyncio.create_task(connect())
        await asyncio.sleep(0)
        block()
        await connecting


def test_a_loop_that_did_not_run_keeps_its_connection() -> None:
    """As between two cells of a notebook."""
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[Any, Any, FileClient]:
        server = server_process()
        uri = (await server.__aenter__()).uri
        client = FileClient.connect(uri, options=OPTIONS)
        return server, client, await client.__aenter__()

    async def end() -> None:
        assert connected == [Connected()]
        await client.__aexit__(None, None, None)
        await server.__aexit__(None, None, None)

    server, client, files = loop.run_until_complete(begin())
    connected: list[ConnectionState] = []

    async def cell() -> None:
        if not connected:
            files.connection_state().subscribe(connected.append)
        await files.upload("a", b"x")

    for _ in range(3):
        loop.run_until_complete(cell())
        block()
    loop.run_until_complete(end())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


async def test_a_sink_that_is_busy_is_not_the_servers_silence(tmp_path: Path) -> None:
    """While this side reads nothing, nothing arrives."""

    class Busy:
        async def write(self, data: bytes) -> None:
            if not written:
                await asyncio.sleep(ABSENT_SECONDS)
            written.append(len(data))

    written: list[int] = []
    content = bytes(8 * MIB)
    async with (
        serve(data=ChatData({"a": content}), limits=Limits(blocked_seconds=20)) as server,
        FileClient.connect(server.uri, options=OPTIONS) as files,
    ):
        states: list[ConnectionState] = []
        files.connection_state().subscribe(states.append)
        await files.download_to("a", Busy())
        assert sum(written) == len(content)
        assert states == [Connected()]


async def test_a_dead_server_is_noticed_also_by_a_loop_that_is_often_blocked() -> None:
    async def stay_silent(peer: RawPeer) -> None:
        for _ in range(2):  # the keepalive that asks whether the SETUP was accepted
            await peer.send(frame(0, KEEPALIVE, 0, bytes(8)))
        await peer.reader.read()

    async with raw_server(stay_silent) as uri, FileClient.connect(uri, options=OPTIONS) as files:
        lost: list[Any] = []
        files.stat("a").subscribe(on_error=lost.append)
        deadline = time.monotonic() + PATIENCE
        while not lost and time.monotonic() < deadline:
            time.sleep(0.1)  # four periods of the watch
            await asyncio.sleep(0)
        assert [type(error) for error in lost] == [ConnectionLost]


def test_the_clock_counts_two_periods_at_the_most() -> None:
    now = 100.0
    clock = RunClock(1.0, lambda: now)
    for _ in range(3):
        now += 1.0
        assert clock.tick()
    assert clock.time() == 3.0
    now += 500.0
    assert clock.time() == 5.0
    assert not clock.tick()
    now += 1.0
    assert clock.tick()
    assert clock.time() == 6.0
    now += 500.0
    assert not clock.tick()
    now += 500.0
    assert clock.tick()  # what had come by the tick before has been read
    assert clock.time() == 10.0


def test_a_standstill_begins_when_the_value_is_first_seen() -> None:
    standstill = Standstill()
    assert standstill.look(5.0, "a") == 0
    assert standstill.look(7.0, "a") == 2
    assert standstill.look(8.0, "b") == 0
    assert standstill.look(9.0, "b") == 1
    assert standstill.look(10.0, "c", age=0.25) == 0.25
    assert standstill.look(12.0, "c", age=0.25) == 2.25
    assert standstill.look(13.0, "d", age=60.0) == 1, "the look before found another one"


async def test_a_timeout_by_the_time_during_which_the_loop_ran() -> None:
    async with TimeoutWhileRunning(0.5):
        block()
        await asyncio.sleep(0.01)
    with pytest.raises(TimeoutError):
        async with TimeoutWhileRunning(0.05):
            await asyncio.sleep(PATIENCE)
    with pytest.raises(TimeoutError):
        async with TimeoutWhileRunning(0):
            await asyncio.sleep(PATIENCE)
