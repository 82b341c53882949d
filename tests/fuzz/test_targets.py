"""The fuzzer's targets pass for their seeds, for parts and random changes of them, and fail for a defect."""

import logging
import random
from collections.abc import AsyncGenerator, Iterator

import pytest

from server.stores.memory import MemoryStore
from tests.fuzz.targets import FramesTarget, Unexpected, codecs, seeds


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Replaces the suite's fixture: a target has an event loop of its own, and checks for leaks itself."""
    level = logging.getLogger("pyrsocket").level
    yield
    logging.getLogger("pyrsocket").setLevel(level)


@pytest.fixture
def frames() -> Iterator[FramesTarget]:
    target = FramesTarget()
    yield target
    target.close()


@pytest.mark.parametrize("seed", seeds()["frames"].values(), ids=seeds()["frames"])
def test_a_seed_of_frames(frames: FramesTarget, seed: bytes) -> None:
    frames(seed)
    for length in range(2, len(seed), max(1, len(seed) // 8)):
        frames(seed[:length])


def test_random_changes_of_frames(frames: FramesTarget) -> None:
    rng = random.Random(4)
    given = list(seeds()["frames"].values())
    for _ in range(300):
        wire = bytearray(rng.choice(given) + rng.choice(given)[2:])
        for _ in range(rng.randrange(1, 6)):
            wire[rng.randrange(len(wire))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        frames(bytes(wire))


@pytest.mark.parametrize("seed", seeds()["codecs"].values(), ids=seeds()["codecs"])
def test_a_seed_of_the_codecs(seed: bytes) -> None:
    for length in range(len(seed), 0, -max(1, len(seed) // 50)):
        codecs(seed[:length])


def test_a_defect_is_found(frames: FramesTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> AsyncGenerator[None, None]:
        raise KeyError("a defect")
        yield

    monkeypatch.setattr(MemoryStore, "list", broken)
    with pytest.raises(Unexpected):
        frames(seeds()["frames"]["list 1"])
