"""Authentication and permissions; nothing is served before a connection is authenticated."""

import asyncio
import io
import logging
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import argon2
import pytest
from argon2 import PasswordHasher
from reactivex import operators as ops

from rx_client import FileClient
from server import ChatData, FileServer, Users, serve
from server.__main__ import _is_loopback, _server
from server.fair_lock import FairLock
from server.users.__main__ import main
from shared.errors import ConnectionFailed, NotFound, PermissionDenied, Unauthenticated
from shared.protocol.metadata import (
    AUTHENTICATION_MIMETYPE,
    MetadataItem,
    build_metadata,
    build_simple,
    parse_metadata,
)
from tests.security.support import (
    CHEAP,
    REJECTED_SETUP,
    channel,
    chunks,
    download,
    receive,
    refused,
    reset,
    server_process,
    setup_frame,
    stat,
    upload,
    user_line,
    users,
    warnings,
)
from tests.support import (
    COMPLETE,
    ERROR,
    NEXT,
    PAYLOAD,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RawPeer,
    eventually,
    frame,
    item,
    name_item,
    raw_peer,
    request,
    route_item,
)

HASH = CHEAP.hash("secret")


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, making the hashes of 64 MiB would take most of the tests' time."""
    for module in ("line", "users"):
        monkeypatch.setattr(f"server.users.{module}.PasswordHasher", lambda: CHEAP)


# The file


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["alice"], "line 1: the hash of 'alice' isn't argon2's"),
        ([f":{HASH}"], "line 1: each user has a name"),
        (["# comment", "", f"alice:{HASH}", f"alice:{HASH}"], "line 4: each user has a name, and one line"),
        ([f"alice:{HASH}", "bob:secret"], "line 2: the hash of 'bob' isn't argon2's"),
        (["bob:$2b$12$abcdefghijklmnopqrstuv"], "line 1: the hash of 'bob'"),
        (["bob:"], "line 1: the hash of 'bob'"),
        ([f"bob:{HASH}:read"], "line 1: a permission has the form"),
        ([f"bob:{HASH}:x@"], "line 1: a permission has the form"),
        ([f"bob:{HASH}:r@a @b"], "line 1: a permission has the form"),
        ([f"bob:{HASH}:r"], "line 1: a permission has the form"),
        ([f"bob:{HASH}:"], "line 1: 'bob' has no permissions; leave out the colon to grant everything"),
        ([f"bob:{HASH}: "], "line 1: 'bob' has no permissions"),
        ([f"bob:{HASH[:-1]}"], "line 1: the hash of 'bob' isn't argon2's, or not all of it"),
        ([f"bob:{HASH[:-20]}"], "line 1: the hash of 'bob'"),
        ([f"bob:{HASH}="], "line 1: the hash of 'bob'"),
        ([f"bob:{HASH[:-2]}!="], "line 1: the hash of 'bob'"),
        ([f"bob:{HASH.replace('m=8', 'm=7')}"], "line 1: the hash of 'bob'"),
        ([f"bob:{HASH.replace('$v=19', '$v=20')}"], "line 1: the hash of 'bob'"),
        (["bob:" + PasswordHasher(1, 8, 1, hash_len=31).hash("secret")], "line 1: the hash of 'bob'"),
        (["bob:" + "$".join([*HASH.split("$")[:-1], ""])], "line 1: the hash of 'bob'"),
        (["bob:" + HASH.replace(HASH.split("$")[-2], "c2FsdHk")], "line 1: the hash of 'bob'"),
    ],
)
def test_a_malformed_line_is_named(lines: list[str], text: str) -> None:
    with pytest.raises(ValueError) as raised:
        users(*lines)
    assert text in str(raised.value)
    assert HASH not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("length", range(len(HASH)))
def test_a_truncated_hash_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"python -m server\.users NAME"):
        users(f"bob:{HASH[:length]}")


def test_comments_empty_lines_and_crlf_are_fine() -> None:
    made = Users(f"# names\r\n\r\n  \r\nalice:{HASH}:r@ rwd@alice/\r\n")
    assert list(made._users) == ["alice"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_of_another_system_is_read(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_bytes(f"alice:{HASH}:r@{end}bob:{HASH}{end}".encode(encoding))
    assert list(Users.read(path)._users) == ["alice", "bob"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "there is no user"),
        (b"\n# alice\r\n", "there is no user"),
        (f"alice:{HASH}\n\ufeffbob:{HASH}\n".encode(), "line 2: the name has a byte order mark"),
        (f"alice:{HASH}\n".encode() + b"b\xfcb:", "line 2: the file isn't UTF-8"),
        (f"alice:{HASH}\n".encode() + f"bob:{HASH}\n".encode("utf-16"), "line 2: the file isn't UTF-8"),
        (f"alice:{HASH}\n".encode("utf-16") + b"x", "line 2: the file isn't UTF-16"),
        (f"alice:{HASH}\n\nbob :{HASH}\n".encode(), "line 3: the name has white space"),
        (f"alice:{HASH}\rbob:{HASH}\r".encode(), "line 1: the hash of 'alice'"),
        (b"alice\n", "line 1: the hash of 'alice'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_line(content: bytes, text: str, tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {text}")):
        Users.read(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_piped_password_loses_its_line_end_and_nothing_else(end: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server.users", "alice"], input=f" pass {end}".encode(), capture_output=True, check=True
    )
    made = users(done.stdout.decode())
    for password, is_right in ((" pass ", True), (" pass", False)):
        known = made.authenticate([build_simple("alice", password)], lambda: False)
        if is_right:
            assert asyncio.run(known).name == "alice"
        else:
            with pytest.raises(Unauthenticated):
                asyncio.run(known)


def test_the_command_prints_a_line_without_the_password() -> None:
    command = [sys.executable, "-W", "error", "-m", "server.users", "alice"]
    done = subprocess.run(command, input="pass word\n", capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.startswith("alice:$argon2id$")
    assert "pass word" not in done.stdout + done.stderr
    made = users(done.stdout)
    user = asyncio.run(made.authenticate([build_simple("alice", "pass word")], lambda: False))
    assert user.name == "alice"


@pytest.mark.parametrize(
    ("name", "password", "text"),
    [
        ("alice", "\n", "the password is empty"),
        ("alice", "", "the password is empty"),
        ("", "x\n", "the name is empty"),
        ("a:b", "x\n", "a colon"),
        ("#alice", "x\n", "'#'"),
        (" alice", "x\n", "white space"),
        ("alice ", "x\n", "white space"),
        ("ali\nce", "x\n", "no line can have"),
        ("ali\x1cce", "x\n", "no line can have"),
        ("ali\u2028ce", "x\n", "no line can have"),
        ("\udcff", "x\n", "no line can have"),
    ],
)
def test_the_command_refuses_a_name_or_password_that_makes_no_line(
    name: str, password: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["users", name])
    monkeypatch.setattr("sys.stdin", io.StringIO(password))
    assert main() == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert text in err


@pytest.mark.parametrize("name", ["alice", "a b", "Grüße", "日本", "a#", "$argon2id$"])
def test_the_commands_line_has_the_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["users", name])
    monkeypatch.setattr("sys.stdin", io.StringIO("p\n"))
    assert main() == 0
    assert list(users(capsys.readouterr().out)._users) == [name]


# Authentication


@pytest.fixture
async def server() -> AsyncGenerator[FileServer, None]:
    known = users(
        user_line("alice", "a secret", "r@ rwd@alice/ w@shared/"),
        user_line("bob", "b:secret", "rwd@bob/ w@shared/"),
        user_line("root", "r secret"),
    )
    files = {"alice/1": b"1", "bob/1": b"2", "public": b"3"}
    async with serve(users=known, data=ChatData(files)) as server:
        yield server
        await eventually(lambda: not server.work.active)


@pytest.mark.parametrize("auth", [("bob", "b:secret"), "bob:b:secret"])
async def test_a_password_or_a_token_authenticates(server: FileServer, auth: tuple[str, str] | str) -> None:
    async with FileClient.connect(server.uri, auth=auth) as files:
        assert await files.download("bob/1") == b"2"


@pytest.mark.parametrize(
    "auth", [None, ("alice", "wrong"), ("alice", ""), ("nobody", "a secret"), ("", ""), "alice", "alice:wrong", ""]
)
async def test_wrong_credentials_are_unauthenticated(server: FileServer, auth: tuple[str, str] | str | None) -> None:
    with pytest.raises(Unauthenticated) as raised:
        async with FileClient.connect(server.uri, auth=auth):
            pass
    assert not raised.value.retryable
    if auth:  # the text doesn't say which
        assert raised.value.message == "the user name or the password is wrong"


def auth_item(content: bytes) -> bytes:
    return build_metadata([MetadataItem(AUTHENTICATION_MIMETYPE, content)])


GOOD = build_metadata([build_simple("root", "r secret")])


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param(b"", id="none"),
        pytest.param(GOOD + GOOD, id="two"),
        pytest.param(auth_item(b""), id="empty"),
        pytest.param(auth_item(b"\x80"), id="no length"),
        pytest.param(auth_item(b"\x80\x00\xffroot"), id="truncated"),
        pytest.param(auth_item(b"\x80\x00\x04\xff\xff\xff\xffr secret"), id="not UTF-8"),
        pytest.param(auth_item(b"\x82\x00\x04rootr secret"), id="of an unknown kind"),
        pytest.param(auth_item(b"\x05digestroot:r secret"), id="of a kind by name that is unknown"),
        pytest.param(auth_item(b"\x80\x00\x04rootr secret\x00"), id="with a byte more"),
        pytest.param(auth_item(b"\x80\x00\x04rootr secre"), id="with a byte less"),
        pytest.param(auth_item(b"\x80\x00\x05root\x00r secret"), id="with NUL in the name"),
        pytest.param(GOOD[:-1], id="truncated metadata"),
        pytest.param(GOOD + b"\x00", id="metadata with a byte more"),
    ],
)
async def test_nothing_is_served_behind_a_setup_that_was_rejected(server: FileServer, metadata: bytes) -> None:
    before = dict(server.data.files)
    async with raw_peer(server.uri, set_up=False) as peer:
        # In one segment: all of it has arrived before the SETUP is handled.
        await peer.send(
            setup_frame(metadata=metadata),
            upload(1, b"alice/2", b"x"),
            download(3, b"public"),
            chunks(5, b"public"),
            channel(7, b"alice/3", b'{"upload_id": "u"}'),
            request(9, REQUEST_FNF, route_item("file.upload") + name_item(b"alice/4"), b"x"),
            request(11, REQUEST_RESPONSE, route_item("file.delete") + name_item(b"public")),
            request(13, REQUEST_STREAM, route_item("files"), n=10),
            setup_frame(metadata=GOOD),
            download(15, b"public"),
        )
        first = await receive(peer)
        assert (first.stream_id, first.kind, first.error[0]) == (0, ERROR, REJECTED_SETUP)
        assert first.error[1].split(":")[0] in ("unauthenticated", "invalid_request")
        assert await peer.receive() is None
    assert server.work.started == 0
    assert server.data.files == before


async def test_requests_behind_a_setup_wait_until_it_was_accepted(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, verify = asyncio.Event(), Users.authenticate

    async def slowly(self: Users, items: list[MetadataItem], is_gone: Callable[[], bool], address: str) -> object:
        await may_go_on.wait()
        return await verify(self, items, is_gone, address)

    monkeypatch.setattr(Users, "authenticate", slowly)
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup_frame(metadata=GOOD), download(1, b"public"), upload(3, b"b", b"x"))
        await peer.silence()
        assert server.work.started == 0
        may_go_on.set()
        assert {(await receive(peer)).stream_id for _ in range(2)} == {1, 3}


async def test_a_second_setup_with_other_credentials_is_ignored(server: FileServer) -> None:
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(
            setup_frame(build_simple("bob", "b:secret")), setup_frame(metadata=GOOD), download(1, b"public")
        )
        got = await receive(peer)
        assert (got.stream_id, got.error[1].split(":")[0]) == (1, "permission_denied"), "the user is still bob"


async def test_an_unknown_user_costs_a_hash_as_a_known_one_does(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    verify = argon2.PasswordHasher.verify

    def counted(self: argon2.PasswordHasher, hashed: str, password: bytes) -> bool:
        verified.append(hashed)
        return bool(verify(self, hashed, password))

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counted)
    for name in ("nobody", "alice", "nobody"):
        with pytest.raises(Unauthenticated):
            async with FileClient.connect(server.uri, auth=(name, "wrong")):
                pass
    assert len(verified) == 3
    costs = [argon2.extract_parameters(hashed) for hashed in verified]
    assert costs[0] == costs[1] == costs[2], "as much as the file's hashes cost"
    for _ in range(3):  # a password that was right is recognised, so that a reconnect costs no check
        async with FileClient.connect(server.uri, auth=("alice", "a secret")):
            pass
    assert len(verified) == 4
    with pytest.raises(Unauthenticated):
        async with FileClient.connect(server.uri, auth=("alice", "wrong")):
            pass
    assert len(verified) == 5
    assert "secret" not in repr(vars(server._users))


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The passwords that were checked against a hash; a check takes 10 ms."""
    passwords: list[bytes] = []

    def verify(self: argon2.PasswordHasher, hashed: str, password: bytes) -> bool:
        passwords.append(password)
        time.sleep(0.01)
        return original(self, hashed, password)

    original = argon2.PasswordHasher.verify
    monkeypatch.setattr(argon2.PasswordHasher, "verify", verify)
    return passwords


@asynccontextmanager
async def guessing(server: FileServer, count: int, verified: list[bytes]) -> AsyncGenerator[list[RawPeer], None]:
    """Unauthenticated peers at one address, all of which wait for the check of a wrong password."""
    peers = [await RawPeer.connect(server.uri) for _ in range(count)]
    try:
        for number, peer in enumerate(peers):
            await peer.send(setup_frame(build_simple("alice" if number % 2 else "nobody", f"wrong {number}")))
        await eventually(lambda: verified)
        yield peers
    finally:
        for peer in peers:
            reset(peer)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
async def test_password_guesses_delay_no_other(server: FileServer, address: str, verified: list[bytes]) -> None:
    """A client, at the same address or another, waits for at most three checks; for none once its password is known."""
    host, port = server.uri.removeprefix("tcp://").split(":")
    async with guessing(server, 100, verified) as peers:
        await eventually(lambda: sum(map(len, server._users._lock._waiters.values())) == 99)  # type: ignore[union-attr]
        before = len(verified)
        peer = RawPeer(*await asyncio.open_connection(host, int(port), local_addr=(address, 0)))
        await peer.send(setup_frame(build_simple("alice", "a secret")), stat(1, b"public"))
        assert (await receive(peer)).kind == PAYLOAD
        await peer.close()
        assert verified.index(b"a secret") - before <= 3
        # The others get their answer as well.
        assert (await refused(peers[0]))[1] == "unauthenticated: the user name or the password is wrong"
    async with guessing(server, 100, verified):
        async with FileClient.connect(server.uri, auth=("alice", "a secret")) as files:
            await files.stat("public")
        assert verified.count(b"a secret") == 1


async def test_the_waiting_password_checks_are_bounded(server: FileServer, verified: list[bytes]) -> None:
    async with guessing(server, 200, verified) as peers:
        answers = {(await refused(peer))[1] for peer in peers}
    assert {answer.split(":")[0] for answer in answers} == {"unauthenticated", "server_full"}
    assert len(verified) < 200
    async with FileClient.connect(server.uri, auth=("bob", "b:secret")) as files:
        assert await files.download("bob/1") == b"2"


async def test_clients_with_one_secret_cost_one_check(server: FileServer, verified: list[bytes]) -> None:
    async def connect() -> None:
        async with FileClient.connect(server.uri, auth=("alice", "a secret")) as files:
            await files.stat("public")

    await asyncio.gather(*(connect() for _ in range(50)))
    assert verified == [b"a secret"]


async def test_the_lock_goes_round_the_addresses_newest_waiter_first() -> None:
    lock, order = FairLock(10), list[str]()

    async def hold(address: str, number: int) -> None:
        async with lock.hold(address):
            order.append(f"{address}{number}")
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(hold(address, number)) for address in "aab" for number in range(3)]
    await asyncio.sleep(0)
    tasks[4].cancel()  # while it waits
    await asyncio.wait(tasks)
    assert order == ["a0", "a2", "b2", "b1", "a0", "b0", "a2", "a1"]
    assert not lock._waiters

    tasks = [asyncio.create_task(hold(address, 0)) for address in "ab"]
    while not lock._waiters:
        await asyncio.sleep(0)
    while lock._waiters:
        await asyncio.sleep(0)
    tasks[1].cancel()  # in the event-loop iteration in which it gets the lock
    await asyncio.wait(tasks)
    async with asyncio.timeout(5):
        await hold("c", 0)


# Permissions


async def error_of(server: FileServer, user: tuple[str, str], asked: bytes) -> str:
    """The error's code that a request gets; empty if it is served."""
    async with raw_peer(server.uri, set_up=False) as peer:
        await peer.send(setup_frame(build_simple(*user)), asked)
        while (answer := await receive(peer)).kind not in (ERROR, PAYLOAD):
            pass
        return answer.error[1].split(":")[0] if answer.kind == ERROR else ""


def named(route: str, name: bytes, message: bytes = b"{}") -> bytes:
    metadata = route_item(route) + name_item(name) + item(b"chat/file-transfer", message)
    return request(1, REQUEST_RESPONSE, metadata)


ID = b'{"upload_id": "u", "digest": null}'
ROUTES = {
    "upload": ("w", lambda name: upload(1, name, b"x")),
    "upload in chunks": ("w", lambda name: channel(1, name, ID)),
    "upload status": ("w", lambda name: named("file.upload.status", name, ID)),
    "download": ("r", lambda name: download(1, name)),
    "download in chunks": ("r", lambda name: chunks(1, name)),
    "stat": ("r", lambda name: stat(1, name)),
    "delete": ("d", lambda name: named("file.delete", name)),
    "move": ("d", lambda name: named("file.move", name, b'{"target": "other/new"}')),
}


@pytest.mark.parametrize("right", ["r", "w", "d"])
async def test_each_route_needs_its_right_to_the_name(right: str) -> None:
    for route in ROUTES:
        await needs_its_right(route, right)


async def needs_its_right(route: str, right: str) -> None:
    needed, ask = ROUTES[route]
    known = users(user_line("u", "p", f"{right}@mine/ rwd@other/"))
    files = {"mine/1": b"1", "theirs/1": b"2", "mine": b"3", "Mine/1": b"4"}
    async with serve(users=known, data=ChatData(dict(files))) as server:
        denied = await error_of(server, ("u", "p"), ask(b"mine/1"))
        assert denied == ("permission_denied" if right != needed else "not_found" if "status" in route else "")
        for name in (b"theirs/1", b"mine", b"Mine/1", b"missing", b"other"):
            assert await error_of(server, ("u", "p"), ask(name)) == "permission_denied"
        if right != needed:
            assert server.data.files == files
        await eventually(lambda: not server.work.active)


async def test_a_move_needs_the_right_to_write_its_target() -> None:
    known = users(user_line("u", "p", "d@mine/ w@writable/ rd@other/"))
    async with serve(users=known, data=ChatData({"mine/1": b"1"})) as server:
        for target, word in (("other/1", "permission_denied"), ("mine/2", "permission_denied"), ("writable/1", "")):
            asked = named("file.move", b"mine/1", b'{"target": "%s"}' % target.encode())
            assert await error_of(server, ("u", "p"), asked) == word
        assert server.data.files == {"writable/1": b"1"}


@pytest.mark.parametrize("said", [b"{}", b'{"target": ""}', b'{"target": 5}', b'{"target": "a", "overwrite": 1}'])
async def test_a_move_that_makes_no_sense(said: bytes) -> None:
    async with serve(data=ChatData({"a": b"1"})) as server, raw_peer(server.uri) as peer:
        await peer.send(named("file.move", b"a", said))
        got = await receive(peer)
        assert got.error[1].split(":")[0] in ("invalid_request", "invalid_name")
        assert server.data.files == {"a": b"1"}


async def test_a_listing_shows_only_what_may_be_read(server: FileServer) -> None:
    async with FileClient.connect(server.uri, auth=("bob", "b:secret")) as files:
        assert await files.list_files().pipe(ops.to_list()) == ["bob/1"]
        assert await files.list_files(prefix="alice").pipe(ops.to_list()) == []
        infos = await files.list_files(details=True).pipe(ops.to_list())
        assert [info.name for info in infos] == ["bob/1"]
        with pytest.raises(PermissionDenied):
            await files.stat("public")
        with pytest.raises(PermissionDenied):
            await files.download_chunks("public")
    async with FileClient.connect(server.uri, auth=("alice", "a secret")) as files:
        assert len(await files.list_files().pipe(ops.to_list())) == 3


async def test_an_upload_is_only_its_users(server: FileServer) -> None:
    alices, bobs = [setup_frame(build_simple(*who)) for who in (("alice", "a secret"), ("bob", "b:secret"))]
    status = named("file.upload.status", b"shared/f", ID)
    async with raw_peer(server.uri, set_up=False) as alice, raw_peer(server.uri, set_up=False) as bob:
        await alice.send(alices, channel(1, b"shared/f", ID))
        while (await receive(alice)).kind == PAYLOAD:
            pass  # until the server asks for items
        await alice.send(frame(1, PAYLOAD, NEXT, b"alice's "))
        while (await receive(alice)).kind != PAYLOAD:
            pass

        # Bob's status request, resumption and newer attempt with the same id don't reach Alice's upload.
        await bob.send(bobs, status)
        answer = await receive(bob)
        assert answer.error[1].startswith("not_found: ")
        await bob.send(channel(3, b"shared/f", ID))
        first = await receive(bob)
        assert b'"committed":0' in first.metadata
        while (await receive(bob)).kind == PAYLOAD:
            pass
        end = item(b"chat/file-transfer", b'{"size": 5, "digest": null}')
        await bob.send(frame(3, PAYLOAD, NEXT, b"bob's"))
        await bob.send(frame(3, PAYLOAD, NEXT | COMPLETE | 0x100, len(end).to_bytes(3, "big") + end))
        while not (got := await receive(bob)).flags & COMPLETE:
            assert got.kind != ERROR, got.error
        assert server.data.files["shared/f"] == b"bob's"

        # Alice's is unchanged.
        async with FileClient.connect(server.uri, auth=("alice", "a secret")) as files:
            with pytest.raises(NotFound):  # of another name
                await raw_status(files, "shared/g")
        end = item(b"chat/file-transfer", b'{"size": 13, "digest": null}')
        await alice.send(frame(1, PAYLOAD, NEXT, b"bytes"))
        await alice.send(frame(1, PAYLOAD, NEXT | COMPLETE | 0x100, len(end).to_bytes(3, "big") + end))
        while not (got := await receive(alice)).flags & COMPLETE:
            assert got.kind != ERROR, got.error
        assert server.data.files["shared/f"] == b"alice's bytes"


async def test_an_upload_is_discarded_by_its_own_user_alone() -> None:
    known = users(*(user_line(name, "p", rights) for name, rights in (("a", "w@a/"), ("b", "w@b/"), ("reader", "rd@"))))
    async with serve(users=known) as server:
        discard = request(3, REQUEST_RESPONSE, route_item("file.upload.discard") + item(b"chat/file-transfer", ID))
        async with raw_peer(server.uri, set_up=False) as owner, raw_peer(server.uri, set_up=False) as other:
            await owner.send(setup_frame(build_simple("a", "p")), channel(1, b"a/f", ID))
            while (await receive(owner)).kind == PAYLOAD:
                pass  # until the server asks for items
            await owner.send(frame(1, PAYLOAD, NEXT, b"bytes"))
            while (await receive(owner)).kind != PAYLOAD:
                pass
            await other.send(setup_frame(build_simple("b", "p")), discard)
            assert (await receive(other)).error[1] == "not_found: no unfinished upload 'u'"
            assert await error_of(server, ("reader", "p"), discard) == "permission_denied"
            await owner.send(discard)
            while (got := await receive(owner)).stream_id != 3:
                assert got.kind != ERROR or got.error[1].startswith("superseded: ")
            assert b'"committed":5' in got.metadata


async def raw_status(files: FileClient, name: str) -> None:
    from rsocket.payload import Payload

    from shared.protocol.messages import FileRequest, transfer_request
    from shared.protocol.wire import Route

    payload = Payload(b"", transfer_request(Route.UPLOAD_STATUS, name, FileRequest(None, "u")))
    answer = await files.requests.request_response(payload)
    assert parse_metadata(answer.metadata)


# The process


async def test_a_process_with_a_file_of_users(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(user_line("alice", "a secret", "r@") + "\n")
    async with server_process("--auth-file", str(path), "--log-level", "debug") as server:
        with pytest.raises(Unauthenticated):
            async with FileClient.connect(server.uri, auth=("alice", "a wrong secret")):
                pass
        with pytest.raises(Unauthenticated):
            async with FileClient.connect(server.uri, auth="alice:a wrong secret"):
                pass
        async with FileClient.connect(server.uri, auth=("alice", "a secret")) as files:
            with pytest.raises(PermissionDenied):
                await files.upload("f", b"the content of a file")
            assert await files.list_files().pipe(ops.to_list()) == []
        status, log = await server.stop()
    assert status == 0
    assert "alice" in log
    assert "secret" not in log
    assert "argon2" not in log
    assert "the content" not in log


@pytest.mark.parametrize("content", [None, "alice:secret\n", b"\xff\xfe".decode("latin-1")])
def test_an_unusable_file_of_users_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = tmp_path / "users"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit) as exited:
        _server(["--auth-file", str(path)])
    assert exited.value.code == 2
    text = capsys.readouterr().err
    assert "secret" not in text
    assert ("line 1" in text) == (content == "alice:secret\n")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.com", "127.0.0.1.example.com", "0"])
def test_hosts_but_loopback_need_users_or_insecure(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        _server(["--host", host])
    assert exited.value.code == 2
    assert "--auth-file" in capsys.readouterr().err
    path = tmp_path / "users"
    path.write_text(user_line("alice", "a secret"))
    _server(["--host", host, "--auth-file", str(path)])
    _server(["--host", host, "--insecure"])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_addresses_need_no_users(host: str) -> None:
    assert _is_loopback(host)
    _server(["--host", host])


async def test_secrets_are_in_no_log_at_any_level(server: FileServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for auth in (("alice", "a secret"), "bob:b:secret", ("alice", "wrong secret"), "bob:wrong secret"):
        try:
            async with FileClient.connect(server.uri, auth=auth) as files:
                await files.list_files().pipe(ops.to_list())
        except Unauthenticated:
            pass
    with pytest.raises(ConnectionFailed):
        async with FileClient.connect("tcp://127.0.0.1:1", auth=("alice", "a secret")):
            pass
    await eventually(lambda: not server.connections)
    assert "connection from" in caplog.text
    assert "(alice)" in caplog.text
    assert "secret" not in caplog.text
    assert warnings(caplog) == []
