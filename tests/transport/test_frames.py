"""What goes out is what rsocket would send, byte for byte."""

from hypothesis import given
from hypothesis import strategies as st
from rsocket.frame import (
    ErrorFrame,
    Frame,
    PayloadFrame,
    RequestResponseFrame,
    RequestStreamFrame,
    serialize_prefix_with_frame_size_header,
)

from shared.frames.codec import serialize_head

CONTENT = st.one_of(st.none(), st.binary(max_size=300), st.binary(max_size=300).map(memoryview))


def make(
    kind: type[Frame], stream_id: int, data: bytes | None, metadata: bytes | None, flags: tuple[bool, ...]
) -> Frame:
    frame = kind()
    frame.stream_id, frame.data, frame.metadata = stream_id, data, metadata
    frame.flags_ignore, frame.flags_follows, frame.flags_complete = flags[:3]
    if isinstance(frame, PayloadFrame):
        frame.flags_next = flags[3]
    if isinstance(frame, RequestStreamFrame):
        frame.initial_request_n = 7
    if isinstance(frame, ErrorFrame):
        frame.error_code = 0x201
    return frame


def assert_same_head(ours: Frame, theirs: Frame) -> None:
    """Asserts that both are the same up to their metadata and data, the length before the frame included."""
    head = serialize_head(ours)
    assert ours.length.to_bytes(3, "big") + head == serialize_prefix_with_frame_size_header(theirs)
    assert ours.length == theirs.length


@given(
    st.sampled_from([PayloadFrame, RequestResponseFrame, RequestStreamFrame, ErrorFrame]),
    st.integers(0, 2**31 - 1),
    CONTENT,
    CONTENT,
    st.tuples(*[st.booleans()] * 4),
)
def test_a_head_is_rsockets(
    kind: type[Frame], stream_id: int, data: bytes | None, metadata: bytes | None, flags: tuple[bool, ...]
) -> None:
    ours, theirs = (make(kind, stream_id, data, metadata, flags) for _ in range(2))
    assert_same_head(ours, theirs)


def test_a_long_head_is_rsockets() -> None:
    ours, theirs = (make(PayloadFrame, 1, bytes(2**24 - 100), b"m", (False,) * 4) for _ in range(2))
    assert_same_head(ours, theirs)
