"""The server that a command talks to, and as which user: from the options, the environment, and a prompt."""

import getpass
import os
import ssl
import sys
from dataclasses import dataclass, field
from typing import Final

from rx_client import parse_uri

from .failures import UsageError

__all__ = ["Target", "can_ask"]

_SET_BOTH: Final = "type it, or set RXFILES_USER and RXFILES_PASSWORD"


@dataclass(frozen=True, slots=True)
class Target:
    """A server, or several with the same files.

    Attributes:
        uris: Where.
        auth: The user and the password.
        tls: How to verify the server, and this client's certificate; None for the system's authorities.
    """

    uris: list[str]
    auth: tuple[str, str] | None = field(repr=False)
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, uris: list[str] | None, ca: str | None, cert: str | None) -> "Target":
        """From the options, and RXFILES_USER and RXFILES_PASSWORD; asks for the password if only that is missing.

        Raises:
            UsageError: There is no server, or an option can't be.
        """
        if not uris:
            raise UsageError("which server? Give --server tcp://HOST[:PORT], or set RXFILES_SERVER")
        for uri in uris:
            _check_uri(uri)
        if (ca or cert) and not all(uri.lower().startswith("tcps:") for uri in uris):
            raise UsageError("--ca and --cert are for servers with TLS: write tcps:// in place of tcp://")
        return cls(uris, _credentials(), _tls(ca, cert) if ca or cert else None)

    def ask(self) -> "Target":
        """The same as the user of whom this terminal is asked for the name and the password."""
        print("This server wants a user. User name: ", end="", file=sys.stderr, flush=True)
        user = sys.stdin.readline().rstrip("\r\n")
        if not user:
            print(file=sys.stderr)
            raise UsageError(f"no user name was typed: {_SET_BOTH}")
        return Target(self.uris, (user, _ask_password(user)), self.tls)


def can_ask() -> bool:
    """Whether there is a terminal with a person to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _check_uri(uri: str) -> None:
    if "@" in uri:
        raise UsageError("the server's address has no user in it: set RXFILES_USER and RXFILES_PASSWORD")
    try:
        parse_uri(uri)
    except ValueError as error:
        advice = f"; write tcp://{uri}" if "/" not in uri and _is_uri(f"tcp://{uri}") else ""
        raise UsageError(f"--server: {error}{advice}") from None


def _is_uri(uri: str) -> bool:
    try:
        parse_uri(uri)
    except ValueError:
        return False
    return True


def _credentials() -> tuple[str, str] | None:
    user, password = os.environ.get("RXFILES_USER"), os.environ.get("RXFILES_PASSWORD")
    if not user:
        if password:
            raise UsageError("RXFILES_PASSWORD is set, and RXFILES_USER isn't: set both")
        return None
    if password is None:
        if not can_ask():
            raise UsageError("RXFILES_USER is set, and RXFILES_PASSWORD isn't: set both, or run this in a terminal")
        password = _ask_password(user)
    return user, password


def _ask_password(user: str) -> str:
    try:
        return getpass.getpass(f"Password of {user}: ")
    except EOFError:
        print(file=sys.stderr)
        raise UsageError(f"no password was typed: {_SET_BOTH}") from None


def _tls(ca: str | None, cert: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise UsageError(f"--ca {ca}: {_reason(error)}; it has to be a file of certificates (PEM)") from None
    if cert is not None:
        try:
            context.load_cert_chain(cert)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--cert {cert}: {_reason(error)}; it has to be a file with a certificate and its private key (PEM)"
            ) from None
    return context


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
