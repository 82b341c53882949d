"""What the tests of the command need: a server, a folder to be in, and the command run in this process."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rx_client.command.app import main
from server import ChatData, FileServer, serve


@dataclass(frozen=True)
class Result:
    """The end of a command."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """What `--json` has printed."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Coroutine[Any, Any, Result]]


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    async with serve(data=ChatData()) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory; nothing of the user's environment is left."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name in ("SERVER", "USER", "PASSWORD", "DEBUG"):
        monkeypatch.delenv(f"RXFILES_{name}", raising=False)
    monkeypatch.setenv("RXFILES_STATE", str(tmp_path / "state"))
    return home


@pytest.fixture
def unconnected(home: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in a thread of this process."""

    async def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = await asyncio.to_thread(main, list(arguments))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Result(code, out, err)

    return run


@pytest.fixture
def rxfiles(unconnected: Command, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same, with a server."""
    monkeypatch.setenv("RXFILES_SERVER", server.uri)
    return unconnected
