"""Splitting what is sent: the parts are the whole, fit their frames, and aren't copies."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rsocket.frame import FragmentableFrame, Frame, RequestResponseFrame, serialize_with_frame_size_header
from rsocket.frame_builders import to_payload_frame, to_request_channel_frame, to_request_response_frame
from rsocket.payload import Payload

from shared.frames.outbox import SkippedFrame
from shared.frames.outgoing import OutgoingFrame
from tests.transport.pairs import seen
from tests.transport.test_receiving import Receiving


def _fragments(frame: FragmentableFrame) -> list[Frame]:
    outgoing = OutgoingFrame(frame, SkippedFrame())
    fragments: list[Frame] = []
    while (fragment := outgoing.get_next_fragment()) is not None:
        assert not outgoing.is_sent or not fragment.flags_follows
        fragments.append(fragment)
    assert outgoing.is_sent
    assert not outgoing.withdraw()
    return fragments


_contents = st.integers(0, 400).map(lambda size: bytes(position % 251 for position in range(size)))


@given(_contents, _contents, st.integers(64, 200), st.sampled_from("rcp"))
def test_the_fragments_are_the_whole(metadata: bytes, data: bytes, size: int, kind: str) -> None:
    content = Payload(data, metadata)
    frame: FragmentableFrame
    if kind == "r":
        frame = to_request_response_frame(1, content, size)
    elif kind == "c":
        frame = to_request_channel_frame(1, content, size, 5, complete=True)
    else:
        frame = to_payload_frame(1, content, True, True, size)
    expected = (type(frame), 1, metadata, data, None)
    wire = [serialize_with_frame_size_header(fragment) for fragment in _fragments(frame)]
    assert all(len(fragment) <= size for fragment in wire)
    receiving = Receiving().feed(b"".join(wire))
    assert [seen(got) for got in receiving.frames] == [expected]
    assert getattr(receiving.frames[0], "flags_complete", True) is not (kind == "r")


def test_a_small_payload_is_sent_as_it_is() -> None:
    frame = to_payload_frame(1, Payload(b"data"), True, True, 1_000_000)
    assert _fragments(frame) == [frame]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_nothing_is_copied(kind: type[bytes]) -> None:
    content = kind(bytes(20_000_000))
    tracemalloc.start()
    try:
        count = sum(1 for _ in _fragments(to_request_response_frame(1, Payload(content), 1_000_000)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 21
    assert peak < 200_000


def test_what_is_withdrawn_is_replaced_once() -> None:
    heard: list[str] = []
    replacement = SkippedFrame()
    outgoing = OutgoingFrame(
        to_request_response_frame(1, Payload(bytes(1000)), 100), replacement, lambda: heard.append("sent")
    )
    first = outgoing.get_next_fragment()
    assert isinstance(first, RequestResponseFrame)
    assert first.flags_follows
    assert outgoing.withdraw()
    assert outgoing.get_next_fragment() is replacement
    assert outgoing.get_next_fragment() is None
    assert heard == []
