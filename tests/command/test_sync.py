"""`rxfiles sync`: what is transferred and deleted, what isn't, and what each line says."""

import os
import time
from pathlib import Path

import pytest

from server import ChatData, FileServer, serve
from tests.command.conftest import Command
from tests.security.support import user_line, users

OLD = time.time() - 1_000_000


def write(folder: Path, files: dict[str, str], modified: float = OLD) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (modified, modified))


def read(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def lines(text: str) -> list[str]:
    return sorted(text.splitlines())


async def test_up_and_down(rxfiles: Command, server: FileServer, home: Path) -> None:
    write(home / "t", {"a": "one", "sub/b": "two", "sub/c": "three"})
    result = await rxfiles("sync", "t", "remote:x", "--dry-run", "-q")
    assert lines(result.out) == ["would put x/a (new)", "would put x/sub/b (new)", "would put x/sub/c (new)"]
    assert not server.data.files
    result = await rxfiles("sync", "t", "remote:x")
    assert (result.code, lines(result.out)) == (0, ["put x/a (new)", "put x/sub/b (new)", "put x/sub/c (new)"])
    assert set(server.data.files) == {"x/a", "x/sub/b", "x/sub/c"}

    result = await rxfiles("sync", "remote:x/", "copy")
    assert (result.code, lines(result.out)) == (0, ["got x/a (new)", "got x/sub/b (new)", "got x/sub/c (new)"])
    assert read(home / "copy") == read(home / "t")
    for again in (["t", "remote:x"], ["remote:x", "copy"], ["t", "remote:x", "--checksum"]):
        result = await rxfiles("sync", *again)
        assert (result.code, result.out, result.err) == (0, "", "3 files are the same\n")


async def test_what_differs_is_transferred(rxfiles: Command, server: FileServer, home: Path) -> None:
    write(home / "t", {"size": "a", "content": "b", "time": "c", "hidden": "d", "same": "e"})
    await rxfiles("sync", "t", "remote:")
    write(home / "t", {"size": "longer", "content": "x", "time": "c"}, OLD + 60)
    write(home / "t", {"hidden": "y"})
    result = await rxfiles("sync", "t", "remote:")
    assert lines(result.out) == ["put content (other content)", "put size (other size)"]
    assert result.err.startswith("3 files are the same\n2 files transferred")
    result = await rxfiles("sync", "t", "remote:", "--checksum")
    assert lines(result.out) == ["put hidden (other content)"]
    write(home / "t", {"size": "damage", "content": "z"}, OLD - 60)
    result = await rxfiles("sync", "remote:", "t", "--exclude", "con*")
    assert lines(result.out) == ["got size (other content)"]
    assert read(home / "t") == {"size": "longer", "content": "z", "time": "c", "hidden": "y", "same": "e"}


async def test_delete(rxfiles: Command, server: FileServer, home: Path) -> None:
    write(home / "t", {"a": "one", "sub/b": "two"})
    await rxfiles("sync", "t", "remote:x")
    server.data.files.update({"x/old": b"", "x/sub/old": b"", "x/log.tmp": b"", "other": b""})
    assert (await rxfiles("sync", "t", "remote:x")).out == ""
    options = ["--delete", "--exclude", "*.tmp"]
    result = await rxfiles("sync", "t", "remote:x", *options, "--dry-run")
    assert lines(result.out) == ["would delete x/old", "would delete x/sub/old"]
    result = await rxfiles("sync", "t", "remote:x", *options, "--max-delete", "1")
    assert (result.code, result.out) == (1, "")
    assert "2 files would be deleted, more than --max-delete 1; nothing was changed" in result.err
    result = await rxfiles("sync", "t", "remote:x", *options, "--max-delete", "2")
    assert (result.code, lines(result.out)) == (0, ["deleted x/old", "deleted x/sub/old"])
    assert set(server.data.files) == {"x/a", "x/sub/b", "x/log.tmp", "other"}

    write(home / "t", {"old": "", "sub/deep/old": "", "log.tmp": ""})
    result = await rxfiles("sync", "remote:x", "t", *options)
    assert (result.code, lines(result.out)) == (0, ["deleted t/old", "deleted t/sub/deep/old"])
    assert set(read(home / "t")) == {"a", "sub/b", "log.tmp"}
    assert sorted(os.listdir(home / "t" / "sub")) == ["b"]


async def test_an_empty_source_deletes_nothing(rxfiles: Command, server: FileServer, home: Path) -> None:
    write(home / "t", {"a": "one"})
    server.data.files["x/a"] = b"one"
    (home / "empty").mkdir()
    for source, target in (("empty", "remote:x"), ("remote:nothing", "t")):
        result = await rxfiles("sync", source, target, "--delete")
        assert (result.code, result.out) == (1, "")
        assert "the source has no files" in result.err
        assert (await rxfiles("sync", source, target)).code == 0
    assert (await rxfiles("sync", "missing", "remote:x", "--delete")).code == 4
    assert set(server.data.files) == {"x/a"}
    assert set(read(home / "t")) == {"a"}


async def test_nothing_is_deleted_after_a_failure_nor_behind_what_was_skipped(
    unconnected: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home / "t", {"a": "one"})
    (home / "t" / "link").symlink_to(home)
    files = {"x/link/b": b"behind a link", "x/c": b"only here"}
    data = ChatData(dict(files))
    async with serve(data=data, users=users(user_line("alice", "p", "rd@"), user_line("bob", "p"))) as server:
        monkeypatch.setenv("RXFILES_SERVER", server.uri)
        monkeypatch.setenv("RXFILES_PASSWORD", "p")
        monkeypatch.setenv("RXFILES_USER", "alice")
        result = await unconnected("sync", "t", "remote:x", "--delete")
        assert (result.code, result.out) == (5, "")
        assert "nothing is deleted, since files have failed" in result.err
        assert data.files.keys() == files.keys()
        monkeypatch.setenv("RXFILES_USER", "bob")
        result = await unconnected("sync", "t", "remote:x", "--delete")
        assert (result.code, lines(result.out)) == (0, ["deleted x/c", "put x/a (new)"])
        assert "link is skipped: it is a symbolic link" in result.err
        assert set(data.files) == {"x/link/b", "x/a"}


async def test_files_that_cannot_be_at_the_target_are_failures(
    rxfiles: Command, server: FileServer, home: Path
) -> None:
    write(home / "t", {"a": "one", "new\nline": "two"})
    server.data.files["x/old"] = b"old"
    up = await rxfiles("sync", "t", "remote:x", "--delete")
    assert (up.code, up.out) == (3, "put x/a (new)\n")
    assert "control characters" in up.err
    assert "nothing is deleted, since files of the source have failed" in up.err
    assert set(server.data.files) == {"x/a", "x/old"}
    assert (await rxfiles("sync", "t", "remote:x", "--exclude", "new*")).code == 0
    server.data.files["x/b:c"] = b"a colon"
    down = await rxfiles("sync", "remote:x", "u", "-q")
    assert (down.code, down.err.count("\n")) == (3, 1)
    assert down.err.endswith("drives and streams of Windows have; `rxfiles get` it alone, with --to PATH\n")
    empty = await rxfiles("sync", "remote:nothing", "v")
    assert (empty.code, empty.err) == (0, "the source has no files\n")


@pytest.mark.parametrize(
    "arguments", [["a", "b"], ["remote:a", "remote:b"], ["a", "remote:", "--max-delete", "1"], ["f", "remote:"]]
)
async def test_wrong_usage(rxfiles: Command, home: Path, arguments: list[str]) -> None:
    (home / "f").touch()
    assert (await rxfiles("sync", *arguments)).code == 2
