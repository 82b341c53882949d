"""What an example gets from its runner, and how it says that its result is wrong."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from server import FileServer

__all__ = ["Context", "WrongResult", "check"]


@dataclass(frozen=True)
class Context:
    """One run of an example.

    Attributes:
        uri: The server to talk to, as `tcp://HOST:PORT`.
        say: Prints a line.
        update: Prints progress: on a terminal in place of the last one.
        is_terminal: Whether somebody is watching, so that progress may be shown often.
        server: The server at `uri` if it runs in this process, to look into its counters; None if it is elsewhere.
        options: The example's own command line options, by name.
    """

    uri: str
    say: Callable[[str], None]
    update: Callable[[str], None]
    is_terminal: bool
    server: FileServer | None
    options: argparse.Namespace


class WrongResult(Exception):
    """What came out isn't what should have; the text says what."""


def check(is_right: bool, otherwise: str) -> None:
    """Raises WrongResult with the text `otherwise` unless `is_right`."""
    if not is_right:
        raise WrongResult(otherwise)
