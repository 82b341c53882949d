"""Checks of what an application sets."""

from collections.abc import Iterable

__all__ = ["check_positive"]


def check_positive(options: object, names: Iterable[str]) -> None:
    """Raises ValueError unless each of these attributes is more than 0."""
    for name in names:
        value: float = getattr(options, name)
        if not value > 0:
            raise ValueError(f"{name} must be more than 0, not {value!r}")
