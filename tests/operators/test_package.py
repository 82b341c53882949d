"""The package's exports, and the marbles and examples of its docstrings."""

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import re
import threading
import types

import pytest
import reactivex
from reactivex import Observable
from reactivex import operators as ops

from rx_client import operators
from rx_client.rx.observables import LoopObservable

from .helpers import transfer

EXPORTED = [
    "for_each_async",
    "from_async_iter",
    "map_async",
    "progress_every",
    "retry_backoff",
    "stall_timeout",
    "to_async_iter",
    "total_progress",
    "transfer_all",
    "with_rate",
]

# The sections of every public function's docstring, besides the marble.
SECTIONS = re.compile(r"^(Example|Args|Returns):$", re.MULTILINE)


def test_the_exported_names() -> None:
    assert operators.__all__ == EXPORTED
    # pytest adds names such as `@pytest_ar` to the modules of a distribution that has a plugin for it.
    public = {name for name in vars(operators) if name.isidentifier() and not name.startswith("_")}
    assert public == set(EXPORTED)
    assert all(isinstance(getattr(operators, name), types.FunctionType) for name in EXPORTED)


def test_one_operator_a_module() -> None:
    assert [getattr(operators, name).__module__ for name in EXPORTED] == [
        f"rx_client.operators._{name}" for name in EXPORTED
    ]


@pytest.mark.parametrize("name", EXPORTED)
def test_each_docstring_has_a_marble(name: str) -> None:
    doc = inspect.getdoc(getattr(operators, name)) or ""
    marble = doc.partition("\n::\n")[2].partition("\nExample:")[0]
    assert re.search(r"^ +source +-", marble, re.MULTILINE), "the source's line"
    assert re.search(rf"^ +\[ +{name}\(.*\) +\]$", marble, re.MULTILINE), "the operator's line"
    assert SECTIONS.findall(doc) == ["Example", "Args", "Returns"]


@pytest.mark.parametrize("name", EXPORTED)
async def test_each_example_runs(name: str) -> None:
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(operators, name)) or "")
    setup = doctest.DocTestParser().get_examples(inspect.getdoc(operators) or "")
    assert examples
    namespace: dict[str, object] = {}
    for example in [*setup, *examples]:
        assert await run_example(example.source, namespace) == expected_output(example)


async def run_example(source: str, namespace: dict[str, object]) -> str:
    """The output of `python -m asyncio` for `source`."""
    code = compile(source, "<example>", "single", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            # A code object with an await returns a coroutine, one without returns None.
            running = types.FunctionType(code, namespace)()
            if running is not None:
                await running
        except Exception as error:
            return f"{type(error).__module__}.{type(error).__qualname__}: {error}\n"
    return output.getvalue()


def expected_output(example: doctest.Example) -> str:
    return example.exc_msg or example.want


@pytest.mark.parametrize("name", [name for name in EXPORTED if not name.endswith("_async_iter")])
async def test_operators_piped_after_ours_run_on_the_loop(name: str) -> None:
    threads: set[threading.Thread] = set()
    arguments = {
        "for_each_async": (asyncio.sleep,),
        "map_async": (asyncio.sleep,),
        "progress_every": (1,),
        "retry_backoff": (),
        "stall_timeout": (1,),
        "total_progress": (),
        "transfer_all": (1,),
        "with_rate": (),
    }[name]
    source: Observable[object] = reactivex.of(reactivex.just(0) if name == "transfer_all" else 0)
    piped = source.pipe(getattr(operators, name)(*arguments))
    assert isinstance(piped, LoopObservable)
    done = asyncio.get_running_loop().create_future()

    def on_completed() -> None:
        threads.add(threading.current_thread())
        done.set_result(None)

    piped.pipe(ops.delay(0.001)).subscribe(on_completed=on_completed)
    await done
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("name", ["progress_every", "retry_backoff", "stall_timeout", "with_rate"])
def test_a_transfer_is_still_a_transfer_after_the_operator(name: str) -> None:
    operator = getattr(operators, name)(1)
    assert type(transfer(reactivex.never()).pipe(operator)) is type(transfer(reactivex.never()))
    assert type(reactivex.never().pipe(operator)) is LoopObservable
