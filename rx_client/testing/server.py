"""What the connections of a fake client have in common: the files, the faults, and what is held up by a stall."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from .faults import Faults
from .store import FakeStore

__all__ = ["FakeServer", "Served"]


class Served(NamedTuple):
    """A request that has arrived: its route, such as `file.upload`, and the file; "" for none."""

    route: str
    name: str


class FakeServer:
    """See above.

    Attributes:
        store: The files.
        faults: Those to come.
        served: All requests that have arrived, in this order.
        held: What waits for the end of a stall, in this order, each with its file.
        on_stall: Wakes what waits for a stall.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.store: Final = FakeStore(files)
        self.faults: Final = Faults()
        self.served: Final[list[Served]] = []
        self.held: Final[deque[tuple[str, Callable[[], None]]]] = deque()
        self.on_stall: Final[list[asyncio.Future[None]]] = []

    def run(self, name: str, step: Callable[[], None]) -> None:
        """Calls `step`, which is about the file `name`; at the end of the stall, if it is stalled."""
        if self.faults.holds(name):
            self.held.append((name, step))
        else:
            step()

    def release(self) -> None:
        """Ends all stalls."""
        self.faults.release()
        held = list(self.held)
        self.held.clear()
        for name, step in held:
            self.run(name, step)
