"""An upload in chunks: one channel an attempt, each going on where the server has it."""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Final
from uuid import uuid4

from shared.errors import IntegrityError, InvalidRequest, SourceChanged, SourceExhausted
from shared.files.sending import FileChanged
from shared.protocol.digest import DEFAULT_ALGORITHM, Digest, DigestLink
from shared.protocol.messages import CHUNK_BYTES, UploadEnd, UploadRequest, transfer_metadata
from shared.protocol.wire import FileInfo, check_modified

from ..events import Completed, TransferEvent
from ..requests.cold import ColdReactiveXClient
from .channel import UploadChannel
from .compared import ComparedDigest
from .content import Content, FileContent, Source, Version
from .limit import RateLimit
from .remembered import UploadRecord

__all__ = ["UploadTransfer"]

# One order for the attempts of all clients of this process, since any of them may give the same `upload_id`.
_process: Final = uuid4().hex
_attempts: Final = count(1)

# A source that changes faster than an attempt can begin isn't started over for ever.
_MAX_RESTARTS: Final = 3


@dataclass(eq=False)
class UploadTransfer:
    """What the subscriptions of one `upload_id` share: the upload's id, and how far its digest has come.

    The fields are the arguments of `FileClient.upload_from`; `chunk_bytes` is None where the caller leaves it open, and
    `record` what remembers the upload, if it is to be remembered: the id is what that says then.

    An upload continues what the server has of an earlier attempt, or another server has received, if the source still
    has it: as the system says (see `Version`), or as its digest proves when it is read again. If not, the part at the
    server is spoilt: it is finished with a length that it doesn't have, so that the server drops it, and the upload
    starts over.
    """

    name: str
    source: Source
    size: int | None
    chunk_bytes: int | None
    window: int | None
    overwrite: bool
    algorithm: str | None
    upload_id: str
    modified: float | None = None
    limit: RateLimit | None = None
    record: UploadRecord | None = None
    # Running digests at offsets that the server may name on the next attempt, oldest first. Without an algorithm, they
    # are for this process alone.
    _digests: deque[ComparedDigest] = field(default_factory=deque[ComparedDigest])
    # Of the upload that is unfinished: its length, the content it is of, and whether that has changed since.
    _announced: int | None = None
    _version: Version | None = None
    _has_begun: bool = False
    _is_spoilt: bool = False
    _has_sent_all: bool = False

    async def attempt(
        self, requests: ColdReactiveXClient, emit: Callable[[TransferEvent], None], tasks: set[asyncio.Task[None]]
    ) -> None:
        """Uploads what the server doesn't have yet, and emits Started, Progress as bytes become durable, Completed.

        `tasks` holds what still runs when this has failed: a source that blocks a thread can't be stopped.
        """
        restarts = 0
        while (info := await self._try(requests, emit, tasks, may_restart=restarts < _MAX_RESTARTS)) is None:
            restarts += 1
        await self._forget_all()
        self.source.on_completed()
        emit(Completed(info))

    async def _try(
        self,
        requests: ColdReactiveXClient,
        emit: Callable[[TransferEvent], None],
        tasks: set[asyncio.Task[None]],
        *,
        may_restart: bool,
    ) -> FileInfo | None:
        """One channel; None if the server has dropped what it had of another content, and the upload starts over."""
        client, attempt = f"{_process}.{os.getpid()}", next(_attempts)  # a forked process counts by itself
        if self.record is not None and not self._has_begun:
            self.upload_id = await self.record.recall()
        known = await self.source.size()
        if self.size is not None and known is not None and known != self.size and not self._has_begun:
            raise InvalidRequest(f"the source has {known} bytes, not {self.size}", name=self.name)
        if not self._has_begun:
            self._announced = known if self.size is None else self.size
        size = self._announced  # of a source that has grown since the first attempt, too
        request = UploadRequest(
            self.upload_id,
            size,
            self.algorithm,
            self.overwrite,
            self._has_sent_all,
            client,
            attempt,
            self._time(),
            compares=True,
        )

        channel = await requests.open(
            lambda rsocket: UploadChannel(
                rsocket,
                self.name,
                request,
                chunk_bytes=self.chunk_bytes,
                window=self.window,
                is_file=self.source.is_file,
                share=None if self.limit is None else self.limit.share(self.chunk_bytes or CHUNK_BYTES),
                emit=emit,
                on_committed=self._forget,
            )
        )
        changes: list[SourceChanged | SourceExhausted] = []
        start = 0
        try:
            start = await channel.start()
            if self.record is not None:
                await self.record.remember()
            if channel.info is None:
                await channel.while_open(self._send(channel, start, size, changes), tasks)
            info = await channel.finish()
            if changes:
                raise changes[0]  # whatever that server has published
        except BaseException as error:
            channel.cancel()
            if not isinstance(error, IntegrityError) and error not in changes:
                raise
            await self._forget_all()  # the server has dropped it
            if not changes:
                raise
            # What changed before this attempt isn't this attempt's failure.
            if may_restart and start and not channel.sent_bytes and self.source.is_lasting:
                return None
            raise changes[0] from None
        else:
            return info

    def _time(self) -> float | None:
        """The file's time; None if it isn't known, or no server takes it."""
        modified = self.source.modified if self.modified is None else self.modified
        try:
            if modified is not None:
                check_modified(modified)
        except InvalidRequest:
            return None  # a file system may have anything
        return modified

    async def _send(
        self, channel: UploadChannel, start: int, size: int | None, changes: list[SourceChanged | SourceExhausted]
    ) -> None:
        """Sends what the server doesn't have, by the file lane or by the frame path, and last of all the digest.

        Where the source has changed, that is added to `changes`, and the server drops what it has.
        """
        try:
            async with self.source.open(size) as content:
                if isinstance(content, FileContent) and channel.lane is not None and start < content.size:
                    await self._send_file(channel, content, start)
                else:
                    await self._send_chunks(channel, content, start)
        except (SourceChanged, FileChanged) as error:
            if not self.source.is_lasting:
                changes.append(SourceExhausted("the source gives other bytes than before when it is read again"))
            elif isinstance(error, FileChanged):
                changes.append(SourceChanged("the source became shorter while it was read"))
            else:
                changes.append(error)
            self._is_spoilt = True
            await channel.spoil(None if self.algorithm is None else Digest(self.algorithm).text())

    def _begin(
        self, content: Content, start: int, algorithm: str | None, links: Sequence[DigestLink]
    ) -> ComparedDigest | None:
        """How an attempt begins that goes on from `start`, where the server knows `links` of the bytes before.

        Returns:
            The running digest to go on with, which may be of fewer bytes than the server has, and compares these with
            what is known; None for none.

        Raises:
            SourceChanged: What the server has isn't of this content, or it can't be known.
        """
        version, has_begun = self._version, self._has_begun
        known = self._digest_before(start)
        fresh = None if algorithm is None else ComparedDigest(algorithm)
        if not start:
            self._digests.clear()
        elif self._is_spoilt:
            raise SourceChanged("the source changed between two attempts")
        elif has_begun and (content.starts_over or not _is_same(content.version, version, algorithm)):
            # With an algorithm, the server verifies what no digest of this process covers.
            if fresh is None or (self.algorithm is None and (known is None or known.length != start)):
                raise SourceChanged("the source may have changed between two attempts, and there is no digest")
            fresh.expected = known
        elif fresh is not None:
            following = (digest for digest in reversed(self._digests) if digest.may_follow(links))
            fresh = next((digest.copy() for digest in following), fresh)
        self._version, self._has_begun = content.version, True
        if fresh is not None:
            fresh.follow(links)
        return fresh

    async def _send_file(self, channel: UploadChannel, content: FileContent, start: int) -> None:
        """Sends the file as it was when it was opened, in a thread."""
        digest = self._begin(content, start, self.algorithm, channel.links)
        if digest is not None and digest.length < start:
            async with aclosing(content.read(digest.length, CHUNK_BYTES)) as chunks:
                async for chunk in chunks:
                    digest.update(memoryview(chunk)[: start - digest.length])
                    if digest.length == start:
                        break

        def last() -> bytes:
            content.check_here(digest)
            return transfer_metadata(self._end(file.end - file.offset + start, digest))

        def remember() -> None:
            if digest is not None:
                self._digests.append(digest.copy())

        file = content.as_range(start)
        await channel.send_file(file, last=last, digest=digest, on_item=remember)

    async def _send_chunks(self, channel: UploadChannel, content: Content, start: int) -> None:
        """Sends what the content has from `start` on, a chunk at a time."""
        is_checked = content.starts_over or content.version is not None
        algorithm = self.algorithm or (DEFAULT_ALGORITHM if is_checked else None)
        digest = self._begin(content, start, algorithm, channel.links)
        offset = start if digest is None else digest.length
        async with aclosing(content.read(offset, channel.chunk_bytes)) as chunks:
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
        if offset < start or not (digest is None or digest.is_compared):
            raise SourceExhausted(f"the source has {offset} bytes; the server has {start} already", name=self.name)
        await content.check(digest)
        await channel.send_chunk(b"", lambda: self._end(offset, digest))

    def _end(self, size: int, digest: ComparedDigest | None) -> UploadEnd:
        """What the last item says; everything has been sent with it."""
        self._has_sent_all = True
        if digest is None or self.algorithm is None:
            return UploadEnd(size, None)
        return UploadEnd(size, digest.text(), digest.rest_digest)

    def _digest_before(self, start: int) -> ComparedDigest | None:
        """The latest running digest that isn't beyond `start`; later ones are dropped."""
        while self._digests and self._digests[-1].length > start:
            self._digests.pop()
        return self._digests[-1] if self._digests else None

    def _forget(self, committed: int) -> None:
        """Forgets the digests at offsets that the server won't go back to."""
        while len(self._digests) > 1 and self._digests[1].length <= committed:
            self._digests.popleft()

    async def _forget_all(self) -> None:
        """The upload is finished, one way or the other: the next attempt is of another one."""
        self._digests.clear()
        self._announced = self._version = None
        self._has_begun = self._is_spoilt = self._has_sent_all = False
        if self.record is not None:
            await self.record.forget()


def _is_same(one: Version | None, other: Version | None, algorithm: str | None) -> bool:
    """Whether two versions are of the same content; where there is a digest to ask, without any doubt."""
    if one is None or other is None:
        return one is other
    return one.may_begin_with(other) if algorithm is None else one.is_surely(other)
