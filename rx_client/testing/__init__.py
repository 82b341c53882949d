"""For the tests of applications: a client without a server, and a pytest plugin with real ones (`plugin`)."""

from .client import FakeFileClient
from .server import Served

__all__ = ["FakeFileClient", "Served"]
