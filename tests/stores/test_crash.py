"""`kill -9` at any moment; a longer run is `python -m tests.stores.crash --rounds 100`."""

from pathlib import Path

from .crash import Subject, crash


async def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    survey = await crash(Subject(str(tmp_path / "files")), rounds=12)

    assert survey.resumed + survey.published > 0
