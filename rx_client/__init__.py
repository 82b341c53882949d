"""The reactive client: file transfers over RSocket as cold Rx observables."""

from .client import FileClient
from .requests import ColdReactiveXClient

__all__ = ["ColdReactiveXClient", "FileClient"]
