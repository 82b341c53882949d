"""The README is short, and has two commands; its paths and links lead somewhere. Its snippets: `tests/docs`."""

import re
from pathlib import Path

from tests.docs.pages import DOCS, PAGES, README, ROOT

CONTRIBUTING = DOCS / "contributing.md"


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    console = re.search(r"^```console\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert console is not None
    assert [line.split("#")[0].split() for line in console[1].splitlines()] == [["make", "demo"], ["make", "test"]]


def test_the_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_every_path_that_is_named_exists() -> None:
    for page in PAGES:
        named = re.findall(r"`((?:rx_client|server|shared|tests)/[\w/.]*)`", page.read_text())
        assert [path for path in named if not (ROOT / path).exists()] == [], page


def test_every_link_leads_to_a_file() -> None:
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        links = [link for link in re.findall(r"\]\(([^)\s#]+)", prose) if not link.startswith("https://")]
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_the_contributors_page_names_every_package() -> None:
    named = {path.rstrip("/") for path in re.findall(r"`([\w/]+/)`", CONTRIBUTING.read_text())}
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[rs]*/*/__init__.py")}
    assert packages <= named
    assert Path(DOCS).relative_to(ROOT).as_posix() in named
