"""The types that a caller's code gets, and the agreement of our stubs with rsocket.

Pyright is a wheel (in the `dev` extra) with its own JavaScript, but it needs Node.js. It takes the machine's `node`; if
there is none it downloads one, once, and without a network the tests fail with its message.
"""

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parent.parent
_STUBS = Path(__file__).parent / "typings"
_PINNED = ("reactivestreams", "rsocket")


def test_precise_types_reach_strict_code_without_stubs_of_rsocket(tmp_path: Path) -> None:
    (tmp_path / "caller.py").write_bytes(Path(__file__).with_name("typed_caller.py").read_bytes())
    rules = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"include": ["."], **rules}))
    ran = subprocess.run(
        [sys.executable, "-m", "pyright", "--project", tmp_path, "--pythonpath", sys.executable, "--outputjson"],
        # Makes pyright find this checkout, as an installed library.
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    _, brace, rest = ran.stdout.partition("{")  # the lines before it are of a download of Node.js
    assert brace, f"pyright did not run: {ran.stdout}{ran.stderr}"
    report = json.loads(brace + rest)
    assert report["summary"]["filesAnalyzed"] == 1
    assert [
        f"line {problem['range']['start']['line'] + 1}: {problem['message']}"
        for problem in report["generalDiagnostics"]
    ] == []


def _stub_modules() -> Iterator[tuple[str, ast.Module]]:
    # Those of the libraries whose version is pinned; aiobotocore makes most of its interface at run time.
    for path in sorted(path for library in _PINNED for path in (_STUBS / library).rglob("*.pyi")):
        parts = path.relative_to(_STUBS).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, ast.parse(path.read_text())


@pytest.mark.parametrize(("name", "stub"), [pytest.param(*found, id=found[0]) for found in _stub_modules()])
def test_stubs_match_the_library(name: str, stub: ast.Module) -> None:
    module = importlib.import_module(name)
    for node in stub.body:
        match node:
            case ast.ClassDef():
                _check_class(getattr(module, node.name), node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                _check_function(getattr(module, node.name), node)
            case ast.AnnAssign(target=ast.Name(id=constant), value=value):
                assert value is None or getattr(module, constant) == ast.literal_eval(value)
                assert hasattr(module, constant)


def _check_class(real: type, stub: ast.ClassDef) -> None:
    source = "".join(
        inspect.getsource(base) for base in real.__mro__ if base.__module__.startswith(("rsocket", "reactive"))
    )
    assert {ast.unparse(base).split(".")[-1] for base in stub.bases} <= {base.__name__ for base in real.__mro__}
    for node in stub.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found: Any = inspect.getattr_static(real, node.name)
                _check_function(found.fget if isinstance(found, property) else found, node)
            case ast.AnnAssign(target=ast.Name(id=attribute)):
                assert attribute == "_value_" or re.search(rf"self\.{attribute}\b[^.\n]*=|'{attribute}'", source)
            case ast.Assign(targets=[ast.Name(id=member)], value=ast.Constant(value=value)):
                assert value is ... or getattr(real, member) == value


def _check_function(real: Any, stub: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    assert inspect.iscoroutinefunction(real) == isinstance(stub, ast.AsyncFunctionDef), stub.name
    abstract = any(ast.unparse(decorator) == "abstractmethod" for decorator in stub.decorator_list)
    assert getattr(real, "__isabstractmethod__", False) == abstract, stub.name
    positional = stub.args.posonlyargs + stub.args.args
    with_default = [argument.arg for argument in positional[len(positional) - len(stub.args.defaults) :]]
    parameters = inspect.signature(real).parameters.values()
    assert [parameter.name for parameter in parameters] == [
        *(argument.arg for argument in positional),
        *([stub.args.vararg.arg] if stub.args.vararg else []),
    ], stub.name
    assert [parameter.name for parameter in parameters if parameter.default is not parameter.empty] == with_default
