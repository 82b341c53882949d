"""The interface between an example and its runner: the server, the output, and the error for a wrong result."""

import argparse
from dataclasses import dataclass
from typing import TextIO

from server import FileServer


@dataclass
class Context:
    """One run of an example.

    Attributes:
        uri: The server's, as `tcp://HOST:PORT`.
        server: The server at `uri` if it runs in this process, for a look at its counters; else None.
        options: The example's own command line options, by name.
        stream: The output; on a terminal, progress is one line that changes.
    """

    uri: str
    server: FileServer | None
    options: argparse.Namespace
    stream: TextIO
    _is_line_open: bool = False

    @property
    def is_terminal(self) -> bool:
        """Whether a line can be replaced, so that progress may be shown often."""
        return self.stream.isatty()

    def say(self, text: str) -> None:
        """Prints a line."""
        self.end_line()
        print(text, file=self.stream, flush=True)

    def update(self, text: str) -> None:
        """Prints progress: on a terminal in place of the last `update`, elsewhere as a line."""
        if not self.is_terminal:
            self.say(text)
            return
        # Back to the first column; the rest of a longer line before is erased.
        print(f"\r{text}\033[K", end="", file=self.stream, flush=True)
        self._is_line_open = True

    def end_line(self) -> None:
        """Ends the line that `update` may have left open."""
        if self._is_line_open:
            self._is_line_open = False
            print(file=self.stream, flush=True)


class WrongResult(Exception):
    """The example's result isn't what it should be; the text has the difference."""


def check(is_right: bool, otherwise: str) -> None:
    """Raises WrongResult with the text `otherwise` unless `is_right`."""
    if not is_right:
        raise WrongResult(otherwise)
