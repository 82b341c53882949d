"""Memory that was freed goes back to the system; that what a flood has taken does, `tests.security.attack` shows."""

import subprocess
import sys

import pytest

from tests.security.support import needs_proc

# In a process of its own, whose memory nobody else uses. The last of the small pieces lies above all the others: until
# it is freed, the C library keeps what is below.
SCRIPT = """
from server.heap import FreeMemory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

memory = FreeMemory()
print(memory.is_due())
pieces = [bytes(1000) for _ in range(64_000)]
del pieces[:-1]
print(memory.is_due(), resident())
memory.give_back()
print(memory.is_due(), resident())
"""


@needs_proc
@pytest.mark.skipif(sys.platform != "linux", reason="others do as they do")
def test_what_is_free_is_given_back() -> None:
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True).stdout
    at_first, kept, given_back = (line.split() for line in told.splitlines())
    assert at_first == ["False"]
    assert kept[0] == "True"
    assert given_back[0] == "False"
    assert int(kept[1]) - int(given_back[1]) > 40, f"of 61 MiB that were freed: {kept[1]} before, {given_back[1]} after"
