"""The route that watches files: what is there, and then every change as it happens, without end."""

from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from rsocket.payload import Payload

from shared.protocol.changes import ChangeKind, FileChange
from shared.protocol.messages import ListRequest, transfer_metadata
from shared.protocol.wire import FileInfo, encode_name
from shared.protocol.wire import Route as Name

from ..stores.watching import KnownFiles, watched
from ..users import Right
from .pull import Items, PullStream
from .table import Model, Request, Route

__all__ = ["WATCH"]


def _watch(request: Request[ListRequest]) -> Callable[[PullStream], Items]:
    request.operation.set_endless()
    return partial(_changes, request)


async def _changes(request: Request[ListRequest], stream: PullStream) -> Items:
    """Each item is made of what is there when it is requested: a slow consumer gets the newest state of a name."""
    session = request.session
    prefixes = session.user.prefixes(Right.READ, request.message.prefix)
    known = KnownFiles(session.store, prefixes, session.data.store.changes)
    with watched(session.data.store, prefixes) as interest:
        try:
            for prefix in prefixes:
                async with aclosing(known.compare(prefix)) as present:
                    async for change in present:
                        yield _item(ChangeKind.PRESENT, change.name, change.info)
            yield _item(ChangeKind.READY)
            while True:
                stream.wait_without_room()
                await interest.wait()
                async with aclosing(known.look(interest)) as changes:
                    async for change in changes:
                        yield _item(change.kind, change.name, change.info)
        finally:
            known.close()


def _item(kind: ChangeKind, name: str = "", info: FileInfo | None = None) -> Payload:
    return Payload(encode_name(name) if name else b"", transfer_metadata(FileChange(kind, info)))


WATCH: Final[tuple[Route[Any], ...]] = (
    # Every user may ask; each sees the files that they may read.
    Route(Name.WATCH, Model.REQUEST_STREAM, _watch, right=None, message=ListRequest),
)
