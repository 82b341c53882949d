"""`python -m tests.docs.terminal`: a picture of a real terminal for the README, of a transfer that is interrupted.

The command runs in a pseudo terminal, against a server of its own, with Ctrl-C after a while; and once more, until the
picture is taken. What it prints is never the same twice, so no test compares the picture.
"""

import io
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from tests.docs.pages import DOCS, ROOT

_COLUMNS: Final = 92
_COMMAND: Final = ["put", "-r", "photos", "--bwlimit", "15M"]
_PICTURE: Final = DOCS / "images" / "terminal.svg"
_ESCAPE: Final = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")
_FROM_ELSEWHERE: Final = re.compile(r"\s*(?:@font-face \{.*?\}|<!-- .*? -->)\n", re.DOTALL)


class Screen:
    """What a terminal shows: as much of one as progress bars need."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = 0
        self._is_at_start = True

    def write(self, data: str) -> None:
        for match in _ESCAPE.finditer(data):
            code, kind = match[1], match[2]
            if kind == "A":
                self._row = max(0, self._row - int(code or 1))
            elif kind == "K":
                self.lines[self._row] = ""
            elif kind == "m":
                self.lines[self._row] += match[0]
            elif match[0] == "\n":
                self._row += 1
                if self._row == len(self.lines):
                    self.lines.append("")
            elif match[0] == "\r":
                self._is_at_start = True
            elif kind is None:
                if self._is_at_start and not self.lines[self._row].startswith("\x1b"):
                    self.lines[self._row] = ""
                self.lines[self._row] += match[0]
                self._is_at_start = False


def run(screen: Screen, environment: dict[str, str], folder: Path, seconds: float, *, is_interrupted: bool) -> None:
    """Runs the command for so long, with Ctrl-C at the end, or is content with what the screen shows then."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, "-m", "rx_client", *_COMMAND], environment)
    try:
        for data in _read(terminal, seconds):
            screen.write(data)
        if is_interrupted:
            os.write(terminal, b"\x03")
            for data in _read(terminal, 10):
                screen.write(data)
    finally:
        os.close(terminal)  # which hangs up
        os.waitpid(child, 0)


def _read(terminal: int, seconds: float) -> Iterator[str]:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and select.select([terminal], [], [], left)[0]:
        try:
            yield os.read(terminal, 65536).decode()
        except OSError:  # the end, on Linux
            return


def draw(lines: list[str]) -> str:
    """A picture of a terminal, without fonts from elsewhere."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), legacy_windows=False)
    console.print(Text.from_ansi("\n".join(lines).rstrip()))
    svg = console.export_svg(title="rxfiles", unique_id="terminal")
    return _FROM_ELSEWHERE.sub("\n", svg).replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', monospace")


def main() -> None:
    """Takes the picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        (folder / "photos" / "beach.mp4").write_bytes(os.urandom(80_000_000))
        for number in range(1, 9):
            (folder / "photos" / f"{number}.jpg").write_bytes(os.urandom(700_000))
        command = [sys.executable, "-m", "server", "--store", str(folder / "store"), "--port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(_COLUMNS), "TERM": "xterm-256color"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            assert server.stdout is not None, "it is a pipe"
            environment["RXFILES_SERVER"] = server.stdout.readline().split()[-1]
            environment["RXFILES_STATE"] = str(folder / "state")
            try:
                screen, prompt = Screen(), f"\x1b[1m$ rxfiles {' '.join(_COMMAND)}\x1b[0m"
                screen.write(f"{prompt}\n")
                run(screen, environment, folder, 4.5, is_interrupted=True)
                screen.write(f"{prompt}\n")
                run(screen, environment, folder, 4.0, is_interrupted=False)
            finally:
                server.terminate()
    for line in screen.lines:
        print(Text.from_ansi(line).plain)
    _PICTURE.write_text(draw(screen.lines), encoding="utf-8")


if __name__ == "__main__":
    main()
