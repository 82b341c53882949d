"""Every page: its snippets run and print what it says, its pictures are up to date."""

import asyncio
import json
import re
import shlex
from contextlib import chdir
from pathlib import Path

import pytest

from server.__main__ import _parse, _parser
from tests.docs.pages import PAGES, ROOT, blocks, run_page, runnable


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.stem)
async def test_snippets_run_and_print_their_output_blocks(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RXFILES_STATE", str(tmp_path / "state"))
    with chdir(tmp_path):
        await asyncio.to_thread(run_page, page)


def test_code_of_other_projects_compiles() -> None:
    for page in PAGES:
        for block in blocks(page, "py"):
            compile(block.text, f"{page.relative_to(ROOT)}, line {block.line}", "exec")


def test_a_snippet_is_named_as_one() -> None:
    known = {"python", "py", "output", "console", "ini", "dockerfile", "json", "text", "yaml", "toml", "javascript"}
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.strip().startswith("```") and line.strip() != "```":
                assert line.strip()[3:].split()[0] in known, f"{page}: {line}"


def test_the_options_of_servers_are_right() -> None:
    found = [
        shlex.split(match[1] or "", comments=True)
        for page in PAGES
        for block in blocks(page, "console", "ini")
        for match in re.finditer(r"(?:rxfiles serve|python -m server)( .*)?$", block.text, re.MULTILINE)
    ]
    words = [word for name in ("ENTRYPOINT", "CMD") for word in _of_dockerfile(name)]
    assert words[:3] == ["python", "-m", "server"]
    assert len(found) >= 8
    for options in [*found, words[3:]]:
        _parse(_parser("rxfiles serve"), options)  # exits if one is wrong


def _of_dockerfile(instruction: str) -> list[str]:
    match = re.search(rf"^{instruction} (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert match is not None
    return json.loads(match[1])
