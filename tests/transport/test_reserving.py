"""The buffer that large payloads are received into."""

import random

import pytest

from shared import reserving
from shared.reserving import ReservedBuffer

MIB = 1024 * 1024


@pytest.mark.parametrize("reserved", [1, 64 * 1024, 4 * MIB])
@pytest.mark.parametrize("size", [0, 1, 64 * 1024, MIB + 1, 6 * MIB])
def test_what_goes_in_comes_out(reserved: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserving, "_RESERVED_BYTES", reserved)
    content = random.Random(size).randbytes(size)
    buffer = ReservedBuffer()
    for offset in range(0, size, 100_000):
        buffer.write(memoryview(content)[offset : offset + 100_000])
    assert buffer.finish() == content


def test_without_address_space_it_grows_as_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reserving, "_RESERVED_BYTES", 2**62)
    buffer = ReservedBuffer()
    buffer.write(b"content")
    assert buffer.finish() == b"content"
