"""What the verbs do, against a server: the names and places of files, and what is printed."""

import io
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from server import FileServer
from tests.command.conftest import Command
from tests.command.test_process import ended, process


def make(home: Path, *names: str) -> None:
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"this is {name}")


def content(server: FileServer) -> dict[str, str]:
    return {name: bytes(data).decode() for name, data in server.data.files.items()}


PUTS = [
    (["a"], {"a": "a"}),
    (["a", "--to", "b"], {"b": "a"}),
    (["a", "--to", "docs/"], {"docs/a": "a"}),
    (["sub/c", "--to", "x/y"], {"x/y": "sub/c"}),
    (["a", "sub/c", "--to", "docs"], {"docs/a": "a", "docs/c": "sub/c"}),
    (["-r", "sub"], {"sub/c": "sub/c", "sub/d/e": "sub/d/e"}),
    (["-r", "sub/", "--to", "docs/"], {"docs/sub/c": "sub/c", "docs/sub/d/e": "sub/d/e"}),
    (["-r", "sub", "--to", "docs"], {"docs/c": "sub/c", "docs/d/e": "sub/d/e"}),
    (["-r", ".", "--exclude", "sub/d/*"], {"a": "a", "sub/c": "sub/c"}),
    (["-r", "a", "sub", "--include", "*e"], {"a": "a", "sub/d/e": "sub/d/e"}),
]


@pytest.mark.parametrize(("arguments", "names"), PUTS)
async def test_put_names(
    rxfiles: Command, server: FileServer, home: Path, arguments: list[str], names: dict[str, str]
) -> None:
    make(home, "a", "sub/c", "sub/d/e")
    result = await rxfiles("put", *arguments)
    assert (result.code, result.out) == (0, "")
    assert content(server) == {name: f"this is {source}" for name, source in names.items()}


async def test_put_into_a_folder_that_is_there(rxfiles: Command, server: FileServer, home: Path) -> None:
    make(home, "a")
    server.data.files["docs/b"] = b"b"
    assert (await rxfiles("put", "a", "--to", "docs")).code == 0
    assert set(server.data.files) == {"docs/a", "docs/b"}


async def test_put_standard_input(
    rxfiles: Command, server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe")))
    assert (await rxfiles("put", "-", "--to", "piped")).code == 0
    assert content(server) == {"piped": "from a pipe"}
    for nameless in (["-"], ["-", "--to", "docs/"], ["-", "-", "--to", "x"]):
        result = await rxfiles("put", *nameless)
        assert result.code == 2
        assert "--to NAME" in result.err


GETS = [
    (["a"], {"a": "a"}),
    (["docs/b"], {"b": "docs/b"}),
    (["docs/b", "--to", "c"], {"c": "docs/b"}),
    (["docs/b", "--to", "new/sub/c"], {"new/sub/c": "docs/b"}),
    (["docs/b", "--to", "new/"], {"new/b": "docs/b"}),
    (["docs/b", "--to", "there"], {"there/b": "docs/b"}),
    (["a", "docs/b", "--to", "new"], {"new/a": "a", "new/b": "docs/b"}),
    (["-r", "docs"], {"docs/b": "docs/b", "docs/sub/c": "docs/sub/c"}),
    (["-r", "docs/", "--to", "."], {"docs/b": "docs/b", "docs/sub/c": "docs/sub/c"}),
    (["-r", "docs", "--to", "there"], {"there/b": "docs/b", "there/sub/c": "docs/sub/c"}),
    (["-r", "/", "--to", "all", "--exclude", "docs/sub/*"], {"all/a": "a", "all/docs/b": "docs/b"}),
    (["-r", "a", "docs", "--include", "*c"], {"a": "a", "docs/sub/c": "docs/sub/c"}),
]


@pytest.mark.parametrize(("arguments", "paths"), GETS)
async def test_get_paths(
    rxfiles: Command, server: FileServer, home: Path, arguments: list[str], paths: dict[str, str]
) -> None:
    server.data.files.update({name: f"this is {name}".encode() for name in ("a", "docs/b", "docs/sub/c")})
    (home / "there").mkdir()
    result = await rxfiles("get", *arguments)
    assert (result.code, result.out) == (0, "")
    found = {path.relative_to(home).as_posix(): path.read_text() for path in home.rglob("*") if path.is_file()}
    assert found == {path: f"this is {name}" for path, name in paths.items()}


async def test_what_exists_is_replaced_skipped_or_a_failure(rxfiles: Command, server: FileServer, home: Path) -> None:
    make(home, "t/a", "t/b")
    server.data.files["t/a"] = b"at the server"
    for put in (["put", "t/a", "--to", "t/a"], ["put", "-r", "t"]):
        result = await rxfiles(*put, "--no-overwrite")
        assert result.code == (1 if "-r" not in put else 3)
        assert "t/a" in result.err
        assert "--no-overwrite" in result.err
        result = await rxfiles(*put, "--ignore-existing")
        assert result.code == 0
        assert "t/a is skipped: it exists already" in result.err
        assert server.data.files["t/a"] == b"at the server"
    for get in (["get", "t/a", "--to", "t/a"], ["get", "-r", "t"]):
        assert (await rxfiles(*get, "--no-overwrite")).code == 1
        assert (await rxfiles(*get, "--ignore-existing")).code == 0
        assert (home / "t/a").read_text() == "this is t/a"
        assert (await rxfiles(*get)).code == 0
        assert (home / "t/a").read_text() == "at the server"
        make(home, "t/a", "t/b")
    assert (await rxfiles("put", "t/a", "--to", "t/a")).code == 0
    assert content(server) == {"t/a": "this is t/a", "t/b": "this is t/b"}


async def test_cat(rxfiles: Command, server: FileServer, home: Path) -> None:
    server.data.files.update({"a": b"one\n", "b": b"two\n"})
    result = await rxfiles("cat", "a", "b", "a")
    assert (result.code, result.out, result.err) == (0, "one\ntwo\none\n", "")
    result = await rxfiles("get", "b", "--to", "-")
    assert (result.code, result.out, result.err) == (0, "two\n", "")
    assert os.listdir(home) == []


async def test_ls_and_stat(rxfiles: Command, server: FileServer) -> None:
    server.data.files.update({"a": b"one", "docs/b": b"two"})
    assert (await rxfiles("ls")).out == "a\ndocs/b\n"
    assert (await rxfiles("ls", "docs/")).out == "docs/b\n"
    assert (await rxfiles("ls", "-l")).out.split()[::4] == ["3", "3"]
    nothing = await rxfiles("ls", "x")
    assert (nothing.code, nothing.out) == (4, "")
    shown = (await rxfiles("stat", "a", "docs/b")).out
    assert shown.count("size:     3 bytes\n") == 2
    assert "name:     docs/b\n" in shown


async def test_mv_and_rm(rxfiles: Command, server: FileServer) -> None:
    server.data.files.update({name: name.encode() for name in ("a", "docs/b", "docs/sub/c")})
    assert (await rxfiles("mv", "a", "docs/")).out == "moved a to docs/a\n"
    assert (await rxfiles("mv", "-r", "docs", "text")).code == 0
    assert content(server) == {"text/a": "a", "text/b": "docs/b", "text/sub/c": "docs/sub/c"}
    assert (await rxfiles("mv", "text/a", "text/b", "--no-overwrite")).code == 1
    assert (await rxfiles("mv", "-r", "text", "text/below")).code == 2
    assert (await rxfiles("rm", "-r", "text/sub", "--dry-run")).out == "would delete text/sub/c\n"
    assert (await rxfiles("rm", "text/a")).out == "deleted text/a\n"
    assert (await rxfiles("rm", "-r", "/")).code == 2
    assert (await rxfiles("rm", "-r", "text")).code == 0
    assert content(server) == {}


@pytest.mark.parametrize("verb", [["get"], ["rm"], ["mv", "docs", "x"]])
async def test_a_folder_without_r_is_explained(rxfiles: Command, server: FileServer, verb: list[str]) -> None:
    server.data.files["docs/a"] = b""
    result = await rxfiles(*(verb if "docs" in verb else [*verb, "docs"]))
    assert result.code == 2
    assert "docs is a folder on the server: give -r" in result.err


async def test_a_file_that_cannot_be_where_it_has_to_is_a_failure(
    rxfiles: Command, server: FileServer, home: Path
) -> None:
    make(home, "t/a", "t/new\nline")
    (home / "t/link").symlink_to("a")
    put = await rxfiles("put", "-r", "t", "-q")
    assert put.code == 3
    assert put.err.count("\n") == 1
    assert "control characters" in put.err
    assert put.err.endswith("; put it alone, with --to NAME\n")
    assert (await rxfiles("put", "-r", "t", "--exclude", "new*")).code == 0
    assert content(server) == {"t/a": "this is t/a"}
    server.data.files["t/b\\c"] = b"a backslash"
    get = await rxfiles("get", "-r", "t", "--to", "u", "-q")
    assert (get.code, get.err) == (3, "rxfiles get: t/b\\c: its name has a backslash; get it alone, with --to PATH\n")
    assert (await rxfiles("get", "t/b\\c", "--to", "bc")).code == 0
    assert (home / "bc").read_text() == "a backslash"


async def test_nothing_to_transfer_is_said(rxfiles: Command, home: Path) -> None:
    (home / "empty").mkdir()
    result = await rxfiles("put", "-r", "empty")
    assert (result.code, result.err) == (0, "there are no files to transfer\n")
    assert (await rxfiles("put", "-r", "empty", "-q")).err == ""


async def test_watch_shows_what_is_there_and_what_happens(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RXFILES_SERVER", server.uri)
    server.data.files.update({"docs/a": b"1", "other": b"1"})
    async with process("watch", "docs/", "--json") as begun:
        assert begun.stdout is not None
        events: list[dict[str, object]] = []
        while (event := json.loads(await begun.stdout.readline()))["kind"] != "ready":
            events.append(event)
        await server.data.store.put("docs/b", b"22")
        events.append(json.loads(await begun.stdout.readline()))
        await server.data.store.delete("docs/a")
        events.append(json.loads(await begun.stdout.readline()))
        begun.send_signal(signal.SIGINT)
        result = await ended(begun)
    assert [(each["event"], each["kind"], each["name"], each.get("size")) for each in events] == [
        ("watched", "present", "docs/a", 1),
        ("watched", "added", "docs/b", 2),
        ("watched", "removed", "docs/a", None),
    ]
    assert result.code == 130


async def test_top_shows_what_the_server_does(rxfiles: Command, server: FileServer, home: Path) -> None:
    make(home, "a")
    await rxfiles("put", "a")
    result = await rxfiles("top", "--every", "0.1", "-n", "2")
    assert result.code == 0
    assert "1 connections, 0 transfers" in result.out
    assert "received 9 B (0 B/s)" in result.out
    assert re.search(r"^file.upload request-channel +0 +1 +0 +0$", result.out, re.MULTILINE)
    (statistics, _summary) = (await rxfiles("top", "-n", "1", "--json")).events
    assert statistics["event"] == "statistics"
    assert statistics["connections"] == 1
    assert statistics["errors"] == {}
