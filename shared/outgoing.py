"""Frames that can be taken back while they wait in rsocket's send queue."""

from collections.abc import Callable

from rsocket.frame import FragmentableFrame, Frame, FrameFragmentMixin

__all__ = ["OutgoingFrame"]


class OutgoingFrame(FrameFragmentMixin):
    """A payload or request on its way out, which rsocket sends a fragment at a time.

    rsocket 0.4.20 sends every fragment of a request, and of a response, even after it was cancelled. Its sender asks
    each queued item for the next fragment; once withdrawn, this one answers with `replacement`, which ends it.

    Args:
        frame: What to send.
        replacement: What is sent instead of the rest, once withdrawn; a frame that isn't followed by fragments.
        on_sent: Called when the last fragment is handed to the transport; not after a withdrawal.
    """

    def __init__(self, frame: FragmentableFrame, replacement: Frame, on_sent: Callable[[], None] | None = None) -> None:
        self._frame = frame
        self._replacement = replacement
        self._on_sent = on_sent
        self._withdrawn = False
        self._sent = False

    @property
    def is_sent(self) -> bool:
        """Whether nothing is left to be sent of it, or to be withdrawn."""
        return self._sent

    def withdraw(self) -> bool:
        """Gives up what isn't sent yet; False if all of it is on its way already."""
        if self._sent:
            return False
        self._withdrawn = True
        return True

    def get_next_fragment(self, requires_length_header: bool = True) -> Frame | None:
        """The next frame for the transport; None when there is none. Called by rsocket's sender."""
        if self._sent:
            return None
        if self._withdrawn:
            self._sent = True
            return self._replacement
        fragment = self._frame.get_next_fragment(requires_length_header)
        assert fragment is not None, "rsocket asks again only after a fragment that is followed by another"
        if not fragment.flags_follows:
            self._sent = True
            if self._on_sent is not None:
                self._on_sent()
        return fragment
