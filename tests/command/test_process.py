"""The command as a process: in a terminal and in pipes, interrupted, and with nobody who reads its output."""

import asyncio
import importlib
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rx_client.command.app import VERBS
from server import ChatData, DirectoryStore, FileServer, serve
from tests.command.conftest import Result
from tests.support import PATIENCE, eventually

ROOT = Path(__file__).parents[2]
MIB = 1024 * 1024


@pytest.fixture
async def stored(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData(DirectoryStore(tmp_path / "store"))) as server:
        monkeypatch.setenv("RXFILES_SERVER", server.uri)
        yield server


@asynccontextmanager
async def process(*arguments: str, **options: Any) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    streams = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE} | options
    command = [sys.executable, "-W", "error", "-m", "rx_client", *arguments]
    begun = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **streams)
    try:
        yield begun
    finally:
        if begun.returncode is None:
            begun.kill()
        await begun.communicate()


async def ended(begun: asyncio.subprocess.Process) -> Result:
    async with asyncio.timeout(PATIENCE * 2):
        out, err = await begun.communicate()
    assert begun.returncode is not None
    return Result(begun.returncode, (out or b"").decode(), (err or b"").decode())


async def test_an_interrupted_download_says_how_to_go_on_and_does(
    stored: FileServer, tmp_path: Path, home: Path
) -> None:
    content = os.urandom(16 * MIB)
    (tmp_path / "store" / "large").write_bytes(content)
    begun_at = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        async with process("get", "large", "--bwlimit", "1M") as begun:
            await eventually(lambda least=begun_at: part_size(home) > least)
            begun.send_signal(number)
            result = await ended(begun)
        assert result.code == 130
        *resuming, last = result.err.splitlines()
        assert len(resuming) == (1 if begun_at else 0)
        assert re.fullmatch(r"rxfiles get: interrupted at \d+%; run the same command again: it goes on where .*", last)
        assert not (home / "large").exists()
        begun_at = part_size(home)
    async with process("get", "large") as begun:
        result = await ended(begun)
    assert result.code == 0
    assert "large: resuming at " in result.err
    assert (home / "large").read_bytes() == content
    assert os.listdir(home) == ["large"]


async def test_an_interrupted_upload_goes_on_in_the_next_process(
    stored: FileServer, tmp_path: Path, home: Path
) -> None:
    content = os.urandom(16 * MIB)
    (home / "large").write_bytes(content)
    async with process("put", "large", "--bwlimit", "1M", "--json") as begun:
        assert begun.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while b'"progress"' not in await begun.stdout.readline():
                pass
        begun.send_signal(signal.SIGINT)
        result = await ended(begun)
    assert result.code == 130
    assert [event["event"] for event in result.events][-2:] == ["interrupted", "summary"]
    assert not (tmp_path / "store" / "large").exists()
    async with process("put", "large") as begun:
        result = await ended(begun)
    assert result.code == 0
    assert "large: resuming at " in result.err
    assert (tmp_path / "store" / "large").read_bytes() == content


def part_size(home: Path) -> int:
    return sum(path.stat().st_size for path in home.glob(".large.*.rxpart"))


async def test_a_second_interruption_ends_it_at_once(stored: FileServer, home: Path) -> None:
    async with process("put", "-", "--to", "x", stdin=asyncio.subprocess.PIPE) as begun:
        await eventually(lambda: bool(stored.connections))
        for _ in range(2):
            with suppress(ProcessLookupError):
                begun.send_signal(signal.SIGINT)
        result = await ended(begun)
    assert result.code == 130
    assert "Traceback" not in result.err


@pytest.mark.parametrize("arguments", [["cat", "large"], ["ls"]])
async def test_a_closed_output_is_no_error(stored: FileServer, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "store" / "large").write_bytes(bytes(MIB))
    reading, writing = os.pipe()
    os.close(reading)
    async with process(*arguments, stdout=writing) as begun:
        os.close(writing)
        result = await ended(begun)
    assert (result.code, result.err) == (141, "")


async def test_bars_in_a_terminal(stored: FileServer, home: Path) -> None:
    (home / "large").write_bytes(os.urandom(2 * MIB))
    ours, theirs = pty.openpty()
    screen: list[bytes] = []
    asyncio.get_running_loop().add_reader(ours, lambda: screen.append(os.read(ours, 65536)))
    try:
        async with process("put", "large", "--bwlimit", "4M", stdout=theirs, stderr=theirs, stdin=theirs) as begun:
            assert (await ended(begun)).code == 0
        await eventually(lambda: b"transferred" in b"".join(screen))
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
        os.close(theirs)
    text = b"".join(screen).decode()
    assert "% of 2.1 MB" in text
    assert "1 file transferred: 2.1 MB" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again


async def test_help_lists_every_verb_and_imports_nothing_that_takes_time() -> None:
    script = "import sys; from rx_client.command.app import main; main(['--help']); print(*sys.modules)"
    begun = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=-1, cwd=ROOT)
    for verb, summary in VERBS.items():
        if verb not in ("serve", "users"):
            function = getattr(importlib.import_module(f"rx_client.command.{verb}"), verb)
            assert (function.__doc__ or "").partition("\n")[0] == summary
    help_text, _, modules = (await ended(begun)).out.rstrip().rpartition("\n")
    assert all(f"  {name} " in help_text and summary in help_text for name, summary in VERBS.items())
    assert not {"asyncio", "reactivex", "rsocket", "rich", "server", "shared"} & set(modules.split())
