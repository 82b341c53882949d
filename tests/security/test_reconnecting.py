"""No peer sees a storm of connections, whatever it does to them and however quickly an application retries."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import reactivex
from reactivex import Observable
from reactivex import operators as ops

from rx_client import ConnectOptions, FileClient
from server import serve
from shared.errors import ClientClosed, ConnectionLost, TransferError, Unauthenticated
from tests.security.test_quiet_peers import METHODS
from tests.support import (
    ERROR,
    REQUEST_RESPONSE,
    RawPeer,
    eventually,
    frame,
    raw_server,
)

OPTIONS = ConnectOptions(
    connect_timeout=0.3, reconnect_timeout=1.0, reconnect_base=0.1, reconnect_cap=0.4, keepalive_period=0.1
)
SECONDS = 2.0

REJECTED_SETUP = 0x3


async def until_asked(peer: RawPeer) -> None:
    """Answers keepalives, and closes the connection at the first request."""
    while (got := await peer.receive(60)) is not None and got.kind != REQUEST_RESPONSE:
        pass


async def closes_at_once(_: RawPeer) -> None:
    pass


async def refuses_the_password(peer: RawPeer) -> None:
    text = b"unauthenticated: the user name or the password is wrong"
    await peer.send(frame(0, ERROR, 0, struct.pack(">I", REJECTED_SETUP) + text))


async def is_silent(peer: RawPeer) -> None:
    while await peer.reader.read(65536):
        pass


async def accepted_in_a_while(later: Callable[[RawPeer], Awaitable[None]], askers: int) -> tuple[int, float]:
    """How many connections callers that retry at once make to a peer in a while, and how many there may be.

    The first connection works until the first request.
    """
    accepted = 0

    async def peer(peer: RawPeer) -> None:
        nonlocal accepted
        accepted += 1
        await (until_asked if accepted == 1 else later)(peer)

    async with raw_server(peer) as uri, FileClient.connect(uri, options=OPTIONS) as files:
        clock = asyncio.get_running_loop().time
        began = clock()
        asking = [files.stat("a").pipe(ops.retry()).subscribe() for _ in range(askers)]
        await asyncio.sleep(SECONDS)
        for one in asking:
            one.dispose()
        # 0.05, 0.1, then 0.2 s apart at the least, in a time that is longer on a busy machine.
        return accepted, 3 + (clock() - began) / 0.2


async def test_a_bare_retry_makes_no_storm() -> None:
    cases = [(peer, 1) for peer in (until_asked, closes_at_once, refuses_the_password, is_silent)]
    cases.append((until_asked, 100))
    seen = await asyncio.gather(*(accepted_in_a_while(*case) for case in cases))
    assert [count for count, most in seen if not 3 <= count <= most] == [], seen


async def test_a_refusal_is_the_same_typed_error_each_time() -> None:
    accepted = 0

    async def peer(peer: RawPeer) -> None:
        nonlocal accepted
        accepted += 1
        await (until_asked if accepted == 1 else refuses_the_password)(peer)

    async with raw_server(peer) as uri, FileClient.connect(uri, options=OPTIONS) as files:
        await files.stat("a").pipe(ops.catch(lambda _, __: reactivex.empty()), ops.to_list())
        for _ in range(3):
            with pytest.raises(Unauthenticated):
                await files.stat("a")


async def test_a_bare_retry_on_a_closed_client_is_slowed_down(tmp_path: Path) -> None:
    """Such a retry never ends by itself: its first failures are quick, later ones slow; a dispose leaves nothing."""
    sources: list[Observable[Any]] = []
    async with serve() as server:
        for ask in METHODS.values():
            async with FileClient.connect(server.uri) as files:
                sources.append(ask(files, tmp_path))
        await fail_seldom(sources, ClientClosed)


async def test_a_bare_retry_on_an_ended_rsocket_is_slowed_down() -> None:
    async with serve() as server, FileClient.connect(server.uri) as owner:
        rsocket = owner._connector.current()
        assert rsocket is not None
    await fail_seldom([FileClient(rsocket).stat("a")], ConnectionLost)


async def fail_seldom(sources: list[Observable[Any]], kind: type[TransferError]) -> None:
    before = asyncio.all_tasks()
    failures: list[list[Exception]] = [[] for _ in sources]
    retrying = [
        source.pipe(ops.do_action(on_error=seen.append), ops.retry()).subscribe()
        for source, seen in zip(sources, failures, strict=True)
    ]
    await asyncio.sleep(0.5)
    counts = [len(seen) for seen in failures]
    assert [count for count in counts if count > 20] == []
    await eventually(lambda: all(len(seen) >= 3 for seen in failures))
    for one in retrying:
        one.dispose()
    counts = [len(seen) for seen in failures]
    assert {type(failure) for seen in failures for failure in seen} == {kind}
    await eventually(lambda: asyncio.all_tasks() <= before)
    assert [len(seen) for seen in failures] == counts
