"""`Batches`: short calls share a thread, and one that waits for the disk holds up no other."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.stores.directory.batches import Batches, call_each
from tests.support import eventually


@pytest.fixture
async def executor() -> AsyncGenerator[ThreadPoolExecutor, None]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def quick_calls(executor: ThreadPoolExecutor) -> Batches[Callable[[], object], object]:
    return Batches(executor, call_each, most_items=16, most_batches=8)


async def test_calls_give_their_results_and_errors(executor: ThreadPoolExecutor) -> None:
    calls, ran = quick_calls(executor), list[int]()

    def call(number: int) -> int:
        ran.append(number)
        if number % 10 == 7:
            raise ValueError(number)
        return number

    got = await asyncio.gather(
        *(calls.run(lambda number=number: call(number)) for number in range(500)), return_exceptions=True
    )
    assert sorted(ran) == list(range(500))
    for number, result in enumerate(got):
        assert isinstance(result, ValueError) if number % 10 == 7 else result == number


async def test_a_call_that_waits_holds_up_no_other(executor: ThreadPoolExecutor) -> None:
    calls, gate, waiting = quick_calls(executor), threading.Event(), list[int]()

    def wait(number: int) -> int:
        waiting.append(number)
        gate.wait(30)
        return number

    slow = [asyncio.create_task(calls.run(lambda number=number: wait(number))) for number in range(7)]
    try:
        await eventually(lambda: len(waiting) == 7)
        quick = [calls.run(lambda number=number: number) for number in range(50)]
        assert await asyncio.gather(*quick) == list(range(50))
    finally:
        gate.set()
    assert await asyncio.gather(*slow) == list(range(7))


async def test_a_cancelled_caller_waits_for_its_call(executor: ThreadPoolExecutor) -> None:
    calls, gate, begun = quick_calls(executor), threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        gate.wait(30)

    task = asyncio.create_task(calls.run(wait))
    await eventually(begun.is_set)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_calls_after_the_threads_have_ended_fail() -> None:
    executor = ThreadPoolExecutor(1)
    calls = quick_calls(executor)
    executor.shutdown()
    with pytest.raises(RuntimeError):
        await calls.run(lambda: None)
