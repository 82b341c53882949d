"""Shows what happens: as lines for a person, or as JSON for a program. `bars` has the display of a terminal.

Whatever the display, what was asked for goes to standard output, and what only tells how it goes to standard error.
"""

import json
import re
import sys
import time
from dataclasses import asdict
from typing import Any, Final

from rx_client import Completed, Failed, Progress, Retrying, Skipped, Started, TotalProgress
from shared import FileInfo

from .exits import Exit
from .failures import Failure, describe
from .happenings import Change, Happening, Listed, Note, Statistics, Watched
from .outcome import Outcome
from .statistics import show_statistics
from .words import show_bytes, show_date, show_percent, show_rate, show_seconds

__all__ = ["Display", "JsonLines", "Lines", "harmless"]

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DONE: Final = {"put": "put", "get": "got", "move": "moved", "delete": "deleted"}


class Display:
    """Shows a verb's events, errors and end. This one is quiet: errors, and what was asked for.

    Args:
        verb: Its name.
        outcome: What has happened; it is up to date when a method is called.

    Attributes:
        period: How many seconds apart the progress of one transfer is worth an event.
    """

    period = 1.0

    def __init__(self, verb: str, outcome: Outcome) -> None:
        self.outcome: Final = outcome
        self._verb = verb

    def on_event(self, event: Happening) -> None:
        """Shows one; called with each, in order."""
        match event:
            case Listed(info, "name"):
                self.show(info.name)
            case Listed(info, "line"):
                self.show(f"{info.size:>15,}  {show_date(info.modified):<19}  {info.name}")
            case Listed(info):
                self.show(_details(info))
            case Failed(name, error):
                sentence = describe(error).sentence
                self.complain(sentence if name in sentence else f"{name}: {sentence}")
            case Change(is_planned=True):
                self.show(_change(event))
            case Watched(kind, name) if kind != "ready":
                self.show(f"{kind:<8} {name}")
                sys.stdout.flush()
            case Statistics():
                # On a terminal in place of the last ones.
                self.show(("\x1b[H\x1b[2J" if sys.stdout.isatty() else "") + show_statistics(event))
                sys.stdout.flush()
            case _:
                pass

    def on_second(self) -> None:
        """Called once a second."""

    def on_failure(self, failure: Failure) -> None:
        """The error that ends the command."""
        self.complain(failure.sentence)

    def on_interrupted(self, sentence: str) -> None:
        """The user has interrupted the command."""
        self.complain(sentence)

    def on_end(self, code: Exit) -> None:
        """Nothing follows."""

    def close(self) -> None:
        """Leaves the terminal as it was; may be called again."""

    def show(self, text: str) -> None:
        """Writes to standard output."""
        sys.stdout.write(f"{text}\n")

    def note(self, text: str) -> None:
        """Writes to standard error, which may be a terminal: what a name could do to that is escaped."""
        sys.stdout.flush()  # where both are one terminal, lines stay in order
        print(harmless(text), file=sys.stderr, flush=True)

    def complain(self, sentence: str) -> None:
        """Says what is wrong."""
        self.note(f"rxfiles {self._verb}: {sentence}")


class Lines(Display):
    """For a person who reads a log: how far it is, every few seconds, and what is out of the ordinary."""

    _EVERY_SECONDS: Final = 5.0

    def __init__(self, verb: str, outcome: Outcome) -> None:
        super().__init__(verb, outcome)
        self._file: Progress | None = None
        self._all: TotalProgress | None = None
        self._shown_at = time.monotonic()

    def on_event(self, event: Happening) -> None:
        match event:
            case TotalProgress():
                self._all = event
            case Progress():
                self._file = event
            case Started(total=total, resumed_from=position) if position:
                self.note(f"{event.name}: resuming at {show_percent(position, total)}")
            case Retrying(attempt, delay, cause):
                self.note(f"{event.name}: {cause}; retry {attempt} in {show_seconds(delay)}")
            case Skipped(name, reason):
                self.note(f"{name} is skipped: {reason}")
            case Note(message):
                self.note(message)
            case Change():
                self.show(_change(event))
            case _:
                super().on_event(event)

    def on_second(self) -> None:
        now = time.monotonic()
        if now - self._shown_at < self._EVERY_SECONDS or not self.outcome.positions:
            return
        self._shown_at = now
        if (seconds := self.outcome.still_seconds) is not None:
            self.note(f"no progress for {seconds:.0f} s")
        elif self._all is not None and self._all.active + self._all.completed > 1:
            self.note(f"{self._all.completed} done, {self._all.active} under way: {_show_amount(self._all)}")
        elif self._file is not None:
            self.note(f"{self._file.name}: {_show_amount(self._file)}")

    def on_end(self, code: Exit) -> None:
        if (summary := _summary(self.outcome)) is not None:
            self.note(summary)
        elif self._verb in ("put", "get") and code is Exit.OK and not self.outcome.skipped:
            self.note("there are no files to transfer")


class JsonLines(Display):
    """`--json`: an object a line; see the package's docstring. Errors are lines on standard error as well."""

    period = 0.5

    def on_event(self, event: Happening) -> None:
        match event:
            case TotalProgress():
                self._emit("total", **_without("name", asdict(event)))
            case Progress():
                self._emit("progress", **asdict(event))
            case Started():
                self._emit("started", **_without("upload_id", asdict(event)))
            case Retrying(attempt, delay, cause):
                reason = {"error": describe(cause).kind, "message": str(cause)}
                self._emit("retrying", name=event.name, attempt=attempt, delay=delay, **reason)
            case Completed(info):
                self._emit("completed", **asdict(info))
            case Skipped(name, reason):
                self._emit("skipped", name=name, reason=reason)
            case Failed(name, error):
                self._emit("failed", name=name, **_failure(describe(error)))
                super().on_event(event)
            case Listed(info):
                self._emit("file", **asdict(info))
            case Note(message):
                self._emit("note", message=message)
            case Watched(kind, name, info):
                known = {"name": name or None} if info is None else asdict(info)
                self._emit("watched", kind=kind, **known)
            case Statistics(stats):
                self._emit("statistics", **asdict(stats))
            case Change():
                self._emit("change", **_without("is_planned", asdict(event)), dry_run=event.is_planned)

    def on_second(self) -> None:
        if (seconds := self.outcome.still_seconds) is not None:
            self._emit("waiting", seconds=round(seconds))

    def on_failure(self, failure: Failure) -> None:
        self._emit("error", **_failure(failure))
        super().on_failure(failure)

    def on_interrupted(self, sentence: str) -> None:
        self._emit("interrupted", message=sentence)
        super().on_interrupted(sentence)

    def on_end(self, code: Exit) -> None:
        seen = self.outcome
        counts = {"completed": seen.completed, "failed": seen.failed, "skipped": seen.skipped}
        self._emit("summary", exit_code=int(code), **counts, bytes=seen.moved, seconds=round(seen.seconds, 3))

    def _emit(self, event: str, **keys: Any) -> None:
        self.show(json.dumps({"event": event, **keys}))
        sys.stdout.flush()


def _show_amount(progress: Progress) -> str:
    """How far a transfer is, such as `43% of 2.8 GB, 35.2 MB/s, 45 s left`."""
    share = show_percent(progress.transferred, progress.total)
    parts = [share if progress.total is None else f"{share} of {show_bytes(progress.total)}"]
    if progress.bytes_per_second is not None:
        parts.append(show_rate(progress.bytes_per_second))
    if progress.seconds_left is not None:
        parts.append(f"{show_seconds(progress.seconds_left)} left")
    return ", ".join(parts)


def _change(change: Change) -> str:
    done = f"would {change.action}" if change.is_planned else _DONE[change.action]
    to = "" if change.to is None else f" to {change.to}"
    return f"{done} {change.name}{to}" + (f" ({change.reason})" if change.reason else "")


def _summary(outcome: Outcome) -> str | None:
    """What was transferred, in how many seconds; None if that says nothing new."""
    numbers = {"transferred": outcome.transferred, "failed": outcome.failed, "skipped": outcome.skipped}
    if sum(numbers.values()) < 2 and not outcome.transferred:
        return None
    counted = ", ".join(f"{number} {what}" for what, number in numbers.items() if number)
    files = "file" if outcome.transferred == 1 else "files"
    text = counted.replace(" ", f" {files} ", 1)
    if outcome.moved:
        rate = show_rate(outcome.moved / outcome.seconds)
        text += f": {show_bytes(outcome.moved)} in {show_seconds(outcome.seconds)}, {rate}"
    return text


def harmless(text: str) -> str:
    """`text` with its control characters escaped: names of local files may have them."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _details(info: FileInfo) -> str:
    rows = {
        "name": info.name,
        "size": f"{info.size:,} bytes",
        "modified": show_date(info.modified),
        "etag": info.etag or "-",
        "digest": info.digest or "-",
    }
    return "\n".join(f"{key + ':':<10}{value}" for key, value in rows.items())


def _failure(failure: Failure) -> dict[str, object]:
    return {"error": failure.kind, "message": failure.sentence, "exit_code": int(failure.code)}


def _without(key: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {each: value for each, value in keys.items() if each != key}
