"""Recognises a peer that speaks TLS to an end that doesn't."""

from typing import Final

from ..frames.codec import FrameError

__all__ = ["TlsError", "check_plain"]

# How a TLS handshake, or an alert, begins: a length that no first frame has.
_TLS: Final = frozenset({0x1603, 0x1503})


class TlsError(FrameError):
    """The peer speaks TLS, and this end doesn't."""


def check_plain(length: int) -> None:
    """Raises TlsError if what should be the length of a connection's first frame is how TLS begins."""
    if length >> 8 in _TLS:
        raise TlsError("the peer speaks TLS, and this end doesn't")
