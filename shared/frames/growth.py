"""Whether payloads that aren't whole still grow: an observer of one connection, without I/O."""

from typing import Final

__all__ = ["GROWTH_BYTES", "Growth"]

GROWTH_BYTES: Final = 32 * 1024
"""A payload that isn't whole has to grow by this much in the time that it is given."""

# Where there is no room left, a connection whose payloads grow more slowly than this loses its room first, since it
# would hold it for the longest time; but not before it was observed for so long.
_SLOW_BYTES_PER_SECOND: Final = 64 * 1024
_OBSERVED_SECONDS: Final = 0.5


class Growth:
    """How much had arrived of what a connection holds, at the last two looks and at the last judgement of stalls.

    Every method takes the time in seconds, and the bytes that have ever arrived.
    """

    def __init__(self, now: float) -> None:
        self._look = self._older_look = (0.0, 0)
        self._judged = (now, 0)

    def begin(self, now: float, grown: int) -> None:
        """The connection holds something again, after it held nothing."""
        self._look = self._older_look = (now, grown)

    def look(self, now: float, grown: int) -> None:
        """To be called about twice a second."""
        self._older_look, self._look = self._look, (now, grown)

    def is_slow(self, now: float, grown: int) -> bool:
        """Whether it has grown by less than 64 KiB a second lately; False for one that has just begun."""
        then, grown_then = self._older_look
        seconds = now - then
        return seconds >= _OBSERVED_SECONDS and grown - grown_then < seconds * _SLOW_BYTES_PER_SECOND

    def judge(self, now: float, grown: int, seconds: float, count: int) -> bool | None:
        """Whether `count` payloads have grown enough since the last judgement; None if that was not `seconds` ago."""
        since, grown_then = self._judged
        if now - since < seconds:
            return None
        self._judged = (now, grown)
        return grown - grown_then >= count * GROWTH_BYTES

    def excuse(self, now: float, grown: int) -> None:
        """Begins the observed time again: nothing is held, or this side is busy."""
        self._judged = (now, grown)
