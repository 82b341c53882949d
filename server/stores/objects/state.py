"""The state of an unfinished upload: one small object, changed by compare-and-swap.

Whichever server changed it last owns the upload. It says what is durable; what was written and isn't in it counts for
nothing. A server that is killed leaves it as it is, and the next one goes on from there.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, cast
from uuid import uuid4

from shared.errors import StorageUnavailable, Superseded
from shared.protocol.digest import DigestLink

from ..parts import UploadSpec
from .bucket import Bucket
from .failures import Missing, Refused, Unmet
from .keys import Keys

__all__ = ["IN_FLIGHT", "Piece", "State", "StateObject", "Taken", "new_token", "remove_upload"]

IN_FLIGHT: Final = 4
"""Parts that an owner may have written, or be writing, beyond those in the state. The next owner leaves as many numbers
out, so that what an older one still writes is no part of the file."""


def new_token() -> str:
    """A name that nothing else has."""
    return uuid4().hex


class Taken(Exception):
    """The state is another one: another server owns the upload, or it has ended."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes behind the parts that are durable and don't fill one: an object of their own."""

    token: str
    size: int


@dataclass(frozen=True, slots=True)
class State:
    """See above.

    Attributes:
        upload_id: That of the upload, and so on: what it began with.
        owner: Of the server that has changed it last, for this upload.
        serial: Grows with each change.
        part_bytes: The size of a part; one that was written for want of memory may have less.
        parts_id: That of the multipart upload; None as long as there is none.
        token: What the object is going to have in its metadata.
        runs: The numbers of the parts that count, as pairs of the first and the last of each run.
        parted: Bytes in these parts.
        pieces: What is durable beyond them.
        links: The digests of what is durable, one for each owner that received some of it; empty without an algorithm.
        is_publishing: Whether the owner was about to publish it.
        is_dropped: Whether the upload has ended, and what is left of it is being removed.
    """

    upload_id: str
    name: str
    size: int | None
    algorithm: str | None
    owner: str
    part_bytes: int
    token: str
    serial: int = 0
    parts_id: str | None = None
    runs: tuple[tuple[int, int], ...] = ()
    parted: int = 0
    pieces: tuple[Piece, ...] = ()
    links: tuple[DigestLink, ...] = ()
    is_publishing: bool = False
    is_dropped: bool = False

    @property
    def spec(self) -> UploadSpec:
        """What the upload began with."""
        return UploadSpec(self.upload_id, self.name, self.size, self.algorithm)

    @property
    def durable(self) -> int:
        """Bytes that survive the server."""
        return self.parted + sum(piece.size for piece in self.pieces)

    @property
    def last_number(self) -> int:
        """Of the parts; 0 if there are none."""
        return self.runs[-1][1] if self.runs else 0

    def numbers(self) -> list[int]:
        """The numbers of the parts, in order."""
        return [number for first, last in self.runs for number in range(first, last + 1)]

    def with_part(self, number: int, size: int) -> "State":
        """With a part, which takes the place of the pieces."""
        first, last = self.runs[-1] if self.runs else (number, number - 1)
        runs = (*self.runs[:-1], (first, number)) if number == last + 1 else (*self.runs, (number, number))
        return replace(self, runs=runs, parted=self.parted + size, pieces=())

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "State":
        """Raises ValueError if it isn't one."""
        try:
            said = cast(dict[str, Any], json.loads(content))
            known = {field.name: said[field.name] for field in fields(cls) if field.name in said}
            known["runs"] = tuple((int(first), int(last)) for first, last in known["runs"])
            known["pieces"] = tuple(Piece(str(piece["token"]), int(piece["size"])) for piece in known["pieces"])
            known["links"] = tuple(DigestLink(int(end), str(text)) for end, text in known["links"])
            return cls(**known)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("this is no state of an upload") from error


class StateObject:
    """The object with the state of one upload, as this server has seen it last.

    Attributes:
        value: The state.
    """

    def __init__(self, bucket: Bucket, key: str, value: State, etag: str) -> None:
        self.value = value
        self._bucket = bucket
        self._key = key
        self._etag = etag

    @classmethod
    async def create(cls, bucket: Bucket, keys: Keys, value: State) -> "StateObject":
        """Begins an upload; raises Taken if there is one of that id."""
        key = keys.state(value.upload_id)
        try:
            etag = await bucket.put(key, value.to_json(), only_new=True, name=value.name)
        except Refused:
            found = await cls._find(bucket, key, value.name)
            if found is not None and found.value.owner == value.owner:
                return found  # the answer to the first attempt was lost
            raise Taken from None
        return cls(bucket, key, value, etag)

    @classmethod
    async def load(cls, bucket: Bucket, keys: Keys, upload_id: str, name: str) -> "StateObject | None":
        """The state of an upload; None if there is none.

        Raises:
            StorageUnavailable: What is there isn't one.
        """
        return await cls._find(bucket, keys.state(upload_id), name)

    @classmethod
    async def at(cls, bucket: Bucket, key: str) -> "StateObject | None":
        """The state under that key; None if there is none."""
        return await cls._find(bucket, key, None)

    @property
    def etag(self) -> str:
        """The object's, as this server has seen it last."""
        return self._etag

    @classmethod
    async def _find(cls, bucket: Bucket, key: str, name: str | None) -> "StateObject | None":
        try:
            found, content = await bucket.content(key, name=name)
            return cls(bucket, key, State.from_json(content), found.etag)
        except Missing:
            return None
        except ValueError:
            raise StorageUnavailable(
                "the state of an unfinished upload is damaged; use another id", name=name
            ) from None

    async def change(self, value: State) -> None:
        """Changes it; raises Taken if another server did so meanwhile."""
        value = replace(value, serial=self.value.serial + 1)
        try:
            self._etag = await self._bucket.put(self._key, value.to_json(), if_match=self._etag, name=value.name)
        except (Refused, Missing):
            found = await self._find(self._bucket, self._key, value.name)
            if found is None or (found.value.owner, found.value.serial) != (value.owner, value.serial):
                raise Taken from None
            self._etag = found._etag  # the answer to the first attempt was lost
        self.value = value

    async def remove(self) -> None:
        """Removes it, if it is there; raises Taken if another server has changed it."""
        try:
            await self._bucket.delete(self._key, self._etag)
        except Unmet:
            if await self._find(self._bucket, self._key, None) is not None:
                raise Taken from None

    def superseded(self) -> Superseded:
        """The error for an older owner."""
        return Superseded(
            f"a newer transfer took over the upload {self.value.upload_id!r}, or it expired", name=self.value.name
        )


async def remove_upload(bucket: Bucket, keys: Keys, state: StateObject, *, has_ended: bool = False) -> None:
    """Removes an upload and all that is left of it; raises Taken if another server owns it by now.

    Args:
        has_ended: Whether it was published: then nothing is left but its state and its pieces, and if another server
            has taken it over meanwhile, that one finds it published.
    """
    value = state.value
    try:
        if not has_ended and not value.is_dropped and (value.parts_id is not None or value.pieces):
            # Others see from now on that its parts may be missing. As its owner: else two that do so wouldn't differ.
            await state.change(replace(value, is_dropped=True, owner=new_token()))
        if not has_ended and value.parts_id is not None:
            await bucket.abort_parts(keys.of(value.name), value.parts_id)
        if value.pieces or value.parts_id is not None:
            await _remove_pieces(bucket, keys, value.upload_id)
        await state.remove()
    except Taken:
        if not has_ended:
            raise


async def _remove_pieces(bucket: Bucket, keys: Keys, upload_id: str) -> None:
    token: str | None = ""
    while token is not None:
        page = await bucket.list(keys.piece(upload_id, ""), token=token or None)
        for found in page.objects:
            await bucket.delete(found.key)
        token = page.token
