"""Frames as they are on a byte stream: each has its length before it."""

from typing import Final

from rsocket.frame import Frame

from ..files.sockets import Bytes
from ..frames.codec import KEEPALIVE, KEEPALIVE_ANSWER, MAX_FRAME_BYTES, serialize_head

__all__ = ["LENGTH_BYTES", "PREFIXED_KEEPALIVE", "PREFIXED_KEEPALIVE_ANSWER", "prefix", "serialize"]

LENGTH_BYTES: Final = 3
"""The length that stands before each frame."""


def prefix(nbytes: int) -> bytes:
    """What stands before a frame of so many bytes."""
    assert nbytes <= MAX_FRAME_BYTES, "payloads above FRAGMENT_SIZE_BYTES are split"
    return nbytes.to_bytes(LENGTH_BYTES, "big")


def serialize(frame: Frame) -> list[Bytes]:
    """The frame, in parts that are sent one after the other; sets its length."""
    head = serialize_head(frame)
    parts: list[Bytes] = [prefix(frame.length) + head]
    frame.write_data_metadata(parts.append)
    return parts


PREFIXED_KEEPALIVE: Final = prefix(len(KEEPALIVE)) + KEEPALIVE
PREFIXED_KEEPALIVE_ANSWER: Final = prefix(len(KEEPALIVE_ANSWER)) + KEEPALIVE_ANSWER
