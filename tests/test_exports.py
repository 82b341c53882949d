"""What the packages export is what their `__all__` says, and nobody imports whom they must not."""

import ast
import importlib
from pathlib import Path

import pytest

import rx_client
import server
import shared

ROOT = Path(shared.__file__).parents[1]

EXPORTED = {
    "rx_client": {
        *("AsyncWriter", "Chunk", "ColdReactiveXClient", "FileClient", "parse_uri"),
        *("ConnectOptions", "Connected", "Connecting", "ConnectionState", "Disconnected"),
        *("Completed", "Progress", "Retrying", "Started", "TransferEvent"),
    },
    "server": {
        *("ChatData", "ChatUserSession", "FileServer", "get_file_name", "serve"),
        *("DirectoryStore", "MemoryStore", "Reader", "Store", "Upload"),
        *("Limits", "Users", "server_tls"),
    },
}


@pytest.mark.parametrize("package", [rx_client, server, shared])
def test_all_names_exactly_what_is_there(package: object) -> None:
    exported = package.__all__
    assert len(set(exported)) == len(exported)
    assert all(hasattr(package, name) for name in exported)
    expected = EXPORTED.get(package.__name__)
    assert expected is None or set(exported) == expected


def test_shared_exports_every_error() -> None:
    errors = importlib.import_module("shared.errors")
    assert {name for name in errors.__all__ if name[0].isupper()} <= set(shared.__all__)
    assert shared.chat_filename_mimetype == b"chat/file-name"


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("shared", {"server", "rx_client"}), ("server", {"rx_client"}), ("rx_client", {"server"})],
)
def test_the_packages_are_layered(package: str, forbidden: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        if "examples" in path.relative_to(ROOT).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.append(node.module)
            assert not {module.split(".")[0] for module in modules} & forbidden, path


def test_every_module_says_what_it_is_for() -> None:
    for package in ("shared", "server", "rx_client", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert not text.strip() or ast.get_docstring(ast.parse(text)), path
