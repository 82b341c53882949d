"""The pages of the documentation, and their snippets, run in one process as a reader would run them.

The blocks of a page share their names, in order, in a folder of their own. A block with a bare `await` runs, as in
`python -m asyncio` or a notebook, in a loop that has `files`, a client of the server `server`. What a block prints has
to be the `output` block below it, in which `...` stands for anything. A comment `<!-- python` has code for the tests
alone: what a reader has anyway. Other projects' code is marked `py`, and is only compiled.
"""

import ast
import asyncio
import inspect
import io
import re
from collections.abc import Awaitable, Iterator
from contextlib import AsyncExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from types import CodeType
from typing import Any, Final, cast

from rx_client import FileClient
from server import serve

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "rx_client" / "docs"
README: Final = ROOT / "README.md"
PAGES: Final = [README, *sorted(DOCS.rglob("*.md"))]

_BLOCK: Final = re.compile(
    r"^(?P<indent> *)(?:```(?P<language>\w+)|<!-- (?P<hidden>python))\n(?P<text>.*?)^(?P=indent)(?:```|-->)$"
    r"(?:\s*^(?P=indent)```output\n(?P<output>.*?)^(?P=indent)```$)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: What it is marked with.
        text: Its content, without indentation.
        output: That of the output block below it; None if there is none.
        line: The number of its first line.
    """

    language: str
    text: str
    output: str | None
    line: int


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages."""
    content = page.read_text(encoding="utf-8")
    return [block for block in _all_blocks(content) if block.language in languages]


def _all_blocks(content: str) -> Iterator[Block]:
    for match in _BLOCK.finditer(content):
        indent = re.compile(f"^{match['indent']}", re.MULTILINE)
        output = match["output"]
        yield Block(
            language=match["language"] or match["hidden"],
            text=indent.sub("", match["text"]),
            output=None if output is None else indent.sub("", output),
            line=content.count("\n", 0, match.start()) + 2,
        )


def run_page(page: Path) -> None:
    """Runs a page's snippets; raises AssertionError where the output differs, and what a snippet raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            for block in blocks(page, "python"):
                code = _compile(block, page)
                if code.co_flags & inspect.CO_COROUTINE and "files" not in names:
                    names["server"] = runner.run(stack.enter_async_context(serve()))
                    names["files"] = runner.run(stack.enter_async_context(FileClient.connect(names["server"].uri)))
                _run(block, code, names, runner, f"{page.relative_to(ROOT)}, line {block.line}")
        finally:
            runner.run(stack.aclose())


def _compile(block: Block, page: Path) -> CodeType:
    source = "\n" * (block.line - 1) + block.text  # so that a traceback has the page's lines
    return compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def _run(block: Block, code: CodeType, names: dict[str, Any], runner: asyncio.Runner, where: str) -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        result = eval(code, names)
        if inspect.isawaitable(result):
            runner.run(_wait_for(cast(Awaitable[object], result)))
    assert stderr.getvalue() == "", f"{where} printed to stderr: {stderr.getvalue()}"
    wanted, printed = block.output or "", stdout.getvalue()
    assert OutputChecker().check_output(wanted, printed, ELLIPSIS), f"{where} printed:\n{printed}"


async def _wait_for(result: Awaitable[object]) -> None:
    async with asyncio.timeout(30):
        await result
