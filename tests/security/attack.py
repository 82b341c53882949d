"""`python -m tests.security.attack`: attacks on a server from outside, while an honest client is served.

Server, attacker and honest client are a process each. During each attack every honest request succeeds within a
second, the server's memory stays below a bound that follows from its limits, and no internal text reaches a peer. After
the attack the server still runs, its descriptors and memory are as before, and its log has only a few more lines.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import random
import re
import ssl
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from argon2 import PasswordHasher
from reactivex import operators as ops

from rx_client import FileClient
from server import Limits
from shared import errors
from shared.protocol.metadata import build_simple
from tests.security.support import (
    MIB,
    ServerProcess,
    channel,
    chunks,
    download,
    reset,
    server_process,
    setup_frame,
    stat,
    upload,
)
from tests.support import (
    CANCEL,
    COMPLETE,
    COMPOSITE,
    ERROR,
    FOLLOWS,
    IGNORE,
    KEEPALIVE,
    LEASE,
    METADATA,
    METADATA_PUSH,
    NEXT,
    PAYLOAD,
    REQUEST_CHANNEL,
    REQUEST_FNF,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    RESPOND,
    SETUP,
    RawPeer,
    frame,
    item,
    name_item,
    request,
    request_n,
    route_item,
    setup,
)

_LARGE = 64 * MIB
_FILES = 1000
_HONEST_SECONDS = 1.0
_SETTLE_SECONDS = 20.0
_LOG_LINES = 10
# Python's allocator and the C library keep some freed memory; it must not add up.
_KEPT_BYTES = 48 * MIB
_PASSWORD_BYTES = 64 * MIB  # argon2's for a password, of which one at a time is checked

WORDS = frozenset(
    {
        *(code for name in errors.__all__ if (code := getattr(getattr(errors, name), "code", ""))),
        "invalid_setup",
        "unsupported_setup",
        "rejected_resume",
        "rejected_setup",
        "connection_close",
        "invalid_frame",
        "timeout",
        "too_many_errors",
        "connection_error",
    }
)
"""How the text of an ERROR may begin."""

_INTERNAL = re.compile(r"Traceback|File \"|object at 0x|<class|Errno|Exception|Error\(|/tmp/|\.rxfiles|\.py\b|asyncio")
# A name or route from the peer's request.
_QUOTED = re.compile(r"'[^']*'")


# The attacker's process


@dataclass
class Stage:
    """The means of an attack.

    Attributes:
        uri: The server's.
        until: When to stop, in seconds of the monotonic clock.
        hello: A SETUP that the server accepts.
        errors: The texts of the received ERROR frames.
        done: How often frames were sent.
    """

    uri: str
    until: float
    hello: bytes = setup()
    errors: set[str] = field(default_factory=set[str])
    done: int = 0
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    async def peer(self, *first: bytes, set_up: bool = True, reads: bool = True) -> RawPeer:
        """A connection that stays until the attack ends, or the server ends it."""
        peer = await RawPeer.connect(self.uri.replace("tcps:", "tcp:"))
        self.stack.callback(_reset, peer)
        if reads:
            reading = asyncio.create_task(self._read(peer))
            self.stack.callback(reading.cancel)
        await self.send(peer, *([self.hello] if set_up else []), *first)
        return peer

    async def send(self, peer: RawPeer, *frames: bytes) -> bool:
        """Sends the frames; False if the server doesn't read them in time, or has closed the connection."""
        try:
            async with asyncio.timeout(max(self.until - time.monotonic(), 0)):
                await peer.send(*frames)
        except (TimeoutError, ConnectionError):
            return False
        self.done += 1
        return not peer.writer.is_closing() and not peer.reader.at_eof()

    async def pour(self, peer: RawPeer, *frames: bytes) -> None:
        """Sends the frames repeatedly."""
        while self.goes_on and await self.send(peer, *frames):
            await asyncio.sleep(0)

    async def stay(self) -> None:
        await asyncio.sleep(max(self.until - time.monotonic(), 0))

    async def _read(self, peer: RawPeer) -> None:
        try:
            while True:
                length = int.from_bytes(await peer.reader.readexactly(3), "big")
                body = await peer.reader.readexactly(length)
                if length >= 10 and body[4] >> 2 == ERROR:
                    self.errors.add(body[10:].decode())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass


Attack = Callable[[Stage], Awaitable[None]]

ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__.replace("_", " ")] = function
    return function


async def in_turn(stage: Stage, each: Iterable[bytes], *, set_up: bool = True) -> None:
    """Sends each on a connection of its own, repeatedly."""
    sent = list(each)
    while stage.goes_on:
        for frames in sent:
            if not stage.goes_on:
                break
            peer = await RawPeer.connect(stage.uri)
            reading = asyncio.create_task(stage._read(peer))
            await stage.send(peer, *([stage.hello] if set_up else []), frames)
            await asyncio.wait([reading], timeout=0.02)
            reading.cancel()
            _reset(peer)


def as_json(**what: object) -> bytes:
    return json.dumps(what).encode()


def asked(stream_id: int, kind: int, route: str, name: bytes, message: bytes | None = None, n: int = 1) -> bytes:
    metadata = route_item(route) + name_item(name)
    return request(stream_id, kind, metadata + (b"" if message is None else item(b"chat/file-transfer", message)), n=n)


def odd(count: int) -> range:
    return range(1, 2 * count, 2)


@attack
async def nothing(stage: Stage) -> None:
    await stage.stay()


@attack
async def fragments_without_a_setup(stage: Stage) -> None:
    while stage.goes_on:
        peer = await stage.peer(set_up=False)
        for stream_id in odd(400):
            if not await stage.send(peer, upload(stream_id, b"a", bytes(1_000_000), flags=FOLLOWS)):
                break


@attack
async def no_proper_setup(stage: Stage) -> None:
    mime = bytes([len(COMPOSITE)]) + COMPOSITE
    head = struct.pack(">HHII", 1, 0, 10_000, 60_000)
    await in_turn(
        stage,
        [
            stat(1, b"a"),
            upload(1, b"a", b"x"),
            chunks(1, b"a"),
            channel(1, b"a", as_json(upload_id="u")),
            frame(0, KEEPALIVE, RESPOND, bytes(8)),
            frame(0, METADATA_PUSH, METADATA, b"x"),
            frame(0, LEASE, 0, bytes(8)),
            frame(0, ERROR, 0, struct.pack(">I", 0x101) + b"x"),
            frame(0, 0x0D, 0, bytes(30)),  # RESUME
            frame(0, 0x0E, 0, bytes(8)),  # RESUME_OK
            frame(0, 0x3F, 0, bytes(8)),  # EXT
            frame(0, 0x3F, IGNORE, bytes(8)),
            setup(version=(2, 0)),
            setup(version=(0xFFFF, 0xFFFF)),
            setup(b"text/plain"),
            setup(b"\xff\xfe"),
            setup(b""),
            setup() + setup(),
            setup() + setup_frame() + stat(1, b"a"),
            frame(0, SETUP, 0x80, head + bytes(4) + mime + mime),  # resumption
            frame(0, SETUP, 0x40, head + mime + mime),  # lease
            frame(0, SETUP, 0, struct.pack(">HHII", 1, 0, 0, 0) + mime + mime),
            frame(0, SETUP, 0, struct.pack(">HHII", 1, 0, 0xFFFFFFFF, 0xFFFFFFFF) + mime + mime),
            frame(0, SETUP, 0, head + b"\xff" + mime),
            frame(0, SETUP, METADATA, head + mime + mime + b"\xff\xff\xff"),
            frame(1, SETUP, 0, head + mime + mime),
            *(frame(0, SETUP, 0, (head + mime + mime)[:length]) for length in range(0, 60, 7)),
            setup(body=bytes(20_000)),
            b"\xff\xff\xff" + setup()[3:] + bytes(100_000),
            bytes(30_000),
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ],
        set_up=False,
    )


@attack
async def broken_frames(stage: Stage) -> None:
    await in_turn(
        stage,
        [
            stat(0, b"a"),
            stat(2, b"a"),
            stat(0x80000001, b"a"),
            chunks(1, b"a") + chunks(1, b"a"),
            upload(1, b"a", b"x", flags=FOLLOWS) + stat(1, b"a"),
            setup_frame(),
            bytes(3),
            b"\0\0\1\0",
            b"\0\0\5hello",
            frame(0, PAYLOAD, NEXT, b"x"),
            frame(1, 0x3E),
            frame(1, 0),
            frame(1, REQUEST_RESPONSE, METADATA, b"\xff\xff\xff"),
            frame(1, REQUEST_STREAM, 0, b"\0\0"),
            frame(1, REQUEST_CHANNEL, METADATA, b"\0\0\0\1"),
            frame(1, ERROR, 0, b"\0"),
            frame(1, 0x08, 0, b"\0"),
            frame(0, KEEPALIVE, RESPOND, b"\0"),
            frame(0, LEASE, 0, b"\0"),
            frame(0, METADATA_PUSH, METADATA, b"\xff"),
            frame(0, 0x0D, 0, bytes(8)),
            b"\xff\xff\xff" + upload(1, b"a", b"x" * 1000)[3:],
        ],
    )


@attack
async def connections_in_turn(stage: Stage) -> None:
    while stage.goes_on:
        peer = await RawPeer.connect(stage.uri)
        await stage.send(peer, *random.choice([[], [stage.hello], [stage.hello, stat(1, b"missing")]]))
        _reset(peer)


@attack
async def a_warning_in_turn(stage: Stage) -> None:
    """Each connection causes one warning of each kind."""
    await in_turn(
        stage,
        [
            upload(1, b"a", b"x" * 10, flags=FOLLOWS)
            + b"".join(stat(stream_id, b"missing") for stream_id in range(3, 50, 2))
            + b"".join(upload(stream_id, b"b", b"x", flags=FOLLOWS) for stream_id in range(51, 2200, 2))
        ],
    )


@attack
async def slow_lorises(stage: Stage) -> None:
    peers = [await stage.peer(set_up=False) for _ in range(400)]
    while stage.goes_on:
        for at, peer in enumerate(peers):
            await stage.send(peer, stage.hello[stage.done % 30 : stage.done % 30 + 1])
            if at % 50 == 0:
                await asyncio.sleep(0.01)


@attack
async def fragments_without_end(stage: Stage) -> None:
    data = bytes(1_000_000)

    async def one() -> None:
        peer = await stage.peer()
        for _ in range(400):
            for stream_id in odd(8):
                kind = PAYLOAD if stage.done > 100 else REQUEST_RESPONSE
                sent = frame(stream_id, PAYLOAD, FOLLOWS | NEXT, data)
                if kind == REQUEST_RESPONSE:
                    sent = request(stream_id, kind, route_item("file.stat") + name_item(b"a"), data, flags=FOLLOWS)
                if not await stage.send(peer, sent):
                    return

    await asyncio.gather(*(one() for _ in range(40)))


@attack
async def fragments_of_a_byte(stage: Stage) -> None:
    async def one() -> None:
        peer = await stage.peer(*(upload(stream_id, b"a", b"x", flags=FOLLOWS) for stream_id in odd(1000)))
        await stage.pour(peer, b"".join(frame(stream_id, PAYLOAD, FOLLOWS | NEXT, b"x") for stream_id in odd(1000)))

    await asyncio.gather(*(one() for _ in range(8)))


@attack
async def whole_frames_of_16_mb(stage: Stage) -> None:
    data = bytes(0xFFFFFF - 200)

    async def one() -> None:
        peer = await stage.peer()
        for stream_id in odd(60):
            if not await stage.send(peer, upload(stream_id, b"large one", data)):
                return
        await stage.stay()

    await asyncio.gather(*(one() for _ in range(4)))


@attack
async def small_frames_by_the_million(stage: Stage) -> None:
    kinds = [
        frame(7, PAYLOAD, NEXT),
        frame(0, KEEPALIVE, 0, bytes(8)),
        frame(1, 0x3E, IGNORE),
        frame(9, CANCEL),
        frame(9, 0x08, 0, struct.pack(">I", 5)),
        frame(9, ERROR, 0, struct.pack(">I", 0x201)),
        frame(0, METADATA_PUSH, METADATA, b"x"),
        request(11, REQUEST_FNF, route_item("nowhere")),
    ]
    peers = [await stage.peer() for _ in kinds]
    await asyncio.gather(*(stage.pour(peer, kind * 2000) for peer, kind in zip(peers, kinds, strict=True)))


@attack
async def errors(stage: Stage) -> None:
    while stage.goes_on:
        peer = await stage.peer()
        stream_ids = odd(2000)
        await stage.send(peer, b"".join(request(id_, REQUEST_RESPONSE, route_item("nowhere")) for id_ in stream_ids))


@attack
async def asked_and_cancelled(stage: Stage) -> None:
    async def one() -> None:
        peer, first = await stage.peer(), 1
        while stage.goes_on:
            pieces: list[bytes] = []
            for id_ in range(first, first + 400, 2):
                make = (stat, download, chunks)[id_ // 2 % 3]
                pieces += [make(id_, b"large"), frame(id_, CANCEL)]
            first += 400
            if not await stage.send(peer, *pieces):
                peer, first = await stage.peer(), 1

    await asyncio.gather(*(one() for _ in range(4)))


@attack
async def keepalives_whose_echo_is_not_read(stage: Stage) -> None:
    peers = [await stage.peer(reads=False) for _ in range(40)]
    await asyncio.gather(*(stage.pour(peer, frame(0, KEEPALIVE, RESPOND, bytes(16_000_000))) for peer in peers))
    await asyncio.sleep(0.5)


@attack
async def metadata_of_many_items(stage: Stage) -> None:
    empty = (item(b"route", b"")) * 3_900_000

    async def one() -> None:
        peer, id_ = await stage.peer(), 1
        while stage.goes_on and await stage.send(peer, request(id_, REQUEST_RESPONSE, empty)):
            id_ += 2

    await asyncio.gather(*(one() for _ in range(2)))


@attack
async def metadata_in_fragments(stage: Stage) -> None:
    empty = item(b"route", b"") * 225_000

    async def one() -> None:
        peer = await stage.peer(frame(1, REQUEST_RESPONSE, FOLLOWS | METADATA, b"\0\0\1\0"))
        for _ in range(100):
            if not await stage.send(peer, request(1, PAYLOAD, empty, flags=FOLLOWS)):
                return
        await stage.send(peer, request(1, PAYLOAD, empty))
        await stage.stay()

    await asyncio.gather(*(one() for _ in range(2)))


@attack
async def metadata_of_items(stage: Stage) -> None:
    """The frames are items of an upload's channel."""
    empty = item(b"route", b"") * 3_900_000
    while stage.goes_on:
        peer = await stage.peer(channel(1, b"c", as_json(upload_id="m")))
        await asyncio.sleep(0.1)
        await stage.send(peer, request(1, PAYLOAD, empty, b"x", flags=NEXT))
        await asyncio.sleep(0.1)


@attack
async def json_of_every_kind(stage: Stage) -> None:
    texts = [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"offset": ' + b"9" * 4000 + b"}",
        b'{"offset": ' + b"9" * 1_000_000 + b"}",
        b'{"offset": 1e999}',
        b'{"offset": NaN}',
        b'{"offset": -1}',
        b'{"offset": -Infinity, "length": 1.5}',
        b'{"offset": true, "digest": []}',
        b'{"if_match": "\\ud800"}',
        b'{"prefix": "\\ud800\\u0000", "upload_id": "\\udfff"}',
        b'{"upload_id": "../../etc/passwd"}',
        b'{"upload_id": "u", "size": 99999999999999999999999}',
        b'{"upload_id": "u", "digest": "md5"}',
        b'{"digest": "\\u202e"}',
        b"\xff\xfe{\0}\0",
        b"null",
        b"",
        b'{"a":1,' * 100_000,
        b"{" + b",".join(b'"%d":[{}]' % n for n in range(500_000)) + b"}",
    ]
    peer, id_ = await stage.peer(), 1
    while stage.goes_on:
        for text in texts:
            for kind, route in (
                (REQUEST_STREAM, "file.download"),
                (REQUEST_CHANNEL, "file.upload"),
                (REQUEST_STREAM, "files"),
                (REQUEST_RESPONSE, "file.upload.status"),
                (REQUEST_RESPONSE, "file.delete"),
            ):
                if not stage.goes_on or not await stage.send(peer, asked(id_, kind, route, b"small-1", text)):
                    peer, id_ = await stage.peer(), -1
                id_ += 2


@attack
async def names_of_every_kind(stage: Stage) -> None:
    names = [
        b"",
        b"\0",
        b"a\0b",
        b"../../../etc/passwd",
        b"/etc/passwd",
        b".rxfiles/lock",
        b"..",
        b".",
        b"n" * 1024,
        b"n" * 1025,
        b"n" * 500_000,
        "\u202egnp.exe".encode(),
        b"\xed\xa0\x80",
        b"\xff",
        "\u2028{}%s%n".encode(),
        b"\x1b[2J",
        b"CON",
        b"a\nb",
    ]
    peer, id_ = await stage.peer(), 1
    while stage.goes_on:
        for name in names:
            for sent in (
                *(
                    asked(id_ + 2 * n, REQUEST_RESPONSE, route, name)
                    for n, route in enumerate(("file.stat", "file.download"))
                ),
                chunks(id_ + 4, name),
                channel(id_ + 6, name, as_json(upload_id="names")) + frame(id_ + 6, CANCEL),
                upload(id_ + 8, name, b"x"),
                asked(id_ + 10, REQUEST_RESPONSE, "file.delete", name),
            ):
                if not await stage.send(peer, sent):
                    peer, id_ = await stage.peer(), -11
                    break
            id_ += 12
        await asyncio.sleep(0)


@attack
async def odd_demands(stage: Stage) -> None:
    peer, id_ = await stage.peer(), 1
    while stage.goes_on:
        for n in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
            for sent in (
                chunks(id_, b"small-1", n),
                chunks(id_ + 2, b"small-1") + request_n(id_ + 2, n) * 3,
                channel(id_ + 4, b"demands", as_json(upload_id="d"), n)
                + request_n(id_ + 4, n)
                + frame(id_ + 4, CANCEL),
                request(id_ + 6, REQUEST_STREAM, route_item("files"), n=n)
                + request_n(id_ + 6, n)
                + frame(id_ + 6, CANCEL),
            ):
                if not await stage.send(peer, sent):
                    peer, id_ = await stage.peer(), -7
                    break
            id_ += 8
        await asyncio.sleep(0.01)


@attack
async def uploads_that_send_nothing(stage: Stage) -> None:
    for number in range(4):
        await stage.peer(
            *(channel(id_, b"idle-%d" % id_, as_json(upload_id=f"idle-{number}-{id_}")) for id_ in odd(1024))
        )
    await stage.stay()


@attack
async def uploads_that_send_on(stage: Stage) -> None:
    """Items come after the end, after an error, and without credit."""
    while stage.goes_on:
        end = item(b"chat/file-transfer", as_json(size=1, digest=None))
        sent = frame(1, PAYLOAD, NEXT, bytes(900_000))
        peer = await stage.peer(channel(1, b"on", as_json(upload_id="on", digest=None), n=0x7FFFFFFF))
        await asyncio.sleep(0.02)
        await stage.send(peer, request(1, PAYLOAD, end, b"x", flags=NEXT | COMPLETE), *[sent] * 40)
        peer = await stage.peer(channel(1, b"on", as_json(upload_id="on", digest=None), n=0x7FFFFFFF), *[sent] * 40)


@attack
async def uploads_begun_and_abandoned(stage: Stage) -> None:
    run = random.getrandbits(32)
    while stage.goes_on:
        peer = await stage.peer()
        for id_ in odd(400):
            message = as_json(upload_id=f"abandoned-{run}-{stage.done}-{id_}")
            if not await stage.send(peer, channel(id_, b"abandoned", message), frame(id_, CANCEL)):
                break
        await asyncio.sleep(0.05)


@attack
async def listings_that_stop(stage: Stage) -> None:
    for _ in range(4):
        await stage.peer(*(request(id_, REQUEST_STREAM, route_item("files"), n=1) for id_ in odd(1024)))
    await stage.stay()


@attack
async def listings_one_by_one(stage: Stage) -> None:
    """Each listing holds what is left of its first page."""
    while stage.goes_on:
        peer = await stage.peer()
        for id_ in odd(1024):
            if not await stage.send(peer, request(id_, REQUEST_STREAM, route_item("files"), n=1)):
                break
            await asyncio.sleep(0.002)


@attack
async def readers_that_stop(stage: Stage) -> None:
    for _ in range(8):
        await stage.peer(
            *(chunks(id_, b"large", 0x7FFFFFFF) for id_ in odd(40)),
            *(download(id_ + 80, b"large") for id_ in odd(20)),
            reads=False,
        )
    await stage.stay()


@attack
async def small_files_that_are_not_read(stage: Stage) -> None:
    for _ in range(20):
        await stage.peer(*(download(id_, b"medium") for id_ in odd(1024)), reads=False)
    await stage.stay()


@attack
async def digests_of_what_is_before(stage: Stage) -> None:
    message = as_json(offset=_LARGE - 1, digest_from=0, digest="sha-256")
    metadata = route_item("file.download") + name_item(b"large") + item(b"chat/file-transfer", message)
    for _ in range(4):
        await stage.peer(*(request(id_, REQUEST_STREAM, metadata, n=1) for id_ in odd(500)))
    await stage.stay()


@attack
async def requests_without_a_pause(stage: Stage) -> None:
    async def one() -> None:
        peer, first = await stage.peer(), 1
        while stage.goes_on:
            if not await stage.send(peer, *(download(id_, b"small-1") for id_ in range(first, first + 200, 2))):
                peer, first = await stage.peer(), -199
            first += 200

    await asyncio.gather(*(one() for _ in range(4)))


@attack
async def handshakes_that_stop(stage: Stage) -> None:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
    peers = [await stage.peer(set_up=False) for _ in range(300)]
    while stage.goes_on:
        at = stage.done // 300 % 200
        for peer in peers:
            await stage.send(peer, hello[at : at + 1])
        await asyncio.sleep(0.02)


@attack
async def wrong_passwords(stage: Stage) -> None:
    async def one(number: int) -> None:
        while stage.goes_on:
            name = "honest" if number % 2 else f"user-{number}"
            with contextlib.suppress(ConnectionError):
                peer = await stage.peer(setup_frame(build_simple(name, str(random.random()))), set_up=False)
                while stage.goes_on and not peer.reader.at_eof():
                    await asyncio.sleep(0.01)

    await asyncio.gather(*(one(number) for number in range(200)))


@attack
async def others_files(stage: Stage) -> None:
    """Mallory may do everything below `mallory/`, and nothing else; the honest user's upload_id is `honest-id`."""
    while stage.goes_on:
        peer = await stage.peer(
            stat(1, b"small-1"),
            download(3, b"small-1"),
            chunks(5, b"small-1"),
            upload(7, b"small-1", b"x"),
            upload(9, b"mallory/../small-1", b"x"),
            asked(11, REQUEST_RESPONSE, "file.delete", b"small-1"),
            channel(13, b"honest-2", as_json(upload_id="honest-id")),
            channel(15, b"mallory/a", as_json(upload_id="honest-id")),
            asked(17, REQUEST_RESPONSE, "file.upload.status", b"honest-2", as_json(upload_id="honest-id")),
            asked(19, REQUEST_RESPONSE, "file.upload.status", b"mallory/b", as_json(upload_id="honest-id")),
            request(21, REQUEST_STREAM, route_item("files"), n=100),
            upload(23, b"small-1", bytes(100_000), flags=FOLLOWS),
        )
        await stage.send(peer, frame(23, PAYLOAD, NEXT, b"x"))
        await asyncio.sleep(0.05)


def _reset(peer: RawPeer) -> None:
    with contextlib.suppress(OSError):  # it is closed
        reset(peer)


async def run_attack(name: str, uri: str, seconds: float, hello: bytes) -> None:
    """The attacker's process: prints the errors it received, and how much it has sent, as JSON."""
    logging.disable()  # asyncio warns of each write to a closed connection
    stage = Stage(uri, time.monotonic() + seconds, hello)
    async with stage.stack:
        with contextlib.suppress(ConnectionError):
            await ATTACKS[name](stage)
    print(json.dumps({"errors": sorted(stage.errors), "done": stage.done}))


# The honest client, and what is measured meanwhile


@dataclass
class Measured:
    """What happened during one attack.

    Attributes:
        latencies: Of the honest requests, in seconds.
        failures: The honest requests that failed.
        peak: How much the server's memory grew during the attack at most, in bytes.
        after: How much more it is after the attack than before, in bytes.
        files: Descriptors before and after.
        lines: Log lines.
        errors: Texts that reached the attacker.
        wrong: What has failed, one sentence each.
    """

    latencies: list[float]
    slowest: str
    failures: list[str]
    peak: int = 0
    after: int = 0
    files: tuple[int, int] = (0, 0)
    lines: int = 0
    errors: list[str] = field(default_factory=list[str])
    done: int = 0
    wrong: list[str] = field(default_factory=list[str])


class Target:
    """A server's process, its log, and an honest client.

    Args:
        server: The process.
        log: Where its standard error goes.
        client: Makes the honest client.
        hello: A SETUP of the attacker that the server accepts.
    """

    def __init__(self, server: ServerProcess, log: Path, client: Callable[[], FileClient], hello: bytes) -> None:
        self.server = server
        self._log = log
        self._client = client
        self._hello = hello
        self._texts: set[str] = set()

    async def seed(self, count: int) -> None:
        """Uploads the files that the attacks list and read."""
        async with self._client() as files:
            await files.upload_from("large", bytes(_LARGE))
            await files.upload("medium", bytes(64 * 1024))
            for number in range(count):
                await files.upload(f"small-{number}", b"x" * 1000)
        await self._honest(time.monotonic() + 1)

    async def measure(
        self, name: str, seconds: float, *, bound: int, honest_seconds: float = _HONEST_SECONDS
    ) -> Measured:
        """Runs one attack while an honest client is served."""
        files, memory, lines = self.server.fds, self.server.rss, self._lines()
        pid = self.server.process.pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets the peak
        attacker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.security.attack", "--attacker", name, self.server.uri, str(seconds)),
            self._hello.hex(), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            measured = await self._honest(time.monotonic() + seconds + 1.0)
            async with asyncio.timeout(seconds + 30):
                output, _ = await attacker.communicate()
        finally:
            if attacker.returncode is None:
                attacker.kill()
                await attacker.communicate()
        report = json.loads(output)
        measured.errors, measured.done = report["errors"], report["done"]
        wrong = measured.wrong
        if self.server.process.returncode is not None:
            wrong.append("the server died")
            return measured
        measured.peak = self._peak() - memory
        async with self._settled(files, memory):
            pass
        measured.after = self.server.rss - memory
        measured.files = files, self.server.fds
        measured.lines = self._lines() - lines
        wrong += measured.failures
        if not measured.latencies or max(measured.latencies) > honest_seconds:
            wrong.append(f"an honest request ({measured.slowest}) took {max(measured.latencies, default=0):.2f} s")
        if measured.peak > bound:
            wrong.append(f"{measured.peak // MIB} MiB at its peak, where {bound // MIB} are allowed")
        if measured.after > _KEPT_BYTES:
            wrong.append(f"{measured.after // MIB} MiB were not freed")
        if measured.files[1] > files:
            wrong.append(f"{measured.files[1] - files} descriptors were left open")
        if measured.lines > _LOG_LINES:
            wrong.append(f"{measured.lines} lines in the log")
        wrong += [f"a peer got the error {text!r}" for text in measured.errors if not _is_allowed(text)]
        return measured

    async def _honest(self, until: float) -> Measured:
        measured = Measured([], "", [])
        content = random.randbytes(2_000_000)

        async def timed(what: str, action: Awaitable[object]) -> None:
            began = time.monotonic()
            try:
                await action
            except Exception as error:
                measured.failures.append(f"{what}: {type(error).__name__}: {error}")
            took = time.monotonic() - began
            if took > max(measured.latencies, default=0):
                measured.slowest = what
            measured.latencies.append(took)

        async def served() -> None:
            async with self._client() as files:
                for _ in range(4):
                    await timed("upload", files.upload("honest-1", content[:1000], deadline=20))
                    await timed("download", files.download("honest-1", deadline=20))
                    names = files.list_files(prefix="small-1", deadline=20).pipe(ops.count())
                    await timed("list", names)
                    events = files.upload_from("honest-2", content, upload_id="honest-id", deadline=20)
                    await timed("upload of 2 MB", events)
                    chunked = files.download_chunks("honest-2", deadline=20).pipe(
                        ops.map(lambda c: len(c.data)), ops.sum()
                    )
                    await timed("download of 2 MB", chunked)

        while time.monotonic() < until and not measured.failures:
            try:
                await served()
            except Exception as error:
                measured.failures.append(f"{type(error).__name__}: {error}")
        return measured

    @asynccontextmanager
    async def _settled(self, files: int, memory: int) -> AsyncGenerator[None, None]:
        """Entered when the server's resources are as before the attack, or after `_SETTLE_SECONDS`."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline and (self.server.fds > files or self.server.rss - memory > _KEPT_BYTES):
            await asyncio.sleep(0.05)
        yield

    def _peak(self) -> int:
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def _lines(self) -> int:
        return self._log.read_bytes().count(b"\n")


def _is_allowed(text: str) -> bool:
    word, colon, message = text.partition(": ")
    return bool(colon) and word in WORDS and message.isprintable() and not _INTERNAL.search(_QUOTED.sub("", message))


# The command

_OPEN_ATTACKS = [name for name in ATTACKS if name not in ("handshakes that stop", "wrong passwords", "others files")]
MODES = {
    "memory": _OPEN_ATTACKS,
    "folder": _OPEN_ATTACKS,
    "users": ["nothing", "no proper setup", "fragments without a setup", "wrong passwords", "others files"],
    "tls": ["nothing", "handshakes that stop", "slow lorises"],
}


@asynccontextmanager
async def target(mode: str, root: Path) -> AsyncGenerator[Target, None]:
    """A server process for the mode."""
    arguments: list[str] = []
    auth: tuple[str, str] | None = None
    tls: ssl.SSLContext | None = None
    hello = setup()
    if mode != "memory":
        arguments += ["--store", str(root / "store")]
    if mode == "users":
        hashed = PasswordHasher().hash
        lines = [f"honest:{hashed('secret')}", f"mallory:{hashed('mallory')}:rwd@mallory/"]
        (root / "users").write_text("\n".join(lines))
        arguments += ["--auth-file", str(root / "users")]
        auth, hello = ("honest", "secret"), setup_frame(build_simple("mallory", "mallory"))
    if mode == "tls":
        ca = trustme.CA()
        certificate = ca.issue_cert("127.0.0.1")
        chain, key = root / "chain.pem", root / "key.pem"
        chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        certificate.private_key_pem.write_to_path(key)
        arguments += ["--tls-cert", str(chain), "--tls-key", str(key)]
        tls = ssl.create_default_context()
        ca.configure_trust(tls)
    log = root / f"{mode}.log"
    with log.open("wb") as stderr:
        async with server_process(*arguments, stderr=stderr) as server:
            yield Target(server, log, lambda: FileClient.connect(server.uri, auth=auth, tls=tls), hello)


async def run(
    mode: str,
    attacks: Iterable[str],
    seconds: float,
    *,
    files: int = _FILES,
    honest_seconds: float = _HONEST_SECONDS,
    is_quiet: bool = False,
) -> list[str]:
    """Runs the attacks on one kind of server; returns what has failed."""
    limits = Limits()
    if mode == "memory":
        held = limits.max_reassembly_bytes + limits.max_unstored_bytes + limits.max_unsent_bytes
    else:
        held = limits.max_spooling_bytes
    bound = held + 32 * MIB  # for the connections' own state
    if mode == "users":
        bound += _PASSWORD_BYTES
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="rxfiles-attack-") as root:
        async with target(mode, Path(root)) as aimed:
            await aimed.seed(files)
            for name in attacks:
                measured = await aimed.measure(name, seconds, bound=bound, honest_seconds=honest_seconds)
                wrong += [f"{mode}, {name}: {each}" for each in measured.wrong]
                if not is_quiet:
                    _print(mode, name, measured)
                if aimed.server.process.returncode is not None:
                    break
        if not is_quiet and (log := (Path(root) / f"{mode}.log").read_text()):
            print("  log:", *log.splitlines()[:20], sep="\n    ")
    return wrong


def _print(mode: str, name: str, measured: Measured) -> None:
    times = measured.latencies or [0.0]
    print(
        f"{mode:7}{name:32}{len(times):5} requests, p50 {statistics.median(times) * 1000:6.1f} ms, "
        f"max {max(times) * 1000:7.1f} ms ({measured.slowest}); peak {measured.peak / MIB:+7.1f} MiB, "
        f"after {measured.after / MIB:+6.1f}; fds {measured.files[0]} {measured.files[1]}; log {measured.lines}; "
        f"sent {measured.done}",
        flush=True,
    )
    for each in measured.wrong:
        print(f"  WRONG: {each[:300]}", flush=True)
    for text in measured.errors[:60]:
        print(f"    {text[:160]}", flush=True)


def main() -> int:
    """The command; returns 0 if nothing has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.security.attack", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="each attack's time (default: %(default)s)")
    parser.add_argument("--mode", action="append", choices=MODES, help="which kinds of server (default: all)")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="which attacks (default: all)")
    parser.add_argument("--attacker", nargs=4, metavar=("ATTACK", "URI", "SECONDS", "HELLO"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attacker:
        name, uri, seconds, hello = options.attacker
        asyncio.run(run_attack(name, uri, float(seconds), bytes.fromhex(hello)))
        return 0
    wrong: list[str] = []
    for mode in options.mode or MODES:
        attacks = [name for name in MODES[mode] if not options.attack or name in options.attack]
        wrong += asyncio.run(run(mode, attacks, options.seconds))
    for each in wrong:
        print(f"WRONG: {each}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
