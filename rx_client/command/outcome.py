"""What has happened so far: counted, for the summary, the exit code, and what an interruption says."""

import time
from typing import Final

from rx_client import Completed, Failed, Progress, Skipped, Started, TotalProgress

from .exits import Exit
from .failures import describe
from .happenings import Change, Happening, Listed

__all__ = ["Outcome"]


class Outcome:
    """Counts what a verb emits.

    Attributes:
        transferred: Files that were put or got.
        done: Files that were moved, deleted or shown.
        failed: Files that weren't.
        skipped: Files that were left out.
        moved: Bytes that were transferred by this run.
        positions: Of transfers under way, by name: what is durable, and all of it.
    """

    _STILL_SECONDS: Final = 5.0

    def __init__(self) -> None:
        self.transferred = self.done = self.failed = self.skipped = self.moved = 0
        self.positions: dict[str, tuple[int, int | None]] = {}
        self._codes: set[Exit] = set()
        self._begun = self._moved_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    @property
    def still_seconds(self) -> float | None:
        """For how long nothing has moved, if transfers are under way and it is worth a word."""
        seconds = time.monotonic() - self._moved_at
        return seconds if self.positions and seconds >= self._STILL_SECONDS else None

    @property
    def completed(self) -> int:
        """Files with which what was asked for was done."""
        return self.transferred + self.done

    @property
    def code(self) -> Exit:
        """The exit code, if nothing else happens."""
        if not self.failed:
            return Exit.OK
        return Exit.SOME_FAILED if self.completed or len(self._codes) > 1 else next(iter(self._codes))

    def on_event(self, event: Happening) -> None:
        """Counts one."""
        match event:
            case TotalProgress():
                self.moved = event.moved
            case Started(total=total, resumed_from=position) | Progress(transferred=position, total=total):
                if self.positions.get(event.name) != (position, total):  # a display's rate is repeated
                    self.positions[event.name] = position, total
                    self._moved_at = time.monotonic()
            case Completed(info):
                self.positions.pop(info.name, None)
                self.transferred += 1
            case Failed(name, error):
                self.positions.pop(name, None)
                self.failed += 1
                self._codes.add(describe(error).code)
            case Skipped():
                self.skipped += 1
            case Listed() | Change("move" | "delete", is_planned=False):
                self.done += 1
            case _:
                pass
