"""Frames that can be withdrawn while they wait in the send queue, and are split without a copy of their payload."""

from collections.abc import Callable, Iterator

from rsocket.fragment import Fragment
from rsocket.frame import FragmentableFrame, Frame, FrameFragmentMixin, get_header_length, new_frame_fragment
from rsocket.frame_builders import to_cancel_frame

__all__ = ["OutgoingFrame"]


class OutgoingFrame(FrameFragmentMixin):
    """A payload or request that waits to be sent, a fragment at a time.

    rsocket 0.4.20 sends every fragment of a request, and of a response, even after it was cancelled. A sender asks each
    entry of its queue for the next fragment; once withdrawn, this one gives `replacement`, which ends it.

    Args:
        frame: What to send, or a fragment; its `fragment_size_bytes` is the most that one frame and its length field
            may take.
        replacement: What is sent instead of the rest, once withdrawn: one frame. A CANCEL of the stream if None.
        on_sent: Called when the last fragment is handed to the transport; not after a withdrawal.

    Attributes:
        fragments: How many fragments were handed to the transport so far.
        is_sent: Whether nothing is left to be sent of it, or to be withdrawn.
    """

    def __init__(
        self, frame: FragmentableFrame, replacement: Frame | None = None, on_sent: Callable[[], None] | None = None
    ) -> None:
        self.fragments = 0
        self.is_sent = False
        self._frame: Frame = frame
        self._rest = None if _fits(frame) else _split(frame)  # None: the frame is the only one
        self._replacement = replacement
        self._on_sent = on_sent

    def withdraw(self) -> bool:
        """Gives up what isn't sent yet; False if all of it was handed to the transport already."""
        if self.is_sent:
            return False
        self._frame = self._replacement or to_cancel_frame(self._frame.stream_id)
        self._rest = self._on_sent = None  # which may hold this: a reference cycle
        return True

    def get_next_fragment(self, requires_length_header: bool = True) -> Frame | None:
        """The next frame for the transport; None when there is none."""
        if self.is_sent:
            return None
        fragment = self._frame if self._rest is None else next(self._rest)
        self.fragments += 1
        if self._rest is None or not fragment.flags_follows:
            self.is_sent = True
            on_sent, self._on_sent = self._on_sent, None
            if on_sent is not None:
                on_sent()
        return fragment


def _overhead(frame: FragmentableFrame) -> int:
    """What a frame has beside its payload: the length fields of the frame and of its metadata count, too."""
    return get_header_length(frame) + 3 + (3 if frame.metadata else 0)


def _fits(frame: FragmentableFrame) -> bool:
    """Whether the frame is small enough to be sent as it is."""
    most = frame.fragment_size_bytes
    return most is None or _overhead(frame) + len(frame.metadata or b"") + len(frame.data or b"") <= most


def _split(frame: FragmentableFrame) -> Iterator[Frame]:
    """The fragments of a frame that is too large, metadata first, as views into its payload."""
    assert frame.fragment_size_bytes is not None, "it is too large"
    overhead = _overhead(frame)
    metadata, data = memoryview(frame.metadata or b""), memoryview(frame.data or b"")
    room = frame.fragment_size_bytes - overhead
    is_first = True
    while True:
        metadata_part, metadata = metadata[:room], metadata[room:]
        room -= len(metadata_part)
        data_part, data = data[:room], data[room:]
        is_last = not metadata and not data
        yield new_frame_fragment(frame, Fragment(data_part, metadata_part, is_last=is_last, is_first=is_first))
        if is_last:
            return
        is_first = False
        room = frame.fragment_size_bytes - overhead
