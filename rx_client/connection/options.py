"""What an application says of a connection: where to, as which user, and how long to wait."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from shared.checks import check_positive
from shared.protocol.wire import DEFAULT_PORT

__all__ = ["Auth", "ConnectOptions", "is_encrypted", "parse_uri"]

# The SETUP frame has the keepalive times as 31 bits of milliseconds.
_MAX_KEEPALIVE_SECONDS: Final = 0x7FFFFFFF / 1000

_FORM: Final = "tcp://HOST[:PORT] or tcps://HOST[:PORT]"
# A URI that an error may repeat: without a query, and with digits where a password would stand.
_HARMLESS: Final = re.compile(r"[a-zA-Z0-9+.-]*(:/*)?[\w.-]*(:[0-9]*)?/?|[a-z]+://\[[0-9a-fA-F:.]*\](:[0-9]*)?/?")

Auth = tuple[str, str] | str
"""A user name and a password, or a bearer token."""


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How a client connects, and how long it waits; all in seconds.

    They count the time during which the event loop ran: a process that stands still takes no server for silent.

    Attributes:
        connect_timeout: For one attempt: name resolution, TCP to the first address that answers, TLS, and the server's
            answer to the SETUP. Several URIs share it: each has its part of what is left.
        keepalive_period: Between two keepalive frames. Its default is as seldom as the timeout allows, with five
            seconds for an answer: a server may have ten thousand clients with nothing to do.
        keepalive_timeout: A server is taken for dead if nothing arrived from it, and it took nothing of what waits to
            be sent, for this long; that is noticed a sixteenth later at the most. A proxy on the way that takes more
            than the link behind it carries in this time makes a slow server look dead; then it must be longer.
        reconnect_timeout: For all attempts together, when an operation needs a connection and there is none.
        reconnect_base: The least delay between the beginnings of two attempts. It doubles with each attempt, whichever
            operation asks for it, until a connection has lived for `reconnect_cap`; after that the next attempt is
            immediate.
        reconnect_cap: The longest such delay; at most half of `reconnect_timeout`, so that an operation sees an
            attempt. Each delay is random, from half of it to all of it.
        progress_timeout: An operation for which nothing moves for this long fails with Stalled.
    """

    connect_timeout: float = 10.0
    keepalive_period: float = 3.5
    keepalive_timeout: float = 8.5
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
        TypeError: It is no str.
        ValueError: It is something else. Its text has no part of `uri` that may be a password.
    """
    if not isinstance(uri, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a URI is a str, not {type(uri).__name__}")
    if "@" in uri:
        raise ValueError(f"a URI has no user and no password, as in {_FORM}: give connect(..., auth=(name, password))")
    shown = repr(uri) if _HARMLESS.fullmatch(uri) else "the URI"
    try:
        parts = urlsplit(uri)
        host, is_more = parts.hostname, parts.path not in ("", "/") or parts.query or parts.fragment
        is_uri = parts.scheme in ("tcp", "tcps") and host and not is_more
        if is_uri and host:
            host.encode("idna")
    except ValueError:  # whose text may have all of it
        raise ValueError(f"{shown} is not of the form {_FORM}: there can't be such a host") from None
    if not is_uri or not host:
        raise ValueError(f"{shown} is not of the form {_FORM}")
    try:
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise ValueError(f"{shown} has no valid port, which is a number from 1 to 65535") from None
    return host, port


def is_encrypted(uri: str) -> bool:
    """Whether a valid URI is one with TLS."""
    return uri.lower().startswith("tcps:")
