"""The systems that are measured, as far as the tests' packages go: a benchmark that can't start measures nothing."""

import subprocess
import sys

import pytest

_IMPORT = """
import asyncio, importlib, sys

async def main():
    importlib.import_module(sys.argv[1])

asyncio.run(main())
"""


@pytest.mark.parametrize("system", ["rxfiles", "stock", "streams", "tutorial"])
def test_a_peer_is_imported_in_a_running_event_loop(system: str) -> None:
    """As its process does it."""
    peer = subprocess.run(
        [sys.executable, "-c", _IMPORT, f"tests.benchmarks.peers.{system}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert peer.returncode == 0, peer.stderr
