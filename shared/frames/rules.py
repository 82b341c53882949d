"""What a connection decides about its peer's payloads, and what it is notified of."""

import math

from rsocket.error_codes import ErrorCode
from rsocket.frame import FragmentableFrame

from ..errors import TransferError
from .codec import FrameHeader
from .fragments import Reservation, Spool

__all__ = ["PayloadRules"]


class PayloadRules:
    """A connection's decisions; these defaults accept everything."""

    @property
    def failure_code(self) -> ErrorCode:
        """What the peer gets for bytes that are no frame."""
        return ErrorCode.CONNECTION_ERROR

    def expects(self, header: FrameHeader) -> bool:
        """Whether a frame may come now; if not, it is ignored. Not asked for small whole frames of streams."""
        return True

    def on_ignored(self, stream_id: int, kind: int) -> None:
        """A frame was ignored that makes no sense, or no sense any more; `kind` is its `FrameType`."""

    def on_active(self) -> None:
        """Something has come to a transport that was quiet, and is handled next; see `Transport.become_quiet`."""

    @property
    def spools(self) -> bool:
        """Whether there are requests whose data goes elsewhere than into memory; see `spool`."""
        return False

    def spool(self, request: FragmentableFrame, metadata: bytes) -> Spool | Reservation | None:
        """Decides from a split request's first frame and its whole metadata where its data goes, or counts.

        None is memory, and no more than the limits here.
        """
        return None

    def count_streams(self) -> int:
        """How many streams are open."""
        return 0

    def max_payload_bytes(self, stream_id: int) -> float:
        """How large a payload of an open stream may become; 0 if the stream takes none, or isn't open."""
        return math.inf

    def on_refused(self, stream_id: int, kind: int, error: TransferError) -> None:
        """A payload, which began with a frame of this `FrameType`, is over a limit or has stalled.

        Nothing of it is kept, and what follows of it is dropped. Its sender is to be notified.
        """

    def on_frame_refused(self, error: TransferError) -> None:
        """A frame that is no payload was refused while it arrived; the connection can't go on."""
