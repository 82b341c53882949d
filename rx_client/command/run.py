"""What a verb is given beside its own options, and how it is run: connected, shown, interrupted, and ended."""

import asyncio
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from reactivex import Observable
from reactivex import operators as ops

from rx_client import ConnectOptions, FileClient
from shared import Unauthenticated

from ..connection.managed import Connection
from .display import Display, JsonLines, Lines
from .exits import Exit
from .failures import UsageError, describe
from .happenings import Happening
from .interrupts import Interrupts
from .outcome import Outcome
from .target import Target, can_ask
from .words import show_percent

__all__ = ["Run", "Session", "Verb"]


class Run:
    """One run of a verb.

    Args:
        files: The client; it is connected when the verb's observable is subscribed to.
        period: How many seconds apart the progress of one transfer is worth an event.
        is_json: Whether what is emitted is shown as JSON.

    Attributes:
        again: What an interrupted user is told to do; the verb sets it.
        writes_stdout: Whether the verb writes to standard output itself.
    """

    def __init__(self, files: FileClient, period: float, *, is_json: bool) -> None:
        self.files = files
        self.period = period
        self.is_json = is_json
        self.again = ""
        self.writes_stdout = False

    def use_stdout(self) -> None:
        """The verb writes to standard output itself; no more than errors is shown then."""
        if self.is_json:
            raise UsageError("--json and the file's content can't both go to standard output")
        self.writes_stdout = True


Verb = Callable[[Run], Observable[Happening]]
"""Makes the pipeline. It is called before the client is connected: what is wrong with the options is an error here."""


class Session:
    """The options that all verbs share, put to use.

    Args:
        verb: The verb's name.
        interrupts: Of the process.
        as_json: Whether to show what happens as JSON.
        quiet: Whether to show no more than errors, and what was asked for.
    """

    def __init__(self, verb: str, interrupts: Interrupts, *, as_json: bool, quiet: bool) -> None:
        self._interrupts = interrupts
        self._outcome = Outcome()
        self._verb = verb
        self._again = ""
        self._is_json = as_json
        self._display = _display(verb, self._outcome, as_json=as_json, quiet=quiet)
        interrupts.on_exit = self._display.close

    def run(self, find_target: Callable[[], Target], verb: Verb) -> Exit:
        """Runs the verb to its end, whatever that is; returns the exit code."""
        try:
            code = self._run(find_target, verb)
            self._display.close()
            self._display.on_end(code)
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_stdout()
            code = Exit.OUTPUT_CLOSED
        finally:
            self._display.close()
        return code

    def _run(self, find_target: Callable[[], Target], verb: Verb) -> Exit:
        try:
            target = find_target()
            try:
                return asyncio.run(self._connected(target, verb))
            except Unauthenticated:
                if target.auth is not None or not can_ask():
                    raise
                return asyncio.run(self._connected(target.ask(), verb))
        except asyncio.CancelledError:
            return Exit.INTERRUPTED
        except BrokenPipeError:
            raise
        except Exception as error:
            failure = describe(error)
            if failure.code is Exit.NO_SERVER and self._outcome.moved and self._again:
                failure = replace(failure, sentence=f"{failure.sentence}; {self._again}")
            if os.environ.get("RXFILES_DEBUG"):
                traceback.print_exc()
            self._display.close()
            self._display.on_failure(failure)
            return failure.code

    async def _connected(self, target: Target, verb: Verb) -> Exit:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "this is one"
        connection = Connection(target.uris, ConnectOptions(), target.auth, target.tls)
        run = Run(FileClient(connection), self._display.period, is_json=self._is_json)
        events = verb(run)
        self._again = run.again
        if run.writes_stdout:
            self._display = Display(self._verb, self._outcome)
        with self._interrupts.calling(lambda: loop.call_soon_threadsafe(task.cancel)):
            try:
                await connection.open()
                await self._shown(events)
            except asyncio.CancelledError:
                self._display.close()
                self._display.on_interrupted(self._how_to_go_on())
                raise
            finally:
                await run.files.close()
        return self._outcome.code

    async def _shown(self, events: Observable[Happening]) -> None:
        """Returns when the pipeline has completed; raises what it failed with."""

        def on_event(event: Happening) -> None:
            self._outcome.on_event(event)
            self._display.on_event(event)

        ticking = asyncio.create_task(self._tick())
        try:
            await events.pipe(ops.do_action(on_event), ops.count())
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._display.on_second()

    def _how_to_go_on(self) -> str:
        positions = [show_percent(*position) for position in self._outcome.positions.values()]
        where = f" at {positions[0]}" if len(positions) == 1 else ""
        return f"interrupted{where}" + (f"; {self._again}" if self._again else "")


def _display(verb: str, outcome: Outcome, *, as_json: bool, quiet: bool) -> Display:
    if as_json:
        return JsonLines(verb, outcome)
    if quiet:
        return Display(verb, outcome)
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console  # noqa: PLC0415 - which takes its time, and is for terminals

        from .bars import Bars  # noqa: PLC0415

        return Bars(verb, outcome, Console(stderr=True))
    return Lines(verb, outcome)


def _drop_stdout() -> None:
    """Makes what is left in the buffer of a closed standard output go nowhere, instead of failing at the exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
