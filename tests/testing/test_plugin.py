"""The pytest plugin, in a run of its own, as an application's tests load it."""

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TESTS = """
import asyncio, subprocess, sys, threading
import pytest
from rx_client import FileClient, Progress
from server import FileServer


{mark}
async def test_a_client_in_the_tests_loop(file_client: FileClient, file_server: FileServer) -> None:
    await file_client.upload("a", b"content")
    assert file_server.data.files == {{"a": b"content"}}
    here = []

    class Writer:
        async def write(self, data: bytes) -> None:
            here.append(asyncio.get_running_loop())

    await file_client.download_to("a", Writer())
    assert here == [asyncio.get_running_loop()]

{mark}
async def test_each_test_has_a_server_of_its_own(file_client, file_server) -> None:
    assert file_server.data.files == {{}}

{mark}
async def test_what_is_left_under_way_holds_nothing_up(file_client, file_server) -> None:
    async def never():
        yield b"first"
        await asyncio.Event().wait()

    begun = asyncio.Event()
    file_client.upload_from("b", never()).subscribe(lambda _: begun.set())
    await begun.wait()

def test_without_an_event_loop(file_server) -> None:
    async def work() -> bytes:
        async with FileClient.connect(file_server.uri) as files:
            await files.upload("c", b"1")
            return await files.download("c")

    assert asyncio.run(work()) == b"1"

def test_it_has_ended() -> None:
    assert "file_server" not in [thread.name for thread in threading.enumerate()]
"""


def run(folder: Path, mode: str) -> subprocess.CompletedProcess[str]:
    """Runs the tests of a folder, which isn't on the module search path before they are collected."""
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "rx_client.testing.plugin"]
    options = [
        "-o",
        f"asyncio_mode={mode}",
        "-o",
        "asyncio_default_fixture_loop_scope=function",
        "--timeout=20",
        "-W",
        "error",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    return subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *plugins, *options, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_an_applications_tests_have_a_server_and_a_client(tmp_path: Path, mode: str) -> None:
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    (tmp_path / "test_app.py").write_text(TESTS.format(mark=mark))
    ran = run(tmp_path, mode)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 passed" in ran.stdout


def test_the_plugin_takes_no_name_from_an_application(tmp_path: Path) -> None:
    """Pytest loads it in every environment where this project is installed, also for tests that don't use it."""
    for name in ("shared", "server"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    (tmp_path / "test_app.py").write_text(
        "import pytest, server, shared\n\n"
        "def test_the_modules_are_the_applications():\n    assert server.mine and shared.mine\n\n"
        "@pytest.mark.parametrize('module', ['rx_client', 'rx_client.testing'])\n"
        "def test_what_is_in_the_way_is_named(module):\n"
        "    with pytest.raises(ImportError, match='shared.py would be .* another name'):\n"
        "        exec(f'from {module} import *')\n\n"
        "def test_a_fixture(file_server):\n    pass\n"
    )
    ran = run(tmp_path, "auto")
    assert "3 passed, 1 error" in ran.stdout, ran.stdout + ran.stderr
    assert f"ImportError: {tmp_path / 'server.py'} would be imported in place of" in ran.stdout


def test_the_plugin_is_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (module,) = project["entry-points"]["pytest11"].values()
    assert {"file_client", "file_server"} <= set(vars(importlib.import_module(module)))
