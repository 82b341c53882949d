"""A payload or request that comes in several frames: its pieces, in memory or on their way to a disk."""

from collections.abc import Callable, Sequence
from typing import Final, Protocol, cast

from rsocket.frame import FragmentableFrame, PayloadFrame, RequestChannelFrame

from .buffers import ReservedBuffer

__all__ = ["SplitPayload", "Spool"]

# Joining no more than this takes 100 µs at the most.
_JOINED_BYTES: Final = 1024 * 1024


class Spool(Protocol):
    """Takes the data of one split request as it arrives, in place of memory; it stands for the data of the whole."""

    async def write(self, chunks: Sequence[bytes]) -> None:
        """Takes the next bytes, and keeps none of them in memory.

        Raises:
            TransferError: It can't; the request is refused.
        """
        ...

    def abandon(self) -> None:
        """The request will never be whole."""
        ...


class SplitPayload:
    """A payload or request that comes in several frames.

    Attributes:
        nbytes: Its data and metadata so far.
        metadata_bytes: Its metadata so far.
        spool: Where its data goes; None for memory.
        cost: What of it counts in the limits, but for what is being joined or stored.
        data_cost: What of that is data.
        busy_cost: What is being joined or stored.
        seen_bytes: Its size when it was last looked at whether it grows; None if it wasn't.
    """

    __slots__ = (
        "_buffer",
        "_data",
        "_metadata",
        "busy_cost",
        "cost",
        "data_cost",
        "first",
        "is_placed",
        "metadata_bytes",
        "nbytes",
        "seen_bytes",
        "spool",
    )

    def __init__(self, first: FragmentableFrame) -> None:
        self.first = first
        self.nbytes = 0
        self.metadata_bytes = 0
        self.cost = 0
        self.data_cost = 0
        self.busy_cost = 0
        self.seen_bytes: int | None = None
        self.spool: Spool | None = None
        self.is_placed = False
        self._metadata: list[bytes] = []
        self._data: list[bytes] = []
        self._buffer: ReservedBuffer | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its last fragment is here."""
        return not self.first.flags_follows

    @property
    def is_request(self) -> bool:
        """Whether it begins a stream."""
        return not isinstance(self.first, PayloadFrame)

    def add(self, fragment: FragmentableFrame, cost: int) -> int:
        """Takes the next fragment (at first the first), and what it counts in the limits; gives its size."""
        metadata_bytes, nbytes = len(fragment.metadata or b""), len(fragment.data or b"")
        self.cost += cost
        self.nbytes += nbytes + metadata_bytes
        self.metadata_bytes += metadata_bytes
        if fragment.metadata:
            self._metadata.append(bytes(fragment.metadata))  # as it is, where it is bytes already
        if fragment.data:
            if self._buffer is None:
                self._data.append(bytes(fragment.data))
            else:
                self._buffer.write(fragment.data)
            fragment.data = b""  # it may be borrowed
            # The first fragment's cost is also that of the payload itself, which stays.
            self.data_cost += nbytes if fragment is self.first else max(cost - metadata_bytes, 0)
        if not fragment.flags_follows:
            self._end(fragment)
        return nbytes + metadata_bytes

    def place(self, spooler: Callable[[FragmentableFrame, bytes], Spool | None]) -> None:
        """Decides where the data goes, when its first bytes are here: the metadata is whole by then."""
        if not self.is_placed and self._data:
            self.is_placed = True
            self.spool = spooler(self.first, b"".join(self._metadata))

    def gather(self) -> None:
        """Goes on in one buffer, once it is large and not for a spool."""
        is_one = self.is_whole and len(self._data) == 1
        if self._buffer is None and self.spool is None and self.nbytes > _JOINED_BYTES and not is_one:
            self._buffer = ReservedBuffer()
            for data in self._data:
                self._buffer.write(data)
            self._data.clear()

    @property
    def needs_room(self) -> bool:
        """Whether `make_room` should be called before the next fragment is added."""
        return self._buffer is not None and self._buffer.needs_room

    def make_room(self) -> None:
        """Makes room for what will come. Blocks; in a thread, and nothing is added meanwhile."""
        if self._buffer is not None:
            self._buffer.make_room()

    def take_data(self) -> Sequence[bytes]:
        """The data that came since the last call, for the spool."""
        data, self._data = self._data, []
        return data

    def join(self) -> FragmentableFrame:
        """The one frame that the fragments make; once."""
        whole = self.first
        whole.metadata = b"".join(self._metadata)
        if self.spool is not None:
            # It stands for its data: whoever asked for one looks for it there.
            whole.data = cast(bytes, self.spool)
        elif self._buffer is not None:
            whole.data = self._buffer.finish()
        else:
            whole.data = b"".join(self._data)
        self._metadata.clear()
        self._data.clear()
        self._buffer = None
        return whole

    def _end(self, last: FragmentableFrame) -> None:
        whole = self.first
        whole.flags_follows = False
        if isinstance(last, PayloadFrame) and isinstance(whole, PayloadFrame | RequestChannelFrame):
            whole.flags_complete = whole.flags_complete or last.flags_complete
        if isinstance(last, PayloadFrame) and isinstance(whole, PayloadFrame):
            whole.flags_next = whole.flags_next or last.flags_next
