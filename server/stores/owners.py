"""Which of several channels may add to an upload: the newest one, since an older one may be a half-dead connection."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shared.aio import wait_uncancelled
from shared.errors import InvalidRequest

__all__ = ["UploadOwners"]


@dataclass(eq=False, slots=True)
class _Owner:
    """A channel: the file's name, what ends it with Superseded, and what is done when it and its threads have ended."""

    name: str
    supersede: Callable[[], None]
    stopped: asyncio.Future[None]


class UploadOwners:
    """The newest channel of each upload under way."""

    def __init__(self) -> None:
        self._newest: dict[str, _Owner] = {}

    @asynccontextmanager
    async def claim(self, upload_id: str, name: str, supersede: Callable[[], None]) -> AsyncGenerator[None, None]:
        """Lets a channel add to an upload during the block, which begins when the older one has stopped.

        Args:
            upload_id: The upload's.
            name: The file's.
            supersede: Called when a newer channel takes over, which then waits for the end of this block.

        Raises:
            InvalidRequest: The id is in use for another file.
        """
        older = self._newest.get(upload_id)
        if older is not None and older.name != name:
            raise InvalidRequest(f"the upload {upload_id!r} is of another file", name=name)
        owner = self._newest[upload_id] = _Owner(name, supersede, asyncio.get_running_loop().create_future())
        try:
            if older is not None:
                older.supersede()
                await wait_uncancelled(older.stopped)  # its threads may still write
                older = None
            yield
        finally:
            if self._newest.get(upload_id) is owner:
                del self._newest[upload_id]
            owner.stopped.set_result(None)
