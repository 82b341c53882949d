"""A user interface that never waits: an upload that is shown, paused and resumed in a window, by the window's thread.

`FileClient.blocking` has a thread of its own for the work. `files.subscribe` has the interface's functions called in
the interface's thread, by the scheduler that it is given: RxPY's for Tk here, or those for Qt and wx. Where there is no
display, the interface is a loop over a queue of functions, which is what a toolkit's loop is, too; there the upload is
paused once it has begun, and resumed. Run it beside a server::

    python -m rx_client.examples.ui_thread tcp://localhost:6565 large.iso
"""

import argparse
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol, TypeVar

from reactivex import abc, typing
from reactivex.disposable import Disposable, SerialDisposable, SingleAssignmentDisposable
from reactivex.scheduler.mainloop import TkinterScheduler
from reactivex.scheduler.scheduler import Scheduler

from .. import BlockingFileClient, Completed, FileClient, Progress, Retrying, Started, TransferError, TransferEvent
from ..operators import progress_every, retry_backoff, with_rate

S = TypeVar("S")


class NoDisplay(Exception):
    """There is no window here."""


class Interface(Protocol):
    """What a user interface has to have: a thread with a loop, and a scheduler that calls functions in it."""

    @property
    def scheduler(self) -> abc.SchedulerBase: ...
    def run(self) -> None: ...
    def show(self, text: str, done: float) -> None: ...
    def end(self, text: str) -> None: ...


class Upload:
    """One upload, and what a user does with it; all of it in the interface's thread."""

    def __init__(self, files: BlockingFileClient, path: Path) -> None:
        self.interface: Interface
        self._files = files
        self._events = files.upload_from(path.name, path).pipe(retry_backoff(), with_rate(), progress_every(0.05))
        self._subscription = SerialDisposable()
        self.is_paused, self.has_failed = True, False
        self._done = 0.0

    def toggle(self) -> None:
        """Pauses or resumes: dispose is cancel, and a new subscription goes on where the server has it."""
        self.is_paused = not self.is_paused
        if self.is_paused:
            self._subscription.disposable = Disposable()
            self.interface.show("paused", self._done)
        else:
            self._subscription.disposable = self._files.subscribe(
                self._events, self._on_event, self._on_error, scheduler=self.interface.scheduler
            )

    def cancel(self) -> None:
        self._subscription.dispose()
        self.interface.end("cancelled")

    def _on_event(self, event: TransferEvent) -> None:
        show = self.interface.show
        match event:
            case Started(resumed_from=offset):
                show(f"goes on at byte {offset:,}" if offset else "started", self._done)
            case Progress(transferred, total, bytes_per_second=rate):
                self._done = transferred / total if total else 0.0
                show(f"{transferred:,} of {total:,} bytes" + (f", {rate:,.0f} a second" if rate else ""), self._done)
            case Retrying(delay=delay, cause=cause):
                show(f"{cause}; again in {delay:.0f} s", self._done)
            case Completed(info):
                self.interface.end(f"{info.name} is stored: {info.size:,} bytes")

    def _on_error(self, error: Exception) -> None:
        self.has_failed = True
        self.interface.end(str(error))


class Window:
    """A window of Tk, with a bar and two buttons."""

    def __init__(self, upload: Upload) -> None:
        try:
            import tkinter  # noqa: PLC0415 - a Python may come without it
            from tkinter import ttk  # noqa: PLC0415
        except ImportError:
            raise NoDisplay from None
        try:
            root = tkinter.Tk()
        except tkinter.TclError:
            raise NoDisplay from None
        self._root = root
        root.title("upload")
        self._text, self._bar = ttk.Label(root, width=60), ttk.Progressbar(root, maximum=1.0)
        buttons = [("Pause or resume", upload.toggle), ("Cancel", upload.cancel)]
        for widget in (self._text, self._bar, *(ttk.Button(root, text=text, command=do) for text, do in buttons)):
            widget.pack(fill="x", padx=8, pady=4)
        root.protocol("WM_DELETE_WINDOW", upload.cancel)
        self.scheduler: Final = TkinterScheduler(root)

    def run(self) -> None:
        self._root.mainloop()

    def show(self, text: str, done: float) -> None:
        self._text.configure(text=text)
        self._bar.configure(value=done)

    def end(self, text: str) -> None:
        print(text)
        self._root.destroy()


class Terminal:
    """The same without a display; plays a user who pauses once."""

    def __init__(self, upload: Upload) -> None:
        self.scheduler: Final = QueueScheduler()
        self._upload = upload
        self._has_paused = self._is_over = False

    def run(self) -> None:
        self._thread = threading.get_ident()
        while not self._is_over:
            self.scheduler.calls.get()()

    def show(self, text: str, done: float) -> None:
        assert threading.get_ident() == self._thread, "an interface is touched by its own thread alone"
        print(text, flush=True)
        if 0 < done < 1 and not self._has_paused:
            self._has_paused = True
            for _ in range(2):
                self.scheduler.calls.put(self._upload.toggle)

    def end(self, text: str) -> None:
        print(text)
        self._is_over = True


class QueueScheduler(Scheduler):
    """Puts what is to be called into a queue; what is timed, by a timer's thread."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Final[SimpleQueue[Callable[[], object]]] = SimpleQueue()

    def schedule(self, action: typing.ScheduledAction[S], state: S | None = None) -> abc.DisposableBase:
        scheduled = SingleAssignmentDisposable()

        def call() -> None:
            if not scheduled.is_disposed:
                scheduled.disposable = self.invoke_action(action, state)

        self.calls.put(call)
        return scheduled

    def schedule_relative(
        self, duetime: typing.RelativeTime, action: typing.ScheduledAction[S], state: S | None = None
    ) -> abc.DisposableBase:
        raise NotImplementedError("the client times what it does by itself")

    def schedule_absolute(
        self, duetime: typing.AbsoluteTime, action: typing.ScheduledAction[S], state: S | None = None
    ) -> abc.DisposableBase:
        raise NotImplementedError("the client times what it does by itself")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m rx_client.examples.ui_thread", description="Uploads a file.")
    parser.add_argument("uri", help="the server, as tcp://HOST[:PORT]")
    parser.add_argument("file", type=Path)
    parser.add_argument("--no-window", action="store_true", help="as where there is no display")
    options = parser.parse_args()
    try:
        with FileClient.blocking(options.uri) as files:
            upload = Upload(files, options.file)
            try:
                upload.interface = Terminal(upload) if options.no_window else Window(upload)
            except NoDisplay:
                upload.interface = Terminal(upload)
            upload.toggle()
            upload.interface.run()
            return int(upload.has_failed)
    except TransferError as error:  # there is no server
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
