"""`shared.files.part.PartFile`: what it knows of a file that is closed and opened again, locks, and digests."""

import os
from pathlib import Path

import pytest

from shared.files.part import PartFile

from .support import digest_of


def part_file(algorithm: str | None = "xxh3-128") -> PartFile:
    return PartFile(algorithm, full="the disk is full", name="n")


@pytest.mark.parametrize("change", ["none", "cut", "replaced"])
def test_a_digest_is_kept_as_long_as_it_is_the_same_file(tmp_path: Path, change: str) -> None:
    path = tmp_path / "part"
    part = part_file()
    assert part.open(str(path), os.O_CREAT) == 0
    part.write_all([b"0123", b"", memoryview(b"456789")])
    part.close()
    part.close()
    if change == "cut":
        os.truncate(path, 4)
    elif change == "replaced":
        (tmp_path / "other").write_bytes(b"other bytes")
        os.replace(tmp_path / "other", path)

    size = part.open(str(path), 0)
    assert part.digest.length == (10 if change == "none" else 0)
    assert part.catch_up()
    content = path.read_bytes()
    assert (part.digest.length, part.digest.text()) == (size, digest_of(content))
    part.close()


@pytest.mark.parametrize("algorithm", [None, "sha-256"])
def test_it_goes_on_with_what_is_there(tmp_path: Path, algorithm: str | None) -> None:
    path = tmp_path / "part"
    path.write_bytes(b"x" * (17 << 20))
    part = part_file(algorithm)
    part.open(str(path), 0)
    assert part.catch_up() == (algorithm is None), "a call reads 16 MiB"
    assert part.catch_up()
    assert part.digest.length == 17 << 20
    part.reset()
    assert part.catch_up(limit=10)
    part.truncate()
    part.write(memoryview(b"end"))
    part.sync()
    part.close()
    assert path.read_bytes() == b"x" * 10 + b"end"
    assert algorithm is None or part.digest.text() == digest_of(b"x" * 10 + b"end", algorithm)


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path) -> None:
    path = str(tmp_path / "part")
    one, other = part_file(), part_file()
    one.open(path, os.O_CREAT, locked=True)
    with pytest.raises(BlockingIOError):
        other.open(path, os.O_CREAT, locked=True)
    with pytest.raises(RuntimeError):
        other.write(memoryview(b"x"))
    one.close()
    other.open(path, os.O_CREAT, locked=True)
    other.close()


def test_a_lock_ends_with_the_file_though_another_process_has_it_open(tmp_path: Path) -> None:
    path = str(tmp_path / "part")
    one, other = part_file(), part_file()
    one.open(path, os.O_CREAT, locked=True)
    inherited = os.dup(one._open_fd())  # as in a forked process
    one.close()
    other.open(path, os.O_CREAT, locked=True)
    other.close()
    os.close(inherited)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "part").symlink_to("secret")
    with pytest.raises(OSError):
        part_file().open(str(tmp_path / "part"), os.O_CREAT)
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_bytes_from_a_pipe_need_no_digest(tmp_path: Path) -> None:
    assert part_file().write_from is None
    part = part_file(None)
    part.open(str(tmp_path / "part"), os.O_CREAT)
    write_from = part.write_from
    assert write_from is not None
    read, write = os.pipe()
    try:
        os.write(write, b"01234567")
        write_from(read, 5)
        write_from(read, 3)
    finally:
        os.close(read)
        os.close(write)
        part.close()
    assert part.digest.length == 8
    assert (tmp_path / "part").read_bytes() == b"01234567"
