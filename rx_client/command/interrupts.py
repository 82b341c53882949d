"""SIGINT and SIGTERM: the first ends the command in good order, the second at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from .exits import Exit

__all__ = ["Interrupts"]


class Interrupts:
    """What a signal does, from here on to the end of the process.

    As long as nothing is under way, and from the second signal on, the process exits at once: nothing has to be saved,
    as what is half done isn't published anywhere. In another thread than the main one, which gets no signals, this does
    nothing.

    Attributes:
        on_exit: Called before such an exit. What a prompt has changed of the terminal is restored as well.
    """

    def __init__(self) -> None:
        self._restore_terminal = _terminal_restorer()
        self.on_exit: Callable[[], None] = _nothing
        self._on_first: Callable[[], object] | None = None
        self._has_begun = False
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)

    @contextmanager
    def calling(self, on_first: Callable[[], object]) -> Generator[None]:
        """In this block the first signal calls `on_first` instead."""
        self._on_first = on_first
        try:
            yield
        finally:
            self._on_first = None

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        on_first, self._on_first = self._on_first, None
        if on_first is not None:
            self._has_begun = True
            on_first()
            return
        self.on_exit()
        self._restore_terminal()
        if not self._has_begun:
            print("rxfiles: interrupted", file=sys.stderr)
        os._exit(Exit.INTERRUPTED)


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def _terminal_restorer() -> Callable[[], None]:
    """A function that makes the terminal, if there is one, echo again what is typed, as it does now."""
    try:
        import termios  # noqa: PLC0415 - not on Windows
    except ImportError:
        return _nothing
    try:
        state = termios.tcgetattr(0)
    except termios.error:
        return _nothing
    return lambda: termios.tcsetattr(0, termios.TCSANOW, state)


def _nothing() -> None:
    return
