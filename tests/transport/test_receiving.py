"""The receive buffer and the reassembly, without sockets: any segmentation, any interleaving, every limit."""

import struct
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rsocket.frame import (
    CancelFrame,
    ErrorFrame,
    FragmentableFrame,
    Frame,
    FrameType,
    PayloadFrame,
    RequestResponseFrame,
)

from shared.errors import ServerFull, TooLarge, TransferError
from shared.frames.budget import ReassemblyBudget, ReassemblyLimits
from shared.frames.codec import FrameError, FrameHeader
from shared.frames.fragments import SplitPayload, Spool
from shared.frames.reassembly import PayloadRules, Reassembler
from shared.transport import decoder as receiving
from shared.transport.decoder import FrameDecoder
from tests.support import (
    CANCEL,
    COMPLETE,
    ERROR,
    FOLLOWS,
    IGNORE,
    KEEPALIVE,
    METADATA,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    frame,
    request,
    request_n,
)
from tests.transport.pairs import cancel, seen


@pytest.fixture(autouse=True, scope="module", params=[receiving._OWN_BYTES, 0])
def own_bytes(request: pytest.FixtureRequest) -> Iterator[int]:
    """From where on a payload is received into its own memory: as it is, and wherever it can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receiving, "_OWN_BYTES", request.param)
        yield request.param


class Refusal(NamedTuple):
    """What a connection hears of a refused payload."""

    stream_id: int
    kind: int
    error: TransferError


class Receiving(PayloadRules):
    """A decoder, with the loop that a transport runs on it, and what its connection hears."""

    def __init__(self, limits: ReassemblyLimits | None = None, budget: ReassemblyBudget | None = None) -> None:
        self.reassembler = Reassembler(limits, budget, self)
        self.decoder = FrameDecoder(self.reassembler)
        self.frames: list[Frame] = []
        self.refused: list[Refusal] = []
        self.refused_frames: list[TransferError] = []
        self.largest_buffer = 0

    def on_refused(self, stream_id: int, kind: int, error: TransferError) -> None:
        self.refused.append(Refusal(stream_id, kind, error))

    def on_frame_refused(self, error: TransferError) -> None:
        self.refused_frames.append(error)

    def feed(self, data: bytes, taking: bool = True) -> "Receiving":
        position = 0
        while position < len(data):
            buffer = self.decoder.get_buffer()
            assert len(buffer), "a transport that gets an empty buffer ends the connection"
            nbytes = min(len(buffer), len(data) - position)
            buffer[:nbytes] = data[position : position + nbytes]
            position += nbytes
            self.decoder.received(nbytes)
            self.largest_buffer = max(self.largest_buffer, len(self.decoder._view))
            if taking or self.decoder.is_full:
                self.take()
        return self

    def take(self) -> None:
        while self.decoder.is_ready:
            got = self.decoder.take()
            if isinstance(got, SplitPayload):
                joined = got.join()
                self.reassembler.release(got)
                got = joined
            if got is not None:
                self.frames.append(got)


# Frames as they are on the wire, and large ones that are cheap to shrink.
_contents = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda size, byte: bytes([byte]) * size, st.integers(0, 200_000), st.integers(0, 255)),
    st.sampled_from([65_520, 65_524, 65_525, 65_526, 65_527, 65_530, 65_536]).map(bytes),
)
_wire_frames = st.one_of(
    st.builds(lambda s, data: frame(s, PAYLOAD, NEXT, data), st.integers(1, 5), _contents),
    st.builds(lambda s, m, data: request(s, REQUEST_RESPONSE, m, data), st.integers(1, 5), _contents, _contents),
    st.builds(lambda s, data, n: request(s, REQUEST_STREAM, None, data, n=n), st.just(3), _contents, st.just(7)),
    st.builds(request_n, st.integers(1, 5), st.integers(1, 1000)),
    st.just(frame(0, KEEPALIVE, 0, bytes(8) + b"alive")),
    st.builds(lambda data: frame(3, 0x3D, IGNORE, data), _contents),
)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.lists(_wire_frames, max_size=12))
def test_any_segmentation_gives_the_same_frames(data: st.DataObject, frames: list[bytes]) -> None:
    whole = b"".join(frames)
    one_by_one = Receiving()
    for wire_frame in frames:
        one_by_one.feed(wire_frame)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    split = Receiving()
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        split.feed(whole[start:end], taking=data.draw(st.booleans()))
    split.take()
    assert [seen(got) for got in split.frames] == [seen(got) for got in one_by_one.frames]
    assert len(split.frames) == sum(wire_frame[7] >> 2 != 0x3D for wire_frame in frames)
    assert all(type(got.data) is bytes for got in split.frames if not isinstance(got, ErrorFrame) and got.stream_id)


def test_bytes_that_arrive_one_by_one() -> None:
    wire = request(1, REQUEST_RESPONSE, b"route", b"data") + frame(1, PAYLOAD, NEXT, b"more") + request_n(1, 9)
    receiving = Receiving()
    for position in range(len(wire)):
        receiving.feed(wire[position : position + 1])
    assert [type(got).__name__ for got in receiving.frames] == ["RequestResponseFrame", "PayloadFrame", "RequestNFrame"]


def test_a_payload_is_its_own() -> None:
    receiving = Receiving().feed(frame(1, PAYLOAD, NEXT, b"a" * 100_000)).feed(frame(1, PAYLOAD, NEXT, b"b" * 100_000))
    assert [got.data for got in receiving.frames] == [b"a" * 100_000, b"b" * 100_000]


@pytest.mark.parametrize(
    "wire",
    [
        b"\0\0\0",
        b"\0\0\5",
        frame(1, 0x3D),
        frame(0x80000001, PAYLOAD, NEXT, b"x"),
        b"\xff\xff\xff" + struct.pack(">IH", 1, 0x3D << 10),
        frame(1, PAYLOAD, METADATA, b"\0\0\x09short"),
        frame(1, REQUEST_STREAM, 0, b"\0"),
        frame(1, ERROR, 0, b"\0"),
    ],
)
def test_what_is_no_frame_is_known_as_soon_as_it_can_be(wire: bytes) -> None:
    with pytest.raises(FrameError):
        Receiving().feed(wire)


def test_a_frame_over_the_limit_is_an_error_before_it_arrives() -> None:
    receiving = Receiving(ReassemblyLimits(max_frame_bytes=100_000))
    receiving.feed(frame(1, PAYLOAD, NEXT, bytes(100_000 - 6)))
    with pytest.raises(FrameError, match="100001 bytes"):
        receiving.feed(frame(1, PAYLOAD, NEXT, bytes(100_001 - 6))[:9])


# One stream's payload at its sender: its fragments, and whether it is cancelled before the last of them.
_streams = st.lists(
    st.tuples(
        st.sampled_from([REQUEST_RESPONSE, REQUEST_FNF, REQUEST_CHANNEL]),
        st.lists(st.binary(max_size=30), min_size=1, max_size=6),
        st.booleans(),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(st.data(), _streams)
def test_reassembly_is_what_a_simple_model_says(
    data: st.DataObject, streams: list[tuple[int, list[bytes], bool]]
) -> None:
    limits = ReassemblyLimits(max_payload_bytes=60, max_connection_bytes=data.draw(st.sampled_from([inf, 2500])))
    budget = ReassemblyBudget(data.draw(st.sampled_from([inf, 3600])))
    receiving = Receiving(limits, budget)
    queues: dict[int, list[bytes]] = {}
    contents: dict[int, bytes] = {}
    for index, (kind, fragments, is_cancelled) in enumerate(streams):
        stream_id = 2 * index + 1
        last = len(fragments) - 1
        queue = queues[stream_id] = [
            request(stream_id, kind, None, fragment, flags=FOLLOWS if last else 0)
            if position == 0
            else frame(stream_id, PAYLOAD, NEXT | (0 if position == last else FOLLOWS), fragment)
            for position, fragment in enumerate(fragments)
        ]
        if is_cancelled and last:
            queue.insert(last, frame(stream_id, CANCEL))
        else:
            contents[stream_id] = b"".join(fragments)
    while pending := [stream_id for stream_id, queue in queues.items() if queue]:
        receiving.feed(queues[data.draw(st.sampled_from(pending))].pop(0))
        assert budget.used_bytes == receiving.reassembler.held_bytes
        assert receiving.reassembler.held_bytes <= (limits.max_connection_bytes or 10**9)
    refused = [refusal.stream_id for refusal in receiving.refused]
    assert len(refused) == len(set(refused)), "a stream is refused once"
    served = {got.stream_id: got.data for got in receiving.frames if not isinstance(got, CancelFrame)}
    too_large = {
        2 * index + 1
        for index, (_, fragments, is_cancelled) in enumerate(streams)
        if len(b"".join(fragments[: -1 if is_cancelled and len(fragments) > 1 else None])) > 60
    }
    by_size = {refusal.stream_id for refusal in receiving.refused if isinstance(refusal.error, TooLarge)}
    assert by_size <= too_large <= set(refused)
    assert served == {stream_id: content for stream_id, content in contents.items() if stream_id not in refused}
    assert receiving.reassembler.pending == 0
    assert budget.used_bytes == 0, "what ends gives back what it took"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.binary(max_size=50)), max_size=30), st.integers(0, 60))
def test_a_lost_connection_gives_its_budget_back(fragments: list[tuple[int, bool, bytes]], cut: int) -> None:
    budget = ReassemblyBudget(10_000)
    assert Receiving(None, budget).feed(half(1, 1000)).reassembler.held_bytes == budget.used_bytes
    others = budget.used_bytes
    receiving = Receiving(ReassemblyLimits(max_payload_bytes=100), budget)
    wire = b"".join(frame(stream, PAYLOAD, NEXT | (FOLLOWS if more else 0), data) for stream, more, data in fragments)
    receiving.feed(wire[: len(wire) - cut])
    receiving.reassembler.close()
    assert budget.used_bytes == others
    receiving.feed(wire[len(wire) - cut :])
    assert budget.used_bytes == others


def test_one_unfragmented_payload_is_refused_by_its_length_alone() -> None:
    receiving = Receiving(ReassemblyLimits(max_payload_bytes=1_000_000))
    receiving.feed(request(1, REQUEST_RESPONSE, None, bytes(16_000_000)))
    receiving.feed(request(3, REQUEST_RESPONSE, b"route", bytes(10)))
    assert [type(refusal.error) for refusal in receiving.refused] == [TooLarge]
    assert [got.stream_id for got in receiving.frames] == [3]
    assert receiving.largest_buffer <= 64 * 1024


def test_a_payload_of_exactly_the_limit_is_taken() -> None:
    limits = ReassemblyLimits(max_payload_bytes=100_000)
    receiving = Receiving(limits).feed(request(1, REQUEST_STREAM, b"route", bytes(99_995)))
    assert [len(got.data) for got in receiving.frames] == [99_995]
    assert Receiving(limits).feed(request(1, REQUEST_STREAM, b"route", bytes(99_996))).refused


def test_a_refused_payload_is_refused_once_and_kept_out() -> None:
    receiving = Receiving(ReassemblyLimits(max_payload_bytes=1000))
    receiving.feed(request(1, REQUEST_RESPONSE, None, bytes(900), flags=FOLLOWS))
    for _ in range(100):
        receiving.feed(frame(1, PAYLOAD, NEXT | FOLLOWS, bytes(900)))
        assert receiving.reassembler.held_bytes == 0
    receiving.feed(frame(1, PAYLOAD, NEXT, b"the last"))
    assert len(receiving.refused) == 1
    assert receiving.refused[0].kind == FrameType.REQUEST_RESPONSE
    assert receiving.frames == []


def test_the_newest_payload_beyond_the_connections_limit_is_refused() -> None:
    receiving = Receiving(ReassemblyLimits(max_connection_bytes=10_000))
    receiving.feed(request(1, REQUEST_RESPONSE, None, bytes(5000), flags=FOLLOWS))
    receiving.feed(request(3, REQUEST_RESPONSE, None, bytes(5000), flags=FOLLOWS))
    assert [(refusal.stream_id, type(refusal.error)) for refusal in receiving.refused] == [(3, ServerFull)]
    receiving.feed(frame(1, PAYLOAD, NEXT | COMPLETE, b"end"))
    assert [len(got.data) for got in receiving.frames] == [5003]
    assert receiving.reassembler.held_bytes == 0


def test_empty_and_tiny_fragments_count_with_what_they_cost() -> None:
    receiving = Receiving(ReassemblyLimits(max_connection_bytes=100_000))
    for stream_id in range(1, 1001, 2):
        receiving.feed(request(stream_id, REQUEST_RESPONSE, None, b"", flags=FOLLOWS))
    assert receiving.reassembler.pending < 100, "requests that never go on are limited"
    receiving = Receiving(ReassemblyLimits(max_connection_bytes=100_000))
    receiving.feed(request(1, REQUEST_RESPONSE, None, b"", flags=FOLLOWS))
    receiving.feed(frame(1, PAYLOAD, NEXT | FOLLOWS, b"x") * 10_000)
    assert len(receiving.refused) == 1


@pytest.mark.parametrize("cut", [3, 9, 12, 20, 70_000])
@pytest.mark.parametrize("kind", [REQUEST_RESPONSE, REQUEST_STREAM, PAYLOAD])
def test_a_large_payload_is_received_into_its_own_memory(kind: int, cut: int) -> None:
    content = bytes(range(256)) * 5_000
    wire = request(1, kind, b"some metadata", content, flags=NEXT if kind == PAYLOAD else 0)
    receiving = Receiving()
    receiving.feed(wire[:cut]).feed(wire[cut:-1])
    own = receiving.decoder._view
    assert len(own) == len(content), "no more than its data"
    assert receiving.decoder.received_of(1) == len(wire) - 1
    receiving.feed(wire[-1:]).feed(request(3, REQUEST_RESPONSE, None, b"next"))
    first, second = receiving.frames
    assert type(first.data) is bytes
    assert (first.data, first.metadata, second.data) == (content, b"some metadata", b"next")
    with pytest.raises(ValueError, match="released"):
        own[0] = 1


def in_fragments(stream_id: int, content: bytes, nbytes: int) -> list[bytes]:
    """A request's frames, with so many bytes in each."""
    parts = [content[start : start + nbytes] for start in range(0, len(content), nbytes)]
    first = request(stream_id, REQUEST_RESPONSE, b"some metadata", parts[0], flags=FOLLOWS)
    middle = [frame(stream_id, PAYLOAD, NEXT | FOLLOWS, part) for part in parts[1:-1]]
    return [first, *middle, frame(stream_id, PAYLOAD, NEXT, parts[-1])]


@pytest.mark.parametrize("cut", [9, 10, 70_000, 299_999, 2_000_000])
def test_fragments_of_large_payloads_are_received_where_they_are_joined(cut: int) -> None:
    contents = {1: bytes(range(256)) * 9_000, 3: bytes(reversed(range(256))) * 9_000}
    both = zip(*(in_fragments(stream_id, content, 300_000) for stream_id, content in contents.items()), strict=True)
    wire = b"".join(part for pair in both for part in pair)
    receiving = Receiving()
    for start in range(0, len(wire), cut):
        receiving.feed(wire[start : start + cut])
    assert {got.stream_id: got.data for got in receiving.frames} == contents
    assert all(got.metadata == b"some metadata" for got in receiving.frames)
    assert receiving.reassembler.held_bytes == 0


@pytest.mark.parametrize("arrived", [9, 100_000, 299_000])
@pytest.mark.parametrize("way", ["skipped", "abandoned", "evicted"])
def test_a_fragment_that_is_given_up_half_way_is_dropped(way: str, arrived: int) -> None:
    content = bytes(2_100_000)
    *begin, last = in_fragments(1, content, 300_000)
    receiving = Receiving().feed(b"".join(begin)).feed(last[:arrived])
    match way:
        case "skipped":
            receiving.reassembler._refuse_held(1, ServerFull("x"))
        case "abandoned":
            receiving.reassembler.on_sent(cancel(1))
        case _:
            receiving.reassembler.evict()
    receiving.feed(last[arrived:] + b"".join(in_fragments(3, content, 300_000)))
    assert [(got.stream_id, got.data) for got in receiving.frames] == [(3, content)]
    assert receiving.reassembler.held_bytes == 0


def test_a_kept_view_does_not_change_a_payload() -> None:
    content = bytes(3_000_000)
    wire = frame(1, PAYLOAD, NEXT, content)
    receiving = Receiving().feed(wire[:-1])
    kept = receiving.decoder.get_buffer()
    kept[0] = 0
    receiving.decoder.received(1)
    receiving.take()
    kept[0] = 1
    assert receiving.frames[0].data == content


@pytest.mark.parametrize("arrived", [9, 100, 1_000_000, 2_000_000])
def test_a_large_payload_that_is_given_up_is_skipped(arrived: int) -> None:
    receiving = Receiving()
    wire = request(1, REQUEST_RESPONSE, b"some metadata", bytes(2_000_000))
    receiving.feed(wire[:arrived])
    receiving.decoder.skip()
    assert len(receiving.decoder._view) <= 64 * 1024
    receiving.feed(wire[arrived:] + request(3, REQUEST_RESPONSE, None, b"next"))
    assert [got.stream_id for got in receiving.frames] == [3]


@pytest.mark.parametrize("nbytes", [1_500_000, 0xFFFFFF])
def test_a_large_frame_whose_metadata_goes_beyond_it_is_an_error(nbytes: int) -> None:
    wire = frame(1, PAYLOAD, NEXT | METADATA, nbytes.to_bytes(3, "big") + bytes(1_499_997))
    with pytest.raises(FrameError, match="beyond its end"):
        Receiving().feed(wire)


def test_a_control_frame_that_is_larger_than_the_buffer_counts() -> None:
    wire = frame(0, KEEPALIVE, 0, bytes(200_000))
    assert len(Receiving().feed(wire).frames) == 1
    with pytest.raises(FrameError, match="no room"):
        Receiving(ReassemblyLimits(max_connection_bytes=100_000)).feed(wire[:9])


def test_what_this_side_cancels_in_the_middle_of_a_frame_is_not_taken_for_whole() -> None:
    receiving = Receiving()
    receiving.feed(frame(1, PAYLOAD, NEXT | FOLLOWS, b"first"))
    last = frame(1, PAYLOAD, NEXT, bytes(100_000))
    receiving.feed(last[:50_000])
    receiving.reassembler.on_sent(cancel(1))
    receiving.feed(last[50_000:])
    assert receiving.frames == []
    assert receiving.reassembler.held_bytes == 0


def test_a_request_of_the_same_id_after_a_refused_one_is_a_new_one() -> None:
    receiving = Receiving(ReassemblyLimits(max_payload_bytes=10))
    receiving.feed(request(1, REQUEST_RESPONSE, None, bytes(11)))
    receiving.feed(request(1, REQUEST_RESPONSE, None, b"small"))
    assert [type(got) for got in receiving.frames] == [RequestResponseFrame]
    assert not any(isinstance(got, PayloadFrame) for got in receiving.frames)


def test_a_buffer_that_served_a_larger_frame_is_full_where_its_frame_says() -> None:
    receiving = Receiving().feed(frame(1, PAYLOAD, NEXT, bytes(900_000)))
    small = frame(1, PAYLOAD, NEXT, bytes(100_000))
    receiving.feed(small[:9])
    receiving.feed(small[9:] + small * 3, taking=False)
    receiving.take()
    assert len(receiving.frames) == 5


# All connections together


class Peers:
    """Connections that share a budget, at a time that stands still between two ticks."""

    def __init__(self, max_bytes: int, count: int, limits: ReassemblyLimits | None = None) -> None:
        self.now = 0.0
        self.budget = ReassemblyBudget(max_bytes, clock=lambda: self.now)
        self.all = [Receiving(limits, self.budget) for _ in range(count)]

    def advance(self, seconds: float = 0.5) -> None:
        """What a server does twice a second."""
        self.now += seconds
        for one in self.all:
            one.reassembler.check(30)
            one.take()

    def held(self) -> list[int]:
        self.check()
        return [one.reassembler.held_bytes for one in self.all]

    def refused(self) -> list[list[tuple[int, str]]]:
        """What each was refused since the last call."""
        refused: list[list[tuple[int, str]]] = []
        for one in self.all:
            one.take()
            refused.append([(refusal.stream_id, refusal.error.code) for refusal in one.refused])
            one.refused.clear()
        return refused

    def check(self) -> None:
        """What is true after every step."""
        held = [one.reassembler.held_bytes for one in self.all]
        assert self.budget.used_bytes == sum(held)
        assert self.budget.used_bytes <= self.budget.max_bytes
        assert self.budget._holders == {one.reassembler for one, nbytes in zip(self.all, held, strict=True) if nbytes}
        assert self.budget._slow_bytes == sum(self.budget._slow.values())
        assert self.budget._slow.keys() <= self.budget._holders
        for one, nbytes in zip(self.all, held, strict=True):
            partials = one.reassembler._partials.values()
            # What is joined or stored is neither; these connections do that at once.
            incoming = 0 if one.reassembler._incoming is None else one.reassembler._incoming.cost
            counted = incoming + sum(partial.cost for partial in partials)
            assert one.reassembler.evictable_bytes == nbytes == counted
            assert one.reassembler.pending_requests == sum(partial.is_request for partial in partials)
            large = one.decoder._view is not one.decoder._small
            assert not large or incoming, "a large buffer counts"


def half(stream_id: int, nbytes: int) -> bytes:
    return request(stream_id, REQUEST_RESPONSE, None, bytes(nbytes), flags=FOLLOWS)


def more(stream_id: int, nbytes: int) -> bytes:
    return frame(stream_id, PAYLOAD, NEXT | FOLLOWS, bytes(nbytes))


def test_the_largest_of_the_slow_ones_makes_room() -> None:
    peers = Peers(1_000_000, 4)
    small, large, fast, newcomer = peers.all
    small.feed(half(1, 200_000))
    large.feed(half(1, 100_000) + half(3, 150_000))
    fast.feed(half(1, 10_000))
    for _ in range(3):
        peers.advance()
        fast.feed(more(1, 100_000))
    newcomer.feed(half(1, 300_000))
    assert peers.held()[1] == 0
    assert peers.refused() == [[], [(1, "server_full"), (3, "server_full")], [], []]
    large.feed(more(1, 70_000) + more(3, 10) + half(5, 10))
    assert peers.refused() == [[]] * 4
    assert peers.held()[1] == 1024 + 10


def test_the_holder_of_far_more_makes_room_where_no_peer_is_slow() -> None:
    peers = Peers(1_000_000, 3)
    large, small, newcomer = peers.all
    large.feed(half(1, 700_000))
    small.feed(half(1, 250_000))
    newcomer.feed(half(1, 400_000))
    assert peers.refused() == [[], [], [(1, "server_full")]], "no peer holds twice as much"
    newcomer.feed(half(3, 300_000))
    assert peers.refused() == [[(1, "server_full")], [], []]
    assert peers.held() == [0, 251_024, 301_024]


def test_no_more_is_taken_from_the_slow_than_helps() -> None:
    peers = Peers(1_000_000, 4)
    slow, *fast, newcomer = peers.all
    slow.feed(half(1, 50_000))
    for one in fast:
        one.feed(half(1, 400_000))
    for _ in range(3):
        peers.advance()
        for one in fast:
            one.feed(more(1, 20_000))
        for one in fast:
            assert not one.reassembler.is_slow(peers.now + 0.01) or not peers.now
    newcomer.feed(half(1, 300_000))
    assert peers.refused() == [[], [], [], [(1, "server_full")]]


def test_a_flood_of_refused_frames_looks_at_everybody_now_and_then() -> None:
    peers = Peers(1_000_000, 3)
    for one in peers.all[:2]:
        one.feed(half(1, 490_000))
    looks = 0
    rank = peers.budget._rank

    def counted(now: float) -> None:
        nonlocal looks
        looks += 1
        rank(now)

    peers.budget._rank = counted  # type: ignore[method-assign]
    for stream_id in range(1, 2001, 2):
        peers.now += 0.001
        peers.all[2].feed(half(stream_id, 300_000))
    assert peers.refused()[2] == [(stream_id, "server_full") for stream_id in range(1, 2001, 2)]
    assert looks <= 1 + 1.0 / 0.1
    peers.all[2].feed(half(2001, 100_000))
    assert peers.held()[2] == 101_024, "a peer that asks for less is read all the same"


def test_a_frame_that_is_arriving_makes_room_and_its_rest_is_skipped() -> None:
    peers = Peers(1_000_000, 2)
    silent, newcomer = peers.all
    wire = request(1, REQUEST_RESPONSE, None, bytes(900_000))
    silent.feed(wire[:100_000])
    assert len(silent.decoder._view) >= 900_000
    newcomer.feed(half(1, 300_000))
    assert len(silent.decoder._view) <= 64 * 1024
    assert peers.refused() == [[(1, "server_full")], []]
    silent.feed(wire[100_000:] + request(3, REQUEST_RESPONSE, None, b"next"))
    assert [got.stream_id for got in silent.frames] == [3]


def test_a_control_frame_that_is_arriving_makes_room_and_ends_its_connection() -> None:
    peers = Peers(1_000_000, 2)
    silent, newcomer = peers.all
    silent.feed(frame(0, KEEPALIVE, 0, bytes(900_000))[:100])
    newcomer.feed(half(1, 300_000))
    assert peers.held() == [0, 301_024]
    assert [error.code for error in silent.refused_frames] == ["server_full"]


def test_a_frame_of_a_later_protocol_counts_nothing() -> None:
    peers = Peers(1_000_000, 1)
    for _ in range(20):
        peers.all[0].feed(frame(3, 0x3D, IGNORE, bytes(100_000)))
        assert peers.held() == [0]


def test_items_of_a_payload_that_was_half_there_when_its_connection_ended_are_not_taken_for_whole() -> None:
    receiving = Receiving()
    receiving.feed(frame(1, PAYLOAD, NEXT | FOLLOWS, b"first"))
    receiving.reassembler.close()
    receiving.feed(frame(1, PAYLOAD, NEXT, b"last") + frame(3, PAYLOAD, NEXT | FOLLOWS, b"first"))
    assert receiving.frames == []
    assert receiving.reassembler.pending == 0


class Memory:
    """A spool that keeps what it is given."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.is_abandoned = False

    async def write(self, chunks: Sequence[bytes]) -> None:
        self.chunks += chunks

    def abandon(self) -> None:
        self.is_abandoned = True


def test_what_waits_for_a_spool_counts_until_it_is_stored() -> None:
    spool = Memory()

    class Rules(PayloadRules):
        def spool(self, request: FragmentableFrame, metadata: bytes) -> Spool:
            return spool

    reassembler = Reassembler(budget=(budget := ReassemblyBudget()), rules=Rules())
    fragment = b"x" * 100
    due = []
    for number in range(20_000):
        header = FrameHeader(1, FrameType.PAYLOAD if number else FrameType.REQUEST_RESPONSE, 0x80, 106)
        assert reassembler.admit(header)
        got = PayloadFrame() if number else RequestResponseFrame()
        got.stream_id, got.flags_follows, got.data, got.metadata = 1, number < 19_999, fragment, b""
        if (part := reassembler.feed(got)) is not None:
            assert isinstance(part, SplitPayload)
            before = reassembler.held_bytes
            due += part.take_data()
            assert reassembler.held_bytes == before < 1024 + 512 * 1024 + 200
            assert reassembler.evictable_bytes in (0, 1024), "what is being stored can't be taken away"
            reassembler.release(part)
            assert budget.used_bytes == reassembler.held_bytes == (0 if part.is_whole else 1024)
    assert due == [fragment] * 20_000
    assert not spool.is_abandoned


# What peers do, and what time does, in any order.
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 3), st.integers(1, 6), st.sampled_from([0, 1, 500, 70_000, 200_000])),
        st.tuples(st.just("end"), st.integers(0, 3), st.integers(1, 6), st.sampled_from([0, 500, 70_000])),
        st.tuples(st.just("half a frame"), st.integers(0, 3), st.integers(1, 6), st.sampled_from([70_000, 300_000])),
        st.tuples(st.just("keepalive"), st.integers(0, 3), st.just(0), st.sampled_from([10, 100_000])),
        st.tuples(st.sampled_from(["cancel", "sent", "close"]), st.integers(0, 3), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("advance"), st.just(0), st.just(0), st.sampled_from([0, 1, 30])),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(_steps, st.sampled_from([ReassemblyLimits(), ReassemblyLimits(300_000, 400_000, max_streams=4)]))
def test_the_accounts_are_right_after_every_step(
    steps: list[tuple[str, int, int, int]], limits: ReassemblyLimits
) -> None:
    peers = Peers(600_000, 4, limits)
    rests = [b""] * 4
    closed: set[int] = set()
    ended: set[int] = set()
    for kind, at, stream_id, nbytes in (step for step in steps if step[1] not in ended):
        one, rest = peers.all[at], rests[at]
        is_begun = stream_id in one.reassembler._partials
        rests[at] = b""
        if rest:
            one.feed(rest)  # a frame can't be left half-sent for another
        elif kind == "advance":
            peers.advance(nbytes + 0.5)
            rests[at] = rest
        elif kind == "close":
            one.reassembler.close()
            closed.add(at)
        elif kind == "sent":
            one.reassembler.on_sent(cancel(stream_id))
        elif kind == "cancel":
            one.feed(frame(stream_id, CANCEL))
        elif kind == "keepalive" and at not in closed:
            try:
                one.feed(frame(0, KEEPALIVE, 0, bytes(nbytes)))
            except FrameError:
                one.reassembler.close()
                ended.add(at)  # in the middle of a frame
        elif kind == "half a frame":
            wire = more(stream_id, nbytes) if is_begun else half(stream_id, nbytes)
            one.feed(wire[: nbytes // 2])
            rests[at] = wire[nbytes // 2 :]
        elif kind in ("send", "end"):
            is_first = not is_begun and kind == "send"
            flags = FOLLOWS if kind == "send" else 0
            one.feed(half(stream_id, nbytes) if is_first else frame(stream_id, PAYLOAD, NEXT | flags, bytes(nbytes)))
        peers.check()
        for refused in peers.refused():
            assert len({stream for stream, _ in refused}) == len(refused), "a payload is refused once"
    for one in peers.all:
        one.reassembler.close()
    peers.check()
    assert peers.budget.used_bytes == 0


# Frames whose data goes to a spool are taken in by slices


class Spooling(PayloadRules):
    """Stores the data of every request-response."""

    def __init__(self) -> None:
        self.spools_made: list[Memory] = []
        self.refused: list[TransferError] = []

    @property
    def spools(self) -> bool:
        return True

    def spool(self, request: FragmentableFrame, metadata: bytes) -> Spool:
        self.spools_made.append(Memory())
        return self.spools_made[-1]

    def on_refused(self, stream_id: int, kind: int, error: TransferError) -> None:
        self.refused.append(error)


def slices(wire: bytes, step: int, rules: Spooling, budget: ReassemblyBudget) -> tuple[list[Frame], int]:
    """The whole frames that are received, what is stored of others being stored at once, and the most that was held."""
    reassembler = Reassembler(budget=budget, rules=rules)
    decoder, frames, most, at = FrameDecoder(reassembler), list[Frame](), 0, 0
    while at < len(wire) or decoder.is_ready:
        if not decoder.is_full and at < len(wire):
            room = decoder.get_buffer()[:step]
            part = wire[at : at + len(room)]
            room[: len(part)] = part
            decoder.received(len(part))
            at += len(part)
        while decoder.is_ready:
            got = decoder.take()
            most = max(most, reassembler.held_bytes)
            if isinstance(got, SplitPayload):
                assert isinstance(got.spool, Memory)
                got.spool.chunks += got.take_data()
                reassembler.release(got)
                got = got.join() if got.is_whole else None
            if got is not None:
                frames.append(got)
    assert not reassembler.held_bytes
    return frames, most


@pytest.mark.parametrize("step", [1_000, 65_537, 3_000_000])
@pytest.mark.parametrize("room", [inf, 500_000])
def test_a_long_frame_for_a_spool_is_taken_in_by_slices(step: int, room: float) -> None:
    content = bytes(range(256)) * 20_000  # 5 MB
    rules, budget = Spooling(), ReassemblyBudget(room)
    if room != inf:
        budget.take(300_000, Reassembler(budget=budget))  # another connection's
    wire = (
        request(1, REQUEST_RESPONSE, b"some metadata", content)
        + request(3, REQUEST_RESPONSE, b"more", content[:3_000_001], flags=FOLLOWS)
        + frame(3, PAYLOAD, NEXT | FOLLOWS, content[3_000_001:4_500_000])
        + frame(3, PAYLOAD, NEXT, content[4_500_000:])
        + request(5, REQUEST_RESPONSE, None, b"next")
    )
    frames, most = slices(wire, step, rules, budget)
    assert [got.stream_id for got in frames] == [1, 3, 5]
    assert [got.metadata for got in frames] == [b"some metadata", b"more", b""]
    assert [b"".join(spool.chunks) for spool in rules.spools_made] == [content, content]
    assert most < min(2_200_000, room)
    assert rules.refused == []


@pytest.mark.parametrize("step", [1_000, 3_000_000])
def test_the_rest_of_a_refused_slice_is_skipped(step: int) -> None:
    rules = Spooling()
    wire = request(1, REQUEST_RESPONSE, bytes(2_000_000), bytes(2_000_000)) + request(3, REQUEST_RESPONSE, None, b"x")
    frames, most = slices(wire, step, rules, ReassemblyBudget())
    assert [got.stream_id for got in frames] == [3]
    assert [type(error) for error in rules.refused] == [TooLarge]
    assert most < 2_200_000


def test_a_slice_that_lies_about_its_metadata_is_an_error() -> None:
    wire = frame(1, REQUEST_RESPONSE, METADATA, b"\xff\xff\xff" + bytes(3_000_000))
    with pytest.raises(FrameError, match="beyond its end"):
        slices(wire, 100_000, Spooling(), ReassemblyBudget())
