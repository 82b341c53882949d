"""The cost of each stage of a transfer by itself, in one thread: a lower bound for a whole transfer.

Of the project only the digest runs here; the system calls are those of a transfer, on blocks of a chunk's size.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shared.protocol.digest import Digest

from .peers import CHUNK_BYTES

__all__ = ["measure_stages"]

_HEADER: Final = bytes(9)


def measure_stages(file: Path, target: Path, disk: Path) -> dict[str, float]:
    """Stage -> seconds for each GiB.

    Args:
        file: Read.
        target: Written, beside the other files of the benchmark.
        disk: Written and synced, on a real disk.
    """
    size = file.stat().st_size
    buffer = bytearray(CHUNK_BYTES)
    digest = Digest()
    with file.open("rb", buffering=0) as source:
        stages: dict[str, Callable[[], object]] = {
            "read": lambda: _each(size, lambda offset: os.preadv(source.fileno(), [buffer], offset)),
            "digest": lambda: _each(size, lambda _: digest.update(buffer)),
            "socket": lambda: _through_a_socket(size, buffer),
            "write": lambda: _write(target, size, buffer),
        }
        found = {stage: _timed(work) * (1 << 30) / size for stage, work in stages.items()}
    synced = _timed(lambda: _write(disk, size, buffer, sync=True))
    found["write and fsync, on a disk"] = synced * (1 << 30) / size
    return found


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _each(size: int, work: Callable[[int], object]) -> None:
    for offset in range(0, size, CHUNK_BYTES):
        work(offset)


def _write(path: Path, size: int, buffer: bytearray, *, sync: bool = False) -> None:
    with path.open("wb", buffering=0) as file:
        _each(size, lambda _: file.write(buffer))
        if sync:
            os.fsync(file.fileno())
    path.unlink()


def _through_a_socket(size: int, buffer: bytearray) -> None:
    """Sends in this thread and receives in another: both ends of a connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()

    def receive() -> None:
        into = bytearray(CHUNK_BYTES)
        while receiver.recv_into(into):
            pass

    def send(_: int) -> None:
        left: list[bytes | memoryview] = [_HEADER, memoryview(buffer)]
        while left:
            taken = sender.sendmsg(left)
            while left and taken >= len(left[0]):
                taken -= len(left.pop(0))
            if left:
                left[0] = memoryview(left[0])[taken:]

    thread = threading.Thread(target=receive)
    thread.start()
    with sender:
        _each(size, send)
    thread.join()
    receiver.close()
