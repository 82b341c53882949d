"""The TLS of a server, from its files."""

import ssl
from os import PathLike, fspath
from pathlib import Path

__all__ = ["server_tls"]


def server_tls(
    certificate: str | PathLike[str], key: str | PathLike[str], client_ca: str | PathLike[str] | None = None
) -> ssl.SSLContext:
    """The TLS of a server.

    Args:
        certificate: A file with the certificate chain, as PEM.
        key: A file with the private key, as PEM; not encrypted.
        client_ca: A file with the authorities that must have signed clients' certificates; None if they need none.

    Raises:
        OSError: A file can't be read, or isn't what it should be (ssl.SSLError); its text names the file.
    """
    _check_pem(certificate, b"CERTIFICATE-----", "certificate")
    if b"ENCRYPTED" in _check_pem(key, b"PRIVATE KEY-----", "private key"):
        raise _error(f"the private key in {fspath(key)!r} is encrypted, and a server can't ask for its password")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        files = f"{fspath(certificate)!r} and {fspath(key)!r}"
        raise _error(f"{files} aren't a certificate chain and its private key: {error}") from None
    if client_ca is not None:
        _check_pem(client_ca, b"CERTIFICATE-----", "certificate")
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise _error(f"{fspath(client_ca)!r} has a certificate that can't be read: {error}") from None
    return context


def _error(text: str) -> ssl.SSLError:
    return ssl.SSLError(ssl.SSL_ERROR_SSL, text)  # with the text alone, str() would show a tuple


def _check_pem(path: str | PathLike[str], mark: bytes, what: str) -> bytes:
    """The file's content; raises OSError, whose text names the file, if it can't be read or has no such PEM block."""
    content = Path(path).read_bytes()
    if mark not in content:
        raise _error(f"{fspath(path)!r} has no {what} in PEM format")
    return content
