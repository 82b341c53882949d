"""Hundreds of connections that send nothing: honest clients are admitted, and no memory grows."""

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from rx_client import FileClient
from server import FileServer, Limits, serve, server_tls
from tests.security.support import REJECTED_SETUP, receive, refused, reset, serves, stat, warnings
from tests.support import ERROR, HAS_UVLOOP, RawPeer, eventually, on_uvloop, raw_peer, setup

FULL = (REJECTED_SETUP, "server_full: too many connections; try again later")

Scenario = Callable[[ssl.SSLContext | None, ssl.SSLContext | None], Coroutine[Any, Any, None]]
"""Called with the server's TLS context, and the client's."""


@pytest.fixture(params=["plain", "tls", "uvloop", "uvloop-tls"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scenario], Coroutine[Any, Any, None]]:
    """Runs a scenario on one kind of event loop, with TLS or without."""
    kind: str = request.param
    if "uvloop" in kind and not HAS_UVLOOP:
        pytest.skip("uvloop isn't installed")
    theirs: ssl.SSLContext | None = None
    ours: ssl.SSLContext | None = None
    if "tls" in kind:
        ca, chain, key = trustme.CA(), tmp_path / "chain.pem", tmp_path / "key.pem"
        certificate = ca.issue_cert("127.0.0.1")
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(key)
        ours, theirs = server_tls(chain, key), ssl.create_default_context()
        ca.configure_trust(theirs)

    async def run_one(scenario: Scenario) -> None:
        if "uvloop" in kind:
            await asyncio.to_thread(on_uvloop, scenario(ours, theirs))
        else:
            await scenario(ours, theirs)

    return run_one


def plain(server: FileServer) -> str:
    """The server's URI for raw connections, without TLS."""
    return server.uri.replace("tcps://", "tcp://")


def counted(server: FileServer) -> int:
    """The admitted connections, from their accept on."""
    assert server._listener is not None
    return len(server._listener._admission.admitted)


@asynccontextmanager
async def pending(server: FileServer, count: int) -> AsyncGenerator[list[RawPeer], None]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(raw_peer(plain(server), set_up=False)) for _ in range(count)]


async def is_served(uri: str, tls: ssl.SSLContext | None) -> None:
    async with FileClient.connect(uri, tls=tls) as files:
        await files.upload("a", b"x", deadline=10)


@pytest.mark.parametrize("limits", [Limits(max_connections=8), Limits(max_connections_per_address=8)])
async def test_pending_connections_are_evicted_oldest_first(
    run: Callable[[Scenario], Coroutine[Any, Any, None]], limits: Limits, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(ours: ssl.SSLContext | None, theirs: ssl.SSLContext | None) -> None:
        async with serve(limits=limits, tls=ours) as server, pending(server, 40) as peers:
            await eventually(lambda: counted(server) == 8)
            for peer in peers[:32]:
                if ours is None:
                    assert await refused(peer) == FULL
                else:
                    assert await peer.reader.read() == b""
            async with asyncio.timeout(10):
                for _ in range(3):
                    await is_served(server.uri, theirs)
            assert counted(server) <= 8
            await peers[-1].silence(0.05)  # the newest is still there
            async with FileClient.connect(server.uri, tls=theirs) as files, pending(server, 20):
                await files.upload("a", b"x")  # a connection with an accepted SETUP stays
                await eventually(lambda: counted(server) == 8)
                await files.upload("a", b"x")
        assert not server.connections

    await run(scenario)
    logged = warnings(caplog)
    assert len(logged) == 1
    assert "pending ones make room" in logged[0]


async def test_with_none_pending_the_new_connection_is_refused(
    run: Callable[[Scenario], Coroutine[Any, Any, None]],
) -> None:
    async def scenario(ours: ssl.SSLContext | None, theirs: ssl.SSLContext | None) -> None:
        async with serve(limits=Limits(max_connections=2), tls=ours) as server:
            async with AsyncExitStack() as stack:
                for _ in range(2):
                    files = await stack.enter_async_context(FileClient.connect(server.uri, tls=theirs))
                    await files.upload("a", b"x")
                for _ in range(200):  # more than may wait for their rejection
                    peer = await RawPeer.connect(plain(server))
                    stack.push_async_callback(peer.close)
                    last = peer
                if ours is None:
                    assert await refused(last) == FULL
                else:
                    assert await last.reader.read() == b""
                assert server._listener is not None
                assert len(server._listener._admission.rejected) <= 64
                assert counted(server) == 2
            await eventually(lambda: not counted(server))
            await is_served(server.uri, theirs)

    await run(scenario)


async def test_the_server_ends_with_pending_connections_in_every_state(
    run: Callable[[Scenario], Coroutine[Any, Any, None]],
) -> None:
    async def scenario(ours: ssl.SSLContext | None, theirs: ssl.SSLContext | None) -> None:
        async with serve(tls=ours, limits=Limits(max_connections=10)) as server:
            peers = [await RawPeer.connect(plain(server)) for _ in range(30)]
            for peer in peers[::3]:
                await peer.send(b"\x16\x03\x01\x02\x00"[: 1 + peers.index(peer) % 5])
            for peer in peers[1::3]:
                reset(peer)
            late = [asyncio.create_task(RawPeer.connect(plain(server))) for _ in range(10)]
            await asyncio.sleep(0)
        for peer in [*peers, *await asyncio.gather(*late, return_exceptions=True)]:
            if isinstance(peer, RawPeer):
                await peer.close()

    async with asyncio.timeout(20):
        await run(scenario)


async def test_connections_that_arrive_while_the_server_ends_are_closed(
    run: Callable[[Scenario], Coroutine[Any, Any, None]],
) -> None:
    """A socket that isn't closed would be a ResourceWarning, which is an error in tests."""

    async def scenario(ours: ssl.SSLContext | None, theirs: ssl.SSLContext | None) -> None:
        for iterations in range(30):
            async with serve(tls=ours) as server:
                coming = [socket.socket() for _ in range(10)]
                host, port = plain(server).removeprefix("tcp://").split(":")
                for each in coming:
                    each.setblocking(False)
                    each.connect_ex((host, int(port)))
                for _ in range(iterations % 10):
                    await asyncio.sleep(0)
            for each in coming:
                each.close()

    await run(scenario)
    gc.collect()


async def test_a_handshake_counts_and_is_ended_in_time(run: Callable[[Scenario], Coroutine[Any, Any, None]]) -> None:
    async def scenario(ours: ssl.SSLContext | None, theirs: ssl.SSLContext | None) -> None:
        async with (
            serve(tls=ours, limits=Limits(setup_seconds=0.5)) as server,
            pending(server, 5) as peers,
        ):
            await eventually(lambda: counted(server) == 5)
            for peer in peers:
                await peer.reader.read()
            await eventually(lambda: not counted(server))
            await is_served(server.uri, theirs)

    await run(scenario)


async def test_one_port_at_all_addresses_of_a_host() -> None:
    async with serve("localhost") as server:
        port = int(server.uri.rpartition(":")[2])
        await serves(f"tcp://localhost:{port}")
        assert server._listener is not None
        for listening in server._listener._sockets:
            host, bound = listening.getsockname()[:2]
            assert bound == port
            await serves(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
        with pytest.raises(OSError, match="can't listen on"):
            async with serve("localhost", port):
                pass
    async with serve("localhost", port):  # free again, at once
        await serves(f"tcp://localhost:{port}")
    with pytest.raises(OSError):
        async with serve("host.invalid"):
            pass


async def test_a_connection_with_an_accepted_setup_is_not_evicted() -> None:
    async with serve(limits=Limits(max_connections=1)) as server, raw_peer(server.uri) as known:
        await known.send(stat(1, b"a"))
        assert (await receive(known)).kind == ERROR
        async with raw_peer(server.uri) as late:
            assert await refused(late) == FULL
        await known.send(setup(), stat(3, b"a"))  # a second SETUP doesn't make it pending again
        assert (await receive(known)).stream_id == 3
