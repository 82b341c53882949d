"""Which of several channels may add to an upload: the newest one, since an older one may be a half-dead connection.

The newest is the last to arrive, but for an attempt that says that it is older than one of the same client: what a lost
connection had sent may be read after the client's next attempt, even after that has finished.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from shared.aio import wait_uncancelled
from shared.errors import InvalidRequest, Superseded
from shared.protocol.messages import UploadRequest

__all__ = ["UploadOwners"]

# Uploads whose last attempt's number is kept, half a kilobyte each at the most.
_MAX_REMEMBERED: Final = 4096


@dataclass(eq=False, slots=True)
class _Owner:
    """A channel, or what drops the upload.

    Attributes:
        name: The file's; None if the upload is dropped, whatever it is of.
        supersede: Ends it with that error.
        stopped: Is done when it and its threads have ended.
    """

    name: str | None
    supersede: Callable[[Superseded], None]
    stopped: asyncio.Future[None]


class UploadOwners:
    """The newest channel of each upload under way."""

    def __init__(self) -> None:
        self._newest: dict[str, _Owner] = {}
        # The highest attempt of each upload and client, the one that was used last at the end.
        self._attempts: OrderedDict[tuple[str, str], int] = OrderedDict()

    @asynccontextmanager
    async def claim(
        self, upload_id: str, name: str, supersede: Callable[[Superseded], None], request: UploadRequest
    ) -> AsyncGenerator[None, None]:
        """Lets a channel add to an upload during the block, which begins when the older one has stopped.

        Args:
            upload_id: The upload's, among those of all users.
            name: The file's.
            supersede: Called when a newer channel takes over, which then waits for the end of this block.
            request: What the channel began with.

        Raises:
            InvalidRequest: The id is in use for another file.
            Superseded: A newer attempt of the same client was here already.
        """
        self._check_order(upload_id, name, request.client, request.attempt)
        older = self._newest.get(upload_id)
        if older is not None and older.name not in (None, name):
            raise InvalidRequest(f"the upload {upload_id!r} is of another file", name=name)
        error = Superseded(f"a newer upload of {name!r} with the same id took over", name=name)
        del older
        async with self._taken(upload_id, name, supersede, error):
            yield

    @asynccontextmanager
    async def ended(self, upload_id: str) -> AsyncGenerator[None, None]:
        """Ends an upload's channel, if it has one; what begins it again waits for the end of this block."""
        error = Superseded("the upload was discarded")
        async with self._taken(upload_id, None, lambda _: None, error):
            yield

    @asynccontextmanager
    async def _taken(
        self, upload_id: str, name: str | None, supersede: Callable[[Superseded], None], error: Superseded
    ) -> AsyncGenerator[None, None]:
        older = self._newest.get(upload_id)
        owner = self._newest[upload_id] = _Owner(name, supersede, asyncio.get_running_loop().create_future())
        try:
            if older is not None:
                older.supersede(error)
                await wait_uncancelled(older.stopped)  # its threads may still write
                older = None
            yield
        finally:
            if self._newest.get(upload_id) is owner:
                del self._newest[upload_id]
            owner.stopped.set_result(None)

    def _check_order(self, upload_id: str, name: str, client: str | None, attempt: int | None) -> None:
        if client is None or attempt is None:
            return
        attempts, key = self._attempts, (upload_id, client)
        if attempt < attempts.get(key, 0):
            raise Superseded(f"a newer attempt to upload {name!r} with the same id arrived before this one", name=name)
        attempts[key] = attempt
        attempts.move_to_end(key)
        if len(attempts) > _MAX_REMEMBERED:
            attempts.popitem(last=False)
