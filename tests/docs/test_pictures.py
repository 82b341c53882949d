"""The pictures that are drawn from the code show the code as it is."""

from tests.docs.pages import DOCS, ROOT
from tests.docs.pictures import pictures


def test_pictures_are_up_to_date() -> None:
    stale = [
        str(path.relative_to(ROOT))
        for path, content in pictures().items()
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    assert not stale, f"`make pictures` draws them anew: {stale}"


def test_there_are_no_pictures_of_what_is_gone() -> None:
    assert set((DOCS / "images" / "marbles").iterdir()) <= pictures().keys()
