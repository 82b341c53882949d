"""What isn't whole yet: a frame that arrives, and a payload in several frames, in memory or on its way to a disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, cast, final, runtime_checkable

from rsocket.frame import FragmentableFrame, PayloadFrame, RequestChannelFrame

from .buffers import ReservedBuffer
from .codec import HEADER_BYTES, FrameHeader

__all__ = ["FrameSource", "IncomingFrame", "Reservation", "SplitPayload", "Spool"]

# Joining no more than this takes 100 µs at the most.
_JOINED_BYTES: Final = 1024 * 1024
# A copy of less costs no more than what it takes to receive it elsewhere.
_LEAST_LENT_BYTES: Final = 128 * 1024


class FrameSource(Protocol):
    """Where a frame arrives that was admitted and isn't whole yet."""

    @property
    def arrived_bytes(self) -> int: ...
    def skip(self) -> None:
        """Drops what has arrived of it, and what still will."""
        ...


@dataclass(slots=True)
class IncomingFrame:
    """A frame that was admitted, and counts `cost` in the limits; `source` is None if all of it is here."""

    header: FrameHeader
    cost: int
    source: FrameSource | None
    seen_bytes: int | None = None
    """What had arrived at the last check of its growth; None before the first."""

    @property
    def stream_id(self) -> int:
        return self.header.stream_id

    @property
    def arrived_bytes(self) -> int:
        return 0 if self.source is None else self.source.arrived_bytes


class Spool(Protocol):
    """Takes the data of one split request as it arrives, in place of memory; it stands for the data of the whole."""

    async def write(self, chunks: Sequence[bytes]) -> None:
        """Takes the next bytes, and keeps none of them in memory; raises TransferError to refuse the request."""
        ...

    def abandon(self) -> None:
        """Drops what was written: the request will never be whole."""
        ...


@runtime_checkable
class Reservation(Protocol):
    """Where the data of one split request counts as it arrives, beside the limits here, though it stays in memory.

    It stands for the data of the whole.
    """

    async def grow(self, nbytes: int) -> None:
        """Reserves room for the next bytes; raises TransferError to refuse the request."""
        ...

    def fill(self, data: bytes) -> None:
        """Takes the whole data, for which room is reserved."""
        ...

    def abandon(self) -> None:
        """Gives the room back: the request will never be whole."""
        ...


@final
@dataclass(slots=True, eq=False)
class SplitPayload:
    """A payload or request that comes in several frames, of which `first` becomes the whole."""

    first: FragmentableFrame
    nbytes: int = 0
    """Its data and metadata so far."""
    metadata_bytes: int = 0
    cost: int = 0
    """What counts in the limits of what isn't being joined or stored."""
    data_cost: int = 0
    """What of `cost` is data."""
    busy_cost: int = 0
    """What counts in the limits of what is being joined or stored."""
    seen_bytes: int | None = None
    """Its size at the last check of its growth; None before the first."""
    spool: Spool | None = None
    """Where its data goes; None for memory."""
    reservation: Reservation | None = None
    """Where its data counts, if it stays in memory; None if only here."""
    _unreserved_bytes: int = 0
    _is_placed: bool = False
    _metadata: list[bytes] = field(default_factory=list[bytes])
    _data: list[bytes] = field(default_factory=list[bytes])
    _buffer: ReservedBuffer | None = None
    _lent: memoryview | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its last fragment is here."""
        return not self.first.flags_follows

    @property
    def is_request(self) -> bool:
        """Whether it begins a stream."""
        return not isinstance(self.first, PayloadFrame)

    def add(self, fragment: FragmentableFrame, cost: int) -> int:
        """Takes the next fragment (first `first`), and what it counts in the limits; returns its size."""
        metadata_bytes, nbytes = len(fragment.metadata or b""), len(fragment.data or b"")
        self.cost += cost
        self.nbytes += nbytes + metadata_bytes
        self.metadata_bytes += metadata_bytes
        if fragment.metadata:
            self._metadata.append(bytes(fragment.metadata))  # no copy of what is `bytes` already
        if fragment.data:
            if self._buffer is None:
                self._data.append(bytes(fragment.data))
            elif self._lent is not None and fragment.data is self._lent:
                self._lent.release()
                self._buffer.skip(nbytes)
            else:
                self._buffer.write(fragment.data)
            fragment.data, self._lent = b"", None  # it may be borrowed
            self._unreserved_bytes += nbytes
            # The first fragment's cost is also that of the payload itself, which stays.
            self.data_cost += nbytes if fragment is self.first else max(cost - metadata_bytes, 0)
        if not fragment.flags_follows:
            self._end(fragment)
        return nbytes + metadata_bytes

    def lend(self, header: FrameHeader) -> memoryview | None:
        """Where the data of the next fragment, of which this is the header, is to be received; None if `add` copies it.

        If it was received there, the view is the fragment's data.
        """
        if self._buffer is None or not _LEAST_LENT_BYTES <= header.payload_bytes == header.length - HEADER_BYTES:
            return None
        self._lent = self._buffer.lend_next(header.payload_bytes)
        return self._lent

    def place(self, placer: Callable[[FragmentableFrame, bytes], Spool | Reservation | None]) -> None:
        """Decides where the data goes, or counts, once its first bytes are here: the metadata is whole by then."""
        if not self._is_placed and self._data:
            self._is_placed = True
            placed = placer(self.first, b"".join(self._metadata))
            if isinstance(placed, Reservation):
                self.reservation = placed
            else:
                self.spool = placed

    def gather(self) -> None:
        """Moves the data to one growing buffer, once it is large and not for a spool."""
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

    @property
    def needs_reservation(self) -> bool:
        """Whether `store` should be called before the next fragment is added, though the data stays in memory."""
        return self.reservation is not None and self._unreserved_bytes > 0

    def make_room(self) -> None:
        """Makes room for what will come. Blocks: call it in a thread, and add nothing meanwhile."""
        if self._buffer is not None:
            self._buffer.make_room()

    async def store(self) -> None:
        """Stores the data that came since the last call, or reserves room for it; raises what refuses the request."""
        if self.spool is not None:
            await self.spool.write(self.take_data())
        elif self.reservation is not None:
            nbytes, self._unreserved_bytes = self._unreserved_bytes, 0
            await self.reservation.grow(nbytes)

    def abandon(self) -> None:
        """Drops what was stored or reserved: it will never be whole."""
        if self.spool is not None:
            self.spool.abandon()
        if self.reservation is not None:
            self.reservation.abandon()

    def take_data(self) -> Sequence[bytes]:
        """The data that came since the last call; for the spool."""
        data, self._data = self._data, []
        return data

    def join(self) -> FragmentableFrame:
        """The one frame that the fragments make. Once."""
        whole = self.first
        whole.length = self.nbytes
        whole.metadata = b"".join(self._metadata)
        if self.spool is not None:
            # The spool stands for the data: the request's handler looks for it there.
            whole.data = cast(bytes, self.spool)
        else:
            whole.data = b"".join(self._data) if self._buffer is None else self._buffer.finish()
        if self.reservation is not None:
            self.reservation.fill(whole.data)
            whole.data = cast(bytes, self.reservation)
        self._metadata.clear()
        self._data.clear()
        self._buffer = None
        return whole

    def _end(self, last: FragmentableFrame) -> None:
        whole = self.first
        whole.flags_follows = False
        if isinstance(last, PayloadFrame) and isinstance(whole, PayloadFrame | RequestChannelFrame):
            whole.flags_complete |= last.flags_complete
            if isinstance(whole, PayloadFrame):
                whole.flags_next |= last.flags_next
