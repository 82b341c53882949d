"""All pictures that are drawn from the code."""

from pathlib import Path

from tests.docs.architecture import architecture_picture
from tests.docs.marbles import marble_pictures

__all__ = ["pictures"]


def pictures() -> dict[Path, str]:
    """What each picture's file has to have."""
    return marble_pictures() | architecture_picture()
