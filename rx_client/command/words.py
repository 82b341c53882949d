"""Sizes, rates and times, as a person writes and reads them."""

import time
from typing import Final

from shared.errors import InvalidRequest
from shared.protocol.digest import check_algorithm

from .failures import UsageError

__all__ = ["parse_digest", "parse_rate", "show_bytes", "show_date", "show_percent", "show_rate", "show_seconds"]

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_FACTORS: Final = {"": 1, "B": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_digest(name: str) -> str | None:
    """The algorithm, None for `none`."""
    try:
        return None if name == "none" else check_algorithm(name)
    except InvalidRequest as error:
        raise UsageError(f"--digest {name}: {error.message}, or none") from None


def parse_rate(text: str | None) -> float | None:
    """Bytes a second, of a number with `K`, `M` or `G` behind it, which are powers of 1,024; without, it is bytes."""
    if text is None:
        return None
    number = text.strip().rstrip("BbKkMmGgTt")
    unit = text.strip()[len(number) :].upper().removesuffix("B")
    try:
        rate = float(number) * _FACTORS[unit]
    except (KeyError, ValueError):
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UsageError(f"--bwlimit {text} is no rate: give bytes a second, as 500K or 10M")
    return rate


def show_bytes(nbytes: float) -> str:
    """Such as `2.8 GB`: powers of 1,000."""
    power = 0
    while nbytes >= 999.5 and power < len(_UNITS) - 1:
        nbytes /= 1000
        power += 1
    return f"{nbytes:.0f} {_UNITS[power]}" if power == 0 or nbytes >= 99.95 else f"{nbytes:.1f} {_UNITS[power]}"


def show_rate(bytes_per_second: float) -> str:
    """Such as `35.2 MB/s`."""
    return f"{show_bytes(bytes_per_second)}/s"


def show_seconds(seconds: float) -> str:
    """Such as `45 s`, `3:20 min` or `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02} h"


def show_percent(part: int, whole: int | None) -> str:
    """Such as `43%`, never 100% of what isn't all; bytes where the whole isn't known."""
    if whole is None:
        return show_bytes(part)
    return f"{part * 100 // whole}%" if whole else "100%"


def show_date(seconds: float | None) -> str:
    """Such as `2026-11-27 21:57:03`, in local time."""
    if seconds is None:
        return "-"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):  # a year that this system doesn't know
        return "-"
