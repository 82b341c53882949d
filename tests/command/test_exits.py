"""Each exit code, and the sentence with it, which says what to do."""

import io
import socket
from pathlib import Path

import pytest
import trustme

from server import FileServer, serve, server_tls
from tests.command.conftest import Command
from tests.security.support import user_line, users


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


WRONG = [
    (["ls", "-x"], "No such option"),
    (["gett"], "Did you mean 'get'"),
    (["put"], "Missing argument"),
    (["ls"], "Give --server tcp://HOST[:PORT], or set RXFILES_SERVER"),
    (["ls", "--server", "localhost"], "write tcp://localhost"),
    (["ls", "--server", "http://localhost"], "is not of the form tcp://HOST[:PORT]"),
    (["ls", "--server", "tcp://bob:secret@localhost"], "set RXFILES_USER and RXFILES_PASSWORD"),
    (["ls", "--server", "tcp://localhost", "--ca", "x"], "write tcps:// in place of tcp://"),
    (["ls", "--server", "tcps://localhost", "--ca", "missing"], "a file of certificates (PEM)"),
    (["ls", "--server", "tcps://localhost", "--cert", "missing"], "a certificate and its private key (PEM)"),
    (["get", "a", "--server", "tcp://localhost", "--bwlimit", "fast"], "give bytes a second, as 500K or 10M"),
    (["get", "a", "--server", "tcp://localhost", "--digest", "md5"], "sha-256"),
    (["get", "a", "b/a", "--server", "tcp://localhost"], "get them one by one, with --to"),
    (["put", ".", "--server", "tcp://localhost"], ". is a folder: give -r"),
    (["put", "f", "--to", "a\x1bb", "--server", "tcp://localhost"], "control characters"),
    (["put", "f", "f", "--server", "tcp://localhost"], "put them one by one, with --to"),
    (["get", "", "--server", "tcp://localhost"], "a name is empty: `rxfiles ls` lists the names"),
    (["cat", "a", "", "--server", "tcp://localhost"], "a name is empty: `rxfiles ls` lists the names"),
    (["get", "a", "b", "--to", "f", "--server", "tcp://localhost"], "f is a file: give a folder for several files"),
]


@pytest.mark.parametrize(("arguments", "advice"), WRONG)
async def test_usage_is_2(unconnected: Command, home: Path, arguments: list[str], advice: str) -> None:
    (home / "f").touch()
    result = await unconnected(*arguments)
    assert result.code == 2
    assert advice in result.err
    assert "secret" not in result.err


async def test_credentials_are_complete(unconnected: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "PASSWORD"):
        monkeypatch.delenv("RXFILES_USER", raising=False)
        monkeypatch.delenv("RXFILES_PASSWORD", raising=False)
        monkeypatch.setenv(f"RXFILES_{name}", "x")
        result = await unconnected("ls", "--server", "tcp://localhost")
        assert (result.code, "set both" in result.err) == (2, True)


async def test_not_found_is_4_and_some_failed_is_3(rxfiles: Command, server: FileServer, home: Path) -> None:
    server.data.files["a"] = b"a"
    assert (await rxfiles("put", "missing")).code == 4
    for verb in ("get", "cat", "stat", "rm"):
        result = await rxfiles(verb, "missing")
        assert (result.code, result.err.count("\n")) == (4, 1)
        assert "no file named 'missing'; `rxfiles ls` lists the names" in result.err
        assert (await rxfiles(verb, "missing", "gone")).code == 4
        assert (await rxfiles(verb, "missing", "a")).code == 3
    assert (await rxfiles("mv", "missing", "b")).code == 4


async def test_refused_is_5(unconnected: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "a").touch()
    async with serve(users=users(user_line("alice", "right", "r@"))) as server:
        monkeypatch.setenv("RXFILES_SERVER", server.uri)
        result = await unconnected("ls")
        assert (result.code, "set RXFILES_USER and RXFILES_PASSWORD" in result.err) == (5, True)
        monkeypatch.setenv("RXFILES_USER", "alice")
        monkeypatch.setenv("RXFILES_PASSWORD", "wrong")
        result = await unconnected("ls")
        assert (result.code, "check RXFILES_USER and RXFILES_PASSWORD" in result.err) == (5, True)
        monkeypatch.setenv("RXFILES_PASSWORD", "right")
        assert (await unconnected("ls")).code == 0
        result = await unconnected("put", "a")
        assert (result.code, "you may not write 'a'" in result.err) == (5, True)


async def test_a_person_at_a_terminal_is_asked(
    unconnected: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("run", "target"):
        monkeypatch.setattr(f"rx_client.command.{module}.can_ask", lambda: True)
    async with serve(users=users(user_line("alice", "right"))) as server:
        monkeypatch.setenv("RXFILES_SERVER", server.uri)
        for password, code in (("right", 0), ("wrong", 5)):
            monkeypatch.setattr("getpass.getpass", lambda _, typed=password: typed)
            monkeypatch.setattr("sys.stdin", io.StringIO("alice\n"))
            monkeypatch.delenv("RXFILES_USER", raising=False)
            result = await unconnected("ls")
            assert result.code == code
            assert "This server wants a user. User name: " in result.err
            monkeypatch.setenv("RXFILES_USER", "alice")
            result = await unconnected("ls")
            assert result.code == code
            assert "User name" not in result.err


async def test_a_prompt_that_ends_without_an_answer_is_wrong_usage(
    unconnected: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(_: str) -> str:
        raise EOFError

    for module in ("run", "target"):
        monkeypatch.setattr(f"rx_client.command.{module}.can_ask", lambda: True)
    monkeypatch.setattr("getpass.getpass", ended)
    async with serve(users=users(user_line("alice", "right"))) as server:
        monkeypatch.setenv("RXFILES_SERVER", server.uri)
        for typed in ("", "alice\n"):
            monkeypatch.setattr("sys.stdin", io.StringIO(typed))
            result = await unconnected("ls")
            assert (result.code, result.err.count("Password")) == (2, 0)
            assert "set RXFILES_USER and RXFILES_PASSWORD" in result.err


async def test_each_failure_says_what_to_do(rxfiles: Command, server: FileServer, home: Path) -> None:
    server.data.files["docs/a"] = b"a"
    (home / "f").touch()
    for arguments, code, advice in (
        (["cat", "docs"], 2, "docs is a folder on the server: `rxfiles get -r` gets all files below it"),
        (["get", "docs", "--to", "-"], 2, "`rxfiles get -r` gets all files below it"),
        (["get", "docs"], 2, "give -r for all files below it"),
        (["stat", ""], 2, "must not be empty; give another name"),
        (["put", "missing"], 4, "missing: No such file or directory; check the path"),
        (["sync", "f", "remote:x"], 2, "f: Not a directory; give a folder"),
        (["get", "-r", "docs", "--to", "f"], 1, "f: File exists; give another path"),
        (["ls", "--server", "tcp://no-such-host.invalid"], 6, "check the host's name"),
    ):
        result = await rxfiles(*arguments)
        assert (result.code, result.err.count("\n")) == (code, 1)
        assert advice in result.err
        assert "[Errno" not in result.err


async def test_no_server_is_6(unconnected: Command, ca: trustme.CA, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        result = await unconnected("ls", "--server", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
    assert (result.code, result.err.count("\n")) == (6, 1)
    assert "refused; `rxfiles serve` starts a server" in result.err

    chain, key, roots = tmp_path / "chain", tmp_path / "key", tmp_path / "roots"
    certificate = ca.issue_cert("127.0.0.1")
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    ca.cert_pem.write_to_path(roots)
    async with serve(tls=server_tls(chain, key)) as encrypted, serve() as plain:
        assert (await unconnected("ls", "--server", encrypted.uri, "--ca", str(roots))).code == 0
        result = await unconnected("ls", "--server", encrypted.uri)
        assert (result.code, "--ca FILE says which authorities to trust" in result.err) == (6, True)
        result = await unconnected("ls", "--server", encrypted.uri.replace("tcps", "tcp"))
        assert (result.code, "use tcps://" in result.err) == (6, True)
        result = await unconnected("ls", "--server", plain.uri.replace("tcp", "tcps"))
        assert (result.code, "use tcp://" in result.err) == (6, True)


async def test_failures_are_1(rxfiles: Command, server: FileServer, home: Path) -> None:
    (home / "a").write_text("a")
    server.data.files["a"] = b"b"
    assert (await rxfiles("put", "a", "--no-overwrite")).code == 1
    assert (await rxfiles("get", "a", "--no-overwrite")).code == 1
