"""Lines for a person or a log: on a terminal, progress is one line that changes."""

from typing import TextIO

__all__ = ["Terminal"]


class Terminal:
    """Prints to `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_line_open = False

    @property
    def is_interactive(self) -> bool:
        """Whether a line can be replaced, and somebody may be watching."""
        return self._stream.isatty()

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        self.end_line()
        print(text, file=self._stream, flush=True)

    def update(self, text: str) -> None:
        """Prints a line in place of the last `update`; where that can't be, a line of its own."""
        if not self.is_interactive:
            self.say(text)
            return
        # Back to the first column; what the last text had beyond this one is erased.
        print(f"\r{text}\033[K", end="", file=self._stream, flush=True)
        self._is_line_open = True

    def end_line(self) -> None:
        """Leaves the line that `update` may have open."""
        if self._is_line_open:
            self._is_line_open = False
            print(file=self._stream, flush=True)
