"""For the tests of applications: a client without a server, and a pytest plugin with real ones (`plugin`).

What this package exports is imported when it is asked for: pytest loads the plugin in every run of an environment where
this project is installed, and an application's own `shared` must not be taken from it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from .._siblings import check_sibling

if TYPE_CHECKING:
    from .client import FakeFileClient
    from .server import Served

__all__ = ["FakeFileClient", "Served"]

_HOMES: Final = {"FakeFileClient": "client", "Served": "server"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_sibling("shared")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
