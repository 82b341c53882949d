"""TLS: the server is verified by default, and each mistake is a typed error at both ends, in time."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme
from reactivex import operators as ops

from rx_client import Completed, ConnectOptions, FileClient
from rx_client.operators import retry_backoff
from server import FileServer, Limits, serve, server_tls
from shared.errors import ConnectionFailed, TlsFailed, Unauthenticated, is_retryable
from tests.faults import fault_proxy
from tests.security.support import (
    MIB,
    ServerProcess,
    download,
    needs_proc,
    server_process,
    setup_frame,
    user_line,
    users,
    warnings,
)
from tests.support import RawPeer, eventually, raw_peer, raw_server

QUICK = ConnectOptions(connect_timeout=3, keepalive_timeout=2, keepalive_period=0.2)


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(ca: trustme.CA) -> ssl.SSLContext:
    """A client's context that trusts the authority and no other."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


def pem_files(certificate: trustme.LeafCert, folder: Path) -> tuple[Path, Path]:
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(key)
    return chain, key


def ca_file(ca: trustme.CA, folder: Path) -> Path:
    path = folder / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path


@asynccontextmanager
async def tls_server(
    ca: trustme.CA, folder: Path, *names: str, client_ca: str | None = None, limits: Limits | None = None
) -> AsyncGenerator[FileServer, None]:
    chain, key = pem_files(ca.issue_cert(*(names or ("localhost", "127.0.0.1"))), folder)
    async with serve(tls=server_tls(chain, key, client_ca), limits=limits) as server:
        assert server.uri.startswith("tcps://127.0.0.1:")
        yield server
        await eventually(lambda: not server.connections)


async def connects(uri: str, tls: ssl.SSLContext | None) -> None:
    async with FileClient.connect(uri, tls=tls, options=QUICK) as files:
        await files.upload("a", b"x")


async def test_files_of_any_size_go_both_ways(ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path) -> None:
    content = bytes(range(256)) * (3 * MIB // 256)
    async with tls_server(ca, tmp_path) as server, FileClient.connect(server.uri, tls=trusting) as files:
        await files.upload("whole", content)
        assert await files.download("whole") == content
        assert isinstance(await files.upload_from("chunks", content), Completed)
        assert isinstance(await files.download_to("chunks", tmp_path / "there"), Completed)
        assert (tmp_path / "there").read_bytes() == content
        assert await files.list_files().pipe(ops.to_list()) == ["chunks", "whole"]


async def test_the_server_is_verified_by_default(
    ca: trustme.CA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The certificate is of an authority that the machine doesn't trust."""
    async with tls_server(ca, tmp_path) as server:
        with pytest.raises(TlsFailed, match="certificate verify failed") as failed:
            await connects(server.uri, None)
        assert not is_retryable(failed.value)
        assert not server.data.files
        unverified = ssl.create_default_context()
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        await connects(server.uri, unverified)
    assert warnings(caplog) == []


async def test_a_certificate_for_another_host_is_refused(
    ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    async with tls_server(ca, tmp_path, "elsewhere.example") as server:
        with pytest.raises(ConnectionFailed, match="certificate verify failed") as failed:
            await connects(server.uri, trusting)
        assert str(failed.value).endswith("; connect to the host that it is for")


async def test_a_context_without_tls_is_a_value_error(trusting: ssl.SSLContext) -> None:
    with pytest.raises(ValueError, match="tcps://"):
        await connects("tcp://localhost:1", trusting)


@pytest.mark.parametrize("shown", ["none", "another authority's", "the right one"])
async def test_clients_show_a_certificate_where_one_is_required(
    ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    if shown != "none":
        issuer = ca if shown == "the right one" else trustme.CA()
        issuer.issue_cert("client@example.org").configure_cert(trusting)
    async with tls_server(ca, tmp_path, client_ca=str(ca_file(ca, tmp_path))) as server:
        if shown == "the right one":
            await connects(server.uri, trusting)
            assert list(server.data.files) == ["a"]
        else:
            with pytest.raises(ConnectionFailed, match="certificate"):
                await connects(server.uri, trusting)
            assert not server.data.files
    assert warnings(caplog) == []


async def test_credentials_go_through_tls(ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path) -> None:
    chain, key = pem_files(ca.issue_cert("127.0.0.1"), tmp_path)
    known = users(user_line("alice", "a secret"))
    async with serve(tls=server_tls(chain, key), users=known) as server:
        async with FileClient.connect(server.uri, tls=trusting, auth=("alice", "a secret")) as files:
            await files.upload("a", b"x")
        with pytest.raises(Unauthenticated):
            async with FileClient.connect(server.uri, tls=trusting, auth=("alice", "wrong")):
                pass


async def test_a_plain_client_at_a_tls_port_fails_in_time(
    ca: trustme.CA, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with tls_server(ca, tmp_path) as server:
        plain = server.uri.replace("tcps://", "tcp://")
        with pytest.raises(
            TlsFailed, match=r"no connection to tcp://.*: this port is encrypted: use tcps://"
        ) as failed:
            await connects(plain, None)
        assert not is_retryable(failed.value)
        assert len([line for line in caplog.messages if "it isn't encrypted, and this port is" in line]) == 1
        async with raw_peer(plain, set_up=False) as peer:
            await peer.send(setup_frame(), download(1, b"a"))
            await peer.reader.read()  # an alert, if anything; then the end
        assert server.work.started == 0
    assert warnings(caplog) == []


async def test_a_tls_client_at_a_plain_port_fails_in_time(
    trusting: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with serve() as server:
        with pytest.raises(TlsFailed, match=r"isn't encrypted on this port: use tcp://") as failed:
            await connects(server.uri.replace("tcp://", "tcps://"), trusting)
        assert not is_retryable(failed.value)
        await eventually(lambda: not server.connections)
    assert [
        line
        for line in caplog.messages
        if line.endswith("closed: tls_failed: the peer speaks TLS, and this end doesn't")
    ]
    assert warnings(caplog) == []


async def test_a_tls_alert_is_recognised_by_a_plain_client() -> None:
    async def alert(peer: RawPeer) -> None:
        await peer.send(b"\x15\x03\x01\x00\x02\x02\x46")
        await peer.reader.read()

    async with raw_server(alert) as uri:
        with pytest.raises(TlsFailed, match=r"use tcps://") as failed:
            await connects(uri, None)
    assert not is_retryable(failed.value)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_an_alert_of_a_foreign_server_is_said(
    ca: trustme.CA, trusting: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    """One that sends alerts, as OpenSSL does with a socket of its own."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    trusting.maximum_version = version

    def refuse(listening: socket.socket) -> None:
        accepted, _ = listening.accept()
        with accepted, suppress(ssl.SSLError):
            context.wrap_socket(accepted, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        refusing = asyncio.create_task(asyncio.to_thread(refuse, listening))
        with pytest.raises(ConnectionFailed, match="certificate"):
            await connects(f"tcps://127.0.0.1:{listening.getsockname()[1]}", trusting)
        await refusing


@pytest.mark.parametrize("is_encrypted", [False, True])
async def test_a_server_that_hangs_up_leaves_no_error_without_a_reason(is_encrypted: bool) -> None:
    async def hang_up(peer: RawPeer) -> None:
        await peer.reader.read(1)

    async with raw_server(hang_up) as plain:
        uri = plain.replace("tcp://", "tcps://") if is_encrypted else plain
        with pytest.raises(ConnectionFailed, match=r"; it may .*\btcps?://") as failed:
            await connects(uri, None)
    assert is_retryable(failed.value)


async def test_an_unfinished_handshake_is_ended_in_time_and_delays_no_other(
    ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        tls_server(ca, tmp_path, limits=Limits(setup_seconds=0.5)) as server,
        raw_peer(server.uri.replace("tcps://", "tcp://"), set_up=False) as loris,
    ):
        await loris.send(b"\x16\x03\x01")
        await connects(server.uri, trusting)
        async with asyncio.timeout(5):
            assert await loris.reader.read() == b""
    assert warnings(caplog) == []


async def test_a_process_serves_with_tls_and_exits_amid_handshakes(
    ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    chain, key = pem_files(ca.issue_cert("127.0.0.1"), tmp_path)
    arguments = ("--tls-cert", str(chain), "--tls-key", str(key), "--tls-client-ca", str(ca_file(ca, tmp_path)))
    ca.issue_cert("client@example.org").configure_cert(trusting)
    async with server_process(*arguments) as server:
        assert server.uri.startswith("tcps://127.0.0.1:")
        await connects(server.uri, trusting)
        async with raw_peer(server.uri.replace("tcps://", "tcp://"), set_up=False):
            assert await server.stop() == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [["--tls-cert", "x"], ["--tls-key", "x"], ["--tls-client-ca", "x"], ["--tls-cert", "/", "--tls-key", "/"]],
)
def test_incomplete_tls_options_are_an_error(arguments: list[str]) -> None:
    from server.__main__ import _server

    with pytest.raises(SystemExit) as exited:
        _server(arguments)
    assert exited.value.code == 2


@needs_proc
async def test_connections_over_tls_leave_nothing_behind(
    ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path
) -> None:
    chain, key = pem_files(ca.issue_cert("127.0.0.1"), tmp_path)
    async with server_process("--tls-cert", str(chain), "--tls-key", str(key)) as server:

        async def visits(server: ServerProcess, count: int) -> None:
            plain = server.uri.replace("tcps://", "tcp://")
            for number in range(count):
                if number % 2:
                    async with raw_peer(plain, set_up=False) as peer:
                        await peer.send(b"\x16\x03\x01\x02\x00" if number % 4 == 1 else setup_frame())
                else:
                    await connects(server.uri, trusting)

        await visits(server, 40)
        await asyncio.sleep(1.2)
        files, memory = server.fds, server.rss
        await visits(server, 80)
        await eventually(lambda: server.fds <= files)
        assert server.rss - memory < 8 * MIB
        assert await server.stop() == (0, "")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_that_reconnects_resumes_its_session(
    ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    trusting.maximum_version = version
    context = server_tls(*pem_files(ca.issue_cert("127.0.0.1"), tmp_path))
    async with serve(tls=context) as server, FileClient.connect(server.uri, tls=trusting, options=QUICK) as files:
        await files.upload("a", b"x")
        assert context.session_stats()["hits"] == 0
        for transport in list(server._connections):
            transport.abort()
        assert await files.download("a").pipe(retry_backoff(attempts=20, base=0.01)) == b"x"
        assert context.session_stats()["hits"] == 1


@pytest.mark.parametrize("flip_after", [1, 500, 60_000, 1_000_000])
@pytest.mark.parametrize("way", ["up", "down"])
async def test_ciphertext_that_was_changed_on_the_way_ends_the_connection(
    ca: trustme.CA, trusting: ssl.SSLContext, tmp_path: Path, way: str, flip_after: int
) -> None:
    """Nothing of it is taken, and the transfer goes on over another connection."""
    data = bytes(range(256)) * (2 * MIB // 256)
    (tmp_path / "source").write_bytes(data)
    async with tls_server(ca, tmp_path) as server, fault_proxy(server.uri.replace("tcps://", "tcp://")) as proxy:
        uri = proxy.uri.replace("tcp://", "tcps://")
        async with FileClient.connect(uri, tls=trusting, options=QUICK) as files:
            await files.upload("a", b"x")
            direction = proxy.up if way == "up" else proxy.down
            direction.flip_after = flip_after
            await files.upload_from("a", tmp_path / "source").pipe(retry_backoff(attempts=20, base=0.01))
            await files.download_to("a", tmp_path / "a").pipe(retry_backoff(attempts=20, base=0.01))
            assert direction.flip_after is None
            assert proxy.accepted > 1
    assert (tmp_path / "a").read_bytes() == data
