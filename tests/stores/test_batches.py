"""`Batches`: short calls share a thread, and one that waits for the disk holds up no other."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from server.stores.directory.batches import Batches, Outcome, call_each
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
    calls, gate, begun = quick_calls(executor), threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return gate.wait(30)

    first = asyncio.create_task(calls.run(wait))
    await eventually(begun.is_set)
    others = [asyncio.create_task(calls.run(lambda: None)) for _ in range(5000)]
    await asyncio.sleep(0)
    executor.shutdown(wait=False)
    gate.set()
    assert await first
    assert {type(outcome) for outcome in await asyncio.gather(*others, return_exceptions=True)} == {RuntimeError}
    with pytest.raises(RuntimeError):
        await calls.run(lambda: None)


async def test_items_that_wait_for_the_disk_together_gather_meanwhile(executor: ThreadPoolExecutor) -> None:
    gate, batches = threading.Event(), list[Sequence[int]]()

    def work(items: Sequence[int]) -> Sequence[Outcome[int]]:
        batches.append(items)
        gate.wait(30)
        return [(2 * item, None) for item in items]

    joint = Batches(executor, work, most_items=32, most_batches=2, is_joint=True)
    tasks = [asyncio.create_task(joint.run(number)) for number in range(60)]
    try:
        await eventually(lambda: len(batches) == 2)
        await asyncio.sleep(0.01)
        assert sorted(batches) == [[0], [1]]  # however long the disk takes
    finally:
        gate.set()
    assert await asyncio.gather(*tasks) == [2 * number for number in range(60)]
    assert sorted(item for items in batches for item in items) == list(range(60))
    # What has gathered is shared by both threads, half each; if the first is quick, the rest may be cut further.
    assert max(map(len, batches)) in (28, 29, 30)


async def test_what_the_work_raises_is_the_outcome_of_all_items(executor: ThreadPoolExecutor) -> None:
    def work(items: Sequence[int]) -> Sequence[Outcome[None]]:
        raise OSError("no disk")

    joint = Batches(executor, work, most_items=32, most_batches=2, is_joint=True)
    outcomes = await asyncio.gather(*(joint.run(number) for number in range(40)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["no disk"] * 40
