"""A new password, from a terminal or a pipe."""

import getpass
import sys
from typing import TextIO

from .line import BYTE_ORDER_MARK

__all__ = ["ask_password"]


def ask_password() -> str:
    """What is typed at a terminal, twice; else the first line of standard input.

    Raises:
        ValueError: Both weren't the same, or it isn't text, or nothing was typed.
    """
    try:
        if not sys.stdin.isatty():
            return _piped_line(sys.stdin)
        password = getpass.getpass()
        if password and getpass.getpass("The same again: ") != password:
            raise ValueError("the passwords aren't the same")
    except EOFError:
        raise ValueError("no password was typed") from None
    except UnicodeError:
        raise ValueError("the password isn't text") from None
    return password


def _piped_line(stream: TextIO) -> str:
    """The first line without its end, which another system may write as CR LF, and without a byte order mark."""
    return stream.readline().removesuffix("\n").removesuffix("\r").removeprefix(BYTE_ORDER_MARK)
