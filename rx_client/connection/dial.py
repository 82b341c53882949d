"""How a client gets a transport: over TCP, or TLS on it."""

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

from shared.errors import ConnectionFailed, TlsFailed
from shared.frames.reassembly import Reassembler
from shared.transport.base import Transport
from shared.transport.tcp import TcpTransport
from shared.transport.tls import Tls, TlsTransport

from .addresses import connect_socket
from .options import is_encrypted, parse_uri

__all__ = ["Dial", "dial_tcp", "to_failure"]

Dial = Callable[[Callable[[Transport], Reassembler], Callable[[Exception | None], None]], Awaitable[object]]
"""Makes one connection, and returns when it is made. The first argument is called with the transport then, the second
when the connection has ended; see `TcpTransport`. Raises OSError if there is none."""

# X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL, which Python has no names for.
_OTHER_HOST: Final = frozenset({62, 64})
# What OpenSSL says of bytes that aren't TLS.
_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL"})
# It says this of a connection that ended, too: nothing is wrong with TLS then.
_ENDED: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


def dial_tcp(uri: str, tls: ssl.SSLContext | None) -> Dial:
    """Connects to `tcp://HOST[:PORT]`, or with TLS to `tcps://HOST[:PORT]`; ValueError for any other `uri`."""
    host, port = parse_uri(uri)
    is_tls = is_encrypted(uri)
    if tls is not None and not is_tls:
        raise ValueError(f"{uri!r} is not encrypted; write tcps:// to use TLS")
    context = tls if tls is not None or not is_tls else ssl.create_default_context()

    session: ssl.SSLSession | None = None

    async def dial(
        on_connected: Callable[[Transport], Reassembler], on_lost: Callable[[Exception | None], None]
    ) -> object:
        sock = await connect_socket(host, port)
        is_begun = False

        def make_transport() -> TcpTransport:
            nonlocal is_begun
            is_begun = True
            if context is None:
                return TcpTransport(on_connected, on_lost)
            layer = Tls(context, host, session)

            def on_ended(error: Exception | None) -> None:
                nonlocal session
                session = layer.session or session
                on_lost(error)

            return TlsTransport(on_connected, on_ended, layer)

        try:
            _, transport = await asyncio.get_running_loop().create_connection(make_transport, sock=sock)
        finally:
            if not is_begun:
                sock.close()
        await transport.opened()
        return transport

    return dial


def to_failure(uri: str, error: Exception | None, *, is_connected: bool) -> ConnectionFailed:
    """Why there is no connection; `error` ended the attempt, or the connection before the server's first answer."""
    if isinstance(error, ssl.SSLError) and not isinstance(error, _ENDED):
        return TlsFailed(f"no connection to {uri}: {_tls_reason(error)}")
    if is_connected:
        reason = "the server ended the connection without an answer; "
    elif isinstance(error, ConnectionRefusedError) or not isinstance(error, ConnectionError | ssl.SSLError):
        return ConnectionFailed(f"no connection to {uri}: {_text(error)}")
    else:
        reason = f"{_text(error)}; "
    if is_encrypted(uri):
        reason += "it may require a client's certificate (tls=...), or not be encrypted (tcp://)"
    else:
        reason += "it may be no RSocket server, or be encrypted (tcps://)"
    return ConnectionFailed(f"no connection to {uri}: {reason}")


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        is_other_host = error.verify_code in _OTHER_HOST
        advice = "connect to the host that it is for" if is_other_host else "tls=... says which authorities to trust"
        return f"the server's certificate isn't accepted: {_text(error)}; {advice}"
    if error.reason in _NOT_TLS:
        return "the server isn't encrypted on this port: use tcp://"
    if "ALERT" in error.reason:
        return f"the server ended the TLS handshake: {_text(error)}; it may require a client's certificate (tls=...)"
    return f"TLS failed: {_text(error)}"


def _text(error: Exception | None) -> str:
    """The error's text, which isn't empty."""
    if isinstance(error, ConnectionError) and not isinstance(error, ssl.SSLError) and error.errno:
        return os.strerror(error.errno)
    if isinstance(error, socket.gaierror) and error.strerror:
        return error.strerror
    return str(error or "") or "the server ended the connection"
