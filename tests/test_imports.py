"""A user's own `shared.py` or `server.py`, and other packages of these names, are named by the ImportError."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

import rx_client
import server
from tests.support import PATIENCE

ROOT = Path(rx_client.__file__).parents[1]


async def run(folder: Path, *arguments: str) -> tuple[int | None, str, str]:
    """How a process in `folder` ends, and what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        out, error = await process.communicate()
    return process.returncode, out.decode(), error.decode()


@pytest.mark.parametrize("kind", ["module", "package"])
@pytest.mark.parametrize(
    ("package", "name", "arguments"),
    [
        ("rx_client", "shared", ["app.py"]),
        ("server", "shared", ["app.py"]),
        ("server", "shared", ["-m", "server"]),
        ("rx_client.examples", "server", ["-m", "rx_client.examples"]),
    ],
)
async def test_what_is_in_the_way_is_named(
    tmp_path: Path, package: str, name: str, arguments: list[str], kind: str
) -> None:
    folder = tmp_path / "the users"
    folder.mkdir()
    (folder / "app.py").write_text(f"import {package}\n")
    path = folder / (f"{name}.py" if kind == "module" else f"{name}/__init__.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text("print('it was run')\n")
    status, out, error = await run(folder, *arguments)
    assert (status, out) == (1, "")
    last = error.splitlines()[-1]
    assert last.startswith(f"ImportError: {path} would be imported in place of {ROOT / name}, ")
    assert "another name" in last


async def test_a_module_that_is_imported_already_is_in_the_way_too(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import sys, types\nmodule = sys.modules['shared'] = types.ModuleType('shared')\n"
        "module.__file__ = '/somewhere/shared.py'\nimport rx_client\n"
    )
    _, _, error = await run(tmp_path, "app.py")
    assert "ImportError: /somewhere/shared.py would be imported" in error


async def test_what_is_not_in_the_way_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "server.py").touch()  # of an application that uses the client alone
    (tmp_path / "shared").mkdir()  # without an `__init__.py`
    (tmp_path / "app.py").write_text("import rx_client\nprint(rx_client.NotFound.code)\n")
    assert await run(tmp_path, "app.py") == (0, "not_found\n", "")


def test_both_packages_have_the_same_check() -> None:
    texts = {(Path(package.__file__).parent / "_siblings.py").read_text() for package in (rx_client, server)}
    assert len(texts) == 1
