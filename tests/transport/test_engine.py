"""rsocket over a transport of ours, and nothing above it: refused payloads are answered, split ones are joined."""

import asyncio
import os
from typing import Any

import pytest
from rsocket.error_codes import ErrorCode
from rsocket.frame import CancelFrame, ErrorFrame, Frame, PayloadFrame, RequestResponseFrame
from rsocket.handlers.interfaces import Requester
from rsocket.rsocket_server import RSocketServer

from shared.engine import FrameHandlers, RSocketEngine
from shared.frames.budget import ReassemblyBudget, ReassemblyLimits
from shared.frames.outbox import Outbox, SkippedFrame
from shared.frames.reassembly import Reassembler
from shared.transport.base import Transport
from tests.support import (
    ERROR,
    FOLLOWS,
    NEXT,
    PAYLOAD,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    eventually,
    frame,
    request,
)
from tests.transport.pairs import pair, payload, raw_pair, take
from tests.transport.pairs import request as request_frame


class Engine(RSocketServer, RSocketEngine):
    """Keeps the frames that it gets, and handles none."""

    def __init__(self, transport: Transport, limits: ReassemblyLimits, budget: ReassemblyBudget | None) -> None:
        self.transport = transport
        self.frames: list[Frame] = []
        self._init_engine(limits, budget, Outbox(frozenset()))
        super().__init__(self.make_feed())

    async def _handle_next_frame(self, frame: Frame, async_frame_handler_by_type: FrameHandlers) -> None:
        self.frames.append(frame)


class Stream(Requester):
    """An open stream, which keeps what it gets."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def frame_received(self, frame: Frame) -> None:
        self.frames.append(frame)


class Engines:
    """Makes an engine of each connection that is made."""

    def __init__(self, limits: ReassemblyLimits | None = None, budget: ReassemblyBudget | None = None) -> None:
        self.all: list[Engine] = []
        self._limits = limits or ReassemblyLimits()
        self._budget = budget

    def __call__(self, transport: Transport) -> Reassembler:
        self.all.append(Engine(transport, self._limits, self._budget))
        return self.all[-1].reassembler

    async def closed(self) -> None:
        for engine in self.all:
            await engine.close()


async def test_a_payload_over_the_limit_is_refused_and_the_connection_lives(caplog: pytest.LogCaptureFixture) -> None:
    budget = ReassemblyBudget()
    engines = Engines(ReassemblyLimits(max_payload_bytes=100_000), budget)
    async with raw_pair(engines) as (_, peer):
        (engine,) = engines.all
        for stream_id in (1, 3):
            await peer.send(request(stream_id, REQUEST_RESPONSE, None, bytes(60_000), flags=FOLLOWS))
            await peer.send(*[frame(stream_id, PAYLOAD, NEXT | FOLLOWS, bytes(60_000))] * 20)
        await peer.send(request(5, REQUEST_RESPONSE, None, bytes(16_000_000)))
        await peer.send(request(7, REQUEST_FNF, None, bytes(200_000)))
        await peer.send(request(9, REQUEST_RESPONSE, b"route", bytes(90_000)))
        for stream_id in (1, 3, 5):
            refused = await peer.receive()
            assert refused is not None
            assert (refused.stream_id, refused.kind, refused.error[0]) == (stream_id, ERROR, 0x201)
            assert refused.error[1].startswith("too_large: ")
        await eventually(lambda: engine.frames)
        assert [got.stream_id for got in engine.frames] == [9]
        assert budget.used_bytes == engine.reassembler.held_bytes == 0
        await peer.close()
        await engines.closed()
    assert len(caplog.records) == 1, "a flood must not fill the log"


async def test_the_budget_of_all_connections_is_shared_and_given_back() -> None:
    budget = ReassemblyBudget(100_000, clock=lambda: 0.0)  # no peer is slow
    engines = Engines(budget=budget)
    async with raw_pair(engines) as (_, first_peer), raw_pair(engines) as (_, second_peer):
        await first_peer.send(request(1, REQUEST_RESPONSE, None, bytes(90_000), flags=FOLLOWS))
        await eventually(lambda: budget.used_bytes > 90_000)
        await second_peer.send(request(1, REQUEST_RESPONSE, None, bytes(90_000), flags=FOLLOWS))
        refused = await second_peer.receive()
        assert refused is not None
        assert refused.error[0] == 0x202
        assert refused.error[1].startswith("server_full: ")
        await first_peer.close()
        await eventually(lambda: budget.used_bytes == 0)
        await second_peer.send(request(3, REQUEST_RESPONSE, None, bytes(90_000), flags=FOLLOWS))
        await eventually(lambda: budget.used_bytes > 90_000)
        await second_peer.close()
        await engines.closed()
    assert budget.used_bytes == 0


async def test_a_refused_item_of_a_known_stream_ends_it_on_both_sides() -> None:
    engines = Engines(ReassemblyLimits(max_payload_bytes=1000))
    async with pair(server_side=engines) as (_, client):
        (engine,) = engines.all
        stream: Any = Stream()
        engine._stream_control._streams[5] = stream
        await client.send(payload(bytes(2000), 5))
        await client.flush()
        await eventually(lambda: stream.frames)
        (local,) = stream.frames
        assert isinstance(local, ErrorFrame)
        assert (local.stream_id, local.error_code) == (5, ErrorCode.APPLICATION_ERROR)
        remote = await take(client, 2)
        assert [type(got) for got in remote] == [CancelFrame, ErrorFrame]
        assert [got.stream_id for got in remote] == [5, 5]
        engine.finish_stream(5)
        await engines.closed()


async def test_a_large_split_payload_is_joined_while_the_loop_goes_on() -> None:
    part = os.urandom(1_000_000)
    engines = Engines()
    async with pair(server_side=engines) as (_, client):
        (engine,) = engines.all
        await client.send(request_frame(part, 1, b"route", follows=True))
        for index in range(19):
            await client.send(payload(part, 1, follows=index < 18))
        await client.flush()
        await eventually(lambda: engine.frames)
        (got,) = engine.frames
        assert isinstance(got, RequestResponseFrame)
        assert type(got.data) is bytes
        assert (got.metadata, got.data == part * 20) == (b"route", True)
        assert engine.reassembler.held_bytes == 0
        await engines.closed()


async def test_a_skipped_frame_is_not_sent() -> None:
    engines = Engines()
    async with pair(server_side=engines) as (_, client):
        (engine,) = engines.all
        skipped = SkippedFrame()
        sent = skipped.sent_future = asyncio.get_running_loop().create_future()
        engine.send_frame(skipped)
        engine.send_frame(payload(b"next"))
        assert [type(got) for got in await take(client, 1)] == [PayloadFrame]
        assert sent.done(), "whatever waits for it goes on"
        await engines.closed()
