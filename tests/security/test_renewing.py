"""SIGHUP: new connections use the new users and certificates; what is under way goes on; wrong files change nothing."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from reactivex import operators as ops

from rx_client import Completed, Connected, ConnectionState, FileClient
from server import Users, serve, server_tls
from server.__main__ import _server
from shared.errors import ConnectionFailed, Unauthenticated
from tests.security.support import ServerProcess, server_process, user_line
from tests.support import eventually


def write_certificate(ca: trustme.CA, folder: Path) -> list[str]:
    """New files with a certificate; the arguments that name them."""
    made = ca.issue_cert("127.0.0.1")
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    return ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]


def trusting(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


async def hang_up(server: ServerProcess, line: str) -> None:
    """Sends SIGHUP, and waits for this line of the log."""
    server.process.send_signal(signal.SIGHUP)
    assert server.process.stderr is not None
    async with asyncio.timeout(20):
        while line not in (await server.process.stderr.readline()).decode():
            pass


async def may_connect(uri: str, user: str, context: ssl.SSLContext) -> None:
    async with FileClient.connect(uri, auth=(user, "secret"), tls=context) as files:
        await files.list_files().pipe(ops.to_list())


async def test_users_and_certificates_are_read_anew(tmp_path: Path) -> None:
    first, second = trustme.CA(), trustme.CA()
    (tmp_path / "users").write_text(user_line("alice", "secret"))
    arguments = [*write_certificate(first, tmp_path), "--auth-file", str(tmp_path / "users"), "--log-level", "info"]
    half_sent, renewed = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield bytes(1000)
        half_sent.set()
        await renewed.wait()
        yield bytes(1000)

    async with server_process(*arguments) as server:
        with pytest.raises(Unauthenticated):
            await may_connect(server.uri, "bob", trusting(first))
        async with FileClient.connect(server.uri, auth=("alice", "secret"), tls=trusting(first)) as files:
            states: list[ConnectionState] = []
            files.connection_state().subscribe(states.append)
            events: list[object] = []
            files.upload_from("a", source()).subscribe(events.append, events.append)
            await half_sent.wait()

            (tmp_path / "users").write_text(user_line("bob", "secret"))
            write_certificate(second, tmp_path)
            await hang_up(server, "were read anew")

            await may_connect(server.uri, "bob", trusting(second))
            with pytest.raises(Unauthenticated):
                await may_connect(server.uri, "alice", trusting(second))
            with pytest.raises(ConnectionFailed, match="certificate"):
                await may_connect(server.uri, "bob", trusting(first))
            renewed.set()
            await eventually(lambda: events and isinstance(events[-1], Completed))
            assert states == [Connected()]
        assert (await server.stop())[0] == 0


@pytest.mark.parametrize("broken", ["users", "cert.pem", "key.pem"])
async def test_wrong_files_change_nothing(tmp_path: Path, broken: str) -> None:
    ca = trustme.CA()
    (tmp_path / "users").write_text(user_line("alice", "secret"))
    arguments = [*write_certificate(ca, tmp_path), "--auth-file", str(tmp_path / "users")]
    async with server_process(*arguments) as server:
        (tmp_path / "users").write_text(user_line("bob", "secret"))
        (tmp_path / broken).write_text("nonsense\n")
        for _ in range(2):
            await hang_up(server, str(tmp_path / broken))
            await may_connect(server.uri, "alice", trusting(ca))
            with pytest.raises(Unauthenticated):
                await may_connect(server.uri, "bob", trusting(ca))
        assert await server.stop() == (0, "")


async def test_without_files_nothing_happens() -> None:
    async with server_process("--log-level", "info") as server:
        await hang_up(server, "were read anew")
        async with FileClient.connect(server.uri) as files:
            await files.upload("a", b"x")
        assert (await server.stop())[0] == 0


async def test_a_server_without_users_or_tls_gets_none_later(tmp_path: Path) -> None:
    write_certificate(trustme.CA(), tmp_path)
    async with serve() as server:
        with pytest.raises(ValueError, match="none later"):
            server.renew(Users(user_line("alice", "secret")))
        with pytest.raises(ValueError, match="none later"):
            server.renew(tls=server_tls(tmp_path / "cert.pem", tmp_path / "key.pem"))
        server.renew()


# Wrong files at the start


def contents(folder: Path) -> dict[str, list[str]]:
    """Arguments with one wrong file each, by the name of that file."""
    ca = trustme.CA()
    cert, key = write_certificate(ca, folder)[1::2]
    other = ca.issue_cert("127.0.0.1")
    other.private_key_pem.write_to_path(folder / "other.pem")
    (folder / "text").write_text("nonsense")
    (folder / "cut").write_bytes(Path(cert).read_bytes()[:200])
    (folder / "locked").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    missing = str(folder / "missing")
    (folder / "empty").write_text("")
    files = {
        "missing": [["--tls-cert", missing, "--tls-key", key], ["--tls-cert", cert, "--tls-key", missing]],
        "text": [
            ["--tls-cert", str(folder / "text"), "--tls-key", key],
            ["--tls-cert", cert, "--tls-key", str(folder / "text")],
            ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", str(folder / "text")],
            ["--auth-file", str(folder / "text")],
        ],
        "cut": [
            ["--tls-cert", str(folder / "cut"), "--tls-key", key],
            ["--tls-cert", cert, "--tls-key", key, "--tls-client-ca", str(folder / "cut")],
        ],
        "other.pem": [["--tls-cert", cert, "--tls-key", str(folder / "other.pem")]],
        "locked": [["--tls-cert", cert, "--tls-key", str(folder / "locked")]],
        "empty": [["--auth-file", str(folder / "empty")]],
    }
    return {f"{name} {number}": each for name, all_ in files.items() for number, each in enumerate(all_)}


def test_an_error_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, arguments in contents(tmp_path).items():
        with pytest.raises(SystemExit) as exited:
            _server(arguments)
        assert exited.value.code == 2
        assert str(tmp_path / name.split()[0]) in capsys.readouterr().err, name


@pytest.mark.parametrize("option", ["--store", "--auth-file", "--tls-cert", "--tls-key", "--tls-client-ca"])
def test_an_empty_path_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        _server([option, ""])
    assert exited.value.code == 2
    assert f"{option} is empty" in capsys.readouterr().err
