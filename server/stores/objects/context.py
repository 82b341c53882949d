"""What all unfinished uploads of a store use, and what is leaving one of them."""

import asyncio
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.protocol.digest import Digest

from ..parts import Part
from .bucket import Bucket
from .facts import Facts
from .keys import Keys
from .room import Room
from .state import Piece, State

__all__ = ["Cut", "UploadContext"]


@dataclass(frozen=True, slots=True)
class UploadContext:
    """What all uploads of a store use.

    Attributes:
        bucket: Where they are.
        keys: Under which keys.
        facts: What is kept of files in parts.
        room: Their memory.
        joining: Held while pieces are read to be put into a part: one part at a time.
        on_closed: Called when a part is closed, with its state, and the digest of what is kept; None if nothing is.
    """

    bucket: Bucket
    keys: Keys
    facts: Facts
    room: Room
    joining: asyncio.Lock
    on_closed: Callable[[Part, State, Digest | None], None]


@dataclass(eq=False, slots=True)
class Cut:
    """Bytes that are leaving, as a part with this number, or as a piece."""

    content: io.BytesIO | None
    size: int
    digest: Digest
    number: int | None
    pieces: Sequence[Piece]
    recorded: asyncio.Future[None]
    writing: asyncio.Task[None] | None = None
