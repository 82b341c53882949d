"""Every Python snippet of the README runs as it is, and prints the output block below it; every path exists."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPET = re.compile(r"^```python\n(.*?)^```(?:\s*^```output\n(.*?)^```)?", re.DOTALL | re.MULTILINE)
SNIPPETS = [
    pytest.param(match[1], match[2], id=f"{path.name}-{number}")
    for path in [ROOT / "README.md"]
    for number, match in enumerate(SNIPPET.finditer(path.read_text()), 1)
]


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize(("code", "output"), SNIPPETS)
async def test_a_snippet_runs_and_prints_its_output_block(code: str, output: str | None) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(30):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, stderr.decode()) == (0, "")
    if output is not None:
        assert stdout.decode() == output


def test_the_readme_has_exactly_two_set_up_commands() -> None:
    console = re.search(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert console is not None
    assert [line.split("#")[0].split() for line in console[1].splitlines()] == [["make", "demo"], ["make", "test"]]


def test_every_path_in_the_readme_exists() -> None:
    paths = re.findall(r"`((?:rx_client|server|shared|tests)/[\w/]*(?:\.py)?)`", (ROOT / "README.md").read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []
    packages = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("[rs]*/*/__init__.py")}
    assert packages <= {path.rstrip("/") for path in paths}
