"""Draws the marble diagrams of the operators' docstrings.

A diagram is lines of text, in which a column is a moment. After its label a line has:

- `[ operator ]`: a box; `(a note)`; `<- 1 s ->`: a time between two moments;
- else what happens: `-` for time that passes, a letter with a small letter or digits for an event, a digit for a value,
  `|` for the completion, `X` for an error, `^` for a request. A line without `-` has numbers at their moments.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Final

from rx_client import operators
from tests.docs.pages import DOCS
from tests.docs.svg import INK, PALE, element, picture, text

__all__ = ["draw", "marble_pictures"]

_BLOCK: Final = re.compile(r"^::\n\n((?: {4}.*\n|\n)+?)(?=\S)", re.MULTILINE)
_LABEL_COLUMNS: Final = 16
_EVENT: Final = re.compile(r"X|[A-Z][a-z]?[0-9]*|[a-z]|[0-9]|\||\^")
_RUN: Final = re.compile(r"\S+")
_SPAN: Final = re.compile(r"<-+([^<>]*?)-*>")

_COLUMN, _ROW, _LEFT, _RADIUS = 16, 34, 120, 8.5
_COLOURS: Final = {"S": "#d0d7de", "P": "#9ec5fe", "T": "#9ec5fe", "R": "#ffd8a8", "C": "#b2f2bb"}
_OTHERS: Final = ("#ffd6e0", "#d0ebff", "#fff3bf", "#d3f9d8", "#e5dbff", "#ffe8cc")


def marble_pictures() -> dict[Path, str]:
    """The pictures of all operators."""
    return {
        DOCS / "images" / "marbles" / f"{name}.svg": draw(name, inspect.getdoc(getattr(operators, name)) or "")
        for name in operators.__all__
    }


def draw(name: str, docstring: str) -> str:
    """The picture of the marbles in a docstring."""
    block = _BLOCK.search(docstring)
    assert block is not None, f"{name} has no marbles"
    rows = [row.rstrip() for row in dedent(block[1]).splitlines() if row.strip()]
    columns = max(len(row) for row in rows if "(" not in row[_LABEL_COLUMNS:] or "[" in row) - _LABEL_COLUMNS
    width = max(_LEFT + _COLUMN * (columns + 1), *(_LEFT + 6 * (len(row.strip())) for row in rows))
    height = _ROW * len(rows) + 12
    return picture(width, height, f"Marbles of {name}", _elements(rows))


def _elements(rows: list[str]) -> Iterator[str]:
    for number, row in enumerate(rows):
        label, events, y = row[:_LABEL_COLUMNS].strip(), row[_LABEL_COLUMNS:], _ROW * (number + 0.5) + 6
        yield from [text(12, y, label, anchor="start", fill=PALE)] if label else []
        stripped = events.strip()
        if stripped.startswith("["):
            right = _x(len(events) - 1) + _COLUMN / 2
            yield element("rect", x=_LEFT, y=y - 13, width=right - _LEFT, height=26, rx=4, fill="#f6f8fa", stroke=PALE)
            yield text((_LEFT + right) / 2, y, stripped.strip("[ ]"), font_family="ui-monospace, monospace")
        elif stripped.startswith("("):
            note = stripped.strip("()").replace("^", "▲").replace("`", "")
            yield text(_LEFT, y, note, size=11, anchor="start", fill=PALE)
        elif _SPAN.search(events):
            yield from _spans(events, y)
        elif "-" in events:
            yield from _lifeline(events, y)
        else:
            yield from (text(_x(match.start()), y, match[0], size=11) for match in _RUN.finditer(events))


def _lifeline(events: str, y: float) -> Iterator[str]:
    for run in _RUN.finditer(events):
        end = _x(run.end() - 1) + (0 if run[0].endswith("|") else 6)
        yield element("line", x1=_x(run.start()) - 6, x2=end, y1=y, y2=y, stroke=PALE)
    for match in _EVENT.finditer(events):
        x, mark = _x(match.start()), match[0]
        if mark == "|":
            yield element("line", x1=x, x2=x, y1=y - 10, y2=y + 10, stroke=INK, stroke_width=2)
        elif mark == "X":
            path = f"M{x - 7:g} {y - 7:g}l14 14m0 -14l-14 14"
            yield element("path", d=path, stroke="#cf222e", stroke_width=2)
        elif mark == "^":
            yield element("path", d=f"M{x:g} {y - 7:g}l5 9h-10z", fill="#0969da")
        else:
            yield element("circle", cx=x, cy=y, r=_RADIUS, fill=_colour(mark), stroke=PALE)
            yield text(x, y, mark, size=(0, 11, 9, 7.5)[min(len(mark), 3)])


def _spans(events: str, y: float) -> Iterator[str]:
    for match in _SPAN.finditer(events):
        left, right = _x(match.start()), _x(match.end() - 1)
        yield element("path", d=f"M{left:g} {y - 5:g}v10m0 -5H{right:g}m0 -5v10", stroke=PALE, fill="none")
        yield element("rect", x=(left + right) / 2 - 16, y=y - 7, width=32, height=14, fill="#ffffff")
        yield text((left + right) / 2, y, match[1].strip(), size=11, fill=PALE)


def _x(column: int) -> float:
    return _LEFT + _COLUMN * (column + 0.5)


def _colour(mark: str) -> str:
    return _COLOURS.get(mark[0], _OTHERS[ord(mark[0]) % len(_OTHERS)])
