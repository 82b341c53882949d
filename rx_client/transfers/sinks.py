"""Where a download can go: a path, a writer, or a file object."""

import asyncio
import codecs
import inspect
import io
import os

from .path_sink import PathSink
from .writers import AsyncWriter, FileObjectSink, Sink, StreamWriterAdapter, Writer, WriterSink

__all__ = ["AsyncWriter", "Sink", "SinkLike", "to_sink"]

SinkLike = str | os.PathLike[str] | AsyncWriter | Writer | asyncio.StreamWriter
"""A path (str or PathLike), an object with `async def write(data)`, a binary file object, or a StreamWriter."""


def to_sink(sink: SinkLike, name: str, *, offset: int, algorithm: str | None, keep_part: bool = True) -> Sink:
    """The sink that `sink` stands for, for the file `name`, of which it has `offset` bytes.

    Raises:
        TypeError: It stands for none.
        ValueError: `offset` is given with a path, or `keep_part=False` with something else.
    """
    if isinstance(sink, str | os.PathLike):
        if offset:
            raise ValueError("offset is for writers; a path's part is found by itself")
        return PathSink(os.fsdecode(sink), name, algorithm, keep_part=keep_part)
    if not keep_part:
        raise ValueError("keep_part is for paths; what another sink has got is the caller's")
    text = io.TextIOBase | codecs.StreamWriter | codecs.StreamReaderWriter
    if isinstance(sink, text) or isinstance(getattr(sink, "file", None), text):
        raise TypeError("a sink takes bytes; open the file in binary mode")
    if isinstance(sink, asyncio.StreamWriter):
        return WriterSink(StreamWriterAdapter(sink), offset, algorithm)
    write = getattr(sink, "write", None)
    if not callable(write) or isinstance(sink, type | asyncio.BaseTransport):
        kind = type(sink).__name__
        raise TypeError(f"a sink is a path, a binary file object, or has `async def write(data)`, unlike {kind}")
    if inspect.iscoroutinefunction(write):
        return WriterSink(sink, offset, algorithm)
    if isinstance(sink, io.IOBase) and not sink.writable():
        raise TypeError("a sink is written to, and this file is only open for reading")
    return FileObjectSink(sink, offset, algorithm)
