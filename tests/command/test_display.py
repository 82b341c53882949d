"""What is shown: JSON for programs, lines for logs, bars for terminals."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from rx_client import Completed, Failed, Progress, Retrying, Skipped, Started, TotalProgress
from rx_client.command.bars import Bars
from rx_client.command.display import Display, JsonLines, Lines
from rx_client.command.exits import Exit
from rx_client.command.happenings import Happening
from rx_client.command.outcome import Outcome
from server import FileServer
from shared import ConnectionLost, FileInfo, NotFound
from tests.command.conftest import Command

SUMMARY = {"event", "exit_code", "completed", "failed", "skipped", "bytes", "seconds"}
KEYS = {
    "started": {"event", "name", "total", "resumed_from"},
    "progress": {"event", "name", "transferred", "total", "bytes_per_second", "seconds_left"},
    "total": {
        *("event", "transferred", "total", "bytes_per_second", "seconds_left"),
        *("moved", "active", "completed", "failed", "skipped"),
    },
    "completed": {"event", "name", "size", "etag", "modified", "digest"},
    "failed": {"event", "name", "error", "message", "exit_code"},
    "skipped": {"event", "name", "reason"},
    "file": {"event", "name", "size", "etag", "modified", "digest"},
    "change": {"event", "action", "name", "to", "reason", "dry_run"},
    "error": {"event", "error", "message", "exit_code"},
    "summary": SUMMARY,
}


async def test_json(rxfiles: Command, server: FileServer, home: Path) -> None:
    (home / "t").mkdir()
    for name in ("a", "b"):
        (home / "t" / name).write_bytes(bytes(1_000_000))
    runs = [
        await rxfiles("put", "-r", "t", "--json"),
        await rxfiles("get", "t/a", "missing", "--json"),
        await rxfiles("put", "-r", "t", "--ignore-existing", "--json"),
        await rxfiles("ls", "--json"),
        await rxfiles("stat", "t/a", "--json"),
        await rxfiles("mv", "t/a", "c", "--json"),
        await rxfiles("rm", "c", "--dry-run", "--json"),
        await rxfiles("put", "missing", "--json"),
    ]
    events = [event for run in runs for event in run.events]
    assert {event["event"] for event in events} == set(KEYS)
    assert all(set(event) == KEYS[event["event"]] for event in events)
    assert all(run.events[-1]["event"] == "summary" for run in runs)
    assert [run.events[-1]["exit_code"] for run in runs] == [run.code for run in runs] == [0, 3, 0, 0, 0, 0, 0, 4]
    put, get, skipped, *_ = runs
    total = [event for event in put.events if event["event"] == "total"][-1]
    assert (total["transferred"], total["total"], total["completed"]) == (2_000_000, 2_000_000, 2)
    assert put.events[-1]["bytes"] == 2_000_000
    assert put.err == ""
    failed = next(event for event in get.events if event["event"] == "failed")
    assert (failed["name"], failed["error"], failed["exit_code"]) == ("missing", "not_found", 4)
    assert get.err.count("\n") == 1
    assert skipped.events[-1]["skipped"] == 2


async def test_quiet_keeps_errors_and_what_was_asked_for(rxfiles: Command, server: FileServer, home: Path) -> None:
    (home / "a").write_text("a")
    assert await rxfiles("put", "a", "-q") == type(await rxfiles("ls"))(0, "", "")
    assert (await rxfiles("ls", "-q")).out == "a\n"
    assert (await rxfiles("rm", "a", "-q")).out == ""
    assert "no file named 'a'" in (await rxfiles("rm", "a", "-q")).err


def feed(display: Display, *events: Happening) -> None:
    for event in events:
        display.outcome.on_event(event)
        display.on_event(event)


STORY: list[Happening] = [
    Started(None, 1000, 940, name="big [b]"),
    TotalProgress(940, 3000, name="big [b]", active=1),
    Started(None, 2000, 0, name="other"),
    TotalProgress(940, 3000, name="other", active=2),
    Progress(950, 1000, name="big [b]", bytes_per_second=10.0, seconds_left=5.0),
    Retrying(1, 0.5, ConnectionLost("the connection was lost"), name="big [b]"),
    Skipped("link\x1b[2J", "it is a symbolic link"),
    Failed("gone", NotFound.for_name("gone")),
]


def test_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lines, "_EVERY_SECONDS", 0)
    display = Lines("put", Outcome())
    feed(display, *STORY)
    display.on_second()
    monkeypatch.setattr(Outcome, "_STILL_SECONDS", 0)
    display.on_second()
    feed(display, Completed(FileInfo("big [b]", 1000)))
    display.on_end(Exit.SOME_FAILED)
    assert capsys.readouterr().err.splitlines() == [
        "big [b]: resuming at 94%",
        "big [b]: the connection was lost; retry 1 in 0.5 s",
        "link\\x1b[2J is skipped: it is a symbolic link",
        "rxfiles put: no file named 'gone'; `rxfiles ls` lists the names",
        "0 done, 2 under way: 31% of 3.0 kB",
        "no progress for 0 s",
        "1 file transferred, 1 failed, 1 skipped",
    ]


def test_bars(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bars, "_REFRESH_SECONDS", -1)
    screen = io.StringIO()
    display = Bars("put", Outcome(), Console(file=screen, force_terminal=True, width=100))

    def shown() -> str:
        text = screen.getvalue()
        screen.seek(0)
        screen.truncate()
        return text

    feed(display, *STORY[:5])
    text = shown()
    for expected in (
        "0 done, 2 under way",
        "big [b]",
        "95% of 1.0 kB",
        "10 B/s",
        "5.0 s left",
        "big [b]: resuming at 94%",
    ):
        assert expected in text
    feed(display, *STORY[5:])
    text = shown()
    for expected in ("retry 1", "link\\x1b[2J is skipped: it is a symbolic link", "no file named 'gone'"):
        assert expected in text
    monkeypatch.setattr(Outcome, "_STILL_SECONDS", 0)
    display.on_second()
    assert "no progress for 0 s" in shown()
    feed(display, Completed(FileInfo("big [b]", 1000)))
    display.close()
    display.on_end(Exit.SOME_FAILED)
    assert "\x1b[?25h" in shown()  # the cursor is back
    assert capsys.readouterr().err == "1 file transferred, 1 failed, 1 skipped\n"


def test_bars_on_a_narrow_terminal_keep_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bars, "_REFRESH_SECONDS", -1)
    screen = io.StringIO()
    display = Bars("put", Outcome(), Console(file=screen, force_terminal=True, width=56))
    feed(display, Started(None, 500_000_000, 0, name="photos/video.mp4"))
    feed(display, Progress(5, 500_000_000, name="photos/video.mp4", bytes_per_second=31.5e6, seconds_left=15.0))
    display.close()
    assert "photos/vi" in next(line for line in screen.getvalue().splitlines() if "31.5 MB/s" in line)


def test_json_of_what_a_healthy_server_does_not_cause(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outcome, "_STILL_SECONDS", 0)
    display = JsonLines("put", Outcome())
    feed(display, *STORY[5:6], *STORY[:1])
    display.on_second()
    display.on_interrupted("interrupted")
    retrying, _, waiting, interrupted = capsys.readouterr().out.splitlines()
    assert retrying == (
        '{"event": "retrying", "name": "big [b]", "attempt": 1, "delay": 0.5, "error": "connection_lost", '
        '"message": "the connection was lost"}'
    )
    assert waiting == '{"event": "waiting", "seconds": 0}'
    assert interrupted == '{"event": "interrupted", "message": "interrupted"}'
