"""An unfinished upload that this server owns: parts of a multipart upload, and a tail in memory that fills the next.

The tail is sent as a part as soon as it fills one, while more is received. It is sent as a piece, an object of its own,
where the upload is suspended, or memory is short; a later part takes the pieces in. Parts and pieces count when the
state has them, in order.
"""

import asyncio
import io
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from shared.aio import run_blocking, wait_uncancelled
from shared.errors import StorageUnavailable, TransferError
from shared.protocol.digest import Count, Digest, DigestLink
from shared.protocol.wire import FileInfo

from ..parts import Part, PartUpload
from .context import Cut, UploadContext
from .facts import metadata_in_parts
from .failures import Missing
from .publishing import Publisher
from .state import IN_FLIGHT, Piece, State, StateObject, Taken, new_token, remove_upload

__all__ = ["ObjectPart", "ObjectUpload"]

_MIB: Final = 1024 * 1024
_LEAST_PART_BYTES: Final = 5 * _MIB
# How many parts may be smaller than planned: with 8,000 that are planned at the most, no upload has over 10,000.
_SMALLER_PARTS: Final = 1500
# Hashing as much takes a millisecond with SHA-256.
_INLINE_DIGEST_BYTES: Final = 512 * 1024


class ObjectPart(Part):
    """See above.

    Args:
        context: What all uploads use.
        state: The upload's; this server owns it.
        digest: Of what is durable, if this process has received it; None if it hasn't.
    """

    def __init__(self, context: UploadContext, state: StateObject, digest: Digest | None = None) -> None:
        value = state.value
        self.links: Sequence[DigestLink] = ()
        if digest is None:
            self.links = value.links
            start = value.durable
            digest = Count(start) if value.algorithm is None else Digest(value.algorithm, start)
        elif digest.start:
            self.links = tuple(link for link in value.links if link.end <= digest.start)
        super().__init__(value.spec, digest.copy())
        self.state: Final = state
        self.window_bytes = min(3 * value.part_bytes, 64 * _MIB)
        self.durable_digest = digest
        self.etags: Final[dict[int, str]] = {}
        self.is_over = False
        self._context = context
        self.tail_bytes = 0  # in memory, and not being sent
        self._tail = io.BytesIO()
        self._pieces = value.pieces  # behind the last part, those that are being written included
        self._number = value.last_number + 1 + (IN_FLIGHT if value.parts_id is not None else 0)
        self._cuts: deque[Cut] = deque()
        self._changing = asyncio.Lock()
        self._recording: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._is_closing = False

    @property
    def durable(self) -> int:
        return self.state.value.durable

    @property
    def has_failed(self) -> bool:
        """Whether nothing more can be added."""
        return self._failure is not None

    @property
    def pieces(self) -> Sequence[Piece]:
        """What isn't in memory, nor in a part."""
        return self._pieces

    @property
    def tail(self) -> io.BytesIO:
        """What is in memory and isn't being sent."""
        return self._tail

    async def write(self, chunks: Sequence[bytes]) -> None:
        part_bytes, room = self.state.value.part_bytes, self._context.room
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                self._check()
                space = part_bytes - self._unparted
                if space <= 0:
                    await self._make_part()
                    continue
                data = view[:space]
                await room.take(len(data))
                if self._failure is not None:
                    room.give(len(data))
                    self._check()
                self._tail.write(data)
                self.tail_bytes += len(data)
                view = view[len(data) :]
                if self.digest.algorithm == "sha-256" and len(data) > _INLINE_DIGEST_BYTES:
                    await run_blocking(None, self.digest.update, data)
                else:
                    self.digest.update(data)
                if self._unparted >= part_bytes:
                    await self._make_part()

    async def flush(self) -> None:
        await self.settled()

    async def settled(self) -> None:
        """Waits until what is leaving now is durable; raises what has gone wrong."""
        if self._cuts:
            await asyncio.shield(self._cuts[-1].recorded)
        self._check()

    def relieve(self) -> bool:
        """Sends what is in memory, as there is no more of that; False if there is nothing, or it can't be sent now."""
        if self._is_closing or self._failure is not None or not self.tail_bytes:
            return False
        value = self.state.value
        planned = (self.digest.length + value.part_bytes - 1) // value.part_bytes
        may_be_part = self._unparted >= _LEAST_PART_BYTES and self._number - planned < _SMALLER_PARTS
        self._cut(as_part=may_be_part and self._parts_in_flight < IN_FLIGHT)
        return True

    async def take_over(self) -> None:
        """Makes a newer attempt of this server the owner: what isn't durable is dropped. Raises Taken."""
        await self.settled()
        self._drop_tail()
        async with self._changing:
            await self.state.change(replace(self.state.value, owner=new_token()))
        self.digest = self.durable_digest.copy()
        self._pieces = self.state.value.pieces

    async def touch(self) -> None:
        """Changes the state, so that other servers see that the upload has an owner."""
        async with self._changing:
            await self.state.change(self.state.value)

    async def publish(self, *, overwrite: bool, modified: float | None) -> FileInfo:
        # A cancellation waits, since it couldn't be known what was done.
        return await wait_uncancelled(asyncio.ensure_future(self._publish(overwrite=overwrite, modified=modified)))

    async def close(self) -> None:
        await wait_uncancelled(asyncio.ensure_future(self._close()))

    async def drop(self) -> None:
        if not self.is_over:
            await wait_uncancelled(asyncio.ensure_future(self._drop()))

    async def all_in_parts(self) -> None:
        """Makes a last part of what isn't in one."""
        if self._unparted:
            await self._make_part()
        await self.settled()

    async def change(self, value: State) -> None:
        """Changes the state; raises Superseded where another server has done so."""
        try:
            async with self._changing:
                await self.state.change(value)
        except Taken:
            raise self.state.superseded() from None

    # What is leaving

    @property
    def _unparted(self) -> int:
        return self.tail_bytes + sum(piece.size for piece in self._pieces)

    @property
    def _parts_in_flight(self) -> int:
        return sum(cut.number is not None for cut in self._cuts)

    async def _make_part(self) -> None:
        while self._parts_in_flight >= IN_FLIGHT:
            await asyncio.shield(self._cuts[0].recorded)
            self._check()
        if self._unparted:  # it may have been relieved meanwhile
            self._cut(as_part=True)

    def _cut(self, *, as_part: bool) -> None:
        content, size, number, pieces = self._tail, self.tail_bytes, None, self._pieces
        self._tail, self.tail_bytes = io.BytesIO(), 0
        if as_part:
            number, self._number, self._pieces = self._number, self._number + 1, ()
        else:
            pieces = (Piece(new_token(), size),)
            self._pieces += pieces
        loop = asyncio.get_running_loop()
        cut = Cut(content, size, self.digest.copy(), number, pieces, loop.create_future())
        before = self._cuts[-1].recorded if self._cuts else None
        self._cuts.append(cut)
        self._context.room.leaving += size
        cut.writing = loop.create_task(self._write(cut, before))
        if self._recording is None:
            self._recording = loop.create_task(self._record())

    async def _write(self, cut: Cut, before: asyncio.Future[None] | None) -> None:
        context, value, content = self._context, self.state.value, cut.content
        assert content is not None, "it is written once"
        key, name = context.keys.of(value.name), value.name
        try:
            if cut.number is None:
                piece = context.keys.piece(value.upload_id, cut.pieces[0].token)
                await context.bucket.put(piece, content, name=name)
                return
            parts_id = await self._parts_id()
            if not cut.pieces:
                self.etags[cut.number] = await context.bucket.put_part(key, parts_id, cut.number, content, name)
                return
            if before is not None:
                await asyncio.shield(before)  # one of them may be a piece
            async with context.joining:
                joined = await self._join(cut.pieces)
                joined.write(content.getbuffer())
                self.etags[cut.number] = await context.bucket.put_part(key, parts_id, cut.number, joined, name)
        except Missing:
            raise StorageUnavailable("the upload has ended meanwhile; try again", name=name) from None
        finally:
            cut.content = None
            context.room.leaving -= cut.size
            context.room.give(cut.size)

    async def _join(self, pieces: Sequence[Piece]) -> io.BytesIO:
        context, value, joined = self._context, self.state.value, io.BytesIO()
        for piece in pieces:
            _, content = await context.bucket.content(context.keys.piece(value.upload_id, piece.token), name=value.name)
            joined.write(content)
        return joined

    async def _parts_id(self) -> str:
        """The id of the multipart upload, which is begun here, and is in the state before it has a part."""
        async with self._changing:
            value = self.state.value
            if value.parts_id is not None:
                return value.parts_id
            bucket, key = self._context.bucket, self._context.keys.of(value.name)
            metadata = metadata_in_parts(value.upload_id, value.token)
            parts_id = await bucket.begin_parts(key, metadata, value.name)
            try:
                await self.state.change(replace(value, parts_id=parts_id))
            except BaseException:
                await bucket.abort_parts(key, parts_id)
                raise
            return parts_id

    async def _record(self) -> None:
        """Has the state say what was written, in order."""
        try:
            while self._cuts:
                first = self._cuts[0].writing
                assert first is not None, "it was started when it was cut"
                await asyncio.shield(first)
                await self._record_written()
        except Taken:
            self._fail(self.state.superseded())
        except Exception as error:
            self._fail(error)
        finally:
            self._recording = None

    async def _record_written(self) -> None:
        written: list[Cut] = []
        for cut in self._cuts:
            if cut.writing is None or not cut.writing.done() or cut.writing.exception() is not None:
                break
            written.append(cut)
        joined: list[Piece] = []
        async with self._changing:
            value = self.state.value
            for cut in written:
                if cut.number is None:
                    value = replace(value, pieces=value.pieces + tuple(cut.pieces))
                else:
                    joined += cut.pieces
                    value = value.with_part(cut.number, cut.size + sum(piece.size for piece in cut.pieces))
            digest = written[-1].digest
            if digest.algorithm:
                value = replace(value, links=(*self.links, DigestLink(value.durable, digest.text())))
            await self.state.change(replace(value, is_publishing=False))
        self.durable_digest = digest
        for cut in written:
            self._cuts.popleft()
            cut.recorded.set_result(None)
        for piece in joined:
            await self._context.bucket.delete(self._context.keys.piece(value.upload_id, piece.token))

    # How it ends

    async def _publish(self, *, overwrite: bool, modified: float | None) -> FileInfo:
        self._is_closing = True
        try:
            await self.settled()
            publisher = Publisher(self._context.bucket, self._context.keys, self._context.facts)
            digest = self.claimed if self.links else self.digest.value
            value = self.state.value
            if value.parted or self._pieces:
                await self.all_in_parts()
                info = await publisher.in_parts(self, digest, overwrite=overwrite, modified=modified)
            else:
                info = await publisher.as_whole(self, digest, overwrite=overwrite, modified=modified)
        except BaseException:
            await self._close()
            raise
        self._end(is_kept=False)
        return info

    async def _close(self) -> None:
        self._is_closing = True
        try:
            if self._failure is None and self.tail_bytes:
                self._cut(as_part=False)
            await self.settled()
        except TransferError:
            pass  # what is durable is kept; the rest is sent again
        finally:
            self._end(is_kept=True)

    async def _drop(self) -> None:
        self._is_closing = True
        self._fail(self.state.superseded())
        while self._recording is not None:
            await asyncio.wait([self._recording])
        try:
            await remove_upload(self._context.bucket, self._context.keys, self.state)
        except Taken:
            pass  # it is another server's, or gone
        finally:
            self._end(is_kept=False)

    def _end(self, *, is_kept: bool) -> None:
        self._drop_tail()
        if not self.is_over:
            self.is_over = not is_kept
            self._context.on_closed(self, self.state.value, self.durable_digest if is_kept else None)

    def _fail(self, error: Exception) -> None:
        """Nothing more is sent."""
        if self._failure is None:
            self._failure = error
        self._drop_tail()
        while self._cuts:
            cut = self._cuts.popleft()
            if cut.writing is not None and not cut.writing.cancel() and not cut.writing.cancelled():
                cut.writing.exception()  # retrieved
            if not cut.recorded.done():
                cut.recorded.set_result(None)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _drop_tail(self) -> None:
        self._context.room.give(self.tail_bytes)
        self._tail, self.tail_bytes = io.BytesIO(), 0


class ObjectUpload(PartUpload):
    """Can be added to while what is full is sent."""

    async def flush(self) -> int:
        async with self._lock:
            self._check_owned()
        await self._part.flush()
        return self.durable
