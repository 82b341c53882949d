"""The pages of the documentation, and their snippets, run in one process as a reader would run them.

The blocks of a page share their names, in order, in a folder of their own. A block with a bare `await` runs, as in
`python -m asyncio` or a notebook, in a loop that has `files`, a client of the server `server`; this is also the server
that pages call `tcp://localhost:6565`, and that of the command `rxfiles` in `console` blocks. What a block prints has
to be the `output` block below it, in which `...` stands for anything; `console` blocks without one aren't run. A
comment `<!-- python` has code for the tests alone, in place of what a reader has. The code of other projects is marked
`py`, and is only compiled.
"""

import ast
import asyncio
import inspect
import io
import os
import re
import shlex
from collections.abc import Awaitable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from doctest import ELLIPSIS, OutputChecker
from pathlib import Path
from threading import Thread
from types import CodeType
from typing import Any, Final, cast

from rx_client import FileClient
from rx_client.command.app import main
from server import FileServer, serve

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "rx_client" / "docs"
README: Final = ROOT / "README.md"
PAGES: Final = [README, *sorted(DOCS.rglob("*.md"))]

_SERVER: Final = "tcp://localhost:6565"
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


def runnable(page: Path) -> list[Block]:
    """The blocks that are run."""
    return [block for block in blocks(page, "python", "console") if block.language == "python" or block.output]


def run_page(page: Path) -> None:
    """Runs a page's snippets; raises AssertionError where the output differs, and what a snippet raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        for block in runnable(page):
            text, where = block.text, f"{page.relative_to(ROOT)}, line {block.line}"
            if block.language == "console" or _SERVER in text or "await " in text:
                if "server" not in names:
                    names["server"] = stack.enter_context(_server())
                text = text.replace(_SERVER, names["server"].uri)
            if block.language == "console":
                _run_commands(block, text, names["server"].uri, where)
                continue
            code = _compile(text, block.line, page)
            if code.co_flags & inspect.CO_COROUTINE and "files" not in names:
                names["files"] = files = runner.run(FileClient.open(names["server"].uri))
                stack.callback(_close, runner, files)
            _run(block, code, names, runner, where)


def _close(runner: asyncio.Runner, files: FileClient) -> None:
    runner.run(files.close())


@contextmanager
def _server() -> Iterator[FileServer]:
    """A server in a thread, as a program's server is in another process."""
    started: Future[FileServer] = Future()
    stop = asyncio.Event()

    async def run() -> None:
        async with serve() as server:
            loops.append(asyncio.get_running_loop())
            started.set_result(server)
            await stop.wait()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield started.result(timeout=30)
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


def _compile(text: str, line: int, page: Path) -> CodeType:
    source = "\n" * (line - 1) + text  # so that a traceback has the page's lines
    return compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def _run(block: Block, code: CodeType, names: dict[str, Any], runner: asyncio.Runner, where: str) -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        result = eval(code, names)
        if inspect.isawaitable(result):
            runner.run(_wait_for(cast(Awaitable[object], result)))
    assert stderr.getvalue() == "", f"{where} printed to stderr: {stderr.getvalue()}"
    _compare(block, stdout.getvalue(), where)


def _run_commands(block: Block, text: str, uri: str, where: str) -> None:
    printed = io.StringIO()
    os.environ["RXFILES_SERVER"] = uri
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            for line in text.splitlines():
                name, *arguments = shlex.split(line, comments=True)
                assert name == "rxfiles", f"{where}: {line}"
                main(arguments)
    finally:
        del os.environ["RXFILES_SERVER"]
    _compare(block, printed.getvalue(), where)


def _compare(block: Block, printed: str, where: str) -> None:
    wanted = block.output or ""
    if not wanted:
        printed = printed.strip()  # without a terminal, what is shown for a moment leaves an empty line
    assert OutputChecker().check_output(wanted, printed, ELLIPSIS), f"{where} printed:\n{printed}"


async def _wait_for(result: Awaitable[object]) -> None:
    async with asyncio.timeout(30):
        await result
