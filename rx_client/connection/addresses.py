"""A TCP connection to a host that has several addresses: RFC 8305, "Happy Eyeballs".

`loop.create_connection` can do it, too, but not on uvloop, and its error doesn't say what was wrong with which address.
"""

import asyncio
import os
import socket
from collections import deque
from typing import Any, Final

__all__ = ["connect_socket"]

# RFC 8305's "Connection Attempt Delay": how long one address has before the next is tried beside it.
_DELAY_SECONDS: Final = 0.25

_Address = tuple[socket.AddressFamily, Any]


async def connect_socket(host: str, port: int) -> socket.socket:
    """A socket that is connected with one of the host's addresses, whichever answers first.

    Raises:
        OSError: The host is unknown, or none of its addresses can be connected with; the text says why for each.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    waiting = _interleaved([(family, address) for family, _, _, _, address in found])
    attempts: dict[asyncio.Task[socket.socket], _Address] = {}
    failures: dict[_Address, OSError] = {}
    connected: list[socket.socket] = []
    try:
        while not connected and (waiting or attempts):
            if waiting:
                address = waiting.popleft()
                attempts[asyncio.create_task(_connect(*address))] = address
            done, _ = await asyncio.wait(
                attempts, timeout=_DELAY_SECONDS if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                address = attempts.pop(task)
                try:
                    connected.append(task.result())
                except OSError as error:
                    failures[address] = error
        if not connected:
            raise _summary(failures)
        return connected.pop(0)
    finally:
        for task in attempts:
            task.cancel()
        late = await asyncio.gather(*attempts, return_exceptions=True)
        connected.extend(each for each in late if isinstance(each, socket.socket))
        for each in connected:
            each.close()
        failures.clear()  # whose tracebacks refer to this frame


async def _connect(family: socket.AddressFamily, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _interleaved(addresses: list[_Address]) -> deque[_Address]:
    """The addresses in their order, but families by turns."""
    families: dict[socket.AddressFamily, deque[_Address]] = {}
    for address in dict.fromkeys(addresses):
        families.setdefault(address[0], deque()).append(address)
    ordered: deque[_Address] = deque()
    while families:
        for family, left in list(families.items()):
            ordered.append(left.popleft())
            if not left:
                del families[family]
    return ordered


def _summary(failures: dict[_Address, OSError]) -> OSError:
    """One error for all addresses."""
    if not failures:
        return OSError("the host has no address")
    if len(failures) == 1:
        return next(iter(failures.values()))
    return OSError("; ".join(f"{address[0]}: {_reason(error)}" for (_, address), error in failures.items()))


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
