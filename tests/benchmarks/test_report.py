"""The benchmark's report, of made-up measurements."""

import subprocess
import sys
from pathlib import Path

import pytest

from .report import write_report

RESULTS = {
    "stream down, MB/s": {"rxfiles": [1159.6, 1160.4, 2000.0], "asyncio streams": [580.0, 580.0, 580.0]},
    "small request during down, p99 ms": {"rxfiles": [4.25, 4.5, 12.345]},
    "get of 4 KiB, 32 in flight, 1/s": {"rxfiles, memory": [1234567.0], "grpc.aio": [99.96]},
}


def test_numbers_are_written_in_full_with_separators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.benchmarks.report._plot", lambda *_: None)
    text = write_report(RESULTS, "A machine, a date", "How", tmp_path)
    assert text == (tmp_path / "bench.md").read_text()
    assert text.startswith("# A machine, a date\n\nHow\n")
    assert "| stream down, MB/s | rxfiles | asyncio streams | 2.00 | >= 1.0 | yes |" in text
    assert "| small request during down, p99 ms | rxfiles | - | 4.50 | <= 10 | yes |" in text
    assert "| rxfiles | 1,160 | 1,160 | 2,000 |" in text
    assert "| rxfiles | 4.50 | 4.25 | 12.3 |" in text
    assert "| rxfiles, memory | 1,234,567 | 1,234,567 | 1,234,567 |" in text


def test_the_plot_is_made_of_what_was_measured(tmp_path: Path) -> None:
    """In a process of its own: matplotlib keeps the files of its fonts open."""
    pytest.importorskip("matplotlib")
    plot = f"from {__name__} import *; write_report(RESULTS, 'A machine, a date', 'How', Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", plot], timeout=50, check=True)
    assert (tmp_path / "bench.png").stat().st_size > 10_000
