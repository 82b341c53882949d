"""The logic of a transfer without I/O: who may send how much, which bytes come next, when everything is there.

Feed these what arrives; they say what may follow, or raise. Sockets, disks and tasks are elsewhere.
"""

from collections import deque
from typing import Final

from ..errors import IntegrityError, InvalidRequest, ProtocolError
from .digest import Digest, algorithm_of
from .messages import CHUNK_BYTES, UNSEEN_CHUNK_BYTES, ChunkHead, DownloadRequest, Receipt, UploadEnd
from .wire import FileInfo

__all__ = [
    "DEFAULT_WINDOW",
    "DIRECT_WINDOW",
    "Demand",
    "RangeReceiver",
    "UploadReceiver",
    "UploadSender",
    "choose_windows",
    "unseen_window",
]

DEFAULT_WINDOW: Final = 16
"""Chunks that a sender may be ahead of its consumer: 4 MiB of 256 KiB chunks, which hides a round trip of some ms."""

DIRECT_WINDOW: Final = 64
"""The same where chunks go from a socket to a file, and none of them waits in memory: see `shared.direct`."""


def unseen_window(window: int) -> int:
    """The window for items of `UNSEEN_CHUNK_BYTES` that has about as many bytes as `window` chunks."""
    return max(window * CHUNK_BYTES // UNSEEN_CHUNK_BYTES, 1)


def choose_windows(window: int | None, *, is_unseen: bool) -> tuple[int, int]:
    """The window while items may wait in memory, and that while they go between a socket and a file.

    Args:
        window: What the caller wants of both; None for what is best.
        is_unseen: Whether they are items of `UNSEEN_CHUNK_BYTES`.
    """
    windows = (DEFAULT_WINDOW, DIRECT_WINDOW) if window is None else (window, window)
    return (unseen_window(windows[0]), unseen_window(windows[1])) if is_unseen else windows


class Demand:
    """A receiver's side of demand: at most `window` items are requested and not yet given back.

    Credit is replenished when half of the window was given back, so that the sender doesn't run dry for a round trip.

    Args:
        window: Items, 1 or more; that many are requested at the start.
    """

    __slots__ = ("_outstanding", "_owed", "window")

    def __init__(self, window: int) -> None:
        if not 1 <= window <= 0x7FFFFFFF:
            raise ValueError(f"a window has 1 to {0x7FFFFFFF} items, not {window}")
        self.window = window
        self._outstanding = window
        self._owed = 0

    @property
    def outstanding(self) -> int:
        """Items that were requested and haven't arrived."""
        return self._outstanding

    @property
    def held(self) -> int:
        """Items that arrived, and that the consumer isn't done with."""
        return self.window - self._outstanding - self._owed

    def widen(self, window: int) -> int:
        """Makes the window that large, unless it is already; how many to request for that."""
        more = max(window - self.window, 0)
        self.window += more
        self._outstanding += more
        return more

    def received(self, count: int = 1) -> None:
        """Items arrived.

        Raises:
            ProtocolError: They weren't requested.
        """
        if count > self._outstanding:
            raise ProtocolError(f"the peer sent more than the {self.window} items that were requested")
        self._outstanding -= count

    def released(self, count: int = 1) -> int:
        """The consumer is done with `count` items; how many to request now, often 0."""
        self._owed += count
        if 2 * self._owed < self.window:
            return 0
        request, self._owed = self._owed, 0
        self._outstanding += request
        return request


class RangeReceiver:
    """The client's side of one download attempt: accepts exactly the range that was asked for.

    Args:
        name: The file that was asked for.
        request: What was asked for.
    """

    def __init__(self, name: str, request: DownloadRequest) -> None:
        self._name = name
        self._request = request
        self._head: ChunkHead | None = None
        self._received = 0

    @property
    def head(self) -> ChunkHead | None:
        """What the server said with the first item, or with the last once that is here; None before the first."""
        return self._head

    @property
    def left(self) -> int:
        """Bytes of the range that haven't arrived; 0 before the first item."""
        return 0 if self._head is None else self._head.length - self._received

    @property
    def offset(self) -> int:
        """Where in the file the next byte belongs."""
        return self._request.offset + self._received

    def item(self, data: bytes, head: ChunkHead | None) -> None:
        """Takes the next item.

        Raises:
            ProtocolError: The first item has no head, or the heads contradict each other or the request.
            IntegrityError: There are more bytes than announced.
        """
        if head is not None:
            self._check(head)
            self._head = head
        if self._head is None:
            raise ProtocolError("the first item of a download must say which file and range it is", name=self._name)
        self._received += len(data)
        if self._received > self._head.length:
            raise IntegrityError(
                f"{self._name!r}: {self._received} bytes arrived, {self._head.length} were announced", name=self._name
            )

    def plain_items(self, nbytes: int) -> None:
        """Takes items that carry nothing but bytes; there are no more of these than were announced."""
        self._received += nbytes

    def complete(self, digest: Digest | None) -> FileInfo:
        """The stream completed; the file's info.

        Args:
            digest: Of the bytes from `request.digest_from` to the range's end; None to do without.

        Raises:
            ProtocolError: There was no item, or no digest to verify with.
            IntegrityError: Bytes are missing, or aren't those that were sent.
        """
        head = self._head
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

    def _check(self, head: ChunkHead) -> None:
        request, first = self._request, self._head
        wanted = head.info.size - request.offset
        if request.length is not None:
            wanted = min(wanted, request.length)
        if head.info.name != self._name or head.offset != request.offset or head.length != wanted:
            raise ProtocolError("the server sends another file or range than was asked for", name=self._name)
        if request.if_match is not None and head.info.etag != request.if_match:
            raise ProtocolError("the server sends another file than `if_match` names", name=self._name)
        if first is not None and (first.info.size, first.info.etag) != (head.info.size, head.info.etag):
            raise ProtocolError("the server's first and last item are of different files", name=self._name)


class UploadSender:
    """The client's side of one upload attempt.

    Args:
        window: Chunks that may be sent and not yet durable.

    Attributes:
        window: The same; it may change.
    """

    def __init__(self, window: int) -> None:
        if window < 1:
            raise ValueError(f"a window has 1 or more chunks, not {window}")
        self.window = window
        self._credit = 0
        self._ends: deque[int] = deque()
        self._sent: int | None = None
        self._committed = 0
        self._is_ended = False

    @property
    def committed(self) -> int:
        """Bytes that the server has made durable."""
        return self._committed

    @property
    def is_ended(self) -> bool:
        """Whether the last item was sent."""
        return self._is_ended

    @property
    def may_send(self) -> bool:
        """Whether another item may be sent now: the server asked for it, and is no more than a window behind."""
        return self._credit > 0 and self._sent is not None and len(self._ends) < self.window

    @property
    def room(self) -> int:
        """How many items may be sent now, beside the last one."""
        return max(min(self._credit, self.window - len(self._ends)), 0) if self._sent is not None else 0

    @property
    def is_owed(self) -> bool:
        """Whether it is the server's turn: to say where to begin, to ask for more, or to confirm what it has."""
        return self._is_ended or not self.may_send or bool(self._ends)

    def requested(self, count: int) -> None:
        """The server asks for `count` more items."""
        self._credit += count

    def receipt(self, receipt: Receipt) -> int | None:
        """Takes a receipt; the offset to send from if it is the first, else None.

        Raises:
            ProtocolError: It takes something back, or confirms what wasn't sent.
        """
        if self._sent is None:
            self._sent = self._committed = receipt.committed
            return receipt.committed
        if not self._committed <= receipt.committed <= self._sent:
            raise ProtocolError(
                f"the server confirms {receipt.committed} bytes, after {self._committed} and of {self._sent} sent"
            )
        self._committed = receipt.committed
        while self._ends and self._ends[0] <= receipt.committed:
            self._ends.popleft()
        return None

    def takes_back(self, items: int, item_bytes: int) -> None:
        """Notes that the latest items weren't sent after all."""
        assert self._sent is not None, "the first receipt says where to begin"
        self._credit += items
        self._sent -= items * item_bytes
        while self._ends and self._ends[-1] > self._sent:
            self._ends.pop()

    def sends(self, nbytes: int, *, is_last: bool) -> None:
        """Notes that an item goes out."""
        assert self.may_send, "ask `may_send` first"
        assert not self._is_ended, "nothing follows the last item"
        assert self._sent is not None, "the first receipt says where to begin"
        self._credit -= 1
        self._sent += nbytes
        if nbytes:
            self._ends.append(self._sent)
        self._is_ended = is_last


class UploadReceiver:
    """The server's side of one upload attempt: what may come, and whether it is the end.

    Args:
        offset: Durable bytes at the start of this attempt.
        size: What the request said; None if it didn't.
        algorithm: The digest that the request promised; None if it didn't.
        window: Items to ask for.
    """

    def __init__(self, offset: int, size: int | None, algorithm: str | None, window: int) -> None:
        self._received = offset
        self._size = size
        self._algorithm = algorithm
        self._demand = Demand(window)
        self._end: UploadEnd | None = None

    @property
    def outstanding(self) -> int:
        """Items that were asked for and haven't arrived."""
        return self._demand.outstanding

    @property
    def end(self) -> UploadEnd | None:
        """What the last item said; None before it."""
        return self._end

    def item(self, data: bytes, end: UploadEnd | None) -> None:
        """Takes the next item.

        Raises:
            InvalidRequest: It wasn't asked for, comes after the last one, or isn't what the request announced.
            IntegrityError: There are more or fewer bytes than announced.
        """
        try:
            self._demand.received()
        except ProtocolError as error:
            raise InvalidRequest(error.message) from None
        if self._end is not None:
            raise InvalidRequest("an item follows the last one of the upload")
        self._received += len(data)
        if self._size is not None and self._received > self._size:
            raise IntegrityError(f"{self._received} bytes arrived, {self._size} were announced")
        if end is None:
            if not data:
                raise InvalidRequest("an item of an upload carries bytes, or says that it is the last")
            return
        if end.size != self._received or (self._size is not None and end.size != self._size):
            raise IntegrityError(f"the upload ended after {self._received} of {self._size or end.size} bytes")
        if self._algorithm is not None and (end.digest is None or algorithm_of(end.digest) != self._algorithm):
            raise InvalidRequest(f"the request promised a digest of {self._algorithm}")
        self._end = end

    def plain_items(self, count: int, nbytes: int) -> None:
        """Takes items that carry nothing but bytes, which were checked against what was asked for and announced."""
        self._demand.received(count)
        self._received += nbytes

    def widen(self, window: int) -> int:
        """Makes the window that large, unless it is already; how many more items to ask for."""
        return self._demand.widen(window)

    def stored(self, items: int) -> int:
        """Notes that `items` were stored; how many to ask for now."""
        return self._demand.released(items)

    def complete(self) -> None:
        """The client has completed.

        Raises:
            IntegrityError: It did so before its last item.
        """
        if self._end is None:
            raise IntegrityError(f"the upload ended after {self._received} bytes, without its last item")
