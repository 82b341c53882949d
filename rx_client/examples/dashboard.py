"""A dashboard: several uploads at a time with their total, each of which can be paused, resumed and cancelled.

The commands for a transfer are a stream, too: `switch_latest` subscribes to the transfer for RUN, and to nothing for
PAUSE. That is all, as dispose is cancel, and the next subscription goes on where the server has it. On a terminal, a
digit selects a transfer, `p` pauses or resumes it, `c` cancels it, and `q` cancels all. Elsewhere the keys are played:
the first transfer is paused half-way until the others have ended, and the last one is cancelled half-way.
"""

import argparse
import asyncio
import os
import sys
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Final

import reactivex
from reactivex import Observable
from reactivex import operators as ops
from reactivex.subject import BehaviorSubject
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from .. import (
    Completed,
    Failed,
    FileClient,
    NotFound,
    Progress,
    Skipped,
    Started,
    TotalProgress,
    TransferEvent,
    TreeEvent,
)
from .. import rate_limit as shared_limit
from ..operators import retry_backoff, total_progress, transfer_all, with_rate
from .context import Context, check
from .real_files import python_sources

if sys.platform != "win32":
    import termios
    import tty

_TRANSFERS: Final = 4
_DEFAULT_LIMIT: Final = 400_000  # bytes a second, so that there is something to see
_CANCELLED: Final = "cancelled"


class Command(Enum):
    """What a user wants of a transfer."""

    RUN = "running"
    PAUSE = "paused"
    CANCEL = _CANCELLED


class Row:
    """One transfer and its line of the dashboard.

    Attributes:
        events: The transfer's, as the commands have it: Skipped if it is cancelled, Failed if it fails.
        commands: What the user wants; the last one counts.
        progress: The last one; None before.
        state: In a word.
        has_ended: Whether nothing follows.
        resumed_from: Where each attempt began.
        upload_id: The upload's; None before it has begun.
    """

    def __init__(self, name: str, transfer: Observable[TransferEvent]) -> None:
        self.name: Final = name
        self.commands: Final = BehaviorSubject(Command.RUN)
        self.progress: Progress | None = None
        self.state = "waiting"
        self.has_ended = False
        self.resumed_from: list[int] = []
        self.upload_id: str | None = None
        self.events: Final[Observable[TreeEvent]] = self.commands.pipe(
            ops.map(lambda command: self._obey(command, transfer)),
            ops.switch_latest(),
            ops.catch(lambda error, _: reactivex.just(Failed(name, error))),
            ops.take_while(lambda event: not isinstance(event, Completed | Skipped | Failed), inclusive=True),
            ops.do_action(self._see),
        )

    def _obey(self, command: Command, transfer: Observable[TransferEvent]) -> Observable[TreeEvent]:
        match command:
            case Command.RUN:
                return transfer
            case Command.PAUSE:
                return reactivex.never()
            case Command.CANCEL:
                return reactivex.just(Skipped(self.name, _CANCELLED))

    @property
    def is_paused(self) -> bool:
        return self.commands.value is Command.PAUSE

    @property
    def is_half_way(self) -> bool:
        return self.progress is not None and 2 * self.progress.transferred >= (self.progress.total or 0)

    def toggle(self) -> None:
        """Pauses or resumes."""
        self.commands.on_next(Command.RUN if self.is_paused else Command.PAUSE)

    def cancel(self) -> None:
        self.commands.on_next(Command.CANCEL)

    def _see(self, event: TreeEvent) -> None:
        self.has_ended = isinstance(event, Completed | Skipped | Failed)
        match event:
            case Started(upload_id, _, offset):
                self.state, self.upload_id = "running", upload_id
                self.resumed_from.append(offset)
            case Progress():
                self.progress = event
            case Completed():
                self.state = "completed"
            case Skipped():
                self.state = _CANCELLED
            case Failed(_, error):
                self.state = f"failed: {error}"
            case _:
                self.state = "waiting for another attempt"


class Board:
    """The rows, and which of them is selected."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows: Final = rows
        self.total: TotalProgress | None = None
        self.selected = 0

    def press(self, key: str) -> None:
        """What a key does; see the module's docstring."""
        if key.isdigit() and 1 <= int(key) <= len(self.rows):
            self.selected = int(key) - 1
        elif key == "p":
            self.rows[self.selected].toggle()
        elif key == "c":
            self.rows[self.selected].cancel()
        elif key == "q":
            for row in self.rows:
                row.cancel()

    def render(self) -> Table:
        table = Table("", "file", "", "bytes", "bytes a second", "left", "", expand=True)
        for number, row in enumerate(self.rows, 1):
            state = "paused" if row.is_paused and not row.has_ended else row.state
            style = "bold" if number - 1 == self.selected else ""
            table.add_row(str(number), Path(row.name).name, *_columns(row.progress), state, style=style)
        table.add_section()
        table.add_row("", "total", *_columns(self.total), "")
        table.caption = "1-9 select, p pause or resume, c cancel, q quit"
        return table


def _columns(progress: Progress | None) -> tuple[ProgressBar, str, str, str]:
    if progress is None:
        return ProgressBar(), "", "", ""
    rate, left = progress.bytes_per_second, progress.seconds_left
    return (
        ProgressBar(total=progress.total, completed=progress.transferred),
        f"{progress.transferred:,}",
        "" if rate is None else f"{rate:,.0f}",
        "" if left is None else f"{left:.0f} s",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", type=float, default=_DEFAULT_LIMIT, help="bytes a second, for all together")


async def run(context: Context) -> None:
    sources = sorted(await asyncio.to_thread(python_sources), key=lambda path: path.stat().st_size)[-_TRANSFERS:]
    prefix, limit = f"dashboard-{uuid.uuid4().hex[:8]}", shared_limit(context.options.limit)
    async with FileClient.connect(context.uri) as files:
        uploads = ((f"{prefix}/{path.name}", path) for path in sources)
        rows = [
            Row(name, files.upload_from(name, path, limit=limit).pipe(retry_backoff(), with_rate()))
            for name, path in uploads
        ]
        board = Board(rows)
        together = reactivex.merge(*(row.events for row in rows)).pipe(total_progress(), with_rate())
        with _display(context, board) as show:
            await together.pipe(ops.do_action(show))
        for row in rows:
            if row.state == _CANCELLED and row.upload_id is not None:
                with suppress(NotFound):
                    await files.discard(row.upload_id)
        stored = await files.list_files(prefix=f"{prefix}/").pipe(ops.to_list())
        await reactivex.from_iterable(stored).pipe(ops.map(files.delete), transfer_all(4), ops.count())

    completed = [row.name for row in rows if row.state == "completed"]
    check(sorted(stored) == sorted(completed), f"the server has {stored}, and {completed} are completed")
    for row in rows:
        again = "".join(f", went on at {offset:,}" for offset in row.resumed_from[1:])
        context.say(f"{Path(row.name).name}: {row.state}{again}")
    total = board.total
    check(total is not None and total.completed == len(completed), f"the total is {total}")


@contextmanager
def _display(context: Context, board: Board) -> Generator[Callable[[TreeEvent | TotalProgress], None]]:
    """Shows the board while the transfers run, and takes keys; without a terminal, plays them."""

    def see(event: TreeEvent | TotalProgress) -> None:
        if isinstance(event, TotalProgress):
            board.total = event
            if not context.is_terminal:
                _play(board)

    if not context.is_terminal:
        yield see
        return
    with Live(get_renderable=board.render, console=Console(file=context.stream)), _keys(board.press):
        yield see


def _play(board: Board) -> None:
    first, *others, last = board.rows
    if first.is_half_way and not first.is_paused and len(first.resumed_from) == 1 and not first.has_ended:
        board.press("1")
        board.press("p")
    if last.is_half_way and not last.has_ended:
        board.press(str(len(board.rows)))
        board.press("c")
    if first.is_paused and all(row.has_ended for row in (*others, last)):
        board.press("1")
        board.press("p")


@contextmanager
def _keys(press: Callable[[str], None]) -> Generator[None]:
    """Calls `press` with each key, if there is a keyboard; not on Windows, whose event loop can't wait for one."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield
        return
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, lambda: [press(key) for key in os.read(keyboard, 64).decode(errors="replace")])
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
