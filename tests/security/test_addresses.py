"""Several addresses of a host, and several URIs: what one of them does doesn't keep a client from the others."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from reactivex import operators as ops

from rx_client import ConnectOptions, FileClient
from rx_client.connection.addresses import connect_socket
from server import ChatData, FileServer, serve
from shared.errors import ConnectionFailed, ConnectionLost, Unauthenticated, is_retryable
from tests.security.support import user_line, users
from tests.support import HAS_UVLOOP, PATIENCE, RawPeer, eventually, on_uvloop, raw_server

QUICK = ConnectOptions(connect_timeout=2, reconnect_timeout=2, keepalive_period=0.1, keepalive_timeout=0.5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@asynccontextmanager
async def black_hole() -> AsyncGenerator[tuple[str, int], None]:
    """An address that answers no SYN: its queue of connections is full."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    address = listening.getsockname()
    waiting: list[socket.socket] = []
    try:
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
        await asyncio.sleep(0.05)
        yield address
    finally:
        for each in (*waiting, listening):
            each.close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Lets the name `several.example` have these addresses."""
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "several.example":
            return original(host, *arguments, **options)
        found = ((socket.AF_INET6 if ":" in each[0] else socket.AF_INET, each) for each in addresses)
        return [(family, socket.SOCK_STREAM, 6, "", each) for family, each in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def address(server: FileServer) -> tuple[str, int]:
    host, port = server.uri.removeprefix("tcp://").split(":")
    return host, int(port)


async def test_an_address_that_does_not_answer_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve() as server, black_hole() as silent:
        resolve_to(monkeypatch, silent, ("127.0.0.1", free_port()), address(server))
        options = ConnectOptions(connect_timeout=PATIENCE)
        async with FileClient.connect("tcp://several.example:1", options=options) as files:
            await files.upload("a", b"x")
        await eventually(lambda: not server.connections)


async def test_a_host_of_which_no_address_can_be_connected_says_why_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, ("::1", free_port()), ("127.0.0.1", free_port()))
    with pytest.raises(ConnectionFailed, match=r"::1: .+; 127\.0\.0\.1: Connection refused") as failed:
        async with FileClient.connect("tcp://several.example:1", options=QUICK):
            pass
    assert is_retryable(failed.value)


async def test_all_addresses_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with black_hole() as first, black_hole() as second:
        resolve_to(monkeypatch, first, second)
        options = ConnectOptions(connect_timeout=0.6)
        with pytest.raises(ConnectionFailed, match=r"not answered within 0\.6 s"):
            async with FileClient.connect("tcp://several.example:1", options=options):
                pass


async def test_families_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    loop = asyncio.get_running_loop()

    async def refuse(_: socket.socket, address: Any) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError(111, "refused")

    resolve_to(monkeypatch, ("::1", 1), ("::2", 1), ("::1", 1), ("127.0.0.1", 1), ("127.0.0.2", 1), ("127.0.0.3", 1))
    monkeypatch.setattr(loop, "sock_connect", refuse)
    with pytest.raises(OSError, match="Connection refused"):
        await connect_socket("several.example", 1)
    assert tried == ["::1", "127.0.0.1", "::2", "127.0.0.2", "127.0.0.3"]


@pytest.mark.skipif(not HAS_UVLOOP, reason="uvloop isn't installed")
def test_a_host_with_several_addresses_on_uvloop() -> None:
    async def scenario() -> None:
        async with serve("localhost") as server:
            uri = f"tcp://localhost:{server.uri.rpartition(':')[2]}"
            async with FileClient.connect(uri) as files:
                await files.upload("a", b"x")

    on_uvloop(scenario())


async def use(uris: str | Sequence[str], **options: Any) -> None:
    async with FileClient.connect(uris, options=QUICK, **options) as files:
        await files.upload("a", b"x")


async def stay_silent(peer: RawPeer) -> None:
    await peer.reader.read()


async def hang_up(peer: RawPeer) -> None:
    await peer.reader.readexactly(3)


async def test_several_uris_are_tried_in_turn() -> None:
    refused = f"tcp://127.0.0.1:{free_port()}"
    async with serve() as server, raw_server(stay_silent) as silent, raw_server(hang_up) as closing:
        for uris in (
            [server.uri],
            (refused, server.uri),
            (silent, server.uri),
            [closing, refused, server.uri],
            [server.uri, refused],
        ):
            server.data.files.clear()
            await use(uris)
            assert server.data.files == {"a": b"x"}, uris
        with pytest.raises(ConnectionFailed, match=f"{refused}: Connection refused; no connection to {closing}: "):
            await use([refused, closing])


@pytest.mark.parametrize("uris", [[], (), ["tcp://localhost", "http://localhost"]])
async def test_a_list_without_a_uri_or_with_another_thing_is_a_value_error(uris: list[str]) -> None:
    with pytest.raises(ValueError, match=r"URI|form"):
        await use(uris)


async def test_what_all_servers_refuse_is_not_retryable_and_what_one_may_serve_is() -> None:
    refused = f"tcp://127.0.0.1:{free_port()}"
    known = users(user_line("alice", "right"))
    async with serve(users=known) as first, serve(users=known) as second:
        with pytest.raises(Unauthenticated):
            await use([first.uri, second.uri], auth=("alice", "wrong"))
        with pytest.raises(ConnectionFailed) as failed:
            await use([first.uri, refused], auth=("alice", "wrong"))
        assert is_retryable(failed.value)
        assert "password is wrong" in str(failed.value)


async def test_every_reconnect_uses_the_list() -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve(data=ChatData({"a": b"first"})))
        second = await stack.enter_async_context(serve(data=ChatData({"a": b"second"})))
        ports = [address(first)[1], address(second)[1]]
        files = await stack.enter_async_context(FileClient.connect([first.uri, second.uri], options=QUICK))
        assert await files.download("a") == b"first"
        await first.close(0)
        assert await files.download("a").pipe(ops.retry(3)) == b"second"
        again = await stack.enter_async_context(serve(port=ports[0], data=ChatData({"a": b"again"})))
        await second.close(0)
        assert await files.download("a").pipe(ops.retry(3)) == b"again"
        await again.close(0)
        with pytest.raises(ConnectionFailed):
            await files.download("a")


async def test_a_server_that_falls_silent_is_not_the_first_to_be_tried_again() -> None:
    accepted = 0

    async def accept_and_freeze(peer: RawPeer) -> None:
        nonlocal accepted
        accepted += 1
        await peer.send(bytes.fromhex("00000e000000000c000000000000000000"))
        await peer.reader.read()

    async with raw_server(accept_and_freeze) as frozen, serve(data=ChatData({"a": b"x"})) as server:
        async with FileClient.connect([frozen, server.uri], options=QUICK) as files:
            with pytest.raises(ConnectionLost):
                await files.download("a")
            assert await files.download("a") == b"x"
        assert accepted == 1
