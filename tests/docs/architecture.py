"""Draws the packages and what imports what, from the sources' imports.

A package is above what it imports. Arrows that others imply are left out, and so are small modules in between.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Final

from tests.docs.pages import DOCS
from tests.docs.svg import INK, PALE, element, picture, text
from tests.test_architecture import IMPORTS, MODULES

__all__ = ["architecture_picture"]

COLUMNS: Final = {
    "rx_client.examples": 2,
    "rx_client.command": 0,
    "rx_client.testing": 1,
    "rx_client.client": 0,
    "rx_client.transfers": 0,
    "rx_client.requests": 0,
    "rx_client.connection": 0,
    "rx_client.operators": 1,
    "rx_client.rx": 0,
    "shared.engine": 2,
    "shared.transport": 2,
    "shared.files": 2,
    "shared.protocol": 2,
    "shared.frames": 3,
    "shared.errors": 2,
    "server.app": 4,
    "server.net": 4,
    "server.routes": 4,
    "server.stores": 4,
}
"""Where each stands: the sub-packages, and the modules that are a layer of their own."""

_OTHERS: Final = {"rx_client": 1, "shared": 3, "server": 5}
"""Where other sub-packages stand."""

_COLOURS: Final = {"rx_client": "#dbeafe", "shared": "#f3f4f6", "server": "#dcfce7"}
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 190, 62, 24, 34, 24


def architecture_picture() -> dict[Path, str]:
    """The picture's file and its content."""
    known = {name for name in MODULES if _place(name) == name}
    imports = {name: _reduced(name) for name in known}
    rows = sorted({_rank(name) for name in known}, reverse=True)
    places = {name: (_x(_column(name)), _MARGIN + rows.index(_rank(name)) * (_HEIGHT + _GAP_Y)) for name in known}
    width = _x(max(map(_column, known))) + _WIDTH + _MARGIN
    height = _MARGIN + len(rows) * (_HEIGHT + _GAP_Y)
    arrows = [_arrow(places[name], places[other]) for name in sorted(known) for other in sorted(imports[name])]
    boxes = [part for name in sorted(known) for part in _box(name, *places[name])]
    return {
        DOCS / "images" / "architecture.svg": picture(width, height, "The packages, and their imports", arrows + boxes)
    }


def _x(column: int) -> float:
    return _MARGIN + column * (_WIDTH + _GAP_X)


def _place(module: str) -> str | None:
    """Which box a module belongs to."""
    name = ".".join(module.split(".")[:2])
    is_package = name.count(".") == 1 and MODULES[name].stem == "__init__"
    return name if is_package or name in COLUMNS else None


def _column(box: str) -> int:
    return COLUMNS.get(box, _OTHERS[box.partition(".")[0]])


@cache
def _imports(box: str) -> frozenset[str]:
    """The boxes that a box imports, by itself or through modules that have no box."""
    found: set[str] = set()
    seen: set[str] = set()
    todo = [name for name in MODULES if _place(name) == box]
    while todo:
        for other in IMPORTS[todo.pop()] - seen:
            seen.add(other)
            place = _place(other)
            if place is None:
                todo.append(other)
            else:
                found.add(place)
    return frozenset(found - {box})


@cache
def _reached(box: str) -> frozenset[str]:
    return _imports(box).union(*(_reached(other) for other in _imports(box)))


def _reduced(box: str) -> set[str]:
    implied = set[str]().union(*(_reached(other) for other in _imports(box)))
    return set(_imports(box)) - implied


@cache
def _rank(box: str) -> int:
    return max((_rank(other) + 1 for other in _imports(box)), default=0)


def _box(name: str, x: float, y: float) -> Iterator[str]:
    colour = _COLOURS[name.split(".", maxsplit=1)[0]]
    yield element("rect", x=x, y=y, width=_WIDTH, height=_HEIGHT, rx=6, fill=colour, stroke=INK)
    yield text(x + _WIDTH / 2, y + 14, name, size=13, font_weight="bold")
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8"))) or ""
    about = docstring.partition("\n")[0].partition(": `")[0].rstrip(".").replace("`", "")
    for number, line in enumerate(wrap(about, 34, max_lines=3, placeholder=" …")):
        yield text(x + _WIDTH / 2, y + 29 + 12 * number, line, size=10, fill=PALE)


def _arrow(upper: tuple[float, float], lower: tuple[float, float]) -> str:
    x1, y1 = upper[0] + _WIDTH / 2, upper[1] + _HEIGHT
    x2, y2 = lower[0] + _WIDTH / 2, lower[1]
    shift = 0 if x1 == x2 else 20 if x1 > x2 else -20
    x1, x2, middle = x1 - shift, x2 + shift, (y1 + y2) / 2
    curve = f"M{x1:g} {y1:g}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2 - 6:g}"
    return element("path", d=f"{curve}m-4 -3l4 9l4 -9", fill="none", stroke=PALE)
