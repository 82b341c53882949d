"""The logic of a transfer without I/O: which items may be sent, which bytes come next, and when all of them are there.

Both ends keep one ledger of a transfer's demand: the sender a `Credit`, the receiver a `Demand`. Two threads may use it
at once: the event loop's, and that of the file lane (see `shared.files.lane`). Each counter has one writer, so no lock
is needed, and nothing is ever undone: an item is counted when it is sent, or has arrived.
"""

import math
from typing import Final

from ..errors import IntegrityError, InvalidRequest, ProtocolError
from .digest import Digest, algorithm_of
from .messages import ChunkHead, DownloadRequest, Receipt, UploadEnd
from .wire import FileInfo

__all__ = [
    "DEFAULT_WINDOW",
    "MAX_WINDOW_BYTES",
    "WIDEST_WINDOW",
    "Credit",
    "Demand",
    "RangeReceiver",
    "UploadReceiver",
    "UploadSender",
]

DEFAULT_WINDOW: Final = 16
"""Items that a sender may be ahead of its consumer: 4 MiB of 256 KiB chunks, which hides a round trip of some ms.

All of them may wait in the receiver's memory while its disk is slow, so this also bounds that memory. Where the caller
gives no window, it is this at first, and adapts to the line."""

WIDEST_WINDOW: Final = 128
"""The most items that a sender may be ahead if the window adapts: 64 MiB of a file, which 640 MB/s need at 100 ms.

They are on the line and in sockets. What of them waits in memory is bounded by other means: the connection isn't read
from while that is too much, or the window has less than this."""

MAX_WINDOW_BYTES: Final = 64 * 1024 * 1024
"""The widest window of an uploading client, if the server leads it there; more if the caller has said so."""

MAX_REQUEST_N: Final = 0x7FFFFFFF
"""The most items that one REQUEST_N frame can ask for."""


class Credit:
    """The sender's ledger: what the peer has asked for, and what was sent of it.

    Args:
        window_bytes: How many bytes may be sent that the peer hasn't confirmed; no limit where it never confirms.

    Attributes:
        granted: Items that the peer has asked for; written by the event loop.
        taken: Items that were sent; written by the thread that sends.
        sent_bytes: Bytes in those items; written by that thread.
        confirmed_bytes: Bytes that the peer has confirmed; written by the event loop.
        window_bytes: See above; may be changed by the event loop.
    """

    __slots__ = ("confirmed_bytes", "granted", "sent_bytes", "taken", "window_bytes")

    def __init__(self, window_bytes: float = math.inf) -> None:
        self.window_bytes = window_bytes
        self.granted = self.taken = 0
        self.sent_bytes = self.confirmed_bytes = 0

    @property
    def available(self) -> int:
        """Items that were requested and not sent; 0 while the window is full. Look again before each item."""
        is_open = self.sent_bytes - self.confirmed_bytes < self.window_bytes
        return self.granted - self.taken if is_open else 0

    def grant(self, items: int) -> None:
        """Adds what the peer has requested."""
        self.granted = min(self.granted + max(items, 0), self.taken + MAX_REQUEST_N)

    def take(self, nbytes: int) -> None:
        """Counts an item that is sent."""
        assert self.granted > self.taken, "ask `available` first"
        self.taken += 1
        self.sent_bytes += nbytes


class Demand:
    """The receiver's ledger: at most `window` items are requested that the consumer isn't done with.

    Credit is replenished when half of the window was consumed, so that the sender doesn't run dry for a round trip.
    The window stays as it is; `shared.protocol.adaptive` has one that adapts to the line.

    Args:
        window: Items, 1 or more.
        requested: How many are requested at the start; all of the window if None.

    Attributes:
        requested: Items that were requested; written by the event loop.
        arrived: Items that arrived; written by the thread that receives.
        consumed: Items that the consumer is done with; written by the event loop.
        window: See above; written by the event loop.
    """

    __slots__ = ("arrived", "consumed", "requested", "window")

    def __init__(self, window: int, requested: int | None = None) -> None:
        if not 1 <= window <= MAX_REQUEST_N:
            raise ValueError(f"a window has 1 to {MAX_REQUEST_N} items, not {window}")
        self.window = window
        self.requested = window if requested is None else requested
        self.arrived: int = 0
        self.consumed: int = 0

    @property
    def outstanding(self) -> int:
        """Items that were requested and haven't arrived."""
        return self.requested - self.arrived

    @property
    def missing(self) -> int:
        """Items that may be requested now."""
        return self.window - (self.requested - self.consumed)

    @property
    def batch(self) -> int:
        """Items that are requested together, or more."""
        return (self.window + 1) // 2

    def on_arrived(self, items: int = 1) -> None:
        """Counts items that arrived; raises ProtocolError if they weren't requested."""
        if items > self.outstanding:
            raise ProtocolError("the peer sent more items than were requested")
        self.arrived += items

    def on_consumed(self, items: int = 1) -> int:
        """Counts items that the consumer is done with; returns how many to request now, often 0."""
        self.consumed += items
        return self._request_more()

    def end(self) -> None:
        """Nothing more arrives; what has arrived is still consumed."""

    def _request_more(self) -> int:
        missing = self.missing
        if missing < self.batch:
            return 0
        self.requested += missing
        return missing


class RangeReceiver:
    """The client's side of one download attempt: accepts exactly the range that was asked for.

    Args:
        name: The file that was asked for.
        request: What was asked for.

    Attributes:
        head: What the server said with the first item, or with the last once it has arrived; None before the first.
    """

    def __init__(self, name: str, request: DownloadRequest) -> None:
        self.head: ChunkHead | None = None
        self._name = name
        self._request = request
        self._received = 0

    @property
    def offset(self) -> int:
        """Where in the file the next byte belongs."""
        return self._request.offset + self._received

    @property
    def received(self) -> int:
        """Bytes that have arrived."""
        return self._received

    def on_head(self, head: ChunkHead) -> None:
        """Takes what an item says beside its bytes.

        Raises:
            ProtocolError: It contradicts the request, or what was said before.
        """
        request, first = self._request, self.head
        wanted = head.info.size - request.offset
        if request.length is not None:
            wanted = min(wanted, request.length)
        if head.info.name != self._name or head.offset != request.offset or head.length != wanted:
            raise ProtocolError("the server sends another file or range than was asked for", name=self._name)
        if request.if_match is not None and head.info.etag != request.if_match:
            raise ProtocolError("the server sends another file than `if_match` names", name=self._name)
        if first is not None and (first.info.size, first.info.etag) != (head.info.size, head.info.etag):
            raise ProtocolError("the server's first and last item are of different files", name=self._name)
        self.head = head

    def on_bytes(self, nbytes: int) -> None:
        """Counts an item's bytes; called before they are written, by the thread that receives them.

        Raises:
            ProtocolError: There was no head, so their file and range are unknown.
            IntegrityError: There are more than announced.
        """
        if self.head is None:
            raise ProtocolError("the first item of a download must say which file and range it is", name=self._name)
        received = self._received + nbytes
        if received > self.head.length:
            raise IntegrityError(
                f"{self._name!r}: {received} bytes arrived, {self.head.length} were announced", name=self._name
            )
        self._received = received

    def complete(self, digest: Digest | None) -> FileInfo:
        """Verifies the range when the stream has completed; returns the file's info.

        Args:
            digest: Of the bytes from `request.digest_from` to the range's end; None for no verification.

        Raises:
            ProtocolError: There was no item, or no digest to verify with.
            IntegrityError: Bytes are missing, or aren't those that were sent.
        """
        head = self.head
        if head is None:
            raise ProtocolError("the download completed without an item", name=self._name)
        if self._received != head.length:
            raise IntegrityError(
                f"{self._name!r}: the download ended after {self._received} of {head.length} bytes", name=self._name
            )
        if digest is not None:
            if head.range_digest is None:
                raise ProtocolError("the server sent no digest to verify the download with", name=self._name)
            if head.range_digest != (got := digest.text()):
                raise IntegrityError(
                    f"{self._name!r}: the digest is {got}, it should be {head.range_digest}", name=self._name
                )
        return head.info


class UploadSender:
    """The client's side of one upload attempt: the receipts that the server sends, and the credit that they free.

    Args:
        window_bytes: Bytes that may be sent and not yet durable.

    Attributes:
        credit: What may be sent.
        committed: Bytes of the whole content that the server has made durable.
        is_ended: Whether the last item was sent.
    """

    def __init__(self, window_bytes: int) -> None:
        if window_bytes < 1:
            raise ValueError(f"a window has 1 or more bytes, not {window_bytes}")
        self.credit: Final = Credit(window_bytes)
        self.committed = 0
        self.is_ended = False
        self._start: int | None = None

    @property
    def may_send(self) -> bool:
        """Whether an item may be sent now: the server asked for it, and is no more than a window behind."""
        return self._start is not None and self.credit.available > 0

    @property
    def awaits_server(self) -> bool:
        """Whether the server has to say where to begin, to ask for more, or to confirm what it has."""
        credit = self.credit
        return self.is_ended or not self.may_send or credit.sent_bytes > credit.confirmed_bytes

    def on_receipt(self, receipt: Receipt) -> int | None:
        """Takes a receipt; returns the offset to send from if it is the first, else None.

        Raises:
            ProtocolError: It confirms less than before, or what wasn't sent.
        """
        credit = self.credit
        if self._start is None:
            self._start = self.committed = receipt.committed
            if receipt.window is not None:
                # What was sent isn't kept here, so a wider window costs the server's memory, not this process's.
                credit.window_bytes = max(credit.window_bytes, min(receipt.window, MAX_WINDOW_BYTES))
            return self._start
        sent = self._start + credit.sent_bytes
        if not self.committed <= receipt.committed <= sent:
            raise ProtocolError(
                f"the server confirms {receipt.committed} bytes, after {self.committed} and of {sent} sent"
            )
        self.committed = receipt.committed
        credit.confirmed_bytes = receipt.committed - self._start
        return None


class UploadReceiver:
    """The server's side of one upload attempt: what may come, and whether it is the end.

    Args:
        offset: Bytes that were received before this attempt.
        size: What the request said; None if it didn't.
        algorithm: That of the digest which the request promised; None if it didn't.

    Attributes:
        end: What the last item said; None before it.
    """

    def __init__(self, offset: int, size: int | None, algorithm: str | None) -> None:
        self._received = offset
        self._size = size
        self._algorithm = algorithm
        self.end: UploadEnd | None = None

    def on_bytes(self, nbytes: int) -> None:
        """Counts an item's bytes; called before they are stored, by the thread that receives them.

        Raises:
            IntegrityError: There are more than announced.
        """
        received = self._received + nbytes
        if self._size is not None and received > self._size:
            raise IntegrityError(f"{received} bytes arrived, {self._size} were announced")
        self._received = received

    def on_end(self, end: UploadEnd) -> None:
        """Takes what the last item says; its bytes may still be on their way.

        Raises:
            InvalidRequest: It isn't the first.
        """
        if self.end is not None:
            raise InvalidRequest("an item follows the last one of the upload")
        self.end = end

    def complete(self) -> UploadEnd:
        """Verifies the length when the client's side has completed; returns what the last item said.

        Raises:
            IntegrityError: There are fewer bytes than announced, or there was no last item.
            InvalidRequest: The bytes may be right, but there is no digest of the algorithm that the request promised.
        """
        end, size = self.end, self._size
        if end is None:
            raise IntegrityError(f"the upload ended after {self._received} bytes, without its last item")
        if end.size != self._received or (size is not None and end.size != size):
            raise IntegrityError(f"the upload ended after {self._received} of {size or end.size} bytes")
        if self._algorithm is not None and (end.digest is None or algorithm_of(end.digest) != self._algorithm):
            raise InvalidRequest(f"the request promised a digest of {self._algorithm}")
        return end
