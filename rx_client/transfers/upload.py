"""An upload in chunks: one channel an attempt, each going on where the server has it."""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Final
from uuid import uuid4

from shared.errors import IntegrityError, InvalidRequest, SourceExhausted
from shared.files.sending import FileChanged, FileRange
from shared.protocol.digest import Digest
from shared.protocol.messages import CHUNK_BYTES, UploadEnd, UploadRequest, transfer_metadata

from ..events import Completed, TransferEvent
from ..requests.cold import ColdReactiveXClient
from .channel import UploadChannel
from .limit import RateLimit
from .sources import OpenPath, PathSource, Source

__all__ = ["UploadTransfer"]

# One order for the attempts of all clients of this process, since any of them may give the same `upload_id`.
_process: Final = uuid4().hex
_attempts: Final = count(1)


@dataclass(eq=False)
class UploadTransfer:
    """What the subscriptions of one `upload_from` share: the upload's id, and how far its digest has come.

    The fields are the arguments of `FileClient.upload_from`; `chunk_bytes` is None where the caller leaves it open.
    """

    name: str
    source: Source | PathSource
    size: int | None
    chunk_bytes: int | None
    window: int | None
    overwrite: bool
    algorithm: str | None
    upload_id: str
    limit: RateLimit | None = None
    # Running digests at offsets that the server may name on the next attempt, oldest first.
    _digests: deque[Digest] = field(default_factory=deque[Digest])
    _version: object = None
    _has_sent_all: bool = False

    async def attempt(
        self, requests: ColdReactiveXClient, emit: Callable[[TransferEvent], None], tasks: set[asyncio.Task[None]]
    ) -> None:
        """Uploads what the server doesn't have yet, and emits Started, Progress as bytes become durable, Completed.

        `tasks` holds what still runs when this has failed: a source that blocks a thread can't be stopped.
        """
        client, attempt = f"{_process}.{os.getpid()}", next(_attempts)  # a forked process counts by itself
        known, version = await self.source.stat()
        if self.size is not None and known is not None and known != self.size:
            raise InvalidRequest(f"the source has {known} bytes, not {self.size}", name=self.name)
        if version != self._version or self.source.starts_over:
            self._digests.clear()  # what was sent may not be what the source has now; the server will say
        self._version = version
        size = known if self.size is None else self.size
        request = UploadRequest(
            self.upload_id, size, self.algorithm, self.overwrite, self._has_sent_all, client, attempt
        )

        channel = await requests.open(
            lambda rsocket: UploadChannel(
                rsocket,
                self.name,
                request,
                chunk_bytes=self.chunk_bytes,
                window=self.window,
                is_file=isinstance(self.source, PathSource),
                share=None if self.limit is None else self.limit.share(self.chunk_bytes or CHUNK_BYTES),
                emit=emit,
                on_committed=self._forget,
            )
        )
        try:
            start = await channel.start()
            if channel.info is None:
                await channel.while_open(self._send(channel, start, size), tasks)
            info = await channel.finish()
        except BaseException as error:
            channel.cancel()
            if isinstance(error, IntegrityError):
                self._digests.clear()  # of what isn't there any more
            raise
        self._digests.clear()
        self._has_sent_all = False
        emit(Completed(info))

    async def _send(self, channel: UploadChannel, start: int, size: int | None) -> None:
        """Sends what the server doesn't have, by the file lane or by the frame path, and last of all the digest."""
        digest, source = self._digest_before(start), self.source
        if not isinstance(source, PathSource):
            await self._send_chunks(channel, source, start if digest is None else digest.length, start, digest)
            return
        try:
            async with source.open(start, size or 0) as file:
                if digest is not None and digest.length < start:
                    await self._catch_up(digest, file, start)
                if channel.lane is not None and file.size > start:
                    await self._send_file(channel, file, start, digest)
                else:
                    await self._send_chunks(channel, file, start, start, digest)
        except FileChanged:
            raise IntegrityError("the source became shorter while it was read", name=self.name) from None

    async def _send_file(self, channel: UploadChannel, file: OpenPath, start: int, digest: Digest | None) -> None:
        """Sends the file as it was when it was opened, in a thread."""

        def remember() -> None:
            if digest is not None:
                self._digests.append(digest.copy())

        await channel.send_file(
            FileRange(file.fileno(), start, file.size),
            last=lambda: transfer_metadata(self._end(file.size, digest)),
            digest=digest,
            on_item=remember,
        )

    async def _send_chunks(
        self, channel: UploadChannel, source: Source | OpenPath, offset: int, start: int, digest: Digest | None
    ) -> None:
        """Sends what `source` has from `offset` on, of which the server has what is before `start`."""
        async with aclosing(source.read(offset, channel.chunk_bytes)) as chunks:
            async for chunk in chunks:
                data = chunk
                if digest is not None:
                    digest.update(data)
                if offset < start:
                    # What the server has, but no digest of this process covers.
                    skipped = min(len(data), start - offset)
                    offset, data = offset + skipped, data[skipped:]
                    if not data:
                        continue
                offset += len(data)
                await channel.send_chunk(data)
                if digest is not None:
                    self._digests.append(digest.copy())
        if offset < start:
            raise SourceExhausted(f"the source has {offset} bytes; the server has {start} already", name=self.name)
        await channel.send_chunk(b"", lambda: self._end(offset, digest))

    async def _catch_up(self, digest: Digest, file: OpenPath, start: int) -> None:
        """Adds what the server has already to the digest."""
        async with aclosing(file.read(digest.length, CHUNK_BYTES)) as chunks:
            async for chunk in chunks:
                digest.update(memoryview(chunk)[: start - digest.length])
                if digest.length == start:
                    return

    def _end(self, size: int, digest: Digest | None) -> UploadEnd:
        """What the last item says; everything has been sent with it."""
        self._has_sent_all = True
        return UploadEnd(size, None if digest is None else digest.text())

    def _digest_before(self, start: int) -> Digest | None:
        """A running digest to go on with: the latest that isn't beyond `start`."""
        if self.algorithm is None:
            return None
        while self._digests and self._digests[-1].length > start:
            self._digests.pop()
        return self._digests[-1].copy() if self._digests else Digest(self.algorithm)

    def _forget(self, committed: int) -> None:
        """Forgets the digests at offsets that the server won't go back to."""
        while len(self._digests) > 1 and self._digests[1].length <= committed:
            self._digests.popleft()
