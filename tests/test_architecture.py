"""The architecture that the folders show: layers, no import cycles, small modules, each with what it is for."""

import ast
import importlib.util
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import shared

ROOT: Final = Path(shared.__file__).parents[1]
PACKAGES: Final = ("shared", "server", "rx_client")
EXAMPLES: Final = "rx_client.examples"
# `rxfiles serve` and `rxfiles users` are verbs beside those of the client: a person installs one command, with both.
APPLICATIONS: Final = {EXAMPLES: (EXAMPLES,), "rx_client.command": ("rx_client.command", "rx_client.__main__")}
"""Parts of `rx_client` that use both packages, as an application does; and what may import each of them."""

MAX_LINES: Final = 400
LARGER: Final = {
    "rx_client.client": "docstrings: each verb says what it emits, its units and its errors",
}
"""Modules that may have more lines than MAX_LINES, and why."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: Final = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported_modules(name: str) -> set[str]:
    """The product modules that `name` imports, in functions and under TYPE_CHECKING too."""
    path, found = MODULES[name], set[str]()
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            submodules = {f"{origin}.{alias.name}" for alias in node.names} & MODULES.keys()
            found.update(submodules if len(submodules) == len(node.names) else submodules | {origin})
    return found & MODULES.keys()


def is_in(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


IMPORTS: Final = {name: imported_modules(name) for name in MODULES}


def test_every_package_has_modules() -> None:
    assert all(any(name.startswith(f"{package}.") for name in MODULES) for package in PACKAGES)


def test_no_modules_import_each_other() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"an import cycle: {' -> '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("shared", {"server", "rx_client"}), ("server", {"rx_client"}), ("rx_client", {"server"})],
)
def test_packages_import_only_lower_layers(package: str, forbidden: set[str]) -> None:
    for name, imports in IMPORTS.items():
        if name.split(".")[0] == package and not any(is_in(name, part) for part in APPLICATIONS):
            assert not [each for each in imports if each.split(".")[0] in forbidden], name


@pytest.mark.parametrize("part", APPLICATIONS)
def test_only_an_application_imports_its_modules(part: str) -> None:
    for name, imports in IMPORTS.items():
        if not any(is_in(name, allowed) for allowed in APPLICATIONS[part]):
            assert not [each for each in imports if is_in(each, part)], name


def test_modules_are_small() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name for name, count in lines.items() if count > MAX_LINES} == set(LARGER), "split it, or correct LARGER"


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for path in MODULES.values()}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_every_module_says_what_it_is_for() -> None:
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.read_text().strip()]
    for path in [*MODULES.values(), *tests]:
        assert ast.get_docstring(ast.parse(path.read_text())), path
