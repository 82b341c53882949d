"""What each error is for a person at a shell: one sentence that says what to do, and an exit code."""

import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from shared import errors

from .exits import Exit

__all__ = ["RUN_AGAIN", "Failure", "RefusedError", "UnfitError", "UsageError", "describe"]

RUN_AGAIN: Final = "run the same command again: it goes on where it stopped"
"""What a user is told after a transfer that was interrupted, or has lost its server."""


class UsageError(Exception):
    """The command line, or the environment, asks for something that can't be; nothing was done."""


class RefusedError(Exception):
    """What was asked for isn't done, since it would do too much harm if it isn't meant; nothing was done."""


class UnfitError(Exception):
    """A file can't be where it has to: with its name, or beside what is there."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error, for display.

    Attributes:
        code: The exit code.
        kind: The error's class in snake case.
        sentence: Says what is wrong, and what to do about it.
    """

    code: Exit
    kind: str
    sentence: str


def describe(error: Exception) -> Failure:
    """What to say of an error, by the first row of the table that it is an instance of."""
    kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(error).__name__).lower()
    for expected, code, sentence in _TABLE:
        if isinstance(error, expected):
            return Failure(code, kind, sentence(error))
    return Failure(Exit.FAILED, kind, f"{_text(error)}; RXFILES_DEBUG=1 shows where this comes from")


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _and(advice: str) -> Callable[[Exception], str]:
    return lambda error: f"{_text(error)}; {advice}"


def _connection(error: Exception) -> str:
    """The client's sentence, in the words of the command's options."""
    return _text(error).replace("tls=... says", "--ca FILE says").replace("(tls=...)", "(--cert FILE)")


def _no_connection(error: Exception) -> str:
    if isinstance(error.__cause__, socket.gaierror):
        return f"{_connection(error)}; check the host's name"
    return f"{_connection(error)}; `rxfiles serve` starts a server" if "refused" in _text(error) else _connection(error)


def _unauthenticated(error: Exception) -> str:
    if "requires" in _text(error):
        return "the server wants a user: set RXFILES_USER and RXFILES_PASSWORD, or run this in a terminal to be asked"
    is_set = "RXFILES_PASSWORD" in os.environ
    return f"{_text(error)}: {'check RXFILES_USER and RXFILES_PASSWORD' if is_set else 'run the command again'}"


def _os_error(error: Any) -> str:
    """A failure of this computer's own files."""
    reason = error.strerror or _text(error)
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename is not None else reason


def _os_error_and(advice: str) -> Callable[[Any], str]:
    return lambda error: f"{_os_error(error)}; {advice}"


def _no_room(error: Exception) -> str:
    text = _STDOUT.sub("what standard output goes to", _text(error))
    return f"{text}; make room, and run the same command again"


_STDOUT: Final = re.compile(r"/proc/\d+/fd/1\b|/dev/(?:stdout|fd/1)\b")
_AGAIN: Final = _and(RUN_AGAIN)

_TABLE: Final[list[tuple[type[Exception], Exit, Callable[[Any], str]]]] = [
    (UsageError, Exit.USAGE, _text),
    (RefusedError, Exit.FAILED, _and("nothing was changed")),
    (UnfitError, Exit.FAILED, _text),
    (errors.NotFound, Exit.NOT_FOUND, _and("`rxfiles ls` lists the names")),
    (errors.Unauthenticated, Exit.REFUSED, _unauthenticated),
    (errors.PermissionDenied, Exit.REFUSED, _and("`rxfiles users permissions` at the server can allow it")),
    (errors.Forbidden, Exit.REFUSED, _text),
    (errors.AlreadyExists, Exit.FAILED, _and("leave out --no-overwrite to replace it")),
    (errors.UnknownRoute, Exit.FAILED, _and("this server is older, or not of rxfiles")),
    (errors.TlsFailed, Exit.NO_SERVER, _connection),
    (errors.ConnectionLost, Exit.NO_SERVER, _AGAIN),
    (errors.ConnectionFailed, Exit.NO_SERVER, _no_connection),
    (errors.Stalled, Exit.FAILED, _AGAIN),
    (errors.SourceChanged, Exit.FAILED, _and("run the command again when nothing writes to it")),
    (errors.StorageFull, Exit.FAILED, _no_room),
    (errors.Superseded, Exit.FAILED, _and("another rxfiles uploads the same file")),
    (errors.InvalidName, Exit.USAGE, _and("give another name")),
    (errors.TransferError, Exit.FAILED, _text),
    (FileNotFoundError, Exit.NOT_FOUND, _os_error_and("check the path")),
    (FileExistsError, Exit.FAILED, _os_error_and("give another path")),
    (IsADirectoryError, Exit.USAGE, _os_error_and("give another path, or -r for files of a folder")),
    (NotADirectoryError, Exit.USAGE, _os_error_and("give a folder")),
    (PermissionError, Exit.FAILED, _os_error_and("change its permissions, or run this as another user")),
    (OSError, Exit.FAILED, _os_error),
]
