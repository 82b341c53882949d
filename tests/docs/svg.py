"""What all pictures of the documentation have in common: SVG as text, on a light ground that dark pages show, too."""

from collections.abc import Iterable
from typing import Final
from xml.sax.saxutils import escape, quoteattr

__all__ = ["INK", "PALE", "element", "picture", "text"]

INK: Final = "#24292f"
PALE: Final = "#6e7781"
_FONT: Final = "ui-sans-serif, system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


def element(tag: str, content: str = "", **attributes: str | float) -> str:
    """An element; underscores in the attributes' names are dashes."""
    given = "".join(f" {name.strip('_').replace('_', '-')}={quoteattr(_number(it))}" for name, it in attributes.items())
    return f"<{tag}{given}>{content}</{tag}>" if content else f"<{tag}{given}/>"


def text(x: float, y: float, content: str, size: float = 13, anchor: str = "middle", **attributes: str | float) -> str:
    """A line of text; `y` is its middle."""
    given = {"fill": INK, "font_size": size, "text_anchor": anchor} | attributes
    return element("text", escape(content), x=x, y=y + size * 0.35, **given)


def picture(width: float, height: float, title: str, elements: Iterable[str]) -> str:
    """The file's content."""
    size = f"{_number(width)} {_number(height)}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{_number(width)}" font-family="{_FONT}">',
        element("title", escape(title)),
        element("rect", width=width, height=height, rx=6, fill="#ffffff"),
        *elements,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
