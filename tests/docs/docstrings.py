"""Makes Markdown of the docstrings, for the reference: an extension of Griffe that `mkdocs.yml` names.

Sections such as `Raises (through on_error)` become sections with a title, `::` a block of code, and the marbles of an
operator the picture that `tests.docs.marbles` has drawn of them.
"""

import re
from typing import Any, Final

from griffe import Extension, Object

_TITLED: Final = re.compile(r"^Raises \((.*)\):$", re.MULTILINE)
_MARBLES: Final = re.compile(r"^::\n\n((?: {4}.*\n|\n)+?)(?=\S)", re.MULTILINE)
_CODE: Final = re.compile(r"(?:^|(?<=\S)):{2}$", re.MULTILINE)


class Docstrings(Extension):
    """See the module's docstring."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = _TITLED.sub(lambda match: f"Raises: Raises, {match[1].replace('`', '')}", obj.docstring.value)
        if obj.parent is not None and obj.path.startswith("rx_client.operators."):
            picture = f"![What {obj.name} does, as a marble diagram](../images/marbles/{obj.name}.svg)\n\n"
            text = _MARBLES.sub(picture, text, count=1)
        obj.docstring.value = _CODE.sub(":", text)
