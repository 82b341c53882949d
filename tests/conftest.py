"""What every test proves besides its own point: it left no task, thread, file descriptor or unseen exception behind."""

import asyncio
import gc
import os
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest

_SETTLE_SECONDS = 10.0


def pytest_collection_finish() -> None:
    """What is here now stays to the end: the collector, which looks at all there is after each test, needn't see it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncGenerator[None, None]:
    loop = asyncio.get_running_loop()
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unseen.append(context))
    fds, threads = _fds(), _threads()

    yield

    await loop.shutdown_default_executor()
    deadline = loop.time() + _SETTLE_SECONDS
    while (tasks := asyncio.all_tasks() - {asyncio.current_task()}) and loop.time() < deadline:
        await asyncio.sleep(0.01)
    assert not tasks, f"tasks left behind: {tasks}"
    gc.collect()  # so that exceptions nobody retrieved are reported here, not in some later test
    while (left := _threads() - threads) and loop.time() < deadline:
        await asyncio.sleep(0.01)
    assert not left, f"threads left behind: {left}"
    while (open_now := _fds() - fds) and loop.time() < deadline:
        await asyncio.sleep(0.01)
    assert not open_now, f"file descriptors left behind: {open_now}"
    assert not unseen, f"exceptions that nobody handled: {unseen}"


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
