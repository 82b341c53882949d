"""What a connection decides about its peer's payloads, and what it is notified of."""

import math

from rsocket.frame import FragmentableFrame

from ..errors import TransferError
from .fragments import Spool

__all__ = ["PayloadRules"]


class PayloadRules:
    """A connection's decisions; these defaults accept everything."""

    def spool(self, request: FragmentableFrame, metadata: bytes) -> Spool | None:
        """Decides from a split request's first frame and its whole metadata where its data goes; None is memory."""
        return None

    def count_streams(self) -> int:
        """How many streams are open."""
        return 0

    def max_payload_bytes(self, stream_id: int) -> float:
        """How large a split payload of a stream may become; 0 if nothing waits for one, and it is dropped."""
        return math.inf

    def on_refused(self, stream_id: int, kind: int, error: TransferError) -> None:
        """A payload, which began with a frame of this `FrameType`, is over a limit or has stalled.

        Nothing of it is kept, and what follows of it is dropped. Its sender is to be notified.
        """

    def on_frame_refused(self, error: TransferError) -> None:
        """A frame that is no payload was refused while it arrived; the connection can't go on."""
