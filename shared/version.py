"""The version of the distribution that this is."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["find_version"]


def find_version() -> str:
    """Such as `0.1.0`; `0+unknown` of source code that isn't installed."""
    try:
        return version("rxfiles")
    except PackageNotFoundError:
        return "0+unknown"
