"""What every test checks in addition: it leaves no task, thread, file descriptor or unhandled exception behind."""

import asyncio
import gc
import os
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stores.support import ALL_OF_IT, OBJECTS, SOME_FOR_OBJECTS
from tests.support import HAS_UVLOOP, on_uvloop

_SETTLE_SECONDS = 10.0

Mount = Callable[[str], Path]


def pytest_xdist_auto_num_workers() -> int:
    """More than there are cores: half of the time of the tests is waiting."""
    return 3 * len(os.sched_getaffinity(0)) // 2 if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_collection_finish() -> None:
    """Freezes what was imported, so that the garbage collection after each test doesn't visit it.

    Before any test counts descriptors, uvloop runs once: it opens a pipe that it never closes.
    """
    if HAS_UVLOOP:
        on_uvloop(_nothing())
    gc.collect()
    gc.freeze()


def pytest_runtest_logstart() -> None:
    """Freezes what earlier tests have left for good, reports for instance: a collection after each test would visit it.

    Their event loops and fixtures are gone at this time, so that no garbage is kept.
    """
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Has few tests use an object store, since each request takes it milliseconds."""
    if os.environ.get(ALL_OF_IT):
        return
    left_out = [
        item
        for item in items
        if item.get_closest_marker("objects_long")
        or (f"[{OBJECTS}" in item.name and item.name.partition("[")[0] not in SOME_FOR_OBJECTS)
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncGenerator[None, None]:
    loop = asyncio.get_running_loop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    fds, threads = _fds(), _threads()

    yield

    await loop.shutdown_default_executor()
    deadline = loop.time() + _SETTLE_SECONDS
    while (tasks := asyncio.all_tasks() - {asyncio.current_task()}) and loop.time() < deadline:
        await asyncio.sleep(0.01)
    assert not tasks, f"tasks left behind: {tasks}"
    gc.collect()  # reports exceptions that were never retrieved here, not in a later test
    while (left := _threads() - threads) and loop.time() < deadline:
        await asyncio.sleep(0.01)
    assert not left, f"threads left behind: {left}"
    while (open_now := _fds() - fds) and loop.time() < deadline:
        await asyncio.sleep(0.01)
    assert not open_now, f"file descriptors left behind: {open_now}"
    assert not unhandled, f"unhandled exceptions: {unhandled}"


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system in memory with options such as `size=256k` on a new folder; skips if that isn't allowed."""
    mounted: list[Path] = []

    def mount_one(options: str) -> Path:
        path = tmp_path / f"mounted {len(mounted)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
        try:
            is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            is_mounted = False
        if not is_mounted:
            pytest.skip("mounting a file system isn't allowed here")
        mounted.append(path)
        return path

    yield mount_one
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=False)


def _fds() -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for fd in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        try:
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
        except FileNotFoundError:
            pass  # the descriptor of this very listing
    return found


def _threads() -> set[threading.Thread]:
    return set(threading.enumerate())


async def _nothing() -> None:
    pass
