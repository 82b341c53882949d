"""Every page: its snippets run and print what it says, its pictures are up to date."""

import asyncio
from contextlib import chdir
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, run_page


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
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
