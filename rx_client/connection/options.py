"""What an application says of a connection: where to, as which user, and how long to wait."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from shared.checks import check_positive
from shared.protocol.wire import DEFAULT_PORT

__all__ = ["Auth", "ConnectOptions", "parse_uri"]

# The SETUP frame has the keepalive times as 31 bits of milliseconds.
_MAX_KEEPALIVE_SECONDS: Final = 0x7FFFFFFF / 1000

Auth = tuple[str, str] | str
"""A user name and a password, or a bearer token."""


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How a client connects, and how long it waits; all in seconds.

    Attributes:
        connect_timeout: For one attempt: name resolution, TCP, TLS, and the server's answer to the SETUP.
        keepalive_period: Between two keepalive frames.
        keepalive_timeout: A server is taken for dead if nothing arrived from it, and it took nothing of what waits to
            be sent, for this long. A proxy on the way that takes more than the link behind it carries in this time
            makes a slow server look dead; then it must be longer.
        reconnect_timeout: For all attempts together, when an operation needs a connection and there is none.
        reconnect_base: The least delay between the beginnings of two attempts. It doubles with each attempt, whichever
            operation asks for it, until a connection has lived for `reconnect_cap`; after that the next attempt is
            immediate.
        reconnect_cap: The longest such delay; at most half of `reconnect_timeout`, so that an operation sees an
            attempt. Each delay is random, from half of it to all of it.
        progress_timeout: An operation for which nothing moves for this long fails with Stalled.
    """

    connect_timeout: float = 10.0
    keepalive_period: float = 1.0
    keepalive_timeout: float = 6.0
    reconnect_timeout: float = 10.0
    reconnect_base: float = 0.1
    reconnect_cap: float = 2.0
    progress_timeout: float = 60.0

    def __post_init__(self) -> None:
        check_positive(self, self.__slots__)
        for name in ("keepalive_period", "keepalive_timeout"):
            if (value := getattr(self, name)) > _MAX_KEEPALIVE_SECONDS:
                raise ValueError(f"{name} must be {_MAX_KEEPALIVE_SECONDS:.0f} seconds at the most, not {value!r}")


def parse_uri(uri: str) -> tuple[str, int]:
    """The host and port of `tcp://HOST[:PORT]` or `tcps://HOST[:PORT]`; the port is 6565 if it isn't given.

    Raises:
        ValueError: It is something else.
    """
    parts = urlsplit(uri)
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{uri!r} has no valid port: {error}") from None
    is_more = parts.path not in ("", "/") or parts.query or parts.username
    if parts.scheme not in ("tcp", "tcps") or not parts.hostname or is_more:
        raise ValueError(f"{uri!r} is not of the form tcp://HOST[:PORT] or tcps://HOST[:PORT]")
    return parts.hostname, DEFAULT_PORT if port is None else port
