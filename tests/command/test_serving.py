"""`rxfiles serve` and `rxfiles users`: what a server needs, on its own computer."""

import io
import json
import signal
import sys
from pathlib import Path

import pytest

from server import Users
from server.users.__main__ import main as print_line
from server.users.file import UserFile
from tests.command.conftest import Command
from tests.command.test_process import ended, process
from tests.security.support import CHEAP


@pytest.fixture
def auth_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RXFILES_AUTH_FILE", "users")
    for module in ("line", "users"):
        monkeypatch.setattr(f"server.users.{module}.PasswordHasher", lambda: CHEAP)
    return home / "users"


async def test_users(unconnected: Command, auth_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def users(*arguments: str, password: str = "p\n") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(password))
        result = await unconnected("users", *arguments)
        return result.code, result.out, result.err

    auth_file.write_text("# staff\n")
    auth_file.chmod(0o640)
    assert await users("add", "alice", "r@", "rwd@alice/") == (0, "", "")
    assert await users("add", "bob") == (0, "", "")
    assert await users("list") == (0, "alice\tr@ rwd@alice/\nbob\teverything\n", "")
    assert Users.read(auth_file)
    before = UserFile(str(auth_file)).users["alice"]
    assert (await users("add", "alice"))[0] == 2
    assert await users("add", "alice", "--replace", password="q\n") == (0, "", "")
    after = UserFile(str(auth_file)).users["alice"]
    assert (after.permissions, after.hashed == before.hashed) == ("r@ rwd@alice/", False)
    assert await users("permissions", "alice") == (0, "r@ rwd@alice/\n", "")
    assert await users("permissions", "alice", "everything") == (0, "", "")
    assert await users("permissions", "bob", "r@") == (0, "", "")
    assert await users("list") == (0, "alice\teverything\nbob\tr@\n", "")
    assert await users("remove", "alice") == (0, "", "")
    lines = auth_file.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["# staff", "bob"]
    assert auth_file.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in auth_file.parent.iterdir()) == ["users"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["remove", "carl"], 4, "there is no user 'carl'"),
        (["permissions", "bob", "r"], 2, "r@PREFIX"),
        (["add", "carl", "x@"], 2, "r@PREFIX"),
        (["add", "a:b"], 2, "a colon"),
        (["add", "carl"], 2, "the password is empty"),
        (["list", "--auth-file", "missing"], 4, "missing: No such file"),
        (["list", "--auth-file", "wrong"], 2, "wrong: line 2: the hash of 'b'"),
    ],
)
async def test_users_errors(
    unconnected: Command,
    auth_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    auth_file.write_text(f"bob:{CHEAP.hash('p')}")
    (auth_file.parent / "wrong").write_text(f"a:{CHEAP.hash('p')}\nb:x")
    before = auth_file.read_text()
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    result = await unconnected("users", *arguments)
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1)
    assert text in result.err
    assert auth_file.read_text() == before


def test_the_module_that_prints_a_line(
    auth_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int | str | None, str]:
        monkeypatch.setattr(sys, "argv", ["users", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO("p\n"))
        try:
            code = print_line()
        except SystemExit as ended:
            return ended.code, capsys.readouterr().out
        return code, capsys.readouterr().out

    code, text = run("alice", "r@", "rwd@alice/")
    assert (code, text[:6], text[-15:]) == (0, "alice:", ":r@ rwd@alice/\n")
    assert Users(text)
    code, text = run("--help")
    assert (code, text.startswith("usage: ")) == (0, True)
    assert run("alice", "x") == (2, "")


async def test_serve_and_its_log(home: Path, unconnected: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    async with process("serve", "--port", "0", "--log-json", "--log-level", "info") as begun:
        assert begun.stdout is not None
        line = (await begun.stdout.readline()).decode()
        assert line.startswith("listening on tcp://127.0.0.1:")
        assert (await unconnected("ls", "--server", line.split()[-1])).code == 0
        begun.send_signal(signal.SIGTERM)
        result = await ended(begun)
    assert result.code == 0
    records = [json.loads(line) for line in result.err.splitlines()]
    assert records
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    assert (await unconnected("serve", "--help")).out.startswith("usage: rxfiles serve")
    assert (await unconnected("serve", "--port", "x")).code == 2
    assert (await unconnected("serve", "--version")).out == (await unconnected("--version")).out
