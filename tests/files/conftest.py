"""Sockets and a file."""

import os
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.files.support import socket_pair

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Generator[Ends, None, None]:
    """A connection's socket, and the test's at its other end."""
    left, right = socket_pair()
    with left, right:
        yield left, right


@pytest.fixture
def source(tmp_path: Path) -> Generator[int, None, None]:
    """A file of 100,000 bytes."""
    path = tmp_path / "source"
    path.write_bytes(os.urandom(100_000))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)
