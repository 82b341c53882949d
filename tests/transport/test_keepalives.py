"""A quiet transport answers keepalives by itself, exactly as a connection does; whatever else comes ends the quiet."""

import asyncio
import struct

import pytest
from rsocket.frame import KeepAliveFrame

from server import ChatData, FileServer, Limits, serve
from shared.frames.reassembly import Reassembler
from shared.frames.rules import PayloadRules
from tests.security.support import stat
from tests.support import KEEPALIVE, PATIENCE, PAYLOAD, RESPOND, RawFrame, RawPeer, eventually, frame, raw_peer

from .pairs import raw_pair, take

ASKING = frame(0, KEEPALIVE, RESPOND, bytes(8))
ANSWER = frame(0, KEEPALIVE, 0, bytes(8))


async def answer(peer: RawPeer) -> bytes:
    """The next frame, with its length before it."""
    async with asyncio.timeout(PATIENCE):
        length = await peer.reader.readexactly(3)
        return length + await peer.reader.readexactly(int.from_bytes(length, "big"))


async def become_quiet(server: FileServer) -> None:
    """As the server's watch does it, twice a second."""

    def is_quiet() -> bool:
        server._peers.check()
        return bool(server._peers._quiet)

    await eventually(is_quiet)


POSITION = struct.pack(">Q", 77)
SENT: dict[str, tuple[list[bytes], list[bytes]]] = {
    "an answer to nothing, and a keepalive": ([ANSWER, ASKING], [ANSWER]),
    "two in one segment": ([ASKING + ASKING], [ANSWER, ANSWER]),
    "one in two halves": ([ASKING[:9], ASKING[9:]], [ANSWER]),
    "one with data": ([frame(0, KEEPALIVE, RESPOND, bytes(8) + b"x")], [frame(0, KEEPALIVE, 0, bytes(8) + b"x")]),
    "one with a position": ([frame(0, KEEPALIVE, RESPOND, POSITION)], [frame(0, KEEPALIVE, 0, POSITION)]),
    "one that may be ignored": ([frame(0, KEEPALIVE, RESPOND | 0x200, bytes(8))], [ANSWER]),
    "one by one": ([ASKING, ASKING], [ANSWER, ANSWER]),
}


@pytest.mark.parametrize("sent", SENT)
async def test_the_answers_are_those_of_a_busy_connection(sent: str) -> None:
    segments, expected = SENT[sent]
    async with serve() as server, raw_peer(server.uri) as peer:
        await peer.send(ASKING)
        assert await answer(peer) == ANSWER
        await become_quiet(server)
        for segment in segments:
            await peer.send(segment)
            await asyncio.sleep(0.01)  # so that it arrives alone
        assert [await answer(peer) for _ in expected] == expected


async def test_a_request_behind_a_keepalive_ends_the_quiet() -> None:
    async with serve(data=ChatData({"a": b"x"})) as server, raw_peer(server.uri) as peer:
        for stream_id in (1, 3):
            await become_quiet(server)
            await peer.send(ASKING, stat(stream_id, b"a"))
            assert await answer(peer) == ANSWER
            got = await peer.receive()
            assert got is not None
            assert (got.stream_id, got.kind) == (stream_id, PAYLOAD)
            assert not server._peers._quiet


async def test_a_quiet_connection_that_falls_silent_is_closed() -> None:
    async with serve(limits=Limits(idle_seconds=0.1)) as server, raw_peer(server.uri) as peer:
        await become_quiet(server)
        for _ in range(8):
            await peer.send(ASKING)
            await asyncio.sleep(0.2)
            assert await answer(peer) == ANSWER
            assert server._peers._quiet, "it stays quiet"
        got = await peer.receive()
        assert isinstance(got, RawFrame)
        assert got.error[1].startswith("timeout")


class Rules(PayloadRules):
    """Notes when the quiet ends."""

    is_active = False

    def on_active(self) -> None:
        self.is_active = True


async def test_a_peer_that_reads_no_answers_ends_the_quiet() -> None:
    """The connection bounds what waits for such a peer."""
    rules = Rules()
    async with raw_pair(lambda _: Reassembler(rules=rules)) as (transport, peer):
        assert not transport.become_quiet(), "no frame is waited for"
        taking = asyncio.create_task(take(transport, 1))
        await asyncio.sleep(0)
        assert transport.become_quiet()
        await peer.send(ASKING)
        assert await answer(peer) == ANSWER
        assert not rules.is_active
        transport.pause_writing()  # as asyncio does when the socket is full
        await peer.send(ASKING)
        assert [type(each) for each in await taking] == [KeepAliveFrame]
        assert rules.is_active
        assert not transport.become_quiet()
        transport.resume_writing()
