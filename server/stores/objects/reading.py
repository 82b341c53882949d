"""Files that are read: one request for a file that is read from its start to its end, however slowly."""

import asyncio
from collections import OrderedDict
from typing import Final

from shared.errors import Changed
from shared.protocol.wire import FileInfo

from ..base import Reader
from .bucket import Body, Bucket
from .failures import FAILURES, Missing, Refused

__all__ = ["ObjectReader", "OpenBodies"]

_MOST_OPEN: Final = 64


class OpenBodies:
    """The readers with an answer on its way. Of more than 64, those that were read longest ago ask again later."""

    def __init__(self) -> None:
        self._readers: OrderedDict[ObjectReader, None] = OrderedDict()

    def use(self, reader: "ObjectReader") -> None:
        """A reader has an answer, and is being read."""
        self._readers[reader] = None
        self._readers.move_to_end(reader)
        if len(self._readers) > _MOST_OPEN:
            idle = next((each for each in self._readers if not each.is_reading), None)
            if idle is not None:
                idle.let_go()

    def leave(self, reader: "ObjectReader") -> None:
        """A reader has none any more."""
        self._readers.pop(reader, None)

    def close(self) -> None:
        """Closes all of them."""
        for reader in list(self._readers):
            reader.let_go()


class ObjectReader(Reader):
    """Reads one version of an object: where there is another one by now, it raises Changed.

    Args:
        bucket: Where it is.
        key: Its key.
        info: What is known of the file, whose etag is that of the object.
        body: Its content from the start on, on its way.
        bodies: Counts it.

    Attributes:
        is_reading: Whether a read is under way.
    """

    def __init__(self, bucket: Bucket, key: str, info: FileInfo, body: Body, bodies: OpenBodies) -> None:
        self._bucket = bucket
        self._key = key
        self._info = info
        self._body: Body | None = body
        self._at = 0
        self._bodies = bodies
        self._is_closed = False
        self.is_reading = False
        bodies.use(self)

    is_streaming = True

    @property
    def info(self) -> FileInfo:
        return self._info

    async def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self._info.size)
        if self._is_closed or offset >= end:
            return b""
        if offset != self._at:
            self.let_go()
            self._at = offset
        self.is_reading = True
        blocks: list[bytes] = []
        try:
            while self._at < end:
                block = await self._read_some(end - self._at)
                blocks.append(block)
                self._at += len(block)
        except BaseException:
            self.let_go()
            raise
        finally:
            self.is_reading = False
        if self._at == self._info.size:
            self.let_go()
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    async def close(self) -> None:
        self._is_closed = True
        self.let_go()

    def let_go(self) -> None:
        """Closes the answer that is on its way; the next read asks for one from where it goes on."""
        body, self._body = self._body, None
        self._bodies.leave(self)
        if body is not None:
            body.close()

    async def _read_some(self, most: int) -> bytes:
        """Some of the next bytes, from the answer that is on its way or a new one."""
        if (body := self._body) is not None:
            self._bodies.use(self)
            try:
                if block := await body.read(most):
                    return block
            except FAILURES:
                pass  # the connection is lost
            self._body = None
            body.close()
        return await self._bucket.retried(lambda: self._ask(most), self._info.name)

    async def _ask(self, most: int) -> bytes:
        """The first of what a new answer has; fails where it ends too early, and is tried again."""
        try:
            _, body = await self._bucket.get(self._key, offset=self._at, if_match=self._info.etag, name=self._info.name)
        except (Missing, Refused):
            raise Changed(f"{self._info.name!r} has changed", name=self._info.name) from None
        try:
            block = await body.read(most)
            if not block:
                raise asyncio.IncompleteReadError(block, most)
        except BaseException:
            body.close()
            raise
        self._body = body
        self._bodies.use(self)
        return block
