"""The memory of one transfer doesn't grow with the file; `python -m tests.transfers.memory` shows it for 4 GB."""

import sys
from pathlib import Path

import pytest

from tests.transfers import memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_a_large_file_needs_little_memory_at_either_end(tmp_path: Path) -> None:
    peaks = await memory.run(256 * 1024 * 1024, tmp_path)
    for path in ("source", "got", "served/n"):
        (tmp_path / path).unlink()  # pytest keeps the folder for a while
    for (direction, process), peak in peaks.items():
        assert peak.above_mib <= memory.GOAL_MIB, f"{process}, {direction}: {peak.above_mib:.1f} MiB above idle"
