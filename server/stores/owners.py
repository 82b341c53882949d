"""Which of several channels may add to an upload: the newest one, since an older one may be a half-dead connection."""

import asyncio
from typing import Protocol

from shared.errors import InvalidRequest

__all__ = ["UploadOwner", "UploadOwners"]


class UploadOwner(Protocol):
    """A channel that adds to the upload `upload_id` of the file `name`.

    Attributes:
        stopped: Done when the channel and its threads have finished with the upload.
    """

    name: str
    upload_id: str
    stopped: asyncio.Future[None]

    def supersede(self) -> None:
        """A newer channel takes over; this one is to end with Superseded."""
        ...


class UploadOwners:
    """The newest channel of each upload under way."""

    def __init__(self) -> None:
        self._newest: dict[str, UploadOwner] = {}

    def claim(self, owner: UploadOwner) -> UploadOwner | None:
        """Makes the channel its upload's owner; raises InvalidRequest if the id is in use for another file.

        Returns the older owner, which ends with Superseded. The caller waits until that has stopped, since threads may
        still write for it.
        """
        older = self._newest.get(owner.upload_id)
        if older is not None:
            if older.name != owner.name:
                raise InvalidRequest(f"the upload {owner.upload_id!r} is of another file", name=owner.name)
            older.supersede()
        self._newest[owner.upload_id] = owner
        return older

    def release(self, owner: UploadOwner) -> None:
        """Notes that the channel has ended."""
        if self._newest.get(owner.upload_id) is owner:
            del self._newest[owner.upload_id]
