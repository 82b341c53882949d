"""The faults that a test has ordered, and the bytes that pass until each happens."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from shared.errors import TransferError

__all__ = ["LOSE", "STALL", "Fault", "Faults"]


class _Kind(Enum):
    LOSE = "the connection is lost"
    STALL = "nothing arrives any more"


LOSE: Final = _Kind.LOSE
STALL: Final = _Kind.STALL


@dataclass(eq=False)
class Fault:
    """What happens once.

    Attributes:
        what: LOSE, STALL, or the error that a request ends with.
        after: After how many bytes of content; 0 is at the beginning of a request.
        name: The file whose requests and bytes count; None for all.
        passed: How many of these bytes have passed.
    """

    what: _Kind | TransferError
    after: int
    name: str | None
    passed: int = 0


class Faults:
    """The faults that haven't happened yet, the first ordered one first; and what is stalled."""

    def __init__(self) -> None:
        self._ordered: list[Fault] = []
        self._stalled: list[Fault] = []

    @property
    def is_stalled(self) -> bool:
        """Whether anything is."""
        return bool(self._stalled)

    def order(self, what: _Kind | TransferError, after: int, name: str | None) -> None:
        """Raises ValueError if `after` is less than 0."""
        if after < 0:
            raise ValueError(f"a fault happens after 0 or more bytes, not {after}")
        self._ordered.append(Fault(what, after, name))

    def holds(self, name: str) -> bool:
        """Whether the requests about the file `name` are stalled."""
        return any(fault.name in (None, name) for fault in self._stalled)

    def release(self) -> None:
        """Nothing is stalled any more."""
        self._stalled.clear()

    def begin(self, name: str) -> Fault | None:
        """The fault that happens when a request about the file `name` begins."""
        return self._step(name, 0)[1]

    def step(self, name: str, data: bytes | bytearray | memoryview | None) -> tuple[int, Fault | None]:
        """How many of the next bytes of the file `name` pass, and the fault that happens then."""
        return self._step(name, len(data)) if data else (0, None)

    def _step(self, name: str, nbytes: int) -> tuple[int, Fault | None]:
        for fault in self._ordered:
            if fault.name in (None, name):
                left = fault.after - fault.passed
                if nbytes < left:
                    fault.passed += nbytes
                    break  # the later ones count what passes after this one
                self._ordered.remove(fault)
                if fault.what is STALL:
                    self._stalled.append(fault)
                return left, fault
        return nbytes, None
