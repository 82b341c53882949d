"""A short run of some attacks; `python -m tests.security.attack` runs all of them, for longer."""

import pytest

from tests.security import attack
from tests.security.support import needs_proc

SOME = {
    "memory": ["no proper setup", "errors", "odd demands", "metadata of many items"],
    "folder": ["broken frames", "json of every kind", "names of every kind"],
    "users": ["others files"],
}


@needs_proc
@pytest.mark.parametrize("mode", SOME)
async def test_honest_clients_are_served_meanwhile(mode: str) -> None:
    # Ten seconds, since the machine may be busy.
    assert await attack.run(mode, SOME[mode], 0.3, files=20, honest_seconds=10, is_quiet=True) == []
