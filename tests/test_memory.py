"""Freed memory is returned to the system; `tests.security.attack` shows the same after a flood."""

import subprocess
import sys

import pytest

from tests.security.support import needs_proc

# In a process of its own, so that nothing else changes its memory. The last piece lies above all the others: the C
# library keeps what is below until it is freed, or the heap is trimmed.
SCRIPT = """
from server.heap import HeapTrimmer

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

trimmer = HeapTrimmer()
print(trimmer.is_due())
pieces = [bytes(1000) for _ in range(64_000)]
del pieces[:-1]
print(trimmer.is_due(), resident())
trimmer.trim()
print(trimmer.is_due(), resident())
"""


@needs_proc
@pytest.mark.skipif(sys.platform != "linux", reason="only GNU's C library needs it")
def test_free_memory_is_returned() -> None:
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    at_first, kept, returned = (line.split() for line in output.splitlines())
    assert at_first == ["False"]
    assert kept[0] == "True"
    assert returned[0] == "False"
    assert int(kept[1]) - int(returned[1]) > 40, f"of 61 MiB that were freed: {kept[1]} before, {returned[1]} after"
