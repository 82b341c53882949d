"""A long line: a proxy, in a process of its own, that delays every byte.

`python -m tests.benchmarks.line PORT SECONDS` prints the port on which it listens, and forwards connections to `PORT`;
the round trip is twice the delay. Bytes aren't copied into the process (`splice`), so that the processors are left to
the systems that are measured: what is on its way is in pipes, some of it in each. It carries more than 1 GB/s.
"""

import fcntl
import os
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final

__all__ = ["Line"]

_F_SETPIPE_SZ: Final = 1031
_PIPE_BYTES: Final = 1024 * 1024
# What is on its way in one direction: beyond this the sender waits, as where a router's queue is full.
_MAX_BYTES: Final = 256 * 1024 * 1024
# Each is two descriptors, of which a process may have 1,024.
_MAX_PIPES: Final = 200
# The receiver rests for so long after each piece, so that pieces are few and large: each takes a pipe.
_REST_SECONDS: Final = 0.0001
_EOF: Final = (-1, -1)


class Line:
    """One direction of one connection, moved by two threads.

    Args:
        source: Where bytes are received.
        target: Where they are sent, `seconds` later.
        seconds: The delay.
    """

    def __init__(self, source: socket.socket, target: socket.socket, seconds: float) -> None:
        self._source = source
        self._target = target
        self._seconds = seconds
        # What is on its way: when it is due, its pipe, and its bytes.
        self._moving: deque[tuple[float, tuple[int, int], int]] = deque()
        self._moving_bytes = 0
        self._pipes: deque[tuple[int, int]] = deque()
        self._made = 0
        self._changed = threading.Condition()
        self._is_broken = False

    def run(self) -> None:
        """Forwards until the source ends."""
        receiver = threading.Thread(target=self._receive, daemon=True)
        receiver.start()
        with suppress(OSError):
            self._send()
        with self._changed:
            self._is_broken = True
            self._changed.notify()
        with suppress(OSError):
            self._source.shutdown(socket.SHUT_RD)
        receiver.join()
        for ends in (*self._pipes, *(ends for _, ends, _ in self._moving if ends != _EOF)):
            os.close(ends[0])
            os.close(ends[1])

    def _receive(self) -> None:
        with suppress(OSError):
            while (ends := self._borrow()) is not None:
                # More than its size fits into a pipe, which counts pages: those of a socket may be larger.
                nbytes = os.splice(self._source.fileno(), ends[1], 8 * _PIPE_BYTES)
                self._put(ends, nbytes)
                if not nbytes:
                    break
                time.sleep(_REST_SECONDS)
        self._put(_EOF, 0)

    def _borrow(self) -> tuple[int, int] | None:
        """A pipe for what comes next, once there may be more; None where nothing can be sent any more."""
        with self._changed:
            while not self._is_broken:
                if self._moving_bytes < _MAX_BYTES:
                    if self._pipes:
                        return self._pipes.popleft()
                    if self._made < _MAX_PIPES:
                        break
                self._changed.wait()
            else:
                return None
        ends = os.pipe()
        self._made += 1
        with suppress(OSError):  # a user may have so many large ones; then it has 64 KiB
            fcntl.fcntl(ends[1], _F_SETPIPE_SZ, _PIPE_BYTES)
        return ends

    def _put(self, ends: tuple[int, int], nbytes: int) -> None:
        with self._changed:
            self._moving.append((time.monotonic() + self._seconds, ends, nbytes))
            self._moving_bytes += nbytes
            self._changed.notify()

    def _send(self) -> None:
        while True:
            with self._changed:
                while not self._moving:
                    self._changed.wait()
                due, ends, nbytes = self._moving[0]
            time.sleep(max(due - time.monotonic(), 0))
            if ends == _EOF:
                self._target.shutdown(socket.SHUT_WR)
                return
            left = nbytes
            while left:
                left -= os.splice(ends[0], self._target.fileno(), left)
            with self._changed:
                self._moving.popleft()
                self._moving_bytes -= nbytes
                self._pipes.append(ends)
                self._changed.notify()


def _forward(client: socket.socket, port: int, seconds: float) -> None:
    with client, socket.create_connection(("127.0.0.1", port)) as server:
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up = threading.Thread(target=Line(client, server, seconds).run, daemon=True)
        up.start()
        Line(server, client, seconds).run()
        up.join()


def main(port: int, seconds: float) -> None:
    """Forwards until the process ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_forward, args=(client, port, seconds), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
