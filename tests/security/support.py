"""For tests of hostile peers: SETUPs of every kind, and a server process whose memory and descriptors are measured."""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO

import pytest
from argon2 import PasswordHasher

from rx_client import FileClient
from server import Users
from shared.protocol.metadata import MetadataItem, build_metadata
from tests.support import (
    COMPOSITE,
    METADATA,
    PATIENCE,
    REQUEST_CHANNEL,
    REQUEST_RESPONSE,
    REQUEST_STREAM,
    SETUP,
    RawFrame,
    RawPeer,
    frame,
    item,
    name_item,
    request,
    route_item,
)

MIB = 1024 * 1024

CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""Makes hashes of the least cost, for tests that aren't about it."""

INVALID_SETUP, UNSUPPORTED_SETUP, REJECTED_SETUP, REJECTED_RESUME = 0x1, 0x2, 0x3, 0x4


def user_line(name: str, password: str, permissions: str | None = None) -> str:
    """A line of the file of users."""
    return f"{name}:{CHEAP.hash(password)}" + ("" if permissions is None else f":{permissions}")


def users(*lines: str) -> Users:
    return Users("\n".join(lines))


def setup_frame(*items: MetadataItem, lifetime_ms: int = 60_000, metadata: bytes | None = None) -> bytes:
    """A SETUP with these metadata items (or that metadata) and that lifetime."""
    mimes = b"".join(bytes([len(mime)]) + mime for mime in (COMPOSITE, b"application/octet-stream"))
    head = struct.pack(">HHII", 1, 0, 10_000, lifetime_ms) + mimes
    metadata = build_metadata(items) if metadata is None else metadata
    if not metadata:
        return frame(0, SETUP, 0, head)
    return frame(0, SETUP, METADATA, head + len(metadata).to_bytes(3, "big") + metadata)


def upload(stream_id: int, name: bytes, content: bytes, *, flags: int = 0) -> bytes:
    return request(stream_id, REQUEST_RESPONSE, route_item("file.upload") + name_item(name), content, flags=flags)


def download(stream_id: int, name: bytes) -> bytes:
    return request(stream_id, REQUEST_RESPONSE, route_item("file.download") + name_item(name))


def stat(stream_id: int, name: bytes) -> bytes:
    return request(stream_id, REQUEST_RESPONSE, route_item("file.stat") + name_item(name))


def chunks(stream_id: int, name: bytes, n: int = 1) -> bytes:
    return request(stream_id, REQUEST_STREAM, route_item("file.download") + name_item(name), n=n)


def channel(stream_id: int, name: bytes, message: bytes, n: int = 100) -> bytes:
    metadata = route_item("file.upload") + name_item(name) + item(b"chat/file-transfer", message)
    return request(stream_id, REQUEST_CHANNEL, metadata, n=n)


async def receive(peer: RawPeer) -> RawFrame:
    got = await peer.receive()
    assert got is not None, "the server closed the connection without an ERROR"
    return got


async def refused(peer: RawPeer) -> tuple[int, str]:
    """The code and text of the ERROR after which the connection ends."""
    last: RawFrame | None = None
    while (got := await peer.receive()) is not None:
        last = got
    assert last is not None, "the server closed the connection without an ERROR"
    assert last.stream_id == 0
    return last.error


async def serves(uri: str, name: str = "honest") -> None:
    """Asserts that an honest client is served, on a connection of its own."""
    async with FileClient.connect(uri) as files:
        await files.upload(name, b"x" * 1000, deadline=10)
        assert await files.download(name, deadline=10) == b"x" * 1000


def reset(peer: RawPeer) -> None:
    """Ends a connection abruptly, with an RST."""
    peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.writer.transport.abort()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]


@dataclass
class ServerProcess:
    """`python -m server`, and the resources that it uses."""

    process: asyncio.subprocess.Process
    uri: str

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def stop(self) -> tuple[int | None, str]:
        """Its exit status after SIGTERM, and its log."""
        self.process.terminate()
        async with asyncio.timeout(PATIENCE):
            _, stderr = await self.process.communicate()
        return self.process.returncode, stderr.decode()


@asynccontextmanager
async def server_process(
    *arguments: str, max_fds: int | None = None, stderr: int | IO[bytes] = asyncio.subprocess.PIPE
) -> AsyncGenerator[ServerProcess, None]:
    """`python -m server`, with at most `max_fds` open descriptors."""
    limited = () if max_fds is None else ("sh", "-c", f'ulimit -n {max_fds} && exec "$@"', "sh")
    process = await asyncio.create_subprocess_exec(
        *limited, sys.executable, "-m", "server", "--port", "0", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=stderr,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on "), (await process.communicate())[1].decode()
        yield ServerProcess(process, line.split()[-1])
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks at a process through /proc")
