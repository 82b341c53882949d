"""The display of a terminal: a bar for each transfer under way, and one for all; what is noted stands above them."""

import sys
import time
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from .. import Completed, Failed, Retrying, Skipped, Started, TotalProgress
from .. import Progress as Moved
from .display import Lines, harmless
from .happenings import Happening
from .outcome import Outcome
from .words import show_bytes, show_percent, show_rate, show_seconds

__all__ = ["Bars"]


class Bars(Lines):
    """Bars on standard error, which must be a terminal; they are gone at the end."""

    period = 0.1
    _REFRESH_SECONDS: Final = 0.1

    def __init__(self, verb: str, outcome: Outcome, console: Console) -> None:
        super().__init__(verb, outcome)
        self._console = console
        name = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
        numbers = [TextColumn(f"{{task.fields[{each}]}}", justify="right") for each in ("share", "rate", "left")]
        # The numbers take some 34 columns; on a narrow terminal the bar leaves the name room.
        bar = BarColumn(max(4, min(24, (console.width - 40) // 2)))
        self._bars = Progress(name, bar, *numbers, console=console, transient=True, auto_refresh=False, expand=True)
        self._rows: dict[str, TaskID] = {}
        self._total_row: TaskID | None = None
        self._refreshed_at = 0.0

    def on_event(self, event: Happening) -> None:
        match event:
            case TotalProgress():
                if event.active + event.completed + event.failed > 1 and event.active:
                    self._total_row = self._row(self._total_row, f"{event.completed} done, {event.active} under way")
                    self._show(self._total_row, event)
            case Started(total=total, resumed_from=position):
                row = self._rows[event.name] = self._row(self._rows.get(event.name), event.name)
                self._bars.update(row, completed=position, total=total)
                super().on_event(event)
            case Moved():
                self._show(self._rows[event.name], event)
            case Retrying():
                super().on_event(event)
                if event.name in self._rows:
                    self._bars.update(self._rows[event.name], rate="", left=f"retry {event.attempt}")
            case Completed() | Failed() | Skipped():
                if (row := self._rows.pop(event.name, None)) is not None:
                    self._bars.remove_task(row)
                super().on_event(event)
            case _:
                super().on_event(event)
        self._refresh()

    def on_second(self) -> None:
        if (seconds := self.outcome.still_seconds) is not None:
            for row in self._rows.values():
                self._bars.update(row, rate="", left=f"no progress for {seconds:.0f} s")
        self._refresh()

    def close(self) -> None:
        self._bars.stop()

    def show(self, text: str) -> None:
        if self._bars.live.is_started and sys.stdout.isatty():
            self.note(text)
        else:
            super().show(text)

    def note(self, text: str) -> None:
        if self._bars.live.is_started:
            self._console.print(harmless(text), markup=False, highlight=False, soft_wrap=True)
        else:
            super().note(text)

    def _row(self, row: TaskID | None, description: str) -> TaskID:
        """A row with this description, a new one if `row` is None."""
        if row is None:
            if not self._bars.live.is_started:
                self._bars.start()
            return self._bars.add_task(description, total=None, share="", rate="", left="")
        self._bars.update(row, description=description)
        return row

    def _show(self, row: TaskID, event: Moved) -> None:
        share = show_percent(event.transferred, event.total)
        if event.total is not None:
            share += f" of {show_bytes(event.total)}"
        rate = "" if event.bytes_per_second is None else show_rate(event.bytes_per_second)
        left = "" if event.seconds_left is None else f"{show_seconds(event.seconds_left)} left"
        self._bars.update(row, completed=event.transferred, total=event.total, share=share, rate=rate, left=left)

    def _refresh(self) -> None:
        if self._bars.live.is_started and (now := time.monotonic()) - self._refreshed_at >= self._REFRESH_SECONDS:
            self._refreshed_at = now
            self._bars.refresh()
