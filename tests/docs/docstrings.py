"""Makes Markdown of the docstrings, for the reference: an extension of Griffe that `mkdocs.yml` names.

Tables become Markdown's, sections such as `Raises (through on_error)` sections with a title, `::` a block of code, and
the marbles of an operator the picture that `tests.docs.marbles` has drawn of them.
"""

import re
from typing import Any, Final

from griffe import Extension, Object

_TITLED: Final = re.compile(r"^Raises \((.*)\):$", re.MULTILINE)
_MARBLES: Final = re.compile(r"^::\n\n((?: {4}.*\n|\n)+?)(?=\S)", re.MULTILINE)
_CODE: Final = re.compile(r"(?:^|(?<=\S)):{2}$", re.MULTILINE)


_TABLE: Final = re.compile(r"^(=+(?: +=+)+)\n(?:((?!=).*)\n\1\n)?((?:(?!=).*\n)+?)\1$", re.MULTILINE)


def _table(match: re.Match[str]) -> str:
    starts = [column.start() for column in re.finditer("=+", match[1])]
    ends = [*(start - 2 for start in starts[1:]), None]
    rows = [
        [row[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        for row in (match[2] or "", *match[3].splitlines())
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(starts), *rows[1:]))


class Docstrings(Extension):
    """See the module's docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = _TITLED.sub(lambda match: f"Raises: Raises, {match[1].replace('`', '')}", obj.docstring.value)
        if obj.parent is not None and obj.path.startswith("rx_client.operators."):
            picture = f"![What {obj.name} does, as a marble diagram](../images/marbles/{obj.name}.svg)\n\n"
            text = _MARBLES.sub(picture, text, count=1)
        text = _TABLE.sub(_table, text)
        obj.docstring.value = _CODE.sub(":", text)
