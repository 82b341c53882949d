"""Windows that adapt to the line: the rule, in virtual time, on lines of any length; and real transfers."""

import asyncio
import heapq
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reactivex import operators as ops

from server import ChatData, DirectoryStore, MemoryStore, serve
from shared.errors import ConnectionLost
from shared.protocol.adaptive import AdaptiveDemand, WindowBudget
from shared.protocol.flow import DEFAULT_WINDOW, WIDEST_WINDOW, Credit, Demand
from tests.security.test_phases import asked
from tests.support import COMPLETE, NEXT, PAYLOAD, REQUEST_N, RawPeer, eventually, frame, payload, raw_peer, raw_server
from tests.transfers.helpers import Recorder, connected, content
from tests.transfers.test_lane import Disk, Sending, blocked_disk, head_of, plain, streams_of

__all__ = ["blocked_disk"]


class Line:
    """A transfer over a line, in virtual time.

    Args:
        round_trip: Seconds.
        rate: See below.
        budget: Of the window.
        most: The widest window.

    Attributes:
        demand: The receiver's ledger.
        now: Seconds.
        rate: Items a second that the line carries.
        consuming: The consumer's rate, in items a second.
        is_stuck: Whether the consumer takes nothing.
        held: The most items that have waited for it.
    """

    def __init__(
        self, round_trip: float, rate: float, budget: WindowBudget | None = None, most: int = WIDEST_WINDOW
    ) -> None:
        self.now = 0.0
        self.demand = AdaptiveDemand(most, 1, budget, lambda: self.now)
        self.consuming = 1e6
        self.is_stuck = False
        self.held = 0
        self.rate = rate
        self._half = round_trip / 2
        self._credit = Credit()
        self._sent_until = self._consumed_until = 0.0
        self._waiting = 0
        self._is_consuming = False
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._at(self._half, lambda: self._grant(self.demand.requested))

    def run(self, items: int = 10**9, seconds: float = 1e9) -> float:
        """Goes on until so many more were consumed, or for so long; returns the seconds of that."""
        began, until, enough = self.now, self.now + seconds, self.demand.consumed + items
        while self._events and self._events[0][0] <= until and self.demand.consumed < enough:
            self.now, _, then = heapq.heappop(self._events)
            then()
            demand = self.demand
            assert DEFAULT_WINDOW <= demand.window <= WIDEST_WINDOW
            self.held = max(self.held, demand.arrived - demand.consumed)
        return self.now - began

    def _at(self, when: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), then))

    def _grant(self, items: int) -> None:
        self._credit.grant(items)
        self._send()

    def _send(self) -> None:
        while self._credit.available:
            self._credit.take(1)
            self._sent_until = max(self._sent_until, self.now) + 1 / self.rate
            self._at(self._sent_until + self._half, self._arrive)

    def _arrive(self) -> None:
        self.demand.on_arrived()
        self._waiting += 1
        self.consume()

    def consume(self) -> None:
        if self._waiting and not self._is_consuming and not self.is_stuck:
            self._is_consuming = True
            self._at(self.now + 1 / self.consuming, self._consumed)

    def _consumed(self) -> None:
        self._is_consuming = False
        self._waiting -= 1
        more = self.demand.on_consumed()
        if more:
            self._at(self.now + self._half, lambda: self._grant(more))
        self.consume()


round_trips = st.floats(0.0, 0.4)
rates = st.floats(20.0, 4000.0)


@given(round_trip=round_trips, rate=rates)
@settings(max_examples=25, deadline=None)
def test_a_transfer_gets_what_the_line_and_the_widest_window_give(round_trip: float, rate: float) -> None:
    line = Line(round_trip, rate)
    line.run(1500)
    possible = min(rate, WIDEST_WINDOW / max(round_trip, 1e-6))
    # What a wait cost less than a quarter of the window is no reason to widen it.
    assert 1000 / line.run(1000) >= 0.7 * possible


@given(round_trip=round_trips, rate=rates)
@settings(max_examples=25, deadline=None)
def test_a_window_that_a_line_does_not_need_stays_as_it_is(round_trip: float, rate: float) -> None:
    line = Line(round_trip, min(rate, DEFAULT_WINDOW / 2 / max(round_trip, 1e-6)))
    line.run(500)
    assert line.demand.window <= 3 * DEFAULT_WINDOW  # the very first items come after a round trip without others


@given(round_trip=st.floats(0.02, 0.4), rate=st.floats(500.0, 4000.0), share=st.floats(0.01, 0.5))
@settings(max_examples=25, deadline=None)
def test_a_consumer_that_becomes_slow_gets_a_smaller_window(round_trip: float, rate: float, share: float) -> None:
    line = Line(round_trip, rate)
    line.run(1000)
    widest = line.demand.window
    line.consuming = share * min(rate, widest / round_trip)
    line.run(600)
    line.held = 0
    line.run(300)
    needed = line.consuming * round_trip
    assert line.held <= max(DEFAULT_WINDOW, min(2 * needed + DEFAULT_WINDOW, widest))


@given(round_trip=st.floats(0.02, 0.4), rate=st.floats(500.0, 4000.0), share=st.floats(0.01, 0.5))
@settings(max_examples=25, deadline=None)
def test_a_line_that_becomes_slow_gets_a_smaller_window(round_trip: float, rate: float, share: float) -> None:
    """Or what waits in sockets would delay the connection's other answers."""
    line = Line(round_trip, rate)
    line.run(1000)
    line.rate = share * min(rate, line.demand.window / round_trip)
    line.run(600)
    assert line.demand.window <= max(2 * DEFAULT_WINDOW, 3 * line.rate * round_trip)
    line.rate = rate
    line.run(1500)
    assert 500 / line.run(500) >= 0.7 * min(rate, WIDEST_WINDOW / round_trip)


@given(round_trip=round_trips, rate=rates, before=st.integers(0, 800))
@settings(max_examples=25, deadline=None)
def test_no_more_than_the_window_waits_for_a_consumer_that_stops(round_trip: float, rate: float, before: int) -> None:
    line = Line(round_trip, rate, most=48)
    line.run(before)
    line.is_stuck = True
    window = line.demand.window
    line.run(seconds=10)
    assert line.held <= window <= 48
    line.is_stuck = False
    line.consume()
    line.run(200)
    assert line.demand.consumed >= before + 200, "it goes on"


@given(steps=st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(1, 200)), max_size=60))
@settings(max_examples=30, deadline=None)
def test_windows_together_stay_within_their_budget(steps: list[tuple[int, bool, int]]) -> None:
    budget = WindowBudget(100)
    lines = [Line(0.05 * (number + 1), 1000, budget) for number in range(5)]
    for number, is_stuck, items in steps:
        line = lines[number]
        line.is_stuck = is_stuck
        line.consume()
        line.run(items, seconds=2)
        ahead = sum(line.demand.requested - line.demand.consumed - DEFAULT_WINDOW for line in lines)
        assert ahead <= budget.used_bytes <= 100
    for line in lines:
        line.demand.end()
        line.demand.on_consumed(line.demand.arrived - line.demand.consumed)
    assert not budget.used_bytes


@given(window=st.integers(1, 200), seconds=st.lists(st.floats(0, 1), max_size=20))
def test_a_window_that_was_given_stays_as_it_is(window: int, seconds: list[float]) -> None:
    demand = Demand(window)
    for _ in seconds:
        demand.on_arrived(demand.outstanding)
        demand.on_consumed(demand.arrived - demand.consumed)
        assert demand.requested - demand.consumed == demand.window == window


# On a real connection: the sender waits before it goes on, as if the line were long


_WAIT_SECONDS = 0.04


@pytest.mark.parametrize("kind", ["memory", "directory"])
async def test_a_server_asks_for_more_where_the_line_is_long(tmp_path: Path, kind: str) -> None:
    store = MemoryStore({}) if kind == "memory" else DirectoryStore(tmp_path / "store")
    async with serve(data=ChatData(store)) as server, raw_peer(server.uri) as peer:
        upload = await Sending.begin(peer, "n", digest=None)
        for _ in range(100):
            while not upload.credit:
                await upload.hear()
            await asyncio.sleep(_WAIT_SECONDS)
            if upload.credit >= 2 * DEFAULT_WINDOW:
                return
            items, upload.credit = upload.credit, 0
            await peer.send(*(plain(1, bytes(100)) for _ in range(items)))
        pytest.fail(f"the window is {upload.credit}")


class LongLine:
    """A raw server's download, which waits before it sends what it may.

    Args:
        data: The file; an item has 100 bytes of it, the first one none.
        enough: The credit with which it waits for `goes_on`, once; from then on an item has 400,000 bytes.

    Attributes:
        most: The most credit that there was.
    """

    def __init__(self, data: bytes, enough: int = 10**6) -> None:
        self.data = data
        self.most = 0
        self.is_enough, self.goes_on = asyncio.Event(), asyncio.Event()
        self._enough = enough

    async def __call__(self, peer: RawPeer) -> None:
        request = await asked(peer)
        self.most = credit = int.from_bytes(request.body[:4], "big")
        flag, body = payload(head_of(self.data), b"")
        await asyncio.sleep(_WAIT_SECONDS)
        await peer.send(frame(request.stream_id, PAYLOAD, NEXT | flag, body))
        credit -= 1
        at, item_bytes = 0, 100
        while at < len(self.data):
            if not credit:
                while not credit:
                    credit += await self._credit(peer)
                await asyncio.sleep(_WAIT_SECONDS)
                self.most = max(self.most, credit)
                if credit >= self._enough and not self.is_enough.is_set():
                    self.is_enough.set()
                    await self.goes_on.wait()
                    item_bytes = 400_000
            credit -= 1
            peer.writer.write(plain(request.stream_id, self.data[at : at + item_bytes]))
            at += item_bytes
        await peer.send(frame(request.stream_id, PAYLOAD, COMPLETE))
        while await peer.receive() is not None:
            pass

    async def _credit(self, peer: RawPeer) -> int:
        while (got := await peer.receive()) is not None:
            if got.kind == REQUEST_N:
                return int.from_bytes(got.body, "big")
        raise ConnectionError("the client has gone")


@pytest.mark.parametrize(("window", "least", "most"), [(None, 2 * DEFAULT_WINDOW, WIDEST_WINDOW), (20, 20, 20)])
@pytest.mark.parametrize("kind", ["path", "writer", "chunks"])
async def test_a_client_asks_for_more_where_the_line_is_long(
    tmp_path: Path, kind: str, window: int | None, least: int, most: int
) -> None:
    line, got = LongLine(content(30_000)), bytearray()

    class Writer:
        async def write(self, data: bytes, /) -> None:
            got.extend(data)

    async with raw_server(line) as uri, connected(uri) as files:
        if kind == "path":
            await files.download_to("n", tmp_path / "got", window=window)
            got += (tmp_path / "got").read_bytes()
        elif kind == "writer":
            await files.download_to("n", Writer(), window=window)
        else:
            chunks = files.download_chunks("n", window=window)
            await chunks.pipe(ops.do_action(lambda chunk: got.extend(chunk.data)))
        session: Any = files._connector.current()  # pyright: ignore[reportPrivateUsage]
        assert not session.windows.used_bytes
    assert bytes(got) == line.data
    assert least <= line.most <= (most if kind == "path" else min(most, 48))


@pytest.mark.parametrize("end", ["goes on", "disposed", "cut"])
async def test_a_connection_is_not_read_while_a_wide_window_waits_for_a_disk(
    tmp_path: Path, end: str, blocked_disk: Disk
) -> None:
    """What is on the line when a disk becomes slow is more than what may wait in memory."""
    line = LongLine(content(24_000_000), 60)
    async with raw_server(line) as uri, connected(uri) as files:
        heard = Recorder()
        subscription = files.download_to("n", tmp_path / "got").subscribe(heard)
        await line.is_enough.wait()
        session: Any = files._connector.current()  # pyright: ignore[reportPrivateUsage]
        ((stream,), most) = streams_of(files), 12 * 1024 * 1024
        blocked_disk.clear()
        line.goes_on.set()
        await eventually(lambda: session._held_bytes > most)
        await asyncio.sleep(0.1)
        assert session._held_bytes == stream._job.held_bytes <= most + 400_000
        if end == "disposed":
            subscription.dispose()
        elif end == "cut":
            session.transport.abort()
        blocked_disk.set()
        await eventually(lambda: heard.is_completed or heard.error or end == "disposed")
        await eventually(lambda: not session._held_bytes)
        assert not session.must_wait()
    assert isinstance(heard.error, ConnectionLost) == (end == "cut")
    assert heard.is_completed == (end == "goes on")
    assert not heard.is_completed or (tmp_path / "got").read_bytes() == line.data
